"""Layers of normalisation with activation, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

from torch import nn

from ziggurat.errors import BadArgument, nearest

from . import evo_norm as E
from . import filter_response_norm as R
from . import norm_act as A
from .typing import LayerType

__all__ = ["create_norm_act_layer", "get_norm_act_layer"]

# norms that any activation can follow; the name is also that of the norm alone
_FREE: dict[str, type[nn.Module]] = {
    "batchnorm": A.BatchNormAct2d,
    "batchnorm2d": A.BatchNormAct2d,
    "groupnorm": A.GroupNormAct,
    "groupnorm1": A.GroupNorm1Act,
    "layernorm": A.LayerNormAct,
    "layernorm2d": A.LayerNormAct2d,
    "layernormfp32": A.LayerNormActFp32,
    "layernorm2dfp32": A.LayerNormAct2dFp32,
    "rmsnorm": A.RmsNormAct,
    "rmsnorm2d": A.RmsNormAct2d,
    "rmsnormfp32": A.RmsNormActFp32,
    "rmsnorm2dfp32": A.RmsNormAct2dFp32,
}
# layers that are norm and activation in one
_JOINT: dict[str, type[nn.Module]] = {
    "evonormb0": E.EvoNorm2dB0,
    "evonormb1": E.EvoNorm2dB1,
    "evonormb2": E.EvoNorm2dB2,
    "evonorms0": E.EvoNorm2dS0,
    "evonorms0a": E.EvoNorm2dS0a,
    "evonorms1": E.EvoNorm2dS1,
    "evonorms1a": E.EvoNorm2dS1a,
    "evonorms2": E.EvoNorm2dS2,
    "evonorms2a": E.EvoNorm2dS2a,
    "frn": R.FilterResponseNormAct2d,
    "frntlu": R.FilterResponseNormTlu2d,
}
_BY_NAME = _FREE | _JOINT
_TAKES_ACT = {*_FREE.values(), R.FilterResponseNormAct2d}


def _find(layer: Any) -> Callable[..., nn.Module]:
    if isinstance(layer, str):
        name = layer.replace("_", "").lower().split("-")[0]
        if name not in _BY_NAME:
            near = nearest(name, _BY_NAME) or sorted(_BY_NAME)
            raise BadArgument(f"no norm layer with activation {layer!r}: use {', '.join(near)}, or pass the class itself")
        return _BY_NAME[name]
    if isinstance(layer, FunctionType) or layer in _BY_NAME.values():
        return layer
    found = _FREE.get(getattr(layer, "__name__", "").lower())
    if found is None:
        raise BadArgument(
            f"{layer!r} has no counterpart with an activation: use one of {', '.join(_FREE)}, a class of "
            "ziggurat.layers.norm_act, or a function that makes the layer"
        )
    return found


def get_norm_act_layer(
    norm_layer: LayerType | None, act_layer: LayerType | None = None
) -> Callable[..., nn.Module] | None:
    """The layer of normalisation and activation for a norm given by name, class, function or partial.

    A plain norm's class gives its counterpart with an activation. Where the layer takes any activation, `act_layer` is
    bound to it, None for none; a partial's own `act_layer` wins. None and '' give None. Raises BadArgument where there
    is no such layer.
    """
    bound: dict[str, Any] = {}
    if isinstance(norm_layer, partial):
        bound |= norm_layer.keywords
        norm_layer = norm_layer.func
    if norm_layer is None or norm_layer == "":
        return None
    layer = _find(norm_layer)
    if layer in _TAKES_ACT:
        bound.setdefault("act_layer", act_layer)
    return partial(layer, **bound) if bound else layer


def create_norm_act_layer(
    layer_name: LayerType,
    num_features: int,
    act_layer: LayerType | None = None,
    apply_act: bool = True,
    jit: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """A layer of normalisation and activation over `num_features` channels; `jit` is accepted and has no effect.

    Raises BadArgument where there is no such layer, or none is named.
    """
    layer = get_norm_act_layer(layer_name, act_layer)
    if layer is None:
        raise BadArgument(f"create_norm_act_layer needs a norm layer, got {layer_name!r}: name one such as 'batchnorm'")
    return layer(num_features, apply_act=apply_act, **kwargs)
