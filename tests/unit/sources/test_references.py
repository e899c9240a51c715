"""Targets that are no bundle: which become a spec, which a path, and what is told in vain."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.core.choices import DefinitionChoices
from deploykit.core.errors import UnknownNameError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.progress import Journal, SilentProgress
from deploykit.core.specs import ModelSpec
from deploykit.sources.definition import SourceOptions
from deploykit.sources.references import find_source, make_reference
from tests.bundles import write_classifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Shown(SilentProgress):
    """Keeps the names of its steps."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @contextmanager
    def step(self, name: str) -> Iterator[Any]:
        self.names.append(name)
        with super().step(name) as task:
            yield task


@pytest.fixture
def journal() -> Journal:
    return Journal(Shown())


def test_a_file_is_a_path_and_is_not_opened(tmp_path: Path, journal: Journal) -> None:
    path = tmp_path / "none.onnx"
    assert find_source(str(path), SourceOptions(), journal) == path
    assert isinstance(journal.progress, Shown)
    assert journal.progress.names == []


def test_a_definition_is_a_spec_with_the_choices(journal: Journal) -> None:
    told = SourceOptions(choices=DefinitionChoices(num_classes=5, image_size=40))
    spec = find_source("resnet20", told, journal)
    assert isinstance(spec, ModelSpec)
    assert (spec.name, spec.num_classes) == ("resnet20", 5)
    assert spec.inputs[0].shape == ("batch", 3, 40, 40)
    assert isinstance(journal.progress, Shown)
    assert journal.progress.names == ["look at the target"]


def test_an_unknown_definition(journal: Journal) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown architecture 'resnet5O'\ndid you mean"):
        find_source("resnet5O", SourceOptions(), journal)


@pytest.mark.parametrize(
    "told",
    [
        SourceOptions(weights="w.pth"),
        SourceOptions(choices=DefinitionChoices(num_classes=3)),
        SourceOptions(choices=DefinitionChoices(image_size=64)),
        SourceOptions(choices=DefinitionChoices(arguments={"depth": 3})),
    ],
    ids=["weights", "classes", "size", "arguments"],
)
def test_a_file_has_no_use_for_what_a_definition_is_told(
    told: SourceOptions, journal: Journal
) -> None:
    with pytest.raises(UsageError, match=r"^mine\.onnx brings its own weights, classes and size\n"):
        find_source("mine.onnx", told, journal)


def test_a_definition_takes_images_alone(tmp_path: Path, journal: Journal) -> None:
    told = SourceOptions(choices=DefinitionChoices(side_inputs=tmp_path / "ages.npz"))
    with pytest.raises(UsageError, match=r"^--side-inputs is for an \.onnx that takes more than"):
        find_source("resnet20", told, journal)


def test_the_reference_of_a_file(tmp_path: Path, journal: Journal) -> None:
    original = write_classifier(tmp_path / "mine.onnx")
    written = tmp_path / "reference.onnx"
    reference = make_reference(original, written, journal, SourceOptions())
    assert reference.made_by == "the original file"
    assert reference.artifact.path == written
    assert reference.artifact.precision is Precision.FP32
    assert reference.report.passed
    assert original.read_bytes() == write_classifier(tmp_path / "again.onnx").read_bytes()
