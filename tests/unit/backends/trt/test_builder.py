from __future__ import annotations

import signal
import sys
import threading
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.backends import CompileOptions, Compiler
from deploykit.backends.trt.builder import BuildMonitor, compile_onnx
from deploykit.backends.trt.targets import known_compute_capabilities
from deploykit.core import environment
from deploykit.core.environment import Gpu
from deploykit.core.errors import BuildError, UsageError
from deploykit.core.sizes import ShapeProfile
from tests.fakes.network_fake import (
    DataType,
    ErrorCode,
    ILayer,
    INetworkDefinition,
    ITensor,
    LayerType,
    ParserError,
)
from tests.fakes.tensorrt_fake import (
    ComputeCapability,
    FakeTensorrt,
    MemoryPoolType,
    ProfilingVerbosity,
    Script,
    Severity,
)
from tests.unit.backends.trt import small_models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ONE = CompileOptions(compute_capabilities=("8.9",))
OPEN = ITensor("image", DataType.HALF, (-1, 3, 8, 8))


class Task:
    def __init__(self, react: Callable[[float], None] = lambda done: None) -> None:
        self.details: list[str] = []
        self.shares: list[float] = []
        self._react = react

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        self.details.append(detail)
        self.shares.append(done)
        self._react(done)


def network(*inputs: ITensor) -> INetworkDefinition:
    y = ITensor("y", inputs[0].dtype, (-1, 3))
    return INetworkDefinition(inputs, [ILayer(LayerType.CONVOLUTION, inputs[:1], y)])


def script(**changes: Any) -> Script:
    return replace(Script(network=network(OPEN)), **changes)


def fake(script: Script, name: str = "tensorrt-rtx") -> Compiler:
    module = FakeTensorrt(script)
    return Compiler(name, module.__version__, module, is_portable=name == "tensorrt-rtx")


def refusal(script: Script, path: Path, options: CompileOptions = ONE) -> BuildError:
    """The error of a build that must fail; it never has more than three lines."""
    with pytest.raises(BuildError) as caught:
        compile_onnx(fake(script), path, options)
    assert len(str(caught.value).splitlines()) <= 3
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


# The real compiler for RTX.


def test_every_known_target_by_default(rtx: Compiler, path: Path) -> None:
    task = Task()
    engine = compile_onnx(rtx, small_models.convolution(path), CompileOptions(), task)
    assert engine.compute_capabilities == known_compute_capabilities(rtx)
    assert set(engine.compute_capabilities) >= {"8.0", "8.6", "8.9", "12.0"}
    assert "7.5" not in engine.compute_capabilities
    assert engine.profile == ShapeProfile(1, 8, 32)
    assert engine.census["CONVOLUTION FLOAT"] == 1
    assert engine.build_s > 0
    assert engine.warnings == ()
    assert engine.plan.startswith(b"vtrt")


def test_the_display_goes_from_nothing_to_all_without_going_back(rtx: Compiler, path: Path) -> None:
    task = Task()
    compile_onnx(rtx, small_models.convolution(path), ONE, task)
    assert task.shares[0] == 0.0
    assert task.shares[-1] == 1.0
    assert task.shares == sorted(task.shares)
    assert len(set(task.details)) > 3


def test_repeated_builds_are_byte_identical(rtx: Compiler, path: Path) -> None:
    small_models.convolution(path, np.float16)
    plans = [compile_onnx(rtx, path, CompileOptions()).plan for _ in range(2)]
    assert len({sha256(plan).hexdigest() for plan in plans}) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_quantized_networks_compile(rtx: Compiler, path: Path, dtype: type) -> None:
    engine = compile_onnx(rtx, small_models.quantized(path, dtype), ONE)
    assert engine.census["CONVOLUTION INT8"] == 1
    # FP16 scales are converted by the compiler, which says so; each text once, in one line.
    assert bool(engine.warnings) == (dtype is np.float16)
    assert len(set(engine.warnings)) == len(engine.warnings)
    assert all(line == line.strip() and "\n" not in line for line in engine.warnings)


