"""What a pass over a network must compute and move at least: the layers that multiply, one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["BYTES", "Layer", "layers_of", "least_seconds"]

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
"""Bytes of one number of each precision."""


class Layer(NamedTuple):
    """A convolution, a matrix product or an attention: `flops` (two a multiply-add), numbers read and written once."""

    flops: int
    numbers: int


class _Products(TorchDispatchMode):
    """Notes each product that is computed while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Layer] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.note(count(*args, **(kwargs or {}), out_val=output), args, output)
        return output

    def note(self, flops: int, inputs: Any, outputs: Any) -> None:
        self.found.append(Layer(flops, sum(leaf.numel() for leaf in tree_leaves((inputs, outputs)) if isinstance(leaf, Tensor))))


class _AttentionWhole(TorchFunctionMode):
    """Notes an attention as one layer, whose table of weights is never in memory, as fused kernels compute it."""

    def __init__(self, products: _Products) -> None:
        super().__init__()
        self.products = products

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args[:3] if len(args) > 2 else (kwargs[name] for name in ("query", "key", "value"))
        output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        pairs = query.numel() // query.shape[-1] * key.shape[-2]
        self.products.note(2 * pairs * (query.shape[-1] + value.shape[-1]), (query, key, value), output)
        return output


@torch.no_grad()
def layers_of(call: Callable[[Tensor], Any], images: Tensor) -> list[Layer]:
    """The products that `call(images)` computes, in order; both on the meta device.

    What is done number by number (norms, activations, sums) is left out: it can be done while a product is written, and
    what a machine must do at least is asked for.
    """
    with _Products() as products, _AttentionWhole(products):
        call(images)
    return products.found


def least_seconds(layers: Sequence[Layer], precision: str, peak: float, bandwidth: float) -> float:
    """Seconds that `layers` take at `peak` flops/s and `bandwidth` bytes/s, each the slower of computing and moving.

    Caches can beat it: what one layer leaves in them the next need not fetch from memory.
    """
    return sum(max(layer.flops / peak, layer.numbers * BYTES[precision] / bandwidth) for layer in layers)
