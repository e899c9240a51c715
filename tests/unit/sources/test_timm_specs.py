"""`timm_spec`: timm's own definitions and what their pretrained configurations say of images."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

import pytest
import timm
import torch
from timm.data import create_transform, resolve_data_config
from torch import nn

from deploykit.core.errors import MissingDependencyError, UnknownNameError, UsageError
from deploykit.core.specs import Preprocessing
from deploykit.images.batching import sample_batches
from deploykit.sources import timm as _timm_build
from deploykit.sources.timm import timm_names, timm_spec
from deploykit.sources.weights import build_with_weights

FP16_LARGEST = 65504


def test_names_are_architectures_without_tags() -> None:
    names = timm_names()
    assert len(names) > 1000
    assert {"resnet18d", "convnext_atto", "vit_tiny_patch16_224"} <= set(names)
    assert not [name for name in names if "." in name]


def test_spec_is_what_the_pretrained_configuration_says() -> None:
    spec = timm_spec("efficientnet_lite0")
    assert spec.name == "timm-efficientnet_lite0"
    assert (spec.timm, spec.torchvision) == ("efficientnet_lite0.ra_in1k", None)
    assert spec.paper == "https://huggingface.co/timm/efficientnet_lite0.ra_in1k"
    assert spec.inputs[0].shape == ("batch", 3, 224, 224)
    assert spec.outputs[0].shape == ("batch", 1000)
    assert spec.preprocessing == Preprocessing(
        crop=(224, 224),
        resize=256,
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    assert spec.labels is not None
    assert (spec.labels[0], len(spec.labels)) == ("tench, Tinca tinca", 1000)
    assert spec.notes == ()


@pytest.mark.parametrize(
    ("name", "size", "resize"),
    [
        ("resnet50.a1_in1k", 224, 235),
        ("resnet50.tv_in1k", 224, 256),
        ("convnext_tiny.in12k_ft_in1k_384", 384, (384, 384)),
        ("volo_d4_448.sail_in1k", 448, 389),
    ],
)
def test_images_are_prepared_as_timm_does_it(
    name: str, size: int, resize: int | tuple[int, int]
) -> None:
    prepared = timm_spec(name).preprocessing
    theirs = create_transform(**resolve_data_config(pretrained_cfg=_config(name).to_dict()))
    scaled, cropped, _, normalized = theirs.transforms
    assert prepared.crop == cropped.size == (size, size)
    assert prepared.resize == scaled.size == resize
    assert prepared.interpolation == scaled.interpolation.value
    assert prepared.mean == pytest.approx(normalized.mean.tolist())
    assert prepared.std == pytest.approx(normalized.std.tolist())


def _config(name: str) -> timm.models.PretrainedCfg:
    return timm.models.get_pretrained_cfg(name)


@pytest.mark.parametrize(
    ("name", "count"),
    [("convnext_nano.in12k", 11821), ("vit_tiny_patch16_224.augreg_in21k", 21843)],
)
def test_labels_are_those_of_the_weights_data(name: str, count: int) -> None:
    labels = timm_spec(name).labels
    assert labels is not None
    assert len(labels) == count
    # In order of the synsets, of which ImageNet's thousand are a part.
    wide = ["kit fox, Vulpes macrotis", "English setter", "Siberian husky"]
    assert set(wide) <= set(labels)


def test_classes_that_are_not_imagenets_have_no_names() -> None:
    assert timm_spec("fastvit_mci0.apple_mclip").labels is None
    assert timm_spec("resnet18d", num_classes=7).labels is None


def test_other_classes_and_another_size_keep_the_ratio() -> None:
    spec = timm_spec("test_resnet.r160_in1k", num_classes=5, image_size=96)
    assert spec.preprocessing.resize == 101
    assert spec.inputs[0].shape == ("batch", 3, 96, 96)
    with torch.no_grad():
        assert spec.build()(torch.zeros(2, 3, 96, 96)).shape == (2, 5)


def test_a_vision_transformer_is_built_for_the_size_that_is_asked() -> None:
    spec = timm_spec("vit_tiny_patch16_224", num_classes=3, image_size=32)
    with torch.device("meta"), torch.no_grad():
        assert spec.build()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_a_name_that_timm_has_given_up_is_read_with_a_note() -> None:
    spec = timm_spec("tv_resnet34")
    assert spec.timm == "resnet34.tv_in1k"
    assert spec.notes == ("timm calls tv_resnet34 resnet34.tv_in1k by now",)


def test_unknown_name_suggests_close_ones() -> None:
    message = (
        r"unknown timm architecture 'resnet18dd'\ndid you mean: resnet18d, .*\?\nall of them: "
    )
    with pytest.raises(UnknownNameError, match=message):
        timm_spec("resnet18dd")


def test_unknown_tag_suggests_the_tags_that_there_are() -> None:
    message = (
        r"unknown timm weights of resnet18 'a1_in21k'\ndid you mean: a1_in1k.*\?\n"
        "all of them: a1_in1k, .*gluon_in1k"
    )
    with pytest.raises(UnknownNameError, match=message):
        timm_spec("resnet18.a1_in21k")


def test_weights_that_end_in_features_are_no_classifier() -> None:
    spec = timm_spec("vit_small_patch14_dinov2", image_size=28)
    assert (spec.head, spec.labels, spec.outputs[0].name) == ("raw", None, "features")
    assert spec.outputs[0].shape == ("batch", 384)
    with torch.no_grad():
        assert spec.build()(torch.zeros(2, 3, 28, 28)).shape == (2, 384)
    with pytest.raises(UsageError, match="does not turn 7x7 pixels into features\ntimm says: "):
        timm_spec("vit_small_patch14_dinov2", image_size=7)
    spec = timm_spec("vit_small_patch14_dinov2", num_classes=4, image_size=28)
    assert (spec.num_classes, spec.labels) == (4, None)


def test_fewer_than_one_class_is_refused() -> None:
    message = "timm:resnet18d cannot have 0 classes\ngive at least 1, or leave --num-classes out"
    with pytest.raises(UsageError, match=message):
        timm_spec("resnet18d", num_classes=0)


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("test_vit", 8, r"Input height \(8\) should be divisible by patch size"),
        ("test_maxvit", 100, r"height \(25\) must be divisible by window \(3\)"),
    ],
)
def test_a_size_that_the_network_does_not_take(name: str, size: int, reason: str) -> None:
    message = (
        rf"timm:{name}\.\S+ does not turn {size}x{size} pixels into 1000 classes\n"
        rf"timm says: {reason}.*\n"
        r"its weights are for 160x160 and 1000: leave --input-size and --num-classes out"
    )
    with pytest.raises(UsageError, match=message):
        timm_spec(name, image_size=size)


def test_a_network_that_returns_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_timm_build, "_made", lambda *_: nn.Flatten())
    with pytest.raises(UsageError, match=r"timm says: it returns \(1, 3072\), not \(1, 7\)\n"):
        timm_spec("test_resnet", num_classes=7, image_size=32)


def _configured(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """As if timm published resnet18d's weights with these ``changes``."""
    changed = replace(timm.models.get_pretrained_cfg("resnet18d"), **changes)
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda name: changed)


