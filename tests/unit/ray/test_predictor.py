"""The classes that run in actors, called as Ray calls them."""

from __future__ import annotations

import pickle
import re
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from deploykit.bundle.manifest import MANIFEST, Bundle
from deploykit.core import progress
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import (
    BundleError,
    DataError,
    DeploykitError,
    UsageError,
)
from deploykit.core.progress import SilentProgress
from deploykit.core.specs import HeadRecord, TensorSpec
from deploykit.images import LabelledData
from deploykit.ray import Predictor, predicting
from deploykit.ray.cluster import Cluster, _connect
from deploykit.ray.parts import PartsFolder
from deploykit.ray.predicting import ClusterChoices, parquet_of
from deploykit.ray.predictor import PreparedPredictor
from deploykit.ray.sources import Part
from deploykit.verbs import evaluate_on_cluster as verb
from deploykit.verbs.evaluate import Subjects
from tests.bundles import SIZE, colours_of, engine_record, write_bundle
from tests.cli import deploykit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deploykit.ray.evaluating import LabelledParts
    from deploykit.verbs.evaluate import AccuracyReport

pytest.importorskip("pyarrow")


class SilentTask:
    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        """Nothing to show."""


PIXELS = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)


def png(pixels: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def prepared() -> Any:
    """What the bundle of colours takes: pixels from 0 to 1, (N, C, H, W)."""
    return (PIXELS.transpose(0, 3, 1, 2) / 255).astype(np.float32)


WANTED = colours_of(prepared())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def actor(bundle: Path, **changes: Any) -> PreparedPredictor:
    given = {"sha256": sha256_of(bundle / MANIFEST), "threshold": None, **changes}
    return PreparedPredictor(str(bundle), given["sha256"], "cpu", 3, given["threshold"])


# --- the class for pipelines of one's own


def test_a_batch_gets_answers_in_place_of_images(bundle: Path) -> None:
    predictor = Predictor(bundle, top_k=1, device="cpu")
    column = np.empty(3, dtype=object)
    column[:] = [png(PIXELS[0]), b"nothing", PIXELS[2]]
    found = predictor({"image": column, "path": ["a", "b", "c"]})
    assert found.keys() == {"path", "answers", "error"}
    assert [each and each[0]["index"] for each in found["answers"]] == [
        WANTED[0].argmax(),
        [],
        WANTED[2].argmax(),
    ]
    assert found["error"][0] is None
    assert "cannot read" in found["error"][1]


def test_pixels_as_ray_reads_them(bundle: Path) -> None:
    found = Predictor(bundle, column="pixels", device="cpu")({"pixels": PIXELS})
    logits = [{a["index"]: a["logit"] for a in each} for each in found["answers"]]
    assert np.allclose([[each[0], each[1], each[2]] for each in logits], WANTED, atol=1e-6)


def test_a_batch_without_the_column(bundle: Path) -> None:
    with pytest.raises(UsageError, match="no column 'image', it has pixels"):
        Predictor(bundle, device="cpu")({"pixels": PIXELS})


# --- the actor of the command


def test_prepared_images_are_answered_in_their_order(bundle: Path) -> None:
    found: list[Any] = actor(bundle).prepared(prepared())
    logits = [{a.index: a.logit for a in each} for each in found]
    assert np.allclose([[each[0], each[1], each[2]] for each in logits], WANTED, atol=1e-6)


def test_encoded_images_are_answered_as_prepared_ones(bundle: Path) -> None:
    one = actor(bundle)
    first, second = one.encoded([png(PIXELS[0]), b"nothing"])
    assert [each.index for each in first] == [e.index for e in one.prepared(prepared()[:1])[0]]
    assert "cannot read" in str(second)


def test_an_image_that_gives_nan_does_not_spoil_the_others(bundle: Path) -> None:
    images = prepared()
    one = actor(bundle)
    run = one._model.run_all

    def with_nan(feeds: Any) -> Any:
        found = run(feeds)
        found["logits"] = found["logits"].copy()
        found["logits"][1] = np.nan
        return found

    one._model.run_all = with_nan  # type: ignore[method-assign, assignment]
    found = one.prepared(images)
    assert "NaN" in str(found[1])
    assert [each[0].index for at, each in enumerate(found) if at != 1] == [
        row.argmax() for at, row in enumerate(WANTED) if at != 1
    ]


def test_a_bundle_that_was_replaced_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="was replaced since this run began"):
        actor(bundle, sha256="0" * 64)


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (HeadRecord(), {"index": "int", "label": "str", "probability": "float", "logit": "float"}),
        (HeadRecord("raw"), {"output": "str", "shape": "ints", "values": "floats"}),
    ],
)
def test_the_columns_of_an_answer_are_those_of_its_head(
    head: HeadRecord, wanted: dict[str, str], tmp_path: Path
) -> None:
    from pyarrow import parquet

    one = actor(write_bundle(tmp_path / "bundle", head=head))
    assert one.answer_fields == wanted
    outcomes: list[Any] = [*one.prepared(prepared()), "no"]
    names = [str(at) for at in range(6)]
    table = parquet.read_table(BytesIO(parquet_of(names, outcomes, one.answer_fields)))
    assert table.column("image").to_pylist() == names
    assert table.column("error").to_pylist() == [None] * 5 + ["no"]
    if head.kind == "raw":
        values = [each[0]["values"] for each in table.column("answers").to_pylist()[:5]]
        assert np.allclose(values, WANTED, atol=1e-6)


