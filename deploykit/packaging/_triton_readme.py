"""README.md of a model repository: what is in it, which container runs it, how it is called."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from deploykit._version import __version__
from deploykit.core.choices import GREY_ORDER
from deploykit.core.sizes import are_images
from deploykit.packaging._triton_config import ONNXRUNTIME, TENSORRT
from deploykit.packaging._triton_containers import (
    IMAGE,
    MATRIX,
    SDK_SUFFIX,
    TritonContainer,
    triton_containers,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deploykit.bundle.manifest import Bundle
    from deploykit.core.specs import HeadRecord, Preprocessing
    from deploykit.packaging._triton_config import ServedModel

_NAMELESS = "IMAGE"
"""Stands for a container that nobody knows the name of."""

_CLIENTS = "SDK_IMAGE"
"""Stands for a container with Triton's clients."""

_LAYOUTS: Final = {"nhwc": "(N, H, W, {0})", "nchw": "(N, {0}, H, W)"}


@dataclass(frozen=True)
class Repository:
    """A model repository: the bundle, the model as Triton is told of it, and what runs it.

    ``version`` is that of TensorRT whose plans are in it; ``container`` is the image that should
    run it, ``known`` the row that it comes from. ``plans`` are files by compute capability.
    ``graph`` is the file of the bundle that onnxruntime runs. ``has_class_names``: `labels.txt` is
    there, whether or not Triton reads it.
    """

    bundle: Bundle
    model: ServedModel
    version: str | None
    image: str | None
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    platform: str = ""
    why: str = ""
    container: str | None = None
    known: TritonContainer | None = None
    plans: Mapping[str, str] = field(default_factory=dict)
    graph: str | None = None
    has_build: bool = False
    has_class_names: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "model": self.model.name,
            "platform": self.platform,
            "reason": self.why,
            "container": self.container,
            "tensorrt": self.version,
            "plans": dict(self.plans),
            "graph": self.graph,
            "max_batch_size": self.model.max_batch,
            "build": "build.sh" if self.has_build else None,
            "left_out": list(self.left_out),
        }

    @property
    def all_notes(self) -> tuple[str, ...]:
        """What a user must know, a sentence each."""
        return (*self._doubts(), *self.notes)

    def _doubts(self) -> Iterable[str]:
        if self.platform == ONNXRUNTIME:
            remedy = "run build.sh where it will serve" if self.has_build else "build an engine"
            yield f"Triton runs the graph on onnxruntime until there are plans: {remedy}"
        if self.platform == TENSORRT and self.container is None:
            yield (
                f"which container has TensorRT {self.version} is not known here: look it up at "
                f"{MATRIX}"
            )
        if self.model.has_batches and self.model.min_batch > 1:
            yield (
                f"the plans refuse batches of fewer than {self.model.min_batch}: send as many "
                "images in each request"
            )
        if self.graph not in (None, self.bundle.model_path.name):
            yield (
                f"onnxruntime has no kernels for {self.bundle.manifest.precision}: it runs "
                f"{self.graph}, which rounds as an engine does and is slower"
            )
        elif self.platform == ONNXRUNTIME and not self.bundle.manifest.precision.facts.is_source:
            yield (
                f"on a CPU onnxruntime computes {self.bundle.manifest.precision} in wider "
                "arithmetic than an engine"
            )


def readme_text(repository: Repository) -> str:
    """The page."""
    sections = (
        _head(repository),
        _inside(repository),
        _container(repository),
        _build(repository),
        _start(repository),
        _requests(repository),
        _measure(repository),
    )
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _head(it: Repository) -> list[str]:
    manifest = it.bundle.manifest
    trained = {True: "trained", False: "untrained: its answers mean nothing"}
    state = trained.get(manifest.weights.get("trained"), "trained or not is unknown")  # type: ignore[arg-type]  # None is looked up too
    return [
        f"# {it.model.name} for Triton Inference Server",
        "",
        (
            f"Made by deploykit {__version__} from the bundle {manifest.name} of "
            f"{manifest.created}, precision {manifest.precision}, weights "
            f"{manifest.weights.get('source')} ({state})."
        ),
        "",
        f"Triton runs it as `{it.platform}`: {it.why}.",
        *(f"\nNote: {note}." for note in it.all_notes),
    ]


