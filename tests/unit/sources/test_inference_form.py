"""Networks of timm that are trained with more than they run with."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from timm.layers import ConvNormAct
from timm.models import byobnet, fastvit, repvit, resnet
from torch import Tensor, nn

from deploykit.core.errors import ExportError
from deploykit.sources.logits import LogitsOf
from deploykit.sources.torch_export import inference_form
from deploykit.sources.untrained import draw_values, pink_noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SIDE = 32
CLASSES = 5


def byob(kind: str, **values: Any) -> nn.Module:
    """The network of RepVGG ("rep") or MobileOne ("one"), of two blocks: one has a skip branch."""
    blocks = tuple(byobnet.ByoBlockCfg(type=kind, d=1, c=8, s=s, **values) for s in (2, 1))
    config = byobnet.ByoModelCfg(blocks=blocks, stem_type=kind, stem_chs=8, stem_pool=None)
    network: nn.Module = byobnet.ByobNet(config, num_classes=CLASSES)
    return network


def plain() -> nn.Module:
    """A network of timm that runs as it was trained."""
    network: nn.Module = resnet.ResNet(resnet.BasicBlock, (1, 1, 1, 1), channels=(8, 8, 8, 8))
    return network


def fast_vit() -> nn.Module:
    network: nn.Module = fastvit.FastVit(
        layers=(1, 1), embed_dims=(8, 16), token_mixers=("repmixer",) * 2, mlp_ratios=(2, 2),
        downsamples=(False, True), se_downsamples=(False,) * 2, pos_embs=(None,) * 2,
        num_classes=CLASSES,
    )  # fmt: skip
    return network


def rep_vit() -> nn.Module:
    network: nn.Module = repvit.RepVit(embed_dim=(8, 16), depth=(1, 1), num_classes=CLASSES)
    return network


def drawn(make: Callable[[], nn.Module]) -> nn.Module:
    """With statistics and weights under which every branch says something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = make()
        draw_values(network.eval(), (SIDE, SIDE))
    return network


def images() -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return pink_noise((SIDE, SIDE))


def answers(network: nn.Module) -> NDArray[np.float32]:
    with torch.no_grad():
        result: NDArray[np.float32] = network(images()).numpy()
    return result


@pytest.mark.parametrize(
    ("make", "merged"),
    [
        (lambda: byob("rep"), ("conv_1x1", "identity")),
        (lambda: byob("one", block_kwargs={"num_conv_branches": 2}), ("conv_scale", "identity")),
        (fast_vit, ("conv_scale", "identity", ".norm.")),
        (rep_vit, ("token_mixer.conv1.", "head_dist", ".bn.")),
    ],
    ids=["RepVGG", "MobileOne", "FastViT", "RepViT"],
)
def test_a_fused_copy_computes_the_same_with_less(
    make: Callable[[], nn.Module], merged: tuple[str, ...]
) -> None:
    network = drawn(make)
    before, state = answers(network), {k: v.clone() for k, v in network.state_dict().items()}
    form = inference_form(network)
    assert form is not None
    after = answers(form.module)
    assert np.std(before, axis=0).max() > 0.02 * np.abs(before).max()  # it tells images apart
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())
    names = list(form.module.state_dict())
    for part in merged:
        assert any(part in name for name in state), part
        assert not any(part in name for name in names), part
    assert not any(module.training for module in form.module.modules())
    # The user's own network is as it was.
    np.testing.assert_array_equal(answers(network), before)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_the_kernel_is_the_sum_of_the_branches() -> None:
    network = drawn(partial(byob, "rep"))
    form = inference_form(network)
    assert form is not None
    block: Any = network.get_submodule("stages.1.0")
    expected = scale(block.conv_kxk.bn) * weight(block.conv_kxk)
    expected[:, :, 1:2, 1:2] += scale(block.conv_1x1.bn) * weight(block.conv_1x1)
    expected[:, :, 1, 1] += np.diag(scale(block.identity)[:, 0, 0, 0])
    fused = form.module.get_submodule("stages.1.0.reparam_conv")
    np.testing.assert_allclose(weight(fused), expected, rtol=1e-4, atol=1e-6)


def weight(layer: Any) -> NDArray[np.float64]:
    convolution = layer.conv if isinstance(layer, ConvNormAct) else layer
    values: NDArray[np.float64] = convolution.weight.detach().double().numpy()
    return values


def scale(norm: Any) -> NDArray[np.float64]:
    """gamma / sqrt(variance + eps), one for each output channel (O, 1, 1, 1)."""
    deviation = np.sqrt(norm.running_var.double().numpy() + norm.eps)
    factors: NDArray[np.float64] = norm.weight.detach().double().numpy() / deviation
    return factors.reshape(-1, 1, 1, 1)


def test_the_note_counts_parameters() -> None:
    network = drawn(partial(byob, "rep"))
    form = inference_form(network)
    assert form is not None
    found = re.fullmatch(
        r"timm fused it for inference: ([\d,]+) parameters became ([\d,]+)", form.notes[0]
    )
    assert found is not None
    before, after = (int(count.replace(",", "")) for count in found.groups())
    assert before == sum(value.numel() for value in network.parameters())
    # Three convolutions 3x3 with bias (the stem's from RGB) and the classifier.
    assert after == (3 * 9 * 8 + 8) + 2 * (8 * 9 * 8 + 8) + (8 * CLASSES + CLASSES)


def test_the_random_state_of_the_caller_stays() -> None:
    network = drawn(partial(byob, "rep"))
    before = torch.get_rng_state()
    assert inference_form(network) is not None
    assert torch.equal(torch.get_rng_state(), before)


class Wrapper(nn.Module):
    """A user's module: timm's network within it, and a method that is called as timm's is."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.mixer = Mixer()

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.backbone(batch)
        return self.mixer.fuse(logits, logits), logits


class Mixer(nn.Module):
    def fuse(self, first: Tensor, second: Tensor) -> Tensor:
        return first * 2 - second / 2


def test_a_users_module_around_it_stays_as_it_is() -> None:
    network = LogitsOf(Wrapper(drawn(partial(byob, "rep"))).eval(), 0)
    form = inference_form(network)
    assert form is not None
    np.testing.assert_allclose(answers(form.module), answers(network), rtol=1e-4, atol=1e-5)
    names = form.module.state_dict()
    assert "network.backbone.stages.1.0.reparam_conv.weight" in names
    assert isinstance(form.module.get_submodule("network.mixer"), Mixer)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Mixer()),
        plain,
    ],
    ids=["not timm's", "nothing to fuse"],
)
def test_what_has_no_other_form_has_none(make: Callable[[], nn.Module]) -> None:
    assert inference_form(make().eval()) is None


def test_what_is_fused_already_has_none() -> None:
    form = inference_form(drawn(partial(byob, "rep")))
    assert form is not None
    assert inference_form(form.module) is None


def test_what_timm_cannot_fuse_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(block: object) -> None:
        raise AttributeError("no conv_kxk")

    monkeypatch.setattr(byobnet.RepVggBlock, "reparameterize", fail)
    expected = "ByobNet cannot be fused for inference\nAttributeError: no conv_kxk"
    with pytest.raises(ExportError, match=f"^{re.escape(expected)}$"):
        inference_form(drawn(partial(byob, "rep")))