def test_a_workspace_limit_and_a_choice_of_targets(rtx: Compiler, path: Path) -> None:
    options = CompileOptions(
        workspace_bytes=1 << 28, compute_capabilities=("12.0", "8.6"), profile=ShapeProfile(2, 2, 2)
    )
    engine = compile_onnx(rtx, small_models.convolution(path), options)
    assert engine.compute_capabilities == ("8.6", "12.0")
    assert engine.profile == ShapeProfile(2, 2, 2)


def test_a_fixed_batch_needs_no_profile_but_must_be_in_the_one_asked(
    rtx: Compiler, path: Path
) -> None:
    small_models.convolution(path, shape=(4, *small_models.IMAGE))
    assert compile_onnx(rtx, path, ONE).profile == ShapeProfile(4, 4, 4)
    with pytest.raises(UsageError, match=r"fixed at 4, outside the profile 8,8,32\n.*--batch 4"):
        compile_onnx(rtx, path, replace(ONE, profile=ShapeProfile(8, 8, 32)))


@pytest.mark.parametrize(
    ("operator", "name", "domain", "pattern"),
    [
        ("Unique", "uniq", "", r"operator Unique of node 'uniq' is not supported by {label}\n.*"),
        ("Det", "", "", r"operator Det of node number 0 is not supported by {label}\n.*"),
        ("Foo", "foo", "my.ops", r"operator Foo of node 'foo' is .*\n.*Plugin not found"),
    ],
)
def test_an_unsupported_operator_is_named(
    rtx: Compiler, path: Path, operator: str, name: str, domain: str, pattern: str
) -> None:
    small_models.one_node(path, operator, name, domain)
    with pytest.raises(BuildError, match=pattern.format(label=rtx.label)) as caught:
        compile_onnx(rtx, path, ONE)
    assert "--backend none" in str(caught.value)
    assert any("While parsing node number 0" in note for note in caught.value.__notes__)


def test_an_error_that_is_kept_does_not_keep_the_compiler(rtx: Compiler, path: Path) -> None:
    """Two compilers at a time have one logger, of which the second complains."""
    small_models.one_node(path, "Det", "", "")
    with pytest.raises(BuildError) as kept:
        compile_onnx(rtx, path, ONE)
    assert compile_onnx(rtx, small_models.convolution(path), ONE).warnings == ()
    assert kept.value.__traceback__ is not None


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"junk" * 30, "model.onnx cannot be read by .*\n.*Failed to parse the ONNX model"),
        (b"", "model.onnx holds no network: it has no outputs"),
        (None, "model.onnx cannot be read by .*\n.*cannot be found"),
    ],
)
def test_a_file_that_is_no_model(
    rtx: Compiler, path: Path, content: bytes | None, pattern: str
) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BuildError, match=pattern):
        compile_onnx(rtx, path, ONE)


def test_an_interrupt_raised_by_the_display_stops_the_build(rtx: Compiler, path: Path) -> None:
    def interrupt(done: float) -> None:
        if done > 0.1:
            raise KeyboardInterrupt

    task = Task(interrupt)
    with pytest.raises(KeyboardInterrupt):
        compile_onnx(rtx, small_models.convolution(path), ONE, task)
    assert task.shares[-1] < 0.9