def _inside(it: Repository) -> list[str]:
    folder = f"models/{it.model.name}"
    rows = [
        ("`models/`", "the model repository"),
        (f"`{folder}/config.pbtxt`", f"max_batch_size {it.model.max_batch}{_batching(it)}"),
    ]
    rows += [
        (f"`{folder}/1/{file}`", f"TensorRT {it.version}, compute capability {capability}")
        for capability, file in it.plans.items()
    ]
    if it.graph is not None:
        rows.append((f"`{folder}/1/model.onnx`", f"the bundle's {it.graph}"))
    if it.model.labels is not None:
        rows.append((f"`{folder}/labels.txt`", f"names of the classes of `{it.model.labels}`"))
    elif it.has_class_names:
        text = "names of the classes: class number 0 is the first line"
        rows.append((f"`{folder}/labels.txt`", text))
    if it.model.warm_up.files:
        rows.append(
            (f"`{folder}/warmup/`", "an image of the golden sample; ready only after it ran")
        )
    if it.has_build:
        rows.append(("`build.sh`", "compiles the plans on the target"))
        rows.append(("`config.tensorrt.pbtxt`", "the configuration that it puts in place then"))
    table = ["## What is inside", "", "| | |", "|---|---|"]
    table += [f"| {name} | {text} |" for name, text in rows]
    if it.left_out:
        table += ["", "Not in it:", *(f"- {each}" for each in it.left_out)]
    return table


def _batching(it: Repository) -> str:
    if not it.model.has_batches:
        return ": a tensor has no open batch, so Triton passes requests on as they are"
    profiles = "; ".join(map(str, it.model.profiles))
    return f", dynamic batching; sizes: {profiles}"


def _container(it: Repository) -> list[str]:
    lines = ["## The container", ""]
    if it.platform == TENSORRT:
        lines.append(
            f"A plan loads only in a container with its TensorRT, {it.version}, and on a GPU of "
            "its compute capability."
        )
        if it.known is not None:
            lines.append(f"`{it.known.image}` has it ({it.known.source}).")
        elif it.container is not None:
            lines.append(f"`{it.container}` was named as the one that has it; nobody compared.")
        else:
            rows = ", ".join(f"{c.release} ({c.tensorrt})" for c in triton_containers())
            lines.append(f"No container with it is known here. Known are: {rows}.")
    else:
        lines.append(
            "onnxruntime runs the graph in any container with the backend. `build.sh` compiles "
            f"for the TensorRT of the container that it runs in, by default `{it.container}`"
            + (f" (TensorRT {it.known.tensorrt}; {it.known.source})." if it.known else ".")
        )
    lines += [
        f"NVIDIA's table of all releases: {MATRIX}. What an image itself has:",
        "",
        "```",
        f"docker run --rm {_image(it)} dpkg-query --show 'libnvinfer*'",
        "```",
    ]
    return lines


def _build(it: Repository) -> list[str]:
    if not it.has_build:
        return []
    return [
        "## The plans",
        "",
        "On the machine that will serve, with its GPU, docker and NVIDIA's container toolkit:",
        "",
        "```",
        f"./build.sh {_image(it)}",
        "```",
        "",
        (
            "It compiles a plan for each compute capability here with `trtexec` and puts "
            "`tensorrt_plan` into `config.pbtxt`. The plans run once, on random pixels: their "
            "answers are not compared with the bundle's. `deploykit build BUNDLE --backend "
            "tensorrt` on the target compares them; then package again. Run it again for another "
            "container: plans of another version are removed."
        ),
    ]


def _start(it: Repository) -> list[str]:
    return [
        "## Start",
        "",
        "```",
        "docker run --rm --gpus all -p 8000:8000 -p 8001:8001 -p 8002:8002 \\",
        f'    -v "$PWD/models:/models:ro" {_image(it)} \\',
        "    tritonserver --model-repository=/models",
        f"curl -f http://127.0.0.1:8000/v2/models/{it.model.name}/ready",
        "```",
    ]


