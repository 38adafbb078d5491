"""The steps from a PIL image to a tensor, on Pillow and torch alone.

Sizes are (height, width) in pixels. Rounding is that of torchvision and timm to the last pixel, because published
accuracies hang on it: a resized long edge is cut down to whole pixels, a crop's offset is rounded half to even.
Random steps draw from the generator that theirs draw from (Python's `random` or torch's), in the same order, so a seed
means the same augmentation.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps

from ..errors import BadArgument, nearest
from .image import to_grey, to_rgb

__all__ = [
    "CenterCrop",
    "CenterCropOrPad",
    "ColorJitter",
    "Compose",
    "GaussianBlur",
    "MaybePILToTensor",
    "MaybeToTensor",
    "Normalize",
    "RandomApply",
    "RandomCropOrPad",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomPad",
    "RandomResizedCropAndInterpolation",
    "RandomVerticalFlip",
    "Resize",
    "ResizeKeepRatio",
    "ToChannels",
    "ToNumpy",
    "ToTensor",
    "TrimBorder",
    "center_crop_or_pad",
    "crop_or_pad",
    "interp_mode_to_str",
    "str_to_interp_mode",
    "str_to_pil_interp",
]

Size = int | Sequence[int]
Fill = int | Sequence[int]

_FILTERS = {mode.name.lower(): mode for mode in Image.Resampling}


def str_to_pil_interp(mode_str: str) -> Image.Resampling:
    """Pillow's filter of this name: nearest, bilinear, bicubic, box, hamming, lanczos. Raises BadArgument for another."""
    try:
        return _FILTERS[mode_str]
    except KeyError:
        close = nearest(str(mode_str), _FILTERS) or list(_FILTERS)
        raise BadArgument(f"interpolation={mode_str!r}: nearest are {', '.join(close)}") from None


def str_to_interp_mode(mode_str: str) -> Image.Resampling:
    """`str_to_pil_interp` under the name that timm's steps use: here both mean Pillow's filters."""
    return str_to_pil_interp(mode_str)


def interp_mode_to_str(mode: Image.Resampling) -> str:
    """The name of one of Pillow's filters."""
    return Image.Resampling(mode).name.lower()


Filters = Image.Resampling | tuple[Image.Resampling, ...]


def _filters(interpolation: str) -> Filters:
    """The filter of this name; for "random" the two that are drawn from at each image."""
    if interpolation == "random":
        return Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
    return str_to_pil_interp(interpolation)


def _drawn(filters: Filters) -> Image.Resampling:
    return random.choice(filters) if isinstance(filters, (tuple, list)) else filters


def _named(filters: Filters) -> str:
    return " ".join(map(interp_mode_to_str, filters if isinstance(filters, (tuple, list)) else (filters,)))


def _pair(size: Size) -> tuple[int, int]:
    """(height, width) of one edge or two."""
    if isinstance(size, (int, float)):
        return int(size), int(size)
    edges = tuple(size) * (2 if len(size) == 1 else 1)
    if len(edges) != 2:
        raise BadArgument(f"size={tuple(size)}: it takes one edge, or height and width")
    return edges[0], edges[1]


def _resized(image: Image.Image, height: int, width: int, mode: Image.Resampling) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), mode)


class Compose:
    """Steps one after another; its repr shows them, a line each.

    `prepare` comes before all of them. `create_transform` puts the conversion of the image's mode there, so that
    `transforms` holds the steps that timm's does, at timm's places.
    """

    def __init__(
        self, transforms: Sequence[Callable[[Any], Any]], prepare: Callable[[Any], Any] | None = None
    ) -> None:
        self.transforms = list(transforms)
        self.prepare = prepare

    def __call__(self, img: Any) -> Any:
        for step in self._steps():
            img = step(img)
        return img

    def _steps(self) -> list[Callable[[Any], Any]]:
        return self.transforms if self.prepare is None else [self.prepare, *self.transforms]

    def __repr__(self) -> str:
        lines = [f"    {line}" for step in self._steps() for line in repr(step).split("\n")]
        return "\n".join(["Compose(", *lines, ")"])