def test_an_unanswered_part_has_the_same_columns(bundle: Path) -> None:
    from pyarrow import parquet

    fields = actor(bundle).answer_fields
    full = parquet_of(["a"], [actor(bundle).prepared(prepared()[:1])[0]], fields)
    empty = parquet_of(["a"], ["no"], fields)
    assert parquet.read_schema(BytesIO(full)) == parquet.read_schema(BytesIO(empty))


# --- decoding


@pytest.mark.parametrize("takes_floats", [True, False])
def test_a_part_is_decoded_but_for_what_cannot_be_read(takes_floats: bool, tmp_path: Path) -> None:
    import pickle

    (tmp_path / "a.png").write_bytes(png(PIXELS[0]))
    (tmp_path / "b.png").write_bytes(b"nothing")
    steps = Bundle.open(write_bundle(tmp_path / "bundle")).manifest.preprocessing
    decoder = predicting.RowDecoder(steps, None, takes_floats=takes_floats)
    part = Part(7, (str(tmp_path / "a.png"), str(tmp_path / "b.png"), str(tmp_path / "c.png")))
    row = decoder.decode({"part": 7, "text": part.to_text()})
    names, errors, given = pickle.loads(row["payload"])  # noqa: S301 - made above
    assert names == part.files
    assert errors[2].startswith("cannot be read")
    if takes_floats:
        assert errors.keys() == {1, 2}
        assert np.array_equal(given, prepared()[:1])
    else:
        assert given == [png(PIXELS[0]), b"nothing"]


# --- who runs where, and what is said


@pytest.mark.parametrize(
    ("device", "engines", "cpus", "gpus", "wanted"),
    [
        ("auto", True, 16, 4, (4, 0.9, 1.0)),
        ("auto", False, 16, 4, (8, 0.9, 0.0)),
        ("auto", True, 2, 0, (1, 0.9, 0.0)),
        ("cpu", True, 8, 4, (4, 0.9, 0.0)),
        ("cuda", True, 8, 2, (2, 0.9, 1.0)),
    ],
)
def test_actors_get_what_their_engine_needs(
    device: str, engines: bool, cpus: float, gpus: float, wanted: Any, tmp_path: Path
) -> None:
    records = (engine_record(),) if engines else ()
    manifest = Bundle.open(write_bundle(tmp_path / "bundle", *records)).manifest
    found = predicting.Workers.of(
        Cluster(None, None, cpus, gpus), manifest, ClusterChoices(device=device)
    )
    assert (found.count, found.cpus, found.gpus) == wanted


