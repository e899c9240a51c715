"""`deploykit predict --ray` on a local cluster: killed workers, full disks, and going on.

One cluster of two processors for the whole file: starting it takes seconds.
"""

from __future__ import annotations

import errno
import os
import signal
import warnings
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from PIL import Image

from deploykit.bundle.manifest import Bundle
from deploykit.core import atomic
from deploykit.core.errors import BundleError
from deploykit.core.progress import SilentProgress
from deploykit.core.specs import PixelInput, TensorSpec
from deploykit.ray import parts, predicting
from deploykit.ray.predicting import ClusterChoices, predict_on_cluster
from tests.bundles import PLAIN, SIZE, colours_of, write_bundle
from tests.cli import Called, deploykit

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


def test_after_a_full_disk_it_goes_on_and_loses_no_row_though_its_processes_are_killed(
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
    victims = iter([("ray::MapWorker",), ("ray::Map(", "ray::IDLE")])
    task = Watched(PART * 5, lambda: kill(*next(victims)))
    report = predict(desk, output, task)
    assert task.called == 2
    assert (report.resumed, report.rows, report.failed) == (4, IMAGES, 1)
    require_each_row_once(output)
    assert (
        before.items()
        <= {path.name: path.stat().st_mtime_ns for path in output.glob("*.parquet")}.items()
    )


def test_the_command_names_what_could_not_be_read(desk: Path, tmp_path: Path) -> None:
    arguments = (
        *("predict", desk / "bundle", desk / "images", "--ray", "--device", "cpu"),
        *("--workers", 2, "-o", tmp_path / "out.parquet", "--json"),
    )
    called = deploykit(*arguments)
    assert called.code == 1, called.err
    assert called.data["workers"] == 2
    assert (called.data["rows"], called.data["failed"]) == (IMAGES, 1)
    (named,) = called.data["unanswered"]
    assert named["image"] == str(desk / "images" / f"{BROKEN:03}.png")
    require_each_row_once(tmp_path / "out.parquet")
    again = deploykit(*arguments[:-1])
    assert f"{-(-IMAGES // PART)} parts, {-(-IMAGES // PART)} of them from before" in again.out


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A folder per class, in which a third of the images lies in a wrong one."""
    for at in range(20):
        right = int(pixels(at).mean(axis=(0, 1)).argmax())
        name = ("red", "green", "blue")[(right + (at % 3 == 0)) % 3]
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(at)).save(tmp_path / "data" / name / f"{at}.png")
    return tmp_path / "data"


def turned(folder: Path) -> Path:
    """A bundle that takes red for green, green for blue, and blue for red."""
    return write_bundle(folder / "turned", source=TURNED, answers=turn)


def turn(sample: Any) -> Any:
    return np.roll(colours_of(sample), 1, axis=1)


TURNED = """colours (float[{batch}, 3, {image}] input) => (float[{batch}, 3] logits)
{{ mean = GlobalAveragePool (input)  flat = Flatten (mean)
   order = Constant <value_ints = [2, 0, 1]> ()
   logits = Gather <axis = 1> (flat, order) }}"""


def of_bytes(folder: Path) -> Path:
    """The bundle of `desk`, which takes pixels (N, H, W, 3)."""
    onnx = Bundle.open(write_bundle(folder / "bytes")).manifest.onnx
    image = TensorSpec("input", "uint8", ("N", SIZE, SIZE, 3))
    onnx = replace(onnx, inputs=(image,), path=onnx.path.relative_to(folder / "bytes"))
    steps = replace(PLAIN, pixels=PixelInput("nhwc", "rgb"))
    return write_bundle(folder / "bytes", source=OF_BYTES, onnx=onnx, preprocessing=steps)


OF_BYTES = """colours (uint8[{batch}, {image}, 3] input) => (float[{batch}, 3] logits)
{{ floats = Cast <to = 1> (input)  nchw = Transpose <perm = [0, 3, 1, 2]> (floats)
   most = Constant <value_float = 255.0> ()  scaled = Div (nchw, most)
   mean = GlobalAveragePool (scaled)  logits = Flatten (mean) }}"""


def counts_of(called: Called) -> dict[str, Any]:
    """All that `eval` says but for where it ran."""
    return {key: value for key, value in called.data.items() if key not in ("device", "choice")}


def test_eval_says_which_images_cannot_be_read_and_counts_a_bundle_of_bytes_beside_one_of_floats(
    desk: Path, classes: Path, tmp_path: Path
) -> None:
    (classes / "red" / "bad.png").write_bytes(b"nothing")
    output = tmp_path / "counts"
    one = (
        *("eval", of_bytes(tmp_path), "--data", classes, "--batch", 3, "--confusion", 5),
        *("--per-class", "--compare", desk / "bundle"),
    )
    call = (*one, "--ray", "-o", output)
    refused = deploykit(*call)
    assert refused.code == 1
    assert "1 of 21 images cannot be read" in refused.err
    assert "bad.png" in refused.err
    there = {path.name: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    assert len(there) == 6  # of 7 parts of three images
    right = int(pixels(40).mean(axis=(0, 1)).argmax())
    Image.fromarray(pixels(40)).save(classes / "red" / "bad.png")
    again = deploykit(*call, "--json")
    assert again.code == 0, again.err
    counted = (again.data["count"], again.data["top1"], again.data["agreement"])
    assert counted == (21, (13 + (right == 0)) / 21, 1.0)
    assert counts_of(again) == counts_of(deploykit(*one, "--json"))
    after = {path.name: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    assert len(after) == 7
    assert there.items() <= after.items()


def test_an_interrupted_eval_goes_on_with_the_same_counts(
    desk: Path, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.dataset

    output, write = tmp_path / "counts", atomic.replace_file
    call = (
        *("eval", desk / "bundle", "--data", classes, "--batch", 3, "--json", "--confusion", 5),
        *("--per-class", "--reference", turned(tmp_path)),
    )
    written: list[str] = []

    def fills(path: Path, content: bytes) -> None:
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path.name)
        write(path, content)

    monkeypatch.setattr(parts, "replace_file", fills)
    stopped = deploykit(*call, "--ray", "-o", output)
    assert stopped.code == 1
    assert "No space left on device" in stopped.err
    monkeypatch.setattr(parts, "replace_file", write)
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    assert len(before) == 3  # and the plan
    changed, damaged = sorted(before)[:2]
    (output / damaged).write_bytes(b"nothing")
    at = int(changed[5:-8])
    image = sorted(classes.rglob("*.png"))[at * 3]
    with image.open("ab") as file:
        file.write(bytes(3))  # a decoder does not mind, and who counts does not know
    here = deploykit(*call)
    there = deploykit(*call, "--ray", "-o", output)
    assert (here.code, there.code) == (0, 0), there.err
    assert counts_of(there) == counts_of(here)
    numbers = ("count", "top1", "agreement")
    assert tuple(there.data[name] for name in numbers) == (20, 13 / 20, 0.0)
    after = {path.name: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    assert [name for name in before if before[name] == after[name]] == sorted(before)[2:]
    finished = deploykit(*call, "--ray", "-o", output)  # without a cluster: all is counted
    assert finished.data == there.data
    rows = pyarrow.dataset.dataset(output, format="parquet").to_table().to_pylist()
    assert len({row["image"] for row in rows}) == len(rows) == 20
    assert sum(row["rank"] == 0 for row in rows) == 13
    for row in rows:
        mean = pixels(int(row["image"].rpartition("/")[2][:-4])).mean(axis=(0, 1))
        assert (row["top1"], row["other_top1"]) == (mean.argmax(), (mean.argmax() + 1) % 3)
    other = deploykit(*call[:-2], "--ray", "-o", output)
    assert "was begun with another reference" in other.err


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
