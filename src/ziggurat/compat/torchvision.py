"""Pyramids for torchvision's detectors and its `FeaturePyramidNetwork`.

    from torchvision.models.detection import FasterRCNN
    from ziggurat.compat.torchvision import WithFPN

    body = ziggurat.create_model("resnet50", pretrained=True, features_only=True, out_strides=(4, 8, 16, 32))
    detector = FasterRCNN(WithFPN(body), num_classes=91)
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from ..backbone import Backbone
from ..errors import BadArgument, MissingExtra

try:
    from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
except ImportError as error:
    raise MissingExtra("ziggurat.compat.torchvision needs torchvision: pip install 'ziggurat[torchvision]'") from error

__all__ = ["FeatureMaps", "WithFPN"]


class FeatureMaps(nn.Module):
    """A features-only backbone as torchvision's: `forward` gives an ordered dict of maps, named '0', '1', ...

    `out_channels` is one number where all maps have it (as a detector needs), else the list (as a
    `FeaturePyramidNetwork` does). A backbone of one stride becomes a pyramid by `create_model(..., pyramid='simple')`.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        if backbone.out_indices is None:
            raise BadArgument(f"{type(backbone).__name__} gives scores; create it with features_only=True, "
                              "out_strides=(4, 8, 16, 32)")
        self.body = backbone
        channels = backbone.feature_info.channels()
        self.out_channels: int | list[int] = channels[0] if len(set(channels)) == 1 else channels

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict((str(i), level) for i, level in enumerate(self.body(x)))


class WithFPN(nn.Module):
    """A features-only backbone under torchvision's feature pyramid network (Lin et al. 2017, arXiv 1612.03144).

    `out_channels` is the width of all maps. `extra_blocks` makes coarser ones of the last (torchvision's default: one,
    by max pooling, named 'pool').
    """

    def __init__(self, backbone: Backbone, out_channels: int = 256, extra_blocks: nn.Module | None = None) -> None:
        super().__init__()
        self.maps = FeatureMaps(backbone)
        self.out_channels = out_channels
        self.fpn = FeaturePyramidNetwork(backbone.feature_info.channels(), out_channels,
                                         extra_blocks=extra_blocks or LastLevelMaxPool())

    def forward(self, x: Tensor) -> Any:
        return self.fpn(self.maps(x))
