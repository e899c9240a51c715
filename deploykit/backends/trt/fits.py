"""Whether an engine of a bundle can run on a machine, told from the manifest alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.artifacts import EngineRecord
    from deploykit.environment import Gpu


def engine_fits(
    record: EngineRecord, gpus: Sequence[Gpu], compilers: Mapping[str, str]
) -> tuple[bool, str]:
    """Whether the engine runs on the first of ``gpus``, and why not (empty when it does).

    ``compilers`` gives the version of each compiler whose runtime is installed, by name. An engine
    of either compiler loads only with the exact version that made it, and only on the compute
    capabilities that it was made for.
    """
    reason = _misfit_of_version(record, compilers) or _misfit_of_gpu(record, gpus)
    return not reason, reason


def _misfit_of_version(record: EngineRecord, compilers: Mapping[str, str]) -> str:
    installed = compilers.get(record.compiler)
    if installed is None:
        return f"{record.compiler} is not installed"
    if installed != record.compiler_version:
        return f"compiled by {record.compiler} {record.compiler_version}, installed is {installed}"
    return ""


def _misfit_of_gpu(record: EngineRecord, gpus: Sequence[Gpu]) -> str:
    if not gpus:
        return "no GPU on this machine"
    own = gpus[0].compute_capability
    if own not in record.compute_capabilities:
        built_for = ", ".join(record.compute_capabilities)
        return f"compiled for compute capability {built_for}, this GPU has {own}"
    return ""
