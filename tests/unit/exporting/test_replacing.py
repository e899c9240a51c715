"""Nothing that a user built is replaced without a word."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from deploykit.bundle.manifest import MANIFEST, Bundle, manifest_text
from deploykit.core.atomic import staged_folder
from deploykit.core.errors import BundleError
from deploykit.core.precision import Precision
from deploykit.exporting import steps
from deploykit.exporting.replacing import Replacement, origin_of
from tests.bundles import engine_record, write_bundle, write_classifier
from tests.cli import Called, deploykit

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.backends import Compiler
    from deploykit.core.artifacts import EngineRecord
    from deploykit.core.environment import Gpu


def other(path: Path) -> Path:
    """A classifier of the same shapes with other weights."""
    path.parent.mkdir(exist_ok=True)
    proto = onnx.load(write_classifier(path))
    tensor = proto.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(2), "w"))
    path.write_bytes(proto.SerializeToString())
    return path


def export(target: object, place: Path, *arguments: object) -> Called:
    return deploykit("export", target, "--backend", "none", "-o", place, *arguments)


def add_engines(place: Path, *names: str) -> None:
    for name in names:
        (place / "staged").write_text(name, encoding="utf-8")
        Bundle.open(place).with_engine(engine_record(name), place / "staged")


def content(place: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in place.iterdir()}


def assert_refused(called: Called, *words: str) -> None:
    assert called.code == 1
    text = " ".join(called.err.split())
    for each in (*words, "or replace all of it: --replace"):
        assert each in text


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_classifier(tmp_path / "mine.onnx")
    assert export(tmp_path / "mine.onnx", tmp_path / "bundle").code == 0
    return tmp_path / "bundle"


@pytest.fixture
def never_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step after the look at the call: the refusal comes before what is slow."""

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("an export began")

    monkeypatch.setattr(steps, "make_reference", fail)


def test_the_same_model_is_replaced_as_ever(bundle: Path, tmp_path: Path) -> None:
    before = Bundle.open(bundle).manifest
    (tmp_path / "mine.onnx").rename(tmp_path / "renamed.onnx")
    called = export(tmp_path / "renamed.onnx", bundle, "--json")
    assert called.code == 0, called.err
    assert not [note for note in called.data["notes"] if note.startswith("replaced")]
    assert Bundle.open(bundle).manifest.onnx.parents == before.onnx.parents


@pytest.mark.usefixtures("never_read")
def test_another_file_of_the_same_name(bundle: Path, tmp_path: Path) -> None:
    before = content(bundle)
    called = export(other(tmp_path / "b" / "mine.onnx"), bundle)
    assert_refused(called, "holds mine-fp32 of 20", "this export is of another model (weights)")
    assert content(bundle) == before


def test_what_else_lies_in_the_folder_does_not_go_without_a_word(
    bundle: Path, tmp_path: Path
) -> None:
    assert export(other(tmp_path / "b" / "mine.onnx"), bundle / "child").code == 0
    (bundle / "notes.txt").write_text("mine", encoding="utf-8")
    assert_refused(export(tmp_path / "mine.onnx", bundle), "does not make child, notes.txt again")
    assert (bundle / "child" / MANIFEST).is_file()
    called = export(tmp_path / "mine.onnx", bundle, "--replace")
    assert called.code == 0, called.err
    assert not (bundle / "child").exists()


def test_two_files_of_one_name_share_no_default_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    write_classifier(tmp_path / "a" / "model.onnx")
    other(tmp_path / "b" / "model.onnx")
    assert deploykit("export", "a/model.onnx", "--backend", "none").code == 0
    assert_refused(
        deploykit("export", "b/model.onnx", "--backend", "none"),
        "engines/model-fp32 holds model-fp32",
        "choose another place with -o FOLDER",
    )


