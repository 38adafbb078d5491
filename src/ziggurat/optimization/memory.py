"""Memory for outputs that is used again: a system hands out new memory page by page, at a fault for each 4 KiB."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["OutputMemory"]

KEPT = 4  # pieces of one size at a time that nobody reads


class OutputMemory:
    """Gives tensors of float32 on the CPU, not initialised, in memory that came back: all who read it have let go of it.

    A tensor, its views and what is shared with them hold their memory, as they always do. Threads may share it.
    """

    def __init__(self) -> None:
        self._back: defaultdict[int, list[np.ndarray]] = defaultdict(list)

    def empty(self, shape: Sequence[int], memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        """A tensor of `shape`, in channels_last order if so asked."""
        size = math.prod(shape)
        back = self._back[size]
        try:
            piece = back.pop()
        except IndexError:
            piece = torch.empty(size).numpy()  # which is aligned
        lent = piece[:]  # an array of its own, which lives for as long as a tensor has its memory
        weakref.finalize(lent, _take_back, back, piece).atexit = False
        tensor = torch.from_numpy(lent)
        if memory_format == torch.channels_last:
            count, channels, height, width = shape
            return tensor.view(count, height, width, channels).permute(0, 3, 1, 2)
        return tensor.view(*shape)


def _take_back(back: list[np.ndarray], piece: np.ndarray) -> None:
    if len(back) < KEPT:
        back.append(piece)
