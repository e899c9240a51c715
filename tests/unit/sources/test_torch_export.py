from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import ControlFlowError, ExportError
from deploykit.core.precision import Precision
from deploykit.core.specs import ModelSpec, Preprocessing, TensorSpec
from deploykit.graph import OPSET
from deploykit.sources.torch_export import EXPORTERS, Exporter, export_module
from tests.graphs import normal, run_ort

if TYPE_CHECKING:
    from collections.abc import Callable


class Tiny(nn.Module):
    """Every kind of layer of a small classifier, with a shared ReLU and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8))
        self.drop = nn.Dropout()
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.conv(x)))
        x = self.relu(self.block(x) + x)
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
        out: torch.Tensor = self.head(self.drop(x))
        return out


class FixedBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1)[:, :5] + 1


class Branching(nn.Module):
    """Looks at its data, which torch.export refuses and tracing follows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if x.sum() > 1 else x + 1
        return y.flatten(1)[:, :5]


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no forward pass today\nsecond line")


def spec_of(builder: Callable[[], nn.Module]) -> ModelSpec:
    return ModelSpec(
        name="tiny",
        title="Tiny",
        paper="",
        year=2000,
        inputs=(TensorSpec("input", "float32", ("batch", 3, 8, 8)),),
        outputs=(TensorSpec("logits", "float32", ("batch", 5)),),
        preprocessing=Preprocessing(crop=(8, 8)),
        parameters=0,
        multiply_adds=0,
        labels=None,
        torchvision=None,
        builder=builder,
    )


def tiny() -> nn.Module:
    """A network whose running statistics are not the initial ones."""
    torch.manual_seed(0)
    module = Tiny().train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(4, 3, 8, 8))
    return module.eval()


def exported(module: nn.Module, path: Path, exporter: Exporter) -> onnx.ModelProto:
    export_module(spec_of(lambda: module), module, path, exporter)
    return onnx.load(path)


class Export:
    """One export by one exporter, which several tests look at."""

    def __init__(self, exporter: Exporter, folder: Path) -> None:
        self.exporter = exporter
        self.module = tiny()
        self.path = folder / "model.onnx"
        self.artifact = export_module(spec_of(tiny), self.module, self.path, exporter).artifact
        self.model = onnx.load(self.path)


@pytest.fixture(scope="module", params=EXPORTERS)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return Export(request.param, tmp_path_factory.mktemp("export"))


def test_the_artifact_describes_the_file(done: Export) -> None:
    artifact = done.artifact
    assert artifact.sha256 == sha256_of(done.path)
    assert (artifact.precision, artifact.opset, artifact.parents) == (Precision.FP32, OPSET, ())
    assert artifact.inputs == (TensorSpec("input", "float32", ("batch", 3, 8, 8)),)
    assert artifact.outputs == (TensorSpec("logits", "float32", ("batch", 5)),)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_graph_computes_what_eager_computes(done: Export, batch: int) -> None:
    images = normal(batch, 3, 8, 8, seed=batch)
    with torch.no_grad():
        expected = done.module(torch.from_numpy(images)).numpy()
    got = run_ort(done.model, {"input": images})["logits"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_names_follow_the_modules_and_batchnorm_is_folded(done: Export) -> None:
    names = [node.name for node in done.model.graph.node]
    kinds = {node.op_type for node in done.model.graph.node}
    assert len(set(names)) == len(names)
    assert {"Conv", "Gemm"} <= kinds
    assert not {"BatchNormalization", "Dropout", "Identity", "Constant"} & kinds
    assert "head/Gemm" in names
    assert [value.name for value in done.model.graph.input] == ["input"]
    assert [value.name for value in done.model.graph.output] == ["logits"]
    if done.exporter == "torch.export":
        assert [name for name in names if name.endswith("/Conv")] == ["conv/Conv", "block.0/Conv"]


def test_the_module_stays_as_it_was(done: Export) -> None:
    assert not any(child.training for child in done.module.modules())
    assert all(parameter.requires_grad for parameter in done.module.parameters())
    before = tiny().state_dict()
    for name, value in done.module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_no_local_path_is_in_the_file(done: Export) -> None:
    content = done.path.read_bytes()
    local = (Path.home(), Path(__file__).parents[3], done.path.parent)
    for word in (".py", "File ", "/home", "site-packages", *map(str, local)):
        assert word.encode() not in content


EXPORT = """
import sys
from pathlib import Path
from deploykit.sources.torch_export import export_module as export
from tests.unit.sources.test_torch_export import spec_of, tiny
for exporter in sys.argv[2:]:
    print(exporter, export(spec_of(tiny), tiny(), Path(sys.argv[1]), exporter).artifact.sha256)
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hash of what another process exports, by exporter."""
    path = tmp_path_factory.mktemp("elsewhere") / "other.onnx"
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, str(path), *EXPORTERS],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split() for line in done.stdout.splitlines())


