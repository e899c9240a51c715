"""From an ONNX file to a serialized engine, with either compiler.

Nothing is chosen here that changes the arithmetic: the network is strongly typed, so the types in
the ONNX file are the types of the engine.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

from deploykit import environment
from deploykit.backends.trt.census import take_census
from deploykit.backends.trt.compiler import require_gpu
from deploykit.backends.trt.messages import Messages, clean, logger_into
from deploykit.backends.trt.profiles import fitting_profile, input_shapes, open_inputs
from deploykit.backends.trt.progress import BuildMonitor, progress_monitor
from deploykit.errors import BuildError, UsageError
from deploykit.sizes import filled
from deploykit.specs import ShapeProfile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from deploykit.backends.trt.compiler import Compiler
    from deploykit.specs import ProgressTask

_OLDEST_PORTABLE = 80
"""Ampere. Turing (7.5) cannot share an engine with the others without further configuration."""

_SHOWN_ERRORS = 5


@dataclass(frozen=True)
class CompileOptions:
    """Choices of one build.

    ``workspace_bytes`` limits the scratch memory of a layer, ``None`` leaves the compiler's own
    limit. ``compute_capabilities``, as ("8.6", "8.9"), is for TensorRT for RTX only; empty means
    every one that it knows from 8.0 up. TensorRT builds for the GPU that it runs on.
    """

    profile: ShapeProfile = field(default_factory=ShapeProfile)
    workspace_bytes: int | None = None
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise UsageError(f"a workspace of {self.workspace_bytes} bytes: expected 1 or more")


@dataclass(frozen=True)
class CompiledEngine:
    """A serialized engine and what is known of it.

    ``profile`` has the accepted shapes, one batch where the model fixes it. ``build_s`` is
    the time of parsing and compiling. ``warnings`` are the compiler's own, each once.
    """

    plan: bytes = field(repr=False)
    profile: ShapeProfile
    compute_capabilities: tuple[str, ...]
    census: Mapping[str, int]
    build_s: float
    warnings: tuple[str, ...]


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
    """Compile an ONNX file; ``task`` is told a share between 0 and 1, from another thread.

    Ctrl-C stops the compiler at its next step and is raised again when it has stopped.

    Raises:
        UsageError: unknown compute capabilities, or a profile without the model's fixed batch.
        BuildError: the compiler refuses the file, a node of it, or the whole network.
    """
    targets = _target_capabilities(compiler, options.compute_capabilities)
    monitor = BuildMonitor(task)
    # Python raises KeyboardInterrupt in the main thread only. Were the compiler there, it would be
    # raised inside one of its callbacks and be lost in C++.
    with ThreadPoolExecutor(1, "deploykit-build") as pool:
        try:
            return pool.submit(_Compilation(compiler, onnx, monitor).run, options, targets).result()
        except KeyboardInterrupt:
            monitor.stop()
            raise


def _target_capabilities(compiler: Compiler, asked: tuple[str, ...]) -> tuple[str, ...]:
    """What the engine will run on, as ("8.6", "8.9")."""
    if not compiler.is_portable:
        if asked:
            raise UsageError(
                f"compute capabilities {', '.join(asked)} cannot be chosen for {compiler.name}\n"
                "it builds for the GPU of the machine: leave them out"
            )
        return (require_gpu(environment.gpus()).compute_capability,)
    known = known_compute_capabilities(compiler)
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise UsageError(
            f"{compiler.label} cannot compile for compute capability {', '.join(unknown)}\n"
            f"it knows {', '.join(known)}"
        )
    return tuple(name for name in known if name in asked) or known


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
        """An error with the compiler's own words; its last error lines are notes of a traceback."""
        error = BuildError(f"{summary}\nit says: {said or self._messages.reason()}\n{advice}")
        for line in self._messages.errors[-_SHOWN_ERRORS:]:
            error.add_note(f"{self._compiler.name}: {line}")
        return error


def _strongly_typed(module: Any) -> int:
    """Creation flags: strongly typed wherever there is still a flag for it.

    TensorRT 10.12 and later need it, 11 has no other kind and accepts it.
    """
    flags = getattr(module, "NetworkDefinitionCreationFlag", None)
    flag = getattr(flags, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)
