"""The errors that users of ziggurat meet. Every message says what was received, what is allowed, and what to do.

ZigguratError
├── UnknownModel            (also LookupError)   no architecture of that name
├── UnknownTag              (also LookupError)   the architecture exists, the pretrained tag does not
├── BadArgument             (also ValueError)    an argument has a value that cannot work
│   ├── UnsupportedStride                        a stride that the architecture lacks
│   ├── UnsupportedPooling  (also AssertionError)  a pooling whose width the head cannot take
│   ├── UnreadableImage                          an image source that yields no picture
│   └── UnknownArgument     (also TypeError)     an argument that the architecture does not take
├── CheckpointMismatch      (also RuntimeError)  a checkpoint's keys or shapes are not the model's
├── UnsafeCheckpoint        (also RuntimeError)  a file that holds more than plain tensors
├── IncompleteRun                             an extraction that has not been verified as complete
├── ChangedRun                                an extraction that was begun with other inputs or arguments
├── ExportFailed            (also RuntimeError)  a network that a format, or its runtime, cannot hold as it is
├── SourceUnavailable       (also OSError)       weights that cannot be found or fetched
└── MissingExtra            (also ImportError)   an optional dependency that is not installed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BadArgument",
    "ChangedRun",
    "CheckpointMismatch",
    "ExportFailed",
    "IncompleteRun",
    "MissingExtra",
    "SourceUnavailable",
    "UnknownArgument",
    "UnknownModel",
    "UnknownTag",
    "UnreadableImage",
    "UnsafeCheckpoint",
    "UnsupportedPooling",
    "UnsupportedStride",
    "ZigguratError",
    "nearest",
]


class ZigguratError(Exception):
    """The root: catch it to catch every error that is the user's to mend."""

    def __str__(self) -> str:
        return " ".join(str(part) for part in self.args)  # LookupError would print a quoted repr


class UnknownModel(ZigguratError, LookupError, RuntimeError):
    """No architecture of the name asked for. (A RuntimeError too, as timm's `create_model` raises.)"""


class UnknownTag(ZigguratError, LookupError, RuntimeError):
    """The architecture is known, the pretrained tag behind the dot is not."""


class BadArgument(ZigguratError, ValueError):
    """An argument whose value cannot work."""


class UnsupportedStride(BadArgument):
    """A stride that the architecture does not have."""


class UnsupportedPooling(BadArgument, AssertionError):
    """A pooling that changes the width in front of layers that were made for another. (timm asserts.)"""


class UnknownArgument(BadArgument, TypeError):
    """An argument that the architecture's constructor does not take."""


class UnreadableImage(BadArgument):
    """An image source that yields no picture: `path` says which, `cause` why."""

    def __init__(self, path: object, cause: object) -> None:
        super().__init__(path, cause)
        self.path = path
        self.cause = cause

    def __str__(self) -> str:
        return f"cannot read an image from {str(self.path)!r}: {self.cause}"


class CheckpointMismatch(ZigguratError, RuntimeError):
    """Keys or shapes of a checkpoint differ from the model's."""


class UnsafeCheckpoint(ZigguratError, RuntimeError):
    """A checkpoint that would have to be unpickled as code; it never is."""


class IncompleteRun(ZigguratError):
    """An extraction on disk that is not, or not yet, verified as complete."""


class ChangedRun(ZigguratError):
    """An extraction that was begun with other inputs, weights or arguments than those given now."""


class ExportFailed(ZigguratError, RuntimeError):
    """A network that a format cannot hold, or whose numbers come out otherwise in the format's own runtime."""


class SourceUnavailable(ZigguratError, OSError, RuntimeError):
    """Weights that could not be found or fetched. (A RuntimeError too, as timm raises.)"""


class MissingExtra(ZigguratError, ImportError):
    """An optional dependency that is not installed."""


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The `count` names closest to `name` but for case, best first; one that begins with it or ends in `_name` is close."""
    lower: dict[str, list[str]] = {}
    for one in dict.fromkeys(names):
        lower.setdefault(one.lower(), []).append(one)
    name = name.lower()
    close = difflib.get_close_matches(name, lower, n=count, cutoff=0.6)
    close += [n for n in lower if (n.startswith(name) or n.endswith(f"_{name}")) and n not in close]
    return [one for n in close for one in lower[n]][:count]