def test_decoding_keeps_half_of_the_processors(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    choices = ClusterChoices(workers=4)
    found = predicting.Workers.of(Cluster(None, None, 2.0, 0.0), manifest, choices)
    assert found.count * found.cpus <= 1.0


def test_a_gpu_that_the_cluster_lacks(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    with pytest.raises(UsageError, match="--device cuda: the cluster has no GPU"):
        predicting.Workers.of(
            Cluster(None, None, 2.0, 0.0), manifest, ClusterChoices(device="cuda")
        )


def test_an_actors_own_error_is_said_and_not_rays() -> None:
    own = DataError("no such image")
    assert str(predicting._translated(RuntimeError(SimpleNamespace()))).startswith(
        "the cluster could not go on: RuntimeError"
    )
    wrapped = RuntimeError("ray")
    wrapped.cause = own  # type: ignore[attr-defined]
    assert str(predicting._translated(wrapped)) == "no such image"
    assert isinstance(predicting._translated(ValueError()), DeploykitError)
    traceback = "died\n  raise X(\ndeploykit.core.errors.BundleError: a was replaced\nbegin again\n"
    found = predicting._translated(RuntimeError(traceback))
    assert (type(found), str(found)) == (BundleError, "a was replaced\nbegin again")


def test_a_bundle_of_several_inputs(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    inputs = (*manifest.onnx.inputs, TensorSpec("blood", "float32", ("N", 5)))
    with pytest.raises(UsageError, match="takes 'blood' beside the images"):
        predicting.require_images_alone(
            replace(manifest, onnx=replace(manifest.onnx, inputs=inputs))
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--ray"], "say where: -o"),
        (["a", "b", "--ray", "-o", "out"], "--ray does not take 2 sources"),
        (["a", "--ray", "-o", "out", "--fast"], "--ray does not take --fast"),
        (["a", "--workers", "2"], "--workers 2 is for --ray"),
        (["a", "--address", "x:1"], "--address x:1 is for --ray"),
    ],
)
def test_what_is_wrong_with_predict(arguments: list[str], message: str, bundle: Path) -> None:
    called = deploykit("predict", bundle, *arguments)
    assert called.code == 2
    assert message in called.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray", "--compare", "other", "--reference", "a"], "are two models to hold this one"),
        (["--workers", "2"], "--workers 2 is for --ray"),
        (["-o", "counts"], "-o counts is for --ray"),
    ],
)
def test_what_is_wrong_with_eval(arguments: list[str], message: str, bundle: Path) -> None:
    called = deploykit("eval", bundle, "--data", bundle, *arguments)
    assert called.code == 2
    assert message in called.err


def test_eval_needs_files_that_a_cluster_can_share(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", images=PIXELS, labels=np.arange(5) % 3)
    called = deploykit("eval", bundle, "--data", tmp_path / "test.npz", "--ray")
    assert called.code == 2
    assert "is one file, whose images a cluster cannot share" in called.err


def test_eval_needs_labels(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    called = deploykit("eval", bundle, "--data", tmp_path, "--ray")
    assert called.code == 1
    assert "have no labels" in called.err


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("10.0.0.1:6379", ConnectionError("no answer"), "answers at 10.0.0.1:6379: no answer"),
        (None, Exception("timed out during startup"), "answers at this machine: timed out"),
    ],
)
def test_a_cluster_that_does_not_answer(
    address: str | None, error: Exception, message: str
) -> None:
    def init(**_: object) -> None:
        raise error

    with pytest.raises(UsageError, match=message):
        _connect(SimpleNamespace(init=init), address)


def test_a_part_that_somebody_changed_is_found(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(PIXELS[0]))
    here = nullcontext(Cluster(None, None, 2.0, 0.0))
    monkeypatch.setattr(predicting, "cluster", lambda _: here)
    empty = parquet_of([], [], {"index": "int"})
    monkeypatch.setattr(predicting, "_answered", lambda *_: (each for each in [(0, empty)]))
    with pytest.raises(DataError, match="has 0 rows for 1 images"):
        predicting.predict_on_cluster(
            bundle, str(tmp_path / "images"), tmp_path / "out", ClusterChoices(), SilentTask()
        )


