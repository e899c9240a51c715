"""Words out of files of strangers, with sequences that a terminal obeys, through the commands."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.panel import Panel
from rich.text import Text

from deploykit.bundle.manifest import LABELS, MANIFEST, MODEL
from deploykit.cli._terminal import PrintableConsole
from deploykit.core.artifacts import sha256_of, sha256_of_bytes
from tests.bundles import SIZE, engine_record, write_bundle
from tests.cli import deploykit
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli import Called

EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[31mcat\r\x9b\u202e"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x1b[31mcat\r\x9b\u202e"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def assert_harmless(called: Called, *, shown: str = SHOWN) -> None:
    said = called.out + called.err
    assert not OBEYED.search(said), ascii(said)
    assert shown in re.sub(r"\s", "", said), said  # long words are folded


def write_manifest(folder: Path, **changes: Any) -> None:
    body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del body["manifest_sha256"]
    body = {**body, **changes}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    text = json.dumps({**body, "manifest_sha256": sha256_of_bytes(canonical.encode())})
    (folder / MANIFEST).write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "colours", engine_record(warnings=(f"slow {EVIL}",)))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / f"{EVIL}.png"
    Image.new("RGB", (SIZE, SIZE), (255, 0, 0)).save(path)
    return path


def test_labels_and_names_of_images(folder: Path, photo: Path) -> None:
    (folder / LABELS).write_bytes(f"{EVIL}\ngreen\nblue\n".encode())
    files = {name: sha256_of(folder / name) for name in (MODEL, LABELS, "golden.npz")}
    write_manifest(folder, files=files)
    called = deploykit("predict", folder, photo, "--device", "cpu")
    assert called.code == 0, called.err
    assert_harmless(called)
    assert called.out.count(r"\x1b]0;") == 2
    plain = deploykit("predict", folder, photo, "--device", "cpu", "--json")
    assert plain.data["predictions"][0]["top"][0]["label"] == EVIL


def test_names_of_a_manifest(folder: Path) -> None:
    write_manifest(folder, name=EVIL, weights={"source": EVIL, "sha256": None, "trained": True})
    (folder / engine_record().file).unlink()
    for call in (("check", folder), ("predict", folder, folder / "no.png", "--device", "cpu")):
        called = deploykit(*call)
        assert not OBEYED.search(called.out + called.err)


def test_a_schema_version(folder: Path) -> None:
    write_manifest(folder, schema_version=EVIL)
    assert_harmless(deploykit("check", folder))


def test_a_name_of_a_file_in_a_manifest(folder: Path) -> None:
    write_manifest(folder, files={EVIL: "0" * 64})
    called = deploykit("check", folder)
    assert called.code == 1
    assert_harmless(called, shown="whichisnoplainnameofafile")


def test_names_of_nodes_and_values(tmp_path: Path) -> None:
    model = graph(
        "g (float[N,3,8,8] x) => (float[N,4] y) { f = Flatten(x) y = Gemm <transB = 1> (f, w) }",
        {"w": normal(4, 192)},
    )
    for node in model.graph.node:
        node.name = f"{EVIL}{node.op_type}"
    model.graph.output[0].name = model.graph.node[1].output[0] = f"out {EVIL}"
    path = save(model, tmp_path / "m.onnx")
    called = deploykit("inspect", path)
    assert called.code == 0, called.err
    assert_harmless(called)
    half = deploykit("inspect", path, "--fp16", "--all")
    assert_harmless(half)


def test_an_operator_that_nobody_knows(tmp_path: Path) -> None:
    model = graph("g (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Relu(x) }")
    model.graph.node[0].op_type = EVIL
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    called = deploykit("export", tmp_path / "m.onnx", "--backend", "none", "-o", tmp_path / "b")
    assert called.code == 1
    assert not OBEYED.search(called.out + called.err)


def test_keys_of_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({f"{EVIL}{at}": torch.zeros(3) for at in range(3)}, path)
    called = deploykit("export", "resnet20", "--weights", path, "--backend", "none")
    assert called.code == 1
    assert_harmless(called)


def test_names_of_class_folders(folder: Path, tmp_path: Path) -> None:
    write_manifest(folder, files={name: sha256_of(folder / name) for name in (MODEL, "golden.npz")})
    for name in ("red", "green", EVIL):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "data" / name / "1.png")
    assert_harmless(deploykit("eval", folder, "--data", tmp_path / "data", "--per-class"))


def test_names_that_are_no_utf_8(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (SIZE, SIZE)).save(path)
    called = deploykit("predict", folder, path, "--device", "cpu")
    assert called.code == 0, called.err
    assert r"caf\udce9.png" in called.out
    as_json = deploykit("predict", folder, path, "--device", "cpu", "--json")
    assert as_json.data["predictions"][0]["image"].endswith("caf\udce9.png")


@pytest.mark.parametrize("command", ["check", "inspect", "predict", "validate", "export"])
def test_folders_that_are_no_utf_8_are_refused_in_words(tmp_path: Path, command: str) -> None:
    """onnx and onnxruntime take no such path, and raise errors of Python's arguments."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    place = write_bundle(folder / "colours")
    image = folder / "a.png"
    Image.new("RGB", (SIZE, SIZE)).save(image)
    arguments: dict[str, tuple[object, ...]] = {
        "predict": (place, image, "--device", "cpu"),
        "validate": (place / MODEL, place / MODEL),
        "export": (place / MODEL, "--backend", "none"),
    }
    called = deploykit(command, *arguments.get(command, (place,)))
    assert called.code == 1
    said = " ".join((called.out + called.err).split())
    assert "no UTF-8, onnx and onnxruntime cannot open it" in said
    assert "rename the file, or the folder that has them" in said


