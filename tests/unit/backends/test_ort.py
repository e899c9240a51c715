from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

from deploykit.backends import GraphOptions
from deploykit.backends._registry import graph_judge
from deploykit.backends.ort import OrtRunner
from deploykit.core.artifacts import OnnxArtifact
from deploykit.core.errors import EngineIncompatibleError, ModelFileError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.specs import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

HEADER = '<ir_version: 9, opset_import: ["" : 20, "elsewhere" : 1]>'
LINEAR = """linear (float[batch, 3] images) => (float[batch, 2] logits)
<float[3, 2] weight = {1.0, 0.5, -2.0, 0.25, 3.0, -1.0}>
{ product = MatMul(images, weight)  logits = Relu(product) }"""
WEIGHT = np.array([[1.0, 0.5], [-2.0, 0.25], [3.0, -1.0]], np.float32)


def serialised(text: str) -> bytes:
    return bytes(onnx.parser.parse_model(f"{HEADER} {text}").SerializeToString())


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    path = tmp_path / "linear.onnx"
    path.write_bytes(serialised(LINEAR))
    return path


def some_images(batch: int) -> NDArray[np.float32]:
    return np.random.default_rng(batch).normal(size=(batch, 3)).astype(np.float32)


def test_reports_names_types_and_shapes(linear: Path) -> None:
    with OrtRunner(linear) as runner:
        assert runner.inputs == (TensorSpec("images", "float32", ("batch", 3)),)
        assert runner.outputs == (TensorSpec("logits", "float32", ("batch", 2)),)


def test_a_dimension_without_a_name_gets_one() -> None:
    graph = serialised("g (float16[?, 3] x) => (float16[?, 3] y) { y = Relu(x) }")
    with OrtRunner(graph) as runner:
        assert runner.inputs == (TensorSpec("x", "float16", ("x_0", 3)),)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("optimise", [True, False])
def test_computes_what_numpy_computes(linear: Path, batch: int, *, optimise: bool) -> None:
    images = some_images(batch)
    with OrtRunner(linear, GraphOptions(optimise=optimise, threads=1)) as runner:
        outputs = runner.run({"images": images})
    assert list(outputs) == ["logits"]
    logits = outputs["logits"].astype(np.float32)
    np.testing.assert_allclose(logits, np.maximum(images @ WEIGHT, 0), atol=1e-6)


def test_a_file_and_its_bytes_are_the_same_model(linear: Path) -> None:
    feeds = {"images": some_images(4)}
    with OrtRunner(linear) as from_file, OrtRunner(linear.read_bytes()) as from_bytes:
        same = from_file.run(feeds)["logits"] == from_bytes.run(feeds)["logits"]
    assert same.all()


def test_a_timed_run_gives_the_same_outputs(linear: Path) -> None:
    feeds = {"images": some_images(4)}
    with OrtRunner(linear) as runner:
        outputs, times = runner.run_timed(feeds)
        np.testing.assert_array_equal(outputs["logits"], runner.run(feeds)["logits"])
    assert times.wall_ms > 0
    assert times.compute_ms is not None
    assert 0 < times.compute_ms <= times.wall_ms
    assert (times.h2d_ms, times.d2h_ms, times.enqueue_ms) == (None,) * 3


@pytest.mark.parametrize(
    ("optimise", "level"),
    [
        (True, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL),
        (False, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL),
    ],
)
def test_hands_its_options_to_onnxruntime(linear: Path, level: Any, *, optimise: bool) -> None:
    with OrtRunner(linear, GraphOptions(optimise=optimise, threads=1)) as runner:
        options = runner._open().session.get_session_options()
    assert options.graph_optimization_level == level
    assert options.intra_op_num_threads == 1


def test_nothing_is_opened_before_it_is_needed(tmp_path: Path) -> None:
    runner = OrtRunner(tmp_path / "not-there.onnx")
    with pytest.raises(ModelFileError, match=r"cannot load not-there.onnx\n.*NO_SUCHFILE"):
        assert runner.inputs


