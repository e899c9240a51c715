from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from deploykit import load
from deploykit.bundle.files import external_locations
from deploykit.bundle.manifest import LABELS, MANIFEST, MODEL, Bundle
from deploykit.core.artifacts import sha256_of, sha256_of_bytes
from deploykit.core.errors import BundleError, IntegrityError
from deploykit.verbs.check import check
from tests.bundles import engine_record, write_bundle

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "colours", engine_record())


def rewrite(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change the manifest as somebody does who knows how its digest is made."""
    path = folder / MANIFEST
    body = json.loads(path.read_text(encoding="utf-8"))
    del body["manifest_sha256"]
    change(body)
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    signed = {**body, "manifest_sha256": sha256_of_bytes(canonical.encode())}
    path.write_text(json.dumps(signed), encoding="utf-8")


# Names


NO_PLAIN_NAMES = [
    "../evil/model.onnx",
    "/etc/passwd",
    "..",
    ".",
    "",
    "sub/model.onnx",
    "C:model.onnx",
    "a\\model.onnx",
    "model\0.onnx",
]


@pytest.mark.parametrize("name", NO_PLAIN_NAMES)
@pytest.mark.parametrize("place", ["onnx", "file", "engine"])
def test_only_plain_names_are_opened(folder: Path, place: str, name: str) -> None:
    (folder.parent / "evil").mkdir()
    (folder / MODEL).rename(folder.parent / "evil/model.onnx")

    def change(body: dict[str, object]) -> None:
        if place == "onnx":
            body["onnx"]["path"] = name  # type: ignore[index]
        elif place == "file":
            body["files"][name] = "0" * 64  # type: ignore[index]
        else:
            body["engines"][0]["file"] = name  # type: ignore[index]

    rewrite(folder, change)
    # A path that is empty or a dot is the same to pathlib, and then none of the files.
    refused = r"colours/manifest\.json: it(s graph is| names) .*, which is no(ne|\splain name)"
    with pytest.raises(BundleError, match=refused):
        Bundle.open(folder)
    with pytest.raises(BundleError):
        load(folder, device="cpu")


def test_a_graph_that_is_none_of_the_files(folder: Path) -> None:
    (folder / "other.onnx").write_bytes((folder / MODEL).read_bytes())
    rewrite(folder, lambda body: body["onnx"].update(path="other.onnx"))  # type: ignore[attr-defined]
    with pytest.raises(BundleError, match=r"its graph is 'other.onnx', which is none of its files"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", [MANIFEST, LABELS])
def test_a_file_that_is_named_twice(folder: Path, name: str) -> None:
    rewrite(folder, lambda body: body["engines"][0].update(file=name))  # type: ignore[index]
    with pytest.raises(BundleError, match=f"it names '{name}' as a file of the bundle twice"):
        Bundle.open(folder)


# What is no regular file


def named_pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_a_folder(path: Path) -> None:
    path.symlink_to("/")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # such names may have no more than 107 characters


IRREGULAR = {
    named_pipe: r"it is a pipe \(FIFO\), not a regular file",
    link_to_a_pipe: r"it is a pipe \(FIFO\), not a regular file",
    device: "it is a device, not a regular file",
    Path.mkdir: "Is a directory",
    link_to_a_folder: "Is a directory",
    unix_socket: "it is a socket, not a regular file",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", IRREGULAR)
@pytest.mark.parametrize("name", [MODEL, LABELS, MANIFEST])
def test_nothing_but_regular_files_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(folder)
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises(BundleError, match=rf"{name}.*: {IRREGULAR[make]}"):
        load(folder, device="cpu")
    if name == MANIFEST:
        with pytest.raises(BundleError, match=IRREGULAR[make]):
            check(folder)
    else:
        assert re.search(IRREGULAR[make], check(folder).problems[0])


def test_a_link_to_a_file_is_read(folder: Path) -> None:
    (folder / MODEL).rename(folder / "blob")
    (folder / MODEL).symlink_to("blob")
    assert check(folder).ok


def test_a_manifest_of_gigabytes_is_not_read(folder: Path) -> None:
    with (folder / MANIFEST).open("r+b") as file:
        file.truncate(2**33)
    with pytest.raises(BundleError, match=r"has more than 67108864 bytes, which no manifest has"):
        Bundle.open(folder)


# Weights beside a graph


def external_graph(path: Path, location: str, *, where: str = "initializer") -> Path:
    """A graph with one tensor in another file, as the onnx package writes it."""
    tensor = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    set_external_data(tensor, location, offset=0, length=36)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "inner", [], [out], [tensor]
    )
    if where == "initializer":
        graph = helper.make_graph(inner.node, "g", [image], [out], [tensor])
    elif where == "attribute":
        constant = helper.make_node("Constant", [], ["w"], value=tensor)
        graph = helper.make_graph([constant, *inner.node], "g", [image], [out])
    else:
        branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
        condition = numpy_helper.from_array(np.array(True), "c")
        graph = helper.make_graph([branch], "g", [image], [out], [condition])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


@pytest.mark.parametrize("where", ["initializer", "attribute", "subgraph"])
@pytest.mark.parametrize("location", ["../evil.data", "other.data", "location", "é/ü.data"])
def test_the_files_that_a_graph_names_are_found(tmp_path: Path, location: str, where: str) -> None:
    path = external_graph(tmp_path / "m.onnx", location, where=where)
    assert external_locations(path) == {location}


def test_weights_within_are_no_other_file(tmp_path: Path) -> None:
    """One tensor holds the very bytes that an entry has."""
    inside = np.frombuffer(b"\x6a\x10\x0a\x08location\x12\x04evil" * 9, np.uint8)
    tensor = numpy_helper.from_array(inside, "location")
    graph = helper.make_graph([], "location", [], [], [tensor])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path)
    assert external_locations(path) == set()
    (tmp_path / "empty.onnx").touch()
    assert external_locations(tmp_path / "empty.onnx") == set()


def test_random_bytes_are_a_graph_or_are_refused(tmp_path: Path) -> None:
    path = external_graph(tmp_path / "m.onnx", "other.data")
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes: set[object] = set()
    for _ in range(400):
        damaged = bytearray(content)
        for at in rng.integers(0, len(damaged), 2):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged[: rng.integers(1, len(damaged) + 1)])
        try:
            outcomes.add(type(external_locations(path)))
        except BundleError as exc:
            outcomes.add(str(exc).partition(":")[0])
    assert outcomes == {set, "m.onnx is no ONNX graph"}


@pytest.mark.parametrize("location", ["../evil.data", "other.data"])
def test_weights_that_the_manifest_does_not_name(folder: Path, location: str) -> None:
    external_graph(folder / MODEL, location)
    (folder / location).write_bytes(bytes(36))
    rewrite(folder, lambda body: body["files"].update({MODEL: sha256_of(folder / MODEL)}))  # type: ignore[attr-defined]
    refused = rf"colours: {MODEL} takes weights from '{location}', which the manifest does not name"
    with pytest.raises(IntegrityError, match=refused):
        load(folder, device="cpu")


# Bytes that are hashed are the bytes that are used


def test_what_is_written_to_afterwards_is_noticed(folder: Path) -> None:
    """Also where size and time of modification are put back: nobody can set the time of change."""
    bundle = Bundle.open(folder)
    bundle.require_intact()
    assert not bundle.files.changed_since()
    before = (folder / MODEL).stat()
    content = bytearray((folder / MODEL).read_bytes())
    content[-1] ^= 1
    (folder / MODEL).write_bytes(content)
    os.utime(folder / MODEL, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert bundle.files.changed_since()


def test_a_file_is_read_once(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.files.read(LABELS) == b"red\ngreen\nblue\n"
    (folder / LABELS).write_text("blue\ngreen\nred\n", encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"labels.txt has sha256 .*, the manifest gives"):
        bundle.files.read(LABELS)
