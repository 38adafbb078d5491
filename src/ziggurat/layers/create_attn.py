"""Attention layers by name: the one place that knows which names there are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ziggurat.errors import BadArgument, nearest

from .bottleneck_attn import BottleneckAttn
from .cbam import CbamModule, LightCbamModule
from .coord_attn import CoordAttn, EfficientLocalAttn, SimpleCoordAttn, StripAttn
from .eca import CecaModule, EcaModule
from .gather_excite import GatherExcite
from .global_context import GlobalContext
from .halo_attn import HaloAttn
from .lambda_layer import LambdaLayer
from .non_local_attn import BatNonLocalAttn, NonLocalAttn
from .selective_kernel import SelectiveKernel
from .split_attn import SplitAttn
from .squeeze_excite import EffectiveSEModule, SEModule

__all__ = ["create_attn", "get_attn"]

AttnType = str | bool | type[nn.Module] | Callable[..., nn.Module] | None

BY_NAME: dict[str, Callable[..., nn.Module]] = {
    # gates, which keep the shape and may follow any convolution
    "se": SEModule,
    "ese": EffectiveSEModule,
    "eca": EcaModule,
    "ecam": partial(EcaModule, use_mlp=True),
    "ceca": CecaModule,
    "ge": GatherExcite,
    "gc": GlobalContext,
    "gca": partial(GlobalContext, fuse_add=True, fuse_scale=False),
    "cbam": CbamModule,
    "lcbam": LightCbamModule,
    "coord": CoordAttn,
    "scoord": SimpleCoordAttn,
    "ela": EfficientLocalAttn,
    "strip": StripAttn,
    # convolutions with attention in them, which take the place of a spatial convolution
    "sk": SelectiveKernel,
    "splat": SplitAttn,
    # self-attention, which takes the place of a spatial convolution
    "lambda": LambdaLayer,
    "bottleneck": BottleneckAttn,
    "halo": HaloAttn,
    # blocks of their own
    "nl": NonLocalAttn,
    "bat": BatNonLocalAttn,
}


def get_attn(attn_type: AttnType) -> Callable[..., nn.Module] | None:
    """The maker of an attention layer: by its name, or as it is; True is 'se'; None, False and '' are no layer.

    Raises `BadArgument` for an unknown name.
    """
    if isinstance(attn_type, torch.nn.Module):
        return attn_type
    if not attn_type:
        return None
    if attn_type is True:
        return SEModule
    if not isinstance(attn_type, str):
        return attn_type
    name = attn_type.lower()
    if name not in BY_NAME:
        close = ", ".join(nearest(name, BY_NAME) or BY_NAME)
        raise BadArgument(f"no attention layer {attn_type!r}: nearest are {close}; or pass a class")
    return BY_NAME[name]


def create_attn(attn_type: AttnType, channels: int, **kwargs: Any) -> nn.Module | None:
    """The attention layer of that type for maps of `channels`; None where the type is none."""
    make = get_attn(attn_type)
    return None if make is None else make(channels, **kwargs)
