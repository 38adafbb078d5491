"""Patches of an image as tokens, and the weights that make them at another patch size."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ziggurat.errors import BadArgument

from .format import Format, nchw_to
from .guards import blocks, require, surely_equal
from .padding import pad_to_multiple
from .shapes import to_2tuple

__all__ = [
    "PatchEmbed",
    "PatchEmbedInterpolator",
    "PatchEmbedResamplerFixedOrigSize",
    "PatchEmbedWithSize",
    "resample_patch_embed",
    "resized_patch_conv",
]

log = logging.getLogger(__name__)


def _compute_resize_matrix(
    old_size: tuple[int, int],
    new_size: tuple[int, int],
    interpolation: str,
    antialias: bool,
    device: torch.device | str | None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Image interpolation as the matrix that it is, (new cells, old cells): its columns are resized unit images."""
    cells = old_size[0] * old_size[1]
    units = torch.eye(cells, device=device, dtype=dtype).reshape(cells, 1, *old_size)
    resized = F.interpolate(units, size=new_size, mode=interpolation, antialias=antialias, align_corners=False)
    return resized.flatten(1).t()


def resample_with(matrix: torch.Tensor, weight: torch.Tensor, new_size: tuple[int, int]) -> torch.Tensor:
    """Weights (out, in, h, w) times the matrix (new cells, old cells), computed in the matrix's dtype."""
    with torch.autocast(device_type=weight.device.type, enabled=False):
        resized = weight.flatten(2).to(matrix.dtype) @ matrix.t()
    return resized.unflatten(2, new_size).to(weight.dtype)


def resample_patch_embed(
    patch_embed: torch.Tensor,
    new_size: Sequence[int],
    interpolation: str = "bicubic",
    antialias: bool = True,
    verbose: bool = False,
) -> torch.Tensor:
    """Patch weights (out, in, h, w) at another patch size, so that resized patches embed as the old ones did.

    That is the pseudo-inverse of the images' interpolation (Beyer et al. 2022, FlexiViT, arXiv 2212.08013). Weights of
    the new size come back untouched. Raises `BadArgument` for other than four axes and two sizes.
    """
    if patch_embed.ndim != 4 or len(new_size) != 2:
        raise BadArgument(
            f"weights {tuple(patch_embed.shape)} to size {tuple(new_size)}: pass weights (out, in, height, width) and "
            "a size (height, width)"
        )
    old, new = (patch_embed.shape[2], patch_embed.shape[3]), (int(new_size[0]), int(new_size[1]))
    if old == new:
        return patch_embed
    if verbose:
        log.info("patch embedding resized from %s to %s", old, new)
    matrix = _compute_resize_matrix(old, new, interpolation, antialias, patch_embed.device)
    return resample_with(torch.linalg.pinv(matrix.t()), patch_embed, new)


def resized_patch_conv(conv: nn.Conv2d, patch_size: tuple[int, int]) -> nn.Conv2d:
    """A patch convolution like this one at another patch size: same mode, same frozen parameters, resampled weights."""
    new = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        kernel_size=patch_size,
        stride=patch_size,
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    with torch.no_grad():
        new.weight.copy_(resample_patch_embed(conv.weight, patch_size))
        if new.bias is not None and conv.bias is not None:
            new.bias.copy_(conv.bias)
    new.weight.requires_grad_(conv.weight.requires_grad)
    if new.bias is not None and conv.bias is not None:
        new.bias.requires_grad_(conv.bias.requires_grad)
    return new.train(conv.training)


