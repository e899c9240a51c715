"""What users say of a model's preprocessing."""

from __future__ import annotations

from deploykit.core.choices import PreprocessingChoices
from deploykit.core.specs import Preprocessing

KNOWN = Preprocessing(crop=(224, 224), resize=232, interpolation="bicubic")


def test_what_is_chosen_replaces_what_is_known() -> None:
    chosen = PreprocessingChoices(resize=(224, 224), std=(1.0, 1.0, 1.0)).applied_to(KNOWN)
    assert chosen.resize == (224, 224)
    assert chosen.std == (1.0, 1.0, 1.0)
    assert (chosen.interpolation, chosen.mean) == (KNOWN.interpolation, KNOWN.mean)


def test_nothing_chosen_changes_nothing() -> None:
    assert PreprocessingChoices().applied_to(KNOWN) == KNOWN


def test_what_nobody_said_is_named_with_its_option() -> None:
    (note,) = PreprocessingChoices(mean=(0, 0, 0), std=(1, 1, 1)).assumptions(KNOWN)
    assert note == (
        "preprocessing is assumed: resize 232, interpolation bicubic; as in training? "
        "--resize --interpolation"
    )