def test_a_list_of_files_is_refused_before_ray_starts(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: str | None) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(predicting, "cluster", start)
    (tmp_path / "list.csv").write_text("a.png\n")
    (tmp_path / "a.png").write_bytes(png(PIXELS[0]))
    called = deploykit(
        "predict", bundle, tmp_path / "list.csv", "--ray", "-o", tmp_path / "answers.parquet"
    )
    assert called.code == 1
    assert "list.csv is neither an image nor Parquet" in called.err
    assert not (tmp_path / "answers.parquet").exists()


def test_progress_counts_images_without_a_comma(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(PIXELS[0]))
    monkeypatch.setattr(predicting, "cluster", lambda _: nullcontext(Cluster(None, None, 2.0, 0.0)))
    content = parquet_of(["a"], ["x"], {"index": "int"})
    monkeypatch.setattr(predicting, "_answered", lambda *_: (each for each in [(0, content)]))
    monkeypatch.setattr(progress, "_BETWEEN_LINES_S", 0)
    with progress.LineProgress().step("predict on Ray") as task:
        predicting.predict_on_cluster(
            bundle, str(tmp_path / "images"), tmp_path / "out", ClusterChoices(), task
        )
    assert re.search(r"predict on Ray: 1 of 1, \d+ s", capsys.readouterr().err)


def test_actors_end_where_a_part_cannot_be_written(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    def answers(*_: object) -> Iterator[tuple[int, bytes]]:
        try:
            yield 0, parquet_of(["a"], ["x"], {"index": "int"})
        finally:
            ended.append("the actors")

    def fills(*_: object) -> None:
        raise BundleError("No space left on device")

    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(PIXELS[0]))
    monkeypatch.setattr(predicting, "cluster", lambda _: nullcontext(Cluster(None, None, 2.0, 0.0)))
    monkeypatch.setattr(predicting, "_answered", answers)
    monkeypatch.setattr(PartsFolder, "commit", fills)
    with pytest.raises(BundleError, match="No space left") as kept:
        predicting.predict_on_cluster(
            bundle, str(tmp_path / "images"), tmp_path / "out", ClusterChoices(), SilentTask()
        )
    assert ended == ["the actors"], kept  # while the traceback, which has the flow, is there


def labelled_images(folder: Path) -> LabelledData:
    """One for each class of the bundle of colours."""
    for name in ("red", "green", "blue"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.png").write_bytes(png(PIXELS[0]))
    return LabelledData(folder)


def evaluate(bundle: Path, data: LabelledData) -> AccuracyReport:
    return verb.evaluate_on_cluster(
        Subjects(bundle),
        data,
        ClusterChoices(),
        batch=1,
        output=None,
        progress=SilentProgress(),
    )


def test_an_actor_of_eval_refuses_a_model_that_was_replaced(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(
        labelled: LabelledParts, left: object, kinds: object, actor: tuple[Any, Any], *_: object
    ) -> Iterator[tuple[Part, list[Any]]]:
        kind, arguments = actor
        yield labelled.parts[0], pickle.loads(kind(**arguments)(row)["outputs"])[1]  # noqa: S301 - of this very test
        with (bundle / MANIFEST).open("a", encoding="utf-8") as file:
            file.write("\n")
        kind(**arguments)  # of a worker that was lost, begun again

    row = {"part": 0, "payload": pickle.dumps(({}, [prepared()[:1]]))}
    monkeypatch.setattr(verb, "outputs_on_cluster", begun)
    with pytest.raises(BundleError, match="was replaced since this run began\nbegin again, or put"):
        evaluate(bundle, labelled_images(tmp_path / "data"))


def test_an_evaluation_of_fewer_images_is_no_answer(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "_MOST_IMAGES", 1)

    def first(labelled: LabelledParts, *_: object) -> Iterator[tuple[Part, list[Any]]]:
        yield labelled.parts[0], [WANTED[:1]] * 2

    monkeypatch.setattr(verb, "outputs_on_cluster", first)
    with pytest.raises(DataError, match="1 of 3 parts were counted"):
        evaluate(bundle, labelled_images(tmp_path / "data"))
