"""Faults within files, for `faults.py`: random bytes and values, names, special files, words.

Each kind is a function that takes an empty folder, how many to plant, and the row to fill.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from PIL import Image

import deploykit
from benchmarks.faults_judge import PROBE, Row, digest_of, is_refusal, is_right, loaded, two_kinds
from deploykit.bundle.keys import SigningKey
from deploykit.bundle.manifest import GOLDEN, LABELS, MANIFEST, MODEL, SIGNATURE
from deploykit.bundle.signature import sign_bundle
from deploykit.core.artifacts import sha256_of_bytes
from deploykit.precision.calibration.table import (
    CalibrationKey,
    CalibrationTable,
    read_table,
    table_text,
)
from deploykit.verbs.check import check
from deploykit.verbs.inspect import inspect
from deploykit.verbs.verify import verify
from tests.bundles import SIZE, engine_record, write_bundle, write_classifier
from tests.cli import deploykit as command
from tests.special_files import SPECIAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, -1, 2, 10**30, -1.5, 1e308, float("nan"), float("inf"), "", "a", "N",
    "float32", "fp16", MODEL, "\ud800", "\x1b[2J", "x" * 5000, [], [0], [-1, -1], ["N"], [[]],
    [None], {}, {"": {}}, {"a": [1]}, [1, 2, 3], [{}],
)  # fmt: skip
"""What JSON can hold in place of something else."""

EVIL: Final = "\x1b]0;owned\x07\x1b[2J\x1b[31mcat\r\x9b\u202e"
OBEYED: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

Uses = dict[str, "Callable[[], object]"]


# --- a bundle whose manifest is made to fit again


def body_of(folder: Path) -> dict[str, Any]:
    body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del body["manifest_sha256"]
    return dict(body)


def write_signed(folder: Path, body: dict[str, Any]) -> None:
    """As somebody does who knows how the digest is made."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    text = json.dumps({**body, "manifest_sha256": sha256_of_bytes(canonical.encode())})
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def fitted(folder: Path, *names: str) -> None:
    """Put the hashes of changed files into the manifest."""
    body = body_of(folder)
    for name in names:
        body["files"][name] = digest_of(folder / name)
    body["onnx"]["sha256"] = digest_of(folder / MODEL)
    write_signed(folder, body)


def served(folder: Path) -> Any:
    with deploykit.load(folder, device="cpu", threads=1) as model:
        model.predict([np.zeros((SIZE, SIZE, 3), np.uint8)])
        model.self_test()
        return model.run(PROBE)


def uses_of(folder: Path) -> Uses:
    return {
        "load": lambda: served(folder),
        "check": lambda: check(folder),
        "inspect": lambda: inspect(str(folder)),
    }


def honest(found: Any) -> str:
    """An answer of the unchanged graph is right; errors, reports and tables are as they are."""
    if not isinstance(found, np.ndarray):
        return "survived"
    means = PROBE.mean(axis=(2, 3), dtype=np.float64)
    return "survived" if np.allclose(found, means, atol=1e-4) else "lied"


def refused(found: Any) -> str:
    """Whoever calls what is faulty right has lied."""
    return "survived" if is_refusal(found) else "lied"


# --- random bytes and values


def damaged(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 30))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed[: chance.choice((len(changed),) * 4 + (chance.randrange(len(changed)),))])


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """The way to each value within plain data."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield (key,)
            yield from ((key, *way) for way in places(inner))


def mutated(body: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """Plain data with one value replaced or removed, or nested deeply."""
    changed = copy.deepcopy(body)
    *way, last = chance.choice(list(places(changed)))
    holder: Any = changed
    for key in way:
        holder = holder[key]
    if chance.random() < 0.2:  # noqa: PLR2004
        del holder[last]
    else:
        holder[last] = chance.choice(VALUES)
    if changed and chance.random() < 0.03:  # noqa: PLR2004
        value: Any = []
        for _ in range(chance.choice((50, 900))):
            value = [value]
        changed[chance.choice(list(changed))] = value
    return changed


def bytes_of_files(folder: Path, count: int, row: Row) -> None:
    """Random bytes in each file of a bundle, with the manifest as it was."""
    place, chance = two_kinds(folder)["colours-fp32"], random.Random(0)  # noqa: S311
    kept = {path.name: path.read_bytes() for path in place.iterdir()}
    for turn in range(count):
        name = chance.choice(sorted(kept))
        content = damaged(kept[name], chance)
        (place / name).write_bytes(content)
        is_same = content == kept[name] or (name == MANIFEST and _is_same_json(content, kept[name]))
        judge = (lambda found: "survived" if found.ok else "lied") if is_same else refused
        row.plant(f"{name}, turn {turn}, check", lambda: check(place), judge)
        row.plant(
            f"{name}, turn {turn}, load",
            lambda: loaded(place),
            lambda found: "survived" if isinstance(found, Exception) or is_right(found) else "lied",
        )
        (place / name).write_bytes(kept[name])


def _is_same_json(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def values_of_manifests(folder: Path, count: int, row: Row) -> None:
    """Other values in a manifest whose digest fits: an error of ours, or the graph's answer."""
    chance = random.Random(1)  # noqa: S311
    place = write_bundle(folder / "colours", engine_record(), calibration={"images": 8})
    body = body_of(place)
    for turn in range(count):
        write_signed(place, mutated(body, chance))
        for name, use in uses_of(place).items():
            row.plant(f"turn {turn}, {name}", use, honest)


