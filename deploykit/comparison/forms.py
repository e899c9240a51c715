"""Two forms of one network: with bytes in or prepared images, with results or what they are of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from deploykit.comparison.reference import WithBatch
from deploykit.core.deployed import Result
from deploykit.core.errors import UsageError
from deploykit.core.serialization import to_plain
from deploykit.core.specs import Closing, TensorSpec
from deploykit.heads import head_of
from deploykit.heads._results import End, judged_beside
from deploykit.images.byte_images import floats_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.specs import (
        Array,
        HeadRecord,
        PixelInput,
        Preprocessing,
        Runner,
        StepTimes,
    )
    from deploykit.heads import Head
    from deploykit.images.side_inputs import SideInputs

    Outputs = list[NDArray[np.float32]]
    Opener = Callable[[], Runner]


class Recorded(Protocol):
    """What a manifest says of the form of its graph."""

    @property
    def head(self) -> HeadRecord:
        """What the outputs mean."""

    @property
    def conversion(self) -> Mapping[str, Any]:
        """What was done to the graph."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """One of two: its name, how it prepares images, its outputs, what its manifest says.

    ``activation`` is what a file says itself that it ends in.
    """

    name: str
    preprocessing: Preprocessing | None
    outputs: tuple[TensorSpec, ...]
    manifest: Recorded | None = None
    activation: str | None = None

    @property
    def pixels(self) -> PixelInput | None:
        """How it takes bytes; ``None``: it takes prepared images."""
        return None if self.preprocessing is None else self.preprocessing.pixels

    @property
    def end(self) -> End | None:
        """What was put behind its graph, if anything was."""
        found = {} if self.manifest is None else self.manifest.conversion.get("result", {})
        if not found.get("added"):
            return None
        wanted = Result.parse(found["asked"])
        added, names = tuple(found["added"]), tuple(found["outputs"])
        return End(str(wanted), added, names, count=wanted.count)

    def has_end(self, other: Deployed) -> bool:
        """Whether it ends as ``other`` does, which has something put behind its graph.

        A file says nothing of its end but the names of what it gives.
        """
        if self.manifest is not None or other.end is None:
            return self.end == other.end
        is_original = meant_before_end(other.manifest, self.outputs) is not None
        return not is_original and self.outputs[0].name == other.end.names[0]


@dataclass(frozen=True, slots=True)
class Forms:
    """How two of one network differ in form; ``ends`` are put behind the outputs of each.

    ``pixels`` is how both are given bytes, where one of them takes these.
    """

    sides: tuple[Deployed, ...]
    pixels: PixelInput | None
    converts: tuple[bool, ...]
    ends: tuple[End | None, ...]

    @classmethod
    def of(cls, sides: Sequence[Deployed], *, layers: bool) -> Self:
        """Of both sides; with ``layers`` their activations are to be compared.

        Raises:
            UsageError: they take bytes in two layouts or orders, end in different results, or
                their activations cannot be compared.
        """
        kinds = {side.pixels for side in sides if side.pixels is not None}
        if len(kinds) > 1:
            each = ", ".join(f"{s.name}: {_words(s.pixels)}" for s in sides if s.pixels)
            raise UsageError(
                f"the two take bytes in other forms, {each}\n"
                "compare each with one that takes prepared images, as the file it was made from"
            )
        pixels = next(iter(kinds), None)
        converts = tuple(pixels is not None and side.pixels is None for side in sides)
        ends = _ends(sides)
        if layers and (any(converts) or any(ends)):
            raise UsageError(
                f"--layers: {' and '.join(side.name for side in sides)} have not the same form\n"
                "leave --layers out; or export both with the same --input and --result"
            )
        return cls(tuple(sides), pixels, converts, ends)

    @property
    def are_alike(self) -> bool:
        """Whether both take and give the same."""
        return not any(self.converts) and not any(self.ends)

    def require_images_alone(self, side: SideInputs) -> None:
        """Refuse values beside images, which are chosen by what each of the two is given.

        Raises:
            UsageError: there are such, and one of the two takes bytes.
        """
        if side.rows and any(self.converts):
            raise UsageError(
                f"{self._names} take {', '.join(side.rows)} beside images, which one of them takes "
                "as bytes\nexport both with the same --input to compare them"
            )

    @property
    def _names(self) -> str:
        return " and ".join(side.name for side in self.sides)

    @property
    def beside(self) -> dict[str, Head]:
        """What judges outputs beside class numbers, by name; as one of the manifests says it."""
        found: dict[str, Head] = {}
        for manifest in (side.manifest for side in self.sides):
            if manifest is not None:
                found |= judged_beside(head_of(manifest.head), manifest.conversion)
        return found

    def wanted(self, place: int) -> TensorSpec:
        """The output that is meant of the file at ``place``, as the bundle beside it has it."""
        own, other = self.sides[place], self.sides[1 - place]
        before = meant_before_end(other.manifest, own.outputs) if self.ends[place] else None
        first = other.outputs[0]
        if before is None:
            return first
        # Probabilities are of the shape that they are made of, which may be one number an image.
        return replace(before, shape=first.shape) if first.dtype == "float32" else before

    def openers(
        self, openers: tuple[Opener, Opener], preprocessing: Preprocessing
    ) -> tuple[Opener, Opener]:
        """What opens both, fed alike, with all that a result has behind the one without it."""
        first, second = (
            partial(self._opened, place, opener, preprocessing)
            for place, opener in enumerate(openers)
        )
        return first, second

    def _opened(self, place: int, opener: Opener, preprocessing: Preprocessing) -> Runner:
        runner = self.fed(place, opener(), preprocessing)
        own, other = self.sides[place], self.sides[1 - place]
        if own.manifest is None and other.manifest is not None:
            # An export gives outputs of one image an axis for it.
            ranks = {spec.name: len(spec.shape) for spec in other.outputs}
            lone = [
                each.name for each in own.outputs if ranks.get(each.name) == len(each.shape) + 1
            ]
            runner = WithBatch(runner, lone)
        end, first = self.ends[place], self._meant(place)
        return runner if end is None else Ended(runner, end, first)

    def _meant(self, place: int) -> str:
        """The name of the output of a side that is compared first."""
        own, meant = self.sides[place], self.wanted(place).name
        names = [spec.name for spec in own.outputs]
        return meant if own.manifest is None and meant in names else names[0]

    def meant_first(self, artifact: OnnxArtifact) -> OnnxArtifact:
        """That of the first side with the output first that is compared first, or its end."""
        meant, end = self._meant(0), self.ends[0]
        ordered = sorted(artifact.outputs, key=lambda spec: spec.name != meant)
        if end is not None:
            ordered[:1] = [TensorSpec(name, "float32", ("batch",)) for name in end.names]
        return replace(artifact, outputs=tuple(ordered))

    def notes_on_images(self) -> list[str]:
        """In what the two prepare images otherwise, where both say it: they are given the same."""
        first, second = (side.preprocessing for side in self.sides)
        if first is None or second is None:
            return []
        here, there = (to_plain(replace(each, pixels=None)) for each in (first, second))
        values = [
            f"{name} {value} and {there[name]}"
            for name, value in here.items()
            if value != there[name]
        ]
        if not values:
            return []
        as_one = f"both are given them as {self.sides[0].name} prepares them"
        if self.pixels is not None:
            as_one = "both are given the same bytes, and each normalises them itself"
        return [f"{self._names} prepare images otherwise, {'; '.join(values)}: {as_one}"]

    def notes_on_outputs(self) -> list[str]:
        """Which outputs one of the two has alone, and are not compared."""
        notes = []
        for place, side in enumerate(self.sides):
            other = self.sides[1 - place]
            compared = {self._meant(place), *(spec.name for spec in other.outputs)}
            compared |= set(() if side.end is None else side.end.names)
            alone = [repr(spec.name) for spec in side.outputs if spec.name not in compared]
            if alone:
                notes.append(f"{', '.join(alone)} of {side.name} alone: not compared")
        return notes

    def fed(self, place: int, runner: Runner, preprocessing: Preprocessing) -> Runner:
        """The runner of the side at ``place``, which is then fed as the other one is.

        It is given bytes as it normalises them, as the other one does, if it says how.
        """
        own = self.sides[place].preprocessing or preprocessing
        prepared = replace(own, pixels=preprocessing.pixels)
        return FromBytes(runner, prepared) if self.converts[place] else runner

    def outputs(self, place: int, outputs: Outputs) -> Outputs:
        """The outputs of the side at ``place`` with the end of the other one behind them."""
        end = self.ends[place]
        return outputs if end is None else end.first_of(outputs)


def _ends(sides: Sequence[Deployed]) -> tuple[End | None, ...]:
    """For each side what the other one has behind its graph, and it has not."""
    first, second = sides
    found = []
    for side, other in ((first, second), (second, first)):
        end = other.end
        found.append(None if end is None or side.has_end(other) else end)
    both = [side.manifest.head.activation for side in sides if side.manifest is not None]
    is_other = any(
        end is not None and not _is_before(side, other)
        for end, side, other in zip(found, sides, sides[::-1], strict=True)
    )
    if any(found) and (len(set(both)) > 1 or is_other):
        raise UsageError(
            f"{first.name} and {second.name} end in different results: "
            f"{_end_of(first)} and {_end_of(second)}\n"
            "export both with the same --result to compare them"
        )
    return tuple(found)


def _end_of(side: Deployed) -> str:
    """What a side ends in, in words: two results may give outputs of the same names."""
    name = repr(side.outputs[0].name)
    return name if side.end is None else f"{name} of --result {side.end.wanted}"


def _is_before(file: Deployed, other: Deployed) -> bool:
    """Whether a file may be what a result was put behind in ``other``, by what it ends in."""
    if file.manifest is not None or file.activation is None or other.manifest is None:
        return True
    before = other.manifest.conversion.get("result", {}).get("before", "none")
    return bool(file.activation == before)


def meant_before_end(manifest: Recorded | None, outputs: Sequence[TensorSpec]) -> TensorSpec | None:
    """The output of the original behind which a bundle's result was put, as it was then.

    ``None`` without a result, in manifests that do not say it yet, and where it is not among
    ``outputs``, those of a file: that is not the original then.
    """
    found = {} if manifest is None else manifest.conversion.get("result", {})
    name = found.get("behind") if found.get("added") else None
    if name not in {spec.name for spec in outputs}:
        return None
    return TensorSpec(str(name), "float32", ("batch", "classes"))


def _words(pixels: PixelInput) -> str:
    return f"{pixels.layout} {pixels.order}"


class FromBytes(Closing):
    """A runner that is fed bytes as ``preprocessing.pixels`` has them, of a model of floats.

    The images are its first input.
    """

    def __init__(self, runner: Runner, preprocessing: Preprocessing) -> None:
        self._runner = runner
        self._preprocessing = preprocessing

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that the caller feeds."""
        image, *others = self._runner.inputs
        return replace(image, dtype="uint8"), *others

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Specs of the arrays that ``run`` returns."""
        return self._runner.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for one batch."""
        return self._runner.run(self._prepared(feeds))

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        """As ``run``, with the duration of each step."""
        return self._runner.run_timed(self._prepared(feeds))

    def _prepared(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        name = self._runner.inputs[0].name
        return {**feeds, name: floats_of(feeds[name], self._preprocessing)}

    def close(self) -> None:
        """Close the runner below."""
        self._runner.close()


class Ended(Closing):
    """A runner with what a result puts behind its output ``first``, and its other outputs."""

    def __init__(self, runner: Runner, end: End, first: str) -> None:
        self._runner = runner
        self._end = end
        self._first = first

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that the caller feeds."""
        return self._runner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Specs of the arrays that ``run`` returns; those of the end have no shape of their own."""
        made = (TensorSpec(name, "float32", ("batch",)) for name in self._end.names)
        return *made, *(spec for spec in self._runner.outputs if spec.name != self._first)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for one batch."""
        return self._ended(self._runner.run(feeds), feeds)

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        """As ``run``, with the duration of each step."""
        outputs, times = self._runner.run_timed(feeds)
        return self._ended(outputs, feeds), times

    def _ended(self, outputs: Mapping[str, Array], feeds: Mapping[str, Array]) -> dict[str, Array]:
        others = {name: value for name, value in outputs.items() if name != self._first}
        values = outputs[self._first].astype(np.float32, copy=False)
        values = values.reshape(len(feeds[self.inputs[0].name]), -1)
        return {**others, **self._end.applied_to(values)}

    def close(self) -> None:
        """Close the runner below."""
        self._runner.close()


class LaidOut(Closing):
    """A runner of a user's own file whose first output is as ``wanted``, that of its bundle.

    An export makes the output that is meant the first, drops dimensions of 1 around classes, puts
    the batch first, and gives it to what a file for one image returns without it.
    """

    def __init__(self, runner: Runner, wanted: TensorSpec, *, is_second: bool) -> None:
        self._runner = runner
        self._wanted = wanted
        self._is_second = is_second

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that the caller feeds."""
        return self._runner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Specs of the arrays that ``run`` returns."""
        others = (spec for spec in self._runner.outputs if spec.name != self._wanted.name)
        return self._wanted, *others

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for one batch."""
        return self._laid_out(self._runner.run(feeds), feeds)

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        """As ``run``, with the duration of each step."""
        outputs, times = self._runner.run_timed(feeds)
        return self._laid_out(outputs, feeds), times

    def _laid_out(
        self, outputs: Mapping[str, Array], feeds: Mapping[str, Array]
    ) -> dict[str, Array]:
        name = self._wanted.name
        value, rank = outputs[name], len(self._wanted.shape)
        if value.ndim == rank:
            return {**outputs, name: np.swapaxes(value, 0, 1) if self._is_second else value}
        count = len(feeds[self._runner.inputs[0].name])
        shape = (1, *value.shape) if value.ndim < rank and count == 1 else (count, -1)
        return {**outputs, name: value.reshape(shape)}

    def close(self) -> None:
        """Close the runner below."""
        self._runner.close()


def laid_out(runner: Runner, own: Sequence[TensorSpec], wanted: TensorSpec) -> Runner:
    """The runner of a file with the outputs ``own``, with the first one as ``wanted``.

    It stays as it is where the file has no output of that name, or has it so already.
    """
    written = next((spec for spec in own if spec.name == wanted.name), None)
    if written is None:
        return runner
    here, there, batch = written.shape, wanted.shape, runner.inputs[0].shape[0]
    # Of a fixed batch of 10 images and 10 classes nothing but its input tells the batch.
    is_second = min(len(here), len(there)) > 1 and here[0] != batch
    is_second = is_second and (here[1] == batch or here[0] == there[1] != there[0])
    # Of several outputs an export leaves those of one image as they are.
    is_second = is_second and here != there
    if written is own[0] and len(here) == len(there) and not is_second:
        return runner
    return LaidOut(runner, wanted, is_second=is_second)


def with_first(runner: Runner, own: Sequence[TensorSpec], name: str) -> Runner:
    """The runner of a file with the outputs ``own``, with ``name`` as the first if it is there."""
    written = next((spec for spec in own if spec.name == name), None)
    if written is None or written is own[0]:
        return runner
    return LaidOut(runner, written, is_second=False)