@pytest.mark.skipif(sys.platform == "win32", reason="a signal cannot be sent to a thread there")
def test_ctrl_c_stops_the_build_and_is_raised_again(
    monkeypatch: pytest.MonkeyPatch, rtx: Compiler, path: Path
) -> None:
    main = threading.main_thread().ident
    assert main is not None
    pressed, stopped = threading.Event(), threading.Event()
    stop = BuildMonitor.stop

    def press_ctrl_c(done: float) -> None:
        if not pressed.is_set():
            pressed.set()
            signal.pthread_kill(main, signal.SIGINT)
            # The compiler waits in this callback until the main thread has been interrupted.
            assert stopped.wait(60)

    def stop_and_tell(monitor: BuildMonitor) -> None:
        stop(monitor)
        stopped.set()

    monkeypatch.setattr(BuildMonitor, "stop", stop_and_tell)
    task = Task(press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        compile_onnx(rtx, small_models.convolution(path), ONE, task)
    assert len(task.shares) < 5
    assert not [one for one in threading.enumerate() if one.name.startswith("deploykit-build")]


def test_ctrl_c_while_the_compilers_thread_starts(
    monkeypatch: pytest.MonkeyPatch, rtx: Compiler, path: Path
) -> None:
    """The pool does not know the thread then, and would not wait for it."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith("deploykit-build"):
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compile_onnx(rtx, small_models.convolution(path), ONE)
    assert not [one for one in threading.enumerate() if one.name.startswith("deploykit-build")]
    monkeypatch.undo()
    assert compile_onnx(rtx, small_models.convolution(path), ONE).warnings == ()


# Failing return values, one by one, with the fake.


def test_the_fake_builds_as_tensorrt(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: (Gpu("Hopper", "9.0", 1),))
    told = script(said=[(Severity.WARNING, "slow")] * 2, phases={"build": 3})
    task = Task()
    options = CompileOptions(workspace_bytes=1 << 20)
    engine = compile_onnx(fake(told, "tensorrt"), path, options, task)
    assert engine.plan == b"ftrt plan"
    assert engine.compute_capabilities == ("9.0",)
    assert engine.census == {"CONVOLUTION HALF": 1}
    assert engine.warnings == ("slow",)
    assert told.flags == 1
    assert told.shapes == {"image": ((1, 3, 8, 8), (8, 3, 8, 8), (32, 3, 8, 8))}
    assert told.capabilities == {}
    assert told.pools == {MemoryPoolType.WORKSPACE: 1 << 20}
    assert task.shares == [0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0, 1.0]


def test_the_fake_builds_for_rtx(path: Path) -> None:
    told = script()
    engine = compile_onnx(fake(told), path, CompileOptions())
    assert engine.compute_capabilities == ("8.0", "8.9", "12.0")
    assert list(told.capabilities.values()) == [
        ComputeCapability.SM80,
        ComputeCapability.SM89,
        ComputeCapability.SM120,
    ]
    assert told.pools == {}


@pytest.mark.parametrize("missing", ["NetworkDefinitionCreationFlag", "STRONGLY_TYPED"])
def test_a_version_with_strong_typing_only_needs_no_flag(path: Path, missing: str) -> None:
    told = script()
    compiler = fake(told)
    compiler.module.NetworkDefinitionCreationFlag = None if missing[0] == "N" else object()
    compile_onnx(compiler, path, ONE)
    assert told.flags == 0


def test_several_open_inputs_share_the_profile(path: Path) -> None:
    told = script(network=network(OPEN, ITensor("mask", DataType.HALF, (-1, 1)), ITensor("t")))
    compile_onnx(fake(told), path, replace(ONE, profile=ShapeProfile(1, 2, 3)))
    assert told.shapes["mask"] == ((1, 1), (2, 1), (3, 1))
    assert set(told.shapes) == {"image", "mask"}


def test_inputs_without_any_dimension_leave_the_profile_as_asked(path: Path) -> None:
    told = script(network=network(ITensor("scalar")))
    assert compile_onnx(fake(told), path, ONE).profile == ShapeProfile()


def test_tensorrt_without_a_gpu(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: ())
    with pytest.raises(BuildError, match="there is none here"):
        compile_onnx(fake(script(), "tensorrt"), path, CompileOptions())


def test_tensorrt_takes_no_compute_capabilities(path: Path) -> None:
    with pytest.raises(UsageError, match=r"8\.9 cannot be chosen for tensorrt\n.*leave them out"):
        compile_onnx(fake(script(), "tensorrt"), path, ONE)


@pytest.mark.parametrize("unknown", ["9.0", "7.5", "89", ""])
def test_unknown_compute_capabilities_list_the_known(path: Path, unknown: str) -> None:
    options = CompileOptions(compute_capabilities=("8.9", unknown))
    pattern = rf"cannot compile for compute capability {unknown}\nit knows 8\.0, 8\.9, 12\.0"
    with pytest.raises(UsageError, match=pattern):
        compile_onnx(fake(script()), path, options)


def test_a_workspace_must_be_positive() -> None:
    with pytest.raises(UsageError, match="workspace of 0 bytes: expected 1 or more"):
        CompileOptions(workspace_bytes=0)


def test_a_compiler_that_does_not_start(path: Path) -> None:
    told = script(starts=False, said=[(Severity.WARNING, "CUDA initialization failure: 35")])
    error = refusal(told, path)
    assert "tensorrt-rtx 11.4.0.106 does not start on this machine" in str(error)
    assert "it says: CUDA initialization failure: 35" in str(error)
    assert isinstance(error.__cause__, TypeError)


def test_a_network_that_is_not_created(path: Path) -> None:
    assert "does not start on this machine" in str(refusal(script(network=None), path))


def test_a_network_without_outputs(path: Path) -> None:
    error = refusal(script(network=INetworkDefinition(num_outputs=0)), path)
    assert "model.onnx holds no network: it has no outputs" in str(error)


def test_the_parser_names_the_first_node_and_the_other_operators(path: Path) -> None:
    refused = [
        ParserError("false", name="a", operator="Foo"),
        ParserError("false", name="b", operator="Bar"),
        ParserError("false", name="c", operator="Foo"),
    ]
    text = str(refusal(script(parse_errors=refused), path))
    assert (
        "operator Foo of node 'a' is not supported by tensorrt-rtx 11.4.0.106, nor is Bar" in text
    )
    assert "it says: UNSUPPORTED_NODE: false" in text


def test_the_parser_refuses_the_file(path: Path) -> None:
    refused = [ParserError("no protobuf", ErrorCode.MODEL_DESERIALIZE_FAILED)]
    text = str(refusal(script(parse_errors=refused), path))
    assert "model.onnx cannot be read by tensorrt-rtx 11.4.0.106\nit says: no protobuf" in text


def test_a_capability_that_is_not_accepted(path: Path) -> None:
    error = refusal(script(accepts_capability=False), path)
    assert "does not accept compute capability 8.9 among 8.9" in str(error)


@pytest.mark.parametrize("changes", [{"profile_is_valid": False}, {"profile_index": -1}])
def test_a_profile_that_is_not_accepted(path: Path, changes: dict[str, Any]) -> None:
    error = refusal(script(**changes), path)
    assert "refuses the profile batch 1,8,32" in str(error)


def test_shapes_that_are_not_accepted(path: Path) -> None:
    error = refusal(script(shape_error="rank differs"), path)
    assert "refuses the shapes [(1, 3, 8, 8), (8, 3, 8, 8), (32, 3, 8, 8)] of input" in str(error)
    assert "it says: rank differs" in str(error)


def test_a_build_without_a_plan(path: Path) -> None:
    said = [(Severity.ERROR, f"error {number}") for number in range(7)]
    error = refusal(script(plan=None, said=said), path)
    assert "cannot build model.onnx\nit says: error 0\n" in str(error)
    assert error.__notes__ == [f"tensorrt-rtx: error {number}" for number in range(2, 7)]


def test_an_engine_keeps_the_details_of_its_layers(tmp_path: Path) -> None:
    script = Script(network(OPEN))
    compile_onnx(fake(script), tmp_path / "m.onnx", ONE)
    assert script.verbosity is ProfilingVerbosity.DETAILED


def test_a_failing_display_is_raised_after_the_build(path: Path) -> None:
    def fail(done: float) -> None:
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        compile_onnx(fake(script(phases={"build": 3})), path, ONE, Task(fail))
