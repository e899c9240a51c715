"""What a TARGET names, and what it is called."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from deploykit.core.choices import DefinitionChoices
from deploykit.core.errors import UnknownNameError, UsageError
from deploykit.sources.targets import Kind, digest_of, find_definition, kind_of, name_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name, file in (("bundle", "manifest.json"), ("hub", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(name, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "target", ["resnet50", "torchvision:swin_t", "timm:resnet18d.ra2_in1k", "nets/mine.py:small"]
)
def test_names_and_factories_are_definitions(target: str) -> None:
    assert kind_of(target) is Kind.DEFINITION


def test_folders_are_told_apart_by_what_they_hold(folders: Path) -> None:
    assert kind_of(str(folders / "bundle")) is Kind.BUNDLE
    assert kind_of(str(folders / "hub")) is Kind.DEFINITION
    (folders / "bundle" / "config.json").write_text("{}", encoding="utf-8")
    assert kind_of(str(folders / "bundle")) is Kind.BUNDLE


def test_a_file_is_a_graph_whether_it_exists_or_not() -> None:
    assert kind_of("nowhere/mine.onnx") is Kind.ONNX


def test_targets_are_called_by_their_file_or_folder(folders: Path) -> None:
    assert name_of(str(folders / "deep" / "mine.onnx")) == "mine"
    assert name_of(f"{folders}/bundle/") == "bundle"
    assert name_of(f"{folders}/hub/") == "hub"


def test_names_of_packages_make_names_of_folders() -> None:
    assert name_of("timm:hf-hub:someone/net") == "timm-hf-hub-someone-net"
    assert name_of("resnet50") == "resnet50"


def test_the_digest_is_that_of_the_file_that_decides(folders: Path) -> None:
    (folders / "nets.py").write_text("x = 1", encoding="utf-8")
    assert digest_of(f"{folders}/nets.py:small") == sha256(b"x = 1").hexdigest()
    assert digest_of(str(folders / "bundle")) == sha256(b"bundle").hexdigest()
    assert digest_of("resnet50") is None
    assert digest_of("nowhere/mine.onnx") is None


def test_choices_reach_the_definition() -> None:
    spec = find_definition("resnet18", DefinitionChoices(num_classes=7, image_size=64))
    assert spec.outputs[0].shape == ("batch", 7)
    assert spec.inputs[0].shape == ("batch", 3, 64, 64)


def test_arguments_are_for_factories() -> None:
    with pytest.raises(UsageError, match="--factory-args is for a factory in a Python file, not"):
        find_definition("resnet18", DefinitionChoices(arguments={"depth": 3}))


def test_a_python_file_needs_a_factory() -> None:
    with pytest.raises(UsageError, match=r"nets\.py names no factory\nexpected nets\.py:FACTORY"):
        find_definition("nets.py")


def test_an_unknown_name_suggests_close_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean: .*resnet50"):
        find_definition("resnet5")


def test_a_graph_is_no_definition() -> None:
    with pytest.raises(
        UsageError, match=r"mine.onnx is a graph, not a definition\nexpected a name"
    ):
        find_definition("mine.onnx")


@pytest.mark.parametrize("name", ["alexnet", "nin", "resnet50", "vgg16"])
def test_definitions_for_imagenet_know_its_classes(name: str) -> None:
    labels = find_definition(name).known_labels()
    assert labels is not None
    assert len(labels) == 1000
    # By the numbers of ImageNet's own lists.
    assert [labels[index] for index in (0, 282, 999)] == [
        "tench",
        "tiger cat",
        "toilet tissue",
    ]
    for count in (10, 1000):  # whoever says the number has classes of their own
        spec = find_definition(name, DefinitionChoices(num_classes=count))
        assert spec.known_labels() is None


def test_a_definition_is_found_without_torch() -> None:
    """`bench` looks at all its targets first, in a process that measures nothing."""
    code = (
        "import sys\n"
        "from deploykit.sources.targets import find_definition\n"
        "find_definition('resnet50')\n"
        "print(sorted({'torch', 'torchvision', 'onnx'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
