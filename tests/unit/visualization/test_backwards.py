"""DeconvNet, guided backpropagation and Grad-CAM against loops of numpy, and formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploykit.core.errors import UsageError
from deploykit.visualization.deconvnet import deconvnet, require_rules, without_rule
from deploykit.visualization.gradcam import grad_cam
from deploykit.visualization.guided import guided_backpropagation, has_rectifier
from deploykit.visualization.top_images import Peak
from tests.unit.visualization.networks import Plain, network_of, noise, seeded

if TYPE_CHECKING:
    from deploykit.visualization.layers import ShownNetwork
    from deploykit.visualization.tracing import TracedLayer

SIZE = 8
Array = np.ndarray


def layer(network: ShownNetwork, name: str) -> TracedLayer:
    (found,) = network.chosen([name])
    return found


def conv(x: Array, weight: Array, bias: Array) -> Array:
    """(C, H, W) by 3x3 filters with one pixel of padding, by loops."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    height, width = x.shape[1:]
    out = np.zeros((len(weight), height, width))
    for o in range(len(weight)):
        for y in range(height):
            for z in range(width):
                out[o, y, z] = (padded[:, y : y + 3, z : z + 3] * weight[o]).sum() + bias[o]
    return out


def transposed(signal: Array, weight: Array) -> Array:
    """Each output puts its filter where it came from."""
    height, width = signal.shape[1:]
    back = np.zeros((weight.shape[1], height + 2, width + 2))
    for o in range(len(weight)):
        for y in range(height):
            for z in range(width):
                back[:, y : y + 3, z : z + 3] += signal[o, y, z] * weight[o]
    inside: Array = back[:, 1:-1, 1:-1]
    return inside