def test_the_session_is_made_once(linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = OrtRunner(linear)
    assert runner.inputs
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)
    with runner:
        assert runner.run({"images": some_images(1)})["logits"].shape == (1, 2)


def test_closing_twice_is_harmless_and_use_after_it_is_not(linear: Path) -> None:
    runner = OrtRunner(linear)
    with runner:
        runner.close()
    runner.close()
    with pytest.raises(UsageError, match=r"the runner of linear.onnx is closed; open a new one"):
        runner.run({"images": some_images(1)})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"junk" * 20, "INVALID_PROTOBUF"),
        (b"", "No graph was found"),
        (serialised(LINEAR)[:-9], "INVALID_PROTOBUF"),
        (serialised("g (float[2] x) => (float[2] y) { y = Relux(x) }"), "INVALID_GRAPH"),
        (serialised("g (float[2] x) => (float[2] y) { y = elsewhere.Odd(x) }"), "elsewhere:Odd"),
        (serialised("g (float[2] x) => (float[2] y) { y = Relu(z) }"), "INVALID_ARGUMENT"),
    ],
    ids=["junk", "empty", "truncated", "operator", "domain", "dangling"],
)
def test_what_cannot_be_loaded_is_named_with_the_reason(
    content: bytes, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=rf"onnxruntime cannot load broken.onnx\n.*{reason}"):
        OrtRunner(path).__enter__()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_graph_that_fails_as_it_runs(capfd: pytest.CaptureFixture[str]) -> None:
    graph = """g (float[batch, 3] x) => (float[7, n] y)
    <int64[2] shape = {7, -1}> { y = Reshape(x, shape) }"""
    with (
        OrtRunner(serialised(graph)) as runner,
        pytest.raises(ModelFileError, match=r"the graph failed to run on \(.*\)\n.*Reshape"),
    ):
        runner.run({"x": some_images(2)})
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"linear.onnx was fed \[\], it takes \['images'\]"),
        ({"image": some_images(1)}, r"was fed \['image'\], it takes \['images'\]"),
        (
            {"images": some_images(1).astype(np.float64)},
            r"'images' of linear.onnx was fed float64 \(1, 3\), it takes float32 \(batch, 3\)",
        ),
        ({"images": some_images(1)[:, :2]}, r"fed float32 \(1, 2\), it takes float32"),
        ({"images": some_images(1)[0]}, r"fed float32 \(3,\), it takes float32"),
    ],
    ids=["nothing", "name", "dtype", "size", "rank"],
)
def test_wrong_feeds_say_what_was_expected(
    linear: Path, feeds: dict[str, NDArray[np.generic]], message: str
) -> None:
    with OrtRunner(linear) as runner, pytest.raises(UsageError, match=message):
        runner.run(feeds)


