"""The committed messages: what the source compiles to, and what Triton's client speaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from deploykit.serving.compiled import COMPILED, SERVICE, compile_into, message

if TYPE_CHECKING:
    from pathlib import Path


def files_of(content: bytes) -> Any:
    from google.protobuf import descriptor_pb2

    return descriptor_pb2.FileDescriptorSet.FromString(content)


def test_what_is_committed_is_what_the_source_compiles_to(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    compile_into(tmp_path / "again.binpb")
    assert files_of((tmp_path / "again.binpb").read_bytes()) == files_of(COMPILED.read_bytes())


def test_a_source_that_is_no_protocol_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("grpc_tools")
    source = tmp_path / "bad.proto"
    source.write_text("message {", encoding="utf-8")
    monkeypatch.setattr("deploykit.serving.compiled.SOURCE", source)
    with pytest.raises(RuntimeError, match=r"protoc refused .*bad\.proto: exit code 1"):
        compile_into(tmp_path / "bad.binpb")


CALLS = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer",
)  # fmt: skip


def fields_of(descriptor: Any) -> dict[str, Any]:
    """Number, type and kind of each field, and the same of the messages in it."""
    own = {each.name: (each.number, each.type, each.is_repeated) for each in descriptor.fields}
    return own | {each.name: fields_of(each) for each in descriptor.nested_types}


@pytest.mark.parametrize(
    "name",
    [
        *(f"{call}{kind}" for kind in ("Request", "Response") for call in CALLS),
        "InferParameter",
        "InferTensorContents",
    ],
)
def test_fields_are_those_of_another_implementation(name: str) -> None:
    theirs = pytest.importorskip("tritonclient.grpc.service_pb2").DESCRIPTOR
    other = theirs.message_types_by_name[name]
    assert fields_of(message(name).DESCRIPTOR) == fields_of(other)


def test_the_service_is_called_as_in_another_implementation() -> None:
    theirs = pytest.importorskip("tritonclient.grpc.service_pb2").DESCRIPTOR
    service = theirs.services_by_name["GRPCInferenceService"]
    assert service.full_name == SERVICE
    (ours,) = files_of(COMPILED.read_bytes()).file[0].service
    assert {each.name for each in ours.method} <= {each.name for each in service.methods}
