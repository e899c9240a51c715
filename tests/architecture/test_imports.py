"""The import rules of the package, in a bare process and over the whole source."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "onnx", "onnx_ir", "onnxruntime", "tensorrt_rtx", "PIL")


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "statement",
    [
        "import deploykit",
        "import deploykit.cli",
        (
            "from click.testing import CliRunner; from deploykit.cli import main\n"
            "assert CliRunner().invoke(main, ['--help']).exit_code == 0"
        ),
        (
            "from click.testing import CliRunner; from deploykit.cli import main\n"
            "assert CliRunner().invoke(main, ['list', '--json']).exit_code == 0"
        ),
    ],
    ids=["package", "cli", "help", "list"],
)
def test_loads_no_heavy_package(statement: str) -> None:
    assert modules_after(statement).isdisjoint((*HEAVY, "numpy"))


def test_check_needs_no_export_tools() -> None:
    loaded = modules_after("import deploykit.pipeline.check")
    assert loaded.isdisjoint({"torch", "torchvision", "onnx", "onnx_ir", "click"})


def test_layers_are_kept() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
