"""The protocol's gRPC messages, made from the compiled `grpc_service.proto` beside this file.

``python -m deploykit.serving.compiled`` compiles it again, with grpcio-tools, into
``grpc_service.binpb``, a FileDescriptorSet that is committed. No Python code is generated: the
messages live in a pool of their own, so that a process may also import another program's messages
of the same names (tritonclient's, KServe's), and no version of protobuf's runtime is demanded.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

SOURCE: Final = Path(__file__).with_name("grpc_service.proto")
COMPILED: Final = SOURCE.with_suffix(".binpb")
SERVICE: Final = "inference.GRPCInferenceService"


@cache
def message(name: str) -> Any:
    """The class of a message, as ``ModelInferRequest``."""
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"inference.{name}"))


@cache
def _pool() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool

    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(COMPILED.read_bytes()).file:
        pool.Add(file)
    return pool


def compile_into(path: Path) -> None:
    """Compile the source into ``path``.

    Raises:
        RuntimeError: the compiler refused it.
    """
    from grpc_tools import protoc

    folder = str(SOURCE.parent)
    code = protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={path}", str(SOURCE)])
    if code:
        raise RuntimeError(f"protoc refused {SOURCE}: exit code {code}")


if __name__ == "__main__":
    compile_into(COMPILED)
    sys.stdout.write(f"{COMPILED}\n")
