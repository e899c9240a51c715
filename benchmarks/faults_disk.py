"""Faults of the disk and of the moment, for `faults.py`: writers that are stopped or not alone.

Each kind is a function that takes an empty folder, how many to plant, and the row to fill. Writers
are processes of their own (``python -m benchmarks.faults_disk WHAT ...``), as they are in life.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.faults_judge import (
    GRAPH,
    NEGATED,
    Row,
    add_engine,
    is_right,
    loaded,
    stopped_at,
    swap_in,
    two_kinds,
    whole,
)
from deploykit.bundle.manifest import Bundle
from deploykit.verbs.check import check
from deploykit.verbs.inspect import inspect
from tests.graphs import graph, save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT: Final = Path(__file__).parents[1]
NO_EXCHANGE: Final = "a system without an exchange"
DEATHS: Final = ("killed", "EIO", "ENOSPC")


# --- writers, in processes of their own


def write_swaps(place: str, one: str, other: str, count: str, *platform: str) -> None:
    if platform:
        sys.platform = platform[0]
    for turn in range(int(count)):
        swap_in(Path(one if turn % 2 else other), Path(place))
        time.sleep(0.002)


def write_engines(place: str) -> None:
    """Until it is ended."""
    turn = 0
    while True:
        add_engine(Path(place), f"engine {(turn := turn + 1)}".encode())
        time.sleep(0.001)


@contextmanager
def writer(what: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "benchmarks.faults_disk", what, *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.terminate()


# --- readers beside writers


def readers_beside_swaps(folder: Path, count: int, row: Row) -> None:
    """`load`, `check` and `inspect` by turns as long as another process swaps ``count`` times."""
    _read_beside_swaps(folder, count, row)


def readers_beside_two_renames(folder: Path, count: int, row: Row) -> None:
    """As `readers_beside_swaps`, where the system cannot swap two folders in one step."""
    _read_beside_swaps(folder, count, row, NO_EXCHANGE)


def _read_beside_swaps(folder: Path, count: int, row: Row, *platform: str) -> None:
    kinds, place = two_kinds(folder), folder / "place"
    one, other = kinds.values()
    swap_in(one, place)
    uses: list[tuple[str, Callable[[], object], Callable[[Any], str]]] = [
        ("load", lambda: loaded(place), lambda found: _unless_refused(found, is_right)),
        ("check", lambda: check(place), lambda found: _unless_refused(found, lambda r: r.ok)),
        ("inspect", lambda: inspect(str(place)), lambda found: _unless_refused(found, bool)),
    ]
    with writer("swaps", place, one, other, count, *platform) as process:
        while process.poll() is None:
            for name, use, judge in uses:
                row.plant(name, use, judge)
    if process.returncode:
        row.add("traceback", "the process that swaps failed")


def _unless_refused(found: Any, is_good: Callable[[Any], bool]) -> str:
    """No bundle here is ever damaged; that it is replaced too often is an honest refusal."""
    if isinstance(found, Exception):
        return "survived" if "times while it was read" in str(found) else "lied"
    return "survived" if is_good(found) else "lied"


def check_beside_builds(folder: Path, count: int, row: Row) -> None:
    """``count`` checks while another process adds engines without a pause."""
    place = two_kinds(folder)["colours-fp32"]
    with writer("engines", place) as process:
        for _ in range(count):
            row.plant("check", lambda: check(place), lambda r: _unless_refused(r, lambda c: c.ok))
        if process.poll() is not None:
            row.add("traceback", "the process that builds failed")


# --- writers that are stopped at each call that changes the disk


def builds_stopped(folder: Path, count: int, row: Row) -> None:
    """An engine is added; the next build must work and leave nothing lying about."""
    kept = two_kinds(folder)["colours-fp32"]
    place = folder / "place"
    for content in range(count):
        for death in DEATHS:
            _stop_everywhere(
                row,
                death,
                lambda: _copied(kept, place),
                partial(add_engine, place, b"new %d" % content),
                partial(add_engine, place, b"next %d" % content),
                place,
            )


def swaps_stopped(folder: Path, count: int, row: Row) -> None:
    """An export's swap in one step; the next export must work and leave nothing."""
    _stop_swaps(folder, count, row)


def two_renames_stopped(folder: Path, count: int, row: Row) -> None:
    """An export's swap in two renames: `check` must find the old bundle or the new one."""
    before, sys.platform = sys.platform, NO_EXCHANGE
    try:
        _stop_swaps(folder, count, row)
    finally:
        sys.platform = before


def _stop_swaps(folder: Path, count: int, row: Row) -> None:
    one, other = two_kinds(folder).values()
    place = folder / "place" / "net"
    place.parent.mkdir()
    for _ in range(count):
        for death in DEATHS:
            _stop_everywhere(
                row,
                death,
                lambda: _copied(one, place),
                lambda: swap_in(other, place),
                lambda: swap_in(other, place),
                place,
            )


