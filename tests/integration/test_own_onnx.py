"""A user's own ``.onnx`` through the command: what is done to it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

import deploykit as deploykit_package
from tests import own_files
from tests.cli import Called, deploykit
from tests.graphs import graph, normal, run_ort

if TYPE_CHECKING:
    from tests.own_files import Array


pytestmark = pytest.mark.usefixtures("own_folder")


def export(model: onnx.ModelProto, folder: Path, *arguments: object) -> Called:
    (folder / "mine.onnx").write_bytes(model.SerializeToString())
    return deploykit(
        "export", folder / "mine.onnx", "--backend", "none", "-o", folder / "bundle", *arguments
    )


def exported(model: onnx.ModelProto, folder: Path, *arguments: object) -> Called:
    called = export(model, folder, *arguments, "--json")
    assert called.code == 0, called.err
    return called


def logits(path: Path, images: Array) -> Array:
    session = onnxruntime.InferenceSession(str(path))
    result = session.run(None, {session.get_inputs()[0].name: images})[0]
    return np.asarray(result)


def test_old_file_with_its_weights_among_the_inputs(tmp_path: Path) -> None:
    source = own_files.old(7)
    assert len(source.graph.input) > 1
    called = exported(source, tmp_path)
    steps = called.data["conversion"]["steps"]
    assert steps[0] == "raising the opset (from 7 to 20)"
    assert steps[1].startswith("folding constants (10 nodes became 4")
    assert [batch["batch"] for batch in called.data["validation"][0]["batches"]] == [1, 2, 5]
    made = onnx.load(tmp_path / "bundle" / "model.onnx")
    assert [value.name for value in made.graph.input] == ["x"]
    assert [node.op_type for node in made.graph.node] == ["Conv", "Relu", "Reshape", "Gemm"]
    images = normal(3, 3, 8, 8)
    np.testing.assert_allclose(
        logits(tmp_path / "bundle" / "model.onnx", images),
        run_ort(source, {"x": images})["y"],
        atol=1e-5,
    )


def test_an_output_whose_shape_the_file_does_not_say(tmp_path: Path) -> None:
    source = own_files.old(13)
    source.graph.output[0].type.tensor_type.ClearField("shape")
    exported(source, tmp_path)
    made = onnx.load(tmp_path / "bundle" / "model.onnx")
    assert [d.dim_value for d in made.graph.output[0].type.tensor_type.shape.dim][1] == 10


def channels_last(images: Array) -> Array:
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("batch", ["n", 2])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_images_with_channels_last(tmp_path: Path, precision: str, batch: int | str) -> None:
    """The original is asked with channels last, the bundle with channels first."""
    source = own_files.channels_last(batch, normalised=True)
    photographs = Path(deploykit_package.__file__).parent / "samples"
    calib = ("--calib", photographs) if precision == "int8" else ()
    called = exported(source, tmp_path, f"--{precision}", *calib)
    said = f"takes images ({batch}, 32, 32, 3), with channels last: the graph takes ({batch}, 3, 3"
    assert any(said in note and "is dropped" in note for note in called.data["notes"])
    assert called.data["conversion"]["steps"][0] == "putting the channels first"
    made = onnx.load(tmp_path / "bundle" / "model.onnx")
    assert [d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim][1:] == [3, 32, 32]
    assert [n.op_type for n in made.graph.node].count("Transpose") == 1  # before the pooling
    images = normal(6, 3, 32, 32)
    parts = [run_ort(source, {"x": channels_last(part)})["y"] for part in np.split(images, 3)]
    expected = np.concatenate(parts)
    found = logits(tmp_path / "bundle" / "model.onnx", images)
    # Of noise that looks like no photograph INT8 clips more than of what it was calibrated on.
    atol = {"fp32": 1e-5, "fp16": 0.02, "int8": 1.0}[precision] * np.abs(expected).max() / 10
    np.testing.assert_allclose(found, expected, atol=atol)
    assert deploykit("check", tmp_path / "bundle", "--json").data["ok"] is True


def test_channels_last_with_open_sizes_are_said_in_the_text_too(tmp_path: Path) -> None:
    sizes = ("--height", "24,32,40", "--width", "32")
    called = export(own_files.channels_last(size=("h", "w")), tmp_path, *sizes)
    assert called.code == 0, called.err
    assert "mine.onnx takes images (n, h, w, 3), with channels last" in " ".join(
        called.out.split()
    ) + " ".join(called.err.split())
    images = normal(2, 3, 40, 32)
    expected = run_ort(own_files.channels_last(size=("h", "w")), {"x": channels_last(images)})["y"]
    found = logits(tmp_path / "bundle" / "model.onnx", images)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("form", [(), ("--input", "uint8", "--mean", 0.5, "--std", 0.5)], ids=len)
def test_a_bundle_is_compared_with_its_original_of_channels_last(
    tmp_path: Path, form: tuple[object, ...]
) -> None:
    source, bundle = own_files.channels_last(), tmp_path / "bundle"
    exported(source, tmp_path, "--fp16", *form)
    called = deploykit("validate", bundle, tmp_path / "mine.onnx", "--json")
    assert called.code == 0, called.err
    assert called.data["reference"].endswith("mine.onnx")
    # One of them computes in FP16.
    assert any("the CPU rounds where an engine rounds" in note for note in called.data["notes"])
    assert all(0 < one["max_relative"] < 1e-2 for one in called.data["validation"]["batches"])
    for tensor in source.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            other = -onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(other, tensor.name))
    onnx.save(source, tmp_path / "other.onnx")
    assert deploykit("validate", bundle, tmp_path / "other.onnx").code != 0


def test_activations_with_channels_last_are_not_compared(tmp_path: Path) -> None:
    exported(own_files.channels_last(), tmp_path)
    called = deploykit("validate", tmp_path / "bundle", tmp_path / "mine.onnx", "--layers")
    assert called.code == 2
    assert "mine.onnx takes images with channels last, and so are its activations" in called.err


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_of_a_layer_with_states_the_last_one_alone_may_be_wanted(
    tmp_path: Path, precision: str
) -> None:
    source = graph(
        """g (float[n,3,16,16] x) => (float[n,8] y) {
            c = Conv <strides = [4,4]> (x, w)
            rows = Reshape (c, shape)
            steps = Transpose <perm = [2,0,1]> (rows)
            each, last = LSTM <hidden_size = 8> (steps, wi, wr)
            y = Squeeze (last, first)
        }""",
        {
            "w": normal(6, 3, 4, 4), "shape": np.array([0, 6, -1]), "first": np.array([0]),
            "wi": normal(1, 32, 6, seed=1), "wr": normal(1, 32, 8, seed=2),
        },
    )  # fmt: skip
    exported(source, tmp_path, f"--{precision}", "--head", "raw")
    images = normal(4, 3, 16, 16, seed=3)
    expected = run_ort(source, {"x": images})["y"]
    found = logits(tmp_path / "bundle" / "model.cpu.onnx", images)
    np.testing.assert_allclose(found, expected, atol={"fp16": 0.02, "bf16": 0.2}[precision])


def test_a_fixed_batch_is_opened(tmp_path: Path) -> None:
    source = own_files.written_shape(4, (4, 256))
    called = exported(source, tmp_path)
    steps = called.data["conversion"]["steps"]
    assert steps[0] == "opening the batch (run at batches 1, 2, 5, image by image)"
    images = normal(8, 3, 8, 8)
    parts = [run_ort(source, {"x": part})["y"] for part in np.split(images, 2)]
    found = logits(tmp_path / "bundle" / "model.onnx", images)
    np.testing.assert_allclose(found, np.concatenate(parts), atol=1e-5)
    called = deploykit("check", tmp_path / "bundle", "--json")
    assert called.data["ok"] is True


def test_a_fixed_batch_that_is_asked_for_stays(tmp_path: Path) -> None:
    called = exported(own_files.written_shape(4, (4, 256)), tmp_path, "--batch", 4)
    assert "the batch stays 4, as --batch 4 asks" in called.data["notes"]
    assert [batch["batch"] for batch in called.data["validation"][0]["batches"]] == [4, 4]


def mixing() -> onnx.ModelProto:
    """The images of a batch are compared with their mean."""
    nodes = [
        own_files.node("ReduceMean", ["x", "first"], ["m"], "centre"),
        own_files.node("Sub", ["x", "m"], ["d"], "sub"),
        own_files.node("GlobalAveragePool", ["d"], ["p"], "pool"),
        own_files.node("Flatten", ["p"], ["y"], "flat"),
    ]
    outputs = [own_files.tensor("y", onnx.TensorProto.FLOAT, (2, 3))]
    return own_files.model(nodes, {"first": np.array([0])}, batch=2, outputs=outputs)


def test_a_batch_that_cannot_be_opened_is_kept_with_the_reason(tmp_path: Path) -> None:
    called = exported(mixing(), tmp_path)
    reason, stays = (n for n in called.data["notes"] if "batch" in n and "preproc" not in n)
    assert reason.startswith(
        "opening the batch was left out: ReduceMean 'centre' gives (1, 3, 8, 8)"
    )
    assert stays == "the batch stays 2: every call takes so many images at once"
    assert [batch["batch"] for batch in called.data["validation"][0]["batches"]] == [2] * 4


def with_features(batch: int | str = "n") -> onnx.ModelProto:
    """Features first, then the logits, then the class."""
    nodes = [
        *own_files.convolution(),
        own_files.node("Flatten", ["n"], ["f"], "flat"),
        own_files.linear(),
        own_files.node("ArgMax", ["y"], ["label"], "best", axis=1, keepdims=0),
    ]
    outputs = [
        own_files.tensor("n", onnx.TensorProto.FLOAT, (batch, 4, 8, 8)),
        own_files.tensor("y", onnx.TensorProto.FLOAT, (batch, 10)),
        own_files.tensor("label", onnx.TensorProto.INT64, (batch,)),
    ]
    return own_files.model(nodes, own_files.weights(), batch=batch, outputs=outputs)


@pytest.mark.parametrize(("batch", "precision"), [("n", "fp32"), (1, "fp16")])
def test_logits_behind_other_outputs(tmp_path: Path, batch: int | str, precision: str) -> None:
    called = exported(with_features(batch), tmp_path, f"--{precision}")
    said, moved, *others = (note for note in called.data["notes"] if "output" in note)
    assert said.startswith("logits are the output 'y'; beside it: 'n'")
    assert "'label'" in said
    assert moved == "'y' was made the first output"
    # The class is no float; FP32 was compared on the way.
    assert len(others) == (precision == "fp16")
    assert all(n.startswith("output 'n' of the fp16 graph: largest error") for n in others)
    made = onnx.load(tmp_path / "bundle" / "model.onnx")
    assert [value.name for value in made.graph.output] == ["y", "n", "label"]
    assert deploykit("check", tmp_path / "bundle", "--json").data["ok"] is True


def test_logits_that_are_not_flat(tmp_path: Path) -> None:
    """As SqueezeNet of the ONNX model zoo ends: in a pooling."""
    nodes = [*own_files.convolution(), own_files.node("GlobalAveragePool", ["n"], ["y"], "pool")]
    outputs = [own_files.tensor("y", onnx.TensorProto.FLOAT, (1, 4, 1, 1))]
    source = own_files.model(nodes, own_files.weights(), batch=1, outputs=outputs)
    called = exported(source, tmp_path)
    assert "'y' was flattened to (batch, classes)" in called.data["notes"]
    images = normal(1, 3, 8, 8)
    found = logits(tmp_path / "bundle" / "model.onnx", images)
    np.testing.assert_allclose(found, run_ort(source, {"x": images})["y"][:, :, 0, 0], atol=1e-5)


def per_pixel_norm() -> onnx.ModelProto:
    """A BatchNorm that has statistics for each pixel, which opset 9 did away with."""
    norms: dict[str, Any] = {name: normal(4, 8, 8) ** 2 + 1 for name in "opqs"}
    nodes = [
        *own_files.convolution(spatial=1),
        own_files.node("BatchNormalization", ["n", *norms], ["e"], "late", spatial=0),
        own_files.node("Flatten", ["e"], ["f"], "flat"),
        own_files.linear(),
    ]
    return own_files.model(nodes, own_files.weights(**norms), opset=8)


def test_old_opset_that_cannot_be_raised_still_gives_fp16(tmp_path: Path) -> None:
    source = per_pixel_norm()
    called = exported(source, tmp_path, "--fp16")
    note = (
        "raising the opset was left out: opset 8 cannot be raised to 20: BatchNormalization 'late'"
    )
    assert any(n.startswith(note) for n in called.data["notes"])
    noise = ("--calib", "random", "--calib-count", 2)
    calibrated = export(source, tmp_path, "--int8", *noise, "--replace")
    assert calibrated.code == 1
    assert "this graph is of opset 8 and cannot be raised" in calibrated.err


def assert_refused(called: Called, folder: Path, *messages: str) -> None:
    assert called.code == 1, called.err
    for message in messages:
        assert message in called.err
    assert "Traceback" not in called.err
    assert not (folder / "bundle").exists()


def taking(*inputs: onnx.ValueInfoProto) -> onnx.ModelProto:
    nodes = [
        own_files.node("Flatten", [inputs[0].name], ["f"], "flat"),
        own_files.node("Cast", ["f"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    outputs = [own_files.tensor("y", onnx.TensorProto.FLOAT, None)]
    outputs[0].type.tensor_type.shape.dim.add()
    outputs[0].type.tensor_type.shape.dim.add()
    return own_files.model(nodes, {}, inputs=inputs, outputs=outputs)


@pytest.mark.parametrize(
    ("dtype", "shape", "words"),
    [
        ("UINT8", ("n", 3, 8, 8), "let it begin after the division by 255"),
        ("FLOAT", (3, 8, 8), "it has no batch axis"),
        ("DOUBLE", ("n", 3, 8, 8), "export it with a float32 input, x is float64"),
        ("BFLOAT16", ("n", 3, 8, 8), "x is bfloat16"),
    ],
)
def test_inputs_that_are_no_images(
    tmp_path: Path, dtype: str, shape: tuple[int | str, ...], words: str
) -> None:
    kind = onnx.TensorProto.DataType.Value(dtype)
    called = export(taking(own_files.tensor("x", kind, shape)), tmp_path)
    assert_refused(called, tmp_path, "mine.onnx takes x", "expected images, float32 (batch", words)


def test_classes_in_place_of_logits(tmp_path: Path) -> None:
    source = with_features()
    del source.graph.output[:2]
    head = exported(source, tmp_path).data["head"]
    assert head == {"kind": "multiclass", "output": "label", "activation": "argmax"}


def test_classes_with_names_as_scikit_learn_has_them(tmp_path: Path) -> None:
    source = with_features()
    source.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 1))
    source.graph.node.append(onnx.helper.make_node(
        "ZipMap", ["y"], ["chances"], domain="ai.onnx.ml", classlabels_int64s=list(range(10))
    ))  # fmt: skip
    one = onnx.helper.make_map_type_proto(7, onnx.helper.make_tensor_type_proto(1, ()))
    source.graph.output[0].CopyFrom(
        onnx.helper.make_value_info("chances", onnx.helper.make_sequence_type_proto(one))
    )
    called = export(source, tmp_path)
    assert_refused(called, tmp_path, "mine.onnx returns chances (sequence)", "the network alone")


def test_weights_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(normal(4, 3, 3, 3).tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    source = own_files.old(17)
    onnx.external_data_helper.set_external_data(source.graph.initializer[0], "../weights.bin")
    source.graph.initializer[0].ClearField("raw_data")
    called = export(source, folder)
    assert_refused(
        called, folder, "mine.onnx keeps 'w' in '../weights.bin', outside its own folder"
    )


def test_weights_in_bfloat16(tmp_path: Path) -> None:
    source = own_files.old(17)
    half = onnx.helper.make_tensor("half", onnx.TensorProto.BFLOAT16, [1], [1.0])
    source.graph.initializer.append(half)
    called = export(source, tmp_path, "--fp16")
    assert_refused(called, tmp_path, "mine.onnx has bfloat16 weights (1, as 'half')")


def test_the_file_is_only_read(tmp_path: Path) -> None:
    source = own_files.old(9)
    exported(source, tmp_path)
    assert (tmp_path / "mine.onnx").read_bytes() == source.SerializeToString()
    assert {path.name for path in tmp_path.iterdir()} == {
        "mine.onnx",
        "bundle",
    }


def test_int8_of_an_old_file_with_a_table_made_from_it(tmp_path: Path) -> None:
    """The table fits: calibrating and exporting make the same graph of the file."""
    source = own_files.old(9, batch=1, channels=16)
    (tmp_path / "mine.onnx").write_bytes(source.SerializeToString())
    table, count = tmp_path / "table.json", ("--calib-count", 10)
    called = deploykit("calibrate", tmp_path / "mine.onnx", "--data", "random", *count, "-o", table)
    assert called.code == 0, called.err
    made = exported(source, tmp_path, "--int8", "--calib", "random", *count, "--calib-table", table)
    assert made.data["calibration"]["story"].startswith("used again")
    graph = onnx.load(tmp_path / "bundle" / "model.onnx").graph
    assert "QuantizeLinear" in {node.op_type for node in graph.node}
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    assert {"conv", "fc"} <= {node.name for node in graph.node}


def of_four(last: str, outputs: str) -> onnx.ModelProto:
    """Four images at a time: their logits (4, 10), and what is ``last``."""
    return graph(
        f"""g (float[4,3,8,8] x) => ({outputs}) {{
            c = Conv <strides = [2,2]> (x, w)
            p = GlobalAveragePool (c)
            f = Flatten (p)
            l = Gemm <transB = 1> (f, v)
            {last}
        }}""",
        {
            "w": normal(16, 3, 3, 3),
            "v": normal(10, 16, seed=1),
            "two": np.array([2, 20]),
            "all": np.array([-1]),
            "first": np.array([0]),
        },
    )


@pytest.mark.parametrize(
    ("last", "outputs", "where"),
    [
        ("y = Transpose (l)", "float[10,4] y", "comes second"),
        ("y = Reshape (l, all)", "float[40] y", "is at no place of its own"),
        ("y = Reshape (l, two)", "float[2,20] y", "is at no place of its own"),
        ("y = ReduceMean (l, first)", "float[1,10] y", "is at no place of its own"),
    ],
)
def test_classes_of_a_fixed_batch_that_is_not_first_are_refused(
    last: str, outputs: str, where: str, tmp_path: Path
) -> None:
    model = of_four(last, outputs)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [each for each in model.graph.initializer if each.name not in used]:
        model.graph.initializer.remove(tensor)
    called = export(model, tmp_path)
    assert called.code == 1
    assert f"in which the batch {where}: not (batch" in called.err
    assert "--head raw" in called.err
    assert not (tmp_path / "bundle").exists()


def test_as_many_images_as_classes_are_told_apart_by_their_order(tmp_path: Path) -> None:
    """Sizes cannot tell: (4, 4) is either."""
    model = of_four("s = Slice (l, first, four, one) y = Transpose (s)", "float[4,4] y")
    for name, value in (("four", [4]), ("one", [1])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    for tensor in [each for each in model.graph.initializer if each.name in {"two", "all"}]:
        model.graph.initializer.remove(tensor)
    called = export(model, tmp_path, "--head", "multiclass")
    assert called.code == 1
    assert "in which the batch comes second" in called.err


def test_sequences_of_a_fixed_batch_come_first_as_they_do_of_any(tmp_path: Path) -> None:
    """As many steps as images: (T, N, C) = (4, 4, 16), and the steps of image 0 are wanted."""
    model = graph(
        """g (float[4,3,8,8] x) => (float[4,4,16] y) {
            c = Conv <strides = [2,2], pads = [1,1,1,1]> (x, w)
            m = ReduceMean <keepdims = 0> (c, rows)
            y = Transpose <perm = [2,0,1]> (m)
        }""",
        {"w": normal(16, 3, 3, 3), "rows": np.array([2])},
    )
    exported(model, tmp_path, "--head", "raw")
    images = normal(4, 3, 8, 8)
    found = run_ort(onnx.load(tmp_path / "bundle" / "model.onnx"), {"x": images})["y"]
    expected = run_ort(model, {"x": images})["y"].swapaxes(0, 1)
    np.testing.assert_allclose(found, expected, atol=0.05)
