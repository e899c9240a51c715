from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from deploykit.benchmarking.matrix.cells import CellGraph
from deploykit.benchmarking.matrix.preparing import NOISE, UNCOUNTED, own_precisions, prepare_graph
from deploykit.bundle.manifest import Bundle
from deploykit.core.errors import BundleError, ModelFileError, UnknownNameError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.serialization import Source, from_plain, to_plain
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.costs.peaks import gpu_peak
from tests.bundles import write_bundle, write_classifier
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from pathlib import Path

L4 = gpu_peak("NVIDIA L4").peak
assert L4 is not None
PEAKS = {"gpu": L4}
NO_SIZES = ShapeProfile()
MACS = 16 * 3 * 9 * 8 * 8 + 16 * 4


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "mine.onnx")


def prepared(
    target: Path,
    work: Path,
    precision: Precision = Precision.FP32,
    sizes: ShapeProfile = NO_SIZES,
) -> CellGraph:
    return prepare_graph(str(target), precision, work, batches=(1, 8), peaks=PEAKS, sizes=sizes)


def square(size: int) -> ShapeProfile:
    return ShapeProfile(height=SizeRange(size, size, size), width=SizeRange(size, size, size))


def test_a_file_is_exported_verified_and_limited(classifier: Path, tmp_path: Path) -> None:
    found = prepared(classifier, tmp_path / "work")
    bundle = Bundle.open(tmp_path / "work" / "mine-fp32")
    assert found.path == str(bundle.model_path)
    assert found.sha256 == bundle.manifest.onnx.sha256
    assert (found.precision, found.computes, found.own) == (Precision.FP32, Precision.FP32, False)
    assert {batch: limit.flop for batch, limit in found.limits["gpu"].items()} == {
        1: 2 * MACS,
        8: 16 * MACS,
    }
    assert found.notes == ()
    again = json.loads(json.dumps(to_plain(found)))
    assert from_plain(CellGraph, again, Source("graph")) == found


def test_a_bundle_of_open_images_is_counted_at_the_size_that_it_prepares(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "open", image="H, W")
    found = prepared(folder, tmp_path / "work")
    assert found.image == (8, 8)
    assert set(found.limits["gpu"]) == {1, 8}
    again = json.loads(json.dumps(to_plain(found)))
    assert from_plain(CellGraph, again, Source("graph")) == found


def test_a_file_of_open_images_needs_a_size(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "open.onnx", "H, W")
    with pytest.raises(UsageError, match=r"height and width may be anything\n.*: --height MIN,OPT"):
        prepared(path, tmp_path / "work")


@pytest.mark.parametrize(("height", "width"), [(8, 8), (40, 48), (16, 6)])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_file_of_open_images_is_measured_at_the_size_that_is_asked(
    tmp_path: Path, height: int, width: int, precision: Precision
) -> None:
    path = write_classifier(tmp_path / "open.onnx", "H, W")
    sizes = ShapeProfile(
        height=SizeRange(height, height, 2 * height), width=SizeRange(width, width, width)
    )
    found = prepared(path, tmp_path / "work", precision, sizes)
    assert found.image == (height, width)
    multiply_adds = 16 * 3 * 9 * height * width + 16 * 4
    assert found.limits["gpu"][1].flop == 2 * multiply_adds
    other = prepared(path, tmp_path / "work", precision, square(24))
    assert (other.image, other.folder == found.folder) == ((24, 24), False)


def test_a_converted_file_of_open_images_is_measured_at_that_size(tmp_path: Path) -> None:
    model = graph(
        """g (float16[N,3,H,W] input) => (float16[N,4,H,W] logits) {
            logits = Conv <pads = [1, 1, 1, 1]> (input, w)
        }""",
        {"w": normal(4, 3, 3, 3).astype("float16")},
    )
    path = save(model, tmp_path / "half.onnx")
    found = prepared(path, tmp_path / "work", Precision.FP16, square(12))
    assert found.image == (12, 12)
    assert found.limits["gpu"][8].flop == 8 * 2 * 4 * 3 * 9 * 12 * 12
    with pytest.raises(UsageError, match="takes images whose height and width may be anything"):
        prepared(path, tmp_path / "work", Precision.FP16)


def test_what_has_its_size_takes_no_other(classifier: Path, tmp_path: Path) -> None:
    said = "has its image size: --height and --width are for .onnx files that leave it"
    for target in (write_bundle(tmp_path / "given"), "resnet50"):
        with pytest.raises(UsageError, match=said):
            own_precisions([str(target)], sizes=square(8))
    with pytest.raises(UsageError, match="its height is fixed to 8\nleave --height out"):
        prepared(classifier, tmp_path / "work", sizes=square(8))
    rows = graph("g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }")
    with pytest.raises(UsageError, match=said):
        prepared(save(rows, tmp_path / "rows.onnx"), tmp_path / "work", sizes=square(8))


def test_an_export_of_before_is_used_again(classifier: Path, tmp_path: Path) -> None:
    first = prepared(classifier, tmp_path / "work")
    made = (tmp_path / "work" / "mine-fp32" / "manifest.json").stat().st_mtime_ns
    assert prepared(classifier, tmp_path / "work") == first
    assert (tmp_path / "work" / "mine-fp32" / "manifest.json").stat().st_mtime_ns == made


