"""`compare_artifacts` on graphs of a few nodes: which is the reference, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from deploykit.bundle.manifest import REFERENCE
from deploykit.core.errors import (
    BundleError,
    IntegrityError,
    ModelFileError,
    UsageError,
    ValidationError,
)
from deploykit.core.precision import Precision
from deploykit.core.serialization import to_plain
from deploykit.core.specs import Preprocessing
from deploykit.verbs.validate import ComparisonOptions, compare_artifacts
from tests.bundles import engine_record, write_bundle, write_classifier
from tests.fakes.engine_fake import FakeMachine
from tests.graphs import graph, normal, save
from tests.unit.comparison.test_converted import halved as halved_far


def shifted(source: Path, path: Path, by: float) -> Path:
    """A copy whose last layer has weights that are larger by ``by``."""
    model = onnx.load(source)
    weight = next(t for t in model.graph.initializer if t.name == "v")
    changed = numpy_helper.to_array(weight) + np.float32(by)
    weight.CopyFrom(numpy_helper.from_array(changed, "v"))
    onnx.save(model, path)
    return path


def halved(source: Path, path: Path) -> Path:
    """The same graph with its weights in FP16, widened where they are read."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        name, value = tensor.name, numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(value, f"{name}16"))
        cast = onnx.helper.make_node("Cast", [f"{name}16"], [name], f"widen {name}", to=1)
        model.graph.node.insert(0, cast)
    onnx.save(model, path)
    return path


def layer(folder: Path, name: str, shape: str) -> Path:
    text = f"net (float[{shape}] x) => (float[{shape}] y) {{ y = Relu (x) }}"
    return save(graph(text), folder / f"{name}.onnx")


def test_two_equal_files_agree(tmp_path: Path) -> None:
    first = write_classifier(tmp_path / "a.onnx")
    second = write_classifier(tmp_path / "b.onnx")
    report = compare_artifacts(first, second, ComparisonOptions())
    assert report.passed
    assert (report.candidate, report.reference) == (str(first), str(second))
    assert [batch.batch for batch in report.outputs.batches] == [1, 2, 5]
    assert all(batch.max_abs == 0 for batch in report.outputs.batches)
    assert report.layers is None
    assert report.notes[0].startswith("preprocessing is assumed: 9 px, crop (8, 8), ImageNet")


def test_the_largest_error_is_that_of_numpy(tmp_path: Path) -> None:
    """Every logit of the copy is larger by 0.25 times the sum of what the last layer reads."""
    first = write_classifier(tmp_path / "a.onnx")
    report = compare_artifacts(
        shifted(first, tmp_path / "b.onnx", 0.25), first, ComparisonOptions(batch=1)
    )
    assert not report.passed
    (batch,) = report.outputs.batches
    assert batch.max_abs > 0.01
    assert report.to_dict()["passed"] is False
    assert report.to_dict()["validation"]["problems"] == list(report.outputs.problems)


@pytest.mark.parametrize("half_is_first", [True, False])
def test_the_exacter_one_is_the_reference(tmp_path: Path, half_is_first: bool) -> None:
    full = write_classifier(tmp_path / "full.onnx")
    half = halved(full, tmp_path / "half.onnx")
    pair = (half, full) if half_is_first else (full, half)
    report = compare_artifacts(*pair, ComparisonOptions())
    assert (report.candidate, report.reference) == (str(half), str(full))
    assert report.outputs.precision is Precision.FP16
    assert report.passed


def test_a_bundle_says_how_images_are_prepared(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "colours")
    copy = Path(shutil.copy(bundle / "model.onnx", tmp_path / "copy.onnx"))
    report = compare_artifacts(bundle, copy, ComparisonOptions(layers=True))
    assert report.passed
    assert report.notes == ()
    assert report.layers is not None
    assert report.to_dict()["layers"]["first_fault"] is None


def test_a_file_alone(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "a.onnx")
    with pytest.raises(UsageError, match=r"^there is nothing to compare .*a\.onnx with\nname a"):
        compare_artifacts(path, None, ComparisonOptions())


def test_an_fp32_bundle_alone(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "colours")
    with pytest.raises(BundleError, match=rf"keeps no {REFERENCE}: it is FP32 itself"):
        compare_artifacts(bundle, None, ComparisonOptions())


def test_a_bundle_that_was_changed(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "colours")
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"\0")
    other = write_classifier(tmp_path / "a.onnx")
    with pytest.raises(IntegrityError, match=r"model\.onnx has sha256"):
        compare_artifacts(bundle, other, ComparisonOptions())


