"""A network at the speed of the machine: `optimize` tries what is installed, checks it and keeps the fastest.

    fast = ziggurat.optimize(model, images)      # prints what was tried
    scores, levels = fast(images), fast.pyramid(images)
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "optimizing": "BACKENDS TOLERANCES optimize",
    "optimized": "Optimized",
    "choices": "Trial cache_folder",
    "program": "PRECISIONS Recipe Unavailable",
    "fusing": "fused",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
