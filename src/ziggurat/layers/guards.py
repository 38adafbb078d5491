"""Checks and branches on shapes which symbolic tracing keeps as single calls, so that they hold when the graph runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import fx
from torch.overrides import handle_torch_function

from ziggurat.errors import BadArgument

from .trace_utils import register_notrace_function

__all__ = ["blocks", "require", "surely", "surely_equal", "traced_whole"]

PROVES = torch.__version__ >= (2, 8)  # type: ignore[operator]
"""Whether torch.compile can be asked what holds for all sizes; without it, nothing does but what is no size at all."""

P = ParamSpec("P")
R = TypeVar("R")


def traced_values(values: Any) -> list[fx.Proxy]:
    """The traced values among these, also those within lists and tuples."""
    if isinstance(values, fx.Proxy):
        return [values]
    if isinstance(values, (list, tuple)):
        return [proxy for value in values for proxy in traced_values(value)]
    return []


def traced_whole(fn: Callable[P, R]) -> Callable[P, R]:
    """A decorator: called with a traced value, the function becomes one node of the graph and its body is not entered.

    That is what a function needs whose Python branches on the shapes of its inputs. It works under any fx tracer,
    without that tracer being told; `torch.compile` and `torch.export` look into the function as usual.
    """

    @functools.wraps(fn)
    def whole(*args: P.args, **kwargs: P.kwargs) -> R:
        proxies = traced_values((*args, *kwargs.values()))
        if proxies:
            record = cast(Callable[..., Any], handle_torch_function)
            return record(whole, proxies, *args, **kwargs)
        return fn(*args, **kwargs)

    return register_notrace_function(whole)


@traced_whole
def require(condition: bool, message: str) -> None:
    """Raise `BadArgument(message)` unless the condition on the input's shape holds."""
    if not condition:
        raise BadArgument(message)


def surely(condition: Any) -> bool:
    """Whether a condition on the input's shape holds, asked to take a shortcut that changes no result.

    In a graph that is recorded for more than one size it holds only if it does for all of them, and asking ties the
    graph to none: `if height == 14` would.
    """
    if torch.compiler.is_compiling() and PROVES:
        from torch.fx.experimental.symbolic_shapes import statically_known_true  # brings sympy along

        return statically_known_true(condition)
    return condition is True  # a traced value is neither


def surely_equal(sizes: Iterable[Any], others: Iterable[Any]) -> bool:
    """Whether sizes are the same, in the sense of `surely`."""
    if isinstance(sizes, fx.Proxy) or isinstance(others, fx.Proxy):
        return False
    return all(surely(size == other) for size, other in zip(sizes, others))


def blocks(length: Any, side: int) -> Any:
    """How many blocks of `side` cover `length`, the last one cut perhaps: the size after a stride, rounded up.

    Written as a strided convolution's size is, so that torch.export sees that the two are equal.
    """
    return (length - 1) // side + 1
