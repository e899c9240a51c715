"""Graphs before and after their change to FP16, and what must be true of the latter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from deploykit.core.precision import Precision
from deploykit.graph import HalfPlan, convert_to_half, plan_half, read_model, tidy, write_model
from tests.graphs import expose_outputs, graph, normal, run_ort, run_reference, save

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import onnx_ir as ir

Array = NDArray[Any]
FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
HEADROOM = 4.0
IMAGE = normal(2, 3, 8, 8)


class Converted:
    """A graph before and after, with the plan that made the difference."""

    def __init__(self, source: onnx.ModelProto, folder: Path, feeds: Mapping[str, Array]) -> None:
        path = save(source, folder / "source.onnx")
        self.source = source
        self.feeds = feeds
        model = read_model(path)
        tidy(model, rename=False)
        self.tidied = model
        self.plan = plan_half(model, self._amax() if feeds else {}, HEADROOM)
        self.half = self._written(self.plan, folder / "half.onnx")

    def _amax(self) -> dict[str, float]:
        shown, names = expose_outputs(self.tidied)
        values = {**self.feeds, **run_ort(shown, self.feeds)}
        return {name: float(np.abs(values[name]).max()) for name in (*self.feeds, *names)}

    def _written(self, plan: HalfPlan, path: Path) -> onnx.ModelProto:
        write_model(convert_to_half(self.tidied, plan), path, Precision.FP16)
        return onnx.load(path)

    def naive(self, folder: Path) -> onnx.ModelProto:
        """Every node that can be FP16 is, whatever its values are."""
        names = frozenset(str(node.name) for node in self.tidied.graph)
        return self._written(HalfPlan(names), folder / "naive.onnx")

    def assert_close(self, tolerance: float = 1e-2) -> None:
        for oracle in (run_ort, run_reference):
            expected = oracle(self.source, self.feeds)
            got = oracle(self.half, self.feeds)
            assert list(got) == list(expected)
            for name, value in expected.items():
                assert got[name].dtype == value.dtype
                scale = max(float(np.abs(value).max()), 1e-6)
                np.testing.assert_allclose(got[name] / scale, value / scale, atol=tolerance)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value, inferred from inputs and weights alone."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(
        bare, check_type=True, strict_mode=True, data_prop=True
    ).graph
    known = {t.name: t.data_type for t in inferred.initializer}
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    return known | {value.name: value.type.tensor_type.elem_type for value in values}


def assert_well_typed(model: onnx.ModelProto) -> None:
    """What the file says of its types is what a fresh inference finds; the border is FP32."""
    onnx.checker.check_model(model, full_check=True)
    found = types_of(model)
    for value in model.graph.value_info:
        assert found[value.name] == value.type.tensor_type.elem_type, value.name
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type != HALF, value.name
    _assert_no_needless_casts(model, found)


def _assert_no_needless_casts(model: onnx.ModelProto, types: Mapping[str, int]) -> None:
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type != "Cast":
            continue
        assert types[node.input[0]] != node.attribute[0].i, f"{node.name} changes nothing"
        before = makers.get(node.input[0])
        if before is not None and before.op_type == "Cast":
            assert types[before.input[0]] != node.attribute[0].i, f"{node.name} undoes a cast"


def node_of(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    found: list[onnx.NodeProto] = [n for n in model.graph.node if n.op_type == op_type]
    assert len(found) == 1
    return found[0]


def casts(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Cast" for node in model.graph.node)


def residual_network() -> onnx.ModelProto:
    """Stem, one block with identity and one with a projection, pooled and classified."""
    return graph(
        """resnet (float[batch,3,8,8] x) => (float[batch,5] y) {
            c1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
            r1 = Relu (c1)
            p1 = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r1)
            c2 = Conv <pads = [1,1,1,1]> (p1, w2)
            r2 = Relu (c2)
            c3 = Conv <pads = [1,1,1,1]> (r2, w3)
            s3 = Add (c3, p1)
            r3 = Relu (s3)
            c4 = Conv <pads = [1,1,1,1], strides = [2,2]> (r3, w4)
            d4 = Conv <strides = [2,2]> (r3, v4)
            s4 = Add (c4, d4)
            r4 = Relu (s4)
            m = ReduceMean <keepdims = 0> (r4, axes)
            y = Gemm <transB = 1> (m, w5, b5)
        }""",
        {
            "w1": normal(16, 3, 3, 3, scale=0.2),
            "b1": normal(16),
            "w2": normal(16, 16, 3, 3, seed=2, scale=0.1),
            "w3": normal(16, 16, 3, 3, seed=3, scale=0.1),
            "w4": normal(32, 16, 3, 3, seed=4, scale=0.1),
            "v4": normal(32, 16, 1, 1, seed=5, scale=0.2),
            "w5": normal(5, 32, seed=6),
            "b5": normal(5, seed=7),
            "axes": np.array([2, 3]),
        },
    )


def halving(amax: Mapping[str, float]) -> Callable[[ir.Model], tuple[ir.Model, HalfPlan]]:
    """Makes FP16 of all that stays within it by the magnitudes ``amax``."""

    def halve(model: ir.Model) -> tuple[ir.Model, HalfPlan]:
        plan = plan_half(model, amax, HEADROOM)
        return convert_to_half(model, plan), plan

    return halve
