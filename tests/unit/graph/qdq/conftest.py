"""What several tests of Q/DQ placement read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.families import export_families

if TYPE_CHECKING:
    from tests.families import Family


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    """Exported once for all tests. Read only."""
    return export_families(tmp_path_factory.mktemp("families"))
