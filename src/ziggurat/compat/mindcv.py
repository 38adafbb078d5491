"""MindCV's interface on ziggurat's backbones: its names, its argument order, its numerics and its lists of levels.

    from ziggurat.compat.mindcv import create_model

    model = create_model("mobilenet_v3_large_100", features_only=True, out_indices=[1, 3, 6, 12, 15])
    model.out_channels          # [16, 24, 40, 112, 160]

The module names are those of MindCV 0.3.0; `mindcv.json` says what each architecture is called here. What a user wrote
for MindCV's registry is listed and created beside them: `register_model` and `build_model_with_cfg` are ziggurat's.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .. import factory, registry
from ..errors import BadArgument, UnknownModel
from ..factory import build_model_with_cfg
from ..registry import is_model, register_model
from ..weights.pretrained import MINDCV_TAG

__all__ = ["build_model_with_cfg", "create_model", "is_model", "list_models", "list_modules", "model_entrypoint",
           "register_model"]

LEVELS_PER = {"mobilenetv2": "block", "mobilenetv3": "block", "efficientnet": "stage"}
"""What has a level of its own in MindCV, by its modules, where that is more than ziggurat's level a stride."""
ARGUMENTS: dict[str, dict[str, Any]] = {"mae": {"global_pool": "avg"}}
"""What MindCV's modules give to a network that is ziggurat's for others as well."""
OUT_INDICES = 5  # as many levels as MindCV gives unless told, from the first on


def create_model(
    model_name: str,
    num_classes: int = 1000,
    pretrained: bool = False,
    in_channels: int | None = None,
    checkpoint_path: str | Path = "",
    ema: bool = False,
    auto_mapping: bool = False,
    **kwargs: Any,
) -> Any:
    """The backbone that MindCV calls `model_name`, as MindCV computes it.

    Names of ziggurat's are taken too; MindCV's, where they differ, with a warning that gives ziggurat's. The weights' tag
    is MindCV's (`architecture.mindcv_in1k`), and with it its paddings and activations, unless another is named.

    With `features_only` the levels are MindCV's: in MobileNetV2 and V3 the stem, every block and the last convolution,
    in EfficientNet the stem, every stage and that convolution. `out_indices` chooses among them; left out, it is the
    first five. Unlike in MindCV the order given is kept, negative ones count from the end, and one that does not exist or
    comes twice raises `BadArgument`; networks that have no features there give ziggurat's levels. `forward` gives a list
    of maps (B C H W), `out_channels` says their channels.

    `in_channels`, 3 unless told, may be called `in_chans`. `checkpoint_path`, `ema` and `auto_mapping`, and all further
    arguments, are those of `ziggurat.create_model`. Raises `BadArgument` for `pretrained` together with
    `checkpoint_path`, and what `ziggurat.create_model` raises.
    """
    if pretrained and checkpoint_path:
        raise BadArgument(f"pretrained=True and checkpoint_path={str(checkpoint_path)!r}: give one of the two")
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    if in_channels is not None or "in_chans" not in kwargs:
        kwargs["in_channels"] = 3 if in_channels is None else in_channels
    if factory.parse_model_name(model_name)[0] is None and not registry.is_model(model_name):
        raise _unknown(model_name)
    name = _tagged(registry.resolve_name(model_name))
    for module, arguments in ARGUMENTS.items():
        if model_name in registry.mindcv_names()["names"][module]:
            kwargs = {**arguments, **kwargs}
    part = _part_with_level(registry.get_arch_name(name))
    if kwargs.get("features_only") and part is not None:
        kwargs.setdefault("levels_per", part)
        if "out_strides" not in kwargs:
            kwargs.setdefault("out_indices", tuple(range(OUT_INDICES)))
    return factory.create_model(name, pretrained=pretrained, num_classes=num_classes,
                                checkpoint_path=checkpoint_path or None, ema=ema, auto_mapping=auto_mapping, **kwargs)


def _unknown(model_name: str) -> UnknownModel:
    """The error for a name that neither MindCV nor ziggurat has."""
    return registry.unknown_model(model_name, [*_listed(), *registry.list_models()])


def _tagged(name: str) -> str:
    """A name of ziggurat's with the tag of MindCV's weights, where there are any and no other tag is there."""
    architecture, tag = registry.split_model_name_tag(name)
    return f"{architecture}.{MINDCV_TAG}" if not tag and MINDCV_TAG in registry.weights_of(architecture) else name


def _part_with_level(architecture: str) -> str | None:
    """What has a level of its own in MindCV's network, where that is finer than ziggurat's levels."""
    names = registry.mindcv_names()["names"]
    return next((part for module, part in LEVELS_PER.items() if architecture in names[module].values()), None)


def _listed() -> dict[str, tuple[str, str]]:
    """MindCV's names that there are here, and those that a user registered: each with its module and ziggurat's name."""
    found = {
        theirs: (module, ours)
        for module, names in registry.mindcv_names()["names"].items()
        for theirs, ours in names.items()
        if registry.is_model(theirs)
    }
    for module in registry.list_modules():
        found |= {own: (module, own) for own in registry.list_models(module=module) if registry.is_own(own)}
    return found


def _is_published(ours: str) -> bool:
    """Whether there are MindCV's weights, or those that a user's own module declares."""
    return registry.is_model_pretrained(ours if registry.is_own(ours) else f"{ours}.{MINDCV_TAG}")


def list_models(
    filter: str | Iterable[str] = "",
    module: str | Iterable[str] = "",
    pretrained: bool = False,
    exclude_filters: str | Iterable[str] = "",
) -> list[str]:
    """MindCV's names of the architectures that there are here, and those that a user registered, sorted.

    `filter` and `exclude_filters` are glob patterns, `module` is a module of MindCV's (`mobilenetv3`); one or several.
    `pretrained` keeps those for whose architecture MindCV publishes weights.
    """
    modules = registry.as_list(module)
    names = {
        name
        for name, (where, ours) in _listed().items()
        if (not modules or where in modules) and (not pretrained or _is_published(ours))
    }
    chosen = {name for pattern in registry.as_list(filter) or ["*"] for name in fnmatch.filter(names, pattern)}
    for pattern in registry.as_list(exclude_filters):
        chosen -= set(fnmatch.filter(chosen, pattern))
    return sorted(chosen)


def list_modules() -> list[str]:
    """MindCV's modules that architectures here come from, and those of what a user registered."""
    return sorted({module for module, _ in _listed().values()})


def model_entrypoint(model_name: str) -> Callable[..., Any]:
    """The function that creates an architecture: `create(pretrained=False, num_classes=1000, in_channels=3, **kwargs)`.

    Raises `UnknownModel`.
    """
    if not registry.is_model(model_name):
        raise _unknown(model_name)
    if registry.is_own(model_name):
        return registry.model_entrypoint(model_name)

    def create(pretrained: bool = False, num_classes: int = 1000, in_channels: int | None = None, **kwargs: Any) -> Any:
        return create_model(model_name, num_classes, pretrained, in_channels, **kwargs)

    create.__name__ = model_name
    return create
