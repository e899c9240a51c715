"""A place to ship to from outside the package, through the command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploykit.core.errors import MissingDependencyError
from deploykit.core.plugs import plugs
from deploykit.packaging import place_named
from tests.bundles import engine_record, write_bundle
from tests.cli import deploykit
from tests.plugins import install_plug

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOY = '''
"""A postcard."""

from deploykit.packaging import Packed, ShippingPlace


class Postcard(ShippingPlace):
    summary = "a postcard"
    choices = frozenset({"image"})

    def write(self, bundle, folder, choices):
        text = f"{bundle.manifest.name} is well, {choices.image} too"
        (folder / "README.md").write_text(text)
        return Packed({"words": len(text.split())}, ("the stamp is missing",))


PLACE = Postcard()
'''


@pytest.fixture(autouse=True)
def toy_place(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    install_plug(tmp_path_factory.mktemp("installed"), "packaging", "postcard", TOY, monkeypatch)
    yield
    plugs.cache_clear()


def test_the_command_ships_there(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", engine_record())
    called = deploykit(
        "package", bundle, "--to", "postcard", "--image", "she", "-o", tmp_path / "out", "--json"
    )
    assert called.code == 0, called.err
    assert called.data["words"] == 5
    assert called.data["notes"] == ["the stamp is missing"]
    assert (tmp_path / "out/README.md").read_text() == "colours-fp32 is well, she too"
    assert "postcard" in deploykit("package", "--help").out
    refused = deploykit(
        "package", bundle, "--to", "postcard", "--server", "triton", "-o", tmp_path / "other"
    )
    assert refused.code == 2
    assert "--server is not for --to postcard" in refused.err


def test_a_plug_without_a_place(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plug(tmp_path_factory.mktemp("empty"), "packaging", "empty", "", monkeypatch)
    with pytest.raises(MissingDependencyError, match=r"'empty' of deploykit.packaging has no"):
        place_named("empty")