def bytes_of_graphs(folder: Path, count: int, row: Row) -> None:
    """Random bytes in a graph whose hash fits: what passes the golden sample must be right."""
    _fitted_bytes(folder, MODEL, count, row)


def bytes_of_golden_samples(folder: Path, count: int, row: Row) -> None:
    """Random bytes and other arrays in a golden sample whose hash fits."""
    _fitted_bytes(folder, GOLDEN, count, row)
    place = write_bundle(folder / "arrays")
    with np.load(place / GOLDEN) as arrays:
        right = dict(arrays)
    odd = (np.float32(1), np.zeros((2, 3)), np.zeros((2, 3), "U3"), np.full((2, 3), np.nan, "f4"),
           np.zeros((0, 3, SIZE, SIZE), "f4"), np.zeros((2, 3, SIZE, SIZE), "c8"),
           np.zeros((2, 3, SIZE, SIZE), [("a", "f4")]), np.zeros((2, 3), "M8[s]"))  # fmt: skip
    for name in (*right, "another"):
        for array in odd:
            np.savez(place / GOLDEN, **{**right, name: array})
            fitted(place, GOLDEN)
            for use_name, use in uses_of(place).items():
                row.plant(f"{name} as {array.dtype}, {use_name}", use, honest)


def _fitted_bytes(folder: Path, name: str, count: int, row: Row) -> None:
    place, chance = write_bundle(folder / "colours"), random.Random(2)  # noqa: S311
    content = (place / name).read_bytes()
    for turn in range(count):
        (place / name).write_bytes(damaged(content, chance))
        fitted(place, name)
        for use_name, use in uses_of(place).items():
            row.plant(f"turn {turn}, {use_name}", use, honest)


def signed_bundles(folder: Path, count: int, row: Row) -> None:
    """Changes of a signed bundle by somebody who makes every hash fit but has no key."""
    from tests.signing import new_key  # needs model-signing

    chance, place = random.Random(4), two_kinds(folder)["colours-fp32"]  # noqa: S311
    keys = [new_key(folder / f"{name}.pem") for name in ("mine", "another")]
    trust = keys[0].with_suffix(".pub")
    sign_bundle(place, SigningKey(keys[0]))
    kept = {path.name: path.read_bytes() for path in place.iterdir()}
    uses: Uses = {
        "load": lambda: loaded(place, trust),
        "check": lambda: check(place, trust=trust),
        "verify": lambda: verify(place, trust),
    }
    row.plant("unchanged", uses["load"], lambda found: "survived" if is_right(found) else "lied")
    for turn in range(count):
        name = chance.choice((MODEL, GOLDEN, LABELS, MANIFEST, SIGNATURE, "unsigned", "another"))
        if name == "another":
            sign_bundle(place, SigningKey(keys[1]))
        elif name == "unsigned":
            (place / SIGNATURE).unlink()
        elif name == MANIFEST:
            write_signed(place, mutated(body_of(place), chance))
        else:
            (place / name).write_bytes(damaged(kept[name], chance))
            if name != SIGNATURE and (place / name).read_bytes() != kept[name]:
                fitted(place, name)
        # Other bytes of a signature may say the same.
        found = {path.name: path.read_bytes() for path in place.iterdir()}
        is_same = name == SIGNATURE or found == kept
        for use_name, use in uses.items():
            row.plant(f"{name}, turn {turn}, {use_name}", use, honest if is_same else refused)
        for at, content in kept.items():
            (place / at).write_bytes(content)


