"""What an architecture is, found by building it on the meta device and running it once: nothing is typed by hand."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .base import Backbone

__all__ = ["key_digest", "measure", "measured_levels"]


def key_digest(model: nn.Module) -> str:
    """A short digest of the state dict's keys and shapes, in order: what must never change."""
    rows = (f"{key}:{tuple(value.shape)}" for key, value in model.state_dict().items())
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def measured_levels(model: Backbone, x: Tensor) -> list[tuple[int, int, int]]:
    """Channels, height and width of every level for input `x`, as observed."""
    with torch.no_grad():
        levels = model.forward_intermediates(x, intermediates_only=True)
    return [tuple(level.shape[1:]) for level in levels]


@contextmanager
def _activations(model: nn.Module) -> Iterator[list[int]]:
    """Counts the elements put out by convolutions and linear layers (the field's "activations")."""
    sizes: list[int] = []
    hooks = [
        module.register_forward_hook(lambda m, args, out: sizes.extend(t.numel() for t in tree_leaves(out)))
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()


def measure(model: Backbone, input_size: tuple[int, int, int]) -> dict[str, Any]:
    """Facts of a backbone on the meta device, for an input of `input_size` (C, H, W).

    `macs` are multiply-adds of convolutions, linear layers and attention products for one image, `activations` the
    elements that convolutions and linear layers put out, `levels` what the pyramid is made of.
    """
    model = model.eval().requires_grad_(False)  # a view of a parameter as a module input trips the counter
    x = torch.zeros(1, *input_size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as flops, _activations(model) as sizes:
        features, levels = model.forward_intermediates(x)
        model.forward_head(features)
    for level, said in zip(levels, model.feature_info):
        _, channels, height, width = level.shape
        assert channels == said["num_chs"], f"level {said} has {channels} channels"
        reduction = said["reduction"]
        fits = {math.ceil(input_size[1] / reduction), input_size[1] // reduction}
        assert height in fits, f"level {said} is {height} x {width} for {input_size}"
    with torch.no_grad():
        embedding = model.forward_head(features, pre_logits=True)
    facts = dict(
        params=sum(p.numel() for p in model.parameters()),
        macs=flops.get_total_flops() // 2,
        activations=sum(sizes),
        input_size=list(input_size),
        embedding=embedding.shape[1] if embedding.ndim == 2 else None,
        levels=[
            dict(channels=level["num_chs"], reduction=level["reduction"], module=level["module"])
            for level in model.feature_info
        ],
        reduction=_last_reduction(model, features, input_size),
        first_conv=_first_conv(model),
        classifier=list(model.classifiers) if len(model.classifiers) > 1 else model.classifiers[0],
        keys=key_digest(model),
    )
    facts["class"] = type(model).__name__
    if model.prefix_tokens:
        facts["prefix_tokens"] = dict(model.prefix_tokens)
    return facts


def _last_reduction(model: Backbone, features: Tensor, input_size: tuple[int, int, int]) -> int | None:
    """Stride of the map that the head reads; None for tokens."""
    if model.layout == "NLC":
        return None
    side = features.shape[2] if model.layout == "NCHW" else features.shape[1]
    last = model.feature_info[-1]["reduction"]
    if side in (math.ceil(input_size[1] / last), input_size[1] // last):
        return last  # 176 pixels at stride 32 give 6, and 176 / 6 is nearer to 29
    return round(input_size[1] / side)


def _first_conv(model: nn.Module) -> str:
    """Path of the first layer that reads the image's channels."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            return name
    raise AssertionError("no convolution or linear layer")
