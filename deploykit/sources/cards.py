"""The card of an ``.onnx`` that is a TARGET: its preprocessing, head and classes."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

from deploykit.core.errors import ModelFileError
from deploykit.graph.byte_input import is_of_bytes

if TYPE_CHECKING:
    from onnx_ir import Model

    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.specs import Preprocessing
    from deploykit.graph.card import Card
    from deploykit.graph.own_scaling import OwnScaling
    from deploykit.sources.definition import SourceOptions
    from deploykit.sources.head_choice import Wish


def require_floats(name: str, card: Card, model: Model) -> None:
    """Refuse a file that takes bytes: what is converted takes prepared images.

    A ``reference.onnx`` has no card, and is known by its graph.

    Raises:
        ModelFileError: it was exported with ``--input uint8``.
    """
    says_bytes = card.preprocessing is not None and card.preprocessing.pixels is not None
    if says_bytes or is_of_bytes(model):
        raise ModelFileError(
            f"{name} takes bytes already: it was exported with --input uint8\n"
            "export what it was made from, which takes float32 (N, C, H, W)"
        )


def as_written(card: Card, assumed: Preprocessing) -> Preprocessing:
    """The preprocessing that the file says, or what is ``assumed`` where it says none.

    The crop is always that of the graph's input.

    Raises:
        ModelFileError: it is for another number of channels than the graph takes.
    """
    known = card.preprocessing
    if known is None:
        return assumed
    require_channels(known, assumed.channels)
    resize = known.resize if known.crop == assumed.crop else assumed.resize
    return replace(known, crop=assumed.crop, resize=resize)


def require_channels(known: Preprocessing, channels: object) -> None:
    """Refuse a file whose own metadata are for images of other channels than its graph takes.

    Raises:
        ModelFileError: they are.
    """
    if known.channels != channels:
        raise ModelFileError(
            f"the file says that its images are in {known.channel_order}, and its input has "
            f"{channels} channel{'' if channels == 1 else 's'}\n"
            "its metadata are another network's: take the entry deploykit.preprocessing out"
        )


def wished(wish: Wish, card: Card, source: OnnxArtifact) -> Wish:
    """``wish``, with the head that the file says where the user says none."""
    known = card.head
    if known is None or wish.head is not None:
        return wish
    is_there = known.output in {spec.name for spec in source.outputs}
    output = wish.output or (known.output if is_there else None)
    return replace(wish, head=known.kind, output=output)


def notes_on_card(
    card: Card,
    name: str,
    options: SourceOptions,
    preprocessing: Preprocessing,
    source: OnnxArtifact | None = None,
) -> list[str]:
    """What was taken from the file and which options stand in its place; else what is assumed.

    With the ``source`` whose head is looked for, also whether it has the output that is named.
    """
    known = {
        "preprocessing": card.preprocessing is not None,
        "head": card.head is not None,
        "class names": card.classes is not None,
    }
    taken = [what for what, is_known in known.items() if is_known]
    assumed = [] if card.preprocessing else options.choices.preprocessing.assumptions(preprocessing)
    if not taken:
        return assumed
    version = "" if card.version is None else f", written by deploykit {card.version}"
    notes = [f"{name} says its {', '.join(taken)}{version}"]
    chosen = options.choices
    given = [
        field.name
        for field in fields(chosen.preprocessing)
        if getattr(chosen.preprocessing, field.name) is not None
    ]
    given += ["head"] if chosen.head is not None and card.head is not None else []
    given += ["labels"] if options.labels is not None and card.classes is not None else []
    if given:
        said = ", ".join(f"--{each.replace('_', '-')}" for each in given)
        notes.append(f"in place of what {name} says: {said}")
    missing = [] if source is None else _note_of_output(options.wish, card, source)
    return [*notes, *missing, *assumed]


def notes_on_scaling(card: Card, options: SourceOptions, own: OwnScaling | None) -> list[str]:
    """That the graph normalises pixels itself, where nobody said how they are prepared."""
    chosen = options.choices.preprocessing
    if own is None or card.preprocessing or chosen.mean or chosen.std:
        return []
    std = "1" if own.largest == 1 else "0.00392157"
    begins = f"the graph itself begins with {own.op_type} by {own.number:.6g}"
    pixels = f"so it seems to take pixels of 0 to {own.largest}"
    return [f"{begins}, {pixels}: then give --mean 0 --std {std}"]


def _note_of_output(wish: Wish, card: Card, source: OnnxArtifact) -> list[str]:
    """What was taken in place of an output that the file names and does not have."""
    known, names = card.head, [spec.name for spec in source.outputs]
    if known is None or known.output in names or wish.head is not None or wish.output is not None:
        return []
    note = (
        f"{source.path.name} says that its head is output {known.output!r}, which it does not have "
        f"(it has {', '.join(names)}): only the kind, {known.kind}, is taken from there"
    )
    return [note]