def _stop_everywhere(
    row: Row,
    death: str,
    prepare: Callable[[], object],
    use: Callable[[], object],
    use_next: Callable[[], object],
    place: Path,
) -> None:
    turn, came = 0, "stopped"
    while came == "stopped":
        turn += 1
        prepare()
        came = stopped_at(turn, death, use, row.bound_s)
        what = f"{death} at call {turn}"
        if came in {"hung", "traceback"}:
            row.add(came, what)
            return
        row.plant(what, lambda: _after(place, use_next), str)


def _after(place: Path, use_next: Callable[[], object]) -> str:
    """Outcome of `check`, of every byte, and of the next writer, who removes what was left."""
    report = check(place)
    found = whole(place)
    if found != "survived" or not report.ok:
        return found if found != "survived" else "lied"
    use_next()
    left = [path.name for path in (*place.glob(".*"), *place.parent.glob(f".{place.name}.*"))]
    extra = {path.name for path in place.glob("*.engine")} - _named(place)
    return "lied" if left or extra else whole(place)


def _named(place: Path) -> set[str]:
    return {engine.file for engine in Bundle.open(place).manifest.engines}


def _copied(kept: Path, place: Path) -> None:
    for path in (place, *place.parent.glob(f".{place.name}.*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.copytree(kept, place)


# --- the command `export`, killed or on a disk that is full


def exports_killed(folder: Path, count: int, row: Row) -> None:
    """SIGKILL at random times of ``export``, over a good bundle of another network."""
    chance, place = random.Random(0), folder / "place"  # noqa: S311
    graphs = _graphs(folder)
    start = time.monotonic()
    _export(graphs[0], place)
    lasts_s = time.monotonic() - start
    for turn in range(count):
        process = subprocess.Popen(_command(graphs[(turn + 1) % 2], place), cwd=folder, **QUIET)
        time.sleep(chance.uniform(0.3, 1.05) * lasts_s)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        row.plant(f"turn {turn}", lambda: check(place).ok and whole(place), lambda f: f or "lied")
    _export(graphs[0], place)
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    row.add("lied" if left else whole(place), f"the next export left {left}")


def disks_full(folder: Path, count: int, row: Row) -> None:
    """Exports whose files, or whose TMPDIR, take so many bytes; ENOSPC where one can be mounted."""
    graphs, place = _graphs(folder), folder / "place"
    _export(graphs[0], place)
    for turn in range(count):
        limit = int(8000 * (turn / count) ** 2)
        row.plant(
            f"no file above {limit} bytes",
            lambda limit=limit: _refused_export(row, graphs[1], place, limit=limit),  # type: ignore[misc]
            lambda said: said if said != "survived" else whole(place),
        )
    for size in ("4k", "16k", "64k"):
        with _small_disk(folder / f"disk-{size}", size) as disk:
            if disk is None:
                row.left_out = "ENOSPC of TMPDIR: no tmpfs can be mounted here"
                return
            (disk / "taken").write_bytes(bytes(int(size[:-1]) * 1024 - 4096))
            row.plant(
                f"TMPDIR of {size}",
                lambda disk=disk: _refused_export(row, graphs[1], place, tmpdir=disk),  # type: ignore[misc]
                lambda said: said if said != "survived" else whole(place),
            )
            row.plant(
                f"a disk of {size}",
                lambda disk=disk: _refused_export(row, graphs[1], disk / "net"),  # type: ignore[misc]
                lambda said: said if said != "survived" else whole(place),
            )


def _refused_export(
    row: Row, source: Path, place: Path, *, limit: int | None = None, tmpdir: Path | None = None
) -> str:
    """Outcome of the command alone: it works, or says in words why not."""

    def limited() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environment = os.environ | ({} if tmpdir is None else {"TMPDIR": str(tmpdir)})
    command = _command(source, place)
    done = subprocess.run(
        command, env=environment, preexec_fn=limited, capture_output=True, text=True, check=False
    )
    if "Traceback" in done.stderr or done.returncode not in {0, 1, 2}:
        return "traceback"
    row.refused += done.returncode != 0
    return "survived" if done.returncode == 0 or done.stderr.strip() else "lied"


QUIET: Final[dict[str, Any]] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def _graphs(folder: Path) -> list[Path]:
    (folder / "colours.txt").write_text("red\ngreen\nblue\n", encoding="utf-8")
    (folder / "other.txt").write_text("cyan\nmagenta\nyellow\n", encoding="utf-8")
    return [
        save(graph(GRAPH), folder / "colours.onnx"),
        save(graph(NEGATED), folder / "other.onnx"),
    ]


def _command(source: Path, place: Path) -> list[str]:
    labels = source.with_suffix(".txt")
    options = ["--backend", "none", "--labels", str(labels), "-o", str(place)]
    return [sys.executable, "-m", "deploykit", "export", str(source), *options]


def _export(source: Path, place: Path) -> None:
    subprocess.run(_command(source, place), check=True, **QUIET)


@contextmanager
def _small_disk(folder: Path, size: str) -> Iterator[Path | None]:
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    command = [mount or "false", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, **QUIET).returncode or not umount:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run([umount, str(folder)], check=True)


if __name__ == "__main__":
    if sys.argv[1] == "swaps":
        write_swaps(*sys.argv[2:])
    else:
        write_engines(*sys.argv[2:])
