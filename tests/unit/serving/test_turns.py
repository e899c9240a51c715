"""The turns in which messages of gRPC are read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from deploykit.serving.limits import ServiceLimits
from deploykit.serving.refusals import Reason, RefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

grpc_face = pytest.importorskip("deploykit.serving.grpc_face")


async def nothing() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def something() -> AsyncIterator[bytes]:
    yield b"message"


def test_whoever_waits_too_long_for_a_turn_is_told_to_come_again() -> None:
    limits = ServiceLimits(read_timeout_s=0.05, max_held_bytes=10, max_request_bytes=10)

    async def scenario() -> None:
        turns = grpc_face._Turns(limits)
        stalled = [asyncio.create_task(turns.read(nothing())) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(RefusedError, match=r"other requests were read for 0\.05 s, try"):
            await turns.read(something())
        ends = await asyncio.gather(*stalled, return_exceptions=True)
        assert {type(each) for each in ends} == {RefusedError}
        assert isinstance(ends[0], RefusedError)
        assert ends[0].reason is Reason.NOT_READ
        assert await turns.read(something()) == b"message"

    asyncio.run(scenario())


def test_as_many_are_read_at_once_as_may_be_held() -> None:
    limits = ServiceLimits(max_held_bytes=35, max_request_bytes=10)

    async def scenario() -> None:
        turns = grpc_face._Turns(limits)
        begun, gate = [], asyncio.Event()

        async def slow(number: int) -> AsyncIterator[bytes]:
            begun.append(number)
            await gate.wait()
            yield b"message"

        reading = [asyncio.create_task(turns.read(slow(number))) for number in range(8)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert begun == [0, 1, 2]
        gate.set()
        assert await asyncio.gather(*reading) == [b"message"] * 8
        assert begun == list(range(8))

    asyncio.run(scenario())
