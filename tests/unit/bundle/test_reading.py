from __future__ import annotations

import itertools
import re
import shutil
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit import load
from deploykit.bundle import reading
from deploykit.bundle.manifest import (
    GOLDEN,
    LABELS,
    MANIFEST,
    MODEL,
    Bundle,
    is_folder,
    manifest_text,
)
from deploykit.bundle.reading import read_bundle, read_bundles
from deploykit.core import sharing
from deploykit.core.artifacts import sha256_of
from deploykit.core.atomic import staged_folder
from deploykit.core.errors import BundleError, IntegrityError
from deploykit.verbs.check import check
from deploykit.verbs.inspect import inspect
from tests.bundles import COLOURS, SIZE, colours_of, write_bundle
from tests.cli import deploykit
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def kinds(tmp_path: Path) -> tuple[Path, Path]:
    """Two bundles that differ in their graph, their labels and their name."""
    one, other = (write_bundle(tmp_path / name) for name in ("one", "other"))
    text = COLOURS.format(batch="N", image=f"{SIZE}, {SIZE}").replace(
        "logits = Flatten(mean)", "flat = Flatten(mean) logits = Neg(flat)"
    )
    save(graph(text), other / MODEL)
    sample = normal(2, 3, SIZE, SIZE)
    np.savez(other / GOLDEN, input=sample, logits=-colours_of(sample))
    (other / LABELS).write_text("cyan\nmagenta\nyellow\n", encoding="utf-8")
    manifest = Bundle.open(other).manifest
    files = {name: sha256_of(other / name) for name in manifest.files}
    manifest = replace(manifest, name="other-fp32", files=files)
    (other / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
    return one, other


def swap_in(kind: Path, place: Path) -> None:
    """What an export does at its end."""
    with staged_folder(place, MANIFEST) as folder:
        shutil.copytree(kind, folder, dirs_exist_ok=True)


@contextmanager
def swapping(kinds: tuple[Path, Path], place: Path, count: int) -> Iterator[threading.Event]:
    """Swap the two bundles in by turns, ``count`` times; the event says that it is over."""
    swap_in(kinds[0], place)
    over = threading.Event()

    def swap() -> None:
        for kind in itertools.islice(itertools.cycle(reversed(kinds)), count):
            swap_in(kind, place)
            time.sleep(0.002)
        over.set()

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield over
    finally:
        thread.join()


def loaded(place: Path) -> tuple[str, tuple[str, ...] | None, float]:
    """The name, the labels, and what the graph makes of white images."""
    with load(place, device="cpu") as model:
        answer = model.run(np.ones((1, 3, SIZE, SIZE), np.float32))
        return model.name, model.labels, float(answer[0, 0])


@pytest.mark.parametrize("locks", ["with locks", "without locks", "two renames"])
def test_readers_beside_many_swaps_read_one_bundle(
    kinds: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    place = tmp_path / "place"
    if locks == "without locks":
        monkeypatch.setattr(reading, "reading", lambda _folder: nullcontext())
        monkeypatch.setattr(reading, "ATTEMPTS", 10_000)
    if locks == "two renames":
        monkeypatch.setattr(sys, "platform", "a system without an exchange")
        monkeypatch.setattr(reading, "ATTEMPTS", 10_000)
    expected = {kind.name: loaded(kind) for kind in kinds}
    seen = set()
    with swapping(kinds, place, 30) as over:
        while not over.is_set():
            found = loaded(place)
            assert found in expected.values()
            seen.add(found)
            report = check(place)
            assert report.ok, report.problems
            inspect(str(place))
    assert len(seen) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_failed_on_a_bundle_that_was_replaced_is_done_again(
    kinds: tuple[Path, Path], tmp_path: Path
) -> None:
    place = tmp_path / "place"
    swap_in(kinds[0], place)
    seen = []

    def use(bundle: Bundle) -> str:
        seen.append(bundle.manifest.name)
        if len(seen) == 1:
            swap_in_now(kinds[1], place)
            bundle.require_unchanged(MODEL)
        return bundle.manifest.name

    assert read_bundle(place, use) == "other-fp32"
    assert seen == ["colours-fp32", "other-fp32"]


def swap_in_now(kind: Path, place: Path) -> None:
    """A swap by somebody who does not wait for readers."""
    shutil.rmtree(place)
    shutil.copytree(kind, place)


def test_what_was_made_of_a_bundle_that_was_replaced_is_closed(
    kinds: tuple[Path, Path], tmp_path: Path
) -> None:
    place = tmp_path / "place"
    swap_in(kinds[0], place)

    class Made:
        closed = False

        def close(self) -> None:
            self.closed = True

    made: list[Made] = []

    def use(bundle: Bundle) -> Made:
        bundle.require_unchanged(MODEL)
        if not made:
            swap_in_now(kinds[1], place)
        made.append(Made())
        return made[-1]

    assert read_bundle(place, use) is made[1]
    assert [each.closed for each in made] == [True, False]


def test_damage_is_said_at_once(kinds: tuple[Path, Path]) -> None:
    calls = []
    (kinds[0] / MODEL).write_bytes(b"damaged")

    def use(bundle: Bundle) -> None:
        calls.append(bundle)
        bundle.require_intact()

    with pytest.raises(IntegrityError, match=r"model\.onnx has sha256"):
        read_bundle(kinds[0], use)
    assert len(calls) == 1


def test_a_bundle_that_never_stays(kinds: tuple[Path, Path], tmp_path: Path) -> None:
    place = tmp_path / "place"
    swap_in(kinds[0], place)
    turns = itertools.cycle(kinds)

    def use(bundle: Bundle) -> None:
        bundle.require_unchanged(MODEL)
        swap_in_now(next(turns), place)

    with pytest.raises(BundleError, match=r"was replaced 20 times while it was read\ntry again"):
        read_bundle(place, use)


def test_several_bundles_at_once(kinds: tuple[Path, Path]) -> None:
    names = read_bundles(kinds, lambda found: [found[kind].manifest.name for kind in kinds])
    assert names == ["colours-fp32", "other-fp32"]


def test_a_writer_waits_for_readers_a_moment(
    kinds: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "READERS_S", 0.2)
    place = tmp_path / "place"
    swap_in(kinds[0], place)

    def use(bundle: Bundle) -> str:
        if bundle.manifest.name == "colours-fp32":
            swap_in(kinds[1], place)  # ends although this reader holds the folder
        return bundle.manifest.name

    start = time.monotonic()
    assert read_bundle(place, use) == "other-fp32"
    assert time.monotonic() - start >= 0.2


# Swaps that were interrupted between their two renames


def set_aside(place: Path) -> Path:
    retired = place.with_name(f".{place.name}.abcdefgh.old")
    place.rename(retired)
    return retired


@pytest.mark.parametrize(
    "use",
    [
        lambda place: load(place, device="cpu").close(),
        check,
        lambda place: inspect(str(place)),
        Bundle.open,
    ],
    ids=["load", "check", "inspect", "open"],
)
def test_a_bundle_that_was_set_aside_is_put_back(
    kinds: tuple[Path, Path], use: Callable[[Path], object]
) -> None:
    retired = set_aside(kinds[0])
    use(kinds[0])
    assert Bundle.open(kinds[0]).changed_files() == []
    assert not retired.exists()


def test_an_export_over_a_bundle_that_was_set_aside(kinds: tuple[Path, Path]) -> None:
    place = kinds[0]
    set_aside(place)
    with staged_folder(place, MANIFEST) as folder:
        assert Bundle.open(place).manifest.name == "colours-fp32"
        shutil.copytree(kinds[1], folder, dirs_exist_ok=True)
    assert Bundle.open(place).manifest.name == "other-fp32"
    # Of a swap that was interrupted after its second rename, the old one is removed.
    shutil.copytree(place, place.with_name(f".{place.name}.abcdefgh.old"))
    swap_in(kinds[1], place)
    assert [path.name for path in place.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "x/" * 3000])
def test_what_no_folder_can_be_called(name: str) -> None:
    with pytest.raises(BundleError, match=r"cannot look at '[x/]{100}|there is nothing at a"):
        load(name)
    assert not is_folder(Path(name))
    for command in ("inspect", "export"):
        called = deploykit(command, name)
        assert called.code in {1, 2}
        assert re.search("unknown architecture|the system refuses it, File name too", called.err)


def test_a_name_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is nothing at"):
        load(tmp_path / "nothing")
