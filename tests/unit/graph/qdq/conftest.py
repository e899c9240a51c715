"""What several tests of Q/DQ placement read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.families import Families

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def families(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Families:
    """Read only."""
    return Families(made_once)
