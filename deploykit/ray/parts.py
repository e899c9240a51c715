"""A folder of Parquet that grows part by part, and goes on where it was interrupted.

A part is there whole or not at all, by one rename; its file is the proof that it is done. The plan
beside them fixes which images are in which part, so that no row is lost or doubled however often a
run is begun.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.atomic import locked, replace_file
from deploykit.core.environment import require
from deploykit.core.errors import BundleError, DataError
from deploykit.core.sharing import lock_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

PLAN: Final = "_deploykit.json"
"""Readers of Parquet pass over files that begin so."""
NAMED: Final = 100
"""Images without an answer that a report names; all of them are in the column ``error``."""


class PartsFolder:
    """The output of one run: its plan, and the parts that are there."""

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self.folder = folder
        self._plan = dict(plan)

    @contextmanager
    def opened(self) -> Iterator[set[int]]:
        """The numbers of the parts that are there already, while no other run may write here.

        Raises:
            BundleError: the folder holds something else, or another run, or cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(lock_of(self.folder), 0.0):
                self._begin()
                yield self._done()
        except TimeoutError as exc:
            raise BundleError(
                f"another process is writing to {self.folder}\nwait for it, or choose another -o"
            ) from exc
        except OSError as exc:
            raise self._refusal(exc) from exc

    def commit(self, part: int, content: bytes) -> None:
        """Write the Parquet file of a part, whole or not at all.

        Raises:
            BundleError: the disk refuses it; the parts before stay.
        """
        try:
            replace_file(self.path(part), content)
        except OSError as exc:
            raise self._refusal(exc) from exc

    def summary(self) -> tuple[int, int, tuple[tuple[str, str], ...]]:
        """Rows, those without an answer, and the first of these with their reasons."""
        parquet = require("pyarrow.parquet")
        rows, failed = 0, 0
        named: list[tuple[str, str]] = []
        for part in sorted(self._done()):
            table = parquet.read_table(self.path(part), columns=["image", "error"])
            rows += table.num_rows
            errors = table.column("error")
            failed += table.num_rows - errors.null_count
            if len(named) < NAMED and errors.null_count < table.num_rows:
                pairs = zip(table.column("image").to_pylist(), errors.to_pylist(), strict=True)
                named += [(image, why) for image, why in pairs if why is not None]
        return rows, failed, tuple(named[:NAMED])

    def _begin(self) -> None:
        """Write the plan, or compare it with the one that is there."""
        path = self.folder / PLAN
        if path.is_file():
            self._require_same(path)
            return
        if any(self.folder.iterdir()):
            raise BundleError(
                f"{self.folder} holds something else than what this command writes\n"
                "choose another with -o"
            )
        replace_file(path, (json.dumps(self._plan, indent=2) + "\n").encode())

    def _require_same(self, path: Path) -> None:
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            others = [name for name in self._plan if there[name] != self._plan[name]]
        except (ValueError, KeyError, TypeError) as exc:
            raise DataError(
                f"{path} is damaged\nremove {self.folder} and begin again, or choose another -o"
            ) from exc
        if others:
            raise BundleError(
                f"{self.folder} was begun with another {', '.join(others)}\n"
                "give the same again to go on with it, or choose another folder with -o"
            )

    def _done(self) -> set[int]:
        return {int(path.stem.partition("-")[2]) for path in self.folder.glob("part-*.parquet")}

    def path(self, part: int) -> Path:
        """The file of a part, there or not."""
        return self.folder / f"part-{part:06d}.parquet"

    def _refusal(self, exc: OSError) -> BundleError:
        return BundleError(
            f"cannot write to {self.folder}: {exc.strerror or exc}\n"
            "the parts that are there are whole: free some space, and run the same again to go on"
        )
