"""How long calls take, one against the other: in turn, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["interleaved"]


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each of `calls` in each of `rounds`; every round makes all calls once and begins with another one.

    A call is finished when it returns: those that leave work to a GPU wait for it themselves. Each is made twice in its
    turn, and the second is timed: the first finds caches that hold another's weights, and another's threads still spinning.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            calls[name]()
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds
