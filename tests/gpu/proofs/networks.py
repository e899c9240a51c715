"""ResNet-50 in PyTorch, plainly and compiled: what a user would run in place of an engine."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.gpu.proofs.report import Report

BATCHES = (1, 8, 32)
WARM_UP, SAMPLES = 10, 50


def prove(report: Report) -> None:
    import torch
    from torchvision.models import resnet50

    # TF32 would compute another precision than the one that is named.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    models = {
        dtype: resnet50(weights=None).eval().cuda().to(dtype)
        for dtype in (torch.float16, torch.float32)
    }
    for dtype, model in models.items():
        for batch in BATCHES:
            name = f"eager {_name(dtype)} of batch {batch}"
            with report.piece(name):
                report.figure(name, **_measured(model, _images(batch, dtype)))
    # Compiling takes most of the time, so that what matters most comes first.
    for dtype, model in models.items():
        for batch in reversed(BATCHES):
            name = f"compiled {_name(dtype)} of batch {batch}"
            with report.piece(name):
                report.figure(name, **_compiled(model, _images(batch, dtype)))


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _images(batch: int, dtype: Any) -> Any:
    import torch

    return torch.randn(batch, 3, 224, 224, device="cuda", dtype=dtype)


def _compiled(model: Any, x: Any) -> dict[str, float]:
    """One shape: a graph of any batch would be another, slower one."""
    import torch

    compile_module: Any = torch.compile
    compiled = compile_module(model, dynamic=False)
    begun = time.perf_counter()
    with torch.inference_mode():
        compiled(x)
    torch.cuda.synchronize()
    return {"compile_s": round(time.perf_counter() - begun, 1), **_measured(compiled, x)}


def _measured(model: Any, x: Any) -> dict[str, float]:
    import torch

    new_event: Any = torch.cuda.Event
    took = []
    with torch.inference_mode():
        for turn in range(WARM_UP + SAMPLES):
            start, end = (new_event(enable_timing=True) for _ in range(2))
            start.record()
            model(x)
            end.record()
            end.synchronize()
            if turn >= WARM_UP:
                took.append(start.elapsed_time(end))
    middle = median(took)
    return {
        "compute_ms": round(middle, 4),
        "worst_ms": round(max(took), 4),
        "images_per_s": round(len(x) / middle * 1e3, 1),
    }