def _requests(it: Repository) -> list[str]:
    manifest = it.bundle.manifest
    lines = ["## Requests", "", "| tensor | type | shape |", "|---|---|---|"]
    onnx = manifest.onnx
    for word, specs in (("input", onnx.inputs), ("output", onnx.outputs)):
        lines += [f"| {word} `{s.name}` | {s.dtype} | {s.shape_text} |" for s in specs]
    image = onnx.inputs[0]
    takes_bytes = image.dtype == "uint8"
    lines += ["", _pixels(manifest.preprocessing, takes_bytes=takes_bytes)]
    if not takes_bytes and not are_images(image.shape):
        lines.append(f"The axes of `{image.name}` are as its shape says.")
    lines.append(_meaning(manifest.head, onnx.outputs[0].name))
    return lines


def _pixels(steps: Preprocessing, *, takes_bytes: bool) -> str:
    scale = "" if steps.resize is None else f"scale {_resize(steps.resize)} ({steps.interpolation})"
    height, width = steps.crop
    is_grey = steps.channel_order == GREY_ORDER
    grey = "make it grey (ITU-R 601, as Pillow's mode L)" if is_grey else ""
    done = [grey, scale, f"cut {height}x{width} from the centre"]
    rest = [
        "" if is_grey else f"channels {steps.channel_order}",
        "divide by 255",
        f"subtract {_numbers(steps.mean)}",
        f"divide by {_numbers(steps.std)}",
    ]
    sentence = f"Whoever sends an image prepares it: {', '.join(filter(None, done))}"
    if steps.pixels is not None:
        layout = _LAYOUTS[steps.pixels.layout].format(steps.channels)
        order = "" if is_grey else f"with the colours in the order {steps.pixels.order}, "
        return (
            f"{sentence}. The model takes bytes of 0 to 255, {layout}, {order}and does the rest "
            "itself."
        )
    if takes_bytes:
        return f"{sentence}. The model takes the bytes and does the rest itself."
    return f"{sentence}, {', '.join(filter(None, rest))}."


def _resize(resize: int | tuple[int, int]) -> str:
    if isinstance(resize, int):
        return f"the shorter side to {resize}"
    return f"to {resize[0]}x{resize[1]}"


def _numbers(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _meaning(head: HeadRecord, first: str) -> str:
    applied = "no activation was applied" if head.activation == "none" else head.activation
    return f"The answer is `{head.output or first}`, of kind {head.kind} ({applied})."


def _measure(it: Repository) -> list[str]:
    model = it.model
    arguments = ["perf_analyzer", "-m", model.name, "-u", "127.0.0.1:8001", "-i", "grpc"]
    if model.has_batches:
        arguments += ["-b", str(max(1, model.min_batch))]
    for spec in model.inputs:
        shape = spec.shape[1:] if model.has_batches else spec.shape
        if any(isinstance(size, str) for size in shape):
            dims = model.warm_up.dims[spec.name]
            arguments += ["--shape", f"{spec.name}:{','.join(map(str, dims))}"]
    arguments += ["--concurrency-range", "1:16:4"]
    # Only of NVIDIA's own containers is it known that one with the clients goes with them.
    image = _CLIENTS if it.known is None else shlex.quote(f"{it.known.image}{SDK_SUFFIX}")
    lines = [
        "## Measure",
        "",
        "```",
        f"docker run --rm --net=host {image} \\",
        f"    {shlex.join(arguments)}",
        "```",
    ]
    if it.known is None:
        named = f"`{IMAGE}:RELEASE-py3{SDK_SUFFIX}`"
        lines += ["", f"{_CLIENTS} is a container with `perf_analyzer`, as NVIDIA's {named}."]
    return lines


def _image(it: Repository) -> str:
    return _NAMELESS if it.container is None else shlex.quote(it.container)
