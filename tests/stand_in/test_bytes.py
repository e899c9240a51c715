"""An engine of bytes, the whole way down to the driver: what is copied, and what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

import deploykit as library
from deploykit.core import environment
from deploykit.core.artifacts import sha256_of
from deploykit.runtime.loading import load
from tests.bundles import engine_record, write_classifier
from tests.fakes.runtime_fake import FakeRuntime
from tests.stand_in.test_load import PROFILE, machine

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.runtime_fake import Script

SHAPE = (12, 10)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_bytes_reach_the_engine_as_they_are(script: Script, tmp_path: Path, layout: str) -> None:
    original = write_classifier(tmp_path / "net.onnx", image="12, 10")
    bundle = library.export(
        original, input="uint8", input_layout=layout, result="topk:2", mean=0.5, std=0.25,
        backend="none", output=tmp_path / "made", quiet=True,
    )  # fmt: skip
    # The bundle's own graph is what the fake runtime takes for a plan.
    plan = bundle.model_path
    record = engine_record(
        sha256=sha256_of(plan),
        compiler_version=FakeRuntime.__version__,
        compute_capabilities=(environment.gpus()[0].compute_capability,),
        profile=PROFILE,
    )
    staged = tmp_path / "staged"
    staged.write_bytes(plan.read_bytes())
    bundle.with_engine(record, staged)
    pixels = np.random.default_rng(0).integers(0, 256, (7, *SHAPE, 3), np.uint8)
    given: Any = pixels if layout == "nhwc" else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    session = onnxruntime.InferenceSession(str(original), providers=["CPUExecutionProvider"])
    floats = ((pixels / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).astype(np.float32)
    (logits,) = session.run(None, {"input": floats})
    wanted = np.argsort(-logits, axis=1)[:, :2].tolist()
    with load(bundle, machine=machine(script, rtx=False)) as model:
        assert model.device == "cuda"
        model.self_test()
        with pytest.warns(UserWarning, match="a batch of 7 is run in parts"):
            assert model.run(given).tolist() == wanted
        found = model.run_all(given[:3])
        assert found["classes"].dtype == np.int64
        assert found["probabilities"].shape == (3, 2)
        (answer,) = model.predict([pixels[0]])
        chances = [each.probability or 0 for each in answer]
        assert 0 < chances[1] <= chances[0] < 1
