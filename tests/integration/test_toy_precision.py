"""A precision that another package adds by one file, from the command line to production."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import deploykit as library
from deploykit.bundle.manifest import Bundle
from deploykit.core.errors import BundleError
from deploykit.core.plugs import plugs
from tests import own_files
from tests.cli import Called, deploykit
from tests.plugins import install_plug

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOY = """
from dataclasses import replace

from deploykit.core.precision import Precision
from deploykit.core.precision import FACTS as OWN
from deploykit.core.precision import Limits
from deploykit.precision import Converted

FACTS = replace(
    OWN["fp32"],
    name="toy16",
    help="Weights of 10 bits of mantissa.",
    weight_bits=16,
    is_source=False,
    limits=LIMITS,
)


class _Toy:
    def convert(self, reference, path, request, journal):
        import numpy as np
        import onnx_ir as ir

        from deploykit.comparison.validation import outputs_of, validate
        from deploykit.graph import read_model, write_model

        with journal.stage("convert to toy16"):
            model = read_model(reference.artifact.path)
            for value in model.graph.initializers.values():
                if value.dtype == ir.DataType.FLOAT:
                    bits = value.const_value.numpy().view(np.uint32) & np.uint32(0xFFFFE000)
                    value.const_value = ir.tensor(bits.view(np.float32), name=value.name)
            parents = (reference.artifact.sha256, *reference.artifact.parents)
            artifact = write_model(model, path, Precision("toy16"), parents)
        with journal.stage("validate toy16"), reference.runners.of_artifact(artifact) as runner:
            report = validate(
                outputs_of(runner, reference.batches),
                reference.outputs,
                precision=artifact.precision,
                names=("the toy16 graph", reference.made_by),
            )
            report.require_pass()
        judged = reference.batches, reference.outputs
        return Converted(artifact, (reference.report, report), {"bits": 10}, judged)


CONVERSION = _Toy()
"""
POSSIBLE = 'Limits(2e-2, 0.999, 1e-2, 0.98, "ten bits round as FP16 does")'
IMPOSSIBLE = 'Limits(0.0, 1.0, 0.0, 1.0, "nothing passes")'


@pytest.fixture
def plug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of the toy, after the test forgotten."""
    folder = tmp_path / "site"
    folder.mkdir()
    # A module of its own for each test: Python imports a name once.
    monkeypatch.delitem(sys.modules, "plugged_toy16", raising=False)
    source = TOY.replace("LIMITS", POSSIBLE)
    yield install_plug(folder, "precision", "toy16", source, monkeypatch)
    monkeypatch.undo()
    sys.modules.pop("plugged_toy16", None)
    plugs.cache_clear()


def export(folder: Path, *arguments: object) -> Called:
    (folder / "mine.onnx").write_bytes(own_files.old(13).SerializeToString())
    return deploykit("export", folder / "mine.onnx", "-o", folder / "bundle", *arguments)


def test_from_the_command_to_production(plug: Path, tmp_path: Path) -> None:
    called = export(tmp_path, "--precision", "toy16", "--backend", "none", "--json")
    assert called.code == 0, called.err
    assert called.data["precision"] == "toy16"
    assert called.data["conversion"] == {"bits": 10}
    assert called.data["validation"][1]["limits"]["reason"] == "ten bits round as FP16 does"
    made = Bundle.open(tmp_path / "bundle")
    assert made.manifest.precision == made.manifest.onnx.precision == "toy16"
    assert (made.folder / "reference.onnx").is_file()
    weights = [numpy_helper.to_array(one) for one in onnx.load(made.model_path).graph.initializer]
    floats = [one for one in weights if one.dtype == np.float32]
    assert floats
    assert not any((one.view(np.uint32) & 0x1FFF).any() for one in floats)

    assert deploykit("check", made.folder, "--json").data["ok"] is True
    with library.load(made.folder) as model:
        assert model.precision == "toy16"
        assert model.self_test().min_cosine > 0.999
    listed = deploykit("validate", made.folder, "--json")
    assert listed.data["validation"]["precision"] == "toy16"
    # Production reads the facts, and never what the conversion needs.
    program = (
        "import sys, deploykit\n"
        f"with deploykit.load({str(made.folder)!r}) as model:\n"
        "    model.self_test()\n"
        "print(model.precision.facts.weight_bits, 'plugged_toy16' in sys.modules,\n"
        "      'onnx' in sys.modules, 'deploykit.graph' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["16", "True", "False", "False"]


def test_its_limits_are_applied(plug: Path, tmp_path: Path) -> None:
    plug.write_text(TOY.replace("LIMITS", IMPOSSIBLE))
    called = export(tmp_path, "--precision", "toy16", "--backend", "none")
    assert called.code == 1
    assert "the toy16 graph does not compute what the original file computes" in called.err
    assert not (tmp_path / "bundle").exists()


def test_the_compiled_network_must_be_what_its_census_needs(plug: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: tensorrt-rtx-cu13")
    called = export(tmp_path, "--precision", "toy16", "--backend", "tensorrt-rtx", "--json")
    assert called.code == 0, called.err
    (engine,) = called.data["engines"]
    assert engine["precision"] == "toy16"
    assert engine["precision_census"].keys() >= {"CONVOLUTION FLOAT"}
    wrong = plug.read_text().replace(
        "is_source=False", 'is_source=False, census=OWN["fp16"].census'
    )
    plug.write_text(wrong)
    sys.modules.pop("plugged_toy16")
    other = ("--precision", "toy16", "--backend", "tensorrt-rtx", "-o", tmp_path / "other")
    called = export(tmp_path, *other)
    assert called.code == 1
    assert "asked for toy16, but 2 of 2 convolution and matrix layers are FP32" in called.err
    assert not (tmp_path / "other").exists()


def test_a_bundle_without_its_package_says_what_is_missing(plug: Path, tmp_path: Path) -> None:
    assert export(tmp_path, "--precision", "toy16", "--backend", "none").code == 0
    (plug.parent / "plugged_toy16-1.0.dist-info" / "entry_points.txt").unlink()
    plugs.cache_clear()
    with pytest.raises(BundleError, match="'toy16', known: fp32, fp16, bf16, int8, fp8"):
        Bundle.open(tmp_path / "bundle")


def test_bench_takes_it_by_name(plug: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.onnx").write_bytes(own_files.old(13).SerializeToString())
    asked = ("--precision", "int8,toy16", "--backend", "ort", "--batch", 1, "--filter", "none")
    called = deploykit("bench", tmp_path / "mine.onnx", *asked)
    assert called.code == 2
    assert "the cells are mine/ort/int8/b1, mine/ort/toy16/b1" in called.err


def test_names_that_are_none(plug: Path, tmp_path: Path) -> None:
    called = export(tmp_path, "--precision", "toy8")
    assert called.code == 2
    assert "unknown precision 'toy8'\ndid you mean: toy16" in called.err
    assert "all of them: fp32, fp16, bf16, int8, fp8, toy16" in called.err
    called = export(tmp_path, "--precision", "toy16", "--fp16")
    assert called.code == 2
    assert "--fp16 and --precision toy16 exclude each other: run export once for each" in called.err
