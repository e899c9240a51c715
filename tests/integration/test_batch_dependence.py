"""Networks in which the images of a batch change one another's answers: the export says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests import cli
from tests.integration.test_heads import export
from tests.small_tails import network, original, pictures

if TYPE_CHECKING:
    from pathlib import Path

SAID = "depend on the other images of its batch; alone it gets others"

LOGITS = "l = Gemm <transB = 1> (f, k5)"
FIRST = "a = Slice (l, zero, one, zero)"
DEPENDENT = {
    "softmax": f"{LOGITS} y = Softmax <axis = 0> (l)",
    "centred": f"{LOGITS} a = ReduceMean <keepdims = 1> (l, zero) y = Sub (l, a)",
    "to the first": f"{LOGITS} {FIRST} y = Sub (l, a)",
    "by the largest": f"{LOGITS} a = ReduceMax <keepdims = 1> (l, zero) y = Div (l, a)",
    "running sums": f"{LOGITS} y = CumSum (l, of_rows)",
    "of those behind": f"{LOGITS} y = CumSum <reverse = 1> (l, of_rows)",
    "attention": f"""{LOGITS} t = Transpose <perm = [1, 0]> (l) p = MatMul (l, t)
                     a = Softmax <axis = 1> (p) y = MatMul (a, l)""",
}
INDEPENDENT = {
    "logits": "y = Gemm <transB = 1> (f, k5)",
    "softmax": f"{LOGITS} y = Softmax <axis = 1> (l)",
    "turned twice": f"{LOGITS} a = Transpose <perm = [1, 0]> (l) y = Transpose <perm = [1, 0]> (a)",
}


def built(nodes: str, folder: Path) -> Path:
    constants = {"zero": np.array([0]), "one": np.array([1]), "of_rows": np.array(0)}
    return network(nodes, "float[N, 5] y", folder, "net", **constants)


def depends(model: Path, images: list[Path]) -> bool:
    """Whether the file answers otherwise to single images, on onnxruntime alone."""
    alone = np.concatenate([original(model, [image])[0] for image in images])
    return not np.allclose(alone, original(model, images)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["--fp32", "--fp16"])
@pytest.mark.parametrize("name", DEPENDENT)
def test_images_that_change_one_another_are_said_once(
    name: str, precision: str, tmp_path: Path
) -> None:
    model = built(DEPENDENT[name], tmp_path)
    assert depends(model, pictures(tmp_path / "images", 3))
    notes = export(model, precision)["notes"]
    assert len([note for note in notes if SAID in note]) == 1
    # It is no difference of rounding, which an engine would have or not have by what it fuses.
    assert not any("stores every value" in note for note in notes)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_images_that_do_not_are_not_mentioned(name: str, tmp_path: Path) -> None:
    model = built(INDEPENDENT[name], tmp_path)
    assert not depends(model, pictures(tmp_path / "images", 3))
    assert not any(SAID in note for note in export(model, "--fp32")["notes"])


@pytest.mark.parametrize("head", [(), ("--head", "raw")])
def test_another_output_that_changes_is_named(head: tuple[str, ...], tmp_path: Path) -> None:
    nodes = f"""y = Gemm <transB = 1> (f, k5) {LOGITS}
                a = ReduceMean <keepdims = 1> (l, zero) z = Sub (l, a)"""
    constants = {"zero": np.array([0])}
    model = network(nodes, "float[N, 5] y, float[N, 5] z", tmp_path, "net", **constants)
    options = head or ("--head-output", "y")
    (note,) = [each for each in export(model, *options)["notes"] if SAID in each]
    assert note.startswith("an image's values in 'z' depend on")


MODULE = """
import torch


class Centred(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, images):
        rows = self.conv(images).mean((2, 3))
        return self.head(rows - rows.mean(0, keepdim=True))


def net():
    torch.manual_seed(0)
    return Centred().eval()
"""


def test_a_module_whose_images_change_one_another(tmp_path: Path) -> None:
    source = tmp_path / "net.py"
    source.write_text(MODULE)
    called = cli.deploykit(
        "export", f"{source}:net", "--input-size", "16", "--backend", "none", "-o",
        tmp_path / "out", "--json",
    )  # fmt: skip
    assert called.code == 0, called.err
    assert len([note for note in called.data["notes"] if SAID in note]) == 1
