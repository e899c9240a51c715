"""The backends, found by listing the room: our own files first, then those of installed packages.

No other module knows a backend by its name. A backend's file is imported by its dotted name when
it is asked for; our own come first, so that a package that is broken stops nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit.backends._backend import CPU, EngineBackend, GraphBackend, ModuleBackend
from deploykit.backends._engines import EngineHeader
from deploykit.core.environment import install_line
from deploykit.core.errors import MissingDependencyError, UnknownNameError, UsageError
from deploykit.core.plugs import import_plug, plugs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from deploykit.backends._backend import AnyBackend
    from deploykit.backends._engines import Compiler
    from deploykit.core.environment import Gpu

_ROOM: Final = "backends"
_GRAPH_JUDGE: Final = "ort"
_MODULE_JUDGE: Final = "eager"
_AUTO: Final = "auto"
_NONE: Final = "none"


def backends() -> tuple[AnyBackend, ...]:
    """Every backend, the best first.

    Raises:
        UsageError: two have one name, or a plug-in defines none.
        MissingDependencyError: an installed package's module cannot be imported.
    """
    found: dict[str, AnyBackend] = {}
    for backend in _all():
        if found.setdefault(backend.name, backend) is not backend:
            raise UsageError(
                f"two backends are called {backend.name!r}: {found[backend.name].label} and "
                f"{backend.label}\na backend has one name: uninstall one of the two packages"
            )
    return tuple(sorted(found.values(), key=lambda backend: (backend.rank, backend.name)))


def find_backend(name: str) -> AnyBackend:
    """The backend of that name.

    Raises:
        UnknownNameError: there is none.
    """
    for backend in _all():
        if backend.name == name:
            return backend
    names = [backend.name for backend in backends()]
    raise UnknownNameError("backend", name, names, ", ".join(names))


def unavailable_backends(gpus: Sequence[Gpu]) -> Mapping[str, str]:
    """Each backend that does not work here, with the reason on one line.

    Whether onnxruntime finds its CUDA libraries shows only when it starts: then its cells fail,
    each with that reason.
    """
    found = {backend.name: backend.problem(gpus) for backend in backends()}
    return {name: reason for name, reason in found.items() if reason}


def graph_judge() -> GraphBackend:
    """The backend whose answers every graph is judged by: onnxruntime on the CPU."""
    found = _of_plug(_GRAPH_JUDGE)
    return next(each for each in found if isinstance(each, GraphBackend) and each.device == CPU)


def module_judge() -> ModuleBackend:
    """The backend that computes a definition as it was written: torch, eagerly."""
    return next(each for each in _of_plug(_MODULE_JUDGE) if isinstance(each, ModuleBackend))


def load_devices() -> tuple[str, ...]:
    """What `deploykit.load` takes as the device of a graph, the CPU first."""
    found = [each for each in backends() if isinstance(each, GraphBackend) and each.load_device]
    found.sort(key=lambda backend: backend.device != CPU)
    return tuple(backend.load_device for backend in found if backend.load_device)


def graph_backend_on(load_device: str) -> GraphBackend | None:
    """The backend that a ``device`` of `deploykit.load` means, if it means one."""
    for backend in _all():
        if isinstance(backend, GraphBackend) and backend.load_device == load_device:
            return backend
    return None


def engine_backends() -> tuple[EngineBackend, ...]:
    """Those that compile, the best first."""
    return tuple(each for each in backends() if isinstance(each, EngineBackend))


def engine_backend(name: str) -> EngineBackend:
    """The backend of that name that compiles.

    Raises:
        UnknownNameError: there is none.
    """
    for backend in _all():
        if backend.name == name and isinstance(backend, EngineBackend):
            return backend
    names = [backend.name for backend in engine_backends()]
    raise UnknownNameError("compiler", name, names, ", ".join(names))


def load_compiler(name: str) -> Compiler:
    """Import the module of one compiler.

    Raises:
        UnknownNameError: no backend of that name compiles.
        MissingDependencyError: its package is not installed or does not load.
    """
    return engine_backend(name).load()


def loadable_compilers() -> dict[str, Compiler]:
    """Every compiler whose module imports, by name."""
    found = (_load_or_none(backend) for backend in engine_backends())
    return {compiler.name: compiler for compiler in found if compiler is not None}


def read_header(plan: bytes, compiler: str) -> EngineHeader:
    """Judge an engine by its first bytes, `HEADER_BYTES` of them or more."""
    try:
        backend = engine_backend(compiler)
    except UnknownNameError:  # a manifest from where another package was installed
        return EngineHeader("unknown", f"no backend is called {compiler!r} here")
    return backend.read_header(plan)


def choose_compiler(asked: str, gpus: Sequence[Gpu]) -> Compiler | None:
    """The compiler that ``--backend`` of a build stands for on a machine with these GPUs.

    "auto" is the best that loads: TensorRT where there is a GPU, otherwise TensorRT for RTX, which
    needs none. "none" is ``None``: stop after the ONNX file.

    Raises:
        UnknownNameError: ``asked`` is neither of them, nor a backend that compiles.
        MissingDependencyError: no compiler, or not the one asked for, can be imported.
        BuildError: the compiler asked for needs a GPU, and there is none.
    """
    if asked == _NONE:
        return None
    if asked == _AUTO:
        return _choose_automatically(gpus)
    known = {backend.name: backend for backend in engine_backends()}
    if asked not in known:
        possible = (_AUTO, *known, _NONE)
        raise UnknownNameError("compiler", asked, possible, ", ".join(possible))
    known[asked].check_target(gpus)
    return known[asked].load()


def _choose_automatically(gpus: Sequence[Gpu]) -> Compiler:
    known = engine_backends()
    for backend in known:
        compiler = _load_or_none(backend) if gpus or backend.is_portable else None
        if compiler is not None:
            return compiler
    anywhere = " or ".join(install_line(each.module) for each in known if each.is_portable)
    on_target = " or ".join(install_line(each.module) for each in known if not each.is_portable)
    raise MissingDependencyError(
        "no engine compiler can be imported on this machine\n"
        f"install one: {anywhere} (needs no GPU), or on the target: {on_target}\n"
        f"or stop after the ONNX file with --backend {_NONE}"
    )


def _load_or_none(backend: EngineBackend) -> Compiler | None:
    try:
        return backend.load()
    except MissingDependencyError:
        return None


def _all() -> Iterator[AnyBackend]:
    for plug in plugs(_ROOM):
        yield from _of_plug(plug)


def _of_plug(plug: str) -> tuple[AnyBackend, ...]:
    module = import_plug(_ROOM, plug)
    found = getattr(module, "BACKENDS", None) or (getattr(module, "BACKEND", None),)
    if not all(isinstance(each, (EngineBackend, GraphBackend, ModuleBackend)) for each in found):
        raise UsageError(
            f"{module.__name__} defines no BACKEND\n"
            f"a plug-in of deploykit.{_ROOM} is a file with BACKEND, or BACKENDS, of one of the "
            "classes of deploykit.backends"
        )
    return tuple(found)
