from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from deploykit.core.errors import UsageError
from deploykit.core.precision import Precision
from deploykit.core.progress import SilentProgress
from deploykit.core.serialization import Source, from_plain, to_plain
from deploykit.core.sizes import ShapeProfile
from deploykit.core.specs import ModelSpec, Preprocessing, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGE = TensorSpec("input", "float32", ("batch", 3, 8, 8))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("batch", 3, 8, 8), (5, 3, 8, 8)),
        ((2, 3, 8, 8), (2, 3, 8, 8)),
        (("n",), (5,)),
        ((), ()),
    ],
)
def test_the_batch_fills_the_first_open_dimension(
    shape: tuple[int | str, ...], expected: tuple[int, ...]
) -> None:
    spec = TensorSpec("t", "float32", shape)
    assert spec.with_batch(5) == expected


def test_another_open_dimension_needs_a_size() -> None:
    spec = TensorSpec("input", "float32", ("batch", 3, "height", 8))
    with pytest.raises(
        UsageError,
        match=r"^input \(batch, 3, height, 8\): height is open, and has no size here",
    ):
        spec.with_batch(1)
    assert spec.with_sizes({0: 2, 2: 6, 3: 7}) == (2, 3, 6, 8)


def test_a_tensor_spec_survives_json() -> None:
    assert from_plain(TensorSpec, json.loads(json.dumps(asdict(IMAGE))), Source("spec")) == IMAGE


@pytest.mark.parametrize(
    ("text", "expected"), [("1,8,32", (1, 8, 32)), ("4", (4, 4, 4)), (" 1, 1 ,2", (1, 1, 2))]
)
def test_a_profile_is_read_from_text(text: str, expected: tuple[int, int, int]) -> None:
    profile = ShapeProfile.parse(text)
    assert (profile.min_batch, profile.opt_batch, profile.max_batch) == expected


@pytest.mark.parametrize("text", ["", "a", "1,2", "1,2,3,4", "1,,3", "1.5", "1;2;3"])
def test_text_that_is_no_profile(text: str) -> None:
    with pytest.raises(UsageError, match=r"cannot read the batch profile .*\nexpected MIN,OPT,MAX"):
        ShapeProfile.parse(text)


@pytest.mark.parametrize("text", ["0", "-1", "8,4,32", "1,8,4", "0,1,2"])
def test_a_profile_out_of_order(text: str) -> None:
    with pytest.raises(UsageError, match="is not in order\nexpected 1 <= MIN <= OPT <= MAX"):
        ShapeProfile.parse(text)


@pytest.mark.parametrize(
    "spec",
    [
        Preprocessing(crop=(224, 224), resize=256),
        Preprocessing(crop=(224, 224), resize=(224, 192)),
        Preprocessing(
            crop=(32, 28), interpolation="bicubic", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
        ),
    ],
)
def test_preprocessing_survives_json(spec: Preprocessing) -> None:
    assert from_plain(Preprocessing, json.loads(json.dumps(to_plain(spec))), Source("spec")) == spec


def model_spec(builder: Callable[[], nn.Module]) -> ModelSpec:
    return ModelSpec(
        name="net",
        title="Net",
        paper="https://arxiv.org/abs/0000.00000",
        year=2000,
        inputs=(IMAGE,),
        outputs=(TensorSpec("logits", "float32", ("batch", 7)),),
        preprocessing=Preprocessing(crop=(8, 8)),
        parameters=1,
        multiply_adds=1,
        labels=None,
        torchvision=None,
        builder=builder,
    )


def test_a_model_spec_builds_anew_for_evaluation() -> None:
    spec = model_spec(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, 7)))
    first, second = spec.build(), spec.build()
    assert first is not second
    assert not any(module.training for module in first.modules())
    assert first(torch.zeros(2, 3, 8, 8)).shape == (2, spec.num_classes)


def test_a_spec_cannot_be_changed_and_ignores_its_builder_when_compared() -> None:
    spec = model_spec(nn.Identity)
    assert spec == model_spec(nn.Flatten)
    assert "builder" not in repr(spec)
    with pytest.raises(FrozenInstanceError):
        spec.name = "other"  # type: ignore[misc]  # that is the point


def test_a_precision_is_its_word() -> None:
    assert [str(precision) for precision in Precision] == ["fp32", "fp16", "bf16", "int8", "fp8"]
    assert Precision("int8") is Precision.INT8


def test_silent_progress_takes_every_report() -> None:
    with SilentProgress().step("anything") as task:
        task.update(1, 2, "detail")
        task.update(2)
