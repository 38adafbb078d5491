"""timm's helpers for walking modules and running them in sequence, under timm's names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint as _checkpoint

from ..backbone.units import MATCH_PREV_GROUP, group_modules, group_parameters, group_with_matcher
from ..weights.adapting import adapt_input_conv

__all__ = ["MATCH_PREV_GROUP", "adapt_input_conv", "checkpoint", "checkpoint_seq", "group_modules",
           "group_parameters", "group_with_matcher", "model_parameters", "named_apply", "named_modules"]


def model_parameters(model: Any, exclude_head: bool = False) -> Iterator[nn.Parameter]:
    """The parameters of a backbone, without those of its classifiers if `exclude_head`."""
    if not exclude_head:
        return model.parameters()
    heads = tuple(f"{path}." for path in model.classifiers)
    return (parameter for name, parameter in model.named_parameters() if not name.startswith(heads))


def named_modules(module: nn.Module, name: str = "", depth_first: bool = True,
                  include_root: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Paths and modules below `module`, children before parents if `depth_first`."""
    own = [(name, module)] if include_root else []
    if not depth_first:
        yield from own
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        yield from named_modules(child, path, depth_first, include_root=True)
    if depth_first:
        yield from own


def named_apply(fn: Callable[..., None], module: nn.Module, name: str = "", depth_first: bool = True,
                include_root: bool = False) -> nn.Module:
    """Calls `fn(module=..., name=...)` on every module below `module`; returns `module`."""
    for path, found in named_modules(module, name, depth_first, include_root):
        fn(module=found, name=path)
    return module


def checkpoint(function: Callable[..., Any], *args: Any, use_reentrant: bool = False, **kwargs: Any) -> Any:
    """`torch.utils.checkpoint.checkpoint`, not reentrant unless asked."""
    return _checkpoint(function, *args, use_reentrant=use_reentrant, **kwargs)


def checkpoint_seq(functions: Iterable[Any], x: Any, every: int = 1, flatten: bool = False,
                   skip_last: bool = False) -> Any:
    """Runs functions one after another, keeping only the input of each `every` of them for the backward pass.

    `flatten` opens containers by one level; `skip_last` runs the last group without a checkpoint.
    """
    steps = list(chain.from_iterable(functions) if flatten else functions)
    bounds = list(range(0, len(steps), every))
    for start in bounds:
        group = steps[start : start + every]

        def run(value: Any, group: list[Any] = group) -> Any:
            for step in group:
                value = step(value)
            return value

        x = run(x) if skip_last and start == bounds[-1] else checkpoint(run, x)
    return x
