"""A bundle on a CPU: the form that rounds, the plain one, and what is said of either."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

import deploykit
from deploykit.bundle.manifest import CPU_MODEL, Bundle
from deploykit.core.errors import IntegrityError
from deploykit.core.precision import Precision
from deploykit.exporting.steps import ExportOptions, export_bundle
from tests import cli
from tests.graphs import graph, normal, run_reference, save

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIZE = 16
NETWORK = """net (float[N,3,16,16] x) => (float[N,5] y) {
    [conv] c = Conv <pads = [1,1,1,1]> (x, w)
    [relu] r = Relu (c)
    [pool] p = GlobalAveragePool (r)
    [flat] f = Flatten (p)
    [head] y = Gemm <transB = 1> (f, h)
}"""


def weights() -> dict[str, NDArray[np.generic]]:
    return {"w": normal(8, 3, 3, 3), "h": normal(5, 8, seed=1)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpu")
    save(graph(NETWORK, weights()), folder / "net.onnx")
    options = ExportOptions(Precision.FP16, backend="none", output=folder / "bundle")
    return export_bundle(str(folder / "net.onnx"), options).bundle.folder


def test_the_form_for_cpus_is_named_by_the_manifest(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert CPU_MODEL in opened.manifest.files
    assert opened.on_cpu().name == "model.cpu.onnx (rounds where an engine rounds)"
    assert opened.on_cpu(fast=True).name == "model.onnx (in FP32 arithmetic, as asked)"
    (bundle / CPU_MODEL).rename(bundle / "away")
    assert (
        opened.on_cpu().name
        == "model.onnx (in FP32 arithmetic, for the bundle has no model.cpu.onnx)"
    )
    assert opened.changed_files() == []
    (bundle / "away").rename(bundle / CPU_MODEL)


def test_a_cpu_gives_numbers_that_fp16_has(bundle: Path) -> None:
    """The reference evaluator computes the FP16 file in FP16; plain onnxruntime does not."""
    images = normal(4, 3, SIZE, SIZE, seed=2)
    expected = run_reference(onnx.load(bundle / "model.onnx"), {"x": images})["y"]
    with deploykit.load(bundle, device="cpu") as model:
        assert "model.cpu.onnx (rounds where an engine rounds)" in model.choice
        rounded = np.asarray(model.run(images))
    with deploykit.load(bundle, device="cpu", fast=True) as model:
        assert "model.onnx (in FP32 arithmetic, as asked)" in model.choice
        plain = np.asarray(model.run(images))
    assert np.array_equal(rounded, rounded.astype(np.float16))
    assert not np.array_equal(plain, rounded)
    scale = np.abs(expected).max()
    assert np.abs(rounded - expected).max() <= 4 * 2.0**-11 * scale


def test_commands_say_which_one_ran(bundle: Path, tmp_path: Path) -> None:
    checked = cli.deploykit("check", bundle, "--json")
    assert checked.data["golden"] == "model.cpu.onnx (rounds where an engine rounds)"
    fast = cli.deploykit("check", bundle, "--fast", "--json")
    assert fast.data["golden"] == "model.onnx (in FP32 arithmetic, as asked)"
    validated = cli.deploykit("validate", bundle, "--json")
    assert validated.data["notes"][-1] == f"the CPU rounds where an engine rounds in {bundle}"
    validated = cli.deploykit("validate", bundle, "--fast", "--json")
    assert validated.data["notes"][-1] == f"the CPU computes in FP32, as asked, in {bundle}"
    np.savez(
        tmp_path / "set.npz", images=np.zeros((4, SIZE, SIZE, 3), np.uint8), labels=[0, 1, 2, 3]
    )
    found = cli.deploykit("eval", bundle, "--data", tmp_path / "set.npz", "--json")
    assert found.data["graph"] == "model.cpu.onnx (rounds where an engine rounds)"


def test_a_changed_form_is_not_run(bundle: Path, tmp_path: Path) -> None:
    other = shutil.copytree(bundle, tmp_path / "other")
    (other / CPU_MODEL).write_bytes((bundle / "model.onnx").read_bytes())
    with pytest.raises(IntegrityError, match=r"model\.cpu\.onnx has sha256"):
        deploykit.load(other, device="cpu")


def test_an_fp32_bundle_has_none(tmp_path: Path) -> None:
    save(graph(NETWORK, weights()), tmp_path / "net.onnx")
    options = ExportOptions(backend="none", output=tmp_path / "bundle")
    opened = export_bundle(str(tmp_path / "net.onnx"), options).bundle
    assert not (opened.folder / CPU_MODEL).exists()
    assert opened.on_cpu().name == "model.onnx"


def planted(body: str, constants: dict[str, float]) -> tuple[str, dict[str, NDArray[np.generic]]]:
    """The network with ``body`` between its convolution ``r`` and the pooling of ``q``."""
    text = NETWORK.replace("GlobalAveragePool (r)", "GlobalAveragePool (q)")
    text = text.replace("    [pool]", f"    {body}\n    [pool]")
    numbers = {name: np.array(value, np.float32) for name, value in constants.items()}
    return text, {**weights(), **numbers}


# One fault of each kind of operator is in test_planted_faults.py.
FAULTS = {
    "a cube": ("[cube] q = Pow (r, three)", {"three": 3.0}),
    "a product of three": ("[two] t = Mul (r, r) [three] q = Mul (t, r)", {}),
    "a root with an epsilon of 1e-8": (
        "[z] z = Sub (r, r) [eps] e = Add (z, tiny) [root] s = Sqrt (e) [div] q = Div (r, s)",
        {"tiny": 1e-8},
    ),
    "a logarithm": (
        "[z] z = Mul (r, tiny) [eps] e = Add (z, tiny) [log] q = Log (e)",
        {"tiny": 1e-8},
    ),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_planted_overflow_or_underflow_is_kept_out_of_fp16(fault: str, tmp_path: Path) -> None:
    """What an engine stores in FP16 stays finite and close, by the reference evaluator."""
    text, constants = planted(*FAULTS[fault])
    original = save(graph(text.replace(") [", ")\n    ["), constants), tmp_path / "net.onnx")
    options = ExportOptions(Precision.FP16, backend="none", output=tmp_path / "bundle")
    made = export_bundle(str(original), options).bundle
    kept = made.manifest.conversion["kept_fp32"]
    assert kept
    images = np.load(made.folder / "golden.npz")["input"]
    expected = run_reference(onnx.load(original), {"x": images})["y"]
    with np.errstate(all="ignore"):
        got = run_reference(onnx.load(made.folder / "model.onnx"), {"x": images})["y"]
    assert np.isfinite(got).all()
    assert np.abs(got - expected).max() <= 0.02 * np.abs(expected).max()


def test_inspect_keeps_what_an_export_keeps(tmp_path: Path) -> None:
    """The sum alone is too large here: no value comes near the end of FP16's range."""
    body = "[up] u = Mul (r, big) [window] q = AveragePool <kernel_shape = [8,8]> (u)"
    text, constants = planted(body, {"big": 600.0})
    original = save(graph(text.replace(") [", ")\n    ["), constants), tmp_path / "net.onnx")
    options = ExportOptions(Precision.FP16, backend="none", output=tmp_path / "bundle")
    kept = export_bundle(str(original), options).bundle.manifest.conversion["kept_fp32"]
    assert "more than an FP16 accumulator holds" in kept["window"]
    called = cli.deploykit("inspect", original, "--fp16", "--json")
    nodes = {node["name"]: node for node in called.data["precision"]["nodes"]}
    assert nodes["window"]["precision"] == "fp32"
    assert nodes["window"]["reason"] == kept["window"]
