"""Networks of one channel, judged by torchvision's transforms and onnxruntime on the original."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from torch import nn
from torchvision import transforms

import deploykit as library
from tests.bundles import write_classifier
from tests.cli import deploykit
from tests.graphs import graph, normal, save
from tests.services import client_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

pytestmark = pytest.mark.usefixtures("own_folder")

HEIGHT, WIDTH = 16, 40
PHOTOS = sorted((Path(library.__file__).parent / "samples").glob("*.jpg"))[:4]
LOOK = ("--mean", "0.1307", "--std", "0.3081")


def prepared_of(path: Path) -> Array:
    """What a training script makes of a file, (1, H, W)."""
    steps = transforms.Compose(
        [
            transforms.Grayscale(1),
            transforms.Resize((HEIGHT, WIDTH)),
            transforms.ToTensor(),
            transforms.Normalize((0.1307,), (0.3081,)),
        ]
    )
    found: Array = steps(Image.open(path).convert("RGB")).numpy()
    return found


def run(path: Path, **feeds: Array) -> Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, feeds)
    return found[0]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    return write_classifier(folder / "net.onnx", image=f"{HEIGHT}, {WIDTH}", colours=1)


@pytest.fixture(scope="module")
def photos() -> Array:
    return np.stack(list(map(prepared_of, PHOTOS)))


FORMS: list[tuple[tuple[object, ...], float, tuple[int, ...]]] = [
    ((), 1e-5, (1, HEIGHT, WIDTH)),
    (("--channel-order", "grey", "--fp16"), 2e-3, (1, HEIGHT, WIDTH)),
    (("--int8", "--calib", "random", "--calib-count", 8), 5e-2, (1, HEIGHT, WIDTH)),
    (("--input", "uint8"), 1e-5, (HEIGHT, WIDTH, 1)),
    (
        ("--fp16", "--input", "uint8", "--input-layout", "nchw", "--input-order", "grey"),
        2e-3,
        (1, HEIGHT, WIDTH),
    ),
]


@pytest.mark.parametrize(("form", "limit", "shape"), FORMS)
def test_every_form_answers_as_the_original(
    original: Path,
    photos: Array,
    tmp_path: Path,
    form: tuple[object, ...],
    limit: float,
    shape: tuple[int, ...],
) -> None:
    folder = tmp_path / "made"
    called = deploykit("export", original, "--backend", "none", "-o", folder, *LOOK, *form)
    assert called.code == 0, called.err
    words = " ".join((called.out + called.err).split())
    assert "the network takes 1 channel: images are made grey, 0.299 R + 0.587 G" in words
    assert "is assumed: resize 16x40, interpolation bilinear; as in" in words
    wanted = run(original, input=photos)
    look = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["preprocessing"]
    assert (look["channel_order"], look["mean"], look["std"]) == ("grey", [0.1307], [0.3081])
    with library.load(folder, device="cpu") as model:
        assert model.inputs[0].shape[1:] == shape
        scaled = [Image.open(path).convert("L").resize((WIDTH, HEIGHT), 2) for path in PHOTOS]
        arrays = [np.asarray(each) for each in scaled]
        given: list[Any] = [PHOTOS, [each.read_bytes() for each in PHOTOS], scaled, arrays]
        given += [np.stack(arrays)[..., None], [np.stack([each] * 3, -1) for each in arrays]]
        for one in given:
            found = model.predict(one, top_k=4)
            logits = [[p.logit for p in sorted(row, key=lambda p: p.index)] for row in found]
            np.testing.assert_allclose(logits, wanted, atol=limit * np.abs(wanted).max())
        assert model.self_test().non_finite == 0
    assert deploykit("check", folder, "--json").data["ok"] is True
    assert deploykit("validate", folder, original, "--json").data["validation"]["passed"] is True


def test_labelled_arrays_judge_and_calibrate(original: Path, photos: Array, tmp_path: Path) -> None:
    """Grey pixels in a file, without an axis for the channel and with one."""
    pixels = np.rint((photos[:, 0] * 0.3081 + 0.1307) * 255).astype(np.uint8)
    labels = run(original, input=photos).argmax(axis=1)
    np.savez(tmp_path / "flat.npz", images=pixels, labels=labels)
    np.savez(tmp_path / "set.npz", images=pixels[..., None], labels=labels)
    made = library.export(
        original,
        precision="int8",
        calib=tmp_path / "set.npz",
        mean=0.1307,
        std=0.3081,
        backend="none",
        output=tmp_path / "made",
        quiet=True,
    )
    for name in ("flat.npz", "set.npz"):
        for more in ((), ("--compare", original)):
            judged = deploykit("eval", made.folder, "--data", tmp_path / name, "--json", *more)
            assert judged.code == 0, judged.err
            assert judged.data["top1"] == 1.0


def test_channels_may_be_last(photos: Array, tmp_path: Path) -> None:
    path = save(
        graph(
            f"g (float[N, {HEIGHT}, {WIDTH}, 1] x) => (float[N, 4] y)"
            """ {
                t = Transpose <perm = [0, 3, 1, 2]> (x) c = Conv (t, w) r = Relu (c)
                m = GlobalAveragePool (r) f = Flatten (m) y = Gemm <transB = 1> (f, v)
            }""",
            {"w": normal(8, 1, 3, 3), "v": normal(4, 8, seed=1)},
        ),
        tmp_path / "last.onnx",
    )
    called = deploykit("export", path, "--backend", "none", "-o", tmp_path / "made", *LOOK)
    assert called.code == 0, called.err
    said = " ".join((called.out + called.err).split())
    assert "takes images (N, 16, 40, 1), with channels last: the graph takes (N, 1, 16, 40)" in said
    wanted = run(path, x=photos.transpose(0, 2, 3, 1))
    with library.load(tmp_path / "made", device="cpu") as model:
        np.testing.assert_allclose(model.run(photos), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("colours", "options", "said"),
    [
        (1, ("--channel-order", "rgb"), "images of 1 channel, grey possible: grey; left out it"),
        (1, ("--mean", "0.1,0.2,0.3"), "--mean 0.1,0.2,0.3 is of 3 channels, and the network"),
        (3, ("--channel-order", "grey"), "images of 3 channels, in colours possible: rgb or bgr;"),
        (1, (*LOOK, "--input", "uint8", "--input-order", "bgr"), "takes images in grey possible:"),
        (3, (*LOOK, "--input", "uint8", "--input-order", "grey"), "images in rgb possible: rgb or"),
    ],
)
def test_other_numbers_of_channels_are_refused(
    colours: int, options: tuple[object, ...], said: str, tmp_path: Path
) -> None:
    path = write_classifier(tmp_path / "net.onnx", colours=colours)
    called = deploykit("export", path, "--backend", "none", "-o", tmp_path / "made", *options)
    assert called.code == 2
    assert said in " ".join(called.err.split())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["net.onnx"]


def test_a_file_whose_card_is_for_other_channels_is_refused(tmp_path: Path) -> None:
    from deploykit.core.specs import Preprocessing
    from deploykit.graph import read_artifact
    from deploykit.graph.card import Card, add_card

    path = write_classifier(tmp_path / "net.onnx", colours=1)
    add_card(read_artifact(path), Card(Preprocessing((8, 8))))
    for command in ("export", "inspect"):
        called = deploykit(command, path)
        assert called.code == 1
        said = "the file says that its images are in rgb, and its input has 1 channel its metadata"
        assert said in " ".join(called.err.split())


def test_a_service_says_that_it_takes_grey(original: Path, photos: Array, tmp_path: Path) -> None:
    made = library.export(
        original, mean=0.1307, std=0.3081, backend="none", output=tmp_path / "made", quiet=True
    )
    wanted = run(original, input=photos[:1])[0]

    async def asked() -> tuple[Any, list[float], list[float]]:
        with library.load(made.folder, device="cpu") as model:
            async with client_of(model, name="net") as (client, _):
                about = (await client.get("/v2/models/net")).json()
                tensor = {
                    "name": "input",
                    "datatype": "FP32",
                    "shape": [1, 1, HEIGHT, WIDTH],
                    "data": photos[0].ravel().tolist(),
                }
                floats = await client.post("/v2/models/net/infer", json={"inputs": [tensor]})
                headers = {"Content-Type": "image/jpeg"}
                content = PHOTOS[0].read_bytes()
                image = await client.post("/v2/models/net/infer", content=content, headers=headers)
        answers = [each.json()["outputs"][0]["data"] for each in (floats, image)]
        return about["inputs"][0], answers[0], answers[1]

    about, floats, image = asyncio.run(asked())
    assert about["shape"] == [-1, 1, HEIGHT, WIDTH]
    assert about["parameters"] == {"layout": "nchw", "channel_order": "grey"}
    np.testing.assert_allclose([floats, image], [wanted, wanted], atol=1e-4)


def test_pictures_of_a_grey_network(tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32, 4)
    )
    for path in PHOTOS[:2]:
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.open(path).resize((16, 16)).save(tmp_path / "set" / f"{path.stem}.png")
    library.visualize(
        network,
        input_size=16,
        images=tmp_path / "set",
        method=("filters", "top", "maximise", "deconvnet", "guided", "gradcam", "occlusion"),
        output=tmp_path / "shown",
        filters=1,
        quiet=True,
    )
    made = {path.name for path in (tmp_path / "shown" / "1").iterdir()}
    assert made == {f"0-{each}.png" for each in ("top", "maximise", "deconvnet", "guided")}
    assert {each.parent.name for each in (tmp_path / "shown").glob("*/*.png")} == {
        "1", "gradcam", "occlusion",
    }  # fmt: skip
    sheet = np.asarray(Image.open(tmp_path / "shown" / "filters.png"))
    assert (sheet[..., 0] == sheet[..., 2]).all()
