"""Two runs side by side: which cells both have measured, and what only one of them has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.benchmarking.runs import cell_key
from deploykit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deploykit.benchmarking.results import BenchmarkResult
    from deploykit.benchmarking.runs import BenchmarkRun, Failure


@dataclass(frozen=True, slots=True)
class Pairs:
    """What became of each cell, in the order of the runs.

    ``common`` are measured in both. ``lost`` are measured in OLD, and failed in NEW. ``only_old``
    and ``only_new`` are measured in one and not in the other, where ``only_new`` may have failed
    in OLD. ``failed_old`` and ``failed_new`` are failures of cells that the other run has neither
    measured nor seen fail. What fails in both is in none of them.
    """

    common: tuple[tuple[BenchmarkResult, BenchmarkResult], ...]
    lost: tuple[tuple[BenchmarkResult, Failure], ...]
    only_old: tuple[BenchmarkResult, ...]
    only_new: tuple[BenchmarkResult, ...]
    failed_old: tuple[Failure, ...]
    failed_new: tuple[Failure, ...]


def pair(old: BenchmarkRun, new: BenchmarkRun) -> Pairs:
    """Match the results by `key_of`, and failures, which know no scenario, by their cell.

    Raises:
        DataError: one of the runs has two results for the same key.
    """
    before, after = _by_key("old", old), _by_key("new", new)
    failures = {failure.key: failure for failure in new.failures}
    gone = [result for key, result in before.items() if key not in after]
    return Pairs(
        common=tuple((before[key], after[key]) for key in before if key in after),
        lost=tuple((each, failures[_cell(each)]) for each in gone if _cell(each) in failures),
        only_old=tuple(each for each in gone if _cell(each) not in failures),
        only_new=tuple(each for key, each in after.items() if key not in before),
        failed_old=_failed_alone(old, new),
        failed_new=_failed_alone(new, old),
    )


def key_of(result: BenchmarkResult) -> str:
    """The cell and the scenario: what two results have to share to be compared."""
    return f"{_cell(result)}/{result.switches.scenario}"


def _cell(result: BenchmarkResult) -> str:
    subject = result.subject
    return cell_key(subject.model, subject.backend, subject.precision_asked, subject.batch)


def _by_key(which: str, run: BenchmarkRun) -> Mapping[str, BenchmarkResult]:
    found: dict[str, BenchmarkResult] = {}
    for result in run.results:
        key = key_of(result)
        if key in found:
            raise DataError(
                f"the {which} run has two results for {key}\n"
                "so it is not clear which one to compare: keep one of them"
            )
        found[key] = result
    return found


def _failed_alone(run: BenchmarkRun, other: BenchmarkRun) -> tuple[Failure, ...]:
    known = {*map(_cell, other.results), *_keys(other.failures)}
    return tuple(failure for failure in run.failures if failure.key not in known)


def _keys(failures: Iterable[Failure]) -> Iterable[str]:
    return (failure.key for failure in failures)
