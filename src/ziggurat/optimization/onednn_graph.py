"""A view's graph with its convolutions as oneDNN computes them best: weights packed, what follows computed with them.

It is what Inductor does on a CPU with frozen weights, without its compiler: the graph is run operator by operator.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..view import View

__all__ = ["with_packed_convolutions"]

aten = torch.ops.aten
Fused = tuple[str, Sequence[Any], str]
"""What oneDNN computes after a convolution: name, numbers, algorithm."""

FOLLOWERS: dict[Any, Callable[..., Fused]] = {
    aten.relu.default: lambda: ("relu", [], ""),
    aten.relu6.default: lambda: ("hardtanh", [0.0, 6.0], ""),
    aten.hardtanh.default: lambda min_val=-1.0, max_val=1.0: ("hardtanh", [min_val, max_val], ""),
    aten.clamp.default: lambda min=None, max=None: (
        "hardtanh", [float("-inf") if min is None else min, float("inf") if max is None else max], ""),
    aten.leaky_relu.default: lambda negative_slope=0.01: ("leaky_relu", [negative_slope], ""),
    aten.silu.default: lambda: ("swish", [], ""),
    aten.hardswish.default: lambda: ("hardswish", [], ""),
    aten.hardsigmoid.default: lambda: ("hardsigmoid", [], ""),
    aten.sigmoid.default: lambda: ("sigmoid", [], ""),
    aten.tanh.default: lambda: ("tanh", [], ""),
    aten.gelu.default: lambda approximate="none": ("gelu", [], approximate),
}


def with_packed_convolutions(view: View, example: Tensor) -> Callable[[Tensor], Sequence[Tensor]]:
    """The view for images of `example`'s shape, whose convolutions come with the activation or the sum that follows.

    Weights in channels_last memory have maps laid out so. Raises what `torch.export.export` does.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)  # torch 2.11, of itself
        exported = torch.export.export(view, (example,), strict=False).run_decompositions({})  # nothing in place any more
        module: Any = exported.module()
        for number, node in enumerate(list(module.graph.nodes)):
            if node.target is aten.conv2d.default and node.args[1].op == "get_attr":
                _pack(module, node, f"packed_{number}")
        module.graph.eliminate_dead_code()
        module.recompile()
    return module


def _pack(module: Any, node: Any, name: str) -> None:
    """Replaces a convolution, and what can be computed with it, by one operator whose weight is the attribute `name`."""
    given = list(node.args)
    images, weight, bias, *sides, groups = given + [None, 1, 0, 1, 1][len(given) - 2:]
    stride, padding, dilation = map(_pair, sides)
    values = module.get_parameter(weight.target).detach()
    packed = torch.ops.mkldnn._convolution_pointwise  # the operator, with its variants
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    module.register_buffer(name, reorder(values.to_mkldnn(), padding, stride, dilation, groups, list(_shape(images))),
                           persistent=False)
    other = _summand(node)
    last = node if other is None else next(iter(node.users))
    fused: Fused = ("none", [], "")
    follower = next(iter(last.users)) if len(last.users) == 1 else None
    if follower is not None and follower.target in FOLLOWERS and (
            other is None or follower.target is aten.relu.default):
        last, fused = follower, FOLLOWERS[follower.target](*follower.args[1:], **follower.kwargs)
    with module.graph.inserting_before(last):
        where = (module.graph.get_attr(name), bias, padding, stride, dilation, groups)
        if other is None:
            new = module.graph.call_function(packed.default, (images, *where, *fused))
        else:
            after = None if fused[0] == "none" else fused[0]
            new = module.graph.call_function(packed.binary, (images, other, *where, "add", 1.0, after, [], None))
    new.meta = last.meta
    last.replace_all_uses_with(new)


def _summand(node: Any) -> Any:
    """What is added to the convolution `node`, whose only reader the sum is; None where that is no map of the same shape."""
    if len(node.users) != 1:
        return None
    (total,) = node.users
    if total.target is not aten.add.Tensor or total.kwargs or not all(isinstance(term, type(node)) for term in total.args):
        return None
    other = total.args[1] if total.args[0] is node else total.args[0]
    return other if other is not node and _shape(other) == _shape(node) else None


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _pair(sides: int | Sequence[int]) -> list[int]:
    return [sides, sides] if isinstance(sides, int) else list(sides) * (2 // len(sides))
