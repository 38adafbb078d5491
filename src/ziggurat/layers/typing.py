"""Kinds of arguments that many layers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

__all__ = ["LayerType", "PadType", "disable_compiler"]

LayerType: TypeAlias = str | type[nn.Module] | Callable[..., Any]
"""A layer by its name, its class, or a function that makes it."""

PadType: TypeAlias = str | int | tuple[int, int]
"""Padding in pixels, or the name of a rule: '' (symmetric), 'same' (as TensorFlow), 'valid' (none)."""

F = TypeVar("F", bound=Callable[..., Any])


def disable_compiler(fn: F | None = None, **kwargs: Any) -> Any:
    """torch.compiler.disable, as a decorator with or without arguments."""
    return torch.compiler.disable(fn, **kwargs)
