from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from deploykit.backends.eager import EagerRunner
from deploykit.core.errors import UsageError
from deploykit.core.specs import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

INPUTS = (TensorSpec("input", "float32", ("batch", 3, 2, 2)),)
OUTPUTS = (TensorSpec("logits", "float32", ("batch", 4)),)


def small_network() -> nn.Sequential:
    """Dropout and BatchNorm behave differently while they are trained."""
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 4))


def some_images(batch: int) -> NDArray[np.float32]:
    return np.random.default_rng(batch).normal(size=(batch, 3, 2, 2)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_computes_the_module_in_evaluation_mode(batch: int) -> None:
    network, images = small_network(), some_images(batch)
    linear = network[3]
    assert isinstance(linear, nn.Linear)
    weight, bias = linear.weight.detach().numpy(), linear.bias.detach().numpy()
    # A fresh BatchNorm has mean 0 and variance 1.
    expected = (images / np.sqrt(1 + 1e-5)).reshape(batch, 12) @ weight.T + bias
    with EagerRunner(network, INPUTS, OUTPUTS) as runner:
        logits = runner.run({"input": images})["logits"].astype(np.float32)
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_gives_plain_arrays_and_leaves_the_input_alone() -> None:
    images = some_images(2)
    kept = images.copy()
    runner = EagerRunner(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten()), INPUTS, OUTPUTS)
    logits = runner.run({"input": images})["logits"]
    assert type(logits) is np.ndarray
    np.testing.assert_array_equal(logits, np.maximum(images, 0).reshape(2, 12))
    np.testing.assert_array_equal(images, kept)


def test_takes_arrays_that_torch_itself_refuses() -> None:
    images = some_images(3)[::-1]
    images.setflags(write=False)
    runner = EagerRunner(nn.Flatten(), INPUTS, OUTPUTS)
    np.testing.assert_array_equal(runner.run({"input": images})["logits"], images.reshape(3, 12))


def test_a_timed_run_gives_the_same_outputs() -> None:
    images = {"input": some_images(2)}
    with EagerRunner(small_network(), INPUTS, OUTPUTS) as runner:
        outputs, times = runner.run_timed(images)
        np.testing.assert_array_equal(outputs["logits"], runner.run(images)["logits"])
    assert times.wall_ms > 0
    assert times.compute_ms is not None
    assert 0 < times.compute_ms <= times.wall_ms


def test_says_what_it_was_made_with() -> None:
    runner = EagerRunner(small_network(), INPUTS, OUTPUTS)
    assert (runner.inputs, runner.outputs) == (INPUTS, OUTPUTS)


def test_closing_twice_is_harmless_and_use_after_it_is_not() -> None:
    runner = EagerRunner(small_network(), INPUTS, OUTPUTS)
    with runner:
        runner.close()
    runner.close()
    with pytest.raises(UsageError, match=r"the runner is closed; open a new one"):
        runner.run({"input": some_images(1)})


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"image": some_images(1)}, r"the module was fed \['image'\], it takes \['input'\]"),
        (
            {"input": some_images(1).astype(np.float16)},
            r"'input' of the module was fed float16 \(1, 3, 2, 2\), it takes float32",
        ),
        ({"input": some_images(1)[0]}, r"float32 \(3, 2, 2\), it takes float32 \(batch, 3, 2, 2"),
    ],
    ids=["name", "dtype", "rank"],
)
def test_wrong_feeds_say_what_was_expected(
    feeds: dict[str, NDArray[np.generic]], message: str
) -> None:
    runner = EagerRunner(small_network(), INPUTS, OUTPUTS)
    with pytest.raises(UsageError, match=message):
        runner.run(feeds)
