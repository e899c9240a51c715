"""Choice of one GPU of several: by its number, its PCI bus id or its UUID."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.core.environment import Gpu

ENGINE_DEVICE: Final = "cuda"
"""What a GPU that is named alone stands for: an engine on it."""

_BUS_ID: Final = re.compile(
    r"(?:(?P<domain>[0-9a-f]{4,8}):)?(?P<place>[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f])", re.IGNORECASE
)
_UUID: Final = re.compile(r"(?:GPU|MIG)-[0-9a-f-]+", re.IGNORECASE)


def split_device(device: str) -> tuple[str, str]:
    """Name of a device and which GPU it is on, empty where that was not said.

    >>> split_device("cuda:1"), split_device("cpu")
    (('cuda', '1'), ('cpu', ''))
    >>> split_device("0000:3b:00.0"), split_device("cuda:GPU-8f9a41c7")
    (('cuda', '0000:3b:00.0'), ('cuda', 'GPU-8f9a41c7'))

    Raises:
        UsageError: nothing stands behind a colon.
    """
    if _BUS_ID.fullmatch(device) or _UUID.fullmatch(device):
        return ENGINE_DEVICE, device
    name, colon, which = device.partition(":")
    if colon and not which:
        raise UsageError(
            f"the device {device!r} names no GPU behind its colon\n"
            f"expected {name}, or one of several: {name}:1, a PCI bus id, a UUID"
        )
    return name, which


def device_label(name: str, gpu: Gpu | None) -> str:
    """Name of a device with the number of its GPU, where that is not the first.

    >>> from deploykit.core.environment import Gpu
    >>> device_label("cuda", Gpu("L4", "8.9", 2**34, index=1)), device_label("cpu", None)
    ('cuda:1', 'cpu')
    """
    return f"{name}:{gpu.index}" if gpu is not None and gpu.index else name


def visible_alone(gpu: Gpu) -> str:
    """What ``CUDA_VISIBLE_DEVICES`` is in a process that is to see this GPU and no other.

    Raises:
        UsageError: the driver does not tell its UUID.
    """
    if not gpu.uuid:
        raise UsageError(
            f"the driver does not tell the UUID of {_described(gpu)}\n"
            "choose the GPU with CUDA_VISIBLE_DEVICES instead"
        )
    return gpu.uuid


def with_first(gpus: Sequence[Gpu], which: str) -> tuple[Gpu, ...]:
    """The GPUs with the wanted one before the others: the first is the one that is used.

    ``which`` is the driver's number of a GPU, its PCI bus id, or its UUID or enough of one's
    beginning. Empty means the driver's own first. Without any GPU there is nothing to choose.

    Raises:
        UsageError: there is no such GPU, or several begin so.
    """
    if not which or not gpus:
        return tuple(gpus)
    found = [gpu for gpu in gpus if _is_meant(gpu, which)]
    if len(found) != 1:
        listed = "; ".join(map(_described, gpus))
        how_many = "no GPU is" if not found else f"{len(found)} GPUs are"
        raise UsageError(
            f"{how_many} called {which!r}\npossible: {listed}\n"
            "CUDA_VISIBLE_DEVICES decides which of a machine's GPUs are shown"
        )
    return (*found, *(gpu for gpu in gpus if gpu is not found[0]))


def _is_meant(gpu: Gpu, which: str) -> bool:
    if which.isascii() and which.isdecimal():
        return gpu.index == int(which)
    if _UUID.fullmatch(which):
        return bool(gpu.uuid) and gpu.uuid.lower().startswith(which.lower())
    return _place_of(which) is not None and _place_of(which) == _place_of(gpu.bus_id)


def _place_of(bus_id: str) -> tuple[int, str] | None:
    """Domain, which tools write with four digits or eight, bus, device and function."""
    found = _BUS_ID.fullmatch(bus_id)
    return None if found is None else (int(found["domain"] or "0", 16), found["place"].lower())


def _described(gpu: Gpu) -> str:
    names = [f"{ENGINE_DEVICE}:{gpu.index}", gpu.name, gpu.bus_id, gpu.uuid]
    return ", ".join(name for name in names if name)
