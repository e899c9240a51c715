"""Requests and tensors of the protocol: its specification's own examples, and what is refused."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest

from deploykit.core.errors import UsageError
from deploykit.core.specs import TensorSpec
from deploykit.serving.refusals import RefusedError
from deploykit.serving.requests import InferAnswer, InferRequest, Wanted, from_http, to_http
from deploykit.serving.tensors import (
    Tensor,
    datatype_of,
    from_list,
    from_raw,
    output_tensor,
    to_raw,
)

# The example of the protocol's specification, "Inference Request Examples":
# https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
SPECIFIED = """
{
  "id" : "42",
  "inputs" : [
    {
      "name" : "input0",
      "shape" : [ 2, 2 ],
      "datatype" : "UINT32",
      "data" : [ 1, 2, 3, 4 ]
    },
    {
      "name" : "input1",
      "shape" : [ 3 ],
      "datatype" : "BOOL",
      "data" : [ true ]
    }
  ],
  "outputs" : [
    {
      "name" : "output0"
    }
  ]
}
"""
# Of Triton's extension_binary_data.md: the same request with its tensors as 16 and 3 bytes.
SPECIFIED_BINARY = """{
  "model_name" : "mymodel",
  "inputs" : [
    {
      "name" : "input0",
      "shape" : [ 2, 2 ],
      "datatype" : "UINT32",
      "parameters" : {
        "binary_data_size" : 16
      }
    },
    {
      "name" : "input1",
      "shape" : [ 3 ],
      "datatype" : "BOOL",
      "parameters" : {
        "binary_data_size" : 3
      }
    }
  ],
  "outputs" : [
    {
      "name" : "output0",
      "parameters" : {
        "binary_data" : true
      }
    }
  ]
}"""


def parsed(text: str, tail: bytes = b"", length: str | None = None) -> InferRequest:
    head = text.encode()
    said = str(len(head)) if tail and length is None else length
    return from_http(memoryview(head + tail), said)


def one(length: str | None = None, tail: bytes = b"", **changes: Any) -> InferRequest:
    """A request of one tensor, which is right but for the changes; ``None`` leaves a key out."""
    tensor = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2.5]} | changes
    tensor = {key: value for key, value in tensor.items() if value is not None}
    return parsed(json.dumps({"inputs": [tensor]}), tail, length)


# --- what is specified


def test_the_request_of_the_specification() -> None:
    """Its second tensor has one value for a shape of three, which is refused as it stands."""
    with pytest.raises(RefusedError, match=r"input 'input1' has 1 values, \(3,\) has 3"):
        parsed(SPECIFIED)
    found = parsed(SPECIFIED.replace("[ true ]", "[ true, false, true ]"))
    assert found.id == "42"
    assert found.wanted == (Wanted("output0"),)
    first, second = found.inputs
    np.testing.assert_array_equal(first.array, np.array([[1, 2], [3, 4]], np.uint32), strict=True)
    np.testing.assert_array_equal(second.array, np.array([True, False, True]), strict=True)


def test_the_binary_request_of_the_specification() -> None:
    tail = struct.pack("<4I3?", 1, 2, 3, 4, True, False, True)
    assert len(tail) == 19
    found = parsed(SPECIFIED_BINARY, tail)
    assert found.wanted == (Wanted("output0", is_binary=True),)
    first, second = found.inputs
    np.testing.assert_array_equal(first.array, np.array([[1, 2], [3, 4]], np.uint32), strict=True)
    np.testing.assert_array_equal(second.array, np.array([True, False, True]), strict=True)


OUTPUT = np.array([[1.0, 1.1], [2.0, 2.1], [3.0, 3.1]], np.float32)


def test_the_answer_of_the_specification() -> None:
    answer = InferAnswer("mymodel", "1", "42", ((output_tensor("output0", OUTPUT), Wanted("o")),))
    body, json_length = to_http(answer)
    assert json_length is None
    found = json.loads(body)
    assert found.pop("model_name") == "mymodel"
    assert found.pop("model_version") == "1"
    (output,) = found.pop("outputs")
    assert found == {"id": "42"}
    assert output.pop("data") == pytest.approx([1.0, 1.1, 2.0, 2.1, 3.0, 3.1])
    assert output == {"name": "output0", "shape": [3, 2], "datatype": "FP32"}


def test_the_binary_answer_of_the_specification() -> None:
    wanted = Wanted("output0", is_binary=True)
    body, length = to_http(InferAnswer("m", "1", "", ((output_tensor("output0", OUTPUT), wanted),)))
    assert length is not None
    assert len(body) - length == 24
    assert struct.unpack("<6f", body[length:]) == pytest.approx(OUTPUT.ravel().tolist())
    (output,) = json.loads(body[:length])["outputs"]
    expected: dict[str, Any] = {"name": "output0", "shape": [3, 2], "datatype": "FP32"}
    assert output == expected | {"parameters": {"binary_data_size": 24}}


# --- values


@pytest.mark.parametrize(
    ("datatype", "code"),
    [
        ("BOOL", "?"), ("UINT8", "B"), ("UINT16", "H"), ("UINT32", "I"), ("UINT64", "Q"),
        ("INT8", "b"), ("INT16", "h"), ("INT32", "i"), ("INT64", "q"), ("FP16", "e"),
        ("FP32", "f"), ("FP64", "d"),
    ],
)  # fmt: skip
def test_every_type_as_bytes_and_as_a_list(datatype: str, code: str) -> None:
    raw = struct.pack(f"<6{code}", *(1, 0, 1, 1, 0, 0))
    values = [bool(each) if datatype == "BOOL" else each for each in (1, 0, 1, 1, 0, 0)]
    by_bytes = from_raw("x", datatype, (2, 3), memoryview(raw))
    by_list = from_list("x", datatype, (2, 3), values)
    np.testing.assert_array_equal(by_bytes.array, by_list.array, strict=True)
    assert by_bytes.array.tolist() == [values[:3], values[3:]]
    assert to_raw(by_list) == raw
    assert datatype_of(TensorSpec("x", by_list.array.dtype.name, (2, 3))) == datatype


def test_bytes_have_their_lengths_before_them() -> None:
    raw = b"\x03\0\0\0abc\0\0\0\0\x01\0\0\0z"
    tensor = from_raw("x", "BYTES", (3,), memoryview(raw))
    assert tensor.elements == [b"abc", b"", b"z"]
    assert to_raw(tensor) == raw


def test_bytes_that_lie_crooked_are_copied() -> None:
    raw = memoryview(b"\0" + struct.pack("<2f", 1, 2))[1:]
    array = from_raw("x", "FP32", (2,), raw).array
    assert array.flags.aligned
    assert array.tolist() == [1, 2]


def test_json_may_be_nested_and_bytes_in_base64() -> None:
    nested = one(shape=[2, 2], data=[[1, 2], [3, 4]]).inputs[0]
    assert nested.array.tolist() == [[1, 2], [3, 4]]
    assert one(shape=[2], data=[[[1]], [[2]]]).inputs[0].array.tolist() == [1, 2]
    assert one(shape=[1, 2, 1], data=[[1, 2]]).inputs[0].array.tolist() == [[[1], [2]]]
    text = one(datatype="BYTES", data=["abc", "é"]).inputs[0]
    assert text.elements == [b"abc", "é".encode()]
    encoded = base64.b64encode(bytes(range(9))).decode()
    image = one(
        datatype="BYTES", shape=[1], data=[encoded], parameters={"content_type": "base64"}
    ).inputs[0]
    assert image.elements == [bytes(range(9))]


def test_bytes_go_out_as_text_or_with_their_lengths() -> None:
    tensor = Tensor("y", "BYTES", (1, 1), [b"0.5:1:cat"])
    body, _ = to_http(InferAnswer("m", "1", "", ((tensor, Wanted("y")),)))
    assert json.loads(body)["outputs"][0]["data"] == ["0.5:1:cat"]
    body, length = to_http(InferAnswer("m", "1", "", ((tensor, Wanted("y", is_binary=True)),)))
    assert body[length:] == b"\x09\0\0\0" + b"0.5:1:cat"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_does_not_have_is_asked_for_as_bytes(value: float) -> None:
    tensor = output_tensor("y", np.array([[value]], np.float32))
    with pytest.raises(RefusedError, match=r"'y' has NaN or infinite values, which JSON does not"):
        to_http(InferAnswer("m", "1", "", ((tensor, Wanted("y")),)))
    body, length = to_http(InferAnswer("m", "1", "", ((tensor, Wanted("y", is_binary=True)),)))
    np.testing.assert_array_equal(np.frombuffer(body[length:], "<f4"), [value])


def test_a_type_without_a_name_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'x' is of type bfloat16, which the protocol has no"):
        datatype_of(TensorSpec("x", "bfloat16", (1,)))


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "input 'x': expected either data or binary_data_size"),
        ({"data": [1]}, r"input 'x' has 1 values, \(2,\) has 2"),
        ({"data": [1, "a"]}, r"data of input 'x': Expected `float`, got `str`"),
        ({"data": [1, None]}, r"Expected `float`, got `null`"),
        ({"data": [[1], 2]}, "data of input 'x' mixes values and lists"),
        ({"data": [[1], [2, 3]]}, "data of input 'x' has lists of different lengths"),
        ({"shape": [1, 2, 3], "data": np.zeros((1, 3, 2)).tolist()},
         r"data of input 'x' is nested as \(1, 3, 2\), its shape is \(1, 2, 3\): expected lists"),
        ({"shape": [2, 3], "data": np.zeros((2, 4)).tolist()}, r"is nested as \(2, 4\), its shape"),
        ({"shape": [6], "data": np.zeros((2, 3)).tolist()}, r"is nested as \(2, 3\), its shape is"),
        ({"data": 7}, r"Expected `array`, got `int`"),
        ({"data": {"a": 1}}, r"Expected `array`, got `object`"),
        ({"shape": [-1, -2]}, r"input 'x' has the shape \(-1, -2\): a size is below zero"),
        ({"shape": [2**63 - 1, 2**63 - 1]}, r"has 2 values, \(9223372036854775807, "),
        ({"shape": [1] * 17}, "input 'x' has 17 dimensions, at most 16"),
        ({"shape": [2.5]}, r"Expected `int`, got `float`"),
        ({"shape": "2"}, r"Expected `array`, got `str`"),
        ({"datatype": "FLOAT"}, "input 'x' is of type 'FLOAT'; possible: BOOL, UINT8"),
        ({"datatype": "INT8", "data": [1, 300]}, "input 'x' has a value that is no INT8"),
        ({"datatype": "UINT8", "data": [1, -1]}, "input 'x' has a value that is no UINT8"),
        ({"datatype": "INT32", "data": [1, 2.5]}, r"Expected `int`, got `float`"),
        ({"datatype": "BOOL", "data": [1, 0]}, r"Expected `bool`, got `int`"),
        ({"datatype": "BYTES", "data": ["a", "b"], "parameters": {"content_type": "base64"}},
         "data of input 'x' is no base64"),
        ({"parameters": {"binary_data_size": 8}}, "expected either data or binary_data_size"),
        ({"name": None}, r"missing required field `name`"),
    ],
)  # fmt: skip
def test_a_wrong_tensor_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        one(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the request is no JSON of the protocol"),
        ("[]", r"Expected `object`, got `array`"),
        ("{}", r"missing required field `inputs`"),
        ('{"inputs": [', "the request is no JSON of the protocol"),
        ('{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [NaN]}]}', "no JSON"),
        ('{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1e999]}]}', "range"),
        ('{"inputs": [], "x": ' + "[" * 10**6 + "]" * 10**6 + "}", "the request is nested too"),
        ('{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": '
         + "[" * 10**6 + "]" * 10**6 + "}]}", "nested too deeply"),
        ('{"inputs": [], "id": "' + "a" * 1025 + '"}', "the id has 1025 characters, at most 1024"),
        ('{"inputs": [], "id": 7}', r"Expected `str`, got `int`"),
        ('{"inputs": [], "parameters": {"timeout": 0}}', "timeout is 0, expected microseconds"),
        ('{"inputs": [], "parameters": {"binary_data_output": 1}}', "binary_data_output is 1"),
        ('{"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]}',
         "binary_data is 'yes', expected true or false"),
        ('{"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": -1}}]}',
         "output 'y': classification is -1, expected 0 or more"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused(text: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        parsed(text)


def test_text_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(RefusedError, match="no JSON of the protocol"):
        from_http(memoryview(b'{"inputs": [], "id": "\xff"}'), None)


def binary(size: Any, tail: bytes, **changes: Any) -> InferRequest:
    return one(data=None, parameters={"binary_data_size": size}, tail=tail, **changes)


@pytest.mark.parametrize(
    ("size", "tail", "changes", "message"),
    [
        (8, b"\0" * 7, {}, "binary_data_size is 8, 7 bytes are left of the body"),
        (8, b"\0" * 9, {}, "1 bytes follow the inputs, which no binary_data_size names"),
        (7, b"\0" * 7, {}, r"input 'x' came as 7 bytes, FP32 \(2,\) has 8"),
        (-8, b"\0" * 8, {}, "binary_data_size is -8, expected bytes"),
        ("8", b"\0" * 8, {}, "binary_data_size is '8', expected bytes"),
        (True, b"\0", {}, "binary_data_size is True, expected bytes"),
        (10**30, b"\0", {}, "1 bytes are left of the body"),
        (8, b"\0" * 8, {"shape": [-2]}, "a size is below zero"),
        (4, b"\xff" * 4, {"datatype": "BYTES", "shape": [1]}, "ends in the middle of element 0"),
        (5, b"\0" * 5, {"datatype": "BYTES", "shape": [1]}, "has 1 bytes after its 1 elements"),
        (4, b"\0" * 4, {"datatype": "BYTES", "shape": [10**9]}, "ends before its 1000000000"),
        (9, b"\x02\0\0\0aa\0\0\0", {"datatype": "BYTES"}, "ends in the middle of element 1"),
    ],
)  # fmt: skip
def test_wrong_bytes_are_refused(
    size: Any, tail: bytes, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RefusedError, match=message):
        binary(size, tail, **changes)


@pytest.mark.parametrize("length", ["-1", "1e3", "", "9" * 30, "٣", "0x10"])
def test_a_length_of_the_json_that_is_none_is_refused(length: str) -> None:
    with pytest.raises(
        RefusedError, match=r"Inference-Header-Content-Length is .*, expected a num"
    ):
        one(length)


def test_a_length_beyond_the_body_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"Inference-Header-Content-Length is 10000, the body"):
        one("10000")


def test_a_timeout_is_in_microseconds() -> None:
    assert parsed('{"inputs": [], "parameters": {"timeout": 250000}}').timeout_s == 0.25
    assert parsed('{"inputs": []}').timeout_s is None
