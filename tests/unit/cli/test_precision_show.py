"""What a person is shown of a look at precision."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from deploykit.cli.inspect import group, left_out, show_precision, works_of
from deploykit.core.precision import Precision
from deploykit.graph.node_precisions import GraphPrecision, NodePrecision
from deploykit.verbs.inspect import Magnitudes, PrecisionReport

if TYPE_CHECKING:
    from collections.abc import Iterable

INT8, FP16, FP32 = Precision.INT8, Precision.FP16, Precision.FP32
MAGNITUDES = Magnitudes(images=8, value="conv_output", largest=20000.0, limit=16376.0)


def node(
    name: str,
    precision: Precision = INT8,
    *,
    kind: str = "Conv",
    work: int = 0,
    kernel: str | None = "",
    reason: str | None = None,
    trial: str | None = None,
) -> NodePrecision:
    """Its own kernel, unless another or none is named."""
    return NodePrecision(
        name, kind, precision, work, name if kernel == "" else kernel, reason, trial
    )


def graph_of(nodes: Iterable[NodePrecision]) -> GraphPrecision:
    return GraphPrecision(tuple(nodes), casts=3, qdq_pairs=2, int8_weights=1)


NODES = (
    node("a/Conv", work=500, trial="first layer"),
    node("a/Relu", FP16, kind="Relu", kernel="a/Conv"),
    node("b/Conv", FP32, work=300, reason="b_output reaches 2e+04"),
    node("c/Conv", FP16, work=199, reason="8 to 4 channels are too few to gain from INT8"),
    node("d/Conv", FP16, work=1, reason="16 to 2 channels are too few to gain from INT8"),
    node("e/Flatten", FP16, kind="Flatten", kernel=None),
)


def shown(
    graph: GraphPrecision,
    *,
    width: int = 100,
    precision: Precision = INT8,
    magnitudes: Magnitudes | None = MAGNITUDES,
    every_node: bool = False,
    has_reference: bool = False,
) -> str:
    report = PrecisionReport(
        "net", "net", precision, graph, magnitudes, ("untrained",), has_reference
    )
    stream = StringIO()
    show_precision(Console(file=stream, width=width), report, every_node=every_node)
    return stream.getvalue()


def test_alike_kernels_are_one_row() -> None:
    rows = [
        (each.precision, len(each.works), each.operators, each.multiply_adds, each.where)
        for each in group(works_of(graph_of(NODES)))
    ]
    assert rows == [
        (INT8, 1, "Conv + Relu", 500, "a"),
        (FP32, 1, "Conv", 300, "b"),
        (FP16, 2, "Conv", 200, "c .. d"),
    ]
    assert left_out(graph_of(NODES)) == {"Flatten": 1}


def test_reasons_that_differ_in_figures_alone_are_alike() -> None:
    *_, last = group(works_of(graph_of(NODES)))
    assert last.because == "8 to 4 channels are too few to gain from INT8, and the like"


def test_what_does_no_arithmetic_is_alike_whatever_it_is() -> None:
    reason = "it does not stand between Q/DQ pairs"
    nodes = [
        node("a/Transpose", FP16, kind="Transpose", reason=reason),
        node("a/Pad", FP16, kind="Pad", reason=reason),
        node("b/Transpose", FP16, kind="Transpose", reason=reason),
    ]
    (only,) = group(works_of(graph_of(nodes)))
    assert only.operators == "2 Transpose, 1 Pad"
    assert only.where == "a .. b"


def test_a_reason_of_what_is_fused_is_not_lost() -> None:
    nodes = [
        node("a/Conv", work=1),
        node("a/Add", FP16, kind="Add", kernel="a/Conv", reason="excluded by 'a/*'"),
    ]
    (only,) = group(works_of(graph_of(nodes)))
    assert only.because == "Add: excluded by 'a/*'"


def test_names_are_shown_whole_where_the_operator_is_not_in_them() -> None:
    (only,) = group(works_of(graph_of([node("stem/first")])))
    assert only.where == "stem/first"


@pytest.mark.parametrize("width", [100, 160])
def test_the_heaviest_that_stay_high_come_first(width: int) -> None:
    text = shown(graph_of(NODES), width=width)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines)
    assert lines[0] == "net, planned: what an export in INT8 would make of it"
    start = lines.index(next(line for line in lines if line.startswith("look here first")))
    assert [line.split()[3] for line in lines[start + 2 : start + 5]] == [
        "b/Conv",
        "c/Conv",
        "d/Conv",
    ]
    assert "50.0%" in text
    assert "trials decide: first layer" in text
    assert "on its edges: 3 casts, 2 Q/DQ pairs, 1 INT8 weights" in text
    assert "largest activation: 2e+04 in conv_output; beyond 16376 a value stays FP32" in text
    assert "and no work of their own: 1 Flatten" in text
    assert "note: untrained" in text
    assert "deploykit export net --int8 --calib PATH" in text


def test_of_many_that_stay_high_the_rest_is_counted() -> None:
    nodes = [node(f"n{index}", FP32, work=100, reason="it is") for index in range(10)]
    text = shown(graph_of(nodes), precision=FP16)
    assert "and 4 more with 40.0%: --all or --json" in text
    assert "deploykit export net --fp16\n" in text


def test_a_pattern_is_shown_as_it_was_given() -> None:
    nodes = [node("[a]/Conv", FP16, work=1, reason="excluded by '[ab]/*'")]
    text = shown(graph_of(nodes))
    assert text.count("excluded by '[ab]/*'") == 2
    assert "[a]/Conv" in text


def test_nothing_that_stays_high() -> None:
    text = shown(graph_of([node("a", work=5)]))
    assert "every convolution and matrix product is INT8" in text
    assert "look here first" not in text


def test_a_graph_without_arithmetic() -> None:
    text = shown(graph_of([node("a", FP32, kind="Relu")]))
    assert "of 0 multiply-adds" in text
    assert "every convolution" not in text


def test_a_small_share_is_not_shown_as_none() -> None:
    nodes = [node("a", work=9999), node("b", FP16, work=1, reason="it is small")]
    assert "<0.1%" in shown(graph_of(nodes))


def test_every_node_says_with_what_it_is_computed() -> None:
    text = shown(graph_of(NODES), width=160, every_node=True)
    assert "computed with a/Conv" in text
    assert "kernels that are alike" not in text


@pytest.mark.parametrize(
    ("has_reference", "command"),
    [
        (True, "deploykit validate net --layers"),
        (False, "deploykit validate net REFERENCE --layers"),
    ],
)
def test_what_is_there_says_where_to_go_on(*, has_reference: bool, command: str) -> None:
    text = shown(graph_of(NODES), width=160, magnitudes=None, has_reference=has_reference)
    assert text.startswith("net, INT8: what its graph has\n")
    assert command in text
    assert "deploykit bench net" in text
    assert "largest activation" not in text
