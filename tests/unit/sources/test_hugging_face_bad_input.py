"""Folders that are no image classifier of transformers, each with what to do instead."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.core.choices import DefinitionChoices
from deploykit.core.errors import MissingDependencyError, UnknownNameError, UsageError
from deploykit.sources.hugging_face import hugging_face_spec
from tests.hugging_face import VIT_PROCESSOR, change_json, make_folder

if TYPE_CHECKING:
    from pathlib import Path

NOTHING = DefinitionChoices()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("hub") / "my-vit", processor=VIT_PROCESSOR)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(saved, tmp_path / "my-vit")


def refused(folder: Path, choices: DefinitionChoices = NOTHING) -> str:
    with pytest.raises(UsageError) as caught:
        hugging_face_spec(folder, choices)
    return str(caught.value)


def test_classes_cannot_be_chosen(folder: Path) -> None:
    assert refused(folder, DefinitionChoices(num_classes=7)) == (
        "--num-classes is not for my-vit: the folder has its own classes\n"
        "leave it out, or train a head of that size and save it again"
    )


def test_a_config_that_cannot_be_read(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text("{", encoding="utf-8")
    first, second = refused(folder).splitlines()
    assert first.startswith(f"cannot read {path} (JSONDecodeError: ")
    assert second == "expected a folder as save_pretrained of transformers writes it"
    path.write_bytes(b"\xff\xfe")
    assert refused(folder).startswith(f"cannot read {path} (UnicodeDecodeError: ")
    path.unlink()
    path.mkdir()
    assert refused(folder).startswith(f"cannot read {path} (IsADirectoryError: ")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_json_that_is_no_object(folder: Path, name: str) -> None:
    (folder / name).write_text("[1]", encoding="utf-8")
    assert refused(folder) == (
        f"{folder / name} holds a JSON list, not an object\n"
        "expected a folder as save_pretrained of transformers writes it"
    )


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_code_of_its_own_is_refused_and_not_run(folder: Path, tmp_path: Path, name: str) -> None:
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    (folder / "modeling_mine.py").write_text(code, encoding="utf-8")
    kinds = ("AutoConfig", "AutoModelForImageClassification", "AutoImageProcessor")
    change_json(folder / name, auto_map=dict.fromkeys(kinds, "modeling_mine.Mine"))
    assert refused(folder) == (
        f"my-vit/{name} asks for code of its own (auto_map), which is never run\n"
        "for code that you trust, write a function that returns the module: "
        "path/to/file.py:factory"
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("architectures", "said"),
    [
        (["BertForMaskedLM"], "BertForMaskedLM"),
        (["ViTModel"], "ViTModel"),
        ([], "of no architecture"),
        (None, "of no architecture"),
    ],
)
def test_no_classifier(folder: Path, architectures: list[str] | None, said: str) -> None:
    change_json(folder / "config.json", architectures=architectures)
    assert refused(folder) == (
        f"my-vit is {said}, not an image classifier\n"
        'expected "architectures" in config.json to name a ...ForImageClassification'
    )


@pytest.mark.parametrize("architectures", [None, ["TimmWrapperForImageClassification"]])
def test_a_network_of_timm(folder: Path, architectures: list[str] | None) -> None:
    change_json(folder / "config.json", architectures=architectures, architecture="resnet18d")
    assert refused(folder) == (
        "my-vit is resnet18d of timm, not of transformers\n"
        f"use timm:resnet18d --weights {folder / 'model.safetensors'}"
    )


def test_an_unknown_kind_has_close_matches(folder: Path) -> None:
    change_json(folder / "config.json", model_type="swin2v")
    with pytest.raises(UnknownNameError) as caught:
        hugging_face_spec(folder, NOTHING)
    assert str(caught.value).startswith("unknown model_type in my-vit/config.json 'swin2v'\n")
    assert "swinv2" in caught.value.matches


def test_kind_and_architecture_must_agree(folder: Path) -> None:
    change_json(folder / "config.json", architectures=["SwinForImageClassification"])
    assert refused(folder) == (
        "my-vit is SwinForImageClassification, but its model_type 'vit' makes "
        "ViTForImageClassification\ncheck architectures and model_type in config.json"
    )


def test_quantized_weights_are_refused(folder: Path) -> None:
    change_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    assert refused(folder) == (
        "the weights of my-vit are quantized already (quantization_config)\n"
        "take the folder that they were made from; --int8 quantizes it"
    )


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_act": "no_such_function"}, "no_such_function"),
    ],
)
def test_values_that_transformers_does_not_take(
    folder: Path, values: dict[str, Any], reason: str
) -> None:
    change_json(folder / "config.json", **values)
    first, second = refused(folder).splitlines()
    assert first.startswith("transformers 5")
    assert first.endswith("builds no network from my-vit/config.json")
    assert reason in second


def test_a_size_that_the_network_does_not_take(folder: Path) -> None:
    assert refused(folder, DefinitionChoices(image_size=64)) == (
        "my-vit does not take images (2, 3, 64, 64)\n"
        "ValueError: Input image size (64*64) doesn't match model (32*32).\n"
        "leave --input-size out for the size that it was trained with, or give another"
    )


def test_grey_images_are_not_taken(folder: Path) -> None:
    change_json(folder / "config.json", num_channels=1)
    change_json(folder / "preprocessor_config.json", image_mean=[0.5], image_std=[0.5])
    assert refused(folder) == (
        "my-vit/config.json has num_channels 1, folders of Hugging Face are taken with 3\n"
        "for grey images give path/to/file.py:factory, which returns the network"
    )


def test_a_network_without_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "my-net", "resnet")
    from transformers import ResNetForImageClassification

    monkeypatch.setattr(ResNetForImageClassification, "forward", lambda self, images: images)
    assert refused(folder, DefinitionChoices(image_size=32)) == (
        "ResNetForImageClassification of my-net returns no logits (N, classes)\n"
        "path/to/file.py:factory can wrap it in a module that returns them"
    )


def test_a_processor_that_cannot_be_said(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    change_json(path, image_processor_type="PerceiverImageProcessor")
    first, *_ = refused(folder).splitlines()
    assert first == (
        "my-vit/preprocessor_config.json: PerceiverImageProcessor prepares images in its own way"
    )
    change_json(path, image_processor_type="ViTImageProcessor", size="large")
    first, second = refused(folder).splitlines()
    assert first == "transformers makes no ViTImageProcessor of my-vit/preprocessor_config.json"
    assert second.startswith("ValueError: Could not convert size")


def test_transformers_is_optional(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError) as caught:
        hugging_face_spec(folder, NOTHING)
    assert caught.match("pip install transformers")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("values", "found", "most"),
    [
        ({"num_labels": 10**9}, "num_labels 1,000,000,000", "1,000,000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1,000,000,000", "10,000"),
        ({"depths": [3, 10**8, 3]}, "depths 100,000,006", "10,000"),
        ({"vision_config": {"num_labels": 10**9}}, "num_labels 1,000,000,000", "1,000,000"),
    ],
    ids=["classes", "layers", "stages", "nested"],
)
def test_numbers_that_no_memory_holds(
    folder: Path, values: dict[str, Any], found: str, most: str
) -> None:
    """transformers would make a name for each class and a module for each layer."""
    change_json(folder / "config.json", **values)
    assert refused(folder) == (
        f"my-vit/config.json has {found}\n"
        f"expected at most {most}: no image classifier has more; is the file damaged?"
    )


def test_a_network_that_is_far_larger_than_its_weights(folder: Path) -> None:
    change_json(folder / "config.json", intermediate_size=10**9)
    present = (folder / "model.safetensors").stat().st_size
    first, second = refused(folder).splitlines()
    assert first.startswith("my-vit/config.json is of a network of ")
    assert first.endswith(f" bytes in FP32, model.safetensors has {present:,}")
    assert second == "they do not belong together: save the model again"
