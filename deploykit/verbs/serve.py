"""`deploykit serve`: bundles loaded and tested, then served by the Open Inference Protocol."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.environment import require
from deploykit.core.progress import SilentProgress
from deploykit.core.serialization import to_plain
from deploykit.runtime.loading import load
from deploykit.serving.repository import places_in, require_distinct, require_golden

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from deploykit.bundle.sigstore import SigstoreIdentity
    from deploykit.core.progress import Progress
    from deploykit.runtime.classifier import Classifier
    from deploykit.serving.limits import ServiceLimits
    from deploykit.serving.repository import BundlePlace
    from deploykit.serving.server import Address, Ports
    from deploykit.serving.service import Service, UnfinishedError

NEEDED: Final = ("starlette", "uvicorn", "grpc", "google.protobuf", "prometheus_client")
"""The packages of the extra ``serve``."""


@dataclass(frozen=True, slots=True)
class Loading:
    """How each bundle is loaded, as `deploykit.load` takes it."""

    device: str = "auto"
    threads: int | None = None
    fast: bool = False
    trust: Path | SigstoreIdentity | None = None


@dataclass(frozen=True, slots=True)
class ServedBundle:
    """A bundle that is served: its name and version, what runs it and why.

    ``pixels`` are ``layout`` and ``channel_order`` of images as tensors, empty where unknown.
    """

    model: str
    version: str
    folder: str
    device: str
    choice: str
    max_batch: int
    gathers: bool
    pixels: dict[str, str]


@dataclass(frozen=True)
class ServeReport:
    """What was served, and how many requests ended in which way."""

    models: tuple[ServedBundle, ...]
    requests: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"models": list(map(to_plain, self.models)), "requests": self.requests}


def serve(  # noqa: PLR0913 - what a service is told, and whom it tells
    bundles: Sequence[Path],
    *,
    loading: Loading,
    limits: ServiceLimits,
    address: Address,
    started: Callable[[tuple[ServedBundle, ...], Ports], None],
    give_up: Callable[[UnfinishedError], None],
    progress: Progress | None = None,
) -> ServeReport:
    """Serve ``bundles`` until SIGTERM or SIGINT; ``started`` is called once both ports answer.

    ``give_up`` is called in a thread of its own where a model computes on after the time for the
    end. It has to end the process: nothing else can.

    Everything that can be wrong with a bundle is found before anything listens: its golden sample
    has run and agreed.

    Raises:
        MissingDependencyError: the extra ``serve`` is not installed.
        UsageError: a port cannot be had; two bundles have one name and version; an unknown device.
        BundleError: a bundle cannot be read, or a file of it is not as it was written.
        ValidationError: a golden sample does not come out as it did at export.
        EngineIncompatibleError: no engine of a bundle fits, and ``device`` is a GPU.
    """
    places = places_in(bundles)
    for name in NEEDED:
        require(name)
    from deploykit.serving.server import bind, run

    said: tuple[ServedBundle, ...] = ()

    def when_started(service: Service, ports: Ports) -> None:
        nonlocal said
        said = _described(service, places)
        started(said, ports)

    with ExitStack() as stack:
        http = stack.enter_context(bind(address))
        loaded = [_loaded(place, loading, stack, progress) for place in places]
        names = [place.name or each.name for place, each in zip(places, loaded, strict=True)]
        require_distinct(zip(names, places, strict=True))
        models = [
            (name, place.version, model)
            for name, place, model in zip(names, places, loaded, strict=True)
        ]
        service = run(models, limits, address, http, when_started, give_up)
    return ServeReport(said, service.metrics.outcomes())


def _loaded(
    place: BundlePlace, loading: Loading, stack: ExitStack, progress: Progress | None
) -> Classifier:
    with (progress or SilentProgress()).step(f"load {place.folder}"):
        model = load(
            place.folder,
            device=loading.device,
            threads=loading.threads,
            fast=loading.fast,
            trust=loading.trust,
        )
        return require_golden(stack.enter_context(model), str(place.folder))


def _described(service: Service, places: Sequence[BundlePlace]) -> tuple[ServedBundle, ...]:
    return tuple(
        ServedBundle(
            each.name,
            each.version,
            str(place.folder),
            each.model.device,
            each.model.choice,
            each.max_batch,
            each.gathers,
            each.pixels,
        )
        for each, place in zip(service.models.in_order, places, strict=True)
    )
