"""A deserialised engine with its runtime cache, and all that outlives the contexts that run it."""

from __future__ import annotations

import logging
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, cast

from deploykit.backends._cuda.forks import keep_in_children
from deploykit.backends.trt import api
from deploykit.backends.trt.compiler import Messages, logger_into
from deploykit.core.errors import BundleError, DeviceError, EngineIncompatibleError
from deploykit.core.sizes import AXIS_NAMES, BATCH_AXIS, IMAGE_DIMS
from deploykit.core.specs import BATCH, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deploykit.backends._engines import Compiler


_log = logging.getLogger("deploykit")


class CacheFile:
    """The cache of a runtime's configuration, and the file that it comes from and goes to.

    Without a file the cache serves the contexts of this process only.
    """

    def __init__(self, config: api.RtxRuntimeConfig, path: Path | None) -> None:
        self._path = path
        self._cache = config.create_runtime_cache()
        self._loaded = b"" if path is None or self._cache is None else _load(self._cache, path)
        if self._cache is None or not config.set_runtime_cache(self._cache):
            _log.warning("the runtime takes no cache: kernels are compiled for each context")
            self._path = None

    def save(self) -> None:
        """Write the cache where it differs from what was read or written; whole, or not at all."""
        if self._path is None or self._cache is None:
            return
        memory = self._cache.serialize()
        blob = b"" if memory is None else bytes(memory)
        if not blob or blob == self._loaded:
            return
        self._loaded = blob
        # Running an engine needs no lock files, nor the package for them.
        from deploykit.core.atomic import replace_file

        try:
            replace_file(self._path, blob)
        except OSError as error:
            _log.warning("cannot write the runtime cache %s: %s", self._path, error)


def _load(cache: api.RuntimeCache, path: Path) -> bytes:
    """Fill the cache from the file; return the content it took, or nothing."""
    try:
        blob = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        _log.warning("cannot read the runtime cache %s: %s", path, error)
        return b""
    if not blob or not cache.deserialize(blob):
        _log.info("%s is damaged or of another machine: kernels are compiled anew", path)
        return b""
    return blob


_DTYPES: Final[Mapping[str, str]] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""numpy's name for each type of the runtime that numpy has."""


