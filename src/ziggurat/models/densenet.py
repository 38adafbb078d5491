"""DenseNet: every layer reads what all layers before it in its block have made (Huang et al. 2016, arXiv 1608.06993).

The 264d variant has a deep stem (He et al. 2018, 1812.01187), blur121d anti-aliases the stem's pool as well (Zhang
2019, 1904.11486). The last level is what the closing norm and activation make.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import Backbone, Family
from ..layers.blur_pool import create_aa
from ..layers.create_norm_act import get_norm_act_layer
from ..layers.pool2d_ceil import AvgPool2dCeil
from ..layers.typing import LayerType

__all__ = ["DenseBlock", "DenseLayer", "DenseNet", "DenseTransition"]

NormAct = Callable[..., nn.Module]


class DenseLayer(nn.Module):
    """A 1x1 and a 3x3 convolution, norm and activation before each, that make `growth_rate` channels of many maps."""

    def __init__(
        self, num_input_features: int, growth_rate: int, bn_size: int, norm_layer: NormAct, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        width = bn_size * growth_rate
        self.norm1 = norm_layer(num_input_features)
        self.conv1 = nn.Conv2d(num_input_features, width, 1, bias=False)
        self.norm2 = norm_layer(width)
        self.conv2 = nn.Conv2d(width, growth_rate, 3, padding=1, bias=False)
        self.drop_rate = drop_rate

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The new map; `maps` are joined in here so that checkpointing keeps no copy of the joint."""
        x = torch.cat(maps, 1) if len(maps) > 1 else maps[0]
        x = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x


class DenseBlock(nn.ModuleDict):
    """Layers that each add a map to those before; all of them together come out."""

    def __init__(
        self, num_layers: int, num_input_features: int, growth_rate: int, bn_size: int, norm_layer: NormAct,
        drop_rate: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.out_chs = num_input_features + num_layers * growth_rate
        for i in range(num_layers):
            width = num_input_features + i * growth_rate
            self[f"denselayer{i + 1}"] = DenseLayer(width, growth_rate, bn_size, norm_layer, drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.values():
            maps = [*maps, layer(maps)]  # a new list: checkpointing reads the old one again
        return torch.cat(maps, 1)


class DenseTransition(nn.Sequential):
    """Norm, activation and a 1x1 convolution to fewer channels, then a pool that halves the size, rounded up."""

    def __init__(
        self, num_input_features: int, num_output_features: int, norm_layer: NormAct, aa_layer: LayerType | None = None
    ) -> None:
        super().__init__()
        self.norm = norm_layer(num_input_features)
        self.conv = nn.Conv2d(num_input_features, num_output_features, 1, bias=False)
        self.pool = AvgPool2dCeil()
        if aa_layer is not None:
            self.pool = create_aa(aa_layer, num_output_features, stride=2)


class DenseNet(Backbone):
    """A strided stem, dense blocks with transitions between them, a closing norm.

    - `growth_rate`: channels that a layer adds; `block_config`: layers of each block; `bn_size`: width of a layer's
      first convolution over the growth rate.
    - `stem_type`: '' is one 7x7 convolution, 'deep' three 3x3 ones, 'deep_tiered' three that widen.
    - `aa_layer`: anti-aliasing of the stem's pool, and of the transitions' unless `aa_stem_only`.
    - `proj_drop_rate`: dropout of what a layer adds; `memory_efficient`: checkpointing from the start.
    """

    units = r"features\.denseblock(\d+)\.denselayer(\d+)"

    def __init__(
        self,
        growth_rate: int = 32,
        block_config: Sequence[int] = (6, 12, 24, 16),
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        bn_size: int = 4,
        stem_type: str = "",
        act_layer: LayerType = "relu",
        norm_layer: LayerType = "batchnorm2d",
        aa_layer: LayerType | None = None,
        proj_drop_rate: float = 0.0,
        memory_efficient: bool = False,
        aa_stem_only: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, **kwargs)
        norm_act = get_norm_act_layer(norm_layer, act_layer)
        assert norm_act is not None
        width = 2 * growth_rate
        self.features = nn.Sequential()
        convs = self._stem_convs(in_chans, growth_rate, stem_type)
        for i, conv in enumerate(convs):
            self.features.add_module(f"conv{i}", conv)
            self.features.add_module(f"norm{i}", norm_act(conv.out_channels))
        self.plan.spend(2)
        self.plan.mark(width, f"features.norm{len(convs) - 1}")
        self.features.add_module("pool0", self._stem_pool(width, aa_layer))

        for i, depth in enumerate(block_config):
            self.plan.spend(2)
            block = DenseBlock(depth, width, growth_rate, bn_size, norm_act, proj_drop_rate)
            self.features.add_module(f"denseblock{i + 1}", block)
            width = block.out_chs
            if i < len(block_config) - 1:
                self.plan.mark(width, f"features.denseblock{i + 1}")
                transition = DenseTransition(width, width // 2, norm_act, None if aa_stem_only else aa_layer)
                self.features.add_module(f"transition{i + 1}", transition)
                width //= 2
        self.features.add_module("norm5", norm_act(width))
        self.plan.mark(width, "features.norm5")
        self.make_head("classifier")
        self.set_grad_checkpointing(memory_efficient)

    @staticmethod
    def _stem_convs(in_chans: int, growth_rate: int, stem_type: str) -> list[nn.Conv2d]:
        if "deep" not in stem_type:
            return [nn.Conv2d(in_chans, 2 * growth_rate, 7, stride=2, padding=3, bias=False)]
        widths = (in_chans, growth_rate, growth_rate, 2 * growth_rate)
        if "tiered" in stem_type:
            unit = growth_rate // 4
            widths = (in_chans, 3 * unit, 2 * growth_rate if "narrow" in stem_type else 6 * unit, 2 * growth_rate)
        return [
            nn.Conv2d(widths[i], widths[i + 1], 3, stride=2 if i == 0 else 1, padding=1, bias=False) for i in range(3)
        ]

    @staticmethod
    def _stem_pool(width: int, aa_layer: LayerType | None) -> nn.Module:
        if aa_layer is None:
            return nn.MaxPool2d(3, stride=2, padding=1)
        return nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), create_aa(aa_layer, width, stride=2))

    def init_weights(self) -> None:
        """He initialisation of convolutions (fan in); the classifier's bias starts as zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def remap_checkpoint(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """torchvision's oldest checkpoints, whose layers are called `norm.1` and `conv.2` and so on."""
        dotted = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)")
        return {dotted.sub(r"\1\2", name): tensor for name, tensor in state_dict.items()}

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        levels = [level["module"] for level in self.plan.levels]
        for name, module in self.features.named_children():
            x = module(x)
            if f"features.{name}" in levels:
                yield x


BLUR = dict(aa_layer="blur")
DEEP = dict(stem_type="deep")

D121 = dict(growth_rate=32, block_config=(6, 12, 24, 16))

family = Family(DenseNet, {
    "densenet121": D121,
    "densenet161": dict(growth_rate=48, block_config=(6, 12, 36, 24)),
    "densenet169": dict(growth_rate=32, block_config=(6, 12, 32, 32)),
    "densenet201": dict(growth_rate=32, block_config=(6, 12, 48, 32)),
    "densenet264d": DEEP | dict(growth_rate=48, block_config=(6, 12, 64, 48)),
    "densenetblur121d": D121 | DEEP | BLUR,
})  # fmt: skip

__getattr__ = family.entrypoint
