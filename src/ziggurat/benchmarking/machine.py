"""What this machine can do at most: multiply-adds by matrix products, bytes by a copy, measured and not looked up."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from ..optimization.choices import processor
from ..optimization.program import torch_threads

__all__ = ["copy_bandwidth", "describe", "machine_peak"]

SIDES = (1024, 1536, 2048, 3072, 4096)  # of square matrices
GPU_SIDES = (4096, 8192, 16384)
ENOUGH = 2.0  # seconds for one precision
COPIED = 256 * 2**20  # bytes of a copy, more than caches hold
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def machine_peak(precision: str = "fp32", threads: int | None = None, device: str = "cpu") -> float | None:
    """The most floating-point operations a second (two a multiply-add) that torch reaches here in `precision`.

    The best of matrix products and 1x1 convolutions (on a CPU these come from different libraries) of several sizes, each
    repeated; sizes end when the time for them is over, so that arithmetic that is only emulated does not hold one up. On a
    GPU fp32 is with TF32 where `torch.backends.cuda.matmul.allow_tf32` has it. None for int8, which torch has no product of.
    """
    if precision not in DTYPES:
        return None
    best, end = 0.0, time.perf_counter() + ENOUGH
    with torch.inference_mode(), torch_threads(threads or torch.get_num_threads()):
        for side in GPU_SIDES if torch.device(device).type == "cuda" else SIDES:
            for call in _products(side, DTYPES[precision], device):
                for _ in range(4):
                    best = max(best, 2 * side**3 / _seconds(call, device))
                    if time.perf_counter() > end:
                        return best
    return best


def _products(side: int, dtype: torch.dtype, device: str) -> Iterator[Callable[[], Any]]:
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    yield lambda: left @ right
    if torch.device(device).type == "cpu":
        image = left.reshape(1, side, 32, side // 32).contiguous(memory_format=torch.channels_last)
        kernel = right.reshape(side, side, 1, 1)
        yield lambda: F.conv2d(image, kernel)


def copy_bandwidth(threads: int | None = None, device: str = "cpu", size: int = COPIED) -> float:
    """The most bytes a second that memory moves in a copy of `size` bytes: each is read once and written once."""
    with torch.inference_mode(), torch_threads(threads or torch.get_num_threads()):
        source = torch.ones(size // 4, device=device)
        target = torch.empty_like(source)
        return max(2 * size / _seconds(lambda: target.copy_(source), device) for _ in range(8))


def _seconds(call: Callable[[], Any], device: str) -> float:
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        call()
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if is_cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def describe(device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """What computes here: `device` in words, `threads`, what else the machine was doing (`load`), and `versions`."""
    from .. import __version__

    found = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else processor()[0]
    return {
        "device": found,
        "threads": threads or torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(terse=True),
        "versions": {"ziggurat": __version__, "python": platform.python_version(), "torch": torch.__version__},
    }