def pool(x: Array) -> tuple[Array, Array]:
    """Maxima of 2x2, and switches: 1 where each maximum was."""
    channels, height, width = x.shape
    out, switches = np.zeros((channels, height // 2, width // 2)), np.zeros_like(x)
    for c in range(channels):
        for y in range(height // 2):
            for z in range(width // 2):
                block = x[c, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2]
                out[c, y, z] = block.max()
                at = np.unravel_index(block.argmax(), (2, 2))
                switches[c, 2 * y + at[0], 2 * z + at[1]] = 1
    return out, switches


def unpool(signal: Array, switches: Array) -> Array:
    spread: Array = signal.repeat(2, axis=1).repeat(2, axis=2)
    spread *= switches
    return spread


def by_hand(module: Plain, image: Array, place: tuple[int, int, int], *, guided: bool) -> Array:
    """The way back from one unit behind the second ReLU."""
    weights = [each.detach().numpy().astype(float) for each in module.parameters()]
    w1, b1, w2, b2 = weights[:4]
    first = conv(image, w1, b1)
    pooled, switches = pool(np.maximum(first, 0))
    second = conv(pooled, w2, b2)
    signal = np.zeros_like(second)
    signal[place] = 1 if guided else np.maximum(second, 0)[place]
    if guided:
        signal = signal * (second > 0)
    signal = unpool(transposed(np.maximum(signal, 0), w2), switches)
    if guided:
        signal = signal * (first > 0)
    return transposed(np.maximum(signal, 0), w1)


@pytest.mark.parametrize("guided", [False, True], ids=["deconvnet", "guided"])
@pytest.mark.parametrize("seed", [0, 1])
def test_two_layers_by_hand(seed: int, guided: bool) -> None:
    module = Plain()
    network = network_of(seeded(module, seed), SIZE)
    images = noise(3, SIZE, seed=seed)
    relu = layer(network, "relu")
    with torch.no_grad():
        maps = network.up_to(relu, torch.from_numpy(images)).numpy()
    channel = int(maps.max((0, 2, 3)).argmax())
    peaks = []
    for at in range(3):
        row, column = np.unravel_index(maps[at, channel].argmax(), maps.shape[2:])
        peaks.append(Peak(at, float(maps[at, channel].max()), int(row), int(column)))
    method = guided_backpropagation if guided else deconvnet
    found = method(network, relu, channel, images, peaks)
    assert max(peak.activation for peak in peaks) > 0
    for at, peak in enumerate(peaks):
        place = (channel, peak.row, peak.column)
        wanted = by_hand(module, images[at].astype(float), place, guided=guided)
        np.testing.assert_allclose(found[at], wanted, atol=1e-5)
    assert np.abs(found).max() > 0


def test_one_convolution_gives_back_its_filter() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    network = network_of(seeded(module), 5)
    image = noise(1, 5)
    with torch.no_grad():
        maps = module(torch.from_numpy(image))[0, 1].numpy()
    row, column = (int(each) for each in np.unravel_index(maps.argmax(), maps.shape))
    found = deconvnet(network, layer(network, "1"), 1, image, [Peak(0, 0.0, row, column)])[0]
    wanted = np.zeros((3, 5, 5))
    weight = module[0].weight.detach().numpy()[1]  # type: ignore[operator]
    wanted[:, row : row + 3, column : column + 3] = weight * maps.max()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(3)
        self.out = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.bn(self.conv(x)) + x)
        return found


def test_a_sum_and_batch_normalisation_are_passed_to_both_sides() -> None:
    module = Residual()
    network = network_of(seeded(module), 5)
    image, bn = noise(1, 5), module.bn
    out = layer(network, "out")
    found = deconvnet(network, out, 0, image, [Peak(0, 0.0, 2, 2)])[0]
    value = float(module(torch.from_numpy(image))[0, 0, 2, 2])
    variance = np.asarray(bn.running_var)
    scale = bn.weight.detach().numpy() / np.sqrt(variance + bn.eps)
    wanted = np.zeros((3, 5, 5))
    wanted[:, 1:4, 1:4] = module.conv.weight.detach().numpy()[0] * scale[0]
    wanted[0, 2, 2] += 1
    np.testing.assert_allclose(found, wanted * value, atol=1e-5)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.out = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        found: Tensor = self.out(x * torch.sigmoid(x))
        return found


def test_no_rule_for_a_gate_and_guided_is_offered() -> None:
    network = network_of(seeded(Gate()), 5)
    out = layer(network, "out")
    assert set(without_rule(network, out)) == {"a product of two activations", "sigmoid"}
    assert without_rule(network, layer(network, "conv")) == ()
    with pytest.raises(UsageError, match=r"DeconvNet has no rule for .*before 'out'\n.*\n.*guided"):
        require_rules(network, out)
    assert not has_rectifier(network, out)
    image = noise(1, 5)
    found = guided_backpropagation(network, out, 1, image, [Peak(0, 0.0, 1, 2)])
    leaf = torch.from_numpy(image).requires_grad_()
    (wanted,) = torch.autograd.grad(network.network(leaf)[0, 1, 1, 2], leaf)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)


def test_a_scaling_by_a_constant_has_a_rule() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.out = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.out(2 * self.conv(x) / 3)
            return found

    network = network_of(Scaled(), 5)
    assert without_rule(network, layer(network, "out")) == ()


def test_no_record_of_gradients_is_told() -> None:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                found: Tensor = self.conv(x)
            return found

    network = network_of(Closed(), 5)
    with pytest.raises(UsageError, match="keeps no record of gradients"):
        without_rule(network, layer(network, "conv"))


@pytest.mark.parametrize("classes", [None, (2, 0, 1)])
def test_grad_cam_by_its_formula(classes: tuple[int, ...] | None) -> None:
    module = Plain()
    network = network_of(seeded(module), SIZE)
    images = noise(3, SIZE)
    found, outputs = grad_cam(network, layer(network, "relu"), images, classes)
    for at, image in enumerate(torch.from_numpy(images)):
        first = torch.relu(module.conv1(image[None]))
        maps = torch.relu(module.conv2(torch.nn.functional.max_pool2d(first, 2)))
        maps = maps.detach().requires_grad_()
        logits = module.head(maps.mean((2, 3)))[0]
        np.testing.assert_allclose(outputs[at], logits.detach().numpy(), atol=1e-5)
        answer = int(logits.argmax()) if classes is None else classes[at]
        (gradient,) = torch.autograd.grad(logits[answer], maps)
        alpha = gradient.numpy()[0].mean((1, 2))
        wanted = np.maximum((alpha[:, None, None] * maps.detach().numpy()[0]).sum(0), 0)
        np.testing.assert_allclose(found[at], wanted, atol=1e-5)
    assert found.shape == (3, SIZE // 2, SIZE // 2)


def test_grad_cam_needs_a_value_per_class() -> None:
    network = network_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 5)
    with pytest.raises(UsageError, match=r"Grad-CAM needs a value per class.*\(1, 4, 3, 3\)"):
        grad_cam(network, layer(network, "0"), noise(1, 5))
