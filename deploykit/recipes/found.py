"""Figures that a recipe keeps of each step, and the verdict on a bundle."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from deploykit.bundle.manifest import doubts_of
from deploykit.core.serialization import to_plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.recipes.planning import Step


@dataclass(frozen=True)
class BundleVerdict:
    """One bundle: what failed, how right it is, how fast.

    ``name`` is its path as seen from the folder of all bundles. ``top1`` and ``agreement`` are
    shares from 0 to 1; the agreement is that with the network that the bundle was made from.
    ``latency_ms`` is the median of a query of ``batch`` images on ``backend``, of the smallest
    batch that was measured, on the fastest. ``doubts`` say why a comparison of the export could
    not have failed.
    """

    bundle: str
    name: str
    precision: str
    failed: tuple[str, ...]
    top1: float | None = None
    agreement: float | None = None
    latency_ms: float | None = None
    batch: int | None = None
    backend: str | None = None
    doubts: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    @property
    def text(self) -> str:
        """In one or two words."""
        if "export" in self.failed:
            return "not exported"
        if self.failed:
            return f"failed: {', '.join(self.failed)}"
        return "weakly verified" if self.doubts else "ok"

    @property
    def accuracy_text(self) -> str:
        """Top-1 on labelled images, else the share of answers that are the original's."""
        if self.top1 is not None:
            return f"{self.top1:.2%} top-1"
        return "-" if self.agreement is None else f"{self.agreement:.2%} agree"

    @property
    def latency_text(self) -> str:
        """With what was measured."""
        if self.latency_ms is None:
            return "-"
        return f"{self.latency_ms:.3g} ms, b{self.batch} {self.backend}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            **asdict(self),
            "verdict": self.text,
            "failed": list(self.failed),
            "doubts": list(self.doubts),
        }


def found_by(command: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of the answer of a command: its figures, without the tables."""
    if command == "export":
        return {
            "engines": [one["file"] for one in data["engines"]],
            "doubts": doubts_of(data["validation"]),
            **_agreement(data),
        }
    if command == "bench":
        keys = "backend", "precision", "batch", "throughput_per_s"
        rows = [
            {**{key: row[key] for key in keys}, "p50_ms": row["latency_ms"]["p50"]}
            for row in data["results"]
        ]
        plain: dict[str, Any] = to_plain({"results": rows})
        return plain
    plain_types = str, int, float, bool, type(None)
    return {key: value for key, value in data.items() if isinstance(value, plain_types)}


def _agreement(data: Mapping[str, Any]) -> dict[str, float]:
    """Share of the images of the last comparison that have the original's answer."""
    from deploykit.heads import worst_of  # needs numpy

    # Of outputs beside the classes there are comparisons too, without a share.
    for report in reversed(data["validation"]):
        share = worst_of(report["batches"]).get("agreement") if report["batches"] else None
        if share is not None:
            return {"agreement": share}
    return {}


def verdict_of(
    step: Step,
    found: Mapping[str, Mapping[str, Any]],
    failed: Sequence[str],
    *,
    is_compared: bool = False,
) -> BundleVerdict:
    """The figures of the bundle of ``step``, out of what was ``found`` by each command.

    With ``is_compared`` the agreement of `eval` is that with another model, and none of these.
    """
    exported, judged = found.get("export", {}), found.get("eval", {})
    agreement = None if is_compared else judged.get("agreement")
    rows = [
        row
        for row in found.get("bench", {}).get("results", [])
        if row["p50_ms"] is not None and isfinite(row["p50_ms"])
    ]
    best: Mapping[str, Any] = min(rows, key=lambda row: (row["batch"], row["p50_ms"]), default={})
    return BundleVerdict(
        bundle=str(step.bundle),
        name=step.place,
        precision=step.precision,
        failed=tuple(failed),
        top1=judged.get("top1"),
        agreement=exported.get("agreement") if agreement is None else agreement,
        latency_ms=best.get("p50_ms"),
        batch=best.get("batch"),
        backend=best.get("backend"),
        doubts=tuple(exported.get("doubts", ())),
    )