def test_two_sizes_of_images(tmp_path: Path) -> None:
    pair = (layer(tmp_path, "small", "N,3,8,8"), layer(tmp_path, "large", "N,3,9,9"))
    message = r"takes images of \(3, 8, 8\), .*large\.onnx of \(3, 9, 9\)\nexpected two artifacts"
    with pytest.raises(UsageError, match=message):
        compare_artifacts(*pair, ComparisonOptions())


def test_something_beside_the_images(tmp_path: Path) -> None:
    text = """net (float[N,3,8,8] x, float[N,4] age) => (float[N,3,8,8] y, float[N,4] z) {
        y = Relu (x)  z = Relu (age) }"""
    more = save(graph(text), tmp_path / "more.onnx")
    fewer = layer(tmp_path, "fewer", "N,3,8,8")
    message = r"^beside images .*more\.onnx takes \['age'\], .*fewer\.onnx nothing\nexpected two"
    with pytest.raises(UsageError, match=message):
        compare_artifacts(more, fewer, ComparisonOptions())


def test_no_images_at_all(tmp_path: Path) -> None:
    rows, image = layer(tmp_path, "rows", "N,3"), layer(tmp_path, "image", "N,3,8,8")
    with pytest.raises(ModelFileError, match=r"rows\.onnx takes x float32 \(N, 3\)\nexpected"):
        compare_artifacts(rows, image, ComparisonOptions())


@pytest.mark.parametrize(
    ("batches", "asked", "shown"),
    [(("2", "3"), None, "2, .*: 3"), (("2", "N"), 4, "2, .*: any; asked: 4")],
)
def test_no_batch_fits_both(
    tmp_path: Path, batches: tuple[str, str], asked: int | None, shown: str
) -> None:
    pair = [layer(tmp_path, f"{at}", f"{size},3,8,8") for at, size in enumerate(batches)]
    with pytest.raises(UsageError, match=rf"^no batch fits both, .*: {shown}\nexport them with"):
        compare_artifacts(pair[0], pair[1], ComparisonOptions(batch=asked))


@pytest.mark.parametrize("asked", [None, 2])
def test_a_fixed_batch_is_the_only_one(tmp_path: Path, asked: int | None) -> None:
    pair = [layer(tmp_path, f"{size}", f"{size},3,8,8") for size in ("2", "N")]
    report = compare_artifacts(pair[0], pair[1], ComparisonOptions(batch=asked))
    # As many images as of any other graph, unless a batch is asked for.
    assert [batch.batch for batch in report.outputs.batches] == ([2] if asked else [2] * 4)


def test_outputs_of_two_shapes(tmp_path: Path) -> None:
    first = layer(tmp_path, "a", "N,3,8,8")
    text = "net (float[N,3,8,8] x) => (float[N,192] y) { y = Flatten (x) }"
    second = save(graph(text), tmp_path / "flat.onnx")
    with pytest.raises(ValidationError, match=r"returns shape \(1, 3, 8, 8\), .*\(1, 192\)"):
        compare_artifacts(first, second, ComparisonOptions())


def test_values_for_a_model_of_images_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "ages.npz", age=normal(3, 4))
    pair = [layer(tmp_path, name, "N,3,8,8") for name in "ab"]
    with pytest.raises(UsageError, match=r"takes images alone\nleave out --side-inputs"):
        compare_artifacts(pair[0], pair[1], ComparisonOptions(side_inputs=tmp_path / "ages.npz"))


@pytest.mark.parametrize("far", [1000.0, 1.0])
def test_what_an_engine_that_stores_every_value_would_compute(tmp_path: Path, far: float) -> None:
    """Numbers near 1000 have steps of a half in FP16: a fused chain never stores them."""
    half, _ = halved_far(tmp_path, far)
    pair = half.artifact.path, tmp_path / "net.onnx"
    report = compare_artifacts(*pair, ComparisonOptions())
    said = [note for note in report.notes if "in an engine that stores every value" in note]
    assert report.passed
    assert len(said) == (far > 1)
    if said:
        assert said[0].startswith(str(half.artifact.path))
        fast = compare_artifacts(*pair, ComparisonOptions(fast=True))
        assert not any("stores every value" in note for note in fast.notes)


