"""A deserialised engine with its runtime cache, and all that outlives the contexts that run it."""

from __future__ import annotations

import logging
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, cast

from deploykit.backends._cuda.forks import keep_in_children
from deploykit.backends.trt import api
from deploykit.backends.trt.compiler import Messages, logger_into
from deploykit.core.errors import BundleError, DeviceError, EngineIncompatibleError, UsageError
from deploykit.core.sizes import AXIS_NAMES, BATCH_AXIS, IMAGE_DIMS
from deploykit.core.specs import BATCH, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from deploykit.backends._engines import Compiler
    from deploykit.core.sizes import ShapeProfile

    Shapes = tuple[tuple[int, ...], ...]


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

    ``profile`` is that of its manifest; an engine of several is compared with it.

    The runtime keeps plain addresses of the logger, the configuration and the cache, so they are
    kept here until `close`.

    Raises:
        BundleError: the file cannot be read.
        EngineIncompatibleError: this runtime, driver or GPU does not load it, it has tensors that
            are no batches of numbers or images, or other profiles than ``profile``.
    """

    def __init__(
        self,
        plan: Path,
        compiler: Compiler,
        profile: ShapeProfile,
        *,
        cuda_graphs: bool,
        cache: Path | None,
    ) -> None:
        keep_in_children(self)
        self.name = plan.name
        self._label = compiler.label
        self._module = compiler.module
        self._messages = Messages()
        self._logger = logger_into(self._messages, compiler.module)
        # Lanes are made from several threads, and the engine makes their contexts one at a time.
        self._making = Lock()
        self._runtime, self._engine = self._deserialise(compiler.module, _read(plan))
        self.inputs, self.outputs = self._specs()
        self.profile_count = int(self._engine.num_optimization_profiles)
        # The most that any of its profiles needs.
        self.scratch_bytes = int(self._engine.device_memory_size_v2)
        self._profile = profile
        self._require_profiles(profile)
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

    def _require_profiles(self, profile: ShapeProfile) -> None:
        """Compare the engine's optimisation profiles with those of its manifest, and their order.

        One alone is not compared: the runtime itself refuses what is outside it.
        """
        if self.profile_count == len(profile.profiles) == 1:
            return
        own = [self._own_profile(place) for place in range(self.profile_count)]
        if own != [self._profile_of(each) for each in profile.profiles]:
            raise EngineIncompatibleError(
                f"{self.name}: its manifest names the profile {profile}, the engine has "
                f"{len(own)} of {'; '.join(map(str, own))}\ncompile it again with deploykit build"
            )

    def _own_profile(self, place: int) -> Mapping[str, Shapes]:
        """Smallest, preferred and largest shape of each open input."""
        return {
            spec.name: tuple(
                map(api.as_tuple, self._engine.get_tensor_profile_shape(spec.name, place))
            )
            for spec in self.inputs
            if _is_open(spec)
        }

    def _profile_of(self, profile: ShapeProfile) -> Mapping[str, Shapes]:
        points = (profile.smallest, profile.preferred, profile.largest)
        return {
            spec.name: tuple(spec.with_sizes(sizes) for sizes in points)
            for spec in self.inputs
            if _is_open(spec)
        }

    def new_context(self, place: int = 0, stream: int = 0) -> api.ExecutionContext:
        """A context without scratch memory of its own, for the profile at ``place``.

        What the change to a profile takes is queued on ``stream``, a driver's handle.

        Raises:
            DeviceError: the runtime cannot make one, as for lack of memory.
        """
        with self._making:
            context = self._engine.create_execution_context(self._config)
        if context is None:
            raise self.failure("makes no execution context")
        # Built with the details of its layers, it would put them all into markers for profilers at
        # each launch, which takes the host longer.
        context.nvtx_verbosity = self._module.ProfilingVerbosity.LAYER_NAMES_ONLY
        # A context begins with the first profile; with one only there is nothing to say.
        if self.profile_count > 1 and not context.set_optimization_profile_async(place, stream):
            raise self.failure(f"refuses its profile {place}")
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

    def information(self, context: api.ExecutionContext) -> str:
        """What the runtime says of its layers, as JSON; `inspection.read_layers` reads it.

        Formats depend on shapes, so a context says with which.

        Raises:
            DeviceError: the runtime says nothing.
        """
        inspector = self._engine.create_engine_inspector()
        if inspector is None:
            raise self.failure("makes no inspector of its layers")
        inspector.execution_context = context
        return inspector.get_engine_information(self._module.LayerInformationFormat.JSON)

    def largest_shapes(self, stream: int) -> list[tuple[int, ...]]:
        """The largest shape of each input and output, of all profiles; ``stream`` is a handle.

        Raises:
            DeviceError: the runtime cannot tell.
        """
        of_each = [
            self._shapes_of(each.largest, place, stream)
            for place, each in enumerate(self._profile.profiles)
        ]
        return [max(shapes, key=prod) for shapes in zip(*of_each, strict=True)]

    def _shapes_of(
        self, largest: Mapping[int, int], place: int, stream: int
    ) -> Iterator[tuple[int, ...]]:
        """Shapes of inputs of the sizes ``largest`` (by axis), and of their outputs."""
        inputs = [spec.with_sizes(largest) for spec in self.inputs]
        yield from inputs
        if all(isinstance(dim, int) for spec in self.outputs for dim in spec.shape[1:]):
            yield from (spec.with_sizes(largest) for spec in self.outputs)
        else:
            # Maps of features beside the logits: how large they are is the network's to say.
            yield from self.set_shapes(self.new_context(place, stream), inputs)

    def place_of(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """Which of its profiles inputs of these shapes take: the narrowest that has them.

        Raises:
            UsageError: none has.
        """
        if not self._profile.parts:
            return 0
        place = self._profile.narrowest(*map(_sizes_of, self.inputs, shapes))
        if place is None:
            fed = " and ".join(map(str, shapes))
            raise UsageError(
                f"{self.name} was fed {fed}, and none of its profiles has that: {self._profile}\n"
                "split, fill up, resize or pad, or compile the engine with one that does"
            )
        return place

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
            "deploykit doctor says whether the driver is the reason; if not, compile it here with "
            "deploykit build"
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


def _is_open(spec: TensorSpec) -> bool:
    return any(isinstance(dim, str) for dim in spec.shape)


def _sizes_of(spec: TensorSpec, shape: tuple[int, ...]) -> dict[int, int]:
    """The sizes of what is open, by axis."""
    return {axis: shape[axis] for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}


def _graph_strategy(module: Any, *, wanted: bool) -> Any:
    strategies = module.CudaGraphStrategy
    return strategies.WHOLE_GRAPH_CAPTURE if wanted else strategies.DISABLED


def _read(plan: Path) -> bytes:
    try:
        return plan.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {plan}: {error.strerror or error}") from error
