"""Normalisation layers by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ziggurat.errors import BadArgument, nearest

from . import norm as N
from .typing import LayerType

__all__ = ["create_norm_layer", "get_norm_layer"]

_NAMES: dict[str, type[nn.Module]] = {
    "batchnorm": nn.BatchNorm2d,
    "batchnorm2d": nn.BatchNorm2d,
    "batchnorm1d": nn.BatchNorm1d,
    "groupnorm": N.GroupNorm,
    "groupnorm1": N.GroupNorm1,
    "layernorm": N.LayerNorm,
    "layernorm2d": N.LayerNorm2d,
    "layernormfp32": N.LayerNormFp32,
    "layernorm2dfp32": N.LayerNorm2dFp32,
    "rmsnorm": N.RmsNorm,
    "rmsnorm2d": N.RmsNorm2d,
    "rmsnormfp32": N.RmsNormFp32,
    "rmsnorm2dfp32": N.RmsNorm2dFp32,
    "simplenorm": N.SimpleNorm,
    "simplenorm2d": N.SimpleNorm2d,
    "simplenormfp32": N.SimpleNormFp32,
    "simplenorm2dfp32": N.SimpleNorm2dFp32,
    "frozenbatchnorm2d": N.FrozenBatchNorm2d,
}


def get_norm_layer(norm_layer: LayerType | None) -> Callable[..., nn.Module] | None:
    """The norm class of this name, capitals and underscores aside; a class, function or partial comes back as it is.

    A partial of a name becomes a partial of its class. None and '' give None. Raises BadArgument for an unknown name.
    """
    if isinstance(norm_layer, partial):
        inner = get_norm_layer(norm_layer.func)
        return None if inner is None else partial(inner, *norm_layer.args, **norm_layer.keywords)
    if norm_layer is None or norm_layer == "":
        return None
    if not isinstance(norm_layer, str):
        if not callable(norm_layer):
            raise BadArgument(f"a norm layer is a name, a class or a function, not {norm_layer!r}")
        return norm_layer
    name = norm_layer.replace("_", "").lower()
    if name not in _NAMES:
        near = nearest(name, _NAMES) or sorted(_NAMES)
        raise BadArgument(f"no norm layer {norm_layer!r}: use {', '.join(near)}, or pass the class itself")
    return _NAMES[name]


def create_norm_layer(layer_name: LayerType, num_features: int, **kwargs: Any) -> nn.Module:
    """A norm layer over `num_features` channels.

    Raises BadArgument where there is no such layer, or none is named.
    """
    layer = get_norm_layer(layer_name)
    if layer is None:
        raise BadArgument(f"create_norm_layer needs a norm layer, got {layer_name!r}: name one such as 'batchnorm'")
    return layer(num_features, **kwargs)