def twins(folder: Path, body: str) -> tuple[Path, Path]:
    """A file of somebody's FP16 conversion, without types between its nodes, and its FP32 one."""
    made = []
    for bits, kind in ((16, 10), (32, 1)):
        text = f"""net (float[N,3,8,8] x) => (float[N,4] y) {{
            i = Cast <to = {kind}> (x)
            c = Conv (i, w)
            r = Relu (c)
            {body}
            f = ReduceMean <keepdims = 0> (q, axes)
            l = Gemm (f, h)
            y = Cast <to = 1> (l)
        }}"""
        numbers = {"w": normal(8, 3, 1, 1) * 400, "h": normal(8, 4), "cube": np.array(3.0)}
        numbers["root"] = np.array(1 / 3)
        constants = {
            n: v.astype(np.float16 if bits < 32 else np.float32) for n, v in numbers.items()
        }
        constants["axes"], constants["all"] = np.array([2, 3]), np.array([1, 2, 3])
        used = {n: v for n, v in constants.items() if f"{n})" in text or f" {n}," in text}
        made.append(save(graph(text, used), folder / f"of{bits}.onnx"))
    return made[0], made[1]


def test_a_foreign_half_that_overflows_in_a_sum_is_found(tmp_path: Path) -> None:
    half, whole = twins(tmp_path, "s = ReduceSum (r, all)\n q = Div (r, s)")
    x = normal(1, 3, 8, 8) * 10
    with np.errstate(all="ignore"):
        (found,) = cast("list[Any]", ReferenceEvaluator(onnx.load(half)).run(None, {"x": x}))
    assert not found.any()
    report = compare_artifacts(half, whole, ComparisonOptions())
    assert not report.passed
    assert compare_artifacts(half, whole, ComparisonOptions(fast=True)).passed


def test_a_foreign_half_that_may_overflow_is_said_to(tmp_path: Path) -> None:
    """A cube and its root in one kernel hold; stored, the cube is infinite."""
    half, whole = twins(tmp_path, "p = Pow (r, cube)\n q = Pow (p, root)")
    x = normal(1, 3, 8, 8)
    with np.errstate(all="ignore"):
        (found,) = cast("list[Any]", ReferenceEvaluator(onnx.load(half)).run(None, {"x": x}))
    assert not np.isfinite(found).all()
    report = compare_artifacts(half, whole, ComparisonOptions())
    (note,) = [note for note in report.notes if "may overflow" in note]
    assert note.startswith(f"{half} may overflow: ")
    assert "NaN or infinite in an engine that stores every value" in note


def test_a_file_says_how_images_are_prepared_and_its_graph_how_large(tmp_path: Path) -> None:
    first = write_classifier(tmp_path / "a.onnx")
    said = to_plain(Preprocessing((32, 24), resize=40, mean=(0.25,) * 3, std=(0.5,) * 3))
    model = onnx.load(first)
    onnx.helper.set_model_props(model, {"deploykit.preprocessing": json.dumps(said)})
    save(model, first)
    report = compare_artifacts(first, shifted(first, tmp_path / "b.onnx", 0), ComparisonOptions())
    assert report.passed
    assert not any("preprocessing is assumed" in note for note in report.notes)


# --- on a device


def test_an_engine_is_compared_and_not_its_graph(tmp_path: Path) -> None:
    """The engine's outputs are larger by what the machine adds; the graph's are right."""
    folder = write_bundle(tmp_path / "colours", engine_record())
    original = folder / "model.onnx"
    on_gpu, machine = ComparisonOptions(device="cuda"), FakeMachine(offset=0.25)
    report = compare_artifacts(folder, original, on_gpu, machine=machine())
    assert [batch.max_abs for batch in report.outputs.batches] == pytest.approx([0.25] * 3)
    assert not report.passed
    assert f"the engine of {folder} ran, the reference on the CPU" in report.notes
    assert machine.opened[0].batches == [1, 2, 4, 1]  # it takes four at most
    assert machine.opened[0].closed
    assert compare_artifacts(folder, original, ComparisonOptions()).passed


def test_an_engine_shows_no_activations(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colours", engine_record())
    options = ComparisonOptions(layers=True, device="cuda")
    with pytest.raises(UsageError, match="--layers with --device cuda: an engine shows none"):
        compare_artifacts(folder, folder / "model.onnx", options)


def test_a_file_has_no_engine(tmp_path: Path) -> None:
    file = write_classifier(tmp_path / "mine.onnx")
    with pytest.raises(UsageError, match=r"mine\.onnx is a file, which has no engine .*\nexport"):
        compare_artifacts(file, file, ComparisonOptions(device="cuda"))
