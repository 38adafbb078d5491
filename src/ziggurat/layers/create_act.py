"""Activations by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch.nn.functional as F
from torch import nn

from ziggurat.errors import BadArgument, nearest

from . import activations as A
from .typing import LayerType

__all__ = ["create_act_layer", "get_act_fn", "get_act_layer"]

# name: (function of (x, inplace=False), module class); a PReLU has weights and an identity nothing to call
_NAMES: dict[str, tuple[Callable | None, type[nn.Module]]] = {
    "silu": (F.silu, nn.SiLU),
    "swish": (F.silu, nn.SiLU),
    "mish": (F.mish, nn.Mish),
    "relu": (F.relu, nn.ReLU),
    "relu6": (F.relu6, nn.ReLU6),
    "leaky_relu": (F.leaky_relu, nn.LeakyReLU),
    "elu": (F.elu, nn.ELU),
    "celu": (F.celu, nn.CELU),
    "selu": (F.selu, nn.SELU),
    "prelu": (None, A.PReLU),
    "gelu": (A.gelu, A.GELU),
    "gelu_tanh": (A.gelu_tanh, A.GELUTanh),
    "quick_gelu": (A.quick_gelu, A.QuickGELU),
    "sigmoid": (A.sigmoid, A.Sigmoid),
    "tanh": (A.tanh, A.Tanh),
    "hard_sigmoid": (F.hardsigmoid, nn.Hardsigmoid),
    "hardsigmoid": (F.hardsigmoid, nn.Hardsigmoid),
    "hard_swish": (F.hardswish, nn.Hardswish),
    "hardswish": (F.hardswish, nn.Hardswish),
    "hard_mish": (A.hard_mish, A.HardMish),
    "identity": (None, nn.Identity),
}


def _named(name: str) -> tuple[Callable | None, type[nn.Module]]:
    entry = _NAMES.get(name.lower())
    if entry is None:
        near = nearest(name.lower(), _NAMES)
        raise BadArgument(
            f"no activation {name!r}: "
            + (f"nearest are {', '.join(near)}" if near else f"known are {', '.join(_NAMES)}")
            + "; or pass the class itself"
        )
    return entry


def get_act_fn(name: LayerType | None = "relu") -> Callable | None:
    """The activation of this name as a function; a callable comes back as it is, None and '' give None.

    Raises BadArgument for an unknown name, and for one that exists as a module only.
    """
    if name is None or name == "":
        return None
    if not isinstance(name, str):
        return name
    function, _ = _named(name)
    if function is None:
        raise BadArgument(f"activation {name!r} has no function form: use get_act_layer({name!r})")
    return function


def get_act_layer(name: LayerType | None = "relu") -> Callable[..., nn.Module] | None:
    """The activation of this name as a module class; a class or factory comes back as it is, None and '' give None.

    Raises BadArgument for an unknown name.
    """
    if isinstance(name, str):
        return _named(name)[1] if name else None
    return name


# For a checker a name always gives a module: the one that does not, '', stands in configurations and in no layer of ours.
@overload
def create_act_layer(name: None, inplace: bool | None = None, **kwargs: Any) -> None: ...
@overload
def create_act_layer(name: LayerType, inplace: bool | None = None, **kwargs: Any) -> nn.Module: ...
def create_act_layer(name: LayerType | None, inplace: bool | None = None, **kwargs: Any) -> nn.Module | None:
    """An activation module; `inplace` is passed on where it is given and the layer takes it. None and '' give None."""
    layer = get_act_layer(name)
    if layer is None:
        return None
    if inplace is not None:
        try:
            return layer(inplace=inplace, **kwargs)
        except TypeError:
            pass  # a layer without that argument; any other mistake in the arguments shows in the call below
    return layer(**kwargs)
