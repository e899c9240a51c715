"""`from_definition` with exporters that answer as told: which graph is taken, and what is said."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from deploykit.core.choices import DefinitionChoices, PreprocessingChoices
from deploykit.core.errors import ControlFlowError, ExportError, ModelFileError, ValidationError
from deploykit.core.precision import Precision
from deploykit.core.progress import Journal, SilentProgress
from deploykit.core.specs import ModelSpec, Preprocessing, TensorSpec
from deploykit.graph import LoadedGraph, write_model
from deploykit.heads.multiclass import MULTICLASS
from deploykit.sources import torch_export
from deploykit.sources.definition import SourceOptions, from_definition, require_equal
from tests.graphs import graph, normal

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.comparison.reference import Reference

WEIGHT = normal(5, 3, seed=3)
GRAPH = """net (float[N, 3, 8, 8] input) => (float[N, 5] logits) {
    mean = GlobalAveragePool (input)  flat = Flatten (mean)
    logits = Gemm <transB = 1> (flat, w)
}"""


class Net(nn.Module):
    """The mean of each colour, weighed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(WEIGHT.copy()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) @ self.weight.T


class Doubled(Net):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(images)


def spec(**changes: Any) -> ModelSpec:
    known = ModelSpec(
        name="means",
        title="Means of colours",
        paper="https://example.org",
        year=2020,
        inputs=(TensorSpec("input", "float32", ("batch", 3, 8, 8)),),
        outputs=(TensorSpec("logits", "float32", ("batch", 5)),),
        preprocessing=Preprocessing(crop=(8, 8), resize=9),
        parameters=15,
        multiply_adds=15,
        labels=None,
        torchvision=None,
        builder=Net,
        built_in="made by hand",
    )
    return replace(known, **changes)


@dataclass
class Exporters:
    """What each exporter gives: a factor of the weights, or an error; and which were asked."""

    answers: dict[str, float | Exception]
    asked: list[str] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)

    def export(self, _: ModelSpec, module: nn.Module, path: Path, exporter: str) -> LoadedGraph:
        self.asked.append(exporter)
        self.modules.append(module)
        answer = self.answers[exporter]
        if isinstance(answer, Exception):
            raise answer
        made = ir.from_proto(graph(GRAPH, {"w": WEIGHT * np.float32(answer)}))
        return LoadedGraph(write_model(made, path, Precision.FP32))


def exporting(
    monkeypatch: pytest.MonkeyPatch, first: float | Exception, second: float | Exception = 1.0
) -> Exporters:
    fake = Exporters({"torch.export": first, "torchscript": second})
    monkeypatch.setattr(torch_export, "export_module", fake.export)
    return fake


def make(
    tmp_path: Path, made: ModelSpec | None = None, told: SourceOptions | None = None
) -> tuple[Reference, list[str]]:
    journal = Journal(SilentProgress())
    path = tmp_path / "reference.onnx"
    found = from_definition(made or spec(), path, journal, told or SourceOptions())
    return found, journal.notes


def test_the_first_exporter_is_taken_where_it_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = exporting(monkeypatch, 1.0)
    reference, _ = make(tmp_path)
    assert fake.asked == ["torch.export"]
    assert reference.conversion == {"exporter": "torch.export", "inference_form": False}
    assert reference.made_by == "torch eager"
    assert reference.report.passed
    assert [len(batch) for batch in reference.batches] == [1, 2, 5]


def test_the_logits_are_those_of_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporting(monkeypatch, 1.0)
    reference, _ = make(tmp_path)
    for batch, logits in zip(reference.batches, reference.outputs, strict=True):
        np.testing.assert_allclose(logits, batch.mean((2, 3)) @ WEIGHT.T, atol=1e-5)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (ExportError("no such operator\nsays torch"), "no such operator says torch"),
        (ModelFileError("not valid"), "not valid"),
        (1.5, "the fp32 graph does not compute what torch eager computes"),
    ],
)
def test_the_second_one_follows_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: float | Exception, words: str
) -> None:
    fake = exporting(monkeypatch, failure)
    reference, notes = make(tmp_path)
    assert fake.asked == ["torch.export", "torchscript"]
    assert reference.conversion["exporter"] == "torchscript"
    (note,) = [note for note in notes if "was not used" in note]
    assert note.startswith(f"torch.export was not used: {words}")
    assert "\n" not in note


def test_a_wrong_graph_says_more_than_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporting(monkeypatch, 1.5, ExportError("no such operator"))
    with pytest.raises(ValidationError, match=r"^the fp32 graph does not compute what torch") as e:
        make(tmp_path)
    assert e.value.details is not None


def test_of_two_refusals_the_last_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporting(monkeypatch, ExportError("the first"), ExportError("the second"))
    with pytest.raises(ExportError, match=r"^the second$"):
        make(tmp_path)