def test_replacing_says_what(bundle: Path, tmp_path: Path) -> None:
    add_engines(bundle, "one.engine", "two.engine")
    called = export(other(tmp_path / "b" / "mine.onnx"), bundle, "--replace", "--json")
    assert called.code == 0, called.err
    (note,) = [note for note in called.data["notes"] if note.startswith("replaced")]
    assert note.startswith(f"replaced {bundle}: mine-fp32 of 20")
    assert note.endswith("with one.engine, two.engine")
    assert Bundle.open(bundle).manifest.engines == ()
    assert not list(bundle.glob("*.engine"))


@pytest.mark.usefixtures("never_read")
def test_another_precision(bundle: Path, tmp_path: Path) -> None:
    called = export(tmp_path / "mine.onnx", bundle, "--fp16")
    assert_refused(called, "this export is fp16, not fp32")


@pytest.mark.usefixtures("never_read")
def test_engines_that_are_not_made_again(bundle: Path, tmp_path: Path) -> None:
    add_engines(bundle, "tensorrt-11-sm90.engine", "tensorrt-rtx-1.7.engine")
    before = content(bundle)
    called = export(tmp_path / "mine.onnx", bundle)
    names = "tensorrt-11-sm90.engine, tensorrt-rtx-1.7.engine"
    assert_refused(called, f"with {names}", f"this export does not make {names} again")
    assert content(bundle) == before


@pytest.mark.usefixtures("never_read")
def test_a_bundle_that_cannot_be_read(bundle: Path, tmp_path: Path) -> None:
    (bundle / "mine.engine").write_text("plan", encoding="utf-8")
    text = (bundle / MANIFEST).read_text(encoding="utf-8")
    (bundle / MANIFEST).write_text(text.replace("mine", "yours"), encoding="utf-8")
    called = export(tmp_path / "mine.onnx", bundle)
    assert_refused(called, "a bundle that cannot be read", "changed after it was", "mine.engine")


def test_a_bundle_that_cannot_be_read_is_replaced_on_request(bundle: Path, tmp_path: Path) -> None:
    (bundle / MANIFEST).write_text("{", encoding="utf-8")
    assert export(tmp_path / "mine.onnx", bundle, "--replace").code == 0
    assert Bundle.open(bundle).manifest.name == "mine-fp32"


@pytest.mark.usefixtures("never_read")
def test_a_definition_over_a_file_of_ones_own(bundle: Path) -> None:
    assert_refused(export("resnet20", bundle), "this export is of another model")


@pytest.mark.parametrize(
    ("arguments", "differing"),
    [
        (("resnet32",), "network"),
        (("resnet20", "--num-classes", 7), "classes"),
        (("resnet20", "--seed", 3), "weights"),
        (("resnet20", "--input-size", 40), "input size"),
        (("resnet20", "--weights", "w.pth"), "weights"),
    ],
)
@pytest.mark.usefixtures("never_read")
def test_definitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], differing: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.zeros(2)}, "w.pth")
    place = write_bundle(tmp_path / "there")
    model = {"name": "resnet20", "num_classes": 10, "image_size": [32, 32]}
    described(place, model, {"source": "untrained, seed 0", "sha256": None, "trained": False})
    target, *more = arguments
    assert_refused(export(target, place, *more), f"another model ({differing})")


