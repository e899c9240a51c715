"""Compilation of an ONNX file to a serialized engine, and the census of its arithmetic."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, Final

from deploykit.backends._cuda.device import Device
from deploykit.backends._engines import CompiledEngine
from deploykit.backends.trt.census import take_census
from deploykit.backends.trt.compiler import Messages, clean, logger_into
from deploykit.backends.trt.targets import LEVELS, build_gpu, fitting, target_capabilities
from deploykit.backends.trt.timing import TimingCache, timing_file
from deploykit.core.artifacts import THIS_GPU
from deploykit.core.errors import BuildError, UsageError
from deploykit.core.sizes import (
    AXIS_NAMES,
    BATCH_AXIS,
    IMAGE_DIMS,
    ShapeProfile,
    filled,
    require_sizes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from deploykit.backends._engines import CompileOptions, Compiler
    from deploykit.core.progress import ProgressTask

    InputShapes = Mapping[str, tuple[int, ...]]


def input_shapes(network: Any) -> InputShapes:
    """Shape of every input of an ``INetworkDefinition`` by name, -1 where it is open."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    # Dims of the binding cannot be compared or hashed.
    return {tensor.name: tuple(tensor.shape) for tensor in tensors}


def open_inputs(inputs: InputShapes) -> InputShapes:
    """The inputs with an open batch, or with an open height or width of images (N, C, H, W).

    Raises:
        BuildError: another dimension is open.
    """
    dynamic = {name: shape for name, shape in inputs.items() if -1 in shape}
    for name, shape in dynamic.items():
        possible = AXIS_NAMES if len(shape) == IMAGE_DIMS else {BATCH_AXIS}
        open_axes = [axis for axis, size in enumerate(shape) if size == -1]
        others = [str(axis) for axis in open_axes if axis not in possible]
        if others:
            raise BuildError(
                f"input {name!r} has the shape {shape}: dimension {', '.join(others)} is open\n"
                "only the batch, and the height and width of images (N, C, H, W), may be\n"
                "export the model with the others fixed"
            )
    return dynamic


def fitting_profile(name: str, inputs: InputShapes, asked: ShapeProfile) -> ShapeProfile:
    """``asked``, with the one batch of a network that fixes it; ``name`` is for messages.

    Of several profiles those stay that contain the fixed batch.

    Raises:
        UsageError: no profile that was asked contains the fixed batch; it lacks the sizes of an
            open height or width, or has some for a fixed one.
    """
    shapes = [shape for shape in inputs.values() if shape]
    images = [shape for shape in shapes if len(shape) == IMAGE_DIMS]
    # Open where any of several inputs is.
    require_sizes(name, tuple(map(min, zip(*images, strict=True))), asked)
    if not shapes or any(shape[BATCH_AXIS] == -1 for shape in shapes):
        return asked
    return _with_batch(asked, shapes[0][BATCH_AXIS])


