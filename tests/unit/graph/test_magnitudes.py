"""How large each value of a graph gets, told by the graph itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deploykit.graph import expose_magnitudes, tidy
from deploykit.graph.activations import Extremes
from tests.graphs import expose_outputs, graph, normal, run_ort

TEXT = """net (float[n,3,6,6] x) => (float[n,4] y) {
    [conv] c = Conv <pads = [1,1,1,1]> (x, w)
    [relu] r = Relu (c)
    [pool] p = GlobalAveragePool (r)
    [flat] y = Flatten (p)
}"""


def parsed(text: str = TEXT) -> ir.Model:
    model = ir.from_proto(graph(text, {"w": normal(4, 3, 3, 3)} if " w)" in text else {}))
    tidy(model, rename=False)
    return model


def test_they_are_those_of_the_values_themselves() -> None:
    model, images = parsed(), normal(2, 3, 6, 6)
    every, names = expose_outputs(model)
    values = run_ort(every, {"x": images})
    content, extremes = expose_magnitudes(model)
    assert tuple(extremes) == names == ("c", "r", "p", "y")
    found = run_ort(content, {"x": images})
    for name, of in extremes.items():
        assert isinstance(of, Extremes)
        numbers = [float(found[output]) for output in (of.largest, of.least, of.broken)]
        assert numbers == [values[name].max(), values[name].min(), 0.0]
    np.testing.assert_array_equal(found["y"], values["y"])
    assert len(model.graph) == 4  # the model itself is as it was


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_single_broken_number_shows(wrong: float) -> None:
    """Also NaN, which a maximum may pass over; and no sum of large numbers is taken for it."""
    content, extremes = expose_magnitudes(
        parsed("net (float[n,8] x) => (float[n,8] y) { y = Abs (x) }")
    )
    broken = normal(3, 8)
    broken[1, 5] = wrong
    assert np.isnan(run_ort(content, {"x": broken})[extremes["y"].broken])
    large = np.full((3, 8), np.finfo(np.float32).max)
    assert run_ort(content, {"x": large})[extremes["y"].broken] == 0


def test_what_is_empty_has_none() -> None:
    text = """net (float[2,8] x) => (float[2,8] y, float[0,8] e) {
        [none] e = Slice (x, zero, zero)
        [all] y = Concat <axis = 0> (x, e)
    }"""
    model = ir.from_proto(graph(text, {"zero": np.array([0])}))
    tidy(model, rename=False)
    _, extremes = expose_magnitudes(model)
    assert list(extremes) == ["y"]
