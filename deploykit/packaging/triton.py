"""A model repository of Triton Inference Server."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from deploykit.bundle.golden import Golden
from deploykit.bundle.manifest import CPU_MODEL, LABELS, MODEL
from deploykit.core.artifacts import AMPERE_PLUS, EngineRecord, OnnxArtifact
from deploykit.core.errors import BundleError
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.packaging._place import PackageChoices, Packed, ShippingPlace, asset, copy_file
from deploykit.packaging._triton_config import (
    LABELS_FILE,
    ONNXRUNTIME,
    TENSORRT,
    WARM_UP_FOLDER,
    ServedModel,
    WarmUp,
    config_text,
    shape_at,
)
from deploykit.packaging._triton_containers import container_for, triton_containers
from deploykit.packaging._triton_readme import Repository, readme_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.bundle.manifest import Bundle
    from deploykit.core.specs import Array, TensorSpec

COMPILER: Final = "tensorrt"
"""The only compiler whose engines Triton has a backend for."""

MODELS: Final = "models"
VERSION: Final = "1"
SOURCE: Final = "source"

_CLASSES: Final = frozenset({"multiclass", "multilabel"})
_NO_SCORES: Final = frozenset({"argmax", "top_k"})
"""What a graph may do to its classes that leaves no value for each."""


@dataclass(frozen=True)
class Plans:
    """Engines of a bundle that Triton can run, all of one version of TensorRT.

    ``by_capability`` are records by compute capability, ``for_all`` is the one for every GPU from
    Ampere on. ``left_out`` says of each other engine why it is not among them.
    """

    version: str | None = None
    by_capability: Mapping[str, EngineRecord] = field(default_factory=dict)
    for_all: EngineRecord | None = None
    left_out: tuple[str, ...] = ()

    @property
    def records(self) -> tuple[EngineRecord, ...]:
        """All of them."""
        others = () if self.for_all is None else (self.for_all,)
        return (*self.by_capability.values(), *others)

    @classmethod
    def of(cls, engines: Sequence[EngineRecord]) -> Plans:
        """Those of the newest version; of one compute capability the one that was built last."""
        usable = [each for each in engines if each.compiler == COMPILER]
        version = max((each.compiler_version for each in usable), key=_in_order, default=None)
        chosen: dict[str, EngineRecord] = {}
        for_all = None
        for each in usable:
            if each.compiler_version != version:
                continue
            if each.hardware_compatibility == AMPERE_PLUS:
                for_all = each
            else:
                chosen |= dict.fromkeys(each.compute_capabilities, each)
        kept = {each.file for each in (*chosen.values(), *([for_all] if for_all else []))}
        left_out = [_why_not(each, version) for each in engines if each.file not in kept]
        return cls(version, chosen, for_all, tuple(left_out))

    @property
    def profiles(self) -> tuple[ShapeProfile, ...]:
        """The profiles that every plan has at the same place, with what all of them accept.

        Raises:
            BundleError: two plans have no common size.
        """
        each_has = [record.profile.profiles for record in self.records]
        return tuple(map(_common, zip(*each_has, strict=False)))


def _in_order(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def _why_not(record: EngineRecord, version: str | None) -> str:
    if record.compiler != COMPILER:
        return f"{record.file}: Triton has no backend for engines of {record.compiler}"
    if record.compiler_version != version:
        return (
            f"{record.file}: of TensorRT {record.compiler_version}, and a container has one "
            f"version ({version})"
        )
    return f"{record.file}: another one is for the same GPUs"


def _common(profiles: Sequence[ShapeProfile]) -> ShapeProfile:
    """What all of ``profiles`` accept, tuned as the first."""
    first = profiles[0]
    ranges = {
        axis: (
            max(each.ranges[axis].min for each in profiles),
            sizes.opt,
            min(each.ranges[axis].max for each in profiles),
        )
        for axis, sizes in first.ranges.items()
    }
    if any(low > high for low, _, high in ranges.values()):
        raise BundleError(
            f"the engines have no size in common: {'; '.join(map(str, profiles))}\n"
            "build them anew with the same --batch, --height and --width"
        )
    fitting = {
        axis: SizeRange(low, min(max(preferred, low), high), high)
        for axis, (low, preferred, high) in ranges.items()
    }
    batch = fitting[0]
    return ShapeProfile(batch.min, batch.opt, batch.max, fitting.get(2), fitting.get(3))


@dataclass(frozen=True)
class _Files:
    """What is written: the model's folder, the package's, and what runs."""

    package: Path
    model: Path

    @property
    def version(self) -> Path:
        return self.model / VERSION


class Triton(ShippingPlace):
    """Plans where the bundle has them, else its graph and a script that compiles them there."""

    summary = "a model repository of Triton Inference Server"
    choices: ClassVar[frozenset[str]] = frozenset({"image"})

    def write(self, bundle: Bundle, folder: Path, choices: PackageChoices) -> Packed:
        """Fill ``folder``; ``choices.image`` is the container, where the known one is not meant."""
        plans = Plans.of(bundle.manifest.engines)
        name = model_name(bundle)
        files = _Files(folder, folder / MODELS / name)
        files.version.mkdir(parents=True)
        labels = _copy_labels(bundle, files.model)
        profiles = plans.profiles or _profiles_to_build(bundle)
        onnx = bundle.manifest.onnx
        model = ServedModel(name, onnx.inputs, onnx.outputs, profiles, WarmUp({}, {}, ()), labels)
        warm_up, notes = _write_warm_up(bundle, model, files.model / WARM_UP_FOLDER)
        model = replace(model, warm_up=warm_up)
        repository = Repository(bundle, model, plans.version, choices.image, plans.left_out, notes)
        has_names = (files.model / LABELS_FILE).is_file()
        repository = replace(repository, has_class_names=has_names)
        if plans.records:
            repository = _write_plans(repository, plans, files)
        else:
            repository = _write_graph(repository, files)
        (folder / "README.md").write_text(readme_text(repository), encoding="utf-8")
        return Packed(repository.facts, repository.all_notes)


def model_name(bundle: Bundle) -> str:
    """The bundle's name, as a folder and a part of an address may be called."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", bundle.manifest.name).lstrip(".") or "model"


