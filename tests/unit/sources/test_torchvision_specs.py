"""`torchvision_spec`: torchvision's own definitions and what their weights say about images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import UnknownNameError, UsageError, WeightsError
from deploykit.core.specs import Preprocessing
from deploykit.images.batching import sample_batches
from deploykit.models._initialise import nothing_drawn
from deploykit.sources.torchvision import torchvision_names, torchvision_spec
from deploykit.sources.weights import build_with_weights, with_todays_names

if TYPE_CHECKING:
    from pathlib import Path

FP16_LARGEST = 65504


def test_every_image_classifier_of_torchvision_is_known() -> None:
    names = torchvision_names()
    assert len(names) >= 80
    assert {"vit_h_14", "maxvit_t", "regnet_y_128gf", "inception_v3"} <= set(names)
    assert not [name for name in names if "rcnn" in name or name.startswith("quantized")]


@pytest.mark.parametrize("name", torchvision_names())
def test_spec_is_what_the_default_weights_say(name: str) -> None:
    spec = torchvision_spec(name)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    transforms, prepared = weights.transforms(), spec.preprocessing
    assert [prepared.crop[0]] == transforms.crop_size
    assert [prepared.resize] == transforms.resize_size
    assert prepared.interpolation == transforms.interpolation.value
    assert (list(prepared.mean), list(prepared.std)) == (transforms.mean, transforms.std)
    assert spec.inputs[0].shape == ("batch", 3, *prepared.crop)
    assert spec.outputs[0].shape == ("batch", 1000)
    assert list(spec.labels or ()) == weights.meta["categories"]
    assert spec.parameters == weights.meta["num_params"]


def test_other_classes_have_no_names_and_another_size_keeps_the_ratio() -> None:
    spec = torchvision_spec("efficientnet_b1", num_classes=5, image_size=120)
    assert (spec.labels, spec.num_classes) == (None, 5)
    assert spec.preprocessing == Preprocessing(
        crop=(120, 120), resize=128, interpolation="bilinear"
    )
    with torch.no_grad():
        assert spec.build()(torch.zeros(2, 3, 120, 120)).shape == (2, 5)


def test_unknown_name_suggests_close_ones() -> None:
    message = r"unknown torchvision classifier 'mobilenet_v3'\ndid you mean: mobilenet_v2.*\nall .*"
    with pytest.raises(UnknownNameError, match=message):
        torchvision_spec("mobilenet_v3")


def test_detectors_are_no_classifiers() -> None:
    with pytest.raises(UnknownNameError, match="unknown torchvision classifier 'fasterrcnn"):
        torchvision_spec("fasterrcnn_resnet50_fpn")


def test_fewer_than_one_class_is_refused() -> None:
    message = r"torchvision:alexnet cannot have 0 classes\ngive at least 1, or leave --num-classes"
    with pytest.raises(UsageError, match=message):
        torchvision_spec("alexnet", num_classes=0)


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("vit_b_16", 100, "Input shape indivisible by patch size"),
        ("maxvit_t", 100, r"Input size \(25, 25\) of block 0 is not divisible by partition size 7"),
        ("squeezenet1_1", 8, "Output size is too small"),
    ],
)
def test_a_size_that_the_network_does_not_take(name: str, size: int, reason: str) -> None:
    message = (
        rf"torchvision:{name} does not take an input of {size}x{size}\n"
        rf"torchvision says: .*{reason}.*\nits weights are for 224: leave --input-size out"
    )
    with pytest.raises(UsageError, match=message):
        torchvision_spec(name, image_size=size)


def test_a_vision_transformer_is_built_for_the_size_that_is_asked() -> None:
    spec = torchvision_spec("vit_b_16", num_classes=3, image_size=32)
    with torch.device("meta"), torch.no_grad():
        assert spec.build()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_a_regnet_is_built_where_nothing_has_a_value() -> None:
    with torch.device("meta"):
        network = torchvision_spec("regnet_x_400mf").build()
    assert {value.device.type for value in network.state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    ("name", "size"),
    [("mobilenet_v3_small", 64), ("shufflenet_v2_x0_5", 64), ("inception_v3", 96),
     ("mnasnet0_5", 64), ("googlenet", 64), ("efficientnet_b0", 64),
     ("squeezenet1_0", 64)],
)  # fmt: skip
def test_untrained_networks_tell_images_apart_within_fp16(name: str, size: int) -> None:
    spec = torchvision_spec(name, image_size=size)
    model, record = build_with_weights(spec, None, 0)
    (images,) = sample_batches(spec.preprocessing, None, (4,))
    largest = []
    for layer in model.modules():
        layer.register_forward_hook(lambda _, __, out: largest.append(float(out.abs().max())))
    with torch.no_grad():
        logits = model(torch.from_numpy(images)).numpy()
    assert record.source == "untrained, seed 0"
    assert not model.training
    assert not any(layer.training for layer in model.modules())
    assert logits.shape == (4, 1000)
    assert np.std(logits, axis=0).mean() > 0.1
    assert max(largest) < FP16_LARGEST / 10


def test_untrained_weights_follow_the_seed_alone() -> None:
    spec = torchvision_spec("shufflenet_v2_x0_5", image_size=32)
    torch.rand(3)
    states = [build_with_weights(spec, None, seed)[0].state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["conv1.1.running_var"], states[2]["conv1.1.running_var"])


def test_normalisations_are_left_as_torchvision_sets_them_but_for_their_statistics() -> None:
    original = torchvision.models.mobilenet_v3_small(weights=None)
    settled = torchvision_spec("mobilenet_v3_small", image_size=32).build()
    pairs = [
        (mine, theirs)
        for mine, theirs in zip(settled.modules(), original.modules(), strict=True)
        if isinstance(mine, nn.BatchNorm2d) and isinstance(theirs, nn.BatchNorm2d)
    ]
    assert len(pairs) == 34
    for mine, theirs in pairs:
        assert (mine.momentum, mine.eps) == (theirs.momentum, theirs.eps)
        assert not torch.equal(mine.running_mean, theirs.running_mean)  # type: ignore[arg-type]  # both have statistics


@pytest.mark.parametrize(("name", "heads"), [("googlenet", "aux"), ("inception_v3", "AuxLogits")])
def test_heads_of_training_may_be_in_the_file_and_are_not_deployed(
    name: str, heads: str, tmp_path: Path
) -> None:
    spec = torchvision_spec(name, num_classes=4, image_size=96)
    with nothing_drawn():
        whole = spec.build().state_dict()
    path = tmp_path / "w.pth"
    torch.save(whole, path)
    model, _ = build_with_weights(spec, str(path), 1)
    expected = {key for key in whole if not key.startswith(heads)}
    assert model.state_dict().keys() == expected
    assert len(expected) < len(whole)
    assert model(torch.zeros(2, 3, 96, 96)).shape == (2, 4)


@pytest.mark.parametrize("name", ["mnasnet0_5", "squeezenet1_0"])
def test_a_file_computes_what_torchvision_computes_with_it(name: str, tmp_path: Path) -> None:
    theirs = torchvision.models.get_model(name, weights=None, num_classes=4).eval()
    path = tmp_path / "w.pth"
    torch.save(theirs.state_dict(), path)
    spec = torchvision_spec(name, num_classes=4, image_size=64)
    mine, record = build_with_weights(spec, str(path), 0)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(mine(images), theirs(images), rtol=0, atol=0)
    assert (record.source, record.trained) == ("w.pth", True)


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"encoder.pos_embedding": torch.zeros(1, 2, 768)}, path)  # of images of 32 pixels
    message = (
        r"w\.pth does not fit torchvision-vit_b_32 with 3 classes\n"
        r".*; 1 of another shape: encoder\.pos_embedding \(1, 2, 768\) for \(1, 5, 768\)\n"
        "check the network's name, --num-classes and --input-size$"
    )
    with pytest.raises(WeightsError, match=message):
        build_with_weights(torchvision_spec("vit_b_32", num_classes=3, image_size=64), str(path), 0)


def _publish(name: str, state: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``state`` as torchvision's own file of ``name``; torch's cache is empty."""
    monkeypatch.setenv("TORCH_HOME", str(folder / "cache"))
    unnamed = folder / "unnamed.pth"
    torch.save(state, unnamed)
    path = unnamed.rename(folder / f"{name}-{sha256_of(unnamed)[:8]}.pth")
    weights = torchvision.models.get_model_weights(name).DEFAULT.value
    monkeypatch.setattr(weights, "url", path.as_uri())
    return path


