"""How a model wants its images: size, interpolation, normalisation and crop, resolved from three sources."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import BadArgument
from .constants import DEFAULT_CROP_MODE, DEFAULT_CROP_PCT, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

__all__ = ["resolve_data_config", "resolve_model_data_config"]

log = logging.getLogger(__name__)


def resolve_data_config(
    args: Mapping[str, Any] | None = None,
    pretrained_cfg: Mapping[str, Any] | None = None,
    model: Any = None,
    use_test_size: bool = False,
    verbose: bool = False,
) -> dict[str, Any]:
    """The keyword arguments of `create_transform` that fit a model: input_size, interpolation, mean, std, crop_pct,
    crop_mode.

    Each comes from the first that states it: `args` (what a user asks for; `img_size` and `in_chans` are understood
    beside `input_size`), `pretrained_cfg` (what the weights were trained with; `model.pretrained_cfg` where it is not
    given), ImageNet's defaults. With `use_test_size` the larger size that some weights are evaluated at is taken.
    Raises BadArgument where all three are missing, or where a size or a normalisation does not fit the channels.
    """
    if model is None and not args and not pretrained_cfg:
        raise BadArgument("nothing to resolve a data configuration from: give a model, a pretrained_cfg or args")
    asked = args or {}
    stored = pretrained_cfg or getattr(model, "pretrained_cfg", None) or {}

    input_size, channels = _input_size(asked, stored, use_test_size)
    config = {
        "input_size": input_size,
        "interpolation": asked.get("interpolation") or stored.get("interpolation") or "bicubic",
        "mean": _per_channel("mean", asked, stored, IMAGENET_DEFAULT_MEAN, channels),
        "std": _per_channel("std", asked, stored, IMAGENET_DEFAULT_STD, channels),
        "crop_pct": (
            asked.get("crop_pct")
            or (use_test_size and stored.get("test_crop_pct"))
            or stored.get("crop_pct")
            or DEFAULT_CROP_PCT
        ),
        "crop_mode": asked.get("crop_mode") or stored.get("crop_mode") or DEFAULT_CROP_MODE,
    }
    if verbose:
        log.info("images are prepared with %s", ", ".join(f"{key}={value}" for key, value in config.items()))
    return config


def resolve_model_data_config(
    model: Any,
    args: Mapping[str, Any] | None = None,
    pretrained_cfg: Mapping[str, Any] | None = None,
    use_test_size: bool = False,
    verbose: bool = False,
) -> dict[str, Any]:
    """`resolve_data_config` with the model first: the usual way from a model to its `create_transform`."""
    return resolve_data_config(args, pretrained_cfg, model, use_test_size, verbose)


def _input_size(
    asked: Mapping[str, Any], stored: Mapping[str, Any], use_test_size: bool
) -> tuple[tuple[int, ...], int]:
    """The size (channels, height, width), and the channels that a normalisation asked for must fit."""
    keys = ("test_input_size", "input_size") if use_test_size else ("input_size",)
    recorded = next((stored[key] for key in keys if stored.get(key) is not None), None)
    channels = next((asked[key] for key in ("in_chans", "chans") if asked.get(key) is not None), (recorded or (3,))[0])
    size = asked.get("input_size")
    if size is not None:
        if not isinstance(size, (tuple, list)) or len(size) != 3:
            raise BadArgument(f"input_size={size!r}: it takes (channels, height, width); for one edge use img_size")
        return tuple(size), size[0]
    edge = asked.get("img_size")
    if edge is not None:
        if not isinstance(edge, int):
            raise BadArgument(f"img_size={edge!r}: it takes one edge in pixels; for (channels, height, width) use input_size")
        return (channels, edge, edge), channels
    # a size that the weights state stays as it is, whatever channels are asked for: timm's configs agree with ours
    return (channels, 224, 224) if recorded is None else recorded, channels


def _per_channel(
    name: str,
    asked: Mapping[str, Any],
    stored: Mapping[str, Any],
    default: tuple[float, ...],
    channels: int,
) -> tuple[float, ...]:
    values: Sequence[float] | None = asked.get(name)
    if values is None:
        return stored.get(name) or default
    if len(values) not in (1, channels):
        raise BadArgument(f"{name}={tuple(values)}: {len(values)} values for {channels} channels; give 1 or {channels}")
    return tuple(values) * (channels if len(values) == 1 else 1)
