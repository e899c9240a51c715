"""Folders of the Hugging Face hub as definitions."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deploykit.core.artifacts import made_of
from deploykit.core.choices import DefinitionChoices, PreprocessingChoices
from deploykit.core.errors import WeightsError
from deploykit.core.specs import BATCH, ModelSpec
from deploykit.sources.hugging_face import digest, hugging_face_spec
from deploykit.sources.hugging_face_networks import quietly
from deploykit.sources.targets import digest_of, find_definition
from deploykit.sources.weights import build_with_weights
from tests.hugging_face import CLASSES, SIDE, VIT_PROCESSOR, change_json, make_folder

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

NOTHING = DefinitionChoices()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("hub") / "my-vit", processor=VIT_PROCESSOR)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(saved, tmp_path / "my-vit")


def spec_of(folder: Path) -> ModelSpec:
    return hugging_face_spec(folder, NOTHING)


def transformers_own(folder: Path) -> nn.Module:
    """The network as transformers itself loads it."""
    from transformers import AutoModelForImageClassification

    with quietly():
        loaded: nn.Module = AutoModelForImageClassification.from_pretrained(
            folder, attn_implementation="eager"
        )
    return loaded.eval()


def test_the_folder_says_everything(saved: Path) -> None:
    spec = spec_of(saved)
    assert (spec.name, spec.title) == ("my-vit", "ViTForImageClassification of my-vit")
    assert spec.inputs[0].shape == (BATCH, 3, SIDE, SIDE)
    assert spec.outputs[0].shape == (BATCH, len(CLASSES))
    assert spec.labels == CLASSES
    assert (spec.preprocessing.crop, spec.preprocessing.resize) == ((SIDE, SIDE), (SIDE, SIDE))
    assert spec.preprocessing.mean == (0.5, 0.5, 0.5)
    assert not spec.preprocessing_assumed
    assert spec.weights_file == saved / "model.safetensors"
    assert spec.source_sha256 == digest(saved)
    assert spec.parameters == sum(
        t.numel() for t in load_file(saved / "model.safetensors").values()
    )
    assert spec.notes == ()


@pytest.mark.parametrize("kind", ["vit", "swin", "convnext", "resnet"])
def test_computes_what_transformers_computes(kind: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / kind, kind)
    model, record = build_with_weights(spec_of(folder), None, 0)
    theirs = transformers_own(folder)
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(images).logits, rtol=0, atol=0)
    assert (record.source, record.trained) == ("model.safetensors", True)


def test_todays_names_and_older_ones_are_both_read(folder: Path) -> None:
    """The file has the names that ViT had before transformers 5; a module's own are newer."""
    spec = spec_of(folder)
    old = load_file(folder / "model.safetensors")
    assert "vit.encoder.layer.0.attention.attention.query.weight" in old
    model, _ = build_with_weights(spec, None, 0)
    new = {name.removeprefix("network."): value for name, value in model.state_dict().items()}
    assert "vit.layers.0.attention.q_proj.weight" in new
    save_file(new, folder / "new.safetensors")
    again, record = build_with_weights(spec, str(folder / "new.safetensors"), 0)
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert record.source == "new.safetensors"


def test_several_files_give_the_same_weights(saved: Path, tmp_path: Path) -> None:
    parts = make_folder(tmp_path / "parts", processor=VIT_PROCESSOR, shard_size="40KB")
    assert len(list(parts.glob("model-*.safetensors"))) > 1
    spec = spec_of(parts)
    assert spec.weights_file == parts / "model.safetensors.index.json"
    one, two = (
        build_with_weights(spec_of(path), None, 0)[0].state_dict() for path in (saved, parts)
    )
    torch.testing.assert_close(dict(two), dict(one), rtol=0, atol=0)


