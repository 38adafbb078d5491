"""Activations that torch lacks, or has without the `inplace` argument that makes them interchangeable.

Every function takes `(x, inplace=False)` and every module `(inplace=False)`; where torch has no in-place form the
argument is accepted and a new tensor returned.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "GELU",
    "GELUTanh",
    "HardMish",
    "HardSigmoid",
    "HardSwish",
    "Mish",
    "PReLU",
    "QuickGELU",
    "Sigmoid",
    "Swish",
    "Tanh",
    "gelu",
    "gelu_tanh",
    "hard_mish",
    "hard_sigmoid",
    "hard_swish",
    "mish",
    "quick_gelu",
    "sigmoid",
    "swish",
    "tanh",
]


def swish(x: Tensor, inplace: bool = False) -> Tensor:
    """x * sigmoid(x), also named SiLU (Ramachandran et al. 2017, arXiv 1710.05941)."""
    return F.silu(x, inplace=inplace)


def mish(x: Tensor, inplace: bool = False) -> Tensor:
    """x * tanh(softplus(x)) (Misra 2019, arXiv 1908.08681)."""
    return F.mish(x, inplace=inplace)


def sigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    """The logistic function."""
    return x.sigmoid_() if inplace else x.sigmoid()


def tanh(x: Tensor, inplace: bool = False) -> Tensor:
    """The hyperbolic tangent."""
    return x.tanh_() if inplace else x.tanh()


def hard_sigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    """relu6(x + 3) / 6, a sigmoid of straight lines (MobileNetV3, Howard et al. 2019, arXiv 1905.02244)."""
    return F.hardsigmoid(x, inplace=inplace)


def hard_swish(x: Tensor, inplace: bool = False) -> Tensor:
    """x * hard_sigmoid(x) (MobileNetV3, Howard et al. 2019, arXiv 1905.02244)."""
    return F.hardswish(x, inplace=inplace)


def hard_mish(x: Tensor, inplace: bool = False) -> Tensor:
    """x * clamp(x + 2, 0, 2) / 2, a Mish of straight lines and one parabola."""
    gate = (x + 2).clamp(min=0, max=2) * 0.5
    return x.mul_(gate) if inplace else x * gate


def gelu(x: Tensor, inplace: bool = False) -> Tensor:
    """x times the normal distribution function of x (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""
    return F.gelu(x)


def gelu_tanh(x: Tensor, inplace: bool = False) -> Tensor:
    """GELU with the distribution function approximated by a tanh, as in BERT and GPT code."""
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor, inplace: bool = False) -> Tensor:
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * (x * 1.702).sigmoid()


class _Activation(nn.Module):
    """A module around one of the functions above."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class Swish(_Activation):
    """The module of `swish`."""

    def forward(self, x: Tensor) -> Tensor:
        return swish(x, self.inplace)


class Mish(_Activation):
    """The module of `mish`."""

    def forward(self, x: Tensor) -> Tensor:
        return mish(x, self.inplace)


class Sigmoid(_Activation):
    """The module of `sigmoid`."""

    def forward(self, x: Tensor) -> Tensor:
        return sigmoid(x, self.inplace)


class Tanh(_Activation):
    """The module of `tanh`."""

    def forward(self, x: Tensor) -> Tensor:
        return tanh(x, self.inplace)


class HardSigmoid(_Activation):
    """The module of `hard_sigmoid`."""

    def forward(self, x: Tensor) -> Tensor:
        return hard_sigmoid(x, self.inplace)


class HardSwish(_Activation):
    """The module of `hard_swish`."""

    def forward(self, x: Tensor) -> Tensor:
        return hard_swish(x, self.inplace)


class HardMish(_Activation):
    """The module of `hard_mish`."""

    def forward(self, x: Tensor) -> Tensor:
        return hard_mish(x, self.inplace)


class GELU(_Activation):
    """The module of `gelu`."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)


class GELUTanh(_Activation):
    """The module of `gelu_tanh`."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu_tanh(x)


class QuickGELU(_Activation):
    """The module of `quick_gelu`."""

    def forward(self, x: Tensor) -> Tensor:
        return quick_gelu(x)


class PReLU(nn.PReLU):
    """torch's PReLU, taking (and not using) `inplace`."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25, inplace: bool = False) -> None:
        super().__init__(num_parameters=num_parameters, init=init)
