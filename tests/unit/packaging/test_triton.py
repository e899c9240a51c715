"""Model repositories, read back by Triton's own protobuf: a misspelt field or value fails."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from deploykit.bundle.golden import Golden
from deploykit.bundle.manifest import CPU_MODEL, GOLDEN, LABELS, MODEL, Bundle
from deploykit.core.artifacts import AMPERE_PLUS, EngineRecord, sha256_of
from deploykit.core.errors import BundleError, IntegrityError
from deploykit.core.precision import Precision
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.core.specs import HeadRecord, PixelInput, Preprocessing, TensorSpec
from deploykit.packaging import PackageChoices, Packed, place_named
from deploykit.packaging._triton_containers import container_for, triton_containers
from tests.bundles import SIZE, engine_record, write_bundle

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("tritonclient.grpc")
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

IMAGE = TensorSpec("input", "float32", ("N", 3, SIZE, SIZE))
LOGITS = TensorSpec("logits", "float32", ("N", 3))
RTX = engine_record(
    "tensorrt-rtx-1.7.1.116-3f9a2c41.engine",
    compiler="tensorrt-rtx",
    compiler_version="1.7.1.116",
    compute_capabilities=("8.6", "8.9", "12.0"),
    profile=ShapeProfile(1, 4, 16),
)
SM89 = engine_record(
    "tensorrt-11.4.0.106-sm89.engine",
    compute_capabilities=("8.9",),
    profile=ShapeProfile(1, 4, 8),
)
SM90 = engine_record(profile=ShapeProfile(1, 2, 4))
PLUS = engine_record(
    "tensorrt-11.4.0.106-sm80plus.engine",
    compute_capabilities=("8.9",),
    hardware_compatibility=AMPERE_PLUS,
)
OLD = engine_record(
    "tensorrt-10.9.0.34-sm90.engine", compiler_version="10.9.0.34", profile=ShapeProfile(1, 2, 4)
)


def changed(bundle: Path, **changes: Any) -> Bundle:
    """The bundle with another manifest in memory; its files stay."""
    opened = Bundle.open(bundle)
    onnx = {name: changes.pop(name) for name in ("inputs", "outputs") if name in changes}
    manifest = replace(opened.manifest, onnx=replace(opened.manifest.onnx, **onnx), **changes)
    return Bundle(bundle, manifest)


def packaged(bundle: Bundle, folder: Path, **choices: Any) -> Packed:
    folder.mkdir()
    return place_named("triton").write(bundle, folder, PackageChoices(**choices))


def config(folder: Path, name: str = "colours-fp32") -> Any:
    text = (folder / "models" / name / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@dataclass(frozen=True)
class Case:
    """A bundle, and what Triton must be told of it."""

    engines: tuple[EngineRecord, ...] = ()
    inputs: tuple[TensorSpec, ...] = (IMAGE,)
    outputs: tuple[TensorSpec, ...] = (LOGITS,)
    changes: dict[str, Any] = field(default_factory=dict)
    platform: str = "tensorrt_plan"
    max_batch: int = 0
    preferred: tuple[int, ...] = ()
    dims: tuple[tuple[int, ...], ...] = ((3, SIZE, SIZE),)
    types: tuple[str, ...] = ("TYPE_FP32",)
    plans: dict[str, str] = field(default_factory=dict)
    default: str = ""
    profiles: tuple[str, ...] = ("0",)
    warm_ups: tuple[int, ...] = (1,)
    dynamic: bool = True


BLOOD = TensorSpec("blood", "int64", ("N", 5))
FLAG = TensorSpec("flag", "bool", ("N",))
TWO_PROFILES = ShapeProfile.of([ShapeProfile(1, 1, 1), ShapeProfile(1, 8, 16)])
OPEN_SIZES = ShapeProfile(1, 2, 4, height=SizeRange(6, 8, 12), width=SizeRange(8, 8, 8))

CASES = {
    "one plan": Case(
        (SM90,), max_batch=4, preferred=(2,), plans={"9.0": "model-sm90.plan"}, warm_ups=(1, 2)
    ),
    "two compute capabilities": Case(
        (SM90, SM89, RTX),
        max_batch=4,
        preferred=(2,),
        plans={"8.9": "model-sm89.plan", "9.0": "model-sm90.plan"},
        warm_ups=(1, 2),
    ),
    "all GPUs from Ampere on": Case(
        (PLUS, SM90),
        max_batch=4,
        preferred=(2,),
        plans={"9.0": "model-sm90.plan"},
        default="model-ampere-plus.plan",
        warm_ups=(1, 2),
    ),
    "two versions": Case(
        (OLD, SM89),
        max_batch=8,
        preferred=(4,),
        plans={"8.9": "model-sm89.plan"},
        warm_ups=(1, 4),
    ),
    "several profiles": Case(
        (replace(SM90, profile=TWO_PROFILES),),
        max_batch=16,
        preferred=(8,),
        plans={"9.0": "model-sm90.plan"},
        profiles=("0", "1"),
        warm_ups=(1, 8),
    ),
    "open image sizes": Case(
        (replace(SM90, profile=OPEN_SIZES),),
        inputs=(replace(IMAGE, shape=("N", 3, "height", SIZE)),),
        max_batch=4,
        preferred=(2,),
        dims=((3, -1, SIZE),),
        plans={"9.0": "model-sm90.plan"},
        warm_ups=(1, 2),
    ),
    "fixed batch": Case(
        (replace(SM90, profile=ShapeProfile(2, 2, 2)),),
        inputs=(replace(IMAGE, shape=(2, 3, SIZE, SIZE)),),
        outputs=(replace(LOGITS, shape=(2, 3)),),
        dims=((2, 3, SIZE, SIZE),),
        plans={"9.0": "model-sm90.plan"},
        dynamic=False,
    ),
    "an output without batch": Case(
        (SM90,),
        outputs=(LOGITS, TensorSpec("anchors", "float32", (9, 4))),
        dims=((-1, 3, SIZE, SIZE),),
        plans={"9.0": "model-sm90.plan"},
        dynamic=False,
    ),
    "several inputs": Case(
        (SM90,),
        inputs=(IMAGE, BLOOD, FLAG),
        max_batch=4,
        preferred=(2,),
        dims=((3, SIZE, SIZE), (5,), (1,)),
        types=("TYPE_FP32", "TYPE_INT64", "TYPE_BOOL"),
        plans={"9.0": "model-sm90.plan"},
        warm_ups=(1, 2),
    ),
    "bytes, channels last": Case(
        (SM90,),
        inputs=(TensorSpec("input", "uint8", ("N", SIZE, SIZE, 3)),),
        max_batch=4,
        preferred=(2,),
        dims=((SIZE, SIZE, 3),),
        types=("TYPE_UINT8",),
        plans={"9.0": "model-sm90.plan"},
        warm_ups=(1, 2),
    ),
    "a batch of one": Case(
        (replace(SM90, profile=ShapeProfile(1, 1, 1)),),
        max_batch=1,
        plans={"9.0": "model-sm90.plan"},
        dynamic=False,
    ),
    "engines of RTX only": Case(
        (RTX,), platform="onnxruntime_onnx", max_batch=16, preferred=(4,), warm_ups=(1, 4)
    ),
    "no engine": Case(platform="onnxruntime_onnx", max_batch=32, preferred=(8,), warm_ups=(1, 8)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_triton_is_told_what_the_bundle_is(case: Case, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", *case.engines)
    bundle = changed(folder, inputs=case.inputs, outputs=case.outputs, **case.changes)
    packed = packaged(bundle, tmp_path / "package")
    found = config(tmp_path / "package")
    assert found.name == "colours-fp32"
    assert found.platform == case.platform
    assert found.max_batch_size == case.max_batch
    assert [tuple(each.dims) for each in found.input] == list(case.dims)
    names = model_config_pb2.DataType.Name
    assert tuple(names(each.data_type) for each in found.input) == case.types
    assert dict(found.cc_model_filenames) == case.plans
    assert found.default_model_filename == case.default
    assert found.HasField("dynamic_batching") is case.dynamic
    assert tuple(found.dynamic_batching.preferred_batch_size) == case.preferred
    assert tuple(each.batch_size for each in found.model_warmup) == case.warm_ups
    is_plan = case.platform == "tensorrt_plan"
    assert found.optimization.cuda.graphs is is_plan
    assert [tuple(group.profile) for group in found.instance_group] == [case.profiles] * is_plan
    assert packed.facts["platform"] == case.platform
    assert (tmp_path / "package" / "build.sh").exists() is not is_plan


def test_plans_are_the_engines_and_no_more(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", SM90, SM89, RTX, OLD))
    packed = packaged(bundle, tmp_path / "package")
    version = tmp_path / "package" / "models" / "colours-fp32" / "1"
    assert {path.name: path.read_text() for path in version.iterdir()} == {
        "model-sm89.plan": SM89.file,
        "model-sm90.plan": SM90.file,
    }
    left_out = packed.facts["left_out"]
    assert [line.partition(":")[0] for line in left_out] == [RTX.file, OLD.file]
    assert "no backend for engines of tensorrt-rtx" in left_out[0]
    assert "of TensorRT 10.9.0.34" in left_out[1]
    page = (tmp_path / "package" / "README.md").read_text(encoding="utf-8")
    assert all(line in page for line in left_out)


def test_of_two_engines_for_one_gpu_the_last_is_taken(tmp_path: Path) -> None:
    other = replace(SM90, file="tensorrt-11.4.0.106-sm90-b.engine")
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", SM90, SM89))
    bundle = changed(bundle.folder, engines=(SM90, replace(other, sha256=SM90.sha256)))
    (bundle.folder / other.file).write_text(SM90.file)
    packed = packaged(bundle, tmp_path / "package")
    assert packed.facts["plans"] == {"9.0": "model-sm90.plan"}
    assert packed.facts["left_out"] == [f"{SM90.file}: another one is for the same GPUs"]


def test_plans_without_a_common_size(tmp_path: Path) -> None:
    other = replace(SM89, profile=ShapeProfile(16, 16, 32))
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", SM90, other))
    with pytest.raises(BundleError, match="no size in common: batch 1,2,4; batch 16,16,32"):
        packaged(bundle, tmp_path / "package")


def test_a_profile_that_one_plan_lacks_is_not_asked_for(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", replace(SM90, profile=TWO_PROFILES), SM89)
    packaged(Bundle.open(bundle), tmp_path / "package")
    found = config(tmp_path / "package")
    assert [tuple(group.profile) for group in found.instance_group] == [("0",)]
    assert found.max_batch_size == 1


# --- warm-up, labels, queue


def test_the_warm_up_is_an_image_of_the_golden_sample(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", SM90))
    packaged(bundle, tmp_path / "package")
    with np.load(bundle.folder / GOLDEN) as golden:
        wanted = golden["input"][0]
    for warm_up in config(tmp_path / "package").model_warmup:
        given = warm_up.inputs["input"]
        file = tmp_path / "package/models/colours-fp32/warmup" / given.input_data_file
        assert tuple(given.dims) == wanted.shape
        assert np.array_equal(np.frombuffer(file.read_bytes(), np.float32), wanted.reshape(-1))


@pytest.mark.parametrize("batch", [2, 3])
def test_a_fixed_batch_is_filled_for_the_warm_up(batch: int, tmp_path: Path) -> None:
    bundle = changed(
        write_bundle(tmp_path / "bundle", replace(SM90, profile=ShapeProfile(batch, batch, batch))),
        inputs=(replace(IMAGE, shape=(batch, 3, SIZE, SIZE)),),
        outputs=(replace(LOGITS, shape=(batch, 3)),),
    )
    packaged(bundle, tmp_path / "package")
    with np.load(bundle.folder / GOLDEN) as golden:
        two = golden["input"]
    (warm_up,) = config(tmp_path / "package").model_warmup
    given = warm_up.inputs["input"]
    assert tuple(given.dims) == (batch, 3, SIZE, SIZE)
    file = tmp_path / "package/models/colours-fp32/warmup" / given.input_data_file
    found = np.frombuffer(file.read_bytes(), np.float32).reshape(given.dims)
    assert np.array_equal(found, np.stack([two[place % 2] for place in range(batch)]))


def test_bytes_are_warmed_up_with_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    sample: Any = Golden(cast("Any", pixels), np.zeros((2, 3), np.float32))
    monkeypatch.setattr(Golden, "read", lambda _: sample)
    bundle = changed(
        write_bundle(tmp_path / "bundle", SM90),
        inputs=(TensorSpec("input", "uint8", ("N", SIZE, SIZE, 3)),),
    )
    packaged(bundle, tmp_path / "package")
    (first, _) = config(tmp_path / "package").model_warmup
    file = tmp_path / "package/models/colours-fp32/warmup" / first.inputs["input"].input_data_file
    assert file.read_bytes() == pixels[0].tobytes()


def test_without_a_sample_zeros_warm_up_and_a_note_says_so(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", SM90))
    kept = {name: each for name, each in bundle.manifest.files.items() if name != GOLDEN}
    packed = packaged(changed(bundle.folder, files=kept), tmp_path / "package")
    assert config(tmp_path / "package").model_warmup[0].inputs["input"].zero_data is True
    assert any("warm-up feeds zeros: bundle has no golden.npz" in note for note in packed.notes)


def test_what_the_sample_does_not_have_is_zeros(tmp_path: Path) -> None:
    bundle = changed(write_bundle(tmp_path / "bundle", SM90), inputs=(IMAGE, BLOOD))
    packed = packaged(bundle, tmp_path / "package")
    inputs = config(tmp_path / "package").model_warmup[0].inputs
    assert inputs["blood"].zero_data
    assert tuple(inputs["blood"].dims) == (5,)
    assert inputs["input"].input_data_file
    assert any("feeds zeros to blood" in note for note in packed.notes)


def test_labels_name_the_values_of_the_heads_output(tmp_path: Path) -> None:
    features = TensorSpec("features", "float32", ("N", 7))
    bundle = changed(
        write_bundle(tmp_path / "bundle", SM90),
        outputs=(features, LOGITS),
        head=HeadRecord("multiclass", "logits"),
    )
    packaged(bundle, tmp_path / "package")
    labels = [each.label_filename for each in config(tmp_path / "package").output]
    assert labels == ["", "labels.txt"]
    file = tmp_path / "package" / "models" / "colours-fp32" / "labels.txt"
    assert file.read_text(encoding="utf-8") == "red\ngreen\nblue\n"


def test_labels_stay_away_from_what_they_do_not_name(tmp_path: Path) -> None:
    bundle = changed(write_bundle(tmp_path / "bundle", SM90), head=HeadRecord("raw"))
    packaged(bundle, tmp_path / "package")
    assert config(tmp_path / "package").output[0].label_filename == ""
    assert not list((tmp_path / "package").rglob(LABELS))


@pytest.mark.parametrize("activation", ["argmax", "top_k"])
def test_names_of_class_numbers_are_for_the_reader_alone(activation: str, tmp_path: Path) -> None:
    head = HeadRecord("multiclass", None, activation)
    packaged(changed(write_bundle(tmp_path / "bundle", SM90), head=head), tmp_path / "package")
    assert config(tmp_path / "package").output[0].label_filename == ""
    file = tmp_path / "package" / "models" / "colours-fp32" / "labels.txt"
    assert file.read_text(encoding="utf-8") == "red\ngreen\nblue\n"
    page = (tmp_path / "package" / "README.md").read_text(encoding="utf-8")
    assert "/labels.txt` | names of the classes: class number 0 is the first line |" in page


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (PixelInput("nhwc", "rgb"), "(N, H, W, 3), with the colours in the order rgb"),
        (PixelInput("nchw", "bgr"), "(N, 3, H, W), with the colours in the order bgr"),
        (None, ", channels rgb, divide by 255, "),
    ],
)  # fmt: skip
def test_the_page_says_the_order_of_the_colours(
    pixels: PixelInput | None, said: str, tmp_path: Path
) -> None:
    opened = Bundle.open(write_bundle(tmp_path / "bundle", SM90))
    steps = replace(opened.manifest.preprocessing, pixels=pixels)
    packaged(changed(opened.folder, preprocessing=steps), tmp_path / "package")
    assert said in (tmp_path / "package" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (None, "cut 32x32 from the centre, divide by 255, subtract (0.5), divide by (0.5)."),
        (PixelInput("nhwc", "grey"), "bytes of 0 to 255, (N, H, W, 1), and does the rest itself."),
    ],
)
def test_the_page_says_how_images_become_grey(
    pixels: PixelInput | None, said: str, tmp_path: Path
) -> None:
    steps = replace(Preprocessing.assumed((32, 32), 1), resize=None, pixels=pixels)
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", SM90))
    packaged(changed(bundle.folder, preprocessing=steps), tmp_path / "package")
    page = (tmp_path / "package" / "README.md").read_text(encoding="utf-8")
    assert "prepares it: make it grey (ITU-R 601, as Pillow's mode L), cut 32x32" in page
    assert said in page


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    packaged(Bundle.open(write_bundle(tmp_path / "bundle", SM90)), tmp_path / "package")
    policy = config(tmp_path / "package").dynamic_batching.default_queue_policy
    assert policy.max_queue_size == 16 * 4
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
    assert policy.default_timeout_microseconds == 1_000_000
    assert policy.allow_timeout_override is True


def test_a_smallest_batch_above_one_is_said(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", replace(SM90, profile=ShapeProfile(2, 4, 8)))
    packed = packaged(Bundle.open(bundle), tmp_path / "package")
    assert any("refuse batches of fewer than 2" in note for note in packed.notes)
    assert [each.batch_size for each in config(tmp_path / "package").model_warmup] == [2, 4]


# --- names, types, what runs


def test_a_name_is_one_that_an_address_may_have(tmp_path: Path) -> None:
    bundle = changed(write_bundle(tmp_path / "bundle", SM90), name="my net/é")
    packed = packaged(bundle, tmp_path / "package")
    assert packed.facts["model"] == "my_net__"
    assert config(tmp_path / "package", "my_net__").name == "my_net__"


def test_a_tensors_name_is_kept_whatever_it_is(tmp_path: Path) -> None:
    name = 'images "é"\\0'
    bundle = changed(write_bundle(tmp_path / "bundle", SM90), inputs=(replace(IMAGE, name=name),))
    packaged(bundle, tmp_path / "package")
    assert config(tmp_path / "package").input[0].name == name


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        ("float16", "TYPE_FP16"),
        ("float64", "TYPE_FP64"),
        ("bfloat16", "TYPE_BF16"),
        ("int8", "TYPE_INT8"),
        ("uint16", "TYPE_UINT16"),
        ("int32", "TYPE_INT32"),
    ],
)
def test_element_types(dtype: str, wanted: str, tmp_path: Path) -> None:
    spec = replace(IMAGE, dtype=dtype)
    packaged(changed(write_bundle(tmp_path / "bundle", SM90), inputs=(spec,)), tmp_path / "package")
    found = config(tmp_path / "package").input[0].data_type
    assert model_config_pb2.DataType.Name(found) == wanted


def test_an_element_type_that_triton_lacks(tmp_path: Path) -> None:
    spec = replace(LOGITS, dtype="complex64")
    bundle = changed(write_bundle(tmp_path / "bundle", SM90), outputs=(spec,))
    with pytest.raises(BundleError, match=r"'logits' holds complex64, for which Triton has no"):
        packaged(bundle, tmp_path / "package")


def test_onnxruntime_runs_what_it_has_kernels_for(tmp_path: Path) -> None:
    """A graph of BF16 is compiled from the model, and run in its form for CPUs until then."""
    folder = write_bundle(tmp_path / "bundle")
    (folder / CPU_MODEL).write_bytes((folder / MODEL).read_bytes())
    opened = Bundle.open(folder)
    onnx = replace(opened.manifest.onnx, precision=Precision("bf16"))
    files = {**opened.manifest.files, CPU_MODEL: sha256_of(folder / CPU_MODEL)}
    manifest = replace(opened.manifest, onnx=onnx, files=files, precision=Precision("bf16"))
    packed = packaged(Bundle(folder, manifest), tmp_path / "package")
    assert packed.facts["graph"] == CPU_MODEL
    assert (tmp_path / "package/source/model.onnx").is_file()
    script = (tmp_path / "package/build.sh").read_text(encoding="utf-8")
    assert "onnx=source/model.onnx" in script
    assert any("no kernels for bf16" in note for note in packed.notes)
    files.pop(CPU_MODEL)
    with pytest.raises(BundleError, match=r"onnxruntime has no kernels for colours-fp32 \(bf16\)"):
        packaged(Bundle(folder, replace(manifest, files=files)), tmp_path / "other")


def test_an_open_dimension_that_nobody_knows_leaves_the_script_out(tmp_path: Path) -> None:
    words = TensorSpec("words", "int64", ("N", "length"))
    bundle = changed(write_bundle(tmp_path / "bundle"), inputs=(IMAGE, words))
    packed = packaged(bundle, tmp_path / "package")
    assert packed.facts["build"] is None
    assert any(note.startswith("no build.sh") for note in packed.notes)
    assert tuple(config(tmp_path / "package").model_warmup[0].inputs["words"].dims) == (1,)


def test_a_changed_file_stops_it(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", SM90)
    (bundle / SM90.file).write_text("something else")
    with pytest.raises(IntegrityError, match="has sha256"):
        packaged(Bundle.open(bundle), tmp_path / "package")


# --- the container


def test_the_container_is_the_one_with_the_plans_tensorrt(tmp_path: Path) -> None:
    known = triton_containers()[0]
    engine = replace(SM90, compiler_version=known.tensorrt)
    packed = packaged(Bundle.open(write_bundle(tmp_path / "bundle", engine)), tmp_path / "package")
    assert packed.facts["container"] == known.image
    page = (tmp_path / "package/README.md").read_text(encoding="utf-8")
    assert "perf_analyzer -m colours-fp32" in page
    assert f"{known.image}-sdk" in page
    assert known.source in page


def test_an_unknown_tensorrt_is_said_and_not_guessed(tmp_path: Path) -> None:
    packed = packaged(Bundle.open(write_bundle(tmp_path / "bundle", SM90)), tmp_path / "package")
    assert packed.facts["container"] is None
    assert any("which container has TensorRT 11.4.0.106 is not known" in n for n in packed.notes)
    page = (tmp_path / "package/README.md").read_text(encoding="utf-8")
    assert "support-matrix" in page
    assert "No container with it is known here" in page


def test_a_named_container_is_taken_and_called_uncompared(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", SM90))
    packed = packaged(bundle, tmp_path / "package", image="triton:mine")
    assert packed.facts["container"] == "triton:mine"
    assert "nobody compared" in (tmp_path / "package/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("engines", [(), (SM90,)])
@pytest.mark.parametrize("image", ["triton:mine", "registry.local/a b;reboot:1"])
def test_no_container_of_clients_is_made_up_beside_a_named_one(
    engines: tuple[EngineRecord, ...], image: str, tmp_path: Path
) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", *engines))
    packaged(bundle, tmp_path / "package", image=image)
    page = (tmp_path / "package/README.md").read_text(encoding="utf-8")
    assert f"{image}-sdk" not in page
    assert "\nSDK_IMAGE is a container with `perf_analyzer`" in page
    commands = [shlex.split(text.replace("\\\n", " ")) for text in page.split("```\n")[1::2]]
    runs = [words for words in commands if words[:2] == ["docker", "run"]]
    assert [len({image, "SDK_IMAGE"} & set(words)) for words in runs] == [1, 1, 1]
    assert "SDK_IMAGE" in runs[-1]


def test_the_clients_of_a_known_release_go_with_a_named_container(tmp_path: Path) -> None:
    known = triton_containers()[0]
    engine = replace(SM90, compiler_version=known.tensorrt)
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", engine))
    packaged(bundle, tmp_path / "package", image="triton:mine")
    page = (tmp_path / "package/README.md").read_text(encoding="utf-8")
    assert f"--net=host {known.image}-sdk \\\n" in page


def test_every_row_of_the_table_has_a_source() -> None:
    rows = triton_containers()
    assert [row.release for row in rows] == sorted({row.release for row in rows}, reverse=True)
    assert all(len(row.tensorrt.split(".")) == 4 and row.source for row in rows)
    assert all(container_for(row.tensorrt) is not None for row in rows)


# --- the page


def test_the_page_says_how_pixels_are_prepared(tmp_path: Path) -> None:
    steps = Preprocessing(crop=(SIZE, SIZE), resize=16, channel_order="bgr")
    bundle = changed(write_bundle(tmp_path / "bundle", SM90), preprocessing=steps)
    packaged(bundle, tmp_path / "package")
    page = (tmp_path / "package/README.md").read_text(encoding="utf-8")
    assert (
        "scale the shorter side to 16 (bilinear), cut 8x8 from the centre, channels bgr, divide by "
        "255, subtract (0.485, 0.456, 0.406), divide by (0.229, 0.224, 0.225)." in page
    )


def test_the_page_of_bytes_leaves_the_rest_to_the_model(tmp_path: Path) -> None:
    bundle = changed(
        write_bundle(tmp_path / "bundle", SM90),
        inputs=(TensorSpec("input", "uint8", ("N", SIZE, SIZE, 3)),),
        preprocessing=Preprocessing(crop=(SIZE, SIZE), resize=(9, 12)),
    )
    packaged(bundle, tmp_path / "package")
    page = (tmp_path / "package/README.md").read_text(encoding="utf-8")
    assert "scale to 9x12 (bilinear), cut 8x8 from the centre. The model takes the bytes" in page


def test_perf_analyzer_is_told_open_sizes(tmp_path: Path) -> None:
    bundle = changed(
        write_bundle(tmp_path / "bundle", replace(SM90, profile=OPEN_SIZES)),
        inputs=(replace(IMAGE, shape=("N", 3, "height", SIZE)),),
    )
    packaged(bundle, tmp_path / "package")
    page = (tmp_path / "package/README.md").read_text(encoding="utf-8")
    assert f"--shape input:3,{SIZE},{SIZE}" in page