def test_half_precision_weights_become_fp32(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    halves = {name: tensor.bfloat16() for name, tensor in state.items()}
    save_file(halves, folder / "model.safetensors")
    change_json(folder / "config.json", dtype="bfloat16")
    model, _ = build_with_weights(spec_of(folder), None, 0)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    name = "classifier.weight"
    assert model.state_dict()[f"network.{name}"].equal(halves[name].float())


def test_a_pickle_of_tensors_is_read(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    model, record = build_with_weights(spec_of(folder), None, 0)
    assert record.source == "pytorch_model.bin"
    assert model.state_dict()["network.classifier.bias"].equal(state["classifier.bias"])


def test_nothing_of_the_folder_is_run(folder: Path, tmp_path: Path) -> None:
    """Python files beside the configuration are what remote code would be loaded from."""
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    for name in ("modeling_vit.py", "configuration_vit.py", "image_processing_vit.py"):
        (folder / name).write_text(code, encoding="utf-8")
    build_with_weights(spec_of(folder), None, 0)
    assert not (tmp_path / "ran").exists()


def test_without_a_processor_the_preparation_is_assumed(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    spec = spec_of(folder)
    assert spec.preprocessing_assumed
    assert (spec.preprocessing.crop, spec.preprocessing.resize) == ((SIDE, SIDE), 37)
    assert spec.notes == ()  # the size is the configuration's


def test_a_network_for_any_size_takes_the_usual_one(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "my-resnet", "resnet")
    spec = spec_of(folder)
    assert spec.inputs[0].shape == (BATCH, 3, 224, 224)
    assert spec.notes == ("an input of 224x224 is assumed; another: --input-size PX",)
    smaller = hugging_face_spec(folder, DefinitionChoices(image_size=64))
    assert smaller.inputs[0].shape == (BATCH, 3, 64, 64)
    assert smaller.notes == ()


def test_another_size_keeps_the_ratio_of_resize_to_crop(tmp_path: Path) -> None:
    processor = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 56}}
    folder = make_folder(tmp_path / "my-resnet", "resnet", processor=processor)
    assert (spec_of(folder).preprocessing.resize, spec_of(folder).preprocessing.crop) == (
        64,
        (56, 56),
    )
    larger = hugging_face_spec(folder, DefinitionChoices(image_size=112)).preprocessing
    assert (larger.resize, larger.crop) == (128, (112, 112))


def test_the_text_part_of_a_processor_is_left_alone(folder: Path) -> None:
    (folder / "processor_config.json").write_text('{"processor_class": "X"}', encoding="utf-8")
    assert spec_of(folder).preprocessing.crop == (SIDE, SIDE)
    nested = '{"image_processor": {"image_processor_type": "ViTImageProcessor", "size": 16}}'
    (folder / "processor_config.json").write_text(nested, encoding="utf-8")
    assert hugging_face_spec(folder, DefinitionChoices(image_size=SIDE)).preprocessing.resize == (
        SIDE,
        SIDE,
    )


def test_a_processor_that_turns_the_channels_round(tmp_path: Path) -> None:
    processor = {
        "image_processor_type": "MobileViTFeatureExtractor",
        "size": {"shortest_edge": 36},
        "crop_size": {"height": SIDE, "width": SIDE},
    }
    folder = make_folder(tmp_path / "my-net", "resnet", processor=processor)
    spec = spec_of(folder)
    assert spec.notes == (
        "images are turned into the BGR that it was trained on, as its image processor does",
    )
    assert spec.preprocessing.channel_order == "bgr"
    assert PreprocessingChoices(channel_order="bgr").applied_to(spec.preprocessing) == (
        spec.preprocessing
    )
    model, _ = build_with_weights(spec, None, 0)
    theirs = transformers_own(folder)
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(images).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2", "3": "LABEL_3"}, None),
        ({"0": "a\nb", "1": "c", "2": " d  e", "3": "f"}, ("a b", "c", "d e", "f")),
        ({"1": "a", "2": "b", "3": "c", "4": "d"}, None),
    ],
)
def test_labels_are_names(
    folder: Path, names: dict[str, str], labels: tuple[str, ...] | None
) -> None:
    change_json(folder / "config.json", id2label=names)
    assert spec_of(folder).labels == labels


def test_a_network_for_several_labels_has_a_note(folder: Path) -> None:
    change_json(folder / "config.json", problem_type="multi_label_classification")
    (note,) = spec_of(folder).notes
    assert note.startswith("it was trained for multi_label_classification, but is judged")


def test_the_digest_is_over_what_the_spec_was_read_from(folder: Path) -> None:
    before = digest(folder)
    (folder / "README.md").write_text("words", encoding="utf-8")
    assert digest(folder) == before
    change_json(folder / "preprocessor_config.json", resample=3)
    assert digest(folder) != before


def test_another_digest_is_over_the_weights_too(folder: Path) -> None:
    before, alone = digest_of(str(folder)), digest(folder)
    (folder / "model.safetensors").write_bytes(b"other")
    changed = digest_of(str(folder))
    assert digest(folder) == alone
    (folder / "model.safetensors").unlink()
    assert len({before, changed, digest_of(str(folder)), alone, None}) == 5


def test_weights_that_do_not_fit_are_listed(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["classifier.weight"] = torch.zeros(9, 32)
    state["extra.weight"] = state.pop("vit.layernorm.bias")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        build_with_weights(spec_of(folder), None, 0)
    assert str(caught.value).startswith(
        "model.safetensors does not fit my-vit with 4 classes\n"
        "1 missing: vit.layernorm.bias; 1 unexpected: extra.weight; "
        "1 of another shape: classifier.weight (9, 32) for (4, 32)\n"
    )


def test_missing_and_damaged_weights_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"^cannot read model.safetensors \(SafetensorError"):
        build_with_weights(spec_of(folder), None, 0)
    path.unlink()
    with pytest.raises(WeightsError, match=r"^no weights file .*my-vit/model.safetensors"):
        build_with_weights(spec_of(folder), None, 0)


def test_transformers_stays_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("transformers")
    before = log.level
    build_with_weights(spec_of(folder), None, 0)
    assert log.level == before
    assert capfd.readouterr() == ("", "")


def test_the_random_state_is_left_alone(folder: Path) -> None:
    before = torch.random.get_rng_state()
    build_with_weights(spec_of(folder), None, 0)
    np.testing.assert_array_equal(torch.random.get_rng_state().numpy(), before.numpy())


def test_the_manifest_has_what_a_kept_export_is_known_by(saved: Path) -> None:
    spec = find_definition(str(saved))
    _, record = build_with_weights(spec, None, 0)
    assert made_of(str(spec.source_sha256), record.sha256) == digest_of(str(saved))
