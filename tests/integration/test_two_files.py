"""A classifier of kilobytes goes the way of those beyond 2 GiB: weights in a file of their own."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

import deploykit as package
from deploykit import graph
from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.bundle.manifest import MODEL, REFERENCE, Bundle
from deploykit.core.errors import IntegrityError
from tests.bundles import write_classifier
from tests.cli import deploykit
from tests.graphs import normal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from deploykit.core.artifacts import EngineRecord

LIMIT = 7000
"""Bytes: the FP32 form of the classifier has more, its FP16 forms fewer."""


def defaults_of(function: Callable[..., object]) -> dict[str, Any]:
    """The values of keyword arguments that a caller leaves out."""
    defaults: dict[str, Any] | None = getattr(function, "__kwdefaults__", None)
    assert defaults is not None
    return defaults


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles ``fp32`` and ``fp16`` of a file that keeps its weights in ``given.bin``."""
    folder = tmp_path_factory.mktemp("two-files")
    plain = onnx.load(write_classifier(folder / "plain.onnx", channels=64))
    onnx.save(
        plain,
        folder / "given.onnx",
        save_as_external_data=True,
        location="given.bin",
        size_threshold=1024,
    )
    with pytest.MonkeyPatch.context() as patch:
        # The defaults, not the functions: others may have imported these already.
        patch.setitem(defaults_of(graph.read_model), "mapped_bytes", 0)
        patch.setitem(defaults_of(graph.write_model), "limit", LIMIT)
        for precision in ("fp32", "fp16"):
            called = deploykit(
                "export",
                folder / "given.onnx",
                f"--{precision}",
                *("--backend", "none", "-o", folder / precision),
            )
            assert called.code == 0, called.err
    return folder


def logits_of(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    with OrtRunner(path, GraphOptions(threads=1)) as runner:
        return runner.run({"input": normal(2, 3, 8, 8, seed=8)})["logits"].astype(np.float32)


def copy_of(bundle: Path, folder: Path) -> Path:
    return shutil.copytree(bundle, folder / bundle.name)


def changed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def test_a_bundle_lists_the_weights_beside_its_graph(exported: Path) -> None:
    beside = {"fp32": f"{MODEL}.data", "fp16": f"{REFERENCE}.data"}
    for precision, name in beside.items():
        bundle = Bundle.open(exported / precision)
        assert [file for file in bundle.manifest.files if file.endswith(".data")] == [name]
        assert deploykit("check", bundle.folder).code == 0


def test_both_precisions_compute_what_the_file_computes(exported: Path) -> None:
    expected = logits_of(exported / "plain.onnx")
    exact = logits_of(exported / "fp32" / MODEL)
    np.testing.assert_allclose(exact, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(logits_of(exported / "fp16" / REFERENCE), exact)
    half = logits_of(exported / "fp16" / MODEL)
    assert not np.array_equal(half, exact)
    np.testing.assert_allclose(half, exact, atol=5e-3 * np.abs(exact).max())


def test_a_bundle_does_not_need_what_it_was_made_from(exported: Path, tmp_path: Path) -> None:
    bundle = copy_of(exported / "fp32", tmp_path)
    assert deploykit("check", bundle).code == 0
    np.testing.assert_array_equal(logits_of(bundle / MODEL), logits_of(exported / "fp32" / MODEL))


def test_changed_weights_are_found(exported: Path, tmp_path: Path) -> None:
    bundle = copy_of(exported / "fp32", tmp_path)
    with package.load(bundle, device="cpu") as classifier:
        assert classifier.choice.startswith(f"{MODEL} on onnxruntime")
    changed(bundle / f"{MODEL}.data")
    called = deploykit("check", bundle, "--json")
    assert called.code == 1
    (problem,) = called.data["problems"]
    assert problem.startswith(f"{MODEL}.data has sha256 ")
    with pytest.raises(IntegrityError, match=rf"fp32: {MODEL}\.data has sha256"):
        package.load(bundle, device="cpu")
    (bundle / f"{MODEL}.data").unlink()
    with pytest.raises(IntegrityError, match=rf"fp32: {MODEL}\.data is missing"):
        package.load(bundle, device="cpu")


def test_the_reference_may_be_deleted_with_its_weights(exported: Path, tmp_path: Path) -> None:
    bundle = copy_of(exported / "fp16", tmp_path)
    for name in (REFERENCE, f"{REFERENCE}.data"):
        (bundle / name).unlink()
        assert deploykit("check", bundle).code == 0
    changed(exported / "fp16" / f"{REFERENCE}.data")
    called = deploykit("check", exported / "fp16", "--json")
    assert called.data["problems"][0].startswith(f"{REFERENCE}.data has sha256 ")
    changed(exported / "fp16" / f"{REFERENCE}.data")


def test_the_engine_of_two_files_is_that_of_one(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: tensorrt-rtx-cu13")
    one, two = tmp_path / "one", copy_of(exported / "fp32", tmp_path)
    called = deploykit("export", exported / "plain.onnx", "--backend", "none", "-o", one)
    assert called.code == 0, called.err
    assert f"{MODEL}.data" not in Bundle.open(one).manifest.files
    engines: list[EngineRecord] = []
    for bundle in (one, two):
        target = ("--backend", "tensorrt-rtx", "--compute-capability", "8.9")
        assert deploykit("build", bundle, *target).code == 0
        engines += Bundle.open(bundle).manifest.engines
    assert engines[0].sha256 == engines[1].sha256
    assert engines[0].precision_census == engines[1].precision_census
    assert deploykit("check", two).code == 0