class Engine:
    """A plan that is loaded on the GPU; ``scratch_bytes`` is what each stream of calls needs.

    The runtime keeps plain addresses of the logger, the configuration and the cache, so they are
    kept here until `close`.

    Raises:
        BundleError: the file cannot be read.
        EngineIncompatibleError: this runtime, driver or GPU does not load it, or it has tensors
            that are no batches of numbers or images.
    """

    def __init__(
        self, plan: Path, compiler: Compiler, *, cuda_graphs: bool, cache: Path | None
    ) -> None:
        keep_in_children(self)
        self.name = plan.name
        self._label = compiler.label
        self._messages = Messages()
        self._logger = logger_into(self._messages, compiler.module)
        # Lanes are made from several threads, and the engine makes their contexts one at a time.
        self._making = Lock()
        self._runtime, self._engine = self._deserialise(compiler.module, _read(plan))
        self.inputs, self.outputs = self._specs()
        self.scratch_bytes = int(self._engine.device_memory_size_v2)
        self._config = self._new_config(compiler.module)
        self._cache: CacheFile | None = None
        self._computed: set[tuple[tuple[int, ...], ...]] = set()
        self.captures = cuda_graphs
        if hasattr(self._config, "cuda_graph_strategy"):
            config = cast("api.RtxRuntimeConfig", self._config)
            # TensorRT for RTX knows best when its kernels of a new shape are worth capturing.
            self.captures = False
            config.cuda_graph_strategy = _graph_strategy(compiler.module, wanted=cuda_graphs)
            # A context has one shape here. By its own choice the runtime compiles for that shape
            # beside the first calls, and computes them, perhaps a whole warm-up, with fallbacks.
            strategies = compiler.module.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            self._cache = CacheFile(config, cache)

    def new_context(self) -> api.ExecutionContext:
        """A context without scratch memory of its own.

        Raises:
            DeviceError: the runtime cannot make one, as for lack of memory.
        """
        with self._making:
            context = self._engine.create_execution_context(self._config)
        if context is None:
            raise self.failure("makes no execution context")
        return context

    def set_shapes(
        self, context: api.ExecutionContext, shapes: Sequence[tuple[int, ...]]
    ) -> tuple[tuple[int, ...], ...]:
        """Set the shapes of a context's inputs; return the shapes of its outputs.

        Raises:
            DeviceError: the runtime refuses them.
        """
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if not context.set_input_shape(spec.name, shape):
                raise self.failure(f"refuses the shape {shape} of {spec.name!r}")
        try:
            # Until shapes are inferred, those of outputs stay -1.
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise self.failure("cannot infer the shapes") from error
        if missing:
            raise self.failure(f"lacks the shapes of {', '.join(missing)}")
        return tuple(api.as_tuple(context.get_tensor_shape(spec.name)) for spec in self.outputs)

    def output_shapes(self, largest: Mapping[int, int]) -> tuple[tuple[int, ...], ...]:
        """Shapes of the outputs for inputs of the sizes ``largest`` (by axis).

        Raises:
            DeviceError: the runtime cannot tell.
        """
        if all(isinstance(dim, int) for spec in self.outputs for dim in spec.shape[1:]):
            return tuple(spec.with_sizes(largest) for spec in self.outputs)
        # Maps of features beside the logits: how large they are is the network's to say.
        shapes = [spec.with_sizes(largest) for spec in self.inputs]
        return self.set_shapes(self.new_context(), shapes)

    def keep_kernels(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Write the runtime cache after the first call of ``shapes``, whose kernels are in it now.

        Not on closing alone: a service is killed more often than it is closed.
        """
        if self._cache is None:
            return
        with self._making:
            if shapes not in self._computed:
                self._computed.add(shapes)
                self._cache.save()

    def failure(self, what: str) -> DeviceError:
        """An error with the runtime's reason; the messages are cleared for the next call."""
        reason = self._messages.reason()
        self._messages.errors.clear()
        return DeviceError(
            f"{self.name}: {self._label} {what}\nit says: {reason}\n"
            "deploykit doctor says what works on this machine"
        )

    def close(self, *, save: bool) -> None:
        """Release the engine, after all its contexts; ``save`` writes the runtime cache."""
        if self._cache is not None and save:
            self._cache.save()
        # In this order: each keeps plain addresses of those after it.
        del self._cache, self._config, self._engine, self._runtime, self._logger

    def _deserialise(self, module: Any, plan: bytes) -> tuple[api.Runtime, api.CudaEngine]:
        try:
            runtime: api.Runtime = module.Runtime(self._logger)
        except TypeError as error:
            # A constructor's way to say that the C++ factory returned a null pointer.
            raise self._incompatible("does not start") from error
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._incompatible("does not load it")
        return runtime, engine

    def _incompatible(self, what: str) -> EngineIncompatibleError:
        return EngineIncompatibleError(
            f"{self.name}: {self._label} {what} on this machine\n"
            f"it says: {self._messages.reason()}\n"
            "compile it here with deploykit build"
        )

    def _specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name).name == "INPUT"]
        outputs = [name for name in names if name not in inputs]
        return tuple(map(self._input, inputs)), tuple(map(self._output, outputs))

    def _input(self, name: str) -> TensorSpec:
        kind = self._engine.get_tensor_dtype(name).name
        shape = api.as_tuple(self._engine.get_tensor_shape(name))
        known = AXIS_NAMES if len(shape) == IMAGE_DIMS else {BATCH_AXIS: BATCH}
        named = tuple(known.get(axis, -1) if dim == -1 else dim for axis, dim in enumerate(shape))
        if kind not in _DTYPES or not named or -1 in named:
            raise self._odd(name, kind, shape)
        return TensorSpec(name, _DTYPES[kind], named)

    def _output(self, name: str) -> TensorSpec:
        kind = self._engine.get_tensor_dtype(name).name
        shape = api.as_tuple(self._engine.get_tensor_shape(name))
        if kind not in _DTYPES or not shape:
            raise self._odd(name, kind, shape)
        first, *others = (f"{name}_{axis}" if dim == -1 else dim for axis, dim in enumerate(shape))
        return TensorSpec(name, _DTYPES[kind], (BATCH if shape[0] == -1 else first, *others))

    def _odd(self, name: str, kind: str, shape: tuple[int, ...]) -> EngineIncompatibleError:
        return EngineIncompatibleError(
            f"{self.name}: tensor {name!r} has type {kind} and shape {shape}\n"
            "possible are shapes that are open in the batch, and in the height and width of "
            f"images (N, C, H, W), and the types {', '.join(_DTYPES)}"
        )

    def _new_config(self, module: Any) -> api.RuntimeConfig:
        config = self._engine.create_runtime_config()
        if config is None:
            raise self._incompatible("cannot configure it")
        # One context per batch size and stream, and those of a stream share its scratch memory.
        strategies = module.ExecutionContextAllocationStrategy
        config.set_execution_context_allocation_strategy(strategies.USER_MANAGED)
        return config


def _graph_strategy(module: Any, *, wanted: bool) -> Any:
    strategies = module.CudaGraphStrategy
    return strategies.WHOLE_GRAPH_CAPTURE if wanted else strategies.DISABLED


def _read(plan: Path) -> bytes:
    try:
        return plan.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {plan}: {error.strerror or error}") from error
