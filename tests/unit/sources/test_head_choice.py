"""Which output of a network is meant, and what it means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.core.errors import ModelFileError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.specs import HeadRecord, TensorSpec
from deploykit.graph import Tail
from deploykit.sources.head_choice import OutputChoice, Wish, choose_output
from tests.graphs import normal

if TYPE_CHECKING:
    from tests.graphs import Array

LINEAR = {"layer": "l", "classes": 10}


def chosen(wish: Wish | None = None, /, **outputs: tuple[Array, Tail | None]) -> OutputChoice:
    """The choice among outputs of the values (3, ...), run as batches of 1 and 2."""
    specs = [
        TensorSpec(name, str(value.dtype), ("n", *value.shape[1:]))
        for name, (value, _) in outputs.items()
    ]
    answers = [{n: v[part] for n, (v, _) in outputs.items()} for part in (slice(1), slice(1, 3))]
    tails = {name: tail for name, (_, tail) in outputs.items() if tail is not None}
    return choose_output("own.onnx", specs, answers, tails, wish or Wish())


def tail(activation: str = "none", layer: str | None = "l", **more: object) -> Tail:
    return Tail("y", activation, layer, **more)  # type: ignore[arg-type]  # by name


def softmax(values: Array) -> Array:
    exponentials = np.exp(values)
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float32)


LOGITS = normal(3, 10)
CHANCES = softmax(LOGITS)
UNIT = (LOGITS / np.linalg.norm(LOGITS, axis=1, keepdims=True)).astype(np.float32)
SIGMOIDS = (1 / (1 + np.exp(-LOGITS))).astype(np.float32)


@pytest.mark.parametrize(
    ("values", "read", "kind", "activation"),
    [
        (LOGITS, tail(), "multiclass", "none"),
        (CHANCES, tail("softmax"), "multiclass", "softmax"),
        # An average of two softmaxes has no Softmax at its end, and its values say what they are.
        ((CHANCES + CHANCES[:, ::-1]) / 2, tail(layer=None), "multiclass", "softmax"),
        (np.log(CHANCES), tail("log_softmax"), "multiclass", "log_softmax"),
        (np.log(CHANCES), tail(), "multiclass", "log_softmax"),
        (SIGMOIDS, tail("sigmoid"), "multilabel", "sigmoid"),
        (SIGMOIDS[:, :1], tail("sigmoid"), "binary", "sigmoid"),
        (SIGMOIDS[:, 0], tail("sigmoid"), "binary", "sigmoid"),
        (LOGITS[:, :1], tail(), "binary", "none"),
        (LOGITS[:, 0], tail(), "binary", "none"),
        (LOGITS[:, :1], tail(layer=None), "raw", "none"),
        (UNIT, tail("l2"), "raw", "l2"),
        (UNIT, tail(layer=None), "raw", "l2"),
        (LOGITS, tail(layer=None, between=("LayerNormalization",)), "raw", "none"),
        (np.abs(LOGITS), tail(between=("Relu",)), "raw", "none"),
        (np.abs(LOGITS), tail(between=("GlobalAveragePool", "Relu")), "multiclass", "none"),
        (LOGITS, tail(is_inner=True), "raw", "none"),
        (LOGITS.max(axis=1), tail("maximum"), "raw", "maximum"),
        (LOGITS.argmax(axis=1), tail("argmax"), "multiclass", "argmax"),
        (LOGITS.argsort(axis=1)[:, -3:], tail("top_k"), "multiclass", "top_k"),
        (normal(3, 4, 8, 8), tail(), "raw", "none"),
        (normal(3, 7, 5), tail("softmax"), "raw", "softmax"),
        (normal(3, 4, 8, 8).argmax(axis=1), tail("argmax"), "raw", "argmax"),
    ],
)
def test_what_one_output_means(values: Array, read: Tail, kind: str, activation: str) -> None:
    assert chosen(y=(values, read)).record == HeadRecord(kind, "y", activation)


@pytest.mark.parametrize(("shape", "flat"), [((3, 10, 1, 1), (3, 10)), ((3, 1, 1, 1), (3, 1))])
def test_pooled_output_is_flattened(shape: tuple[int, ...], flat: tuple[int, ...]) -> None:
    found = chosen(y=(normal(*shape), tail()))
    assert (found.flat, found.head.fits(flat)) == (False, True)
    assert any(note.startswith("'y' was flattened to (batch") for note in found.notes())


def test_values_that_contradict_their_operators_are_taken_as_they_are() -> None:
    two = np.concatenate([CHANCES, CHANCES], axis=1)
    found = chosen(y=(two, tail("softmax")))
    assert found.record == HeadRecord("raw", "y", "none")
    (note,) = found.notes()
    assert note.startswith("'y' comes from a Softmax, but its values for an image are not prob")


def test_what_is_assumed_is_said() -> None:
    (note,) = chosen(y=(LOGITS[:, :1], tail())).notes()
    assert "has no Sigmoid: taken for the logit of a yes or no" in note
    (note,) = chosen(y=(LOGITS, tail(layer=None))).notes()
    assert "does not end in a Gemm, MatMul or Conv: taken for features" in note
    assert chosen(y=(LOGITS, tail())).notes() == []
    assert chosen(y=(CHANCES, tail("softmax"))).notes() == []


@pytest.mark.parametrize("kind", ["raw", "multiclass", "multilabel"])
def test_a_wish_is_obeyed_and_nothing_is_applied_twice(kind: str) -> None:
    found = chosen(Wish(kind), y=(CHANCES, tail("softmax")))
    assert found.record == HeadRecord(kind, "y", "softmax")
    if kind != "raw":
        top = found.head.answers(CHANCES[:1], None, 1)[0][0]
        assert top.probability == pytest.approx(float(CHANCES[0].max()))


PART = tail(layer=None, is_of_probabilities=True)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_some_of_the_probabilities_get_no_second_activation(kind: str) -> None:
    some = CHANCES[:, 2:]
    found = chosen(y=(some, PART))
    assert (found.head.name, found.head.activation) == ("raw", "none")
    (note,) = found.notes()
    assert note.endswith("or sums of them: taken as they are; where they are classes: --head "
                         "multiclass or multilabel")  # fmt: skip
    found = chosen(Wish(kind), y=(some, PART))
    assert found.notes() == [
        "'y' (n, 8) is made of probabilities, and from 0 to 1: taken for probabilities"
    ]
    top = found.head.answers(some[:1], None, 1)[0][0]
    assert top.probability == pytest.approx(float(some[0].max()))


@pytest.mark.parametrize("column", [CHANCES[:, 1], CHANCES[:, 1:2], CHANCES[:, 1:2, None, None]])
def test_the_column_of_one_class_is_a_yes_or_no(column: Array) -> None:
    found = chosen(y=(column, PART))
    shown = str(("n", *column.shape[1:])).replace("'", "")
    assert (found.record, found.why) == (
        HeadRecord("binary", "y", "sigmoid"),
        (f"'y' {shown} is made of probabilities, and from 0 to 1: taken for probabilities",),
    )


@pytest.mark.parametrize("part", ["maximum", "top_values"])
def test_the_largest_probabilities_get_no_second_activation(part: str) -> None:
    most, values = CHANCES.max(axis=1, keepdims=True), LOGITS.max(axis=1, keepdims=True)
    assert chosen(y=(most, tail(part))).head.name == "raw"
    assert chosen(Wish("binary"), y=(most, tail(part))).head.activation == "sigmoid"
    assert chosen(Wish("binary"), y=(values, tail(part))).head.activation == "none"


def test_what_is_no_probability_any_more() -> None:
    percent = 100 * CHANCES
    found = chosen(y=(percent, PART))
    assert found.head.name == "raw"
    assert found.notes()[0].endswith(
        "is made of probabilities, but is not from 0 to 1: taken as it is; where it is a "
        "classifier, end the graph in its Softmax or Sigmoid"
    )
    found = chosen(Wish("multiclass"), y=(percent, PART))
    assert found.head.activation == "none"
    assert found.notes()[0].endswith(
        "but not from 0 to 1: taken for logits; where these are wanted as they are, end the graph "
        "in its Softmax or Sigmoid"
    )


@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_class_numbers_of_several_places_are_no_ranking(kind: type) -> None:
    places: Array = np.array([[3, 1, 4], [1, 5, 9], [2, 6, 5]]).astype(kind)
    found = chosen(y=(places, tail("argmax")))
    assert found.head.name == "raw"
    assert "class numbers for several places of an image" in found.notes()[0]
    assert chosen(y=(places, tail("top_k"))).record == HeadRecord("multiclass", "y", "top_k")
    alone = chosen(y=(places[:, 0], tail("argmax")))
    assert alone.record == HeadRecord("multiclass", "y", "argmax")


NUMBERS: Array = np.array([[3, 1, 4], [1, 5, 9], [2, 6, 5]])
COMPUTED = {
    "shifted": tail(between=("ArgMax",)),
    "least": tail(layer=None, between=("ArgMin",)),
    "looked up": tail(layer=None, between=("Gather",)),
    "counted": tail(layer=None, between=("ReduceSum",)),
    "the largest": tail("maximum", between=("ArgMax",)),
}


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("kind", [None, "raw"])
def test_class_numbers_that_are_computed_further_are_judged_as_numbers(
    name: str, kind: str | None
) -> None:
    """Three beside the right one is as wrong as three hundred."""
    for values in (NUMBERS, NUMBERS[:, 0]):
        found = chosen(Wish(kind), y=(values, COMPUTED[name]))
        assert found.record == HeadRecord("raw", "y", "argmax")
        wrong, right = (values + 900).astype(np.float32), (values + 903).astype(np.float32)
        limits = Precision.INT8.facts.limits
        problems = found.head.problems_of(found.head.compare(wrong, right), limits)
        assert "100.00% of an image's class numbers changed" in problems[0]
        said = ["taken as they are, and compared by how many change; where" in n for n in found.why]
        assert said == ([] if kind else [True])


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        (np.uint8, tail(between=("Clip",))),
        (np.uint8, tail("sigmoid")),
        (np.int32, tail(layer=None, between=("Clip", "Round"))),
        (np.bool_, tail(layer=None, between=("Greater",))),
    ],
)
def test_pixels_and_decisions_are_no_class_numbers(kind: type, read: Tail) -> None:
    values: Array = NUMBERS.astype(kind)
    assert chosen(y=(values, read)).head.activation not in ("argmax", "top_k")


def test_numbers_are_known_by_their_declared_type() -> None:
    """Outputs that are compared are FP32, whatever their file has."""
    specs = [TensorSpec("y", "int64", ("n",))]
    answers = [{"y": NUMBERS[:, 0].astype(np.float32)}]
    tails = {"y": COMPUTED["shifted"]}
    found = choose_output("own.onnx", specs, answers, tails, Wish())
    assert found.record == HeadRecord("raw", "y", "argmax")


def test_a_wish_that_no_output_fits() -> None:
    with pytest.raises(
        ModelFileError,
        match=r"y float32 \(n, 4, 8, 8\)\n.*the logits\nexport it with its classifier, or as it",
    ):
        chosen(Wish("multiclass"), y=(normal(3, 4, 8, 8), tail()))
    with pytest.raises(ModelFileError, match=r"\(batch, 1\) or \(batch,\), .*\n.*--head multiclas"):
        chosen(Wish("binary"), y=(normal(3, 2), tail()))
    whole = np.zeros((3, 2, 2), np.int64)
    with pytest.raises(ModelFileError, match=r"the logits\nlet it end before its ArgMax"):
        chosen(Wish("multiclass"), y=(whole, tail()), z=(whole, tail()))


# Several outputs


def test_features_before_the_logits() -> None:
    found = chosen(
        embedding=(normal(3, 64), tail(layer="trunk", feeds=frozenset({"y"}), is_inner=True)),
        y=(LOGITS, tail()),
    )
    assert (found.name, found.moved) == ("y", True)
    assert found.notes() == [
        "logits are the output 'y'; beside it: 'embedding' (n, 64)",
        "'y' was made the first output",
    ]


def test_probabilities_and_their_logits_are_one_answer() -> None:
    found = chosen(y=(CHANCES, tail("softmax")), l=(LOGITS, tail(feeds=frozenset({"y"}))))
    assert found.record == HeadRecord("multiclass", "y", "softmax")


def test_logits_beside_their_sigmoid_are_labels() -> None:
    sigmoid = (SIGMOIDS, tail("sigmoid"))
    found = chosen(l=(LOGITS, tail(feeds=frozenset({"y"}))), y=sigmoid)
    assert found.record == HeadRecord("multilabel", "l", "none")
    found = chosen(l=(LOGITS, tail(layer="other")), y=(SIGMOIDS, tail("sigmoid", layer=None)))
    assert found.record == HeadRecord("multiclass", "l", "none")


POOLED = ("GlobalAveragePool",)
BENT = ("GlobalAveragePool", "Relu")


@pytest.mark.parametrize(
    ("own", "other", "kind"),
    [
        (POOLED, POOLED, "multilabel"),
        (BENT, BENT, "multilabel"),
        (POOLED, (), "multilabel"),
        (BENT, POOLED, "multiclass"),
        (("GlobalAveragePool", "Softmax"), ("GlobalAveragePool", "Softmax"), "raw"),
    ],
)
def test_pooled_logits_beside_their_sigmoid(
    own: tuple[str, ...], other: tuple[str, ...], kind: str
) -> None:
    outputs = {"l": (LOGITS, tail(between=own)), "y": (SIGMOIDS, tail("sigmoid", between=other))}
    assert chosen(Wish(output="l"), **outputs).head.name == kind


def test_class_numbers_beside_the_logits() -> None:
    label = (LOGITS.argmax(axis=1), tail("argmax"))
    assert chosen(label=label, y=(LOGITS, tail())).name == "y"


def test_class_numbers_beside_the_logits_of_another_layer() -> None:
    """Of two tasks nobody knows which one is meant."""
    label = (LOGITS.argmax(axis=1), tail("argmax"))
    with pytest.raises(UsageError, match="nothing tells whether 'label' or 'y' is the answer"):
        chosen(label=label, y=(LOGITS, tail(layer="other")))


def test_the_last_of_two_heads_for_the_same_classes() -> None:
    aux = (LOGITS, tail(layer="aux", layers=3))
    assert chosen(aux=aux, main=(LOGITS, tail(layer="main", layers=9))).name == "main"


def test_the_first_class_like_output_before_maps() -> None:
    found = chosen(map=(normal(3, 4, 8, 8), tail(layer="m")), y=(LOGITS, tail()))
    assert found.name == "y"


def test_labels_decide() -> None:
    ages, kinds = (normal(3, 101), tail(layer="a")), (normal(3, 5), tail(layer="b"))
    assert chosen(Wish(labels=5), ages=ages, kinds=kinds).name == "kinds"
    assert chosen(Wish(labels=101), ages=ages, kinds=kinds).name == "ages"


def test_where_nothing_decides_the_user_must() -> None:
    ages, kinds = (normal(3, 101), tail(layer="a")), (normal(3, 5), tail(layer="b"))
    with pytest.raises(
        UsageError,
        match=r"own.onnx returns ages float32 \(n, 101\), kinds .*\nnothing tells whether 'ages' "
        r"or 'kinds' is the answer\nsay which: --head-output ages, or --head raw",
    ):
        chosen(ages=ages, kinds=kinds)
    assert chosen(Wish(output="kinds"), ages=ages, kinds=kinds).name == "kinds"
    assert chosen(Wish("raw"), ages=ages, kinds=kinds).record == HeadRecord("raw", "ages", "none")


def test_an_output_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"no output 'z'\nits outputs: y float32 \(n, 10\)"):
        chosen(Wish(output="z"), y=(LOGITS, tail()))


def test_maps_alone_are_all_judged() -> None:
    found = chosen(boxes=(normal(3, 9, 4), tail()), scores=(normal(3, 9, 2), tail()))
    assert (found.record.kind, found.head.judges_all, found.moved) == ("raw", True, False)
    assert found.notes() == []


def test_sequences_whose_images_come_second_are_turned() -> None:
    specs = [TensorSpec("y", "float32", (7, "n", 5))]
    answers = [{"y": normal(7, count, 5)} for count in (1, 2, 5)]
    found = choose_output("own.onnx", specs, answers, {}, Wish())
    assert (found.record.kind, found.batch_axis) == ("raw", 1)
    assert found.notes() == ["'y' was transposed: its images came second, now first"]