class PatchEmbed(nn.Module):
    """Each patch of an image through one linear layer (Dosovitskiy et al. 2020, arXiv 2010.11929).

    (N, in_chans, H, W) to tokens (N, L, embed_dim), to (N, embed_dim, H', W') with `flatten=False`, or to the order of
    axes named by `output_fmt`. Images must be of `img_size`, unless `strict_img_size` is False or no size was given:
    then of whole patches, or of any size with `dynamic_img_pad`, which pads. Else `BadArgument` is raised.
    """

    pads_other_sizes: bool = False
    """Images of any size but `img_size` are padded, those of `img_size` cut as published: for networks to set."""

    def __init__(
        self,
        img_size: int | tuple[int, int] | None = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        norm_layer: Callable[..., nn.Module] | None = None,
        flatten: bool = True,
        output_fmt: str | None = None,
        bias: bool = True,
        strict_img_size: bool = True,
        dynamic_img_pad: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = to_2tuple(patch_size)
        self.img_size: tuple[int, int] | None = None
        self.grid_size: tuple[int, int] | None = None
        self.num_patches: int | None = None
        self.take_img_size(img_size)
        self.flatten = flatten and output_fmt is None
        self.output_fmt = Format(output_fmt or "NCHW")
        self.strict_img_size = strict_img_size
        self.dynamic_img_pad = dynamic_img_pad
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=self.patch_size, stride=self.patch_size, bias=bias)
        self.norm = norm_layer(embed_dim) if norm_layer is not None else nn.Identity()

    def take_img_size(self, img_size: int | tuple[int, int] | None) -> None:
        if img_size is None:
            return
        self.img_size = to_2tuple(img_size)
        self.grid_size = (self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Take images or patches of another size from now on; the weights are resampled for another patch size."""
        if patch_size is not None and to_2tuple(patch_size) != self.patch_size:
            self.patch_size = to_2tuple(patch_size)
            self.proj = resized_patch_conv(self.proj, self.patch_size)
        self.take_img_size(self.img_size if img_size is None else img_size)

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels a patch: the longer side, or both."""
        return max(self.patch_size) if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """The grid of patches for an image of that size, which may be a traced one."""
        (height, width), (down, across) = img_size, self.patch_size
        if self.pads(height, width):
            return blocks(height, down), blocks(width, across)
        return height // down, width // across

    def pads(self, height: int, width: int) -> bool:
        """Whether an image of that size is padded to whole patches, with zeros below and to the right."""
        if self.pads_other_sizes and self.img_size is not None:
            return self.dynamic_img_pad or not surely_equal((height, width), self.img_size)
        return self.dynamic_img_pad

    def check(self, height: int, width: int) -> None:
        """Raise `BadArgument` for an image of a size that this layer does not take."""
        if self.pads_other_sizes:
            return
        down, across = self.patch_size
        if self.img_size is not None and self.strict_img_size:
            require(
                (height == self.img_size[0]) & (width == self.img_size[1]),
                f"an image of {height} x {width}, where the model takes {self.img_size[0]} x {self.img_size[1]}; resize "
                "it, or build the model with this img_size or with dynamic_img_size=True",
            )
        elif not self.dynamic_img_pad:
            require(
                (height % down == 0) & (width % across == 0),
                f"an image of {height} x {width} is not of whole patches of {down} x {across}; resize it, or build the "
                "model with dynamic_img_pad=True",
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.img_size is not None:
            self.check(x.shape[2], x.shape[3])
        if self.pads(x.shape[2], x.shape[3]):
            x = pad_to_multiple(x, self.patch_size)
        x = self.proj(x)
        if self.flatten:
            x = x.flatten(2).transpose(1, 2)
        elif self.output_fmt == Format.NHWC:
            x = x.permute(0, 2, 3, 1)  # at once: torch.compile of torch 2.6 cannot look into `nchw_to`
        elif self.output_fmt != Format.NCHW:
            x = nchw_to(x, self.output_fmt)
        return self.norm(x)


class PatchEmbedWithSize(PatchEmbed):
    """A patch embedding that also returns the grid, (height, width), of its patches; it takes images of whole patches."""

    def __init__(
        self,
        img_size: int | tuple[int, int] | None = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        norm_layer: Callable[..., nn.Module] | None = None,
        flatten: bool = True,
        output_fmt: str | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__(
            img_size, patch_size, in_chans, embed_dim, norm_layer, flatten, output_fmt, bias, strict_img_size=False
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:  # type: ignore[override]
        grid = (x.shape[2] // self.patch_size[0], x.shape[3] // self.patch_size[1])
        return super().forward(x), grid


class PatchEmbedResamplerFixedOrigSize(nn.Module):
    """Resampling of patch weights from one fixed size to any, with the matrices kept.

    The matrices are no part of the state: a copy for another device computes its own, and moving or casting the module
    forgets them.
    """

    def __init__(
        self,
        orig_size: tuple[int, int],
        interpolation: str = "bicubic",
        antialias: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.orig_size = to_2tuple(orig_size)
        self.interpolation = interpolation
        self.antialias = antialias
        self._pinv_cache_map: dict[tuple[Any, ...], torch.Tensor] = {}
        # follows the module from device to device, and so says where it is
        self.register_buffer("where", torch.empty(0, device=device), persistent=False)

    def _apply(self, fn: Callable[..., torch.Tensor], recurse: bool = True) -> PatchEmbedResamplerFixedOrigSize:
        super()._apply(fn, recurse)
        self._pinv_cache_map = {}
        return self

    def _get_or_create_pinv_matrix(
        self, new_size: tuple[int, int], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        device = torch.device(device)
        if device.type == "cpu":
            device = torch.device("cpu")  # 'cpu:0' names the same place
        key = (tuple(new_size), device, dtype)
        if key not in self._pinv_cache_map:
            with torch.autocast(device_type=device.type, enabled=False):
                matrix = _compute_resize_matrix(
                    self.orig_size, new_size, self.interpolation, self.antialias, device, dtype
                )
                self._pinv_cache_map[key] = torch.linalg.pinv(matrix.t() if isinstance(matrix, torch.Tensor) else matrix)
        return self._pinv_cache_map[key]

    def prewarm(
        self, target_sizes: Iterable[int | tuple[int, int]], device: torch.device | str | None = None
    ) -> None:
        """Compute the matrices for these sizes now, as a compiled model needs."""
        for size in target_sizes:
            if to_2tuple(size) != self.orig_size:
                place = self.get_buffer("where").device if device is None else torch.device(device)
                self._get_or_create_pinv_matrix(to_2tuple(size), place)

    def forward(self, patch_embed: torch.Tensor, new_size: Sequence[int]) -> torch.Tensor:
        size = (int(new_size[0]), int(new_size[1]))
        if size == self.orig_size:
            return patch_embed
        return resample_with(self._get_or_create_pinv_matrix(size, patch_embed.device), patch_embed, size)


class PatchEmbedInterpolator(nn.Module):
    """Patch embedding at a patch size chosen anew in each pass, from weights that another module holds.

    A linear weight is (embed_dim, height * width * in_chans), in that order with `channels_last`, otherwise with the
    channels first; a convolution's is (embed_dim, in_chans, height, width).
    """

    def __init__(
        self,
        base_patch_size: tuple[int, int],
        in_chans: int = 3,
        embed_dim: int = 768,
        interpolation: str = "bicubic",
        antialias: bool = True,
        channels_last: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.base_patch_size = to_2tuple(base_patch_size)
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.channels_last = channels_last
        self.resampler = PatchEmbedResamplerFixedOrigSize(self.base_patch_size, interpolation, antialias, device)

    def prewarm(
        self, target_patch_sizes: Iterable[int | tuple[int, int]], device: torch.device | str | None = None
    ) -> None:
        """Compute the matrices for these patch sizes now; moving or casting the module forgets them."""
        self.resampler.prewarm(target_patch_sizes, device)

    def resample_linear_weight(self, weight: torch.Tensor, target_patch_size: tuple[int, int]) -> torch.Tensor:
        """The linear weight for another patch size."""
        if tuple(target_patch_size) == self.base_patch_size:
            return weight
        if self.channels_last:
            kernel = weight.unflatten(1, (*self.base_patch_size, self.in_chans)).permute(0, 3, 1, 2)
            return self.resampler(kernel, target_patch_size).permute(0, 2, 3, 1).flatten(1)
        kernel = weight.unflatten(1, (self.in_chans, *self.base_patch_size))
        return self.resampler(kernel, target_patch_size).flatten(1)

    def resample_conv_weight(self, weight: torch.Tensor, target_patch_size: tuple[int, int]) -> torch.Tensor:
        """The convolution's weight for another patch size."""
        return self.resampler(weight, target_patch_size)

    def forward(
        self,
        patches: torch.Tensor,
        proj_weight: torch.Tensor,
        proj_bias: torch.Tensor | None = None,
        patch_size: tuple[int, int] | None = None,
        is_linear: bool = True,
    ) -> torch.Tensor:
        """Embed patches cut at `patch_size`, by default the size of the weights.

        For a linear weight (N, L, height, width, channels), with the channels before the height unless
        `channels_last`, or already flat (N, L, values); for a convolution an image (N, channels, H, W).
        """
        size = self.base_patch_size if patch_size is None else to_2tuple(patch_size)
        if is_linear:
            flat = patches.flatten(2) if patches.ndim > 3 else patches
            return F.linear(flat, self.resample_linear_weight(proj_weight, size), proj_bias)
        return F.conv2d(patches, self.resample_conv_weight(proj_weight, size), proj_bias, stride=size)
