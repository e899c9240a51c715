from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from deploykit.core.errors import UnknownNameError, UsageError
from deploykit.models import get
from tests.unit.visualization.networks import Branches, network_of

if TYPE_CHECKING:
    from deploykit.visualization.layers import ShownNetwork


def resnet20() -> ShownNetwork:
    return network_of(get("resnet20").build(), 32)


def test_without_names_one_layer_of_each_resolution() -> None:
    network = resnet20()
    assert [layer.name for layer in network.chosen(())] == ["layer1", "layer2", "layer3"]
    assert network.last_map() == network.chosen(["layer3"])[0]


def test_at_most_four_resolutions_from_first_to_last() -> None:
    parts = [nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(6)]
    network = network_of(nn.Sequential(*parts), 64)
    assert [layer.name for layer in network.chosen(())] == ["0", "1", "3", "4"]


def test_a_pooling_is_no_layer_of_its_own() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Dropout(), nn.Conv2d(4, 4, 3))
    network = network_of(module, 16)
    assert [layer.name for layer in network.chosen(())] == ["0", "3"]


def test_an_unknown_layer_is_answered_with_close_ones() -> None:
    with pytest.raises(UnknownNameError) as raised:
        resnet20().chosen(["layer1.conv1"])
    assert str(raised.value).startswith(
        "unknown layer 'layer1.conv1'\ndid you mean: layer3.1.conv1, "
    )
    assert "all of them: conv1, bn1, " in str(raised.value)
    assert str(raised.value).endswith(" ... and 6 more")


def test_a_layer_that_is_called_several_times() -> None:
    with pytest.raises(UsageError, match=r"'layer1.0.relu' is called 2 times for one image"):
        resnet20().chosen(["layer1.0.relu"])


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 4, stride=4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.patches(x).flatten(2).transpose(1, 2)).mean(1)
        return found


def test_a_layer_of_tokens_has_no_units_to_show() -> None:
    with pytest.raises(UsageError, match=r"'norm' returns no map \(N, C, H, W\) or \(N, C\)"):
        network_of(Tokens(), 8).chosen(["norm"])


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_up_to_a_layer_is_what_the_whole_network_has_there() -> None:
    network = network_of(Branches(), 13, 17)
    (layer,) = network.chosen(["left"])
    images, kept = torch.randn(2, 3, 13, 17), []
    hook = network.part(layer).register_forward_hook(lambda _, __, out: kept.append(out))
    with torch.no_grad():
        network.network(images)
        hook.remove()
        torch.testing.assert_close(network.up_to(layer, images), kept[0])
