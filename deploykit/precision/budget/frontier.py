"""The frontier of an export under a budget: predicted time against loss, and the point chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping  # noqa: TC003  (read back by this type)
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.errors import DataError
from deploykit.core.precision import Precision  # noqa: TC001  (read back by this type)
from deploykit.core.serialization import Source, from_plain, to_plain
from deploykit.precision.budget.bounds import mean_upper, net_upper, share_upper

if TYPE_CHECKING:
    from collections.abc import Sequence

BUDGET: Final = "budget"
"""Where a manifest's conversion has the record."""

POINTS: Final = 12
"""Points of a frontier, FP32 among them: each is made and judged on all images."""

TOP1: Final = "top1"


@dataclass(frozen=True)
class Loss:
    """What was lost on so many images.

    ``measure`` is ``top1`` (``lost`` images became wrong, ``gained`` right), or a head's own:
    ``answers`` of other images changed, ``decisions`` or ``error`` are the sum of shares.
    """

    measure: str
    images: int
    lost: float
    gained: int = 0

    @property
    def share(self) -> float:
        """The loss itself, below 0 where more was gained."""
        return (self.lost - self.gained) / self.images

    @property
    def upper(self) -> float:
        """What it is at most, with a confidence of 95 %."""
        if self.measure == TOP1:
            return net_upper(int(self.lost), self.gained, self.images)
        if self.measure == "answers":
            return share_upper(int(self.lost), self.images)
        return mean_upper(self.lost / self.images, self.images)


@dataclass(frozen=True)
class Point:
    """One choice of formats: predicted milliseconds, noise of the output, loss, the file's hash.

    ``precision`` is that of its graph. ``noise`` is the power of the output's error over that of
    the output, measured on the images that formats were chosen by. FP32 has no ``loss`` and no
    ``sha256``: it is what the others are compared with.
    """

    precision: Precision
    ms: float
    noise: float
    formats: tuple[Precision, ...]
    loss: Loss | None = None
    sha256: str | None = None

    @property
    def upper(self) -> float:
        """The bound of the loss; 0 for FP32."""
        return 0.0 if self.loss is None else self.loss.upper


@dataclass(frozen=True)
class Frontier:
    """All points, from the slowest to the fastest, and what they hold for.

    ``groups`` are the layers that change together, in the order of ``Point.formats``. ``key`` is
    what the measurements depend on; ``int8`` what the trials of INT8 chose.
    """

    max_drop: float
    gpu: str
    batch: int
    groups: tuple[tuple[str, ...], ...]
    points: tuple[Point, ...]
    key: Mapping[str, Any] = field(default_factory=dict)
    int8: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chosen(self) -> int:
        """The place of the fastest point whose bound, and that of all before it, is in the budget.

        The points are tested in an order that does not depend on the images that judge, and no
        further than to the first that fails: so the confidence of one bound holds for the choice
        (fixed-sequence testing; Angelopoulos et al. 2021, https://arxiv.org/abs/2110.01052).
        """
        for place, point in enumerate(self.points):
            if point.upper > self.max_drop:
                return place - 1
        return len(self.points) - 1

    @property
    def point(self) -> Point:
        """The chosen point."""
        return self.points[self.chosen]

    def under(self, max_drop: float) -> Frontier:
        """The same measurements under another budget."""
        return replace(self, max_drop=max_drop)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest and ``--json``."""
        return {
            **to_plain(self),
            "chosen": self.chosen,
            "points": [
                {
                    **to_plain(point),
                    "upper": point.upper,
                    "layers": _counted(self.groups, point.formats),
                }
                for point in self.points
            ],
        }


def read_frontier(record: Mapping[str, Any]) -> Frontier | None:
    """The frontier of a manifest's record; ``None`` where it is none that can be used again."""
    wanted = {name: value for name, value in record.items() if name != "chosen"}
    try:
        points = [
            {name: value for name, value in point.items() if name not in {"upper", "layers"}}
            for point in wanted.pop("points")
        ]
        found = from_plain(Frontier, {**wanted, "points": points}, Source("the frontier"))
    except (DataError, KeyError, TypeError, AttributeError):
        return None
    fits = all(len(point.formats) == len(found.groups) for point in found.points)
    return found if found.points and fits and found.points[0].loss is None else None


def _counted(groups: Sequence[Sequence[str]], formats: Sequence[Precision]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for group, wanted in zip(groups, formats, strict=True):
        found[str(wanted)] += len(group)
    return dict(found)
