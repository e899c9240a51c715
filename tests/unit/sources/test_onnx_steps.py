"""A step that cannot be proven is left out, and the graph stays as it was."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deploykit.comparison.reference import Runners
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import ModelFileError, ValidationError
from deploykit.core.progress import Journal, SilentProgress
from deploykit.graph import fold, fuse_written_out, plain
from deploykit.sources.onnx_file import OwnGraph, StepCheck
from tests.graphs import normal, run_ort
from tests.own_files import old, tensor

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = normal(2, 3, 8, 8)


def start(folder: Path, source: onnx.ModelProto) -> OwnGraph:
    (folder / "own.onnx").write_bytes(source.SerializeToString())
    compared = StepCheck([IMAGES], [run_ort(source, {"x": IMAGES})], "y")
    model = plain(ir.from_proto(source), "own.onnx")
    runners = Runners()
    opener = partial(runners.open, folder / "own.onnx")
    return OwnGraph(model, opener, folder / "model.onnx", ("abc",), compared, runners)


def other_weight(model: ir.Model) -> ir.Model:
    changed = model.clone()
    weight = changed.graph.initializers["w"]
    weight.const_value = ir.Tensor(normal(4, 3, 3, 3, seed=9), name="w")
    return changed


def refused(model: ir.Model) -> ir.Model:
    raise ModelFileError("Loop 'x' is in the way\nand stays there")


def test_a_proven_step_is_kept(tmp_path: Path) -> None:
    own = start(tmp_path, old(17))
    before = own.artifact.sha256
    journal = Journal(SilentProgress())
    assert own.attempt("folding constants", fold, journal)
    assert own.artifact.sha256 == sha256_of(tmp_path / "model.onnx") != before
    assert own.artifact.parents == ("abc",)
    assert own.notes() == ["done to the graph, and proven: folding constants (10 nodes became 4)"]
    assert journal.notes == []


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (refused, "opening was left out: Loop 'x' is in the way and stays there"),
        (other_weight, "opening was left out: the fp32 graph does not compute what the original "),
    ],
)
def test_a_step_that_is_wrong_is_undone(tmp_path: Path, step: object, words: str) -> None:
    assert callable(step)
    own = start(tmp_path, old(17))
    before = own.artifact
    journal = Journal(SilentProgress())
    assert not own.attempt("opening", step, journal)
    assert own.artifact == before
    assert sha256_of(tmp_path / "model.onnx") == before.sha256
    assert own.notes() == []
    assert journal.notes[0].startswith(words)


def test_a_step_with_nothing_to_do_is_not_spoken_of(tmp_path: Path) -> None:
    own = start(tmp_path, old(17))
    journal = Journal(SilentProgress())
    assert not own.attempt("nothing", lambda model: model, journal)
    assert journal.notes == own.notes() == []


def test_outputs_beside_the_logits_must_stay(tmp_path: Path) -> None:
    source = old(17)
    source.graph.output.append(tensor("r", onnx.TensorProto.FLOAT, ("n", 4, 8, 8)))
    own = start(tmp_path, source)
    journal = Journal(SilentProgress())

    def changed(model: ir.Model) -> ir.Model:
        # The logits of the same weights, and something else beside them.
        copy = model.clone()
        (relu,) = (made for made in copy.graph if made.op_type == "Relu")
        copy.graph.outputs[1] = relu.inputs[0]  # type: ignore[assignment]
        relu.inputs[0].name, relu.outputs[0].name = "r", "r_inside"  # type: ignore[union-attr]
        return copy

    assert not own.attempt("reading", changed, journal)
    assert "does not compute what the original file computes: output 'r': " in journal.notes[0]


def test_a_graph_that_is_wrong_from_the_start(tmp_path: Path) -> None:
    source = old(17)
    compared = StepCheck([IMAGES], [{"y": np.zeros((2, 10), np.float32)}], "y")
    model = plain(ir.from_proto(source), "own.onnx")
    runners = Runners()
    opener = partial(runners.open, tmp_path / "own.onnx")
    with pytest.raises(ValidationError, match="does not compute what the original file computes"):
        OwnGraph(model, opener, tmp_path / "model.onnx", (), compared, runners)


def written_out(epsilon: float) -> onnx.ModelProto:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n,3,8,8] x) => (float[n,3,8,8] y) <float two, float e, float[8] g> {
    [norm_m] m = ReduceMean <axes = [-1]> (x) [norm_d] d = Sub (x, m) [norm_s] s = Pow (d, two)
    [norm_v] v = ReduceMean <axes = [-1]> (s) [norm_w] w = Add (v, e) [norm_r] r = Sqrt (w)
    [norm_q] q = Div (d, r) [norm_y] y = Mul (q, g) }"""
    proto = onnx.parser.parse_model(text)
    constants = {"two": np.float32(2), "e": np.float32(epsilon), "g": normal(8, seed=4)}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(data), name) for name, data in constants.items()
    )
    return proto


def test_a_written_out_layer_norm_is_proven(tmp_path: Path) -> None:
    own = start(tmp_path, written_out(1e-5))
    assert own.attempt("fusing written-out operators", fuse_written_out, Journal(SilentProgress()))
    assert [node.op_type for node in own.model.graph] == ["LayerNormalization"]
    assert own.done == ["fusing written-out operators (8 nodes became 1)"]


def test_one_that_would_compute_something_else_is_left_out(tmp_path: Path) -> None:
    def wrong(model: ir.Model) -> ir.Model:
        fused = fuse_written_out(model)
        fused.graph[0].attributes.add(ir.AttrFloat32("epsilon", 0.5))
        return fused

    own, journal = start(tmp_path, written_out(1e-5)), Journal(SilentProgress())
    assert not own.attempt("fusing written-out operators", wrong, journal)
    assert journal.notes[0].startswith("fusing written-out operators was left out: the fp32 graph")
    assert len(own.model.graph) == 8
