"""What an exported file says of itself, so that its images can be prepared and its outputs read without ziggurat."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import __version__
from ..data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from ..errors import BadArgument
from ..view import View, own_view

__all__ = ["names_of_classes", "of", "parsed"]

PREPARATION = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


def of(
    view: View, shape: Sequence[int], free: Sequence[str] = (), class_names: Iterable[str] | None = None, min_size: int = 1,
    side_step: int = 1,
) -> dict[str, str]:
    """The facts of `view` exported for images of `shape` (B C H W): JSON values under flat keys.

    To prepare an image, resize its shorter side to height / `crop_pct` with `interpolation`, cut the centre out as
    `crop_mode` says ('center'; 'squash' and 'border' resize without cutting), and give it in the channel order RGB, as
    'images' (B C H W). With `pixels` false, divide by 255, subtract `mean` and divide by `std`, a number a channel; with
    `pixels` true, give bytes as they are: that is part of the file.

    - `mean`, `std`: of pixel values in [0, 1]; `interpolation`: 'bicubic', ...; `crop_pct`; `crop_mode`; `pixels`. What
      nobody has stated of the weights is null.
    - `input_size`: channels, height and width that the file was made for; `input_shape`: what it takes, null for a free
      axis; a free height or width is `min_size` pixels or more, and a multiple of `side_step`.
    - `outputs`: their names in order; `view`, `strides` (of a pyramid); `class_names`: a name for each score, null where
      unknown or where there are no scores.
    - `architecture`, `tag`, `license`: of the weights, null where unknown; `ziggurat_version`.

    Raises `BadArgument` for `class_names` that are not one for each class.
    """
    model: Any = view.model
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    stated = resolve_model_data_config(model) if cfg else {}
    shape_free = [None if axis in free else side for axis, side in zip(("batch", "channels", "height", "width"), shape)]
    facts: dict[str, Any] = {
        **{key: stated.get(key) for key in PREPARATION},
        "pixels": view.pixels,
        "input_size": list(shape[1:]),
        "input_shape": shape_free,
        "min_size": min_size,
        "side_step": side_step,
        "outputs": view.names,
        "view": view.view,
        "strides": [int(name.removeprefix("stride_")) for name in view.names] if view.view == "pyramid" else None,
        "class_names": names_of_classes(view, class_names),
        "architecture": getattr(model, "architecture", None) or cfg.get("architecture") or type(model).__name__,
        "tag": cfg.get("tag"),
        "license": cfg.get("license"),
        "ziggurat_version": __version__,
    }
    return {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}


def parsed(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The facts behind the JSON that a file holds."""
    return {key: json.loads(value) for key, value in metadata.items()}


def names_of_classes(view: View, given: Iterable[str] | None) -> list[str] | None:
    """The name of each score: those given, else those that the weights state, else ImageNet's where their number fits.

    Of a network that states nothing of weights none are guessed.

    Raises `BadArgument` for names that are not one for each class.
    """
    model: Any = view.model
    scores = view.view == "classify" or (view.view == "forward" and own_view(model) == "classify")
    count = view.shapes[0][-1] if scores or (view.view == "forward" and len(view.shapes) == 1) else 0
    if given is not None:
        names = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else []
        if not count or len(names) != count or not all(isinstance(name, str) for name in names):
            wanted = f"give a list of {count} names, one for each class" if count else f"view={view.view!r} has no scores"
            raise BadArgument(f"class_names={given!r:.60}: {wanted}")
        return names
    if not scores:
        return None
    if model.class_names is not None:
        described = model.pretrained_cfg.get("label_descriptions") or {}
        return [described.get(name, name) for name in model.class_names]
    subset = infer_imagenet_subset(model) if model.pretrained_cfg else None
    return None if subset is None else list(ImageNetInfo(subset).label_descriptions())
