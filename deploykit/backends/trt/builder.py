"""Compilation of an ONNX file to a serialized engine, and the census of its arithmetic."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, Final

from deploykit.backends._cuda.device import Device
from deploykit.backends._engines import CompiledEngine
from deploykit.backends.trt.compiler import Messages, clean, logger_into, require_gpu
from deploykit.core import environment
from deploykit.core.errors import BuildError, UsageError
from deploykit.core.gpu_choice import with_first
from deploykit.core.precision import HEAVY_KINDS
from deploykit.core.sizes import AXIS_NAMES, BATCH_AXIS, IMAGE_DIMS, filled, require_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from deploykit.backends._engines import CompileOptions, Compiler
    from deploykit.core.progress import ProgressTask
    from deploykit.core.sizes import ShapeProfile

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

    Raises:
        UsageError: the profile that was asked does not contain the fixed batch, lacks the sizes of
            an open height or width, or has some for a fixed one.
    """
    shapes = [shape for shape in inputs.values() if shape]
    images = [shape for shape in shapes if len(shape) == IMAGE_DIMS]
    # Open where any of several inputs is.
    require_sizes(name, tuple(map(min, zip(*images, strict=True))), asked)
    if not shapes or any(shape[BATCH_AXIS] == -1 for shape in shapes):
        return asked
    return _with_batch(asked, shapes[0][BATCH_AXIS])


def _with_batch(asked: ShapeProfile, batch: int) -> ShapeProfile:
    if not asked.min_batch <= batch <= asked.max_batch:
        raise UsageError(
            f"the model's batch is fixed at {batch}, outside the profile "
            f"{asked.min_batch},{asked.opt_batch},{asked.max_batch}\n"
            f"ask for --batch {batch}, or export the model with an open batch"
        )
    return replace(asked, min_batch=batch, opt_batch=batch, max_batch=batch)


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


_OLDEST_PORTABLE = 80
"""Oldest default target, Ampere: Turing (7.5) shares no engine with newer ones by default."""

_SHOWN_ERRORS = 5


def known_compute_capabilities(compiler: Compiler) -> tuple[str, ...]:
    """The targets that a portable compiler can name, from 8.0 up, in ascending order."""
    members = compiler.module.ComputeCapability.__members__
    numbers = sorted(int(name.removeprefix("SM")) for name in members if name.startswith("SM"))
    return tuple(
        f"{number // 10}.{number % 10}" for number in numbers if number >= _OLDEST_PORTABLE
    )


def compile_onnx(
    compiler: Compiler, onnx: Path, options: CompileOptions, task: ProgressTask | None = None
) -> CompiledEngine:
    """Compile an ONNX file; ``task`` gets a share between 0 and 1, from another thread.

    Ctrl-C stops the compiler at its next step and is raised again when it has stopped.

    Raises:
        UsageError: unknown compute capabilities, or a profile without the model's fixed batch.
        BuildError: the compiler refuses the file, a node of it, or the whole network.
    """
    targets = _target_capabilities(compiler, options)
    monitor = BuildMonitor(task)
    # Python raises KeyboardInterrupt in the main thread only. Were the compiler there, it would be
    # raised inside one of its callbacks and be lost in C++.
    with ThreadPoolExecutor(1, "deploykit-build") as pool:
        try:
            return pool.submit(_Compilation(compiler, onnx, monitor).run, options, targets).result()
        except KeyboardInterrupt:
            monitor.stop()
            raise


def _target_capabilities(compiler: Compiler, options: CompileOptions) -> tuple[str, ...]:
    """Compute capabilities that the engine is compiled for, as ("8.6", "8.9")."""
    asked = options.compute_capabilities
    if not compiler.is_portable:
        if asked:
            raise UsageError(
                f"compute capabilities {', '.join(asked)} cannot be chosen for {compiler.name}\n"
                "it builds for the GPU of the machine: leave them out"
            )
        which = str(options.gpu_index) if options.gpu_index else ""
        own = require_gpu(with_first(environment.gpus(), which)).compute_capability
        if not _has(own, options):
            raise UsageError(
                f"this GPU is of compute capability {own}, which lacks what the graph computes in\n"
                f"it needs {_least(options)} or later: export another precision for it"
            )
        return (own,)
    known = known_compute_capabilities(compiler)
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise UsageError(
            f"{compiler.label} cannot compile for compute capability {', '.join(unknown)}\n"
            f"it knows {', '.join(known)}"
        )
    fitting = tuple(name for name in known if _has(name, options))
    return tuple(name for name in known if name in asked) or fitting


