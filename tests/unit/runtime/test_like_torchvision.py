"""`predict` feeds the model what the definition's own transform of torchvision gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from deploykit import images
from deploykit.core.sizes import ShapeProfile
from deploykit.models import get, names
from deploykit.runtime.loading import load
from tests.bundles import engine_record, write_bundle
from tests.fakes.engine_fake import FakeMachine

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.core.specs import Preprocessing

OF_DEFINITIONS = sorted(
    {get(name).preprocessing for name in names()}
    | {get("resnet50", image_size=size).preprocessing for size in (96, 288)},
    key=repr,
)


def of_torchvision(path: Path, steps: Preprocessing) -> NDArray[np.float32]:
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    mode = InterpolationMode(steps.interpolation)
    chain = transforms.Compose(
        [
            *([] if steps.resize is None else [transforms.Resize(steps.resize, mode)]),
            transforms.CenterCrop(steps.crop),
            transforms.ToTensor(),
            transforms.Normalize(steps.mean, steps.std),
        ]
    )
    with Image.open(path) as image:
        array: NDArray[np.float32] = chain(image.convert("RGB")).numpy()
    return array


@pytest.mark.parametrize("steps", OF_DEFINITIONS, ids=lambda steps: f"{steps.resize}-{steps.crop}")
def test_what_the_engine_is_fed(tmp_path: Path, steps: Preprocessing) -> None:
    samples = images.sample_images()
    assert isinstance(samples, images.FileImages)
    fake = FakeMachine()
    record = engine_record(profile=ShapeProfile(1, 3, 8))
    folder = write_bundle(tmp_path / "b", record, preprocessing=steps)
    forms = [path if at % 2 else path.read_bytes() for at, path in enumerate(samples.paths)]
    with load(folder, machine=fake()) as model:
        model.predict(forms)
    fed = np.concatenate(fake.opened[0].fed)
    expected = np.stack([of_torchvision(path, steps) for path in samples.paths])
    grey_levels = (fed - expected) * np.array(steps.std)[:, None, None] * 255
    assert np.abs(grey_levels).max() <= 1
    np.testing.assert_allclose(fed, expected, atol=1e-6)
