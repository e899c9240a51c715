"""From a target to the graph that is measured, and the time that no device can be faster than."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from deploykit.benchmarking.limits import physical_limit
from deploykit.bundle import Bundle
from deploykit.errors import UsageError
from deploykit.pipeline.benchmark.prepared import Graph
from deploykit.pipeline.image_sizes import require_known_sizes
from deploykit.pipeline.targets import Kind, digest_of, find_definition, kind_of
from deploykit.specs import Precision

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deploykit.artifacts import OnnxArtifact
    from deploykit.benchmarking.costs import NetworkCost
    from deploykit.benchmarking.limits import Limit
    from deploykit.benchmarking.peaks import DevicePeak

UNCOUNTED: Final = "no physical limit: counting a graph needs pip install 'deploykit[export]'"
NOISE: Final = "INT8 ranges from noise: the speed counts, the answers mean nothing"


def own_precisions(targets: Iterable[str]) -> dict[str, Precision]:
    """The targets that have their precision already: bundles, and converted ``.onnx`` files.

    Raises:
        MissingDependencyError: the package that a definition comes from is not installed.
        UnknownNameError: a target is neither a file, nor a bundle, nor a definition.
        ModelFileError: a file cannot be read.
        BundleError: a folder is no bundle.
    """
    found: dict[str, Precision] = {}
    for target in targets:
        kind = kind_of(target)
        if kind is Kind.BUNDLE:
            found[target] = Bundle.open(Path(target)).manifest.precision
        elif kind is Kind.ONNX:
            from deploykit import onnx_graph

            precision = onnx_graph.read_artifact(Path(target)).precision
            if precision is not Precision.FP32:
                found[target] = precision
        else:
            find_definition(target)  # says what names there are
    return found


def prepare_graph(
    target: str,
    precision: Precision,
    work: Path,
    *,
    batches: Iterable[int],
    peaks: Mapping[str, DevicePeak],
) -> Graph:
    """The verified graph of ``target`` in ``precision``, exported into ``work`` where needed.

    Raises:
        DeploykitError: the error of the stage that failed.
    """
    kind, digest = kind_of(target), None
    if kind is Kind.BUNDLE:
        bundle = Bundle.open(Path(target))
        bundle.require_unchanged(bundle.model_path.name)
        return _graph(bundle.manifest.onnx, bundle, own=True, costs=_costs(bundle, batches, peaks))
    if kind is Kind.ONNX:
        from deploykit import onnx_graph

        artifact = onnx_graph.read_artifact(Path(target))
        digest = artifact.sha256
        for spec in artifact.inputs:
            require_known_sizes(target, spec)
        if artifact.precision is not Precision.FP32:
            costs = _Costs.of(artifact.path, batches, peaks)
            return _graph(artifact, None, own=False, costs=costs)
    else:
        digest = digest_of(target)
    from deploykit.pipeline.benchmark.exports import exported

    bundle = exported(target, precision, work, digest)
    return _graph(bundle.manifest.onnx, bundle, own=False, costs=_costs(bundle, batches, peaks))


def _graph(artifact: OnnxArtifact, bundle: Bundle | None, *, own: bool, costs: _Costs) -> Graph:
    return Graph(
        path=str(artifact.path),
        sha256=artifact.sha256,
        precision=artifact.precision,
        computes=costs.precision,
        folder=None if bundle is None else str(bundle.folder),
        own=own,
        limits=costs.limits,
        notes=(*_notes(bundle), *costs.notes),
        image=None if bundle is None else bundle.manifest.preprocessing.crop,
    )


@dataclass(frozen=True)
class _Costs:
    """What counting gives: the precision of most multiply-adds, limits by device and batch."""

    precision: Precision | None = None
    limits: Mapping[str, Mapping[int, Limit]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        path: Path,
        batches: Iterable[int],
        peaks: Mapping[str, DevicePeak],
        image: tuple[int, int] | None = None,
    ) -> Self:
        from deploykit import onnx_graph
        from deploykit.onnx_graph.costs import network_cost
        from deploykit.onnx_graph.image_size import fix_image_size

        model = onnx_graph.read_model(path)
        if image is not None:
            fix_image_size(model, image)
        costs: dict[int, NetworkCost] = {}
        for batch in batches:
            with suppress(UsageError):  # a fixed batch, or a shape that is open
                costs[batch] = network_cost(model, batch)
        if not costs:
            return cls()
        counts = next(iter(costs.values())).multiply_adds_in
        limits = {
            device: {batch: physical_limit(cost, peak) for batch, cost in costs.items()}
            for device, peak in peaks.items()
        }
        return cls(max(counts, key=lambda each: counts[each], default=None), limits)


def _costs(bundle: Bundle, batches: Iterable[int], peaks: Mapping[str, DevicePeak]) -> _Costs:
    """On a target a bundle is measured without the tools that could count its graph."""
    if find_spec("onnx_ir") is None:
        return _Costs(notes=(UNCOUNTED,))
    return _Costs.of(bundle.model_path, batches, peaks, bundle.manifest.preprocessing.crop)


def _notes(bundle: Bundle | None) -> tuple[str, ...]:
    calibration = None if bundle is None else bundle.manifest.calibration
    return (NOISE,) if calibration and calibration.get("source") == "random noise" else ()
