"""Global context: one attention-pooled summary of the map, given back to every position."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .create_act import create_act_layer
from .mlp import ConvMlp
from .norm import LayerNorm2d
from .shapes import make_divisible
from .typing import LayerType

__all__ = ["GlobalContext"]


class GlobalContext(nn.Module):
    """The global context block (Cao et al. 2019, arXiv 1904.11492). Maps (N, C, H, W) to the same shape.

    The summary is a softmax-weighted mean of the positions (`use_attn`) or the plain mean. It scales the map
    (`fuse_scale`, through the gate), is added to it (`fuse_add`), or both. The additive path starts at nothing;
    `init_last_zero` is accepted and changes nothing, as in the published networks.
    """

    def __init__(
        self,
        channels: int,
        use_attn: bool = True,
        fuse_add: bool = False, fuse_scale: bool = True,
        init_last_zero: bool = False,
        rd_ratio: float = 1.0 / 8,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        act_layer: LayerType = nn.ReLU,
        gate_layer: LayerType = "sigmoid",
    ) -> None:
        super().__init__()
        width = rd_channels or make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
        self.conv_attn = nn.Conv2d(channels, 1, 1) if use_attn else None
        self.mlp_add = ConvMlp(channels, width, act_layer=act_layer, norm_layer=LayerNorm2d) if fuse_add else None
        self.mlp_scale = ConvMlp(channels, width, act_layer=act_layer, norm_layer=LayerNorm2d) if fuse_scale else None
        self.gate = create_act_layer(gate_layer)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.conv_attn is not None:
            nn.init.kaiming_normal_(self.conv_attn.weight, mode="fan_in", nonlinearity="relu")
        if self.mlp_add is not None:
            nn.init.zeros_(self.mlp_add.fc2.weight)

    def context(self, x: torch.Tensor) -> torch.Tensor:
        """The (N, C, 1, 1) summary."""
        if self.conv_attn is None:
            return x.mean(dim=(2, 3), keepdim=True)
        share = F.softmax(self.conv_attn(x).flatten(2), dim=-1)  # N, 1, HW
        return (x.flatten(2) @ share.transpose(1, 2)).unsqueeze(-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        context = self.context(x)
        if self.mlp_scale is not None:
            x = x * self.gate(self.mlp_scale(context))
        if self.mlp_add is not None:
            x = x + self.mlp_add(context)
        return x
