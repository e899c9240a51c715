from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.bundle.golden import Golden, limits_for
from deploykit.bundle.manifest import GOLDEN, Bundle
from deploykit.core.errors import BundleError, IntegrityError, ValidationError
from deploykit.core.precision import Precision
from tests.bundles import colours_of, write_bundle
from tests.graphs import normal

if TYPE_CHECKING:
    from pathlib import Path

SAMPLE = Golden(normal(2, 3, 8, 8), normal(2, 5, seed=1))


def test_the_sample_of_a_bundle(tmp_path: Path) -> None:
    golden = Golden.read(Bundle.open(write_bundle(tmp_path / "b")))
    np.testing.assert_array_equal(golden.outputs, colours_of(golden.batch))


def test_a_sample_that_was_changed(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "b"))
    np.savez(bundle.folder / GOLDEN, input=SAMPLE.batch, logits=SAMPLE.outputs)
    with pytest.raises(IntegrityError, match=r"b: golden.npz has sha256 .*\ncopy or export the"):
        Golden.read(bundle)


def test_a_bundle_without_a_sample(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "b", files={}))
    with pytest.raises(BundleError, match=r"b has no golden.npz to compare with"):
        Golden.read(bundle)


@pytest.mark.parametrize("content", [b"junk", b"", b"PK\3\4"])
def test_a_sample_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    from deploykit.core.artifacts import sha256_of_bytes

    folder = write_bundle(tmp_path / "b", files={GOLDEN: sha256_of_bytes(content)})
    (folder / GOLDEN).write_bytes(content)
    with pytest.raises(BundleError, match=r"cannot read .*golden.npz: "):
        Golden.read(Bundle.open(folder))


def test_the_same_logits_pass_and_their_figures_come_back() -> None:
    found = SAMPLE.judge(SAMPLE.outputs + np.float32(1e-6), Precision.FP32)
    assert found.batch == 2
    assert 0 < found.max_abs < 1e-5


def test_other_logits_fail_with_figures() -> None:
    with pytest.raises(
        ValidationError,
        match=r"gives other logits than at export\nlargest error .*; cosine .*\ndo not serve with",
    ):
        SAMPLE.judge(-SAMPLE.outputs, Precision.FP16)


def test_nan_fails() -> None:
    with pytest.raises(ValidationError, match="10 values are NaN or infinite"):
        SAMPLE.judge(SAMPLE.outputs * np.float32(np.nan), Precision.INT8)


def test_another_shape_fails() -> None:
    with pytest.raises(
        ValidationError, match=r"gives logits of shape \(2, 4\), at export they were \(2, 5\)"
    ):
        SAMPLE.judge(SAMPLE.outputs[:, :4], Precision.FP32)


def test_fp32_on_a_gpu_is_judged_as_what_it_computes_in() -> None:
    """Multiplied as TF32: wrong by up to 2**-11 of each factor, which the limits of FP32 forbid."""
    assert limits_for(Precision.FP32, "cpu") is Precision.FP32
    assert limits_for(Precision.FP32, "cuda") is Precision.FP16
    assert limits_for(Precision.FP32, "ort-cuda") is Precision.FP16
    assert limits_for(Precision.INT8, "cuda") is Precision.INT8
    tf32 = SAMPLE.outputs * np.float32(1 + 2**-9)
    SAMPLE.judge(tf32, limits_for(Precision.FP32, "cuda"))
    with pytest.raises(ValidationError, match="largest error"):
        SAMPLE.judge(tf32, limits_for(Precision.FP32, "cpu"))