def test_texts_that_others_than_a_console_made(capsys: pytest.CaptureFixture[str]) -> None:
    """Styles stay: only what is in the text is not obeyed."""
    out = PrintableConsole(file=sys.stdout, force_terminal=True, width=200)
    out.print(Text(EVIL, style="bold"), Panel(Text.from_markup(f"[red]{SHOWN}[/red] {EVIL[:9]}")))
    said = capsys.readouterr().out
    assert "\x1b[1m" in said
    assert "\x1b]0;" not in said
    assert "\x9b" not in said
    assert "\x07" not in said


def test_golden_arrays_are_no_words(folder: Path) -> None:
    np.savez(folder / "golden.npz", **{EVIL: np.zeros(3)})  # type: ignore[arg-type]  # a name
    files = {name: sha256_of(folder / name) for name in (MODEL, LABELS, "golden.npz")}
    write_manifest(folder, files=files)
    called = deploykit("check", folder)
    assert called.code == 1
    assert not OBEYED.search(called.out + called.err)


@pytest.mark.parametrize("name", ["a\nproblem: forged", "b\r\nforged", "c\u2029forged"])
def test_line_breaks_in_names_of_images_forge_no_line(
    folder: Path, tmp_path: Path, name: str
) -> None:
    """Of one that has an answer, one that has none, and one that is no image."""
    place = tmp_path / "given"
    place.mkdir()
    Image.new("RGB", (SIZE, SIZE), (255, 0, 0)).save(place / f"{name}.png")
    (place / f"{name}.jpg").write_bytes(b"junk")
    (place / f"{name}.junk").write_bytes(b"junk")
    called = deploykit("predict", folder, place, "--device", "cpu")
    assert called.code == 1
    lines = (called.out + called.err).splitlines()
    assert not any(line.lstrip().startswith(("forged", "problem: forged")) for line in lines)
    assert sum(line.startswith("problem: ") for line in lines) == 1
    escaped = name.encode("unicode_escape").decode()
    shown = re.sub(r"\s", "", called.out + called.err)
    assert shown.count(re.sub(r"\s", "", escaped)) == 3
    names = {
        each["image"]
        for each in deploykit("predict", folder, place, "--device", "cpu", "--json").data[
            "predictions"
        ]
    }
    assert names == {str(place / f"{name}.png")}