def _write_plans(repository: Repository, plans: Plans, files: _Files) -> Repository:
    bundle, by_file = repository.bundle, {}
    for record in plans.records:
        capability = "ampere-plus" if record is plans.for_all else f"sm{_digits(record)}"
        by_file[record.file] = f"model-{capability}.plan"
        copy_file(bundle, record.file, files.version / by_file[record.file])
    named = {cc: by_file[record.file] for cc, record in plans.by_capability.items()}
    default = None if plans.for_all is None else by_file[plans.for_all.file]
    _write_config(files, config_text(repository.model, TENSORRT, named, default))
    known = container_for(str(plans.version))
    return replace(
        repository,
        platform=TENSORRT,
        why="the bundle has engines of TensorRT",
        container=repository.image or (known.image if known else None),
        known=known,
        plans=named | ({} if default is None else {"8.0 and later": default}),
    )


def _digits(record: EngineRecord) -> str:
    return "-".join(each.replace(".", "") for each in record.compute_capabilities)


def _write_graph(repository: Repository, files: _Files) -> Repository:
    bundle, model = repository.bundle, repository.model
    onnx = bundle.manifest.onnx
    graph = _graph_for_onnxruntime(bundle, onnx)
    copy_file(bundle, graph, files.version / MODEL)
    _write_config(files, config_text(model, ONNXRUNTIME, {}))
    source = f"{MODELS}/{model.name}/{VERSION}/{MODEL}"
    if graph != onnx.path.name:
        source = f"{SOURCE}/{MODEL}"
        copy_file(bundle, onnx.path.name, files.package / source)
    engines = bundle.manifest.engines
    why = "the bundle has no engine"
    if engines:
        compilers = ", ".join(sorted({each.compiler for each in engines}))
        why = f"the bundle has engines of {compilers} alone, which Triton has no backend for"
    newest = triton_containers()[0]
    repository = replace(
        repository,
        platform=ONNXRUNTIME,
        why=why,
        container=repository.image or newest.image,
        known=None if repository.image else newest,
        graph=graph,
    )
    return _write_build(repository, source, files)


