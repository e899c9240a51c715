"""`deploykit check`: is a bundle whole, does it still compute the same, does it fit here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.backends import CPU, HEADER_BYTES, engine_fits
from deploykit.backends._registry import graph_judge, loadable_compilers, read_header
from deploykit.bundle.golden import Golden
from deploykit.bundle.keys import trust_of
from deploykit.bundle.manifest import doubts_of
from deploykit.bundle.reading import read_bundle
from deploykit.comparison.validation import validate
from deploykit.core.errors import (
    DeploykitError,
    EngineIncompatibleError,
    IntegrityError,
    ModelFileError,
)
from deploykit.core.serialization import to_plain
from deploykit.runtime.choice import misfit_of_driver
from deploykit.runtime.loading import load_opened, machine_for

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.backends import Compiler
    from deploykit.bundle.manifest import Bundle, CpuGraph
    from deploykit.bundle.signature import Trust
    from deploykit.core.artifacts import EngineRecord
    from deploykit.heads import Head
    from deploykit.runtime.choice import Machine

    Outputs = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """Whether an engine's file is sound and whether it would load on this machine, and why."""

    file: str
    compiler: str
    fits: bool
    reason: str


@dataclass(frozen=True)
class CheckReport:
    """What is wrong with a bundle; an engine that does not fit this machine is no problem.

    ``golden`` says on what the golden sample ran, and in which arithmetic. ``signed_by`` is a key,
    a certificate or an identity, where the signature was to be verified. ``doubts`` say why the
    verification at the export could not have failed, as the manifest keeps them: that the bundle
    still computes the same says no more than it did then.
    """

    bundle: str
    problems: tuple[str, ...]
    engines: tuple[EngineCheck, ...]
    golden: str | None = None
    signed_by: str | None = None
    remedy: str = ""
    """What to do about files that changed; other problems say it themselves."""
    doubts: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the bundle is as it was written and computes what it computed."""
        return not self.problems


def check_to_plain(report: CheckReport) -> dict[str, Any]:
    """Plain data for ``--json``."""
    return {
        "bundle": report.bundle,
        "ok": report.ok,
        "problems": list(report.problems),
        "remedy": report.remedy,
        "doubts": list(report.doubts),
        "golden": report.golden,
        "signed_by": report.signed_by,
        "engines": list(map(to_plain, report.engines)),
    }


def check(
    folder: Path,
    *,
    fast: bool = False,
    device: str = CPU,
    trust: Path | Trust | None = None,
    machine: Machine | None = None,
) -> CheckReport:
    """Verify every hash, read each engine's header, run the golden sample.

    It runs on ``device``, which is that of `deploykit.load`: by default the graph on onnxruntime,
    on "cuda" the engine that will serve. With ``fast`` the graph is the plain one, which a CPU
    computes in FP32. With ``trust``, a public key, certificates or an identity, the signature is
    verified first; without a good one nothing else is done. ``machine`` is what engines have to
    fit, for tests.

    Raises:
        BundleError: ``folder`` is no bundle at all; Sigstore does not answer.
        UsageError: ``trust`` is no key; an unknown device.
        MissingDependencyError: ``trust`` needs model-signing.
    """
    trusted = None if trust is None else trust_of(trust)
    asked = _Asked(device, fast, machine_for(device, machine))
    try:
        return read_bundle(folder, lambda bundle: _check(bundle, asked), trusted)
    except IntegrityError as exc:
        return CheckReport(str(folder), (str(exc),), ())


@dataclass(frozen=True)
class _Asked:
    """Where the golden sample is to run, and whether a CPU leaves out the rounding."""

    device: str
    fast: bool
    machine: Machine


def _check(bundle: Bundle, asked: _Asked) -> CheckReport:
    problems = bundle.changed_files()
    remedy = "copy or export the bundle again" if problems else ""
    engines = _check_engines(bundle, asked.machine)
    ran = None
    if asked.device == CPU:
        graph = bundle.on_cpu(fast=asked.fast)
        ran = graph.name
        if not problems:  # a file that was changed is not run
            problems += _check_golden(bundle, graph)
    elif not problems:
        ran, problems = _check_loaded(bundle, asked)
    name, signed_by = str(bundle.folder), bundle.signed_by
    doubts = tuple(doubts_of(bundle.manifest.validation))
    return CheckReport(name, tuple(problems), tuple(engines), ran, signed_by, remedy, doubts)


def _check_loaded(bundle: Bundle, asked: _Asked) -> tuple[str | None, list[str]]:
    """What `deploykit.load` takes on the device, and what is wrong with what it computes."""
    try:
        model = load_opened(bundle, asked.device, fast=asked.fast, machine=asked.machine)
    except (EngineIncompatibleError, ModelFileError) as exc:
        return None, [f"the golden sample does not run: {exc}"]
    with model:
        try:
            model.self_test()
        except DeploykitError as exc:
            return model.choice, [str(exc)]
        return model.choice, []


def _check_engines(bundle: Bundle, machine: Machine) -> list[EngineCheck]:
    compilers = loadable_compilers()
    records = bundle.manifest.engines
    return [
        _check_engine(bundle.folder / record.file, record, machine, compilers) for record in records
    ]


def _check_engine(
    path: Path, record: EngineRecord, machine: Machine, compilers: Mapping[str, Compiler]
) -> EngineCheck:
    versions = {name: compiler.version for name, compiler in compilers.items()}
    fits, reason = engine_fits(record, machine.gpus, versions)
    if fits:
        reason = misfit_of_driver(machine, compilers[record.compiler])
        fits = not reason
    if not path.is_file():
        return EngineCheck(record.file, record.compiler, fits=False, reason="it is missing")
    with path.open("rb") as file:
        header = read_header(file.read(HEADER_BYTES), record.compiler)
    if header.state == "invalid":
        return EngineCheck(record.file, record.compiler, fits=False, reason=header.reason)
    return EngineCheck(record.file, record.compiler, fits, reason)


def _check_golden(bundle: Bundle, graph: CpuGraph) -> list[str]:
    try:
        golden = Golden.read(bundle)
        with graph_judge().open_artifact(graph.artifact) as runner:
            found = runner.run(golden.feeds(runner.inputs[0].name))
            first = found[runner.outputs[0].name].astype(np.float32)
        problems = _problems(bundle, first, golden.outputs, golden.head)
        for name, got, wanted, head in golden.pairs(found):
            others = _problems(bundle, got, wanted, head)
            problems += [f"output {name!r}: {problem}" for problem in others]
    except DeploykitError as exc:
        return [f"the golden sample does not run: {exc}"]
    return [f"golden sample: {problem}" for problem in problems]


def _problems(bundle: Bundle, got: Outputs, wanted: Outputs, head: Head) -> list[str]:
    names = ("the bundle's model", "the golden sample")
    precision = bundle.manifest.precision
    report = validate([got], [wanted], precision=precision, names=names, head=head)
    return list(report.problems)