def test_images_of_other_channels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _configured(monkeypatch, input_size=(1, 64, 64))
    message = "timm:resnet18d takes images of 1 channels\nof timm those in RGB are taken"
    with pytest.raises(UsageError, match=message):
        timm_spec("resnet18d")


@pytest.mark.parametrize(
    ("changes", "resize", "note"),
    [
        ({"crop_mode": "border"}, 128, "timm fills images up to the shape of the input"),
        ({"input_size": (3, 112, 56)}, 128, "timm scales images until they cover the input"),
        ({"input_size": (3, 112, 56), "crop_mode": "squash"}, (128, 64), None),
        ({"interpolation": "random"}, 128, "timm's weights were trained with any interpolation"),
    ],
)
def test_what_is_prepared_otherwise_is_said(
    changes: dict[str, object],
    resize: int | tuple[int, int],
    note: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _configured(monkeypatch, **({"input_size": (3, 112, 112), "crop_pct": 0.875} | changes))
    spec = timm_spec("resnet18d")
    assert spec.preprocessing.resize == resize
    assert spec.preprocessing.interpolation == "bicubic"
    assert spec.inputs[0].shape == ("batch", 3, *spec.preprocessing.crop)
    assert [said.partition(";")[0] for said in spec.notes] == ([note] if note else [])


def test_without_timm_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match="pip install timm"):
        timm_spec("resnet18d")


@pytest.mark.parametrize(
    ("name", "size"),
    [("test_convnext", 64), ("test_resnet", 64), ("test_nfnet", 96), ("test_vit", 96)],
)
def test_untrained_networks_tell_images_apart_within_fp16(name: str, size: int) -> None:
    spec = timm_spec(name, image_size=size)
    model, record = build_with_weights(spec, None, 0)
    (images,) = sample_batches(spec.preprocessing, None, (4,))
    largest = []
    for layer in model.modules():
        layer.register_forward_hook(lambda _, __, out: largest.append(float(out.abs().max())))
    with torch.no_grad():
        logits = model(torch.from_numpy(images))
    assert record.source == "untrained, seed 0"
    assert not any(layer.training for layer in model.modules())
    assert float(logits.std(0).mean()) > 0.1
    assert max(largest) < FP16_LARGEST / 10


def test_untrained_weights_follow_the_seed_alone() -> None:
    spec = timm_spec("test_resnet", image_size=32)
    torch.rand(3)
    states = [build_with_weights(spec, None, seed)[0].state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["bn1.running_var"], states[2]["bn1.running_var"])


def test_building_leaves_timms_switches_and_the_callers_logging_alone() -> None:
    logger = logging.getLogger("timm")
    before = (logger.handlers[:], logger.propagate)
    assert isinstance(timm_spec("test_resnet", image_size=32).build(), nn.Module)
    assert (logger.handlers[:], logger.propagate) == before
