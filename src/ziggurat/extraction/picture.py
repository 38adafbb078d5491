"""A picture of a pyramid: the input, then every level as colours of its principal components and as a heat map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..backbone import Backbone
from ..data.config import resolve_model_data_config
from ..errors import BadArgument
from .runner import image_transform

__all__ = ["draw_pyramid", "heat_rgb", "pca_rgb", "pyramid_picture"]

# black through violet, red and orange to a pale yellow: even steps of lightness, so that it reads in grey too
HEAT = ((8, 6, 28), (62, 18, 104), (139, 36, 110), (208, 62, 76), (246, 124, 36), (252, 196, 66), (252, 250, 186))
PAPER, INK, FAINT = (250, 249, 246), (34, 32, 38), (120, 116, 124)
TILE, GAP, MARGIN = 224, 12, 24  # pixels
COLUMNS = 6  # levels side by side before a new pair of rows begins


def pca_rgb(level: Tensor) -> Image.Image:
    """A level (C H W) as an image of W x H: its first three principal components as red, green and blue.

    Positions of like features have like colours. Each component is stretched between its 1st and 99th percentile; its
    sign, which the analysis leaves open, is the one that makes the largest weight of a channel positive.
    """
    channels, height, width = level.shape
    values = level.detach().float().cpu().reshape(channels, -1).T.double()
    values = torch.nan_to_num(values - values.mean(0))
    if channels <= height * width:
        _, axes = torch.linalg.eigh(values.T @ values)
        axes = axes[:, -3:].flip(1)
    else:  # the same axes, from the smaller of the two products
        _, sides = torch.linalg.eigh(values @ values.T)
        axes = values.T @ sides[:, -3:].flip(1)
        axes = axes / axes.norm(dim=0).clamp_min(1e-12)
    largest = axes.abs().argmax(0, keepdim=True)
    parts = values @ (axes * axes.gather(0, largest).sign())
    parts = torch.cat([parts, parts.new_zeros(len(parts), 3 - parts.shape[1])], 1)
    low, high = parts.quantile(0.01, dim=0), parts.quantile(0.99, dim=0)
    # a component without variation is mid-grey, not amplified rounding
    spread = high - low
    flat = spread <= 1e-9 * spread.max().clamp_min(1e-30)
    shown = torch.where(flat, 0.5, ((parts - low) / spread.clamp_min(1e-30)).clamp(0, 1))
    return Image.fromarray((shown * 255).round().to(torch.uint8).reshape(height, width, 3).numpy())


def heat_rgb(level: Tensor) -> Image.Image:
    """A level (C H W) as an image of W x H: the length of the feature vector at each position, dark to bright."""
    strength = torch.nan_to_num(level.detach().float().cpu()).norm(dim=0)
    low, high = strength.min(), strength.max()
    shown = ((strength - low) / (high - low).clamp_min(1e-12)).numpy()
    stops = np.linspace(0, 1, len(HEAT))
    colours = [np.interp(shown, stops, [stop[channel] for stop in HEAT]) for channel in range(3)]
    return Image.fromarray(np.stack(colours, -1).round().astype(np.uint8))


def pyramid_picture(image: Image.Image, levels: Sequence[tuple[int, Tensor]], title: str = "") -> Image.Image:
    """The input image, and beside it each level, a pair of stride and map (C H W): colours above, heat below."""
    if not levels:
        raise BadArgument("there is no level to draw; give one or more")
    columns = min(COLUMNS, len(levels))
    bands = math.ceil(len(levels) / columns)
    label, head = 44, 40 if title else 0
    band = label + 2 * TILE + GAP
    page = Image.new("RGB", (2 * MARGIN + TILE + 2 * GAP + columns * (TILE + GAP) - GAP,
                             2 * MARGIN + head + bands * (band + 2 * GAP) - 2 * GAP), PAPER)
    draw = ImageDraw.Draw(page)
    large, normal, small = (ImageFont.load_default(size) for size in (20, 15, 13))
    if title:
        draw.text((MARGIN, MARGIN - 6), title, INK, large)
    top = MARGIN + head
    draw.text((MARGIN, top), "input", INK, normal)
    draw.text((MARGIN, top + 19), f"{image.height} x {image.width} px", FAINT, small)
    page.paste(_fitted(image, Image.Resampling.LANCZOS), (MARGIN, top + label))
    below = top + label + TILE + GAP
    draw.text((MARGIN, below), "above", INK, normal)
    draw.text((MARGIN, below + 19), "first three principal\ncomponents as colours", FAINT, small)
    draw.text((MARGIN, below + 66), "below", INK, normal)
    draw.text((MARGIN, below + 85), "length of the feature vector,\neach level on its own scale", FAINT, small)
    bar = Image.new("RGB", (TILE - 60, 10))
    for x in range(bar.width):
        place = x / (bar.width - 1) * (len(HEAT) - 1)
        first = min(int(place), len(HEAT) - 2)
        mixed = [round(a + (b - a) * (place - first)) for a, b in zip(HEAT[first], HEAT[first + 1])]
        bar.paste((mixed[0], mixed[1], mixed[2]), (x, 0, x + 1, bar.height))
    page.paste(bar, (MARGIN, below + 128))
    draw.text((MARGIN, below + 141), "shortest", FAINT, small)
    draw.text((MARGIN + bar.width, below + 141), "longest", FAINT, small, anchor="ra")
    for index, (stride, level) in enumerate(levels):
        channels, height, width = level.shape
        left = MARGIN + TILE + 2 * GAP + index % columns * (TILE + GAP)
        y = top + index // columns * (band + 2 * GAP)
        draw.text((left, y), f"level {index}, stride {stride}", INK, normal)
        draw.text((left, y + 19), f"{channels} channels, {height} x {width}", FAINT, small)
        # nearest: the steps are the pyramid's, and hiding them would show a resolution that is not there
        page.paste(_fitted(pca_rgb(level), Image.Resampling.NEAREST), (left, y + label))
        page.paste(_fitted(heat_rgb(level), Image.Resampling.NEAREST), (left, y + label + TILE + GAP))
    return page


def draw_pyramid(
    model: Backbone, image: Image.Image, strides: int | Sequence[int] | None = None, title: str = ""
) -> Image.Image:
    """`pyramid_picture` of a model's levels for one image: all of them, or the deepest of each stride named.

    Of a features-only model, all are those that it gives.
    """
    x = image_transform(model)(image)
    parameter = next(model.parameters())
    batch = x[None].to(parameter.device, parameter.dtype)
    with torch.inference_mode():
        if strides is not None:
            levels = list(model.pyramid(batch, strides).items())
        else:
            maps = model(batch) if model.out_indices is not None else model.forward_intermediates(batch, intermediates_only=True)
            levels = list(zip(model.feature_info.reduction(), maps))
    return pyramid_picture(_as_seen(model, x), [(s, m[0]) for s, m in levels], title)


def _as_seen(model: Backbone, x: Tensor) -> Image.Image:
    """A prepared input (C H W) as the picture that it is: cropped and resized, the normalisation undone."""
    config = resolve_model_data_config(model)
    mean, std = (torch.tensor(config[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
    pixels = ((x * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels[:1].expand(3, -1, -1) if len(pixels) != 3 else pixels
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _fitted(image: Image.Image, resample: Image.Resampling) -> Image.Image:
    """An image as large as a tile allows."""
    scale = TILE / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resample)
