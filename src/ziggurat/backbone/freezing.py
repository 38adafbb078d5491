"""The frozen part of a backbone: parameters that do not train and statistics that do not move, whatever `train` says."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from torch import nn

__all__ = ["Frozen", "freeze_modules", "hold_still", "unfreeze_modules", "without_modules"]


class Frozen(NamedTuple):
    """What `Backbone.freeze` holds still."""

    upto: int | None
    """The last level of it; None where everything is frozen."""
    modules: tuple[str, ...]
    """Paths of the largest modules that lie in it whole: they stay in evaluation mode."""
    parameters: tuple[str, ...]
    """Paths of the parameters that trained before."""


def freeze_modules(model: nn.Module, upto: int | None, after: Collection[str]) -> Frozen:
    """Freezes all of `model` but the modules at the paths `after`."""
    parameters = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not any(_holds(path, name) for path in after):
            parameter.requires_grad_(False)
            parameters.append(name)
    frozen = Frozen(upto, tuple(_whole(model, "", after)), tuple(parameters))
    hold_still(model, frozen)
    return frozen


def unfreeze_modules(model: nn.Module, frozen: Frozen) -> None:
    """Undoes `freeze_modules`: what trained before trains again."""
    trained = set(frozen.parameters)
    for name, parameter in model.named_parameters():
        if name in trained:
            parameter.requires_grad_(True)
    model.train(model.training)


def hold_still(model: nn.Module, frozen: Frozen) -> None:
    """Puts the frozen modules into evaluation mode, those of them that the model still has."""
    still = set(frozen.modules)
    for name, module in model.named_modules():
        if name in still:
            module.eval()


def without_modules(frozen: Frozen, tops: Collection[str]) -> Frozen:
    """`frozen` without what lies in the top-level modules `tops`, which have been made anew."""

    def kept(paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(path for path in paths if path.split(".")[0] not in tops)

    return Frozen(frozen.upto, kept(frozen.modules), frozen.parameters)


def _whole(module: nn.Module, prefix: str, after: Collection[str]) -> Iterator[str]:
    """Paths of the largest modules inside `module` that hold none of those in `after`."""
    for name, child in module.named_children():
        path = prefix + name
        if path in after:
            continue
        if any(_holds(path, other) for other in after):
            yield from _whole(child, path + ".", after)
        else:
            yield path


def _holds(owner: str, path: str) -> bool:
    return path == owner or path.startswith(owner + ".")
