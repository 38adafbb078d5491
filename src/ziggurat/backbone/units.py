"""What is done to a backbone from outside, unit by unit: drop path, gradient checkpointing, parameter groups.

A unit is the smallest repeated part (a residual block, a transformer block). A family names its units by one regular
expression over module paths and says nothing else about any of this.
"""

from __future__ import annotations

import copyreg
import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, SupportsIndex

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = [
    "MATCH_PREV_GROUP",
    "as_number",
    "checkpoint_units",
    "group_modules",
    "group_parameters",
    "group_with_matcher",
    "named_units",
    "schedule_drop_path",
]

MATCH_PREV_GROUP = (99999,)
"""In a matcher: whatever matches joins the group before it."""


def named_units(model: nn.Module, pattern: str) -> list[tuple[str, nn.Module]]:
    """Path and module of every unit, in execution order."""
    whole = re.compile(pattern)
    return [(name, module) for name, module in model.named_modules() if whole.fullmatch(name)]


def schedule_drop_path(units: list[tuple[str, nn.Module]], rate: float, reaches_rate: bool = True) -> None:
    """Stochastic depth growing linearly from 0 at the first unit (Huang et al. 2016, arXiv 1603.09382).

    The last unit that has one gets `rate` itself where `reaches_rate`, otherwise one step less (EfficientNet's
    convention).
    """
    from ..layers.drop import DropPath

    found = [(k, module) for k, (_, unit) in enumerate(units) for module in unit.modules() if isinstance(module, DropPath)]
    steps = max((k for k, _ in found), default=0) if reaches_rate else len(units)
    for k, module in found:
        module.drop_prob = rate * k / max(steps, 1)


@functools.cache
def _checkpointing(cls: type[nn.Module]) -> type[nn.Module]:
    """A subclass of `cls` whose forward pass keeps its input only and is run again in the backward pass."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.training and torch.is_grad_enabled():
            return checkpoint(functools.partial(cls.forward, self), *args, use_reentrant=False, **kwargs)
        return cls.forward(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: SupportsIndex) -> tuple[Any, ...]:
        # pickled and copied as the plain class with its state, then switched again: the subclass has no import path
        return _restore, (cls,), self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__

    return type(cls.__name__, (cls,), {"forward": forward, "__reduce_ex__": reduce, "__module__": cls.__module__,
                                       "checkpointed_class": cls})


def _restore(cls: type[nn.Module]) -> nn.Module:
    return copyreg.__newobj__(_checkpointing(cls))  # type: ignore[attr-defined, arg-type]


def checkpoint_units(units: list[tuple[str, nn.Module]], enable: bool) -> None:
    """Switches gradient checkpointing of every unit on or off; keys, hooks and module types stay as they are."""
    for _, unit in units:
        plain = getattr(type(unit), "checkpointed_class", type(unit))
        # mypy takes the __hash__ of the instances for that of the class, here and above
        unit.__class__ = _checkpointing(plain) if enable else plain  # type: ignore[arg-type]


Matcher = dict[str, Any] | Callable[[str], Any]


def _matchers(groups: dict[str, Any]) -> list[tuple[tuple[int, ...], re.Pattern[str], Any]]:
    rows: list[tuple[tuple[int, ...], re.Pattern[str], Any]] = []
    for ordinal, spec in enumerate(groups.values()):
        specs = [(spec, None)] if isinstance(spec, str) else spec
        rows += [((ordinal,), re.compile(pattern), prefix) for pattern, prefix in specs]
    return rows


def as_number(part: str | float) -> float:
    """A captured number, or a letter as its place in the alphabet: stages a, b, c."""
    return float(ord(part.lower()) - ord("a")) if isinstance(part, str) and part.isalpha() else float(part)


def group_with_matcher(
    named_objects: Iterator[tuple[str, Any]],
    group_matcher: Matcher,
    return_values: bool = False,
    reverse: bool = False,
) -> dict[Any, Any]:
    """Objects sorted into groups by their names: {group: names}, or {name: group} when `reverse`.

    A matcher is a dict, in order of depth, of a pattern or a list of (pattern, suffix); the numbers that a pattern
    captures order the groups within an entry, and what nothing matches comes last. A callable gives the key itself.
    """
    if callable(group_matcher):
        key_of = group_matcher
    else:
        rows = _matchers(group_matcher)

        def key_of(name: str) -> tuple[float, ...]:
            for ordinal, pattern, suffix in rows:
                found = pattern.match(name)
                if found:
                    captured = (g for g in found.groups() if g is not None)
                    return tuple(map(as_number, chain(ordinal, captured, suffix or ())))
            return (float("inf"),)

    by_key: dict[Any, list[Any]] = defaultdict(list)
    for name, value in named_objects:
        by_key[key_of(name)].append(value if return_values else name)
    grouped: dict[int, list[Any]] = defaultdict(list)
    number = -1
    for key in sorted(by_key, key=lambda k: k if isinstance(k, tuple) else (k,)):
        joins = isinstance(key, tuple) and key[-1] == MATCH_PREV_GROUP[0]
        if number < 0 or not joins:
            number += 1
        grouped[number].extend(by_key[key])
    if reverse:
        return {name: group for group, names in grouped.items() for name in names}
    return dict(grouped)


def group_parameters(
    module: nn.Module, group_matcher: Matcher, return_values: bool = False, reverse: bool = False
) -> dict[Any, Any]:
    """The parameters of `module` in groups, shallow to deep; see `group_with_matcher`."""
    return group_with_matcher(module.named_parameters(), group_matcher, return_values, reverse)


def group_modules(
    module: nn.Module, group_matcher: Matcher, return_values: bool = False, reverse: bool = False
) -> dict[Any, Any]:
    """The submodules of `module` in groups, shallow to deep; see `group_with_matcher`."""
    return group_with_matcher(module.named_modules(), group_matcher, return_values, reverse)
