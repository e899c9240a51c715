"""`names` and `get`: what exists and how it is configured, without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deploykit.core.errors import MissingDependencyError, UnknownNameError, UsageError
from deploykit.models import get, names

CIFAR_NAMES = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")


def test_listing_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys\n"
        "from deploykit.models import _registry as models\n"
        "specs = [models.get(name) for name in models.names()]\n"
        "assert len(specs) == 26, len(specs)\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'onnx', 'onnxruntime', 'PIL'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_come_by_year_family_paper_and_size() -> None:
    assert names() == (
        "alexnet2012",
        "alexnet",
        "nin",
        "googlenet",
        "vgg11",
        "vgg11_bn",
        "vgg13",
        "vgg13_bn",
        "vgg16",
        "vgg16_bn",
        "vgg19",
        "vgg19_bn",
        *CIFAR_NAMES,
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "resnext50_32x4d",
        "resnext101_32x8d",
        "wide_resnet50_2",
        "wide_resnet101_2",
    )


def test_an_unknown_name_suggests_close_ones() -> None:
    with pytest.raises(UnknownNameError, match="unknown architecture 'resnet5'") as caught:
        get("resnet5")
    assert "resnet50" in caught.value.matches
    assert "all of them: deploykit list" in str(caught.value)


def test_a_spec_as_published() -> None:
    spec = get("resnet50")
    assert spec.inputs[0].name == "input"
    assert spec.inputs[0].dtype == "float32"
    assert spec.inputs[0].shape == ("batch", 3, 224, 224)
    assert spec.outputs[0].name == "logits"
    assert spec.outputs[0].shape == ("batch", 1000)
    assert spec.num_classes == 1000
    assert spec.labels is None
    assert spec.torchvision == "resnet50"
    assert spec.year == 2015
    assert spec.paper == "https://arxiv.org/abs/1512.03385"


def test_a_variant_of_another_paper() -> None:
    spec = get("wide_resnet50_2")
    assert (spec.title, spec.year) == ("Wide Residual Networks", 2016)
    assert spec.paper == "https://arxiv.org/abs/1605.07146"


@pytest.mark.parametrize(("image_size", "resize"), [(224, 256), (112, 128), (299, 342), (64, 73)])
def test_the_published_ratio_of_resize_to_crop_is_kept(image_size: int, resize: int) -> None:
    preprocessing = get("vgg16", image_size=image_size).preprocessing
    assert preprocessing.crop == (image_size, image_size)
    assert preprocessing.resize == resize
    assert preprocessing.mean == (0.485, 0.456, 0.406)


def test_cifar_images_are_scaled_only_when_the_size_differs() -> None:
    assert get("resnet20").preprocessing.resize is None
    assert get("resnet20", image_size=32).preprocessing.resize is None
    assert get("resnet20", image_size=48).preprocessing.resize == 48


def test_googlenet_reads_pixels_from_minus_one_to_one() -> None:
    preprocessing = get("googlenet").preprocessing
    assert preprocessing.mean == preprocessing.std == (0.5, 0.5, 0.5)


def test_labels_come_with_the_published_number_of_classes_only() -> None:
    labels = get("resnet20").labels
    assert labels is not None
    assert labels[:2] == ("airplane", "automobile")
    assert len(labels) == 10
    assert get("resnet20", num_classes=11).labels is None


@pytest.mark.parametrize("num_classes", [0, -3])
def test_fewer_than_one_class_is_refused(num_classes: int) -> None:
    message = f"resnet18 cannot have {num_classes} classes\ngive at least 1; published with 1000"
    with pytest.raises(UsageError, match=message):
        get("resnet18", num_classes=num_classes)


def test_an_image_below_the_minimum_is_refused() -> None:
    message = "an input of 31x31 is too small for vgg16\nthe smallest is 32; published with 224"
    with pytest.raises(UsageError, match=message):
        get("vgg16", image_size=31)


def test_specs_compare_by_their_choices() -> None:
    assert get("nin") == get("nin", num_classes=1000)
    assert get("nin") != get("nin", num_classes=10)


def test_building_without_torch_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    message = r"needs the Python module torch(.|\n)*pip install torch torchvision onnx"
    with pytest.raises(MissingDependencyError, match=message):
        get("nin").build()