def test_a_decision_by_values_asks_no_other_exporter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = exporting(monkeypatch, ControlFlowError("line 3 decides"))
    with pytest.raises(ControlFlowError, match=r"^line 3 decides$"):
        make(tmp_path)
    assert fake.asked == ["torch.export"]


# --- what is recorded


def test_the_model_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporting(monkeypatch, 1.0)
    described = {
        "name": "means",
        "title": "Means of colours",
        "paper": "https://example.org",
        "year": 2020,
        "num_classes": 5,
        "image_size": [8, 8],
    }
    assert make(tmp_path)[0].model == described
    assert make(tmp_path, spec(source_sha256="abc"))[0].model == {
        **described,
        "source_sha256": "abc",
    }


def test_weights_of_the_definition_itself_may_be_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporting(monkeypatch, 1.0)
    reference, notes = make(tmp_path)
    assert reference.weights == {"source": "made by hand", "sha256": None, "trained": None}
    assert notes == ["weights: made by hand; whether they are trained is not known"]


def test_untrained_weights_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporting(monkeypatch, 1.0)
    reference, notes = make(tmp_path, spec(built_in=None), SourceOptions(seed=4))
    assert reference.weights["trained"] is False
    assert notes == ["weights: untrained, seed 4; its answers mean nothing"]


def test_weights_of_a_file_need_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporting(monkeypatch, 2.0)
    np.savez(tmp_path / "w.npz", weight=2 * WEIGHT)
    reference, notes = make(tmp_path, told=SourceOptions(weights=str(tmp_path / "w.npz")))
    assert reference.weights["source"] == "w.npz"
    assert reference.weights["trained"] is True
    assert notes == []


def test_notes_of_the_definition_and_of_what_was_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporting(monkeypatch, 1.0)
    _, notes = make(tmp_path, spec(notes=("a word of its own",), preprocessing_assumed=True))
    assert notes[0] == "a word of its own"
    assert notes[1].startswith("preprocessing is assumed: resize 9, interpolation bilinear")


def test_what_the_user_says_of_the_pixels_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporting(monkeypatch, 1.0)
    int8_choices = PreprocessingChoices(mean=(0.0, 0.0, 0.0))
    told = SourceOptions(choices=DefinitionChoices(preprocessing=int8_choices))
    reference, _ = make(tmp_path, told=told)
    assert reference.preprocessing == Preprocessing((8, 8), 9, mean=(0.0, 0.0, 0.0))


@pytest.mark.parametrize("labels", [None, ("a", "b", "c", "d", "e")])
def test_labels_are_those_of_the_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: tuple[str, ...] | None
) -> None:
    exporting(monkeypatch, 1.0)
    assert make(tmp_path, spec(labels=labels))[0].labels == labels


# --- the form for inference


def formed(monkeypatch: pytest.MonkeyPatch, answer: nn.Module | Exception) -> None:
    def form(_: nn.Module) -> torch_export.InferenceForm:
        if isinstance(answer, Exception):
            raise answer
        return torch_export.InferenceForm(answer, ("branches were fused",))

    monkeypatch.setattr(torch_export, "inference_form", form)


def test_a_form_that_computes_the_same_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Net().eval()
    formed(monkeypatch, other)
    fake = exporting(monkeypatch, 1.0)
    reference, notes = make(tmp_path)
    assert fake.modules == [other]
    assert reference.conversion["inference_form"] is True
    assert "branches were fused" in notes


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Doubled().eval(), "its form for inference does not compute what torch eager computes"),
        (ExportError("a branch\nis odd"), "a branch is odd"),
    ],
)
def test_a_form_that_does_not_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: nn.Module | Exception, words: str
) -> None:
    formed(monkeypatch, answer)
    fake = exporting(monkeypatch, 1.0)
    reference, notes = make(tmp_path)
    assert type(fake.modules[0]) is Net
    assert reference.conversion["inference_form"] is False
    assert notes[0].startswith(f"it is exported as it was trained: {words}")
    assert "branches were fused" not in notes


# --- a graph held against given logits


@pytest.mark.parametrize("is_right", [True, False])
def test_a_graph_is_held_against_logits(tmp_path: Path, is_right: bool) -> None:
    made = ir.from_proto(graph(GRAPH, {"w": WEIGHT}))
    artifact = write_model(made, tmp_path / "m.onnx", Precision.FP32)
    batches = [normal(2, 3, 8, 8)]
    logits = [batches[0].mean((2, 3)) @ WEIGHT.T * np.float32(1 if is_right else -1)]
    journal = Journal(SilentProgress())
    if is_right:
        assert require_equal(artifact, (batches, logits), "numpy", journal, MULTICLASS).passed
        assert [stage.name for stage in journal.times] == ["validate fp32"]
        return
    with pytest.raises(ValidationError, match=r"^the fp32 graph does not compute what numpy"):
        require_equal(artifact, (batches, logits), "numpy", journal, MULTICLASS)
    assert journal.times == []