class ToChannels:
    """An image of any mode in the mode that a model's channels ask for: 3 RGB, 1 grey (L).

    Another number of channels has no conversion of its own: the image must have that many bands (4: RGBA or CMYK).
    """

    def __init__(self, channels: int = 3) -> None:
        self.channels = channels

    def __call__(self, img: Image.Image) -> Image.Image:
        if self.channels == 1:
            return to_grey(img)
        if self.channels == 3:
            return to_rgb(img)
        bands = len(img.getbands()) if isinstance(img, Image.Image) else f"a {type(img).__name__} with no"
        if bands != self.channels:
            raise BadArgument(f"an image of {bands} bands for a model of {self.channels} channels; convert it before")
        return img

    def __repr__(self) -> str:
        return f"ToChannels({self.channels})"


class Resize:
    """A resized image: one number sets the short edge and keeps the shape, two set height and width.

    `img` may hold any mode that Pillow can resample.
    """

    def __init__(self, size: Size, interpolation: str = "bilinear") -> None:
        self.size = size if isinstance(size, int) else _pair(size)
        self.interpolation = _filters(interpolation)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of this height and width comes to."""
        if isinstance(self.size, tuple):
            return self.size
        short, long = sorted((height, width))
        long = int(self.size * long / short)
        return (long, self.size) if height > width else (self.size, long)

    def __call__(self, img: Image.Image) -> Image.Image:
        return _resized(img, *self.output_size(img.height, img.width), _drawn(self.interpolation))

    def __repr__(self) -> str:
        return f"Resize(size={self.size}, interpolation={_named(self.interpolation)})"


class ResizeKeepRatio:
    """An image resized, in its shape, until its short edge fits the target (`longest` 0) or its long edge does (1);
    values between are mixtures of both. Either may be varied at random, as may the shape.

    With `random_scale_area` the random factor is one of area and zooms in below 1, as in a random resized crop.
    """

    def __init__(
        self,
        size: Size,
        longest: float = 0.0,
        interpolation: str = "bilinear",
        random_scale_prob: float = 0.0,
        random_scale_range: tuple[float, float] = (0.85, 1.05),
        random_scale_area: bool = False,
        random_aspect_prob: float = 0.0,
        random_aspect_range: tuple[float, float] = (0.9, 1.11),
    ) -> None:
        self.size = _pair(size)
        self.longest = float(longest)
        self.interpolation = _filters(interpolation)
        self.random_scale_prob = random_scale_prob
        self.random_scale_range = random_scale_range
        self.random_scale_area = random_scale_area
        self.random_aspect_prob = random_aspect_prob
        self.random_aspect_range = random_aspect_range

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of this height and width comes to; drawn anew at each call if it is to vary."""
        loose, tight = sorted((height / self.size[0], width / self.size[1]))
        shrink = tight * self.longest + loose * (1.0 - self.longest)
        taller = wider = 1.0
        if self.random_scale_prob > 0 and random.random() < self.random_scale_prob:
            factor = random.uniform(*self.random_scale_range)
            taller = wider = 1.0 / math.sqrt(factor) if self.random_scale_area else factor
        if self.random_aspect_prob > 0 and random.random() < self.random_aspect_prob:
            low, high = map(math.log, self.random_aspect_range)
            stretch = math.sqrt(math.exp(random.uniform(low, high)))
            taller, wider = taller / stretch, wider * stretch
        # a strip keeps at least one pixel
        return max(1, round(height * taller / shrink)), max(1, round(width * wider / shrink))

    def __call__(self, img: Image.Image) -> Image.Image:
        return _resized(img, *self.output_size(img.height, img.width), _drawn(self.interpolation))

    def __repr__(self) -> str:
        text = f"ResizeKeepRatio(size={self.size}, longest={self.longest:g}, interpolation={_named(self.interpolation)}"
        if self.random_scale_prob > 0:
            text += f", scale {self.random_scale_range} with probability {self.random_scale_prob:g}"
        if self.random_aspect_prob > 0:
            text += f", aspect {self.random_aspect_range} with probability {self.random_aspect_prob:g}"
        return text + ")"