def test_torchvisions_weights_come_with_what_the_spec_says_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = torchvision_spec("squeezenet1_1")
    state = spec.build().state_dict()
    path = _publish("squeezenet1_1", state, tmp_path, monkeypatch)
    model, record = build_with_weights(spec, "imagenet", 3)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert record.source == "torchvision SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert record.sha256 == sha256_of(path)
    assert (record.labels, record.preprocessing) == (spec.labels, None)


def test_without_a_network_the_message_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish("squeezenet1_1", {}, tmp_path, monkeypatch).unlink()
    with pytest.raises(WeightsError, match=r"cannot download file:.*\nwithout a network give a"):
        build_with_weights(torchvision_spec("squeezenet1_1"), "imagenet", 0)


def test_imagenet_weights_for_other_classes_are_refused() -> None:
    message = "ImageNet weights of torchvision-squeezenet1_1 have 1000 classes, not 7"
    with pytest.raises(UsageError, match=message):
        build_with_weights(torchvision_spec("squeezenet1_1", num_classes=7), "imagenet", 0)


def test_names_that_published_files_still_have_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision's file of DenseNet says ``denselayer1.norm.1``; the network ``norm1``."""
    spec = torchvision_spec("densenet121", image_size=32)
    with nothing_drawn():
        state = spec.build().state_dict()
    for kind in ("norm", "conv"):
        for number in "12":
            state = {
                name.replace(f".{kind}{number}.", f".{kind}.{number}.")
                if "denselayer" in name
                else name: value
                for name, value in state.items()
            }
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    _publish("densenet121", state, tmp_path, monkeypatch)
    model, _ = build_with_weights(spec, "imagenet", 1)
    loaded = list(model.state_dict().values())
    assert all(torch.equal(mine, given) for mine, given in zip(loaded, state.values(), strict=True))


def test_old_names_of_vision_transformers_are_read() -> None:
    with torch.device("meta"):
        expected = torchvision_spec("vit_b_32", image_size=32).build().state_dict()
    old = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): value
        for name, value in expected.items()
    }
    assert old.keys() != expected.keys()
    assert list(with_todays_names(old, expected).items()) == list(expected.items())
