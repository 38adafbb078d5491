"""A network at the speed of the machine: `optimize` tries what is installed, checks it and keeps the fastest.

    fast = ziggurat.optimize(model, images)      # prints what was tried
    scores, levels = fast(images), fast.pyramid(images)
"""

from __future__ import annotations

from typing import Any

from ..lazy import LazyNames

_HOME = LazyNames(__name__, {
    "optimizing": "BACKENDS TOLERANCES optimize",
    "optimized": "Optimized",
    "choices": "Trial cache_folder",
    "program": "PRECISIONS Recipe Unavailable",
    "fusing": "fused",
})

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    return _HOME.imported(name)


def __dir__() -> list[str]:
    return _HOME.listed()
