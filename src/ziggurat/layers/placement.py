"""Where a module's tensors are and in which precision, for tensors that join them later."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn

__all__ = ["get_device_dtype"]


def get_device_dtype(
    module: nn.Module, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> dict[str, torch.device | str | torch.dtype | None]:
    """{'device', 'dtype'} of the module's first floating tensor, parameters before buffers; what is given wins.

    A module without floating tensors gives None for what is not given.
    """
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            device = tensor.device if device is None else device
            dtype = tensor.dtype if dtype is None else dtype
            break
    return {"device": device, "dtype": dtype}