def _graph_for_onnxruntime(bundle: Bundle, onnx: OnnxArtifact) -> str:
    """The model, or its form for CPUs where onnxruntime has no kernels for the model itself."""
    if not onnx.needs_cpu_form:
        return onnx.path.name
    if CPU_MODEL in bundle.manifest.files and (bundle.folder / CPU_MODEL).is_file():
        return CPU_MODEL
    raise BundleError(
        f"onnxruntime has no kernels for {bundle.manifest.name} ({bundle.manifest.precision}), "
        f"and the bundle has neither a TensorRT engine nor {CPU_MODEL}\n"
        "build an engine where it will run: deploykit build BUNDLE --backend tensorrt"
    )


def _write_build(repository: Repository, source: str, files: _Files) -> Repository:
    """Add the script that compiles the plans, where the sizes of all inputs are known."""
    shapes = _trtexec_shapes(repository.model)
    if shapes is None:
        note = (
            "no build.sh: an input beside the images has an open dimension, whose sizes a plan "
            "must know"
        )
        return replace(repository, notes=(*repository.notes, note))
    text = asset(
        "build.sh",
        name=shlex.quote(repository.model.name),
        onnx=shlex.quote(source),
        image=shlex.quote(str(repository.container)),
        shapes=" ".join(map(shlex.quote, shapes)),
    )
    script = files.package / "build.sh"
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)
    config = config_text(repository.model, TENSORRT, {})
    (files.package / "config.tensorrt.pbtxt").write_text(config, encoding="utf-8")
    return replace(repository, has_build=True)


def _trtexec_shapes(model: ServedModel) -> list[str] | None:
    """Options of ``trtexec`` for each profile; none for a graph without open dimensions."""
    options: list[str] = []
    for place, profile in enumerate(model.profiles):
        points = {"min": profile.smallest, "opt": profile.preferred, "max": profile.largest}
        found = {word: _shapes_text(model.inputs, sizes) for word, sizes in points.items()}
        if any(text is None for text in found.values()):
            return None
        given = [f"--{word}Shapes={text}" for word, text in found.items() if text]
        several = [f"--profile={place}"] if len(model.profiles) > 1 else []
        options += [*several, *given] if given else []
    return options


def _shapes_text(inputs: Sequence[TensorSpec], sizes: Mapping[int, int]) -> str | None:
    """``input:8x3x224x224`` of the inputs with open dimensions; ``None``: one has no size."""
    found = []
    for spec in inputs:
        shape = shape_at(spec, sizes)
        if shape is None:
            return None
        if any(isinstance(dim, str) for dim in spec.shape):
            found.append(f"{spec.name}:{'x'.join(map(str, shape))}")
    return ",".join(found)


def _profiles_to_build(bundle: Bundle) -> tuple[ShapeProfile, ...]:
    """Those of an engine of another compiler, else the default with the bundle's image sizes."""
    engines = bundle.manifest.engines
    if engines:
        return engines[-1].profile.profiles
    model, image = bundle.manifest.model, bundle.manifest.onnx.inputs[0]
    sizes = {name: SizeRange(*model[name]) for name in ("height", "width") if model.get(name)}
    fixed = image.fixed_batch
    batch = (1, 8, 32) if fixed is None else (fixed, fixed, fixed)
    return (ShapeProfile(*batch, height=sizes.get("height"), width=sizes.get("width")),)


def _write_config(files: _Files, text: str) -> None:
    (files.model / "config.pbtxt").write_text(text, encoding="utf-8")


