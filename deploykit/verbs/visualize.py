"""Visualize: pictures of what a network has learnt, in a folder with one page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit.bundle.reading import read_bundle
from deploykit.core.choices import DefinitionChoices
from deploykit.core.errors import UnknownNameError, UsageError
from deploykit.core.progress import Progress, SilentProgress
from deploykit.sources.calls import require_call
from deploykit.sources.targets import (
    Kind,
    find_definition,
    kind_of,
    name_of,
    refuse_definition_options,
)
from deploykit.visualization.page import PAGE, require_free, write_pictures
from deploykit.visualization.results import Findings, Method

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from deploykit.core.specs import ModelSpec

DEFAULT_FOLDER: Final = Path("visualized")
FILTERS: Final = 9
"""Filters of a layer that are shown."""


@dataclass(frozen=True)
class VisualizeCall:
    """What is shown: of a TARGET, a bundle or a module, on which images, by which methods.

    Without ``methods`` those are used that the others allow. Without ``output`` the folder is
    ``visualized/NAME``.
    """

    target: str | nn.Module
    images: Path | None = None
    layers: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    filters: int = FILTERS
    weights: str | None = None
    seed: int = 0
    choices: DefinitionChoices = field(default_factory=DefinitionChoices)
    max_pixels: int | None = None
    output: Path | None = None
    replace: bool = False

    @property
    def kind(self) -> Kind:
        """What the target is; a module is a definition."""
        return kind_of(self.target) if isinstance(self.target, str) else Kind.DEFINITION

    @property
    def called(self) -> str:
        """The target in messages and names of folders."""
        if isinstance(self.target, str):
            return name_of(self.target)
        return type(self.target).__name__.lower()

    @property
    def folder(self) -> Path:
        """Where the pictures go."""
        return DEFAULT_FOLDER / self.called if self.output is None else self.output


@dataclass(frozen=True)
class Visualization:
    """The folder with its page, the numbers of the pictures, and what was noticed.

    ``numbers`` are those of ``--json``, plain data.
    """

    folder: Path
    numbers: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def page(self) -> Path:
        """The HTML page."""
        return self.folder / PAGE


def visualize(call: VisualizeCall, progress: Progress | None = None) -> Visualization:
    """Make the pictures, and write them with their page, whole or not at all.

    Raises:
        UsageError: something of the call is not possible for the target; or the output is there.
        DataError: the images cannot be read.
        BundleError: the output cannot be written.
    """
    methods = require_possible(call)
    shown = progress or SilentProgress()
    findings = Findings()
    findings.numbers |= {"target": _target_text(call), "kind": str(call.kind)}
    if call.kind is Kind.DEFINITION:
        methods = _of_definition(call, methods, findings, shown)
    else:
        _of_graph(call, methods, findings, shown)
    if not findings.pictures:
        raise UsageError(
            f"there is nothing to show of {call.called}\n" + "\n".join(findings.notes[-1:])
        )
    files = [PAGE, *(picture.file for picture in findings.pictures)]
    findings.numbers |= {
        "methods": [str(each) for each in Method if each in methods and _is_made(each, findings)],
        "output": str(call.folder),
        "page": str(call.folder / PAGE),
        "files": files,
        "notes": findings.notes,
    }
    write_pictures(call.folder, findings, replace=call.replace)
    return Visualization(call.folder, findings.numbers, tuple(findings.notes))


_MADE: Final = {
    Method.FILTERS: "first_layer",
    Method.GRADCAM: "gradcam",
    Method.OCCLUSION: "occlusion",
}
"""Methods that a network may have nothing for, and their numbers."""


def _is_made(method: Method, findings: Findings) -> bool:
    return method not in _MADE or _MADE[method] in findings.numbers


def _target_text(call: VisualizeCall) -> str:
    return call.target if isinstance(call.target, str) else type(call.target).__name__


def require_possible(call: VisualizeCall) -> frozenset[Method]:
    """The methods of a call, which is refused where it alone shows that it cannot be.

    Raises:
        DeploykitError: something is missing, or makes no sense with the rest.
    """
    target = call.target
    require_call(
        [target] if isinstance(target, str) and call.kind is not Kind.BUNDLE else [],
        weights=call.weights,
        images=[call.images],
    )
    asked = tuple(_method(name) for name in dict.fromkeys(call.methods))
    if call.kind is not Kind.DEFINITION:
        _refuse_for_graphs(call, asked)
    needy = [each for each in asked if each.needs_images]
    if needy and call.images is None and call.kind is Kind.DEFINITION:
        raise UsageError(
            f"{', '.join(needy)}: which images?\ngive them with --images PATH: a folder, a CSV "
            "list, an .npz or .npy"
        )
    require_free(call.folder, replace=call.replace)
    return frozenset(asked) or _usual(call)


def _method(name: str) -> Method:
    known = [str(each) for each in Method]
    if name not in known:
        raise UnknownNameError("method", name, known, ", ".join(known))
    return Method(name)


def _refuse_for_graphs(call: VisualizeCall, asked: Sequence[Method]) -> None:
    what = "a bundle" if call.kind is Kind.BUNDLE else "an .onnx file"
    possible = [str(each) for each in Method if not each.needs_gradients]
    instead = f"possible for it: --method {' and --method '.join(possible)}"
    needy = [str(each) for each in asked if each.needs_gradients]
    if needy:
        raise UsageError(
            f"{', '.join(needy)}: {call.called} is {what}, a graph without gradients or modules\n"
            f"{instead}\nthe definition that it was made from has all methods"
        )
    if call.layers:
        raise UsageError(
            f"--layer {call.layers[0]}: {call.called} is {what}, which has no modules\n{instead}"
        )
    if isinstance(call.target, str):
        refuse_definition_options(call.target, call.choices, call.weights)


def _usual(call: VisualizeCall) -> frozenset[Method]:
    if call.kind is not Kind.DEFINITION:
        return frozenset({Method.FILTERS, Method.OCCLUSION})
    if call.images is None:
        return frozenset({Method.FILTERS})
    return frozenset({Method.FILTERS, Method.TOP, Method.DECONVNET, Method.GRADCAM})


def _of_graph(
    call: VisualizeCall, methods: frozenset[Method], findings: Findings, progress: Progress
) -> None:
    with progress.step("look at the graph"):
        from deploykit.visualization.of_graphs import GraphWish, show_bundle, show_file

    path, wish = (
        Path(str(call.target)),
        GraphWish(methods, bool(call.methods), call.images, call.max_pixels),
    )
    if call.kind is Kind.ONNX:
        show_file(path, call.choices, wish, findings, progress)
        return

    def show(bundle: Any) -> Findings:
        found = Findings()  # anew for each attempt: a bundle may be replaced meanwhile
        show_bundle(bundle, wish, found, progress)
        return found

    found = read_bundle(path, show)
    findings.sections += found.sections
    findings.numbers |= found.numbers
    findings.notes += found.notes


def _of_definition(
    call: VisualizeCall, methods: frozenset[Method], findings: Findings, progress: Progress
) -> frozenset[Method]:
    with progress.step("look at the network"):
        from deploykit.sources.logits import network_of
        from deploykit.sources.weights import build_with_weights
        from deploykit.visualization.layers import ShownNetwork, recording
        from deploykit.visualization.of_modules import ModuleWish, show_module

    with recording():
        with progress.step("build the network"):
            spec = _spec(call)
            module, record = build_with_weights(spec, call.weights, call.seed)
            known = record.preprocessing or spec.preprocessing
            look = call.choices.preprocessing.applied_to(known)
            network = ShownNetwork.of(module, network_of(module), look)
        findings.numbers["weights"] = record.source
        findings.notes += _notes(call, spec, trained=record.trained, source=record.source)
        wish = ModuleWish(
            methods,
            bool(call.methods),
            call.layers,
            call.filters,
            call.seed,
            call.images,
            call.max_pixels,
        )
        labels = record.labels or spec.known_labels()
        return show_module(network, wish, labels, findings, progress)


def _spec(call: VisualizeCall) -> ModelSpec:
    if isinstance(call.target, str):
        return find_definition(call.target, call.choices)
    from deploykit.sources.live_module import live_module_spec

    return live_module_spec(call.target, call.choices)


def _notes(call: VisualizeCall, spec: ModelSpec, *, trained: bool | None, source: str) -> list[str]:
    notes = list(spec.notes)
    if trained is False:
        notes.append(f"weights: {source}; its pictures show chance: --weights")
    if not call.methods and call.images is None:
        notes.append("with --images PATH also: top, deconvnet, gradcam; slow: --method maximise")
    return notes
