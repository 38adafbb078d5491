"""A view's graph with its convolutions as oneDNN computes them best: weights packed, what follows computed with them.

It is what Inductor does on a CPU with frozen weights, without its compiler: the graph is run operator by operator.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..view import View
from .program import Unavailable
from .timing import interleaved
from .winograd import WinogradConvolution, applies

__all__ = ["with_packed_convolutions"]

aten = torch.ops.aten
CONVOLUTION = torch.ops.mkldnn._convolution_pointwise  # the operator, with its variants
MARGIN = 1.1  # by which it must be faster alone: it needs more of the memory that all threads share
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


def with_packed_convolutions(view: View, example: Tensor, winograd: bool = False) -> Callable[[Tensor], Sequence[Tensor]]:
    """The view for images of `example`'s shape, whose convolutions come with the activation or the sum that follows.

    Weights in channels_last memory have maps laid out so. With `winograd`, 3x3 convolutions go by Winograd's algorithm
    where that is faster, in as many threads as torch computes in now; raises `Unavailable` where it never is. Raises what
    `torch.export.export` does.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)  # torch 2.11, of itself
        exported = torch.export.export(view, (example,), strict=False).run_decompositions({})  # nothing in place any more
        module: Any = exported.module()
        found = [node for node in module.graph.nodes if node.target is aten.conv2d.default and node.args[1].op == "get_attr"]
        faster: dict[tuple[Any, ...], bool] = {}
        for number, node in enumerate(found):
            _Convolution(module, node, f"packed_{number}").replace(faster if winograd else None)
        if winograd and not any(faster.values()):
            raise Unavailable("Winograd's algorithm is faster for none of its convolutions; take backend='onednn'")
        module.graph.eliminate_dead_code()
        module.recompile()
    return module


class _Convolution:
    """A convolution of a graph, with the sum and the activation that can be computed with it; `name` is free for its weight."""

    def __init__(self, module: Any, node: Any, name: str) -> None:
        self.module, self.node, self.name = module, node, name
        given = list(node.args)
        self.images, weight, self.bias, *sides, self.groups = given + [None, 1, 0, 1, 1][len(given) - 2:]
        self.stride, self.padding, self.dilation = map(_pair, sides)
        self.weight = module.get_parameter(weight.target).detach()
        self.other = _summand(node)
        self.last = node if self.other is None else next(iter(node.users))
        follower = next(iter(self.last.users)) if len(self.last.users) == 1 else None
        self.follower = follower if follower is not None and follower.target in FOLLOWERS else None

    def replace(self, faster: dict[tuple[Any, ...], bool] | None) -> None:
        """Puts one operator in its place; of two where `faster` is given, which says of shapes whether Winograd's is the one."""
        if faster is not None and self._has_winograd():
            shapes = (_shape(self.images), tuple(self.weight.shape))
            if shapes not in faster:
                faster[shapes] = self._is_faster_by_winograd()
            if faster[shapes]:
                return self._go_by_winograd()
        self._go_packed()

    def _packed(self) -> Tensor:
        """The weight as oneDNN reads it fastest for images of this shape."""
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        packed: Tensor = reorder(
            self.weight.to_mkldnn(), self.padding, self.stride, self.dilation, self.groups, list(_shape(self.images)))
        return packed

    def _go_packed(self) -> None:
        self.module.register_buffer(self.name, self._packed(), persistent=False)
        fused: Fused = ("none", [], "")
        if self.follower is not None and (self.other is None or self.follower.target is aten.relu.default):
            self.last, fused = self.follower, FOLLOWERS[self.follower.target](*self.follower.args[1:], **self.follower.kwargs)
        graph = self.module.graph
        with graph.inserting_before(self.last):
            where = (graph.get_attr(self.name), self.bias, self.padding, self.stride, self.dilation, self.groups)
            if self.other is None:
                new = graph.call_function(CONVOLUTION.default, (self.images, *where, *fused))
            else:
                after = None if fused[0] == "none" else fused[0]
                new = graph.call_function(CONVOLUTION.binary, (self.images, self.other, *where, "add", 1.0, after, [], None))
        self._put(new)

    def _has_winograd(self) -> bool:
        return (applies(self.weight.shape[2:], self.stride, self.padding, self.dilation, self.groups)
                and (self.bias is None or self.bias.op == "get_attr"))

    def _is_faster_by_winograd(self) -> bool:
        packed = self._packed()
        maps = torch.randn(_shape(self.images)).contiguous(memory_format=torch.channels_last)
        other = WinogradConvolution(self.weight, groups=self.groups)
        where = (self.padding, self.stride, self.dilation, self.groups)
        seconds = interleaved({"packed": lambda: CONVOLUTION(maps, packed, None, *where, "none", [], ""),
                               "winograd": lambda: other(maps)}, 3)
        return min(seconds["winograd"]) * MARGIN < min(seconds["packed"])

    def _go_by_winograd(self) -> None:
        bias = None if self.bias is None else self.module.get_parameter(self.bias.target)
        activation = []
        if self.follower is not None:
            self.last = self.follower
            activation.append(partial(_applied, self.follower.target, self.follower.args[1:], self.follower.kwargs))
        self.module.add_module(self.name, WinogradConvolution(self.weight, bias, self.groups, *activation))
        with self.module.graph.inserting_before(self.last):
            new = self.module.graph.call_module(self.name, (self.images,) if self.other is None else (self.images, self.other))
        self._put(new)

    def _put(self, new: Any) -> None:
        new.meta = self.last.meta
        self.last.replace_all_uses_with(new)


def _applied(operator: Any, arguments: Sequence[Any], options: dict[str, Any], maps: Tensor) -> Tensor:
    """An activation of `FOLLOWERS`, in the memory of its input where there is such an operator."""
    if operator is aten.relu.default:
        return maps.relu_()
    result: Tensor = operator(maps, *arguments, **options)
    return result


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
