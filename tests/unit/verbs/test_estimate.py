"""`deploykit estimate` through the command line and from Python, on small graphs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from click.testing import CliRunner

import deploykit
from deploykit.cli import main
from deploykit.core.choices import DefinitionChoices
from deploykit.core.errors import UnknownNameError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.progress import SilentProgress
from deploykit.verbs.estimate import EstimateCall, estimate_target, prices_of
from tests.graphs import graph, normal

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from deploykit.core.progress import ProgressTask

NET = """net (float[N, 3, 64, 64] x) => (float[N, 10] y) {
    [conv] c = Conv <strides = [2,2], pads = [1,1,1,1]> (x, w1)
    [relu] r = Relu (c)
    [pool] p = GlobalAveragePool (r)
    [flat] f = Flatten (p)
    [fc] y = Gemm <transB = 1> (f, w2)
}"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("estimate") / "net.onnx"
    weights = {"w1": normal(32, 3, 3, 3, seed=1), "w2": normal(10, 32, seed=2)}
    onnx.save(graph(NET, weights), path)
    return path


@pytest.fixture(scope="module")
def odd_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with an operator that no published one has."""
    path = tmp_path_factory.mktemp("estimate") / "odd.onnx"
    text = NET.replace("Relu", "Celu")
    weights = {"w1": normal(32, 3, 3, 3, seed=1), "w2": normal(10, 32, seed=2)}
    onnx.save(graph(text, weights), path)
    return path


def run(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["estimate", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["estimate", *arguments])
    assert done.exit_code == 2, done.output
    return done.output


def test_a_row_for_each_gpu_precision_and_batch(model: Path) -> None:
    found = run(str(model), "--gpu", "L4", "--gpu", "T4", "--fp16", "--int8", "--batch", "1,8")
    keys = {(row["gpu"], row["precision"], row["batch"]) for row in found["rows"]}
    gpus, precisions = ("L4", "Tesla T4"), ("fp16", "int8")
    assert keys == {(g, p, b) for g in gpus for p in precisions for b in (1, 8)}
    for row in found["rows"]:
        latency, rate = row["latency_ms"], row["throughput_per_s"]
        assert row["limit_ms"] <= latency["low"] < latency["value"] < latency["high"]
        assert rate["value"] == pytest.approx(row["batch"] / latency["value"] * 1e3)
        assert rate["low"] == pytest.approx(row["batch"] / latency["high"] * 1e3)
        assert row["price_per_million"] is None
    assert found["fitted_on"]["rows"] > 700
    assert found["left_out"] == {}


def test_all_gpus_are_ranked_and_those_without_the_precision_left_out(model: Path) -> None:
    found = run(str(model), "--all-gpus", "--precision", "fp8", "--batch", "8")
    times = [row["latency_ms"]["value"] for row in found["rows"]]
    assert times == sorted(times)
    assert found["left_out"]["Tesla T4, fp8"] == "Tesla T4 has no FP8"
    assert "no published latency is in FP8: the interval is a guess" in found["notes"]


def test_gpus_with_commas_between_are_several(model: Path) -> None:
    asked = ("--fp16", "--batch", "1")
    several = run(str(model), "--gpu", "L4", "--gpu", "T4", *asked)
    assert run(str(model), "--gpu", "L4, T4", *asked) == several


def test_a_gpu_without_int8_is_left_out(model: Path) -> None:
    jetsons = ("Jetson Nano", "Jetson TX2", "Jetson Xavier NX")
    asked = [word for name in jetsons for word in ("--gpu", name)]
    found = run(str(model), *asked, "--int8", "--fp16", "--batch", "1")
    assert {row["gpu"] for row in found["rows"] if row["precision"] == "fp16"} == set(jetsons)
    assert {row["gpu"] for row in found["rows"] if row["precision"] == "int8"} == {jetsons[2]}
    assert found["left_out"] == {
        f"{name}, int8": f"{name} has no INT8" for name in ("Jetson Nano", "Jetson TX2")
    }


def test_the_price_of_a_million_images(model: Path) -> None:
    prices = ("--price-per-hour", "L4=0.72", "--price-per-hour", "T4=0.36")
    asked = ("--gpu", "L4", "--gpu", "T4", "--fp16", "--batch", "8")
    by_gpu = {row["gpu"]: row for row in run(str(model), *asked, *prices)["rows"]}
    for name, per_hour in (("L4", 0.72), ("Tesla T4", 0.36)):
        row = by_gpu[name]
        hours = 1e6 / row["throughput_per_s"]["value"] / 3600
        assert row["price_per_million"]["value"] == pytest.approx(per_hour * hours)
    alone = run(str(model), "--gpu", "L4", "--fp16", "--batch", "8", "--price-per-hour", "0.72")
    assert alone["rows"][0]["price_per_million"] == by_gpu["L4"]["price_per_million"]


def test_the_default_batch_of_a_graph_with_a_fixed_one_is_that_one(
    model: Path, tmp_path: Path
) -> None:
    fixed = onnx.load(model)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    path = tmp_path / "fixed.onnx"
    onnx.save(fixed, path)
    rows = run(str(path), "--gpu", "L4", "--fp16")["rows"]
    assert [row["batch"] for row in rows] == [4]
    assert rows == run(str(model), "--gpu", "L4", "--fp16", "--batch", "4")["rows"]
    assert [row.batch for row in deploykit.estimate(path, "L4", precision="fp16").rows] == [4]
    assert "a fixed batch of 4, not 8" in refused(str(path), "--gpu", "L4", "--batch", "8")


def test_without_a_graph_it_is_not_faster(model: Path) -> None:
    asked = (str(model), "--gpu", "A10", "--fp16", "--batch", "1")
    (replayed,), (launched,) = run(*asked)["rows"], run(*asked, "--no-graph")["rows"]
    assert launched["latency_ms"]["value"] > replayed["latency_ms"]["value"]


def test_a_table_says_that_nothing_was_measured(model: Path) -> None:
    done = CliRunner().invoke(
        main, ["estimate", str(model), "--gpu", "L4", "--fp16", "--price-per-hour", "1"]
    )
    assert done.exit_code == 0, done.output
    assert "estimated, not measured" in done.stdout


READABLE = 80


SEVERAL = ("--gpu", "L4,A10,Jetson Nano")
ALL = ("--all-gpus",)
PRICES = ("L4=0.8", "A10=1.5", "Jetson Nano=0.01")


@pytest.mark.parametrize(
    ("gpus", "precisions", "batch", "prices", "more"),
    [
        (("--gpu", "L4"), ("--fp16",), "1", (), ()),
        (("--gpu", "L4"), (), "1,8,32", ("L4=123456",), ()),
        (SEVERAL, ("--fp32", "--int8"), "1", PRICES, ("--verbose",)),
        (SEVERAL, (), "1,8,512", (), ("--verbose",)),
        (ALL, ("--fp16",), "8", (), ()),
        (ALL, ("--fp16",), "8", PRICES, ()),
        (ALL, ("--fp8", "--bf16"), "1", PRICES, ("--verbose",)),
        (ALL, (), "1,512", PRICES, ("--verbose",)),
    ],
)
def test_every_line_is_within_80_columns_and_no_row_is_folded(
    odd_model: Path,
    gpus: tuple[str, ...],
    precisions: tuple[str, ...],
    batch: str,
    prices: tuple[str, ...],
    more: tuple[str, ...],
) -> None:
    priced = [word for price in prices for word in ("--price-per-hour", price)]
    asked = (str(odd_model), *gpus, *precisions, "--batch", batch, *priced)
    rows = run(*asked)["rows"]
    done = CliRunner().invoke(main, ["estimate", *asked, *more])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line for line in lines if len(line.rstrip()) > READABLE] == []
    assert "no published network has Celu" in " ".join(lines)
    table = lines[: next(at for at, line in enumerate(lines) if line.startswith("estimated"))]
    found = [line.split() for line in table if any(row["gpu"] in line for row in rows)]
    assert len(found) == len(rows) == len(table) - (2 if prices else 1)
    for row, cells in zip(rows, found, strict=True):
        name = row["gpu"].split()
        assert cells[: len(name) + 2] == [*name, row["precision"], str(row["batch"])]
        assert float(cells[len(name) + 2].replace(",", "")) == pytest.approx(
            row["latency_ms"]["value"], rel=0.01
        )


def test_the_figures_of_each_column_are_those_of_the_numbers(model: Path) -> None:
    asked = (str(model), "--gpu", "L4", "--fp16", "--batch", "8", "--price-per-hour", "1")
    (row,) = run(*asked)["rows"]
    done = CliRunner().invoke(main, ["estimate", *asked, "--verbose"])
    found = [line.split() for line in done.stdout.splitlines() if line.startswith("L4 ")]
    key, latency, price = ["L4", "fp16", "8"], row["latency_ms"], row["price_per_million"]
    per_s = f"{row['throughput_per_s']['value']:,.0f}"
    of_latency, of_price = (
        [f"{each['value']:.3g}", f"{each['low']:.3g}", "to", f"{each['high']:.3g}"]
        for each in (latency, price)
    )
    assert found == [
        [*key, *of_latency, of_price[0]],
        [*key, per_s, f"{row['limit_ms']:.3g}", str(row["published_rows"])],
        [*key, *of_price],
    ]


def test_several_prices_are_ranked(model: Path) -> None:
    prices = {"L4": 0.8, "A10": 0.1, "T4": 0.3}
    asked = [str(model), "--gpu", "L4,A10,T4,A30", "--fp16", "--batch", "8"]
    asked += [
        word for each in prices.items() for word in ("--price-per-hour", "{}={}".format(*each))
    ]
    rows = [row for row in run(*asked)["rows"] if row["price_per_million"]]
    rows.sort(key=lambda row: row["price_per_million"]["value"])
    shown = " ".join(CliRunner().invoke(main, ["estimate", *asked]).stdout.split())
    order = ", ".join(
        f"{place}. {row['gpu']} {row['price_per_million']['value']:.3g}"
        for place, row in enumerate(rows, 1)
    )
    assert f"ranking by price of 1 M images, fp16, batch 8: {order}" in shown
    assert len(rows) == len(prices)


class Steps:
    """The names of the steps that were begun."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def step(self, name: str) -> AbstractContextManager[ProgressTask]:
        self.names.append(name)
        return SilentProgress().step(name)