def _with_batch(asked: ShapeProfile, batch: int) -> ShapeProfile:
    having = [each for each in asked.profiles if each.takes({BATCH_AXIS: batch})]
    if not having:
        outside = " and ".join(
            f"{each.min_batch},{each.opt_batch},{each.max_batch}" for each in asked.profiles
        )
        raise UsageError(
            f"the model's batch is fixed at {batch}, outside the profile {outside}\n"
            f"ask for --batch {batch}, or export the model with an open batch"
        )
    return ShapeProfile.of(
        [replace(each, min_batch=batch, opt_batch=batch, max_batch=batch) for each in having]
    )


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildMonitor:
    """Progress of one build; ``failure`` is the first exception that the display raised.

    ``task`` gets a share between 0 and 1 that never decreases within a top-level phase.
    """

    def __init__(self, task: ProgressTask | None) -> None:
        self.failure: BaseException | None = None
        self._task = task
        self._stopped = False
        self._phases: dict[str, _Phase] = {}
        self._shown = 0.0

    def stop(self) -> None:
        """Ask the compiler to give up at its next step."""
        self._stopped = True

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase of ``steps`` steps, inside ``parent`` or on its own."""
        with self._contained():
            self._phases[name] = _Phase(parent, max(1, steps))
            if parent is None:
                self._shown = 0.0
            self._show(name)

    def phase_finish(self, name: str) -> None:
        """End a phase, perhaps before its last step."""
        with self._contained():
            phase = self._phases.pop(name, None)
            if phase is not None and phase.parent is None and not self._stopped:
                self._update(1.0, name)

    def step_complete(self, name: str, step: int) -> bool:
        """A step, counted from 0, is done; ``False`` tells the compiler to stop."""
        with self._contained():
            if name in self._phases:
                self._phases[name].done = step + 1
            self._show(name)
        return not self._stopped

    def _show(self, name: str) -> None:
        roots = [key for key, phase in self._phases.items() if phase.parent not in self._phases]
        self._shown = max([self._shown, *(self._share(root) for root in roots)])
        self._update(self._shown, name)

    def _update(self, share: float, name: str) -> None:
        if self._task is not None:
            self._task.update(share, 1.0, name)

    def _share(self, name: str) -> float:
        """Share of a phase that is done, with the inner phases of its current step."""
        phase = self._phases[name]
        inner = [self._share(key) for key, other in self._phases.items() if other.parent == name]
        return min(1.0, (phase.done + max(inner, default=0.0)) / phase.steps)

    @contextmanager
    def _contained(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.failure = self.failure or error
            self.stop()


def progress_monitor(monitor: BuildMonitor, module: Any) -> Any:
    """An ``IProgressMonitor`` of ``module`` that reports to ``monitor``."""

    def phase_start(_self: Any, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        monitor.phase_start(phase_name, parent_phase, num_steps)

    def phase_finish(_self: Any, phase_name: str) -> None:
        monitor.phase_finish(phase_name)

    def step_complete(_self: Any, phase_name: str, step: int) -> bool:
        return monitor.step_complete(phase_name, step)

    methods = {
        "phase_start": phase_start,
        "phase_finish": phase_finish,
        "step_complete": step_complete,
    }
    # The base class comes with the module, so that the class is made here.
    return type("BuildProgressMonitor", (module.IProgressMonitor,), methods)()


_SHOWN_ERRORS = 5


def compile_onnx(
    compiler: Compiler, onnx: Path, options: CompileOptions, task: ProgressTask | None = None
) -> CompiledEngine:
    """Compile an ONNX file; ``task`` gets a share between 0 and 1, from another thread.

    Ctrl-C stops the compiler at its next step and is raised again when it has stopped.

    Raises:
        UsageError: unknown compute capabilities, or a profile without the model's fixed batch.
        BuildError: the compiler refuses the file, a node of it, or the whole network.
    """
    targets = target_capabilities(compiler, options)
    monitor = BuildMonitor(task)
    compilation = _Compilation(compiler, onnx, monitor)
    name = f"deploykit-build-{id(compilation)}"
    # Python raises KeyboardInterrupt in the main thread only. Were the compiler there, it would be
    # raised inside one of its callbacks and be lost in C++.
    try:
        with ThreadPoolExecutor(1, name) as pool:
            try:
                return pool.submit(compilation.run, options, targets).result()
            except KeyboardInterrupt:
                monitor.stop()
                raise
    finally:
        _wait_for(name)


def _wait_for(name: str) -> None:
    """Wait for a thread that an interrupt hid from its pool: one that came while it started."""
    while any(thread.name.startswith(name) for thread in threading.enumerate()):
        time.sleep(_POLL_S)


_POLL_S: Final = 0.01


class _Compilation:
    """One use of a compiler; its objects stay referenced until the engine is serialized.

    The compiler keeps plain addresses of the logger, the monitor and the parser's weights.
    """

    def __init__(self, compiler: Compiler, onnx: Path, monitor: BuildMonitor) -> None:
        self._compiler = compiler
        self._module = compiler.module
        self._onnx = onnx
        self._monitor = monitor
        self._messages = Messages()
        self._logger = logger_into(self._messages, self._module)

    def run(self, options: CompileOptions, targets: tuple[str, ...]) -> CompiledEngine:
        """Parse, configure and build."""
        if options.gpu_index and not self._compiler.is_portable:
            # The compiler takes the GPU that is current for its thread, which is this one.
            Device(options.gpu_index).make_current()
        try:
            return self._run(options, targets)
        except BaseException as error:
            # Whoever keeps the error would keep the compiler alive in its frames, and with it its
            # logger: the next one in this process would complain that it is another.
            clear_frames(error.__traceback__)
            raise

    def _run(self, options: CompileOptions, targets: tuple[str, ...]) -> CompiledEngine:
        start = time.perf_counter()
        builder = self._create(self._module.Builder, self._logger)
        network = self._create(builder.create_network, _strongly_typed(self._module))
        parser = self._create(self._module.OnnxParser, network, self._logger)
        self._parse(parser, network)
        targets = fitting(self._onnx.name, network, self._compiler, options, targets)
        config = self._create(builder.create_builder_config)
        self._configure(config, options, targets)
        timings = self._timings(config, options)
        profile = self._add_profiles(builder, config, input_shapes(network), options.profile)
        # Before the build: the types of a strongly typed network are those of its engine.
        census = take_census(network)
        plan = self._build(builder, network, config)
        if timings is not None:
            timings.save()
        seconds = time.perf_counter() - start
        warnings = tuple(self._messages.warnings)
        return CompiledEngine(plan, profile, targets, census, seconds, warnings)

    def _create(self, factory: Callable[..., Any], *arguments: Any) -> Any:
        try:
            created = factory(*arguments)
        except TypeError as error:
            # A constructor's way to say that the C++ factory returned a null pointer.
            raise self._does_not_start() from error
        if created is None:
            raise self._does_not_start()
        return created

    def _does_not_start(self) -> BuildError:
        summary = f"{self._compiler.label} does not start on this machine"
        return self._error(summary, "check the GPU, its driver and the installation")

    def _parse(self, parser: Any, network: Any) -> None:
        if not parser.parse_from_file(str(self._onnx)):
            raise self._parse_error(parser)
        # An empty file is a valid, empty protocol buffer: it parses.
        if network.num_outputs == 0:
            raise self._error(
                f"{self._onnx.name} holds no network: it has no outputs", "export the model again"
            )

    def _parse_error(self, parser: Any) -> BuildError:
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        nodes = [error for error in errors if error.node_operator()]
        if not nodes:
            said = clean(errors[0].desc()) if errors else None
            summary = f"{self._onnx.name} cannot be read by {self._compiler.label}"
            return self._error(summary, "check that it is an ONNX file and export it again", said)
        first = nodes[0]
        name = repr(first.node_name()) if first.node_name() else f"number {first.node()}"
        others = sorted({error.node_operator() for error in nodes} - {first.node_operator()})
        more = f", nor is {', '.join(others)}" if others else ""
        return self._error(
            f"operator {first.node_operator()} of node {name} is not supported by "
            f"{self._compiler.label}{more}",
            "rewrite it with other operators, or keep the ONNX file only with --backend none",
            f"{first.code().name}: {clean(first.desc())}",
        )

    def _configure(self, config: Any, options: CompileOptions, targets: Sequence[str]) -> None:
        # The TF32 flag stays as the compiler sets it (on): an FP32 network may use the 10-bit
        # mantissa of the tensor cores for its products, as PyTorch's convolutions do.
        config.progress_monitor = progress_monitor(self._monitor, self._module)
        # By itself an engine knows the names of its layers alone, not their types and layouts.
        config.profiling_verbosity = self._module.ProfilingVerbosity.DETAILED
        if options.workspace_bytes is not None:
            pool = self._module.MemoryPoolType.WORKSPACE
            config.set_memory_pool_limit(pool, options.workspace_bytes)
        if options.optimization_level is not None:
            self._set_level(config, options.optimization_level)
        if options.hardware_compatibility != THIS_GPU:
            member = LEVELS[options.hardware_compatibility]
            config.hardware_compatibility_level = getattr(
                self._module.HardwareCompatibilityLevel, member
            )
        if self._compiler.is_portable:
            self._set_targets(config, targets)

    def _timings(self, config: Any, options: CompileOptions) -> TimingCache | None:
        # A portable compiler times no kernels, and would look for a GPU if it was given a cache.
        if options.timing_folder is None or self._compiler.is_portable:
            return None
        path = timing_file(options.timing_folder, self._compiler, build_gpu(options))
        return TimingCache(config, path, self._messages)

    def _set_level(self, config: Any, level: int) -> None:
        if not hasattr(config, "builder_optimization_level"):
            raise UsageError(
                f"{self._compiler.label} has no optimization levels\nleave --optimization-level out"
            )
        config.builder_optimization_level = level
        # One above the greatest is taken as the greatest, without a word.
        taken = config.builder_optimization_level
        if taken != level:
            raise UsageError(
                f"{self._compiler.label} has no optimization level {level}, its greatest is "
                f"{taken}\nask for --optimization-level {taken}"
            )

    def _set_targets(self, config: Any, targets: Sequence[str]) -> None:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            member = getattr(self._module.ComputeCapability, f"SM{target.replace('.', '')}")
            if not config.set_compute_capability(member, index):
                raise self._error(
                    f"{self._compiler.label} does not accept compute capability {target} "
                    f"among {', '.join(targets)}",
                    "leave it out",
                )

    def _add_profiles(
        self, builder: Any, config: Any, inputs: Mapping[str, tuple[int, ...]], asked: ShapeProfile
    ) -> ShapeProfile:
        dynamic = open_inputs(inputs)
        fitting = fitting_profile(self._onnx.name, inputs, asked)
        if not dynamic:
            return fitting
        for place, each in enumerate(fitting.profiles):
            self._add_profile(builder, config, dynamic, each, place)
        return fitting

    def _add_profile(
        self, builder: Any, config: Any, dynamic: InputShapes, asked: ShapeProfile, place: int
    ) -> None:
        profile = self._create(builder.create_optimization_profile)
        points = (asked.smallest, asked.preferred, asked.largest)
        for name, shape in dynamic.items():
            self._set_shape(profile, name, [filled(shape, sizes) or shape for sizes in points])
        # set_shape accepts min > max silently, so the profile is checked as a whole. The result is
        # -1 for a profile that is refused.
        if not profile or config.add_optimization_profile(profile) != place:
            raise self._error(
                f"{self._compiler.label} refuses the profile {asked}", "choose another"
            )

    def _set_shape(self, profile: Any, name: str, shapes: Sequence[tuple[int, ...]]) -> None:
        try:
            profile.set_shape(name, *shapes)
        except ValueError as error:
            raise self._error(
                f"{self._compiler.label} refuses the shapes {shapes} of input {name!r}",
                "choose another profile",
                str(error),
            ) from error

    def _build(self, builder: Any, network: Any, config: Any) -> bytes:
        plan = builder.build_serialized_network(network, config)
        # The monitor stops the build by its return value; its exception is raised here instead.
        if self._monitor.failure is not None:
            raise self._monitor.failure
        if plan is None:
            raise self._error(
                f"{self._compiler.label} cannot build {self._onnx.name}",
                "change what it names, or raise the workspace limit if memory is what it lacks",
            )
        # The binding's buffer has no length of its own and a wrong format in its memoryview.
        return bytes(plan)

    def _error(self, summary: str, advice: str, said: str | None = None) -> BuildError:
        """A build error with the compiler's reason; its last error lines are added as notes."""
        error = BuildError(f"{summary}\nit says: {said or self._messages.reason()}\n{advice}")
        for line in self._messages.errors[-_SHOWN_ERRORS:]:
            error.add_note(f"{self._compiler.name}: {line}")
        return error


def _strongly_typed(module: Any) -> int:
    """Creation flags of a strongly typed network, where the module still has a flag for it.

    TensorRT from 10.12 needs it; 11 has no other kind of network and accepts it.
    """
    flags = getattr(module, "NetworkDefinitionCreationFlag", None)
    flag = getattr(flags, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)