def calibration_tables(_folder: Path, count: int, row: Row) -> None:
    """Random bytes and values in a calibration table: what is read must be what was written."""
    chance = random.Random(3)  # noqa: S311
    ranges = {f"t{at}": {"max": 1.5 + at, "entropy": 1.1 + at} for at in range(8)}
    key = CalibrationKey("a" * 64, "b" * 64, {"crop": [8, 8]}, {"images": 64, "seed": 0})
    table = CalibrationTable(key, 64, (), ranges, "2026-01-01T00:00:00+00:00", ranges)
    text = table_text(table)
    for turn in range(count):
        if turn % 2:
            changed = json.dumps(mutated(json.loads(text), chance))
        else:
            changed = damaged(text.encode(), chance).decode("utf-8", errors="replace")
        row.plant(
            f"turn {turn}",
            lambda changed=changed: read_table(changed, "table"),  # type: ignore[misc]
            # The time it was made does not count, nor does a field that is not known.
            lambda found: (
                "survived"
                if isinstance(found, Exception) or replace(found, created=table.created) == table
                else "lied"
            ),
        )


# --- names, and what is no regular file


NO_PLAIN_NAMES: Final = (
    "../evil/model.onnx", "/etc/passwd", "..", ".", "", "sub/model.onnx", "C:model.onnx",
    "a\\model.onnx", "model\0.onnx", MANIFEST, "\ud800", "x" * 6000,
)  # fmt: skip


def names_that_leave(folder: Path, _count: int, row: Row) -> None:
    """Names in a manifest that are no plain ones; beside it lies another, good graph."""
    kinds = two_kinds(folder)
    place = kinds["colours-fp32"]
    (folder / "evil").mkdir()
    (folder / "evil" / MODEL).write_bytes((kinds["other-fp32"] / MODEL).read_bytes())
    body = body_of(place)
    for name in NO_PLAIN_NAMES:
        for where in ("onnx", "file", "engine"):
            changed = copy.deepcopy(body)
            if where == "onnx":
                changed["onnx"].update(path=name, sha256=digest_of(folder / "evil" / MODEL))
            elif where == "file":
                changed["files"][name] = "0" * 64
            else:
                changed["engines"][0]["file"] = name
            write_signed(place, changed)
            for use_name, use in uses_of(place).items():
                row.plant(f"{where} {name[:40]!r}, {use_name}", use, refused)


LOCATIONS: Final = ("../evil.data", "other.data", "/etc/passwd", "", "a\0b", "x" * 6000, "é/ü")


def external_weights(folder: Path, _count: int, row: Row) -> None:
    """Weights in files that the manifest does not name, or that `export` must not open."""
    place = write_bundle(folder / "colours")
    for location in LOCATIONS:
        graph = _external_graph(location)
        (place / MODEL).write_bytes(graph)
        fitted(place, MODEL)
        if location in {"../evil.data", "other.data"}:
            (place / location).write_bytes(bytes(36))
        for name, use in uses_of(place).items():
            row.plant(f"{location[:40]!r}, {name}", use, refused)
        (folder / "m.onnx").write_bytes(graph)
        row.plant(f"{location[:40]!r}, export", lambda: _code("export", folder / "m.onnx"), _not_0)


def _external_graph(location: str) -> bytes:
    tensor = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    set_external_data(tensor, location, offset=0, length=36)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [x], [y], [tensor])
    return bytes(helper.make_model(graph).SerializeToString())


def _code(*arguments: object) -> int:
    options = ("--backend", "none") if arguments[0] == "export" else ()
    return command(*arguments, *options).code


def _not_0(found: Any) -> str:
    return "survived" if found in {1, 2} else "lied"


def special_files(folder: Path, _count: int, row: Row) -> None:
    """Pipes, devices and sockets in place of files of bundles, images, graphs, weights, labels."""
    good = write_bundle(folder / "good")
    write_classifier(folder / "good.onnx")
    (folder / "images").mkdir()
    Image.new("RGB", (SIZE, SIZE), "red").save(folder / "images" / "a.png")
    for kind, make in SPECIAL.items():
        for name in (MANIFEST, MODEL, LABELS, GOLDEN):
            place = write_bundle(folder / f"{kind}-{name}")
            (place / name).unlink()
            make(place / name)
            for use_name, use in uses_of(place).items():
                is_shown = use_name != "inspect" or name in {MANIFEST, MODEL}
                row.plant(f"{kind} as {name}, {use_name}", use, refused if is_shown else honest)
        odd = folder / f"odd-{kind}"
        odd.mkdir()
        for suffix in (".png", ".onnx", ".npz", ".pth", ".safetensors", ".txt", ".csv", ".py"):
            make(odd / f"odd{suffix}")
        make(folder / "images" / f"{kind}.png")
        calls: dict[str, tuple[object, ...]] = {
            "predict": (good, odd / "odd.png"),
            "eval": (good, "--data", odd / "odd.csv"),
            "export": (odd / "odd.onnx",),
            "validate": (folder / "good.onnx", odd / "odd.onnx"),
            "calibrate": (folder / "good.onnx", "--data", odd / "odd.npz"),
            "inspect": (odd / "odd.onnx",),
        }
        for name, arguments in calls.items():
            row.plant(f"{kind}, {name}", lambda n=name, a=arguments: _code(n, *a), _not_0)  # type: ignore[misc]
        row.plant(
            f"{kind} in a folder of images",
            lambda: _code("predict", good, folder / "images"),
            lambda code: "survived" if code == 0 else "lied",
        )