def test_a_changed_file_is_exported_anew(classifier: Path, tmp_path: Path) -> None:
    first = prepared(classifier, tmp_path / "work")
    model = graph(
        """g (float[N,3,8,8] input) => (float[N,3] logits) {
            m = GlobalAveragePool (input)
            logits = Flatten (m)
        }""",
        {},
    )
    save(model, classifier)
    assert prepared(classifier, tmp_path / "work").sha256 != first.sha256


def test_a_damaged_export_is_made_anew(classifier: Path, tmp_path: Path) -> None:
    first = prepared(classifier, tmp_path / "work")
    with (tmp_path / "work" / "mine-fp32" / "model.onnx").open("ab") as file:
        file.write(b"x")
    assert prepared(classifier, tmp_path / "work").sha256 == first.sha256
    Bundle.open(tmp_path / "work" / "mine-fp32").require_intact()


def test_what_is_no_bundle_is_not_replaced(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "work" / "mine-fp32").mkdir(parents=True)
    (tmp_path / "work" / "mine-fp32" / "thesis.txt").write_text("years", encoding="utf-8")
    with pytest.raises(BundleError, match=r"mine-fp32"):
        prepared(classifier, tmp_path / "work")
    assert (tmp_path / "work" / "mine-fp32" / "thesis.txt").read_text(encoding="utf-8") == "years"


def test_int8_gets_ranges_from_noise_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = graph(
        """g (float[N,3,8,8] input) => (float[N,32] logits) {
            c = Conv <pads = [1, 1, 1, 1]> (input, w)
            r = Relu (c)
            d = Conv <pads = [1, 1, 1, 1]> (r, v)
            m = GlobalAveragePool (d)
            logits = Flatten (m)
        }""",
        {"w": normal(32, 3, 3, 3), "v": normal(32, 32, 3, 3, seed=1)},
    )
    monkeypatch.chdir(tmp_path)
    found = prepared(save(model, tmp_path / "wide.onnx"), tmp_path / "work", Precision.INT8)
    assert (found.precision, found.computes) == (Precision.INT8, Precision.INT8)
    assert found.notes == (NOISE,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wide.onnx", "work"]


def test_a_bundle_is_measured_as_it_is(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "given")
    found = prepared(folder, tmp_path / "work")
    assert found.own
    assert found.folder == str(folder)
    assert not (tmp_path / "work").exists()
    (folder / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        prepared(folder, tmp_path / "work")


def test_a_converted_file_is_measured_as_it_is(tmp_path: Path) -> None:
    model = graph(
        """g (float16[2,3,8,8] input) => (float16[2,4,8,8] logits) {
            logits = Conv <pads = [1, 1, 1, 1]> (input, w)
        }""",
        {"w": normal(4, 3, 3, 3).astype("float16")},
    )
    path = save(model, tmp_path / "half.onnx")
    assert own_precisions([str(path)]) == {str(path): Precision.FP16}
    found = prepared(path, tmp_path / "work", Precision.FP16)
    assert (found.path, found.folder, found.own) == (str(path), None, False)
    assert found.limits == {}  # its batch is 2, asked are 1 and 8
    assert found.computes is None
    two = prepare_graph(str(path), Precision.FP16, tmp_path, batches=(1, 2), peaks={})
    assert (two.computes, two.limits) == (Precision.FP16, {})


def test_the_precisions_that_targets_bring(classifier: Path, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "given", precision=Precision.FP16)
    targets = [str(folder), str(classifier), "resnet50"]
    assert own_precisions(targets) == {str(folder): Precision.FP16}
    with pytest.raises(UnknownNameError, match="unknown architecture 'resnet5O'"):
        own_precisions(["resnet5O"])
    with pytest.raises(ModelFileError, match=r"none\.onnx"):
        own_precisions([str(tmp_path / "none.onnx")])
    with pytest.raises(BundleError, match=r"manifest\.json"):
        own_precisions([str(tmp_path)])


def test_without_a_known_peak_there_is_no_limit(classifier: Path, tmp_path: Path) -> None:
    found = prepare_graph(
        str(classifier), Precision.FP32, tmp_path / "work", batches=(1,), peaks={}
    )
    assert found.limits == {}
    slower = replace(PEAKS["gpu"], fp32_flop_per_s=1e6, tf32_flop_per_s=None)
    limited = prepare_graph(
        str(classifier), Precision.FP32, tmp_path / "work", batches=(1,), peaks={"cpu": slower}
    )
    assert limited.limits["cpu"][1].binds == "compute"


def test_on_a_target_without_onnx_a_bundle_has_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_bundle(tmp_path / "given")
    for name in ("torch", "onnx", "onnx_ir", "deploykit.graph"):
        monkeypatch.setitem(sys.modules, name, None)
    assert own_precisions([str(folder)]) == {str(folder): Precision.FP32}
    found = prepared(folder, tmp_path / "work")
    assert (found.limits, found.computes, found.notes) == ({}, None, (UNCOUNTED,))
