"""One GPU of several, by every name that CUDA's own tools give it."""

from __future__ import annotations

import pytest

from deploykit.core.environment import Gpu
from deploykit.core.errors import UsageError
from deploykit.core.gpu_choice import device_label, split_device, visible_alone, with_first

FIRST = Gpu("NVIDIA L4", "8.9", 1, 0, "0000:3B:00.0", "GPU-8f9a41c7-03e1-4d1c-9d6e-5a2b7c1d0e3f")
SECOND = Gpu("NVIDIA L4", "8.9", 1, 1, "0001:AF:00.0", "GPU-8f9b0000-03e1-4d1c-9d6e-5a2b7c1d0e3f")
PART = Gpu(
    "NVIDIA A100 MIG 1g.5gb",
    "8.0",
    1,
    2,
    "0000:3B:00.0",
    "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
)
GPUS = (FIRST, SECOND, PART)


@pytest.mark.parametrize(
    ("device", "parts"),
    [
        ("cuda", ("cuda", "")),
        ("cuda:1", ("cuda", "1")),
        ("ort-cuda:0001:af:00.0", ("ort-cuda", "0001:af:00.0")),
        ("3b:00.0", ("cuda", "3b:00.0")),
        ("00000000:3B:00.0", ("cuda", "00000000:3B:00.0")),  # as nvidia-smi writes it
        ("MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", ("cuda", PART.uuid)),
        ("toy", ("toy", "")),
    ],
)
def test_a_device_is_a_name_and_a_gpu(device: str, parts: tuple[str, str]) -> None:
    assert split_device(device) == parts


def test_a_colon_without_a_gpu_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"^the device 'cuda:' names no GPU behind its colon\nexpected cuda, or"
    ):
        split_device("cuda:")


@pytest.mark.parametrize(
    ("which", "gpu"),
    [
        ("", FIRST),
        ("0", FIRST),
        ("1", SECOND),
        ("01", SECOND),
        ("3b:00.0", None),  # the part of a GPU is at the same place
        ("1:af:00.0", None),
        ("0001:af:00.0", SECOND),
        ("00000001:AF:00.0", SECOND),
        ("0000:af:00.0", None),
        ("GPU-8f9a", FIRST),
        ("gpu-8F9B0000-03e1-4d1c-9d6e-5a2b7c1d0e3f", SECOND),
        ("GPU-8f9", None),  # two begin so
        (PART.uuid, PART),
        ("MIG-c6", PART),
        ("3", None),
        ("-1", None),
        ("first", None),
        ("²", None),
    ],
)
def test_the_one_that_is_meant_comes_first(which: str, gpu: Gpu | None) -> None:
    if gpu is None:
        with pytest.raises(UsageError, match=r"GPUs? (is|are) called .*\npossible: cuda:0, NVIDIA"):
            with_first(GPUS, which)
        return
    found = with_first(GPUS, which)
    assert found[0] == gpu
    assert sorted(found, key=lambda one: one.index) == list(GPUS)


def test_the_message_lists_them_by_all_their_names() -> None:
    with pytest.raises(UsageError) as caught:
        with_first((FIRST, SECOND), "7")
    assert str(caught.value) == (
        "no GPU is called '7'\n"
        f"possible: cuda:0, NVIDIA L4, 0000:3B:00.0, {FIRST.uuid}; "
        f"cuda:1, NVIDIA L4, 0001:AF:00.0, {SECOND.uuid}\n"
        "CUDA_VISIBLE_DEVICES decides which of a machine's GPUs are shown"
    )
    with pytest.raises(UsageError, match=r"^2 GPUs are called 'GPU-8f9'\n"):
        with_first(GPUS, "GPU-8f9")


def test_without_gpus_there_is_nothing_to_choose() -> None:
    assert with_first((), "cuda:1") == ()


def test_a_gpu_whose_names_are_unknown_is_called_by_its_number_alone() -> None:
    bare = Gpu("NVIDIA L4", "8.9", 1)
    assert with_first((bare,), "0") == (bare,)
    for which in ("GPU-", "00:00.0"):
        with pytest.raises(UsageError, match=r"possible: cuda:0, NVIDIA L4\n"):
            with_first((bare,), which)


def test_the_first_gpu_needs_no_number_in_a_label() -> None:
    assert [device_label("cuda", gpu) for gpu in GPUS] == ["cuda", "cuda:1", "cuda:2"]


def test_a_process_sees_one_gpu_by_its_uuid() -> None:
    assert visible_alone(PART) == PART.uuid
    with pytest.raises(UsageError, match=r"UUID of cuda:0, Old\nchoose .* CUDA_VISIBLE_DEVICES"):
        visible_alone(Gpu("Old", "8.0", 1))