def test_unknown_device(linear: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown device 'tpu'\npossible: cpu, cuda"):
        OrtRunner(linear, device="tpu")


def test_a_gpu_that_was_not_built_in_is_no_silent_cpu(
    linear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers = ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    with pytest.raises(EngineIncompatibleError, match=r"on cuda: this onnxruntime was built with"):
        OrtRunner(linear, GraphOptions(gpu_index=1), device="cuda").__enter__()


def test_a_gpu_that_does_not_start_is_no_silent_cpu(
    linear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the real package behaves without a GPU: it makes a session on the CPU instead."""
    cpu_session = onnxruntime.InferenceSession

    def falls_back(model: str, options: Any, providers: list[Any], **more: Any) -> Any:
        assert providers == [("CUDAExecutionProvider", {"device_id": "1"})]
        return cpu_session(model, options, providers=["CPUExecutionProvider"], **more)

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    with pytest.raises(
        EngineIncompatibleError,
        match=r"linear.onnx cannot run on cuda: onnxruntime could not start it.*\ndeploykit doctor",
    ):
        OrtRunner(linear, GraphOptions(gpu_index=1), device="cuda").__enter__()


@pytest.mark.parametrize("precision", Precision)
def test_a_quantized_graph_is_computed_as_the_standard_has_it(
    linear: Path, precision: Precision
) -> None:
    artifact = OnnxArtifact(linear, "", precision, 20, (), ())
    levels = onnxruntime.GraphOptimizationLevel
    with graph_judge().open_artifact(artifact, threads=1) as runner:
        assert isinstance(runner, OrtRunner)
        options = runner._open().session.get_session_options()
    has_pairs = precision in {"int8", "fp8"}
    expected = levels.ORT_DISABLE_ALL if has_pairs else levels.ORT_ENABLE_ALL
    assert options.graph_optimization_level == expected
    assert options.intra_op_num_threads == 1


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 1)])
def test_a_type_that_numpy_lacks_is_never_fed(shape: tuple[int, ...]) -> None:
    """``None`` in place of the type would be equal to float64."""
    graph = serialised("g (string[2, 3] x) => (string[2, 3] y) { y = Identity(x) }")
    with (
        OrtRunner(graph) as runner,
        pytest.raises(UsageError, match=r"was fed float64 .*, it takes tensor\(string\) \(2, 3\)"),
    ):
        runner.run({"x": np.zeros(shape, np.float64)})


@pytest.mark.parametrize(
    "images",
    [
        some_images(6)[::2],
        np.asfortranarray(some_images(3)),
        np.broadcast_to(some_images(1), (3, 3)),
        np.frombuffer(some_images(3).tobytes(), np.float32).reshape(3, 3),
    ],
    ids=["strided", "fortran", "broadcast", "read-only"],
)
def test_arrays_in_any_order_in_memory(linear: Path, images: NDArray[np.float32]) -> None:
    with OrtRunner(linear) as runner:
        logits = runner.run({"images": images})["logits"].astype(np.float32)
    np.testing.assert_allclose(logits, np.maximum(images @ WEIGHT, 0), atol=1e-6)


# Many threads


def test_threads_that_come_at_once_open_one_session(
    linear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    new_session = onnxruntime.InferenceSession

    def slowly(*args: Any, **options: Any) -> Any:
        time.sleep(0.05)  # so that every thread finds the runner without a session
        made.append(new_session(*args, **options))
        return made[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", slowly)
    runner = OrtRunner(linear, GraphOptions(threads=1))
    together = threading.Barrier(16)

    def ask(number: int) -> None:
        together.wait()
        images = some_images(number + 1)
        logits = runner.run({"images": images})["logits"].astype(np.float32)
        np.testing.assert_allclose(logits, np.maximum(images @ WEIGHT, 0), atol=1e-6)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))
    assert len(made) == 1


def test_closing_lets_running_calls_end_well(linear: Path) -> None:
    runner = OrtRunner(linear, GraphOptions(threads=1))
    answered = threading.Semaphore(0)

    def ask_until_closed(number: int) -> int:
        images = some_images(number + 1)
        for done in range(1_000_000):
            try:
                logits = runner.run({"images": images})["logits"].astype(np.float32)
            except UsageError as error:
                assert "is closed" in str(error)  # noqa: PT017 - whenever it comes
                return done
            np.testing.assert_allclose(logits, np.maximum(images @ WEIGHT, 0), atol=1e-6)
            answered.release()
        raise AssertionError("it was never closed")

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(ask_until_closed, number) for number in range(4)]
        for _ in range(40):
            assert answered.acquire(timeout=60)
        runner.close()
        assert sum(call.result() for call in calls) >= 40


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_session_does_not_survive_a_fork(linear: Path) -> None:
    feeds = {"images": some_images(1)}
    with OrtRunner(linear) as runner:
        child = os.fork()
        if child == 0:
            os._exit(0 if _refuses_as_fork(runner, feeds) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert runner.run(feeds)["logits"].shape == (1, 2)


def _refuses_as_fork(runner: OrtRunner, feeds: dict[str, Any]) -> bool:
    try:
        runner.run(feeds)
    except UsageError as error:
        runner.close()
        return str(error) == (
            f"linear.onnx was opened by process {os.getppid()}, this is its fork {os.getpid()}\n"
            "a session does not survive a fork: open the model after it, in each process"
        )
    return False