def _padded(
    img: Image.Image, left: int, top: int, right: int, bottom: int, fill: Fill, padding_mode: str
) -> Image.Image:
    if padding_mode == "constant":
        bands = len(img.getbands())
        color = (fill,) if isinstance(fill, int) else tuple(int(value) for value in fill)
        color *= bands if len(color) == 1 else 1
        if len(color) != bands:
            raise BadArgument(f"fill={fill}: {len(color)} values for an image of {bands} bands")
        return ImageOps.expand(img, (left, top, right, bottom), color if bands > 1 else color[0])
    if padding_mode not in ("edge", "reflect", "symmetric"):
        raise BadArgument(f"padding_mode={padding_mode!r}: it is one of constant, edge, reflect, symmetric")
    values = np.asarray(img)
    margins = [(top, bottom), (left, right)] + [(0, 0)] * (values.ndim - 2)
    return Image.fromarray(np.pad(values, margins, mode=padding_mode))  # type: ignore[call-overload]


def center_crop_or_pad(
    img: Image.Image, output_size: Size, fill: Fill = 0, padding_mode: str = "constant"
) -> Image.Image:
    """The middle of an image at exactly this size; where the image is smaller, a border is put around it first.

    `padding_mode` is constant (with `fill`, a value or one a band), edge, reflect or symmetric.
    """
    height, width = _pair(output_size)
    lack_y, lack_x = max(0, height - img.height), max(0, width - img.width)
    if lack_x or lack_y:
        img = _padded(img, lack_x // 2, lack_y // 2, lack_x - lack_x // 2, lack_y - lack_y // 2, fill, padding_mode)
    top, left = round((img.height - height) / 2), round((img.width - width) / 2)
    return img.crop((left, top, left + width, top + height))


def crop_or_pad(
    img: Image.Image, top: int, left: int, height: int, width: int, fill: Fill = 0, padding_mode: str = "constant"
) -> Image.Image:
    """The window of this size at this corner; what of it lies outside the image is a border as in `center_crop_or_pad`.

    A negative corner widens the image by that much at its top or left, and the window starts at the new edge.
    """
    bottom, right = top + height, left + width
    margins = (
        max(min(0, right) - left, 0),
        max(min(0, bottom) - top, 0),
        max(right - max(img.width, left), 0),
        max(bottom - max(img.height, top), 0),
    )
    if any(margins):
        img = _padded(img, *margins, fill, padding_mode)
    top, left = max(top, 0), max(left, 0)
    return img.crop((left, top, left + width, top + height))


class CenterCropOrPad:
    """`center_crop_or_pad` as a step."""

    def __init__(self, size: Size, fill: Fill = 0, padding_mode: str = "constant") -> None:
        self.size = _pair(size)
        self.fill = fill
        self.padding_mode = padding_mode

    def __call__(self, img: Image.Image) -> Image.Image:
        return center_crop_or_pad(img, self.size, self.fill, self.padding_mode)

    def __repr__(self) -> str:
        border = f"fill={self.fill}" if self.padding_mode == "constant" else f"padding_mode={self.padding_mode}"
        return f"{type(self).__name__}(size={self.size}, {border})"


class CenterCrop(CenterCropOrPad):
    """The middle of an image at exactly this size, on black where the image is smaller."""

    def __init__(self, size: Size) -> None:
        super().__init__(size)

    def __repr__(self) -> str:
        return f"CenterCrop(size={self.size})"


class RandomCropOrPad(CenterCropOrPad):
    """A window of exactly this size at a random place of the image, or the image at a random place of the window."""

    def __call__(self, img: Image.Image) -> Image.Image:
        height, width = self.size
        spare_y, spare_x = img.height - height, img.width - width
        top = int(math.copysign(random.randint(0, abs(spare_y)), spare_y))
        left = int(math.copysign(random.randint(0, abs(spare_x)), spare_x))
        return crop_or_pad(img, top, left, height, width, self.fill, self.padding_mode)


class RandomPad:
    """An image widened to at least this size, at a random place on a ground of `fill`."""

    def __init__(self, input_size: Sequence[int], fill: Fill = 0) -> None:
        self.input_size = input_size
        self.fill = fill

    def __call__(self, img: Image.Image) -> Image.Image:
        lack_x, lack_y = max(self.input_size[1] - img.width, 0), max(self.input_size[0] - img.height, 0)
        left, top = random.randint(0, lack_x), random.randint(0, lack_y)
        return _padded(img, left, top, lack_x - left, lack_y - top, self.fill, "constant")

    def __repr__(self) -> str:
        return f"RandomPad(size={tuple(self.input_size)}, fill={self.fill})"


class TrimBorder:
    """An image without the outermost `border_size` pixels on each side."""

    def __init__(self, border_size: int) -> None:
        self.border_size = border_size

    def __call__(self, img: Image.Image) -> Image.Image:
        width, height = (edge - 2 * self.border_size for edge in img.size)
        if width <= 0 or height <= 0:
            raise BadArgument(f"a border of {self.border_size} pixels leaves nothing of an image of {img.size}")
        return img.crop((self.border_size, self.border_size, self.border_size + width, self.border_size + height))

    def __repr__(self) -> str:
        return f"TrimBorder({self.border_size})"


class RandomResizedCropAndInterpolation:
    """A crop of random area and shape, resized: the crop of Inception (Szegedy et al. 2014, arXiv 1409.4842).

    `scale` is the range of the crop's share of the area, `ratio` that of width over height, drawn evenly on the scale of
    logarithms. Ten draws are tried; where none fits, the largest central crop within `ratio` is taken.
    """

    def __init__(
        self,
        size: Size,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: str = "bilinear",
    ) -> None:
        if scale[0] > scale[1] or ratio[0] > ratio[1]:
            warnings.warn(f"scale={scale}, ratio={ratio}: a range is (smallest, largest)", stacklevel=2)
        self.size = _pair(size)
        self.scale = scale
        self.ratio = ratio
        self.interpolation = _filters(interpolation)

    @staticmethod
    def get_params(
        img: Image.Image, scale: tuple[float, float], ratio: tuple[float, float]
    ) -> tuple[int, int, int, int]:
        """A crop's (top, left, height, width), drawn for this image."""
        full_w, full_h = img.size
        narrowest, widest = math.log(ratio[0]), math.log(ratio[1])
        for _ in range(10):
            area = random.uniform(*scale) * (full_w * full_h)
            aspect = math.exp(random.uniform(narrowest, widest))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w <= full_w and h <= full_h:
                top = random.randint(0, full_h - h)
                return top, random.randint(0, full_w - w), h, w
        w, h = full_w, full_h
        if full_w / full_h < min(ratio):
            h = round(full_w / min(ratio))
        elif full_w / full_h > max(ratio):
            w = round(full_h * max(ratio))
        return (full_h - h) // 2, (full_w - w) // 2, h, w

    def __call__(self, img: Image.Image) -> Image.Image:
        top, left, height, width = self.get_params(img, self.scale, self.ratio)
        window = img.crop((left, top, left + width, top + height))
        return _resized(window, *self.size, _drawn(self.interpolation))

    def __repr__(self) -> str:
        scale, ratio = (tuple(round(edge, 4) for edge in pair) for pair in (self.scale, self.ratio))
        return f"{type(self).__name__}(size={self.size}, scale={scale}, ratio={ratio}, interpolation={_named(self.interpolation)})"


class RandomApply:
    """Steps that are taken together with probability `p`."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]], p: float = 0.5) -> None:
        self.steps = Compose(transforms)
        self.p = p

    def __call__(self, img: Any) -> Any:
        return img if self.p < torch.rand(1).item() else self.steps(img)

    def __repr__(self) -> str:
        inner = ", ".join(map(repr, self.steps.transforms))
        return f"RandomApply(p={self.p:g}, {inner})"


class RandomHorizontalFlip:
    """An image mirrored left to right with probability `p`."""

    direction = Image.Transpose.FLIP_LEFT_RIGHT

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, img: Image.Image) -> Image.Image:
        return img.transpose(self.direction) if torch.rand(1).item() < self.p else img

    def __repr__(self) -> str:
        return f"{type(self).__name__}(p={self.p:g})"


class RandomVerticalFlip(RandomHorizontalFlip):
    """An image mirrored top to bottom with probability `p`."""

    direction = Image.Transpose.FLIP_TOP_BOTTOM


class RandomGrayscale:
    """An RGB image made grey, in three equal bands, with probability `p`."""

    def __init__(self, p: float = 0.1) -> None:
        self.p = p

    def __call__(self, img: Image.Image) -> Image.Image:
        if not torch.rand(1).item() < self.p:
            return img
        return Image.merge(img.mode, [img.convert("L")] * len(img.getbands()))

    def __repr__(self) -> str:
        return f"RandomGrayscale(p={self.p:g})"


class ColorJitter:
    """An image with its brightness, contrast and saturation scaled and its hue turned, at random and in random order.

    A number f draws the factor from [max(0, 1 - f), 1 + f], a pair from that range; hue, in turns, from [-f, f] with f
    up to 0.5. 0 leaves that quality alone.
    """

    def __init__(
        self,
        brightness: float | Sequence[float] = 0,
        contrast: float | Sequence[float] = 0,
        saturation: float | Sequence[float] = 0,
        hue: float | Sequence[float] = 0,
    ) -> None:
        self.ranges = {
            "brightness": _jitter_range("brightness", brightness, 1.0, (0.0, math.inf)),
            "contrast": _jitter_range("contrast", contrast, 1.0, (0.0, math.inf)),
            "saturation": _jitter_range("saturation", saturation, 1.0, (0.0, math.inf)),
            "hue": _jitter_range("hue", hue, 0.0, (-0.5, 0.5)),
        }

    def __call__(self, img: Image.Image) -> Image.Image:
        order = torch.randperm(4).tolist()
        draws = {
            name: float(torch.empty(1).uniform_(*limits)) for name, limits in self.ranges.items() if limits is not None
        }
        names = list(self.ranges)
        for name in (names[place] for place in order):
            if name in draws:
                img = _JITTERS[name](img, draws[name])
        return img

    def __repr__(self) -> str:
        return f"ColorJitter({', '.join(f'{name}={limits}' for name, limits in self.ranges.items() if limits)})"


def _jitter_range(
    name: str, value: float | Sequence[float], middle: float, bounds: tuple[float, float]
) -> tuple[float, float] | None:
    if isinstance(value, (int, float)):
        if value < 0:
            raise BadArgument(f"{name}={value}: a jitter is 0 or more")
        limits = (middle - value, middle + value)
        if middle:
            limits = (max(limits[0], 0.0), limits[1])
    else:
        limits = (float(value[0]), float(value[1]))
    if not bounds[0] <= limits[0] <= limits[1] <= bounds[1]:
        raise BadArgument(f"{name}={value}: its range {limits} leaves {bounds}")
    return None if limits == (middle, middle) else limits


def _turn_hue(img: Image.Image, turns: float) -> Image.Image:
    if img.mode in ("L", "1", "I", "F"):
        return img
    hue, saturation, value = img.convert("HSV").split()
    shift = int(turns * 255) % 256  # bytes wrap, as the circle of hues does
    return Image.merge("HSV", (hue.point([(h + shift) % 256 for h in range(256)]), saturation, value)).convert(img.mode)


_JITTERS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "brightness": lambda img, factor: ImageEnhance.Brightness(img).enhance(factor),
    "contrast": lambda img, factor: ImageEnhance.Contrast(img).enhance(factor),
    "saturation": lambda img, factor: ImageEnhance.Color(img).enhance(factor),
    "hue": _turn_hue,
}


class GaussianBlur:
    """An image blurred by a Gaussian of `kernel_size` pixels (odd) whose sigma is drawn from a range, in pixels."""

    def __init__(self, kernel_size: int, sigma: tuple[float, float] = (0.1, 2.0)) -> None:
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise BadArgument(f"kernel_size={kernel_size}: it is odd and above 0")
        self.kernel_size = kernel_size
        self.sigma = sigma

    def __call__(self, img: Image.Image) -> Image.Image:
        sigma = torch.empty(1).uniform_(*self.sigma).item()
        reach = (self.kernel_size - 1) / 2
        profile = torch.exp(-0.5 * (torch.linspace(-reach, reach, self.kernel_size) / sigma) ** 2)
        profile = profile / profile.sum()
        pixels = _pixels(img).float()
        window = (profile[:, None] * profile[None, :]).expand(len(pixels), 1, -1, -1)
        framed = F.pad(pixels[None], [self.kernel_size // 2] * 4, mode="reflect")
        blurred = F.conv2d(framed, window, groups=len(pixels))[0]
        values = blurred.round().to(torch.uint8).permute(1, 2, 0).numpy()
        return Image.fromarray(values if len(pixels) > 1 else values[..., 0])

    def __repr__(self) -> str:
        return f"GaussianBlur(kernel_size={self.kernel_size}, sigma={self.sigma})"


def _pixels(image: Image.Image | np.ndarray) -> torch.Tensor:
    """An image's values as they are, (bands, height, width)."""
    values = torch.from_numpy(np.array(image))  # a copy: torch cannot share what is read-only
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1).contiguous()


