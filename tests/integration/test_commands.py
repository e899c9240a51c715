"""The other commands, on a bundle that `deploykit export` made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.bundle.manifest import REFERENCE, Bundle, manifest_text
from deploykit.cli import COMMANDS
from tests.cli import deploykit

if TYPE_CHECKING:
    from pathlib import Path

    from tests.digits import Digits


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    called = deploykit(command, "--help")
    assert called.code == 0
    assert f"deploykit {command}" in called.out.split("Examples:")[1]
    assert "--json" in called.out


def test_list_has_every_definition_with_its_paper() -> None:
    models = {model["name"]: model for model in deploykit("list", "--json").data["models"]}
    assert models["resnet50"]["parameters"] == 25_557_032
    assert models["resnet50"]["year"] == 2015
    assert models["resnet50"]["input_size"] == [3, 224, 224]
    assert all(model["paper"].startswith("https://") for model in models.values())
    shown = deploykit("list").out
    assert all(name in shown for name in models)
    assert "arXiv:1512.03385" in shown


def test_inspect_gives_the_known_figures_of_alexnet() -> None:
    arguments = ("inspect", "alexnet", "--num-classes", 10, "--input-size", 256)
    data = deploykit(*arguments, "--json").data
    assert data["parameters"] == 57_044_810
    rounded = {key: round(data[key], 2) for key in data if key.endswith("_mb")}
    assert rounded == {
        "input_mb": 0.75,
        "forward_backward_mb": 10.96,
        "parameters_mb": 217.61,
        "total_mb": 229.32,
    }
    shown = deploykit(*arguments).out
    for text in ("57,044,810", "0.75", "10.96", "217.61", "229.32"):
        assert text in shown


def test_inspect_of_a_bundle_shows_its_graph(fp16_bundle: Path) -> None:
    data = deploykit("inspect", fp16_bundle, "--json").data
    definition = deploykit("inspect", "resnet20", "--input-size", 8, "--json").data
    assert data["multiply_adds"] == definition["multiply_adds"]
    kinds = [layer["kind"] for layer in data["layers"]]
    assert kinds.count("Conv") == 19
    assert data["layers"][1]["output_shape"] == [1, 16, 8, 8]


def test_inspect_of_a_bundle_shows_its_engines(fp16_bundle: Path) -> None:
    (engine,) = deploykit("inspect", fp16_bundle, "--json").data["engines"]
    assert engine["file"] == next(fp16_bundle.glob("*.engine")).name
    assert engine["profile"]["max_batch"] == 32
    shown = deploykit("inspect", fp16_bundle).out
    assert engine["file"] in shown
    assert "tuned for 8" in shown
    assert "engines" not in deploykit("inspect", "resnet20", "--json").data


@pytest.mark.parametrize("command", ["build", "export"])
def test_a_choice_that_the_compiler_lacks_is_refused_before_anything_is_done(
    fp16_bundle: Path, tmp_path: Path, command: str
) -> None:
    target = (fp16_bundle,) if command == "build" else ("resnet20", "-o", tmp_path / "b")
    options = ("--backend", "tensorrt-rtx", "--hardware-compatibility", "ampere+")
    called = deploykit(command, *target, *options)
    assert called.code == 2
    assert "tensorrt-rtx has no hardware compatibility ampere+" in called.err
    assert "verify" not in called.err
    assert list(tmp_path.iterdir()) == []


def test_the_level_of_a_build_is_recorded_and_shown(fp16_copy: Path) -> None:
    options = ("--backend", "tensorrt-rtx", "--compute-capability", "8.9", "--optimization-level")
    data = deploykit("build", fp16_copy, *options, 1, "--json").data
    assert [engine["optimization_level"] for engine in data["engines"]] == [1]
    assert Bundle.open(fp16_copy).manifest.engines[0].optimization_level == 1
    assert "optimization level" in deploykit("inspect", fp16_copy).out
    assert deploykit("build", fp16_copy, *options, 6).code == 2


def test_an_engine_of_several_profiles(fp16_copy: Path) -> None:
    options = ("--backend", "tensorrt-rtx", "--compute-capability", "8.9")
    called = deploykit("build", fp16_copy, *options, "--batch", 1, "--batch", "8,16,32", "--json")
    assert called.code == 0, called.err
    (engine,) = called.data["engines"]
    assert engine["profile"] == {
        "min_batch": 1,
        "opt_batch": 1,
        "max_batch": 32,
        "parts": [
            {"min_batch": 1, "opt_batch": 1, "max_batch": 1},
            {"min_batch": 8, "opt_batch": 16, "max_batch": 32},
        ],
    }
    shown = deploykit("inspect", fp16_copy).out
    assert "profile 0" in shown
    assert "batch 8,16,32" in shown
    assert deploykit("check", fp16_copy, "--json").data["ok"] is True


def test_check_says_why_an_engine_does_not_fit(fp16_bundle: Path) -> None:
    data = deploykit("check", fp16_bundle, "--json").data
    assert data["ok"] is True
    assert data["problems"] == []
    (engine,) = data["engines"]
    assert engine.keys() == {"file", "compiler", "fits", "reason"}
    assert engine["compiler"] == "tensorrt-rtx"
    assert engine["fits"] or engine["reason"]


def test_check_shows_the_same_to_a_person(fp16_bundle: Path) -> None:
    shown = deploykit("check", fp16_bundle)
    assert shown.code == 0
    assert "the golden sample agrees" in shown.out
    assert next(fp16_bundle.glob("*.engine")).name in shown.out


def test_check_runs_the_golden_sample(fp16_copy: Path) -> None:
    bundle = Bundle.open(fp16_copy)
    with np.load(fp16_copy / "golden.npz") as golden:
        np.savez(fp16_copy / "golden.npz", input=golden["input"], logits=golden["logits"] + 9)
    _rewrite_hash(bundle, "golden.npz")
    data = deploykit("check", fp16_copy, "--json").data
    assert data["ok"] is False
    assert data["problems"][0].startswith("golden sample: largest error")


def _rewrite_hash(bundle: Bundle, name: str) -> None:
    from dataclasses import replace

    from deploykit.core.artifacts import sha256_of

    files = {**bundle.manifest.files, name: sha256_of(bundle.folder / name)}
    text = manifest_text(replace(bundle.manifest, files=files))
    (bundle.folder / "manifest.json").write_text(text)


def test_build_adds_an_engine_and_keeps_the_bundle_whole(fp16_copy: Path) -> None:
    for engine in fp16_copy.glob("*.engine"):
        engine.unlink()
    without = Bundle.open(fp16_copy)
    assert "is missing" in without.changed_files()[0]
    (fp16_copy / "manifest.json").write_text(_without_engines(without))
    called = deploykit(
        "build", fp16_copy, "--backend", "tensorrt-rtx", "--batch", "2,4,6",
        "--compute-capability", "8.9", "--workspace", 64, "--json",
    )  # fmt: skip
    assert called.code == 0, called.err
    (engine_record,) = called.data["engines"]
    assert engine_record["compute_capabilities"] == ["8.9"]
    assert engine_record["profile"] == {"min_batch": 2, "opt_batch": 4, "max_batch": 6}
    assert called.data.keys() >= {"bundle", "precision", "stages", "validation", "engines"}
    assert Bundle.open(fp16_copy).changed_files() == []
    assert sorted(path.suffix for path in fp16_copy.iterdir() if path.name.startswith(".")) == []


def _without_engines(bundle: Bundle) -> str:
    from dataclasses import replace

    return manifest_text(replace(bundle.manifest, engines=()))


def test_failed_build_leaves_the_bundle_as_it_was(fp16_copy: Path) -> None:
    before = {path.name: path.read_bytes() for path in fp16_copy.iterdir()}
    called = deploykit("build", fp16_copy, "--compute-capability", "1.0")
    assert called.code == 2
    assert {path.name: path.read_bytes() for path in fp16_copy.iterdir()} == before


def test_reference_may_be_deleted_before_shipping(fp16_copy: Path, digits: Digits) -> None:
    kept = (fp16_copy / REFERENCE).rename(fp16_copy.parent / "kept.onnx")
    assert deploykit("check", fp16_copy, "--json").data["ok"] is True
    alone = deploykit("eval", fp16_copy, "--data", digits.test, "--json").data
    assert alone["agreement"] is None
    shown = deploykit("eval", fp16_copy, "--data", digits.test).out
    assert "give one with --reference" in shown
    against = ("eval", fp16_copy, "--data", digits.test, "--reference", kept, "--json")
    assert deploykit(*against).data["agreement"] >= 0.99


def test_a_reference_that_was_changed_is_no_reference(
    fp16_bundle: Path, fp16_copy: Path, digits: Digits
) -> None:
    with (fp16_copy / "model.onnx").open("ab") as file:
        file.write(b"more")
    called = deploykit("eval", fp16_bundle, "--data", digits.test, "--reference", fp16_copy)
    assert called.code == 1
    assert "digits-fp16: model.onnx has sha256" in called.err


def test_eval_shows_an_interval(fp16_bundle: Path, digits: Digits) -> None:
    shown = deploykit("eval", fp16_bundle, "--data", digits.test).out
    assert "597" in shown
    assert "95 % interval" in shown
    assert "reference's top-1" in shown


def test_doctor_names_what_is_missing() -> None:
    data = deploykit("doctor", "--json").data
    tasks = {ability["task"]: ability for ability in data["abilities"]}
    assert tasks["export definitions to ONNX"]["works"] is True
    assert data["packages"]["numpy"] == np.__version__
    for ability in tasks.values():
        assert ability["how"]
    shown = deploykit("doctor").out
    assert all(task in shown for task in tasks)


def test_a_cifar_network_keeps_its_accuracy_in_fp16(
    shared_data: Path, cifar_bundle: Path, tmp_path: Path
) -> None:
    with np.load(shared_data / "cifar10_test1000.npz") as data:
        few = {name: data[name][:500] for name in ("images", "labels")}
        np.savez(tmp_path / "few.npz", classes=data["classes"], **few)
    found = deploykit("eval", cifar_bundle, "--data", tmp_path / "few.npz", "--json").data
    assert found["count"] == 500
    assert found["agreement"] >= 0.998
    # torch has 0.910 on these images; FP16 may turn a near tie, one of them either way.
    assert found["top1"] == pytest.approx(0.910, abs=0.0021)
