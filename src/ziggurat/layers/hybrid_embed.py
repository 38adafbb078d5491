"""The features of a convolutional network as the patches of a transformer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ziggurat.errors import BadArgument

from .format import Format, nchw_to
from .padding import pad_to_multiple
from .patch_embed import resized_patch_conv
from .shapes import to_2tuple

__all__ = ["HybridEmbed", "HybridEmbedWithSize"]

Size = int | tuple[int, int]


class HybridEmbed(nn.Module):
    """A backbone's last map, cut into patches and projected (Dosovitskiy et al. 2020, arXiv 2010.11929).

    (N, in_chans, H, W) to tokens (N, L, embed_dim), to a map with `flatten=False`, or to the order of axes named by
    `output_fmt`. The shape of the features is taken from `feature_size`, or seen by running the backbone once. With
    `proj=False` the features are the tokens, and must have `embed_dim` channels.
    """

    def __init__(
        self,
        backbone: nn.Module,
        img_size: Size = 224,
        patch_size: Size = 1,
        feature_size: Size | None = None,
        feature_ratio: Size | None = None,
        in_chans: int = 3,
        embed_dim: int = 768,
        bias: bool = True,
        proj: bool = True,
        flatten: bool = True,
        output_fmt: str | None = None,
        strict_img_size: bool = True,
        dynamic_img_pad: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.in_chans = in_chans
        self.patch_size: tuple[int, int] = to_2tuple(patch_size)
        self.flatten = flatten and output_fmt is None
        self.output_fmt = Format(output_fmt or "NCHW")
        self.strict_img_size = strict_img_size
        self.dynamic_img_pad = dynamic_img_pad
        self.measure(img_size, feature_size, feature_ratio)
        self.proj: nn.Module = nn.Identity()
        if proj:
            self.proj = nn.Conv2d(
                self.feature_dim, embed_dim, kernel_size=self.patch_size, stride=self.patch_size, bias=bias
            )
        elif self.feature_dim != embed_dim:
            raise BadArgument(
                f"proj=False hands on the backbone's {self.feature_dim} channels, not embed_dim={embed_dim}; make them equal"
            )

    def observed_shape(self, img_size: tuple[int, int]) -> torch.Size:
        """The shape of the last map for an image of that size, seen by one pass that leaves no trace."""
        modes = {module: module.training for module in self.backbone.modules()}
        some = next(self.backbone.parameters(), None)
        place: dict[str, Any] = dict(device=some.device, dtype=some.dtype) if some is not None else {}
        self.backbone.eval()
        with torch.no_grad():
            out: Any = self.backbone(torch.zeros(1, self.in_chans, *img_size, **place))
        for module, mode in modes.items():
            module.training = mode
        return (out[-1] if isinstance(out, (list, tuple)) else out).shape

    def channels(self) -> int:
        """What the backbone says of the channels of its last map."""
        info: Any = getattr(self.backbone, "feature_info", None)
        channels = info.channels() if hasattr(info, "channels") else getattr(self.backbone, "num_features", None)
        if channels is None:
            raise BadArgument("feature_size is given but the backbone names no channels: leave feature_size out")
        return channels[-1] if isinstance(channels, (list, tuple)) else channels

    def measure(self, img_size: Size, feature_size: Size | None = None, feature_ratio: Size | None = None) -> None:
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        if feature_size is None:
            shape = self.observed_shape(self.img_size)
            self.feature_dim, self.feature_size = int(shape[1]), (int(shape[2]), int(shape[3]))
        else:
            self.feature_dim, self.feature_size = self.channels(), to_2tuple(feature_size)
        sides = zip(self.img_size, self.feature_size)
        self.feature_ratio: tuple[int, int] = to_2tuple(feature_ratio or tuple(image // side for image, side in sides))
        if not self.dynamic_img_pad and any(f % p for f, p in zip(self.feature_size, self.patch_size)):
            raise BadArgument(
                f"features of {self.feature_size} are not of whole patches of {self.patch_size}; use another img_size "
                "or patch_size, or dynamic_img_pad=True"
            )
        self.grid_size = (self.feature_size[0] // self.patch_size[0], self.feature_size[1] // self.patch_size[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def set_input_size(
        self,
        img_size: Size | None = None,
        patch_size: Size | None = None,
        feature_size: Size | None = None,
        feature_ratio: Size | None = None,
    ) -> None:
        """Take images or patches of another size from now on; the weights are resampled for another patch size."""
        new_patch = self.patch_size if patch_size is None else to_2tuple(patch_size)
        new_image = self.img_size if img_size is None else to_2tuple(img_size)
        if new_patch != self.patch_size:
            if not isinstance(self.proj, nn.Conv2d):
                raise BadArgument("patch_size cannot change where proj=False: there is no projection to resample")
            self.proj = resized_patch_conv(self.proj, new_patch)
            self.patch_size = new_patch
            if new_image == self.img_size and feature_size is None:
                feature_size, feature_ratio = self.feature_size, feature_ratio or self.feature_ratio
                self.regrid(feature_size)
                return
        elif new_image == self.img_size and feature_size is None:
            return
        self.measure(new_image, feature_size, feature_ratio)

    def regrid(self, feature_size: tuple[int, int]) -> None:
        """Count the patches anew, the features being as they were."""
        self.grid_size = (feature_size[0] // self.patch_size[0], feature_size[1] // self.patch_size[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels a patch: the longer side, or both."""
        both = (self.feature_ratio[0] * self.patch_size[0], self.feature_ratio[1] * self.patch_size[1])
        return max(both) if as_scalar else both

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """The grid of patches for an image of that size."""
        (height, width), (down, across) = img_size, self.patch_size
        tall, wide = self.feature_ratio
        if self.dynamic_img_pad:
            return math.ceil(math.ceil(height / tall) / down), math.ceil(math.ceil(width / wide) / across)
        return height // tall // down, width // wide // across

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Pass the wish on to the backbone, where it can be met."""
        backbone: Any = self.backbone
        if hasattr(backbone, "set_grad_checkpointing"):
            backbone.set_grad_checkpointing(enable)
        elif hasattr(backbone, "grad_checkpointing"):
            backbone.grad_checkpointing = enable

    def features(self, x: torch.Tensor) -> torch.Tensor:
        out: Any = self.backbone(x)
        return out[-1] if isinstance(out, (list, tuple)) else out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        if self.dynamic_img_pad:
            x = pad_to_multiple(x, self.patch_size)
        x = self.proj(x)
        if self.flatten:
            return x.flatten(2).transpose(1, 2)
        return nchw_to(x, self.output_fmt) if self.output_fmt != Format.NCHW else x


class HybridEmbedWithSize(HybridEmbed):
    """A hybrid embedding that also returns the grid, (height, width), of its tokens."""

    def __init__(
        self,
        backbone: nn.Module,
        img_size: Size = 224,
        patch_size: Size = 1,
        feature_size: Size | None = None,
        feature_ratio: Size | None = None,
        in_chans: int = 3,
        embed_dim: int = 768,
        bias: bool = True,
        proj: bool = True,
    ) -> None:
        super().__init__(
            backbone,
            img_size=img_size,
            patch_size=patch_size,
            feature_size=feature_size,
            feature_ratio=feature_ratio,
            in_chans=in_chans,
            embed_dim=embed_dim,
            bias=bias,
            proj=proj,
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:  # type: ignore[override]
        x = self.proj(self.features(x))
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])
