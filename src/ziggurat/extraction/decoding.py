"""The bytes of an image file to the pixels that a model sees: decoded, resized and cropped, not yet normalised.

    preprocessing = Preprocessing.of(model)
    pixels = decode(Path("cat.jpg").read_bytes(), preprocessing)        # uint8 (height, width, channels)

Pillow reads every header and so decides what an image is; a JPEG's pixels come from simplejpeg, which decodes to the same
bits, and whatever it objects to is left to Pillow's judgement. torch resizes bytes as Pillow does, several times faster.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError, features

from ..data.config import resolve_model_data_config
from ..data.constants import DEFAULT_CROP_MODE, DEFAULT_CROP_PCT, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from ..data.transforms import Compose, str_to_pil_interp
from ..data.transforms_factory import create_transform
from ..errors import BadArgument, MissingExtra, nearest

try:
    import simplejpeg
except ImportError:  # Pillow decodes JPEG then, and the id says so
    simplejpeg = None

__all__ = ["DecodeFailure", "Preprocessing", "decode"]

DECODE = ("exact", "reference", "fast")
EXIF = ("ignore", "apply")
TORCH_MODES = ("bilinear", "bicubic")  # what torch resamples bytes with, antialiased; Pillow does the others

REVISION = 1  # to be raised when the same fields and libraries come to mean other pixels

# A strip of 1 x 60,000 pixels has a short edge of 256 only at 15 million of the long one. Beyond this many pixels
# the middle alone is resized: the same to within a grey level.
LARGEST_RESIZED = 2**26

# the beginnings of the formats that make up nearly all collections, to tell a damaged image from what never was one
SIGNATURES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF", b"RIFF": "WebP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}

# What EXIF's orientation 2 to 8 does to an array whose first axes are the rows and columns as stored.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


class DecodeFailure(Exception):
    """Bytes that yield no pixels: at which `stage`, of which `cause` (of `failures.CAUSES`), in which words."""

    def __init__(self, stage: str, cause: str, message: str) -> None:
        super().__init__(stage, cause, message)
        self.stage, self.cause, self.message = stage, cause, message

    def __str__(self) -> str:
        return f"{self.cause}: {self.message}"


@dataclass(frozen=True)
class Preprocessing:
    """How an image comes to be a model's input: what is resized to what, how it is decoded and normalised.

    `size` is (height, width) in pixels, `mean` and `std` have a value a channel on the scale 0 to 1, `channels` is 3, or
    1 for grey. The crop is that of `transforms_imagenet_eval`. `exif` says whether the orientation that a file states is
    followed ('apply') or left aside ('ignore', as in the training of the published weights). `decode` is

    - 'exact': JPEG by simplejpeg, everything else by Pillow, resized by torch. Within 2 grey levels of 'reference', and
      within 0.01 on average.
    - 'reference': Pillow alone, and bit for bit what `create_transform` gives before it normalises.
    - 'fast': as 'exact', but a JPEG at least four times as large as needed is decoded at a half, a quarter or an eighth
      of its size, so that twice the needed size is left. On the photos of examples/ at 32 to 112 pixels that is off by 0.2
      to 0.7 grey levels on average and by 9 at most (PSNR 48 to 54 dB); smaller JPEGs are those of 'exact'.

    Raises BadArgument for a value that cannot work, and MissingExtra for 'fast' without simplejpeg.
    """

    size: tuple[int, int]
    crop_pct: float = DEFAULT_CROP_PCT
    crop_mode: str = DEFAULT_CROP_MODE
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    channels: int = 3
    decode: str = "exact"
    exif: str = "ignore"

    def __post_init__(self) -> None:
        for name, kind in (("size", int), ("mean", float), ("std", float)):
            object.__setattr__(self, name, tuple(kind(value) for value in getattr(self, name)))
        if len(self.size) != 2 or min(self.size) < 1:
            raise BadArgument(f"size={self.size}: it is (height, width), each 1 or more")
        if self.channels not in (1, 3):
            raise BadArgument(f"a model of {self.channels} input channels: files are decoded to 3 (RGB) or 1 (grey); "
                              "give tensors to the model itself")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise BadArgument(f"{name}={getattr(self, name)}: give {self.channels}, one a channel")
        for name, allowed in (("decode", DECODE), ("exif", EXIF)):
            if getattr(self, name) not in allowed:
                raise BadArgument(f"{name}={getattr(self, name)!r}: it is one of {', '.join(allowed)}")
        if self.decode == "fast" and simplejpeg is None:
            raise MissingExtra("decode='fast' decodes JPEG at a smaller scale with simplejpeg, which is not installed; "
                               "install it, or leave decode at 'exact'")
        str_to_pil_interp(self.interpolation)
        _steps(self)

    @classmethod
    def of(cls, model: Any, **changes: Any) -> Preprocessing:
        """The preprocessing that a model's weights want, with fields in `changes` other than None in place of theirs.

        A `size` may be one edge. Raises BadArgument for a model of other than 1 or 3 channels, and for unknown fields.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in changes if name not in names]:
            raise BadArgument(f"preprocessing has no {unknown[0]!r}; nearest are {', '.join(nearest(unknown[0], names) or names)}")
        config = resolve_model_data_config(model)
        channels, *size = config.pop("input_size")
        given = {name: value for name, value in changes.items() if value is not None}
        if isinstance(given.get("size"), int):
            given["size"] = (given["size"],) * 2
        return cls(**{"size": size, "channels": channels, **config, **given})

    @classmethod
    def from_stamp(cls, stamp: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing that `stamp()` described, with the libraries that are installed now: compare the ids."""
        return cls(**{field.name: stamp[field.name] for field in dataclasses.fields(cls)})

    def stamp(self) -> dict[str, Any]:
        """Everything that decides the pixels, as JSON knows it: the fields, the libraries' versions, and `id`."""
        return {**self._facts(), "id": self.id}

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits that differ where a field differs, or the version of a library that decides pixels."""
        return hashlib.sha256(json.dumps(self._facts(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def resizes_by_torch(self) -> bool:
        """Whether torch resizes: it has kernels for bytes for two of Pillow's filters."""
        return self.decode != "reference" and self.interpolation in TORCH_MODES

    def _facts(self) -> dict[str, Any]:
        libraries = {"pillow": PIL.__version__, "libjpeg_turbo": features.version("libjpeg_turbo")}
        if self.decode != "reference":
            libraries["simplejpeg"] = simplejpeg.__version__ if simplejpeg else None
        if self.resizes_by_torch:
            libraries["torch"] = torch.__version__.split("+")[0]  # which GPU it was built for decides nothing here
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()}
        return {**fields, "libraries": libraries, "revision": REVISION}


