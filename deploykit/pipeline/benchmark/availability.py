"""Which backends work on this machine, told before anything is prepared for them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from deploykit import environment
from deploykit.backends.trt.compiler import load_compiler
from deploykit.errors import MissingDependencyError
from deploykit.pipeline.benchmark.cells import ENGINES
from deploykit.pipeline.doctor import RTX_CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deploykit.backends.trt.compiler import Compiler
    from deploykit.environment import Gpu


def unavailable_backends(
    gpus: Sequence[Gpu],
    *,
    load: Callable[[str], Compiler] = load_compiler,
    is_installed: Callable[[str], bool] = lambda module: find_spec(module) is not None,
) -> Mapping[str, str]:
    """Each backend that does not work here, with the reason on one line.

    Whether onnxruntime finds its CUDA libraries shows only when it starts: then its cells fail,
    each with that reason.
    """
    found = {name: _engine_problem(name, gpus, load) for name in sorted(ENGINES)}
    needs = {"ort": "onnxruntime", "ort-cuda": "onnxruntime", "eager": "torch"}
    for name, module in needs.items():
        missing = f"{module} is not installed: {environment.install_line(module)}"
        found[name] = "" if is_installed(module) else missing
    if not gpus:
        found["ort-cuda"] = "no GPU on this machine"
    return {name: reason for name, reason in found.items() if reason}


def _engine_problem(name: str, gpus: Sequence[Gpu], load: Callable[[str], Compiler]) -> str:
    if not gpus:
        return "no GPU on this machine"
    try:
        compiler = load(name)
    except MissingDependencyError as error:
        return "; ".join(str(error).splitlines())
    own = gpus[0].compute_capability
    if compiler.is_portable and own not in RTX_CAPABILITIES:
        return f"compute capability {own} is not one of {', '.join(RTX_CAPABILITIES)}"
    return ""
