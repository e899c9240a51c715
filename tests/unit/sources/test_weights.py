"""`build_with_weights`: untrained, from a file, from torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import UsageError, WeightsError
from deploykit.models import get
from deploykit.models._initialise import nothing_drawn
from deploykit.sources import untrained
from deploykit.sources.state_dict import WeightsRecord
from deploykit.sources.timm import timm_spec
from deploykit.sources.torchvision import _actual_preprocessing, torchvision_spec
from deploykit.sources.weights import build_with_weights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.core.specs import ModelSpec


def assert_state(network: nn.Module, expected: Mapping[str, Tensor]) -> None:
    actual = network.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in actual)


def test_untrained_weights_follow_the_seed() -> None:
    spec = get("resnet20")
    first, record = build_with_weights(spec, None, 0)
    assert record == WeightsRecord("untrained, seed 0", None, trained=False, labels=None)
    assert not first.training
    assert_state(build_with_weights(spec, None, 0)[0], first.state_dict())
    other = build_with_weights(spec, None, 1)[0].state_dict()
    assert not torch.equal(other["conv1.weight"], first.state_dict()["conv1.weight"])


def test_values_that_a_file_replaces_are_not_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, theirs = get("resnet20"), torchvision_spec("shufflenet_v2_x0_5", image_size=32)
    states = [build_with_weights(spec, None, 0)[0].state_dict() for spec in (own, theirs)]
    monkeypatch.setattr(nn.init, "kaiming_normal_", _drawn)
    monkeypatch.setattr(untrained, "pink_noise", _drawn)
    for spec, state in zip((own, theirs), states, strict=True):
        torch.save(state, tmp_path / "w.pth")
        assert_state(build_with_weights(spec, str(tmp_path / "w.pth"), 1)[0], state)
        with pytest.raises(AssertionError, match="drawn"):
            build_with_weights(spec, None, 1)


class _Filled(TorchFunctionMode):
    """How many weights torch drew from its random state."""

    count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in {Tensor.uniform_, Tensor.normal_} and args[0].ndim > 1:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("meta", [False, True], ids=["replaced", "meta"])
@pytest.mark.parametrize(
    "spec",
    [
        get("resnet20"),
        torchvision_spec("squeezenet1_1", num_classes=4),
        timm_spec("test_resnet", num_classes=4),
    ],
    ids=lambda spec: spec.name,
)
def test_torchs_layers_draw_no_weights_that_nobody_reads(spec: ModelSpec, meta: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        with _Filled() as wanted:
            spec.build()
        unread = torch.device("meta") if meta else nothing_drawn()
        with _Filled() as filled, unread:
            network = spec.build()
    assert wanted.count > 9
    # torchvision's and timm's own way of drawing, beside that of torch's layers, is theirs.
    assert filled.count == 0 if meta else filled.count <= wanted.count / 2
    assert network.state_dict().keys() == spec.build().state_dict().keys()


def _drawn(*_: object, **__: object) -> None:
    raise AssertionError("drawn")


def test_the_random_state_of_the_caller_is_left_alone() -> None:
    before = torch.get_rng_state()
    build_with_weights(get("resnet20"), None, 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("suffix", [".pth", ".npz"])
def test_a_file_is_loaded_and_recorded_without_its_folder(suffix: str, tmp_path: Path) -> None:
    spec = get("resnet20", num_classes=4)
    trained, _ = build_with_weights(spec, None, 5)
    path = tmp_path / f"mine{suffix}"
    if suffix == ".npz":
        state = trained.state_dict()
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    else:
        torch.save(trained.state_dict(), path)
    network, record = build_with_weights(spec, str(path), 0)
    assert_state(network, trained.state_dict())
    assert record == WeightsRecord(f"mine{suffix}", sha256_of(path), trained=True, labels=None)
    assert not network.training


def test_statistics_without_torchs_counter_are_loaded(tmp_path: Path) -> None:
    state = get("resnet20").build().state_dict()
    path = tmp_path / "old.pth"
    torch.save({name: value for name, value in state.items() if "tracked" not in name}, path)
    assert_state(build_with_weights(get("resnet20"), str(path), 0)[0], state)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(get("resnet20", num_classes=4).build().state_dict(), path)
    message = (
        r"w\.pth does not fit resnet32 with 10 classes\n"
        r"60 missing: layer1\.3\.conv1\.weight, layer1\.3\.bn1\.weight, .*, \.\.\.; "
        r"2 of another shape: linear\.weight \(4, 64\) for \(10, 64\), linear\.bias .*\n"
        "check the network's name, --num-classes and --input-size$"
    )
    with pytest.raises(WeightsError, match=message):
        build_with_weights(get("resnet32"), str(path), 0)


def test_names_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(get("resnet20").build().state_dict() | {"fc.weight": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match=r"\n1 unexpected: fc\.weight\n"):
        build_with_weights(get("resnet20"), str(path), 0)


@pytest.mark.parametrize("heads", [("aux1", "aux2"), ("aux2",), ()])
def test_googlenet_loads_with_and_without_heads(heads: tuple[str, ...], tmp_path: Path) -> None:
    spec = get("googlenet", num_classes=6)
    whole = spec.build().state_dict()
    trunk = {name: value for name, value in whole.items() if not name.startswith("aux")}
    path = tmp_path / "w.pth"
    torch.save(
        {name: whole[name] for name in whole if name.startswith(heads) or name in trunk}, path
    )
    network, _ = build_with_weights(spec, str(path), 0)
    assert_state(network, trunk)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 6)


def test_half_a_head_is_refused(tmp_path: Path) -> None:
    state = get("googlenet", num_classes=6).build().state_dict()
    del state["aux1.fc1.weight"]
    path = tmp_path / "w.pth"
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"\n1 missing: aux1\.fc1\.weight\n"):
        build_with_weights(get("googlenet", num_classes=6), str(path), 0)


def test_an_untrained_googlenet_is_deployed_without_heads() -> None:
    network, _ = build_with_weights(get("googlenet"), None, 0)
    assert sum(value.numel() for value in network.parameters()) == get("googlenet").parameters


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What torchvision would download as ResNet-18's weights; torch's cache is empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    unnamed = tmp_path / "resnet18.pth"
    torch.save(get("resnet18").build().state_dict(), unnamed)
    path = unnamed.rename(tmp_path / f"resnet18-{sha256_of(unnamed)[:8]}.pth")
    weights = torchvision.models.ResNet18_Weights.DEFAULT.value
    monkeypatch.setattr(weights, "url", path.as_uri())
    return path


def test_torchvisions_weights_bring_their_labels(published: Path) -> None:
    network, record = build_with_weights(get("resnet18"), "imagenet", 0)
    assert_state(network, torch.load(published, weights_only=True))
    assert record.source == "torchvision ResNet18_Weights.IMAGENET1K_V1"
    assert record.sha256 == sha256_of(published)
    assert record.trained
    assert record.preprocessing is None
    assert record.labels is not None
    assert (record.labels[0], len(record.labels)) == ("tench", 1000)


def test_torchvisions_weights_are_downloaded_once(published: Path) -> None:
    _, first = build_with_weights(get("resnet18"), "imagenet", 0)
    published.unlink()
    _, second = build_with_weights(get("resnet18"), "imagenet", 0)
    assert second == first


def test_a_damaged_download_is_refused(published: Path) -> None:
    content = bytearray(published.read_bytes())
    content[-1000] ^= 1
    published.write_bytes(content)
    message = r"resnet18-.*\.pth in torch's cache is damaged: its sha256 starts with .*\ndelete"
    with pytest.raises(WeightsError, match=message):
        build_with_weights(get("resnet18"), "imagenet", 0)


def test_without_a_network_the_message_names_the_way_out(published: Path, tmp_path: Path) -> None:
    published.unlink()
    message = (
        r"cannot download file:.*resnet18-.*\.pth: .*\nwithout a network give .* --weights FILE"
    )
    with pytest.raises(WeightsError, match=message):
        build_with_weights(get("resnet18"), "imagenet", 0)
    assert not list((tmp_path / "cache").rglob("*.p*"))


@pytest.mark.parametrize("name", ["nin", "alexnet2012", "resnet20"])
def test_a_network_that_torchvision_does_not_have(name: str) -> None:
    message = (
        f"torchvision publishes no ImageNet weights for {name}\n"
        rf"it does for alexnet, googlenet, .*\nfor {name} give a file: --weights FILE"
    )
    with pytest.raises(UsageError, match=message):
        build_with_weights(get(name), "imagenet", 0)


def test_imagenet_weights_have_a_thousand_classes() -> None:
    message = "ImageNet weights of resnet18 have 1000 classes, not 10\nleave --num-classes out"
    with pytest.raises(UsageError, match=message):
        build_with_weights(get("resnet18", num_classes=10), "imagenet", 0)


@pytest.mark.parametrize(("image_size", "resize"), [(224, 232), (112, 116)])
def test_the_resizing_of_the_weights_wins(image_size: int, resize: int) -> None:
    """ResNet-50's second weights were evaluated on images resized to 232."""
    spec = get("resnet50", image_size=image_size)
    transforms = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    actual = _actual_preprocessing(spec, transforms)
    assert actual is not None
    assert (actual.resize, actual.crop) == (resize, (image_size, image_size))
    assert (actual.mean, actual.std) == (spec.preprocessing.mean, spec.preprocessing.std)


@pytest.mark.parametrize("name", ["googlenet", "vgg16", "alexnet"])
def test_the_specs_preprocessing_stands_where_the_weights_agree(name: str) -> None:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    assert _actual_preprocessing(get(name), weights.transforms()) is None