def test_the_same_module_gives_the_same_file_in_every_process(
    done: Export, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    again = export_module(spec_of(tiny), tiny(), tmp_path / "again.onnx", done.exporter)
    assert again.artifact.sha256 == elsewhere[done.exporter] == done.artifact.sha256


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_module_that_fixes_its_batch_is_refused(tmp_path: Path, exporter: Exporter) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(ExportError, match="tiny") as caught:
        exported(FixedBatch().eval(), path, exporter)
    assert len(str(caught.value).splitlines()) <= 3
    assert not path.exists()


def test_a_batch_that_is_fixed_silently_is_seen_in_the_graph(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError,
        match=r"^torchscript fixed the batch of 'logits' of tiny to .*\nthe definition must not",
    ):
        exported(FixedBatch().eval(), tmp_path / "m.onnx", "torchscript")


def test_a_decision_by_values_is_shown_with_its_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = (
        r"^tiny decides by the values of its input, which no graph can\n"
        r"line \d+ of test_torch_export.py, in forward: y = x if x.sum\(\) > 1 else x \+ 1\n"
        r"compute both ways and choose with torch.where"
    )
    with pytest.raises(ControlFlowError, match=expected) as caught:
        exported(Branching().eval(), tmp_path / "m.onnx", "torch.export")
    assert caught.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")  # torch prints the whole graph


def test_the_other_exporter_may_take_what_the_first_refuses(tmp_path: Path) -> None:
    model = exported(Branching().eval(), tmp_path / "m.onnx", "torchscript")
    assert [value.name for value in model.graph.output] == ["logits"]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_module_that_fails_gives_the_exporters_own_words(
    tmp_path: Path, exporter: Exporter
) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(ExportError, match=f"^{exporter} cannot export tiny\n\\w+: ") as caught:
        exported(Failing().eval(), path, exporter)
    *_, reason, line = str(caught.value).splitlines()
    assert reason == "RuntimeError: no forward pass today"
    assert re.fullmatch(
        r"line \d+ of test_torch_export.py, in forward: raise RuntimeError\(.*", line
    )
    assert not path.exists()


def test_an_exporter_that_returns_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any, **__: Any) -> None:
        return None

    monkeypatch.setattr(torch.onnx, "export", nothing)
    with pytest.raises(ExportError, match="cannot export tiny\nExportError: the exporter returned"):
        exported(tiny(), tmp_path / "m.onnx", "torch.export")


def test_an_error_without_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ExportError, match=r"\nNotImplementedError: no message\nline \d+ of"):
        exported(tiny(), tmp_path / "m.onnx", "torchscript")


class Guarded(nn.Module):
    """Features that are 0 in a black image, and what keeps that from dividing or a logarithm."""

    def __init__(self, kind: str, eps: float, *, stored: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 5)
        self.kind = kind
        self.eps: Any = eps
        if stored:
            self.register_buffer("small", torch.tensor([eps]))
            self.eps = self.small

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        v = torch.relu(self.conv(x))
        if self.kind == "length":
            v = v / (v.pow(2).sum(1, keepdim=True).sqrt() + self.eps)
        elif self.kind == "square":
            v = v * torch.rsqrt(v.pow(2).mean(1, keepdim=True) + self.eps)
        else:
            v = torch.log(self.eps + v)
        logits: torch.Tensor = self.head(v.mean((2, 3)))
        return logits


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("eps", [1e-12, 1e-8, 1e-7])
@pytest.mark.parametrize("kind", ["length", "square", "logarithm"])
def test_small_numbers_that_guard_stay(
    kind: str, eps: float, exporter: Exporter, tmp_path: Path
) -> None:
    """onnxscript's rules take all up to 1e-8 for 0; only a black image shows it."""
    module = Guarded(kind, eps).eval()
    model = exported(module, tmp_path / "model.onnx", exporter)
    images = np.stack([np.zeros((3, 8, 8), np.float32), normal(3, 8, 8)])
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    got = run_ort(model, {"input": images})["logits"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_guard_that_is_a_buffer_stays(tmp_path: Path) -> None:
    module = Guarded("square", 1e-9, stored=True).eval()
    model = exported(module, tmp_path / "model.onnx", "torch.export")
    images = np.zeros((1, 3, 8, 8), np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run_ort(model, {"input": images})["logits"], expected, atol=1e-5)