def _has(compute_capability: str, options: CompileOptions) -> bool:
    """Whether a GPU of it has the arithmetic that is asked for."""
    major, minor = compute_capability.split(".")
    least = options.least_compute_capability
    return least is None or (int(major), int(minor)) >= least


def _least(options: CompileOptions) -> str:
    return ".".join(map(str, options.least_compute_capability or ()))


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
        config = self._create(builder.create_builder_config)
        self._configure(config, options, targets)
        profile = self._add_profile(builder, config, input_shapes(network), options.profile)
        # Before the build: the types of a strongly typed network are those of its engine.
        census = take_census(network)
        plan = self._build(builder, network, config)
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
        if options.workspace_bytes is not None:
            pool = self._module.MemoryPoolType.WORKSPACE
            config.set_memory_pool_limit(pool, options.workspace_bytes)
        if self._compiler.is_portable:
            self._set_targets(config, targets)

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

    def _add_profile(
        self, builder: Any, config: Any, inputs: Mapping[str, tuple[int, ...]], asked: ShapeProfile
    ) -> ShapeProfile:
        dynamic = open_inputs(inputs)
        fitting = fitting_profile(self._onnx.name, inputs, asked)
        if not dynamic:
            return fitting
        profile = self._create(builder.create_optimization_profile)
        points = (fitting.smallest, fitting.preferred, fitting.largest)
        for name, shape in dynamic.items():
            self._set_shape(profile, name, [filled(shape, sizes) or shape for sizes in points])
        # set_shape accepts min > max silently, so the profile is checked as a whole. The result is
        # -1 for a profile that is refused.
        if not profile or config.add_optimization_profile(profile) < 0:
            raise self._error(
                f"{self._compiler.label} refuses the profile {fitting}", "choose another"
            )
        return fitting

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


LIGHT_KINDS: Final = (
    "ACTIVATION",
    "CUMULATIVE",
    "ELEMENTWISE",
    "LRN",
    "NORMALIZATION",
    "PARAMETRIC_RELU",
    "POOLING",
    "REDUCE",
    "RESIZE",
    "SCALE",
    "SOFTMAX",
    "UNARY",
)

# Integer layers compute shapes, not the model.
_MODEL_TYPES: Final = ("FLOAT", "HALF", "BF16", "INT8", "FP8")
# Layers between DEQUANTIZE and its user that move or rename values without computing any.
_MOVING_KINDS: Final = ("CAST", "IDENTITY", "SHUFFLE", "SQUEEZE", "UNSQUEEZE")


def take_census(network: Any) -> dict[str, int]:
    """Layers that do floating-point arithmetic, as ``{"CONVOLUTION HALF": 53}``, sorted.

    ``network`` is an ``INetworkDefinition`` after parsing. A layer of `HEAVY_KINDS` counts as INT8,
    or another quantized type, when both its data and its weights come out of DEQUANTIZE layers.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producers = {
        layer.get_output(index).name: layer
        for layer in layers
        for index in range(layer.num_outputs)
    }
    counts: Counter[str] = Counter()
    for layer in layers:
        kind = layer.type.name
        if kind in HEAVY_KINDS or kind in LIGHT_KINDS:
            counts[f"{kind} {_type_of(layer, producers)}"] += 1
    return {key: counts[key] for key in sorted(counts) if key.split()[1] in _MODEL_TYPES}


def _type_of(layer: Any, producers: Mapping[str, Any]) -> str:
    if layer.type.name in HEAVY_KINDS:
        quantized = _quantized_type(layer, producers)
        if quantized is not None:
            return quantized
    return str(layer.get_input(0).dtype.name)


def _quantized_type(layer: Any, producers: Mapping[str, Any]) -> str | None:
    """The type that both data (input 0) and weights (input 1) are dequantized from.

    A convolution whose weights are a constant of its own has no input 1: it is not quantized.
    """
    if layer.num_inputs < 2:  # noqa: PLR2004
        return None
    data, weights = (_type_before(layer.get_input(index), producers) for index in (0, 1))
    return data if data == weights else None


def _type_before(tensor: Any, producers: Mapping[str, Any]) -> str | None:
    """The type that a value is dequantized from, ``None`` where it is not."""
    layer = producers.get(tensor.name)
    while layer is not None and layer.type.name in _MOVING_KINDS:
        tensor = layer.get_input(0)
        layer = producers.get(tensor.name)
    if layer is None or layer.type.name != "DEQUANTIZE":
        return None
    return str(layer.get_input(0).dtype.name)
