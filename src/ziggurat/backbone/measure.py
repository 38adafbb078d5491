"""What an architecture is, found by building it on the meta device and running it once: nothing is typed by hand."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .base import Backbone

__all__ = ["OUTPUT_STRIDES", "key_digest", "measure", "run_held"]

OUTPUT_STRIDES = (4, 8, 16)


def key_digest(model: nn.Module) -> str:
    """A short digest of the state dict's keys and shapes, in order: what must never change."""
    rows = (f"{key}:{tuple(value.shape)}" for key, value in model.state_dict().items())
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


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


class _ShapesAlone(TorchFunctionMode):
    """Passes over what keeps shapes and multiplies no matrices: torch works it out in Python on the meta device, slowly.

    Of attention its two products of matrices are left.
    """

    KEPT = frozenset({F.batch_norm, F.group_norm, F.layer_norm, F.gelu, F.hardsigmoid, F.hardswish, F.hardtanh, F.relu, F.relu6,
                      F.silu, torch.sigmoid, Tensor.sigmoid})
    OF_TWO = frozenset({Tensor.add, Tensor.mul})

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.KEPT:
            return args[0] if args else kwargs["input"]
        if func in self.OF_TWO and isinstance(args[1], Tensor) and _spreads_over(args[1], args[0]):
            return args[0]
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            return query @ key.mT @ value
        return func(*args, **kwargs)


def _spreads_over(small: Tensor, large: Tensor) -> bool:
    """Whether the sum of both has the shape of `large`."""
    return small.ndim == large.ndim and all(side in (1, whole) for side, whole in zip(small.shape, large.shape))


@torch.no_grad()
def run_held(model: Backbone, x: Tensor) -> Tensor:
    """The trunk's last output for images `x`; AssertionError unless it gives scores and all levels are as declared."""
    with _ShapesAlone() if x.is_meta else nullcontext():
        features, levels = model.forward_intermediates(x)
        model.forward_head(features)
    assert len(levels) == len(model.feature_info), f"{len(levels)} levels, {len(model.feature_info)} declared"
    for level, said, size in zip(levels, model.feature_info, model.feature_info.sizes(x.shape[2], x.shape[3])):
        wanted = (said["num_chs"], *size)
        assert tuple(level.shape[1:]) == wanted, f"{said} is {tuple(level.shape[1:])}, not {wanted}, at {tuple(x.shape)}"
    return features


class _MultiplyAdds(TorchDispatchMode):
    """Counts multiply-adds by torch's own formulas; `FlopCounterMode` follows modules too, which takes longer than the run."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.count += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out) // 2
        return out


def _multiply_adds(model: Backbone, x: Tensor) -> tuple[int, Tensor]:
    """Multiply-adds of scores and levels for the images `x`, and the trunk's last output."""
    with _MultiplyAdds() as counter:
        features = run_held(model, x)
    return counter.count, features


def measure(
    create: Callable[..., Backbone], input_size: tuple[int, int, int], output_strides: Sequence[int] = OUTPUT_STRIDES
) -> dict[str, Any]:
    """Facts of a backbone on the meta device, for an input of `input_size` (C, H, W).

    `create` makes it and takes the keywords of `Backbone`. `macs` are multiply-adds of convolutions, linear layers and
    attention products for one image, `activations` the elements that convolutions and linear layers put out, `levels`
    what the pyramid is made of. `output_strides` tells, for each of those asked for, the coarsest `stride` that a level
    then has, `how` that is reached ('native', 'dilated' or 'stitched') and the `macs` that it costs. Every run is held
    to the levels declared, one at a size that no grid divides included.
    """
    model = create().eval().requires_grad_(False)  # a view of a parameter as a module input trips the counter
    x = torch.zeros(1, *input_size, device="meta")
    with _activations(model) as sizes:
        macs, features = _multiply_adds(model, x)
    native = max(model.feature_info.reduction())
    run_held(model, x.new_zeros(1, input_size[0], input_size[1] + 26, max(input_size[2] - 34, model.min_size)))
    held_to = {}
    for asked in output_strides:
        if native <= asked:
            held_to[str(asked)] = dict(stride=native, how="native", macs=macs)
            continue
        held = create(output_stride=asked).eval().requires_grad_(False)
        coarsest = max(held.feature_info.reduction())
        assert coarsest <= asked, f"output_stride={asked} gives levels of stride {coarsest}"
        how = "stitched" if held.is_stitched else "dilated"
        held_to[str(asked)] = dict(stride=coarsest, how=how, macs=_multiply_adds(held, x)[0])
    with torch.no_grad():
        embedding = model.forward_head(features, pre_logits=True)
    facts = dict(
        params=sum(p.numel() for p in model.parameters()),
        macs=macs,
        activations=sum(sizes),
        input_size=list(input_size),
        embedding=embedding.shape[1] if embedding.ndim == 2 else None,
        levels=[
            dict(channels=level["num_chs"], reduction=level["reduction"], module=level["module"])
            for level in model.feature_info
        ],
        output_strides=held_to,
        reduction=_last_reduction(model, features, input_size),
        first_conv=_first_conv(model),
        classifier=list(model.classifiers) if len(model.classifiers) > 1 else model.classifiers[0],
        keys=key_digest(model),
        native_size_only=model.native_size is not None,
        min_size=model.min_size,
    )
    facts["class"] = type(model).__name__
    if model.prefix_tokens:
        facts["prefix_tokens"] = dict(model.prefix_tokens)
    return facts


def _last_reduction(model: Backbone, features: Tensor, input_size: tuple[int, int, int]) -> int | None:
    """Stride of the map that the head reads; None for tokens."""
    if model.layout == "NLC" or model.ends_in_tokens:
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