def _copy_labels(bundle: Bundle, folder: Path) -> str | None:
    """The output that has a value for each label, whose names are copied; ``None`` without.

    The names of class numbers are copied too, for who looks a number up.
    """
    names, head, onnx = bundle.labels, bundle.manifest.head, bundle.manifest.onnx
    output = next((each for each in onnx.outputs if each.name == head.output), onnx.outputs[0])
    if names is None or head.kind not in _CLASSES:
        return None
    if head.activation in _NO_SCORES:  # Triton would name the places of the numbers by it
        copy_file(bundle, LABELS, folder / LABELS_FILE)
        return None
    if output.shape[-1:] != (len(names),):
        return None
    copy_file(bundle, LABELS, folder / LABELS_FILE)
    return output.name


# --- the warm-up


def _write_warm_up(
    bundle: Bundle, model: ServedModel, folder: Path
) -> tuple[WarmUp, tuple[str, ...]]:
    """One image of the golden sample as raw files, and the batches to run it in."""
    given, notes = _golden_feeds(bundle, model)
    files, dims = {}, {}
    for place, spec in enumerate(model.inputs):
        array = given.get(spec.name)
        if array is None:
            dims[spec.name] = _dims_without_sample(model, spec)
            continue
        dims[spec.name] = array.shape
        files[spec.name] = f"input{place}"
        folder.mkdir(exist_ok=True)
        (folder / files[spec.name]).write_bytes(array.tobytes())
    return WarmUp(dims, files, _warm_up_batches(model)), notes


def _warm_up_batches(model: ServedModel) -> tuple[int, ...]:
    """A single image, and the batches that the plans are tuned for."""
    if not model.has_batches:
        return (1,)  # of a model without batches Triton takes no other number
    return tuple(sorted({max(1, model.min_batch), *model.preferred}))


def _golden_feeds(
    bundle: Bundle, model: ServedModel
) -> tuple[dict[str, NDArray[np.generic]], tuple[str, ...]]:
    """What each input is fed, as its element type; of one image where the model has batches."""
    try:
        golden = Golden.read(bundle)
    except BundleError as error:
        why = str(error).splitlines()[0]
        return {}, (f"the warm-up feeds zeros: {why}",)
    feeds = golden.feeds(model.inputs[0].name)
    found = {}
    for spec in model.inputs:
        array = _one_request(feeds.get(spec.name), spec, model)
        if array is not None:
            found[spec.name] = array
    missing = [spec.name for spec in model.inputs if spec.name not in found]
    note = f"the warm-up feeds zeros to {', '.join(missing)}, which the golden sample does not fit"
    return found, (note,) if missing else ()


def _one_request(
    value: Array | None, spec: TensorSpec, model: ServedModel
) -> NDArray[np.generic] | None:
    """One image of a batch, or a whole batch of the size that the model insists on."""
    if value is None or spec.dtype == "bfloat16":  # which numpy does not have
        return None
    array: NDArray[np.generic] = np.asarray(value).astype(spec.dtype)
    if model.has_batches:
        array = array[0]
    elif spec.fixed_batch is not None and array.shape[:1] != (spec.fixed_batch,):
        array = np.resize(array, (spec.fixed_batch, *array.shape[1:]))
    wanted = spec.shape[1:] if model.has_batches else spec.shape
    fits = len(wanted) == array.ndim and all(
        isinstance(dim, str) or dim in (-1, size)
        for dim, size in zip(wanted, array.shape, strict=True)
    )
    return np.ascontiguousarray(array) if fits else None


def _dims_without_sample(model: ServedModel, spec: TensorSpec) -> tuple[int, ...]:
    shape = shape_at(spec, model.profiles[0].preferred)
    if shape is None:  # a dimension of something beside images, of which no profile speaks
        shape = tuple(dim if isinstance(dim, int) and dim > 0 else 1 for dim in spec.shape)
    return shape[1:] if model.has_batches else shape


PLACE = Triton()
