from __future__ import annotations

import io
import tracemalloc
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.core.errors import DataError, WeightsError
from deploykit.core.npz import open_npz
from deploykit.core.specs import TensorSpec
from deploykit.images import open_images
from deploykit.images.side_inputs import SideInputs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GIB = 2**30


def header_of(shape: tuple[int, ...], dtype: str) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def bomb(path: Path, shape: tuple[int, ...], dtype: str, *names: str) -> None:
    """An archive of arrays of zeros, each of 1 GiB, that is written in blocks."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(header_of(shape, dtype))
                for _ in range(64):
                    member.write(bytes(GIB // 64))


@pytest.fixture(scope="module")
def images_bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bombs") / "images.npz"
    bomb(path, (GIB // 3072, 32, 32, 3), "|u1", "images")
    return path


def as_images(path: Path) -> object:
    return open_images(path)


def as_side_inputs(path: Path) -> object:
    image = TensorSpec("image", "float32", ("batch", 3, 8, 8))
    return SideInputs.read(path, (image, TensorSpec("images", "float32", ("batch", 2))), image)


def as_weights(path: Path) -> object:
    from deploykit.sources.state_dict import read_state_dict

    return read_state_dict(path)


@pytest.mark.parametrize(
    ("read", "error"),
    [(as_images, DataError), (as_side_inputs, DataError), (as_weights, WeightsError)],
)
def test_a_small_file_of_much_is_refused_before_it_is_unpacked(
    images_bomb: Path, read: Callable[[Path], object], error: type[Exception]
) -> None:
    packed = images_bomb.stat().st_size
    assert packed < 6 * 2**20
    tracemalloc.start()
    with pytest.raises(error) as caught:
        read(images_bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{images_bomb} has {packed:,} bytes, its arrays would take 1,07")
    assert second == (
        "expected at most 268,435,456 of a compressed file; if it is meant so, write it with "
        "numpy.savez, which does not compress"
    )


def test_many_arrays_count_together(tmp_path: Path) -> None:
    path = tmp_path / "many.npz"
    np.savez_compressed(path, **{f"a{i}": np.zeros(2**22) for i in range(9)})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"would take 301,99\d,\d{3}\n"), open_npz(path):
        pass


def test_what_is_not_compressed_is_read_at_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploykit.core.npz._LEAST", 1000)
    path = tmp_path / "plain.npz"
    np.savez(path, images=np.zeros((100, 8, 8, 3), np.uint8))
    with open_npz(path) as archive:
        assert archive["images"].shape == (100, 8, 8, 3)
    np.savez_compressed(path, images=np.zeros((100, 80, 80, 3), np.uint8))
    with pytest.raises(DataError, match="would take"), open_npz(path):
        pass


def test_photographs_compressed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.core.npz._LEAST", 1000)
    steps = np.random.default_rng(0).integers(-1, 2, (4, 64, 64, 3))
    smooth = (128 + steps.cumsum(1) // 2).astype(np.uint8)
    path = tmp_path / "smooth.npz"
    np.savez_compressed(path, images=smooth)
    with open_npz(path) as archive:
        np.testing.assert_array_equal(archive["images"], smooth)


def entry(path: Path, shape: tuple[int, ...], content: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header_of(shape, "|u1") + content)


@pytest.mark.parametrize("shape", [(10**12,), (10**6, 1000, 1000, 3), (2**62,)])
def test_a_header_that_claims_more_than_there_is(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "liar.npz"
    entry(path, shape, bytes(100))
    # By its shape, where that alone is none of images.
    said = r"cannot read .*liar\.npz|`images` of .*liar\.npz is uint8 \(\d+,\)"
    with pytest.raises(DataError, match=said):
        open_images(path)


def test_an_entry_that_claims_less_than_it_unpacks_to_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "short.npz"
    entry(path, (2**20,), bytes(2**20))
    content: Any = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*short\.npz"):
        open_images(path)


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="a single array, no archive of arrays"), open_npz(path):
        pass
