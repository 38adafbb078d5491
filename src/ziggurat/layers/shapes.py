"""Sizes and counts: a number made a pair, a channel count made a multiple, a short list made long enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["extend_tuple", "make_divisible", "to_1tuple", "to_2tuple", "to_3tuple", "to_4tuple", "to_ntuple"]


def to_ntuple(n: int) -> Callable[[Any], tuple]:
    """A function that turns a single value into a tuple of `n` equal ones and any other iterable into a tuple as it is.

    A string counts as a single value.
    """

    def spread(x: Any) -> tuple:
        single = isinstance(x, str) or not isinstance(x, Iterable)
        return (x,) * n if single else tuple(x)

    return spread


to_1tuple = to_ntuple(1)
to_2tuple = to_ntuple(2)
to_3tuple = to_ntuple(3)
to_4tuple = to_ntuple(4)


def make_divisible(v: float, divisor: int = 8, min_value: int | None = None, round_limit: float = 0.9) -> int:
    """The multiple of `divisor` nearest to `v`, at least `min_value` (by default `divisor`).

    Where rounding down would leave less than `round_limit` of `v`, the next multiple up is taken instead
    (MobileNetV2, Sandler et al. 2018, arXiv 1801.04381).
    """
    least = divisor if min_value is None else min_value
    rounded = max(least, int(v + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * v else rounded


def extend_tuple(x: Any, n: int) -> tuple:
    """`x` as a tuple of exactly `n` values: cut where longer, its last value repeated where shorter."""
    values = tuple(x) if isinstance(x, (tuple, list)) else (x,)
    return (values + values[-1:] * n)[:n]