# --- words of strangers


def escape_sequences(folder: Path, _count: int, row: Row) -> None:
    """Sequences that a terminal obeys, in every name and text of a stranger."""
    for what, arguments in _foreign_words(folder):
        row.plant(what, lambda a=arguments: command(*a), _is_harmless)  # type: ignore[misc]


def _is_harmless(called: Any) -> str:
    return "lied" if OBEYED.search(called.out + called.err) else "survived"


def _foreign_words(folder: Path) -> Iterator[tuple[str, tuple[object, ...]]]:
    photo = folder / f"{EVIL}.png"
    Image.new("RGB", (SIZE, SIZE)).save(photo)
    fields: dict[str, dict[str, Any]] = {
        "labels": {},
        "a bundle's name": {"name": EVIL},
        "a source of weights": {"weights": {"source": EVIL, "sha256": None, "trained": True}},
        "a schema version": {"schema_version": EVIL},
        "a name of a file": {"files": {EVIL: "0" * 64}},
        "a precision": {"precision": EVIL},
        "a package": {"packages": {EVIL: EVIL}},
        "a conversion": {"conversion": {"kept_fp32": {EVIL: EVIL}}},
        "a kind of head": {"head": {"kind": EVIL, "output": EVIL, "activation": EVIL}},
        "a model": {"model": {"name": EVIL, "num_classes": 3}},
        "a calibration": {"calibration": {"source": EVIL, "images": 8}},
    }
    for at, (what, change) in enumerate(fields.items()):
        place = write_bundle(folder / f"b{at}", engine_record(warnings=(EVIL,)))
        (place / LABELS).write_bytes(f"{EVIL}\ngreen\nblue\n".encode())
        fitted(place, LABELS)
        write_signed(place, {**body_of(place), **change})
        for name, more in (("check", ()), ("inspect", ()), ("predict", (photo,))):
            yield f"{what}, {name}", (name, place, *more)
    graph = onnx.load(write_classifier(folder / "g.onnx"))
    for node in graph.graph.node:
        node.name = f"{EVIL}{node.op_type}"
    onnx.save(graph, folder / f"{EVIL}.onnx")
    yield "names of nodes, inspect", ("inspect", folder / f"{EVIL}.onnx", "--all")
    graph.graph.node[0].op_type = EVIL
    (folder / "unknown.onnx").write_bytes(graph.SerializeToString())
    for name in ("inspect", "export"):
        yield f"an unknown operator, {name}", (name, folder / "unknown.onnx")
    yield "a file that is not there", ("inspect", folder / f"{EVIL}2.onnx")


def names_that_are_no_utf_8(folder: Path, _count: int, row: Row) -> None:
    """Bytes that are no UTF-8 in names of bundles, images, graphs and of what is made."""
    odd = folder / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    place = write_bundle(odd / "colours")
    Image.new("RGB", (SIZE, SIZE), "red").save(odd / os.fsdecode(b"\xff.png"))
    graph = write_classifier(odd / os.fsdecode(b"n\xe9t.onnx"))
    calls: list[tuple[object, ...]] = [
        ("check", place),
        ("inspect", place),
        ("predict", place, odd / os.fsdecode(b"\xff.png")),
        ("predict", place, odd),
        ("predict", place, odd, "--json"),
        ("inspect", graph),
        ("validate", graph, graph),
        ("calibrate", graph, "--data", "random", "-o", odd / "table.json"),
        ("export", graph, "--backend", "none", "-o", odd / os.fsdecode(b"\xe9")),
        ("check", odd / "nothing"),
        ("export", odd / "nothing.onnx", "--backend", "none"),
    ]
    for arguments in calls:
        row.plant(f"{arguments[0]}", lambda a=arguments: command(*a).code, _says)  # type: ignore[misc]
    row.plant("load", lambda: served(place), honest)


def _says(code: Any) -> str:
    return "survived" if code in {0, 1, 2} else "lied"
