"""A convolution whose kernel is mixed, for each sample, from several (CondConv, Yang et al. 2019, arXiv 1904.04971)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ziggurat.errors import BadArgument

from .padding import get_padding_value, pad_same
from .shapes import to_2tuple
from .typing import PadType

__all__ = ["CondConv2d", "get_condconv_initializer"]


def get_condconv_initializer(
    initializer: Callable[[Tensor], object], num_experts: int, expert_shape: Sequence[int]
) -> Callable[[Tensor], None]:
    """An initialiser of all experts, (num_experts, product of `expert_shape`), from one of a single expert's weight.

    What it gives raises BadArgument for a tensor of another shape.
    """

    def initialise(weight: Tensor) -> None:
        wanted = (num_experts, math.prod(expert_shape))
        if tuple(weight.shape) != wanted:
            raise BadArgument(f"experts' weights have the shape {wanted}, got {tuple(weight.shape)}")
        with torch.no_grad():  # rows of a parameter could not be written to otherwise
            for row in weight:
                initializer(row.view(*expert_shape))

    return initialise


class CondConv2d(nn.Module):
    """A grouped convolution of the whole batch, one group of kernels a sample.

    The input is (N, in_channels, H, W) with routing weights (N, num_experts). State: `weight` (num_experts, everything
    else in one row) and, with `bias`, `bias` (num_experts, out_channels).
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: PadType = "",
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        num_experts: int = 4,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = to_2tuple(kernel_size)
        self.stride = to_2tuple(stride)
        self.dilation = to_2tuple(dilation)
        self.groups = groups
        self.num_experts = num_experts
        value, self.dynamic_padding = get_padding_value(padding, kernel_size, stride=stride, dilation=dilation)
        self.padding = to_2tuple(value)
        self.weight_shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(num_experts, math.prod(self.weight_shape)))
        self.register_parameter("bias", nn.Parameter(torch.empty(num_experts, out_channels)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every expert as a Conv2d draws its weights."""
        draw = get_condconv_initializer(
            lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)), self.num_experts, self.weight_shape
        )
        with torch.no_grad():
            draw(self.weight)
            if self.bias is not None:
                reach = 1 / math.sqrt(math.prod(self.weight_shape[1:]))
                self.bias.uniform_(-reach, reach)

    def forward(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        n, _, height, width = x.shape
        weight = (routing_weights @ self.weight).view(n * self.out_channels, *self.weight_shape[1:])
        bias = None if self.bias is None else (routing_weights @ self.bias).flatten()
        # Samples become groups of channels, so that one convolution has a kernel for each.
        x = x.reshape(1, n * self.in_channels, height, width)
        if self.dynamic_padding:
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        y = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups * n)
        return y.view(n, self.out_channels, y.shape[-2], y.shape[-1])

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"groups={self.groups}, num_experts={self.num_experts}, bias={self.bias is not None}"
        )
