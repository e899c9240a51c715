"""A fault behind any output that is judged is found by the golden sample; files all have hashes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

import deploykit
from deploykit.bundle.golden import Golden
from deploykit.bundle.manifest import CPU_MODEL, GOLDEN, MANIFEST, MODEL, Bundle, manifest_text
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import ValidationError
from deploykit.core.precision import Precision
from tests import cli
from tests.graphs import normal
from tests.small_tails import network, pictures

if TYPE_CHECKING:
    from pathlib import Path

HEADS = {
    "two": (
        "a = Gemm <transB = 1> (f, k7)  b = Gemm <transB = 1> (f, k2)",
        "float[N, 7] a, float[N, 2] b",
    ),
    "maps": (
        """t = Constant <value_ints = [0, 4, -1]> ()  m = Conv <pads = [1, 1, 1, 1]> (r, wb)
        boxes = Reshape (m, t)  s = Conv <pads = [1, 1, 1, 1]> (r, k2d)  b = Sigmoid (s)""",
        "float[N, 4, 256] boxes, float[N, 3, 16, 16] b",
    ),
    "numbers": (
        "a = Gemm <transB = 1> (f, k7)  l = Gemm <transB = 1> (f, k9)  b = ArgMax <axis = 1> (l)",
        "float[N, 7] a, int64[N, 1] b",
    ),
    "scalar": (
        """a = Gemm <transB = 1> (f, k7)  l = Gemm <transB = 1> (f, k2)
        b = ReduceMax <keepdims = 0> (l)""",
        "float[N, 7] a, float b",
    ),
}
SECOND = {"two": "k2", "maps": "k2d", "numbers": "k9", "scalar": "k2"}
"""The weight that the second output alone depends on."""


def exported(name: str, folder: Path, precision: str = "fp32") -> Path:
    nodes, outputs = HEADS[name]
    weights = {"wb": normal(4, 16, 3, 3, scale=0.2), "k2d": normal(3, 16, 3, 3, seed=1, scale=0.2)}
    model = network(nodes, outputs, folder, name, **weights)
    pictures(folder / "images", 12)
    options = ["--head", "raw", "--backend", "none", "-o", folder / "bundle"]
    if precision == "int8":
        options += ["--calib", folder / "images"]
    called = cli.deploykit("export", model, f"--{precision}", *options)
    assert called.code == 0, called.err
    return folder / "bundle"


def sign(folder: Path) -> None:
    """Make the manifest fit the files that lie there."""
    manifest = Bundle.open(folder).manifest
    files = {name: sha256_of(folder / name) for name in manifest.files}
    graph = replace(manifest.onnx, sha256=files[MODEL])
    text = manifest_text(replace(manifest, files=files, onnx=graph))
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def plant(folder: Path, name: str) -> None:
    """Turn the second head's weights round in the graph that a CPU runs, and sign that."""
    path = folder / (CPU_MODEL if (folder / CPU_MODEL).exists() else MODEL)
    model = onnx.load(path)
    planted = 0
    for tensor in model.graph.initializer:
        if tensor.name.startswith(SECOND[name]):
            changed = onnx.numpy_helper.to_array(tensor)[::-1]
            tensor.CopyFrom(onnx.numpy_helper.from_array(-changed, tensor.name))
            planted += 1
    assert planted
    onnx.save(model, path)
    sign(folder)


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "fp32") for name in HEADS), ("two", "fp16"), ("maps", "fp16"), ("two", "int8")],
)
def test_a_changed_second_head_is_found(tmp_path: Path, name: str, precision: str) -> None:
    folder = exported(name, tmp_path, precision)
    assert cli.deploykit("check", folder).code == 0
    with deploykit.load(folder, device="cpu") as model:
        model.self_test()
    plant(folder, name)
    called = cli.deploykit("check", folder, "--json")
    assert called.code == 1
    assert all("golden sample: output 'b': " in each for each in called.data["problems"])
    with (
        deploykit.load(folder, device="cpu") as model,
        pytest.raises(ValidationError, match="gives other values of output 'b' than at export"),
    ):
        model.self_test()


@pytest.mark.parametrize("name", HEADS)
def test_the_sample_is_what_the_file_itself_gives(tmp_path: Path, name: str) -> None:
    folder = exported(name, tmp_path)
    golden = Golden.read(Bundle.open(folder))
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
    first, second = session.run(None, {"x": golden.batch})
    np.testing.assert_allclose(golden.outputs, first, rtol=1e-4, atol=1e-5)
    kept: Any = golden.others["b"]
    assert kept.dtype == second.dtype
    np.testing.assert_allclose(kept, second, rtol=1e-4, atol=1e-5)


