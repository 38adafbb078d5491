"""Feed-forward blocks: the two-layer perceptron and its gated, convolutional and normed relatives.

All of them map the channel axis from `in_features` over `hidden_features` to `out_features`, each of the latter being
`in_features` unless given. `drop` and, where it is a pair, `bias` have one value for each layer or one for both.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from ziggurat.errors import BadArgument

from .create_act import create_act_layer
from .grn import GlobalResponseNorm
from .shapes import to_2tuple
from .typing import LayerType

__all__ = ["ConvMlp", "GatedMlp", "GlobalResponseNormMlp", "GluMlp", "Mlp", "SwiGLU", "SwiGLUPacked"]


def pointwise(use_conv: bool) -> Any:
    """The layer that mixes channels position by position: a 1x1 convolution, or a linear layer."""
    return partial(nn.Conv2d, kernel_size=1) if use_conv else nn.Linear


def even(hidden: int) -> int:
    """The width, which must be even because the block halves it."""
    if hidden % 2:
        raise BadArgument(f"hidden_features={hidden}: a gated block halves its hidden layer, so use an even number")
    return hidden


class Mlp(nn.Module):
    """Two layers with an activation between them: (..., C) to (..., C'), or maps (N, C, H, W) with `use_conv`."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: LayerType = nn.GELU,
        norm_layer: type[nn.Module] | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        use_conv: bool = False,
    ) -> None:
        super().__init__()
        hidden = hidden_features or in_features
        layer = pointwise(use_conv)
        biases, drops = to_2tuple(bias), to_2tuple(drop)
        self.fc1 = layer(in_features, hidden, bias=biases[0])
        self.act = create_act_layer(act_layer)
        self.drop1 = nn.Dropout(drops[0])
        self.norm = nn.Identity() if norm_layer is None else norm_layer(hidden)
        self.fc2 = layer(hidden, out_features or in_features, bias=biases[1])
        self.drop2 = nn.Dropout(drops[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.drop1(self.act(self.fc1(x)))
        return self.drop2(self.fc2(self.norm(hidden)))


class GluMlp(nn.Module):
    """A gated linear unit whose value and gate come from one layer (Shazeer 2020, arXiv 2002.05202).

    `hidden_features` counts both halves; `gate_last` says that the gate is the second half.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: LayerType = nn.Sigmoid,
        norm_layer: type[nn.Module] | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        use_conv: bool = False,
        gate_last: bool = True,
    ) -> None:
        super().__init__()
        hidden = even(hidden_features or in_features)
        layer = pointwise(use_conv)
        biases, drops = to_2tuple(bias), to_2tuple(drop)
        self.channel_dim = 1 if use_conv else -1
        self.gate_last = gate_last
        self.fc1 = layer(in_features, hidden, bias=biases[0])
        self.act = create_act_layer(act_layer)
        self.drop1 = nn.Dropout(drops[0])
        self.norm = nn.Identity() if norm_layer is None else norm_layer(hidden // 2)
        self.fc2 = layer(hidden // 2, out_features or in_features, bias=biases[1])
        self.drop2 = nn.Dropout(drops[1])

    def init_weights(self) -> None:
        """Begin with a gate that hardly depends on the input."""
        half = self.fc1.weight.shape[0] // 2
        nn.init.normal_(self.fc1.weight[half:], std=1e-6)
        if self.fc1.bias is not None:
            nn.init.ones_(self.fc1.bias[half:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.fc1(x).chunk(2, dim=self.channel_dim)
        gated = first * self.act(second) if self.gate_last else self.act(first) * second
        return self.drop2(self.fc2(self.norm(self.drop1(gated))))


SwiGLUPacked = partial(GluMlp, act_layer=nn.SiLU, gate_last=False)


class SwiGLU(nn.Module):
    """A SiLU-gated linear unit with a layer for the value and one for the gate (Shazeer 2020, arXiv 2002.05202).

    `hidden_features` counts one half; it is rounded up to a multiple of `align_to` where that is given.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: LayerType = nn.SiLU,
        norm_layer: type[nn.Module] | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        align_to: int = 0,
    ) -> None:
        super().__init__()
        hidden = hidden_features or in_features
        if align_to:
            hidden += -hidden % align_to
        biases, drops = to_2tuple(bias), to_2tuple(drop)
        self.fc1_g = nn.Linear(in_features, hidden, bias=biases[0])
        self.fc1_x = nn.Linear(in_features, hidden, bias=biases[0])
        self.act = create_act_layer(act_layer)
        self.drop1 = nn.Dropout(drops[0])
        self.norm = nn.Identity() if norm_layer is None else norm_layer(hidden)
        self.fc2 = nn.Linear(hidden, out_features or in_features, bias=biases[1])
        self.drop2 = nn.Dropout(drops[1])

    def init_weights(self) -> None:
        """Begin with a gate that hardly depends on the input."""
        nn.init.normal_(self.fc1_g.weight, std=1e-6)
        if self.fc1_g.bias is not None:
            nn.init.ones_(self.fc1_g.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gated = self.act(self.fc1_g(x)) * self.fc1_x(x)
        return self.drop2(self.fc2(self.norm(self.drop1(gated))))


class GatedMlp(nn.Module):
    """A perceptron with a gating layer, such as gMLP's spatial gate, in its middle (Liu et al. 2021, arXiv 2105.08050).

    `gate_layer(hidden_features)` must halve the channels; without it this is a plain perceptron.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: LayerType = nn.GELU,
        norm_layer: type[nn.Module] | None = None,
        gate_layer: LayerType | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
    ) -> None:
        super().__init__()
        hidden = hidden_features or in_features
        biases, drops = to_2tuple(bias), to_2tuple(drop)
        self.fc1 = nn.Linear(in_features, hidden, bias=biases[0])
        self.act = create_act_layer(act_layer)
        self.drop1 = nn.Dropout(drops[0])
        self.gate: nn.Module = nn.Identity()
        if gate_layer is not None:
            self.gate = gate_layer(even(hidden))  # type: ignore[operator]
            hidden //= 2
        self.norm = nn.Identity() if norm_layer is None else norm_layer(hidden)
        self.fc2 = nn.Linear(hidden, out_features or in_features, bias=biases[1])
        self.drop2 = nn.Dropout(drops[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.gate(self.drop1(self.act(self.fc1(x))))
        return self.drop2(self.fc2(self.norm(hidden)))


class ConvMlp(nn.Module):
    """Two 1x1 convolutions with a norm and an activation between them: (N, C, H, W) to (N, C', H, W)."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: LayerType = nn.ReLU,
        norm_layer: type[nn.Module] | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = hidden_features or in_features
        biases = to_2tuple(bias)
        self.fc1 = nn.Conv2d(in_features, hidden, 1, bias=biases[0])
        self.norm = nn.Identity() if norm_layer is None else norm_layer(hidden)
        self.act = create_act_layer(act_layer)
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Conv2d(hidden, out_features or in_features, 1, bias=biases[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.drop(self.act(self.norm(self.fc1(x)))))


class GlobalResponseNormMlp(nn.Module):
    """A perceptron with global response normalisation after its activation (Woo et al. 2023, arXiv 2301.00808).

    (N, H, W, C) to (N, H, W, C'), or (N, C, H, W) with `use_conv`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: LayerType = nn.GELU,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        use_conv: bool = False,
    ) -> None:
        super().__init__()
        hidden = hidden_features or in_features
        layer = pointwise(use_conv)
        biases, drops = to_2tuple(bias), to_2tuple(drop)
        self.fc1 = layer(in_features, hidden, bias=biases[0])
        self.act = create_act_layer(act_layer)
        self.drop1 = nn.Dropout(drops[0])
        self.grn = GlobalResponseNorm(hidden, channels_last=not use_conv)
        self.fc2 = layer(hidden, out_features or in_features, bias=biases[1])
        self.drop2 = nn.Dropout(drops[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.drop1(self.act(self.fc1(x)))
        return self.drop2(self.fc2(self.grn(hidden)))
