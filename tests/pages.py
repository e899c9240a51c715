"""A page of the documents run from its top to its end, and what it says that the reader has."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shutil
import subprocess
from contextlib import chdir
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import deploykit as package
from tests import own_files
from tests.bundles import write_classifier
from tests.cli import deploykit
from tests.documents import blocks, commands
from tests.graphs import normal

if TYPE_CHECKING:
    from pathlib import Path

STANDS_FOR = {"resnet50": "classifier.onnx"}
"""Targets of pages, and what is taken for them here."""
SIDE, CLASSES = 32, own_files.CLASSES
"""Of `own_files.classifier`."""


def make_desk(folder: Path) -> None:
    folder.mkdir()
    (folder / "classifier.onnx").write_bytes(own_files.classifier().SerializeToString())
    write_classifier(folder / "digits.onnx", image="28, 28", colours=1)
    (folder / "patients.onnx").write_bytes(own_files.patients().SerializeToString())
    own_files.write_values(folder / "values.npz")
    write_images(folder)
    for name, options in {"resnet50-fp16": ["--fp16"], "resnet50-int8": ["--int8"]}.items():
        calib = ["--calib", folder / "images", "--sensitive-layers", "int8"] * ("int8" in name)
        at = folder / "engines" / name
        source = folder / "classifier.onnx"
        called = deploykit("export", source, *options, *calib, "--backend", "none", "-o", at)
        assert called.code == 0, called.err
    shutil.copy(folder / "engines/resnet50-fp16/reference.onnx", folder / "other.onnx")
    for precision in ("fp16", "int8"):
        shutil.copytree(
            folder / "engines" / f"resnet50-{precision}", folder / f"engines/resnet20-{precision}"
        )


def write_images(folder: Path) -> None:
    """`images/` and `photographs/`, `labelled/` with a folder per class, `cat.jpg`, `test.npz`."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, SIDE, SIDE, 3), np.uint8)
    labels = np.arange(len(pixels)) % CLASSES
    for name in ("images", "photographs", *(f"labelled/class{i}" for i in range(CLASSES))):
        (folder / name).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        picture = Image.fromarray(image)
        picture.save(folder / "images" / f"{index}.png")
        picture.save(folder / "labelled" / f"class{label}" / f"{index}.png")
        if index < 8:
            picture.save(folder / "photographs" / f"{index}.png")
    Image.fromarray(pixels[0]).resize((64, 48)).save(folder / "cat.jpg")
    more = np.random.default_rng(1).integers(0, 256, (320, SIDE, SIDE, 3), np.uint8)
    np.savez(folder / "test.npz", images=more, labels=np.arange(len(more)) % CLASSES)


def run_page(page: Path, desk: Path, folder: Path) -> None:
    """Run its blocks in ``folder``, a copy of ``desk`` in which their results are left."""
    if folder.exists():  # left by a run that failed
        shutil.rmtree(folder)
    shutil.copytree(desk, folder)
    with chdir(folder):
        write_what_a_page_speaks_of(page, folder)
        names: dict[str, Any] | None = None
        for block in blocks(page):
            if block.is_run and block.language == "sh":
                for line in block.text.splitlines():
                    run_line(line, stands_for={} if page.parent.name == "routes" else STANDS_FOR)
            elif block.is_run:
                names = names_of_a_reader(desk) if names is None else names
                run_python(block.text, names)


def run_line(line: str, stands_for: dict[str, str]) -> None:
    """A command of ours in this process, any other in a shell."""
    calls = list(commands(line))
    if not calls:
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)  # noqa: S602 - a line of our own page
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    for name, *rest in calls:
        called = deploykit(name, *(stands_for.get(word, word) for word in rest))
        assert called.code == 0, f"{line}\n{called.out}{called.err}"


def run_python(text: str, names: dict[str, Any]) -> None:
    """A block as a notebook runs it: `await` is allowed."""
    code = compile(text, "<page>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)  # noqa: S307 - a block of our own page
    if inspect.iscoroutine(result):
        asyncio.run(result)


def names_of_a_reader(desk: Path) -> dict[str, Any]:
    """What the pages' Python has, beside what it imports."""
    from torch import nn

    jpeg = (desk / "cat.jpg").read_bytes()
    pixels = np.asarray(Image.open(desk / "cat.jpg"))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    return {
        "deploykit": package,
        "numpy": np,
        "module": nn.Sequential(nn.Conv2d(3, 16, 3, stride=4), nn.ReLU(), *head),
        "names": ["cat", "dog", "bird"],
        "batch": normal(2, 3, SIDE, SIDE),
        "images": normal(2, 3, SIDE, SIDE),
        "image": normal(3, SIDE, SIDE),
        "jpeg_bytes": jpeg,
        "pixels": pixels,
        "pixel_arrays": np.load(desk / "test.npz")["images"],
        "blood": normal(8, own_files.BLOOD),
        "ward": np.arange(8) % 5,
    }


def write_what_a_page_speaks_of(page: Path, folder: Path) -> None:
    """The Python files that a page prints, weights, and a folder of Hugging Face."""
    for block in blocks(page):
        named = re.match(r"# (\w+\.py)\n", block.text) if block.language == "python" else None
        if named is not None:
            (folder / named[1]).write_text(block.text, encoding="utf-8")
    if page.stem == "hugging-face":
        from tests import hugging_face

        processor = hugging_face.VIT_PROCESSOR
        hugging_face.make_folder(folder / "my-vit", processor=processor, num_hidden_layers=1)
    if page.stem == "export":
        write_weights(folder)


def write_weights(folder: Path) -> None:
    """Of ResNet-20: `flowers.safetensors` for 5 classes with their names, `resnet20.npz` for 10."""
    from safetensors.torch import save_file

    from deploykit.models import get

    flowers = get("resnet20", num_classes=5).build().state_dict()
    save_file(flowers, folder / "flowers.safetensors")
    (folder / "flowers.txt").write_text("a\nb\nc\nd\ne\n", encoding="utf-8")
    ten = get("resnet20").build().state_dict()
    np.savez(folder / "resnet20.npz", **{name: value.numpy() for name, value in ten.items()})