def test_a_sample_of_before_has_the_first_output_alone(tmp_path: Path) -> None:
    folder = exported("two", tmp_path)
    with np.load(folder / GOLDEN) as arrays:
        before = {name: arrays[name] for name in ("input", "logits")}
    np.savez(folder / GOLDEN, allow_pickle=False, **before)
    plant(folder, "two")
    assert cli.deploykit("check", folder).code == 0
    with deploykit.load(folder, device="cpu") as model:
        assert model.self_test().max_abs < 1e-4


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("chosen", ["l", "e"])
def test_the_outputs_beside_an_answer_are_kept_and_judged_later(
    tmp_path: Path, precision: str, chosen: str
) -> None:
    nodes = "e = Gemm <transB = 1> (f, k9)  q = Relu (e)  l = Gemm <transB = 1> (q, kl)"
    model = network(
        nodes, "float[N, 4] l, float[N, 9] e", tmp_path, kl=normal(4, 9, seed=3, scale=2.0)
    )
    pictures(tmp_path / "images", 12)
    options: list[Any] = ["--head", "multiclass", "--head-output", chosen, "--backend", "none"]
    options += ["--calib", tmp_path / "images"] if precision == "int8" else []
    called = cli.deploykit("export", model, f"--{precision}", *options, "-o", tmp_path / "b")
    assert called.code == 0, called.err
    golden = Golden.read(Bundle.open(tmp_path / "b"))
    import onnxruntime

    expected = dict(
        zip("le", onnxruntime.InferenceSession(model).run(None, {"x": golden.batch}), strict=True)
    )
    (other,) = {"l", "e"} - {chosen}
    np.testing.assert_allclose(golden.outputs, expected[chosen], rtol=1e-4, atol=1e-5)
    kept: Any = golden.others[other]
    np.testing.assert_allclose(kept, expected[other], rtol=1e-4, atol=1e-5)
    assert cli.deploykit("check", tmp_path / "b").code == 0
    path = tmp_path / "b" / (CPU_MODEL if precision != "fp32" else MODEL)
    changed = onnx.load(path)
    (place,) = (at for at, each in enumerate(changed.graph.output) if each.name == other)
    rename = {"name": f"{other}_before"}
    for node in changed.graph.node:
        for names in (node.output, node.input):
            for at, name in enumerate(names):
                if name == other:
                    names[at] = rename["name"]
    changed.graph.node.append(onnx.helper.make_node("Neg", [rename["name"]], [other]))
    assert changed.graph.output[place].name == other
    onnx.save(changed, path)
    sign(tmp_path / "b")
    called = cli.deploykit("check", tmp_path / "b", "--json")
    assert called.code == 1
    assert all(f"golden sample: output {other!r}: " in each for each in called.data["problems"])


def test_an_output_that_a_conversion_changes_is_not_kept(tmp_path: Path) -> None:
    """Differences of large numbers: what is built on them nobody knows, so the export goes on."""
    nodes = """l = Gemm <transB = 1> (f, k7)  s = Add (f, big)  t = Concat <axis = 1> (s, s)
        d = Sub (t, big)  e = Gemm <transB = 1> (d, ke)"""
    big, ke = np.array(4000, np.float32), normal(2, 32)
    model = network(nodes, "float[N, 7] l, float[N, 2] e", tmp_path, big=big, ke=ke)
    options = ["--head-output", "l", "--backend", "none", "--json"]
    called = cli.deploykit("export", model, "--fp16", *options, "-o", tmp_path / "b")
    assert called.code == 0, called.err
    assert Golden.read(Bundle.open(tmp_path / "b")).others == {}
    (note,) = (note for note in called.data["notes"] if note.startswith("output 'e'"))
    assert note.endswith("; too far for the golden sample")
    assert cli.deploykit("check", tmp_path / "b").code == 0


def test_outputs_that_are_not_there_or_of_another_shape() -> None:
    sample = Golden(normal(2, 3, 8, 8), normal(2, 5), others={"b": normal(2, 4, seed=2)})
    with pytest.raises(ValidationError, match=r"has an output 'b', the model gives 'a'\nexport"):
        sample.judge(sample.outputs, Precision.FP32, {"a": sample.outputs})
    with pytest.raises(
        ValidationError, match=r"values of output 'b' of shape \(2, 3\), at export they were"
    ):
        sample.judge(sample.outputs, Precision.FP32, {"b": sample.others["b"][:, :3]})
    sample.judge(sample.outputs, Precision.FP32, sample.others)


def test_a_sample_that_is_split(tmp_path: Path) -> None:
    """A graph of one image at a time: what belongs to no image cannot be compared."""
    folder = exported("scalar", tmp_path)
    with deploykit.load(folder, device="cpu") as model:
        from deploykit.runtime.inputs import BatchLimits

        model._limits = BatchLimits(1, 1, 1)
        model.self_test()
    folder = exported("two", tmp_path / "images")
    plant(folder, "two")
    with deploykit.load(folder, device="cpu") as model:
        model._limits = BatchLimits(3, 3, 3)
        with pytest.raises(ValidationError, match="other values of output 'b' than"):
            model.self_test()
