"""Factories in a user's own Python file."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from deploykit.core.artifacts import sha256_of
from deploykit.core.choices import DefinitionChoices
from deploykit.core.errors import UnknownNameError, UsageError
from deploykit.sources.python_file import python_file_spec
from deploykit.sources.weights import build_with_weights

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.core.specs import ModelSpec

NETS = """
import torch
from torch import nn
from beside import WIDTH

class Head(nn.Module):
    def __init__(self, form="tensor"):
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3)
        self.fc = nn.Linear(WIDTH, 4)
        self.form = form

    def forward(self, images):
        features = self.conv(images).mean((2, 3))
        logits = self.fc(features)
        forms = {
            "tensor": logits,
            "dict": {"features": features, "logits": logits},
            "tuple": (logits, features),
            "maps first": [self.conv(images), logits],
            "no logits": {"scores": logits},
            "maps": self.conv(images),
            "classes": logits.argmax(1),
            "text": "cat",
        }
        return forms[self.form]

def pooled(size):
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * (size - 2) ** 2, 4))

def in_type(name):
    return Head().to(getattr(torch, name))

def fails():
    path = "weights.pth"
    raise FileNotFoundError(f"no {path}")

def no_module():
    return {"weights": 1}

LIMIT = 3
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WIDTH = 6\n", encoding="utf-8")
    path = tmp_path / "nets.py"
    path.write_text(NETS, encoding="utf-8")
    return path


def spec_of(nets: Path, factory: str, pixels: int | None = 16, **arguments: Any) -> ModelSpec:
    return python_file_spec(nets, factory, DefinitionChoices(None, pixels, arguments))


def test_says_where_everything_comes_from(nets: Path) -> None:
    spec = spec_of(nets, "Head")
    assert (spec.name, spec.title) == ("nets-Head", "Head of nets.py")
    assert spec.inputs[0].shape == ("batch", 3, 16, 16)
    assert spec.outputs[0].shape == ("batch", 4)
    assert spec.parameters == 3 * 6 * 9 + 6 + 6 * 4 + 4
    assert spec.source_sha256 == sha256_of(nets)
    assert spec.preprocessing_assumed
    _, record = build_with_weights(spec, None, 0)
    assert (record.source, record.sha256) == ("as nets.py:Head made them", sha256_of(nets))
    assert record.trained is None


def test_the_size_is_assumed_aloud(nets: Path) -> None:
    spec = spec_of(nets, "Head", None)
    assert spec.inputs[0].shape == ("batch", 3, 224, 224)
    assert spec.notes == ("an input of 224x224 is assumed; another: --input-size PX",)


def test_leaves_no_trace_in_the_interpreter(nets: Path) -> None:
    before, state = list(sys.path), torch.random.get_rng_state()
    spec_of(nets, "Head").build()
    assert sys.path == before
    spec_of(nets, "Head")
    python_file_spec(nets, "pooled", DefinitionChoices(None, 16, {"size": 16}))
    fresh = torch.random.get_rng_state()
    torch.random.set_rng_state(state)
    spec_of(nets, "Head")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.random.set_rng_state(fresh)


def test_what_a_factory_draws_follows_the_seed(nets: Path) -> None:
    first, again, other = (
        build_with_weights(spec_of(nets, "Head"), None, seed)[0].state_dict()["fc.weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("form", ["tensor", "dict", "tuple", "maps first"])
def test_finds_the_logits_in_what_is_returned(nets: Path, form: str) -> None:
    images = torch.randn(3, 3, 16, 16)
    plain, _ = build_with_weights(spec_of(nets, "Head"), None, 5)
    other, _ = build_with_weights(spec_of(nets, "Head", form=form), None, 5)
    with torch.no_grad():
        assert torch.equal(other(images), plain(images))


@pytest.mark.parametrize("form", ["tensor", "dict"])
def test_a_file_of_weights_fits_the_users_own_names(nets: Path, tmp_path: Path, form: str) -> None:
    trained = spec_of(nets, "Head").build()
    torch.save(trained.state_dict(), tmp_path / "mine.pth")
    loaded, record = build_with_weights(
        spec_of(nets, "Head", form=form), str(tmp_path / "mine.pth"), 0
    )
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(images), trained(images))
    assert record.trained is True


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64"])
def test_other_types_become_fp32(nets: Path, name: str) -> None:
    spec = spec_of(nets, "in_type", name=name)
    assert spec.notes == (f"weights of {name} became float32",)
    assert {parameter.dtype for parameter in spec.build().parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("classes", r"returns int64 \(2,\) for 2 images"),
        ("text", "returns a str for 2 images"),
    ],
)
def test_what_holds_no_logits_is_refused(nets: Path, form: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"nets.py:Head {said}\nexpected logits \\(2, classes\\)"):
        spec_of(nets, "Head", form=form)


def test_a_size_that_does_not_fit_is_refused(nets: Path) -> None:
    with pytest.raises(UsageError, match=r"does not take images \(2, 3, 24, 24\)\nRuntimeError: m"):
        spec_of(nets, "pooled", 24, size=16)


def test_a_factory_that_raises_is_quoted_with_its_line(nets: Path) -> None:
    said = re.escape('line 36 of nets.py: raise FileNotFoundError(f"no {path}")')
    with pytest.raises(UsageError, match=f"raised FileNotFoundError: no weights.pth\n{said}"):
        spec_of(nets, "fails")


def test_missing_arguments_are_named(nets: Path) -> None:
    expected = r"nets.py:pooled\(size\) cannot be called so: missing a required argument: 'size'"
    with pytest.raises(UsageError, match=expected):
        spec_of(nets, "pooled")


def test_unknown_arguments_are_named(nets: Path) -> None:
    with pytest.raises(UsageError, match="got an unexpected keyword argument 'depth'\ngive its ar"):
        spec_of(nets, "pooled", size=16, depth=3)


def test_no_module_is_refused(nets: Path) -> None:
    with pytest.raises(UsageError, match=r"no_module returned a dict\nexpected a torch.nn.Module"):
        spec_of(nets, "no_module")


def test_what_cannot_be_called_is_refused(nets: Path) -> None:
    with pytest.raises(UsageError, match=r"LIMIT of nets.py is a int, which cannot be called"):
        spec_of(nets, "LIMIT")


def test_an_unknown_factory_suggests_close_ones(nets: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean: pooled.*\nall of them: Head"):
        spec_of(nets, "poled")


def test_classes_are_the_factorys_own_argument(nets: Path) -> None:
    with pytest.raises(UsageError, match=r"--num-classes does not reach nets.py:Head\ngive its"):
        python_file_spec(nets, "Head", DefinitionChoices(num_classes=3))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no file .*none.py\nexpected path/to/file.py"):
        spec_of(tmp_path / "none.py", "small")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "import nowhere_at_all\n",
            "ModuleNotFoundError: No module named 'nowhere_at_all'\nline 1",
        ),
        ("x = 1\ny = (\n", "SyntaxError: '\\(' was never closed.*\nline 2"),
    ],
)
def test_a_file_that_cannot_be_imported(tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "nets.py").write_text(source, encoding="utf-8")
    with pytest.raises(UsageError, match=f"nets.py cannot be imported: {said}"):
        spec_of(tmp_path / "nets.py", "small")
