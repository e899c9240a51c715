"""`--weights imagenet` of timm's networks: from the hub's cache, the hub, or torch's cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors.torch import save_file

from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import UsageError, WeightsError
from deploykit.sources.timm import FILES, timm_spec
from deploykit.sources.weights import build_with_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

NETWORK = "test_resnet"
REPOSITORY = "timm/test_resnet.r160_in1k"


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache and torch's are empty folders, and the hub's client does not ask."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def state_of(name: str) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        state: dict[str, Tensor] = timm.create_model(name).state_dict()
    return state


def cached(folder: Path, state: Mapping[str, Tensor], name: str, file: str = FILES[0]) -> Path:
    """``state`` where the hub's client keeps what it has downloaded of timm's ``name``."""
    place = folder / "hub" / f"models--timm--{name}"
    for part in ("refs", "blobs", "snapshots/abc"):
        (place / part).mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    unnamed = place / "unnamed"
    if file.endswith(".bin"):
        torch.save(dict(state), unnamed)
    else:
        save_file(dict(state), unnamed)
    blob = unnamed.rename(place / "blobs" / sha256_of(unnamed))
    (place / "snapshots" / "abc" / file).symlink_to(Path("../../blobs") / blob.name)
    return blob


@pytest.mark.parametrize("file", FILES)
def test_a_file_in_the_cache_needs_no_network(file: str, tmp_path: Path) -> None:
    state = state_of(NETWORK)
    blob = cached(tmp_path, state, "test_resnet.r160_in1k", file)
    spec = timm_spec(NETWORK)
    network, record = build_with_weights(spec, "imagenet", 0)
    loaded = network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert record.source == "timm test_resnet.r160_in1k"
    assert record.sha256 == sha256_of(blob)
    assert (record.trained, record.labels, record.preprocessing) == (True, spec.labels, None)


def test_positions_are_resampled_for_another_size(tmp_path: Path) -> None:
    state = state_of("test_vit")
    cached(tmp_path, state, "test_vit.r160_in1k")
    theirs = timm.create_model("test_vit", img_size=96, pretrained=True).eval()
    mine, _ = build_with_weights(timm_spec("test_vit", image_size=96), "imagenet", 0)
    assert mine.state_dict()["pos_embed"].shape != state["pos_embed"].shape
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(mine(images), theirs(images), rtol=0, atol=0)


def test_a_damaged_file_in_the_cache_is_refused(tmp_path: Path) -> None:
    blob = cached(tmp_path, state_of(NETWORK), "test_resnet.r160_in1k")
    content = bytearray(blob.read_bytes())
    content[-100] ^= 1
    blob.write_bytes(content)
    message = (
        r"model\.safetensors in Hugging Face's cache is damaged: its sha256 starts with \w{8}, "
        rf"not with {blob.name[:8]}\ndelete .*{blob.name} and run again"
    )
    with pytest.raises(WeightsError, match=message):
        build_with_weights(timm_spec(NETWORK), "imagenet", 0)


def test_a_cache_without_links_is_read_for_what_it_is(tmp_path: Path) -> None:
    """As on a file system that has none; a damaged file is then found by its reader."""
    blob = cached(tmp_path, state_of(NETWORK), "test_resnet.r160_in1k")
    (link,) = tmp_path.rglob("model.safetensors")
    link.unlink()
    link.write_bytes(blob.read_bytes()[:-4])
    with pytest.raises(WeightsError, match=r"cannot read model\.safetensors \(SafetensorError"):
        build_with_weights(timm_spec(NETWORK), "imagenet", 0)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    cached(tmp_path, state_of("test_vit"), "test_resnet.r160_in1k")
    message = (
        r"model\.safetensors, the weights of test_resnet\.r160_in1k, are not those of timm's "
        r"network\nRuntimeError: Error\(s\) in loading state_dict for ResNet:\n"
        "another version of timm may read them, or give a file: --weights FILE"
    )
    with pytest.raises(WeightsError, match=message):
        build_with_weights(timm_spec(NETWORK), "imagenet", 0)


def test_without_a_network_the_message_names_the_way_out() -> None:
    message = (
        rf"cannot download https://huggingface\.co/{REPOSITORY}/resolve/main/model\.safetensors: "
        r".*offline.*\nwithout a network give a file instead: --weights FILE"
    )
    with pytest.raises(WeightsError, match=message):
        build_with_weights(timm_spec(NETWORK), "imagenet", 0)


def hub(monkeypatch: pytest.MonkeyPatch, files: Mapping[str, Path]) -> list[str]:
    """A hub that has these files alone; the names that were asked for, as they come."""
    asked: list[str] = []

    def look(url: str, *, timeout: float) -> None:
        asked.append(url.rpartition("/")[2])
        if asked[-1] not in files:
            # Only its class counts; to be made, it wants the server's whole answer.
            raise RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)

    def fetch(place: str, name: str, *, revision: str | None, etag_timeout: float) -> str:
        assert (place, revision) == (REPOSITORY, None)
        return str(files[name])

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", look)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    return asked


def test_safetensors_are_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / FILES[1]
    torch.save(state_of(NETWORK), path)
    asked = hub(monkeypatch, {FILES[1]: path})
    _, record = build_with_weights(timm_spec(NETWORK), "imagenet", 0)
    assert asked == list(FILES)
    assert record.sha256 == sha256_of(path)


def test_a_repository_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {})
    message = (
        rf"{REPOSITORY} of the Hugging Face hub has no model\.safetensors or pytorch_model\.bin\n"
        "give a file instead: --weights FILE"
    )
    with pytest.raises(WeightsError, match=message):
        build_with_weights(timm_spec(NETWORK), "imagenet", 0)


def test_a_download_shows_no_bar_and_leaves_the_users_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / FILES[0]
    save_file(state_of(NETWORK), path)
    hub(monkeypatch, {FILES[0]: path})
    seen = []

    def fetch(place: str, name: str, *, revision: str | None, etag_timeout: float) -> str:
        seen.append(huggingface_hub.utils.are_progress_bars_disabled())
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    before = huggingface_hub.utils.are_progress_bars_disabled()
    build_with_weights(timm_spec(NETWORK), "imagenet", 0)
    assert seen == [True]
    assert huggingface_hub.utils.are_progress_bars_disabled() == before


def test_weights_of_other_classes_are_refused() -> None:
    message = (
        r"the weights of test_resnet\.r160_in1k have 1000 classes, not 7\n"
        "leave --num-classes out, or give a file: --weights FILE"
    )
    with pytest.raises(UsageError, match=message):
        build_with_weights(timm_spec(NETWORK, num_classes=7), "imagenet", 0)


@pytest.mark.parametrize(
    ("name", "others"), [("test_maxvit", "nothing"), ("nf_resnet50", "ra2_in1k")]
)
def test_a_network_that_timm_has_no_weights_for(
    name: str, others: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = timm_spec(name)
    config = timm.models.get_pretrained_cfg(name)
    config.hf_hub_id = config.url = None
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda _: config)
    message = (
        rf"timm publishes no weights for {spec.timm}\n"
        rf"it does for {name} as {others}\nor give a file: --weights FILE"
    )
    with pytest.raises(UsageError, match=message):
        build_with_weights(spec, "imagenet", 0)


def test_weights_that_are_not_on_the_hub_come_from_torchs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unnamed = tmp_path / "unnamed.pth"
    state = state_of(NETWORK)
    torch.save(state, unnamed)
    path = unnamed.rename(tmp_path / f"test_resnet-{sha256_of(unnamed)[:8]}.pth")
    config = timm.models.get_pretrained_cfg(NETWORK)
    config.hf_hub_id, config.url = None, path.as_uri()
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda _: config)
    network, record = build_with_weights(timm_spec(NETWORK), "imagenet", 0)
    assert torch.equal(network.state_dict()["fc.weight"], state["fc.weight"])
    assert record.sha256 == sha256_of(path)
    assert (tmp_path / "torch" / "hub" / "checkpoints" / path.name).is_file()


def test_a_file_of_ones_own_fits_as_timm_saved_it(tmp_path: Path) -> None:
    theirs = timm.create_model(NETWORK, num_classes=4).eval()
    path = tmp_path / "w.pth"
    torch.save(theirs.state_dict(), path)
    mine, record = build_with_weights(timm_spec(NETWORK, num_classes=4), str(path), 0)
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(mine(images), theirs(images), rtol=0, atol=0)
    assert (record.source, record.trained) == ("w.pth", True)
