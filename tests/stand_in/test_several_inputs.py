"""An engine that takes more than images: each input at its own place, of one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.backends.trt.runner import TrtRunner
from deploykit.core.errors import UsageError
from deploykit.core.sizes import ShapeProfile
from deploykit.core.specs import TensorSpec
from tests import own_files
from tests.device_arrays import ByDlpack
from tests.graphs import normal, run_ort
from tests.stand_in.benches import fake_bench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fakes.runtime_fake import Script

PROFILE = ShapeProfile(1, 2, 4)


def feeds(batch: int) -> dict[str, Any]:
    return {
        "x": normal(batch, 3, own_files.SIZE, own_files.SIZE, seed=batch),
        "blood": normal(batch, own_files.BLOOD, seed=batch + 1),
        "ward": np.arange(batch),
    }


@pytest.fixture
def opened(script: Script, tmp_path: Path) -> Iterator[TrtRunner]:
    bench = fake_bench(script, tmp_path)
    bench.plan.write_bytes(own_files.patients("batch").SerializeToString())
    with TrtRunner(bench.plan, bench.compiler, PROFILE) as runner:
        yield runner


def test_what_the_engine_says_it_takes(opened: TrtRunner) -> None:
    assert set(opened.inputs) == {
        TensorSpec("x", "float32", ("batch", 3, 8, 8)),
        TensorSpec("blood", "float32", ("batch", own_files.BLOOD)),
        TensorSpec("ward", "int64", ("batch",)),
    }


def test_every_batch_by_turns_is_right(opened: TrtRunner) -> None:
    for _ in range(3):  # runs plainly, is captured, is replayed
        for batch in (1, 4, 2):
            given = feeds(batch)
            wanted = run_ort(own_files.patients(), given)["y"]
            np.testing.assert_allclose(opened.run(given)["y"], wanted, atol=1e-4)
            on_gpu = {name: ByDlpack(array) for name, array in given.items()}
            np.testing.assert_allclose(opened.run(on_gpu)["y"], wanted, atol=1e-4)
            kept = opened.run_on_device(on_gpu)["y"].numpy()
            np.testing.assert_allclose(kept, wanted, atol=1e-4)


def test_inputs_that_do_not_go_together(opened: TrtRunner) -> None:
    with pytest.raises(UsageError, match=r"was fed \['blood', 'x'\], it takes \['blood', 'ward',"):
        opened.run({name: array for name, array in feeds(2).items() if name != "ward"})
    given = feeds(2)
    with pytest.raises(UsageError, match=r"'ward' of .* was fed int32"):
        opened.run({**given, "ward": given["ward"].astype(np.int32)})