def decode(data: bytes | Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """The pixels of an image file for a model: uint8 (height, width, channels), contiguous, not normalised.

    The first frame of an animation. Also of an image that Pillow has opened. Raises DecodeFailure for all bytes that Pillow
    does not accept, and for no others; with cause 'memory' where there was not enough. Pillow's warnings are not shown, and
    never make a failure.
    """
    if data == b"":
        raise DecodeFailure("decode", "empty", "the file has zero bytes")
    try:
        with _no_warnings:
            return _decode(data, preprocessing)
    except MemoryError:
        raise DecodeFailure("decode", "memory", "there is not enough memory to decode it") from None
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):  # torch has no type of its own for this
            raise
        raise DecodeFailure("decode", "memory", "there is not enough memory to resize it") from None


class _Pixels(NamedTuple):
    """A decoded image (height, width[, channels]) of the model's channels, upright; at 1 / `divisor` of `size` (height, width)."""

    array: np.ndarray
    size: tuple[int, int]
    divisor: int = 1


def _decode(data: bytes | Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    # Decoders meet damaged files with errors of every kind (OSError, SyntaxError, struct.error, IndexError ...).
    try:
        if isinstance(data, Image.Image):
            pixels = _by_pillow(data, preprocessing)
        else:
            with Image.open(io.BytesIO(data)) as image:
                pixels = _by_simplejpeg(data, image, preprocessing) or _by_pillow(image, preprocessing)
    except MemoryError:
        raise
    except Exception as error:
        raise _failure(error, b"" if isinstance(data, Image.Image) else data) from error
    height, width = _output_size(preprocessing, *pixels.size)
    if preprocessing.resizes_by_torch and height * width <= LARGEST_RESIZED:
        return _resized_by_torch(pixels, height, width, preprocessing)
    return _resized_by_pillow(pixels, height, width, preprocessing)


def _by_pillow(image: Image.Image, preprocessing: Preprocessing) -> _Pixels:
    image.load()
    upright = image if preprocessing.exif == "ignore" else _upright(image)
    prepare = _steps(preprocessing).prepare
    assert prepare is not None
    return _Pixels(np.array(prepare(upright)), (upright.height, upright.width))


# ---------------------------------------------------------------- JPEG


def _by_simplejpeg(data: bytes, image: Image.Image, preprocessing: Preprocessing) -> _Pixels | None:
    """The pixels of a JPEG that Pillow has opened; None where it is Pillow's to decode, or to refuse."""
    if simplejpeg is None or preprocessing.decode == "reference":
        return None
    if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
        return None
    orientation = _orientation(image) if preprocessing.exif == "apply" else 1
    size = (image.width, image.height) if orientation >= 5 else (image.height, image.width)
    divisor = 1
    if preprocessing.decode == "fast" and preprocessing.resizes_by_torch:
        divisor = _divisor(size, _output_size(preprocessing, *size), orientation in TURNS)
    height, width = -(-image.height // divisor), -(-image.width // divisor)
    is_grey = image.mode == "L" and preprocessing.channels == 1
    try:
        array = simplejpeg.decode_jpeg(data, "GRAY" if is_grey else "RGB", min_height=height, min_width=width, strict=True)
    except Exception:  # whatever it is, Pillow judges this file
        return None
    if array.shape[:2] != (height, width):
        return None
    if preprocessing.channels == 1 and not is_grey:
        array = np.array(Image.fromarray(array).convert("L"))
    return _Pixels(TURNS[orientation](array) if orientation in TURNS else array, size, divisor)


def _divisor(size: tuple[int, int], needed: tuple[int, int], is_turned: bool) -> int:
    """The largest of 8, 4, 2 and 1 that leaves a JPEG at twice the needed size: those for which there are fast kernels.

    Of an edge that it does not divide, the last pixel is a partial one; that would be the first if the image is turned.
    """
    fitting = (n for n in (8, 4, 2) if all(edge / n >= 2 * want for edge, want in zip(size, needed)))
    return next((n for n in fitting if not is_turned or not any(edge % n for edge in size)), 1)


def _orientation(image: Image.Image) -> int:
    """The orientation 1 to 8 that a file states; 1 where it states none, or its EXIF cannot be parsed."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged metadata, met with errors of every kind; it says nothing of the pixels
        return 1
    return orientation if orientation in TURNS else 1


def _upright(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    methods = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
               Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90)
    return image if orientation == 1 else image.transpose(methods[orientation - 2])


# ---------------------------------------------------------------- size


@lru_cache(maxsize=16)
def _steps(preprocessing: Preprocessing) -> Compose:
    """The evaluation transform of ziggurat.data: conversion of the mode, then resize, crop, tensor."""
    transform = create_transform(
        (preprocessing.channels, *preprocessing.size),
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        normalize=False,
    )
    assert isinstance(transform, Compose)
    return transform


def _output_size(preprocessing: Preprocessing, height: int, width: int) -> tuple[int, int]:
    """(height, width) that the whole image is resized to, of which the crop is the middle."""
    size: tuple[int, int] = _steps(preprocessing).transforms[0].output_size(height, width)  # type: ignore[attr-defined]
    return size


def _resized_by_pillow(pixels: _Pixels, height: int, width: int, preprocessing: Preprocessing) -> np.ndarray:
    image = Image.fromarray(pixels.array.squeeze(2) if pixels.array.shape[2:] == (1,) else pixels.array)
    resize, crop, _ = _steps(preprocessing).transforms
    resized = resize(image) if height * width <= LARGEST_RESIZED else _middle(image, height, width, preprocessing)
    return _shaped(np.array(crop(resized)), preprocessing)


def _middle(image: Image.Image, height: int, width: int, preprocessing: Preprocessing) -> Image.Image:
    """What the crop keeps of an image that would be resized to `height` and `width`."""
    (top, bottom), (left, right) = (
        (max(0, round((whole - part) / 2)), min(whole, round((whole - part) / 2) + part)) if whole > part else (0, whole)
        for whole, part in zip((height, width), preprocessing.size)
    )
    y, x = image.height / height, image.width / width
    box = left * x, top * y, min(right * x, image.width), min(bottom * y, image.height)
    return image.resize((right - left, bottom - top), str_to_pil_interp(preprocessing.interpolation), box)


def _resized_by_torch(pixels: _Pixels, height: int, width: int, preprocessing: Preprocessing) -> np.ndarray:
    resample = partial(F.interpolate, mode=preprocessing.interpolation, antialias=True)
    array = np.ascontiguousarray(pixels.array)
    # Not contiguous as torch counts, and so in the order of the bytes in memory, which is what makes its kernel fast.
    images = torch.from_numpy(array.reshape(1, *array.shape[:2], preprocessing.channels)).permute(0, 3, 1, 2)
    if pixels.divisor > 1:  # by factors, since half of 451 pixels lie in 226 and are 225.5; a hair more, against rounding down
        factors = [pixels.divisor * wanted / edge * (1 + 1e-9) for wanted, edge in zip((height, width), pixels.size)]
        images = resample(images, scale_factor=factors)
        assert images.shape[2:] == (height, width)
    elif (height, width) != pixels.size:
        if _is_vertical_first(pixels.size, height, width):
            images = resample(images, (height, pixels.size[1]))
        images = resample(images, (height, width))
    resized = images[0].permute(1, 2, 0).numpy()
    wanted_h, wanted_w = preprocessing.size
    if height < wanted_h or width < wanted_w:
        _, crop, _ = _steps(preprocessing).transforms
        return _shaped(np.array(crop(Image.fromarray(resized.squeeze(2) if preprocessing.channels == 1 else resized))), preprocessing)
    top, left = round((height - wanted_h) / 2), round((width - wanted_w) / 2)
    return np.ascontiguousarray(resized[top : top + wanted_h, left : left + wanted_w])


def _is_vertical_first(size: tuple[int, int], height: int, width: int) -> bool:
    """Whether Pillow shrinks the height before the width, as it does since version 13 where many more rows go than columns.

    The order shows where bicubic weights overshoot 0 or 255. torch begins with the width.
    """
    rows, columns = size[0] - height, size[1] - width
    return int(PIL.__version__.split(".")[0]) >= 13 and rows > 0 and rows > 2 * columns


def _shaped(array: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    return array.reshape(*preprocessing.size, preprocessing.channels)


# ---------------------------------------------------------------- failures


def _failure(error: Exception, data: bytes) -> DecodeFailure:
    """What an error of Pillow says of a file, in words that are the same at each attempt."""
    if isinstance(error, UnidentifiedImageError):
        known = next((name for start, name in SIGNATURES.items() if data.startswith(start)), None)
        if known is None:
            return DecodeFailure("decode", "not_an_image", "no format that Pillow reads begins like this")
        return DecodeFailure("decode", "corrupt", f"it begins like {known}, but its header cannot be read")
    text = re.sub(r"<[^<>]*? at 0x[0-9A-Fa-f]+>", "the file", f"{error}")[:200].strip() or "it cannot be decoded"
    if isinstance(error, Image.DecompressionBombError):
        return DecodeFailure("decode", "too_large", text)
    short = isinstance(error, EOFError) or "truncated" in text.lower()
    return DecodeFailure("decode", "truncated" if short else "corrupt", f"{text} ({type(error).__name__})")


class _NoWarnings:
    """Warnings off while any thread is inside; as they were before, when the last has left."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.before: warnings.catch_warnings[None] = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.before = warnings.catch_warnings()
                self.before.__enter__()
                warnings.simplefilter("ignore")
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.before.__exit__(None, None, None)


_no_warnings = _NoWarnings()