SMALL_NET = """import torch

def small():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 9, stride=4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
"""


def test_the_steps_of_a_definition_are_shown_and_a_bad_size_comes_before_the_export(
    tmp_path: Path,
) -> None:
    (tmp_path / "nets.py").write_text(SMALL_NET)
    call = EstimateCall(gpus=("L4",), batches=(1,), choices=DefinitionChoices(image_size=32))
    steps = Steps()
    assert estimate_target(f"{tmp_path}/nets.py:small", call, steps).rows
    assert steps.names == ["definition", "build", "export by torch.export", "count kernels"]
    steps, tiny = Steps(), replace(call, choices=DefinitionChoices(image_size=4))
    with pytest.raises(UsageError, match=r"nets.py:small does not take images \(2, 3, 4, 4\)"):
        estimate_target(f"{tmp_path}/nets.py:small", tiny, steps)
    assert steps.names == ["definition"]
    steps = Steps()
    with pytest.raises(UsageError, match=r"^Tesla T4 has no FP8\nask for another precision"):
        estimate_target("resnet18", EstimateCall(gpus=("T4",), precisions=(Precision.FP8,)), steps)
    assert steps.names == []


def test_quiet_leaves_out_the_notes(model: Path) -> None:
    asked = ["estimate", str(model), "--gpu", "L4", "--precision", "fp8", "--batch", "1"]
    loud, quiet = CliRunner().invoke(main, asked), CliRunner().invoke(main, [*asked, "--quiet"])
    rows, _, notes = loud.stdout.partition("note: ")
    assert "no published latency is in FP8" in notes
    assert quiet.stdout == rows
    assert "estimated, not measured" in quiet.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no GPU is named\ngive one, as --gpu L4, or all that are known: --all-gpus"),
        (("--gpu", "L4", "--all-gpus"), "--all-gpus and --gpu exclude each other"),
        (("--gpu", "GeForce RTX 3080"), "did you mean: GeForce RTX 3090"),
        (("--gpu", "A100"), "'A100' may be several GPUs: A100 SXM 40GB, A100 PCIe 40GB"),
        (("--gpu", "4090"), "did you mean: GeForce RTX 4090?\nall of them: Tesla T4, "),
        (("--gpu", "L40 S"), "did you mean: L40S?\nall of them: Tesla T4, "),
        (("--gpu", "L4,A1000"), "unknown GPU 'A1000'"),
        (("--gpu", ","), "no GPU is named"),
        (("--gpu", "L4", "--batch", "0"), "expected whole numbers from 1 up"),
        (("--gpu", "L4", "--price-per-hour", "cheap"), "expected a number above 0: --price-per-h"),
        (("--gpu", "L4", "--price-per-hour", "0"), "--price-per-hour is 0\nexpected a number"),
        (("--gpu", "L4", "--price-per-hour", "L4=nan"), "--price-per-hour is nan\nexpected a"),
        (("--gpu", "L4", "--gpu", "T4", "--price-per-hour", "1"), "several are estimated"),
        (("--gpu", "L4", "--price-per-hour", "T4=1"), "is for a GPU that is not estimated"),
        (("--gpu", "T4", "--precision", "fp8"), "Tesla T4 has no FP8"),
        (("--gpu", "L4", "--num-classes", "3"), "for definitions only: --num-classes"),
    ],
)
def test_what_is_wrong_is_said(model: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(str(model), *arguments)


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--batch is -1\nexpected whole numbers from 1 up"):
        EstimateCall(gpus=("L4",), batches=(-1,))


def test_prices_are_by_the_tables_name() -> None:
    assert prices_of([("NVIDIA L4", 2.0)], ("L4",)) == {"L4": 2.0}
    with pytest.raises(UnknownNameError, match="unknown GPU 'L5'"):
        prices_of([("L5", 2.0)], None)


def test_from_python(model: Path) -> None:
    report = deploykit.estimate(
        model, gpu="L4", precision="fp16", batch=8, price_per_hour={"L4": 1.0}
    )
    (row,) = report.rows
    assert (row.gpu, str(row.precision), row.batch) == ("L4", "fp16", 8)
    assert row.price_per_million is not None
    assert "L4" in report._repr_html_()


def test_from_python_a_price_of_one_gpu_needs_no_name(model: Path) -> None:
    def price(**call: Any) -> Any:
        (row,) = deploykit.estimate(model, precision="fp16", batch=1, **call).rows
        return row.price_per_million

    assert price(gpu="L4", price_per_hour=0.8) == price(gpu="L4", price_per_hour={"L4": 0.8})
    assert price(gpu="L4", price_per_hour=1) == price(gpu="L4", price_per_hour=1.0) is not None


EXPECTED_PRICE = (
    'expected a number above 0: price_per_hour=0.8 of the one GPU, price_per_hour={"L4": 0.8} of '
    "several"
)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"gpu": 5}, "gpu=5\nexpected a name, or a list of names"),
        ({"gpu": ["L4", 5]}, "gpu=['L4', 5]\nexpected a name, or a list of names"),
        ({"gpu": []}, "no GPU is named"),
        ({"gpu": "L4", "precision": 8}, "precision=8\nexpected a name, or a list of names"),
        ({"gpu": "L4", "input_size": 0}, "input_size=0\nexpected height and width in pixels"),
        ({"gpu": "L4", "price_per_hour": -1.0}, f"price_per_hour is -1\n{EXPECTED_PRICE}"),
        ({"gpu": "L4", "price_per_hour": True}, "price_per_hour=True\nexpected a number above 0"),
        ({"gpu": "L4", "price_per_hour": {"L4": "1"}}, 'by its name: {"L4": 0.8}'),
        ({"gpu": "L4", "price_per_hour": {5: 1}}, "price_per_hour={5: 1}\nexpected a number"),
        (
            {"gpu": "L4,T4", "price_per_hour": 1.0},
            'several are estimated\nsay of which it is, as price_per_hour={"L4": 0.8}',
        ),
        (
            {"gpu": "L4", "price_per_hour": {"T4": 1.0}},
            "the price of T4 is for a GPU that is not estimated\nadd it to gpu, or leave out",
        ),
        ({"gpu": ""}, 'no GPU is named\ngive one, as gpu="L4"'),
        ({"gpu": "L4", "batch": []}, "batch is empty\nexpected whole numbers from 1 up"),
        (
            {"gpu": "T4", "precision": "fp8"},
            'has no FP8\nask for another precision or GPU: precision="fp16"',
        ),
        ({"gpu": "L4", "num_classes": 3}, "leave out what is for definitions only: num_classes"),
    ],
)
def test_from_python_what_is_wrong_is_said(model: Path, call: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        deploykit.estimate(model, **call)
    assert message in str(error.value)
    assert "--" not in str(error.value)