class ToNumpy:
    """An image as an array of bytes, (bands, height, width)."""

    def __call__(self, pil_img: Image.Image) -> np.ndarray:
        values = np.array(pil_img, dtype=np.uint8)
        return values[None] if values.ndim == 2 else np.moveaxis(values, 2, 0)

    def __repr__(self) -> str:
        return "ToNumpy()"


class ToTensor:
    """An image as a tensor of this dtype, (bands, height, width), its values as they are."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def __call__(self, pil_img: Image.Image) -> torch.Tensor:
        return _pixels(pil_img).to(self.dtype)

    def __repr__(self) -> str:
        return f"ToTensor(dtype={self.dtype})"


class MaybeToTensor:
    """An image, or an array (height, width, bands), as a float tensor (bands, height, width), bytes scaled to 0 to 1;
    a tensor itself."""

    def __call__(self, pic: Image.Image | np.ndarray | torch.Tensor) -> torch.Tensor:
        if isinstance(pic, torch.Tensor):
            return pic
        values = _pixels(pic)
        return values.to(torch.get_default_dtype()).div(255) if values.dtype == torch.uint8 else values

    def __repr__(self) -> str:
        return "MaybeToTensor()"


class MaybePILToTensor:
    """An image as a tensor (bands, height, width) of its own type, unscaled; a tensor itself."""

    def __call__(self, pic: Image.Image | torch.Tensor) -> torch.Tensor:
        return pic if isinstance(pic, torch.Tensor) else _pixels(pic)

    def __repr__(self) -> str:
        return "MaybePILToTensor()"


class Normalize:
    """A float tensor (..., channels, height, width) less `mean`, over `std`, by channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if any(value == 0 for value in std):
            raise BadArgument(f"std={tuple(std)}: a channel cannot be divided by 0")
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            raise BadArgument(f"a tensor of {tensor.dtype} cannot be normalised; scale it to floats first")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, tensor.shape[-3]):
                raise BadArgument(f"{name}={values}: {len(values)} values for an image of {tensor.shape[-3]} channels")
        mean, std = (torch.tensor(values, dtype=tensor.dtype, device=tensor.device) for values in (self.mean, self.std))
        return (tensor - mean[:, None, None]).div_(std[:, None, None])

    def __repr__(self) -> str:
        mean, std = (tuple(round(value, 4) for value in values) for values in (self.mean, self.std))
        return f"Normalize(mean={mean}, std={std})"