def described(place: Path, model: dict[str, Any], weights: dict[str, Any]) -> None:
    manifest = replace(Bundle.open(place).manifest, model=model, weights=weights)
    (place / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")


SMALL = """from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
"""


def test_a_definition_again(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(SMALL, encoding="utf-8")
    for _ in range(2):
        called = export(f"{tmp_path / 'small.py'}:net", tmp_path / "there", "--input-size", 16)
        assert called.code == 0, called.err


def test_two_sets_of_one_checkpoint_are_two_models() -> None:
    model = {"name": "resnet20", "num_classes": 10, "image_size": [32, 32]}
    raw, average = (
        origin_of(model, {"source": f"w.pth#{entry}", "sha256": "ab"}) for entry in ("model", "ema")
    )
    assert raw != average
    renamed = origin_of(model, {"source": "v.pth#model", "sha256": "ab"})
    assert raw == renamed


# Engines


@dataclass(frozen=True)
class FakeCompiler:
    name: str
    is_portable: bool


@dataclass(frozen=True)
class FakeGpu:
    compute_capability: str


RTX = engine_record("rtx.engine", compiler="tensorrt-rtx", compute_capabilities=("8.6", "8.9"))
ON_90 = engine_record("trt-sm90.engine")
ON_80 = engine_record("trt-sm80.engine", compute_capabilities=("8.0",))


@pytest.mark.parametrize(
    ("engines", "compiler", "gpu", "lost"),
    [
        ([RTX], FakeCompiler("tensorrt-rtx", is_portable=True), None, []),
        ([ON_90], FakeCompiler("tensorrt-rtx", is_portable=True), None, ["trt-sm90.engine"]),
        ([RTX, ON_90], FakeCompiler("tensorrt-rtx", is_portable=True), None, ["trt-sm90.engine"]),
        ([ON_90], FakeCompiler("tensorrt", is_portable=False), "9.0", []),
        ([ON_90], FakeCompiler("tensorrt", is_portable=False), "8.0", ["trt-sm90.engine"]),
        ([ON_90, ON_80], FakeCompiler("tensorrt", is_portable=False), "8.0", ["trt-sm90.engine"]),
        ([], None, None, []),
        ([RTX], None, None, ["rtx.engine"]),
    ],
)
def test_which_engines_would_be_lost(
    tmp_path: Path,
    engines: list[EngineRecord],
    compiler: FakeCompiler | None,
    gpu: str | None,
    lost: list[str],
) -> None:
    place = write_bundle(tmp_path / "there", *engines)
    manifest = Bundle.open(place).manifest
    gpus = [] if gpu is None else [cast("Gpu", FakeGpu(gpu))]
    known = cast("Compiler | None", compiler)
    found = Replacement(place, Precision.FP32, known, gpus, allowed=False)
    same = origin_of(manifest.model, manifest.weights)
    if not lost:
        assert found.require(same) is None
        return
    with pytest.raises(BundleError, match=f"does not make {', '.join(lost)} again"):
        found.require(same)


WIDE = replace(ON_80, file="trt-sm80plus.engine", hardware_compatibility="ampere+")


@pytest.mark.parametrize(
    ("engine", "for_others", "lost"),
    [(WIDE, True, False), (WIDE, False, True), (ON_80, True, True), (ON_80, False, False)],
)
def test_an_engine_for_all_gpus_from_ampere_on_is_made_by_its_like(
    tmp_path: Path, engine: EngineRecord, *, for_others: bool, lost: bool
) -> None:
    place = write_bundle(tmp_path / "there", engine)
    manifest = Bundle.open(place).manifest
    compiler = cast("Compiler", FakeCompiler("tensorrt", is_portable=False))
    gpus = [cast("Gpu", FakeGpu("8.0"))]
    found = Replacement(place, Precision.FP32, compiler, gpus, allowed=False, for_others=for_others)
    same = origin_of(manifest.model, manifest.weights)
    if not lost:
        assert found.require(same) is None
        return
    with pytest.raises(BundleError, match=f"does not make {engine.file} again"):
        found.require(same)


# What came meanwhile


def test_an_engine_that_was_added_during_the_export(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = steps._fill

    def slow(*arguments: Any) -> Any:
        add_engines(bundle, "late.engine")
        return fill(*arguments)

    monkeypatch.setattr(steps, "_fill", slow)
    called = export(tmp_path / "mine.onnx", bundle)
    assert_refused(called, "this export does not make late.engine again")
    assert (bundle / "late.engine").is_file()
    assert [each.name for each in bundle.parent.glob(".*.part")] == []


def test_a_last_look_stops_the_swap(tmp_path: Path) -> None:
    place = tmp_path / "there"

    def refuse() -> None:
        raise BundleError("somebody else was here")

    with (
        pytest.raises(BundleError, match="somebody else"),
        staged_folder(place, "m", refuse) as new,
    ):
        (new / "m").touch()
    assert list(tmp_path.iterdir()) == []
