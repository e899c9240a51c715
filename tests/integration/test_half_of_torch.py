"""A whole network in FP16: the form for CPUs against torch's own half precision.

torch stores every value in FP16, batch normalisation apart, which deploykit folds: so the two
round at different places, and are held against each other by a bound on both errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from deploykit.backends.ort import OrtRunner
from deploykit.core.choices import DefinitionChoices
from deploykit.core.precision import Precision
from deploykit.exporting.steps import ExportOptions, export_bundle
from deploykit.graph import read_model
from deploykit.graph.external_weights import split
from deploykit.graph.rounding import Stored, rounding_form
from deploykit.models import get
from deploykit.sources.definition import SourceOptions

if TYPE_CHECKING:
    from pathlib import Path

BOUND = 5e-3
"""Of the largest logit. Rounding is 4.9e-4; independent errors of 20 layers come to 2.2e-3."""


def test_resnet20_computes_what_torch_computes_in_half(tmp_path: Path) -> None:
    source = SourceOptions(choices=DefinitionChoices(image_size=16), seed=3)
    options = ExportOptions(
        Precision.FP16, backend="none", source=source, output=tmp_path / "bundle"
    )
    bundle = export_bundle("resnet20", options).bundle
    images = np.load(bundle.folder / "golden.npz")["input"]
    torch.manual_seed(3)
    network = get("resnet20", image_size=16).build().eval()
    with torch.no_grad():
        exact = network(torch.from_numpy(images)).numpy()
        half = network.half()(torch.from_numpy(images).half()).float().numpy()
    largest = float(np.abs(exact).max())
    model = read_model(bundle.folder / "model.onnx")
    for stored in Stored:
        with OrtRunner(split(rounding_form(model, stored), "resnet20")) as runner:
            (got,) = runner.run({runner.inputs[0].name: images}).values()
        assert np.array_equal(got, got.astype(np.float16).astype(np.float32))
        assert 0 < np.abs(got - exact).max() <= BOUND * largest
        assert np.abs(got - half).max() <= BOUND * largest
