"""`deploykit predict --ray` on a local cluster: killed workers, full disks, and going on.

One cluster of two processors for the whole file: starting it takes seconds.
"""

from __future__ import annotations

import errno
import os
import signal
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from PIL import Image

from deploykit.core import atomic
from deploykit.core.errors import BundleError
from deploykit.core.progress import SilentProgress
from deploykit.ray import parts, predicting
from deploykit.ray.predicting import ClusterChoices, predict_on_cluster
from tests.bundles import SIZE, colours_of, write_bundle
from tests.cli import deploykit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from deploykit.ray.predicting import ClusterReport

ray = pytest.importorskip("ray")
pytest.importorskip("pyarrow")

# Ray's threads and files are closed when its processes end, which Python may notice before.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

IMAGES, BROKEN = 61, 17
PART = 4


@pytest.fixture(scope="module", autouse=True)
def local_cluster() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=100 * 2**20,
        )
        yield
        ray.shutdown()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "_MOST_IMAGES", PART)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and images of which one cannot be read."""
    folder = tmp_path_factory.mktemp("ray")
    write_bundle(folder / "bundle")
    (folder / "images").mkdir()
    for at in range(IMAGES):
        Image.fromarray(pixels(at)).save(folder / "images" / f"{at:03}.png")
    (folder / "images" / f"{BROKEN:03}.png").write_bytes(b"nothing")
    return folder


def pixels(at: int) -> Any:
    return np.random.default_rng(at).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


class Watched:
    """A task of a progress display that calls ``then`` once, when ``after`` images are written."""

    def __init__(self, after: int, then: Callable[[], None]) -> None:
        self._after, self._then = after, then
        self.called = 0

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        if done >= self._after * (self.called + 1) and self.called < 2:
            self.called += 1
            self._then()


def predict(desk: Path, output: Path, task: Any = None, **choices: Any) -> ClusterReport:
    with SilentProgress().step("predict") as silent:
        return predict_on_cluster(
            desk / "bundle",
            str(desk / "images"),
            output,
            ClusterChoices(device="cpu", top_k=1, **choices),
            task or silent,
        )


def require_each_row_once(output: Path) -> None:
    """Every image is one row, and its answer is that of numpy."""
    import pyarrow.dataset

    rows = pyarrow.dataset.dataset(output, format="parquet").to_table().to_pylist()
    names = Counter(row["image"].rpartition("/")[2] for row in rows)
    assert names == Counter({f"{at:03}.png": 1 for at in range(IMAGES)})
    for row in rows:
        at = int(row["image"][-7:-4])
        if at == BROKEN:
            assert row["answers"] is None
            assert "cannot read the image" in row["error"]
            continue
        mean = colours_of((pixels(at).transpose(2, 0, 1)[None] / 255).astype(np.float32))[0]
        assert row["error"] is None
        assert row["answers"][0]["index"] == mean.argmax()
        assert abs(row["answers"][0]["logit"] - mean.max()) < 1e-6


def kill(*beginnings: str) -> None:
    """End a process of our own cluster as a machine that is switched off would."""
    for process in psutil.Process().children(recursive=True):
        try:
            name = (process.cmdline() or [""])[0]
        except psutil.Error:
            continue
        if name.startswith(beginnings):
            os.kill(process.pid, signal.SIGKILL)
            return
    pytest.fail(f"no process is called {' or '.join(beginnings)}")


def test_an_actor_and_a_worker_are_killed_and_no_row_is_lost(desk: Path, tmp_path: Path) -> None:
    victims = iter([("ray::MapWorker",), ("ray::Map(", "ray::IDLE")])
    task = Watched(PART * 3, lambda: kill(*next(victims)))
    report = predict(desk, tmp_path / "out.parquet", task)
    assert task.called == 2
    assert (report.rows, report.failed) == (IMAGES, 1)
    require_each_row_once(tmp_path / "out.parquet")


def test_a_full_disk_stops_it_and_the_next_call_goes_on(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, write = tmp_path / "out.parquet", atomic.replace_file
    written: list[str] = []

    def fills(path: Path, content: bytes) -> None:
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path.name)
        write(path, content)

    monkeypatch.setattr(parts, "replace_file", fills)
    with pytest.raises(BundleError, match="No space left on device"):
        predict(desk, output)
    monkeypatch.setattr(parts, "replace_file", write)
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    assert len(before) == 4  # and the plan
    report = predict(desk, output, workers=2)
    assert (report.resumed, report.workers) == (4, 2)
    require_each_row_once(output)
    assert (
        before.items()
        <= {path.name: path.stat().st_mtime_ns for path in output.glob("*.parquet")}.items()
    )


def test_the_command_names_what_could_not_be_read(desk: Path, tmp_path: Path) -> None:
    arguments = (
        *("predict", desk / "bundle", desk / "images", "--ray", "--device", "cpu"),
        *("-o", tmp_path / "out.parquet", "--json"),
    )
    called = deploykit(*arguments)
    assert called.code == 1, called.err
    assert (called.data["rows"], called.data["failed"]) == (IMAGES, 1)
    (named,) = called.data["unanswered"]
    assert named["image"] == str(desk / "images" / f"{BROKEN:03}.png")
    require_each_row_once(tmp_path / "out.parquet")
    again = deploykit(*arguments[:-1])
    assert f"{-(-IMAGES // PART)} parts, {-(-IMAGES // PART)} of them from before" in again.out


def test_eval_counts_what_it_counts_on_one_machine(desk: Path, tmp_path: Path) -> None:
    """A folder per class, in which a third of the images lies in a wrong one."""
    for at in range(20):
        right = int(pixels(at).mean(axis=(0, 1)).argmax())
        name = ("red", "green", "blue")[(right + (at % 3 == 0)) % 3]
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(at)).save(tmp_path / "data" / name / f"{at}.png")
    call = ("eval", desk / "bundle", "--data", tmp_path / "data", "--json")
    here, there = deploykit(*call), deploykit(*call, "--ray")
    assert (here.code, there.code) == (0, 0), there.err
    counted = ("count", "top1", "top5", "top1_interval")
    assert {name: there.data[name] for name in counted if name in here.data} == {
        name: here.data[name] for name in counted if name in here.data
    }
    assert there.data["count"] == 20
    (tmp_path / "data" / "red" / "bad.png").write_bytes(b"nothing")
    refused = deploykit(*call, "--ray")
    assert refused.code == 1
    assert "1 of 21 images cannot be read" in refused.err
    assert "bad.png" in refused.err


def test_an_error_of_an_actor_is_said_as_its_own(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle is replaced between the plan and the actors."""
    monkeypatch.setattr(predicting, "sha256_of", lambda _: "0" * 64)
    with pytest.raises(BundleError, match="was replaced since this run began"):
        predict(desk, tmp_path / "out.parquet")


def test_the_predictor_in_a_pipeline_of_ones_own(desk: Path) -> None:
    images = [{"image": pixels(at), "at": at} for at in range(6)]
    found = ray.data.from_items(images).map_batches(
        __import__("deploykit.ray", fromlist=["Predictor"]).Predictor,
        fn_constructor_kwargs={"bundle": str(desk / "bundle"), "top_k": 1, "device": "cpu"},
        batch_size=3,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    rows = found.take_all()
    assert sorted(row["at"] for row in rows) == list(range(6))
    for row in rows:
        mean = pixels(row["at"]).mean(axis=(0, 1))
        assert row["answers"][0]["index"] == mean.argmax()
