"""`load`: from a path to a `Classifier`, or to the reason why there is none."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploykit.backends import CPU, EngineOptions
from deploykit.backends._registry import graph_backend_on, load_devices
from deploykit.bundle.folders import way_to_bundle
from deploykit.bundle.image_sizes import sizes_of_graph
from deploykit.bundle.keys import trust_of
from deploykit.bundle.manifest import LABELS, MANIFEST, is_folder
from deploykit.bundle.reading import read_bundle
from deploykit.core.errors import (
    BundleError,
    EngineIncompatibleError,
    MissingDependencyError,
    UsageError,
    ValidationError,
    typed_first_line,
)
from deploykit.core.gpu_choice import ENGINE_DEVICE, device_label, split_device
from deploykit.runtime.choice import (
    Chosen,
    Machine,
    Misfit,
    cache_of,
    incompatible,
    misfit_of_error,
    rank_engines,
)
from deploykit.runtime.classifier import Classifier
from deploykit.runtime.inputs import BatchLimits

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from deploykit.backends import GraphBackend
    from deploykit.bundle.manifest import Bundle
    from deploykit.bundle.signature import Trust
    from deploykit.bundle.sigstore import SigstoreIdentity
    from deploykit.core.artifacts import EngineRecord
    from deploykit.core.specs import Runner, TensorSpec
    from deploykit.runtime.choice import Fit

_AUTO: Final = "auto"
_ENGINE: Final = ENGINE_DEVICE
_SUFFIX: Final = ".engine"

logger = logging.getLogger("deploykit")


@dataclass(frozen=True)
class _Wanted:
    """What `load` was asked for: a bundle's folder, one of its engines or any, how to run it.

    ``device`` is without its GPU, which ``gpu`` names, empty for the driver's first. ``graph_on``
    is the backend that ``device`` means for the bundle's graph, if it means one.
    """

    folder: Path
    engine: str | None
    device: str
    graph_on: GraphBackend | None
    cuda_graphs: bool
    threads: int | None
    fast: bool
    gpu: str = ""
    trust: Trust | None = None


@dataclass(frozen=True)
class _Request:
    """The bundle as it is now, and which of its engines may be taken."""

    bundle: Bundle
    records: tuple[EngineRecord, ...]
    wanted: _Wanted


def load(  # noqa: PLR0913 - one parameter per choice of the caller
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    cuda_graphs: bool = True,
    threads: int | None = None,
    fast: bool = False,
    machine: Machine | None = None,
    trust: str | os.PathLike[str] | SigstoreIdentity | None = None,
) -> Classifier:
    """Load a bundle for serving; everything that can be wrong with it is found here.

    The hash of each file that is used, the compiler's version, the compute capability and the
    driver are compared with the manifest before anything is deserialised. An engine whose
    execution nobody vouches for (INT8 convolutions on TensorRT for RTX) is taken only where no
    other fits, and only if it computes the bundle's golden sample. Which engine or graph was taken
    is in `Classifier.choice`, and a line of the logger "deploykit".

    Args:
        path: a bundle's folder, or one ``.engine`` in it: then that engine and no other.
        device: "cuda" is an engine on the GPU, never anything else. "cpu" is the bundle's ONNX
            graph on onnxruntime, "ort-cuda" the same on onnxruntime's CUDA provider; other names
            are those that installed backends bring. "auto" is the best engine that fits this
            machine, and "cpu" where none does. "cuda:1" is the driver's GPU 1 of those that
            ``CUDA_VISIBLE_DEVICES`` shows; after the colon a PCI bus id ("cuda:0000:3b:00.0") or a
            UUID, or enough of one's beginning ("cuda:GPU-8f9a", "cuda:MIG-..."), may stand too, and
            either of them alone.
        cuda_graphs: replay launches on the GPU; faster for small models and batches.
        threads: of onnxruntime on the CPU; all cores when not given.
        fast: on the CPU, compute a model of lower precision in plain FP32. By default its values
            are rounded where an engine rounds them, which takes longer.
        machine: what engines have to fit, for tests; this machine when not given.
        trust: a public key, or certificates, in a PEM file; or a `SigstoreIdentity`, which needs a
            network. A bundle that is not signed by it, or was changed since, is refused before its
            manifest is parsed. Kernels that TensorRT for RTX cached beside an engine are not used
            then, because nobody signed them.

    Raises:
        BundleError: there is no bundle, or one that this deploykit cannot read; Sigstore does not
            answer.
        IntegrityError: a file that is needed is not as it was written.
        SignatureError: nobody trusted signed the bundle as it is.
        MissingDependencyError: ``trust`` needs model-signing.
        EngineIncompatibleError: no engine runs here; the message has the reason of each.
        UsageError: an unknown device or GPU, or one that does not go with ``path``; no key in
            ``trust``.
        ModelFileError: onnxruntime cannot load the graph.
    """
    wanted = _understand(Path(path), device, cuda_graphs=cuda_graphs, threads=threads, fast=fast)
    if trust is not None:
        wanted = replace(wanted, trust=trust_of(trust))

    here = (machine or Machine()).on(wanted.gpu)
    loaded = read_bundle(wanted.folder, lambda bundle: _load(wanted, bundle, here), wanted.trust)
    logger.info("%s: %s", loaded.name, loaded.choice)
    return loaded


def load_opened(
    bundle: Bundle,
    device: str,
    *,
    fast: bool = False,
    threads: int | None = None,
    machine: Machine | None = None,
) -> Classifier:
    """As `load`, for a bundle that is open already: by a reader within `read_bundle`."""
    wanted = _understand(bundle.folder, device, cuda_graphs=True, threads=threads, fast=fast)
    return _load(wanted, bundle, (machine or Machine()).on(wanted.gpu))


def machine_for(device: str, machine: Machine | None = None) -> Machine:
    """The machine, this one if not given, with the GPU that ``device`` names before the others.

    Raises:
        UsageError: an unknown device, or a GPU that is not there or is none of the device's.
    """
    return (machine or Machine()).on(_parts_of(device)[2])


def _parts_of(device: str) -> tuple[str, GraphBackend | None, str]:
    """Name of a device, the backend that it means for a graph, if it means one, and its GPU.

    Raises:
        UsageError: an unknown device, or a GPU of one that is on none.
    """
    name, gpu = split_device(device)
    graph_on = None if name in (_AUTO, _ENGINE) else _graph_backend(name)
    if gpu and name != _ENGINE and (graph_on is None or graph_on.device == CPU):
        raise UsageError(
            f"{name!r} is not on a GPU, but {gpu!r} names one\nname it with the engine: cuda:{gpu}"
        )
    return name, graph_on, gpu


def _understand(
    path: Path, device: str, *, cuda_graphs: bool, threads: int | None, fast: bool
) -> _Wanted:
    device, graph_on, gpu = _parts_of(device)
    if threads is not None and threads < 1:
        raise UsageError(f"threads={threads} would compute nothing\nexpected 1 or more, or None")
    only_engine = path.suffix == _SUFFIX and not path.is_dir()
    if only_engine and graph_on is not None:
        raise UsageError(
            f"an engine does not run on {device!r}: {path.name}\n"
            f"load its bundle instead: deploykit.load({str(path.parent)!r}, device={device!r})"
        )
    if only_engine:
        _require_beside(path)
    else:
        _require_folder(path)
    engine = path.name if only_engine else None
    folder = path.parent if only_engine else path
    return _Wanted(folder, engine, device, graph_on, cuda_graphs, threads, fast, gpu)


def _load(wanted: _Wanted, bundle: Bundle, machine: Machine) -> Classifier:
    if LABELS in bundle.manifest.files:
        bundle.require_unchanged(LABELS)
    records = bundle.manifest.engines
    if wanted.engine is not None:
        records = (_record_of(bundle, wanted.engine),)
    request = _Request(bundle, records, wanted)
    if wanted.graph_on is None:
        return _load_engine(request, machine)
    why = f"asked for with device={wanted.device!r}"
    return _load_graph(request, wanted.graph_on, wanted.device, why, machine)


def _graph_backend(device: str) -> GraphBackend:
    found = graph_backend_on(device)
    if found is None:
        possible = ", ".join((_AUTO, _ENGINE, *load_devices()))
        raise UsageError(
            f"unknown device {device!r}\npossible: {possible}; of several GPUs one: {_ENGINE}:1"
        )
    return found


def _require_folder(folder: Path) -> None:
    if is_folder(folder):
        return
    try:
        is_file = folder.is_file()
    except (OSError, ValueError) as exc:
        raise BundleError(f"cannot look at {str(folder)!r:.200}: {typed_first_line(exc)}") from exc
    if is_file:
        raise BundleError(
            f"{folder} is a file, neither a bundle's folder nor an engine\n{way_to_bundle(folder)}"
        )
    raise BundleError(f"there is nothing at {folder}\n{way_to_bundle(folder)}")


def _require_beside(engine: Path) -> None:
    if not is_folder(engine.parent) or not engine.exists():
        raise BundleError(
            f"there is no engine at {engine}\nlist those of a bundle: deploykit check"
        )
    if not (engine.parent / MANIFEST).exists():
        raise BundleError(
            f"{engine} has no {MANIFEST} beside it: for which version and GPU it was built, and "
            "what its model takes, is unknown\n"
            "load it where deploykit export or build put it, or export its model to a bundle"
        )


def _record_of(bundle: Bundle, name: str) -> EngineRecord:
    known = {record.file: record for record in bundle.manifest.engines}
    if name not in known:
        raise BundleError(
            f"the manifest beside {name} does not name it; it names {', '.join(known) or 'none'}\n"
            f"add an engine with: deploykit build {bundle.folder}"
        )
    return known[name]


def _load_engine(request: _Request, machine: Machine) -> Classifier:
    fits, misfits = rank_engines(request.bundle, request.records, machine)
    for fit in fits:
        loaded = _try(request, fit, machine, len(fits))
        if isinstance(loaded, Classifier):
            return loaded
        misfits.append(loaded)
    if request.wanted.device == _ENGINE or request.wanted.engine is not None:
        raise incompatible(request.bundle, machine, misfits)
    if machine.gpus:
        # Somebody put a GPU into this machine: that it is idle must not go unnoticed.
        logger.warning("%s", incompatible(request.bundle, machine, misfits))
    return _load_graph(request, _graph_backend(CPU), CPU, _why_none(misfits), machine)


def _why_none(misfits: Sequence[Misfit]) -> str:
    reasons = "; ".join(f"{misfit.file}: {misfit.reason}" for misfit in misfits)
    return f"no engine runs here ({reasons})" if reasons else "the bundle has no engine"


def _try(request: _Request, fit: Fit, machine: Machine, count: int) -> Classifier | Misfit:
    """The classifier on this engine, or why it does not run in spite of what its manifest says."""
    record, bundle = fit.record, request.bundle
    bundle.require_unchanged(record.file)
    # It holds kernels, which are code, and the runtime writes it: nobody can have signed it.
    cache = cache_of(bundle, fit, machine.gpus[0]) if request.wanted.trust is None else None
    options = EngineOptions(
        cuda_graphs=request.wanted.cuda_graphs, cache=cache, gpu_index=machine.gpu_index
    )
    path = bundle.folder / record.file
    runner = machine.open_engine(path, fit.compiler, record.profile, options)
    choice = f"{record.file} on {machine.label}: {_why(request, record, count)}"
    try:
        runner.__enter__()
        limits = BatchLimits.of_engine(record.profile, bundle.manifest.preprocessing.crop)
        device = device_label(_ENGINE, machine.gpus[0])
        chosen = Chosen(runner, device, limits, choice, record.file, record.profile)
        loaded = Classifier(bundle, chosen)
        if record.is_unproven:
            loaded.self_test()
    except (EngineIncompatibleError, MissingDependencyError, ValidationError) as exc:
        runner.close()
        return misfit_of_error(record.file, exc)
    except BaseException:
        runner.close()
        raise
    return loaded


def _why(request: _Request, record: EngineRecord, count: int) -> str:
    if request.wanted.engine is not None:
        why = "asked for by its path"
    elif count == 1:
        why = "the engine that fits"
    else:
        why = f"the best of {count} engines that fit"
    return f"{why}; unproven, but it computes the golden sample" if record.is_unproven else why


def _load_graph(
    request: _Request, backend: GraphBackend, device: str, why: str, machine: Machine
) -> Classifier:
    # Only a CPU lacks the arithmetic of the model itself.
    is_own = request.wanted.fast or backend.device != CPU
    graph = request.bundle.on_cpu(fast=is_own)
    request.bundle.require_unchanged(graph.artifact.path.name)
    gpu = machine.gpus[0] if backend.device != CPU and machine.gpus else None
    runner = backend.open_artifact(
        graph.artifact,
        threads=request.wanted.threads,
        spin=True,
        gpu_index=gpu.index if gpu else 0,
    )
    try:
        runner.__enter__()
        _require_as_recorded(request.bundle, runner)
    except BaseException:
        runner.close()
        raise
    limits = BatchLimits.of_graph(runner.inputs)
    name = graph.name if backend.device == CPU else graph.artifact.path.name
    choice = f"{name} on {backend.label}: {why}"
    file = graph.artifact.path.name
    taken = device_label(device, gpu)
    sizes = sizes_of_graph(request.bundle.manifest)
    return Classifier(request.bundle, Chosen(runner, taken, limits, choice, file, exported=sizes))


def _require_as_recorded(bundle: Bundle, runner: Runner) -> None:
    """Refuse a graph that is not of the model that the manifest describes."""
    onnx = bundle.manifest.onnx
    for verb, here, recorded in (
        ("takes", runner.inputs, onnx.inputs),
        ("gives", runner.outputs[: len(onnx.outputs)], onnx.outputs),
    ):
        if [(spec.name, len(spec.shape)) for spec in here] != [
            (spec.name, len(spec.shape)) for spec in recorded
        ]:
            raise BundleError(
                f"the graph of {bundle.folder.name} {verb} {_listed(here)}, "
                f"its manifest says {_listed(recorded)}\nexport the bundle again"
            )


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name!r:.40} {spec.shape_text}" for spec in specs) or "nothing"
