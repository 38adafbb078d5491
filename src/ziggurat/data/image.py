"""Image files and images: finding them, opening them with errors that name the file, bringing them to RGB."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageCms, ImageOps

from ..errors import BadArgument, UnreadableImage

__all__ = ["IMAGE_EXTENSIONS", "find_images", "open_image", "read_images", "to_grey", "to_rgb"]

# what a folder is searched for; a file that is named outright may be called anything
IMAGE_EXTENSIONS = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)

Source = str | os.PathLike[str]


def find_images(sources: Source | Iterable[Source], extensions: Iterable[str] = IMAGE_EXTENSIONS) -> list[Path]:
    """The image files behind paths, folders and glob patterns, each once, sorted by path.

    A folder gives the files of `extensions` in it and below it (hidden ones and linked folders are passed over). A
    pattern may use `*`, `?`, `[...]` and `**`; it gives what it matches, files of another extension only where it
    spells that extension. A source that gives nothing, a missing file among them, stays in the list as it is, so that
    `open_image` says what is wrong with it and nothing that was asked for is lost in silence.
    """
    wanted = frozenset(extension.lower() for extension in extensions)
    if isinstance(sources, (str, os.PathLike)):
        sources = [sources]
    found: set[Path] = set()
    for source in sources:
        found.update(_expand(os.path.expanduser(os.fspath(source)), wanted) or [Path(source)])
    return sorted(found)


def _expand(source: str, extensions: frozenset[str]) -> list[Path]:
    if os.path.isdir(source):
        return list(_files_below(source, extensions))
    if os.path.lexists(source) or not glob.has_magic(source):  # a file may be called "cat[1].jpg"
        return [Path(source)]
    spelled = os.path.splitext(source)[1]
    any_name = bool(spelled) and not glob.has_magic(spelled)
    files: list[Path] = []
    for match in glob.iglob(source, recursive=True):
        if os.path.isdir(match):
            files += _files_below(match, extensions)
        elif any_name or os.path.splitext(match)[1].lower() in extensions:
            files.append(Path(match))
    return files


def _files_below(folder: str, extensions: frozenset[str]) -> Iterator[Path]:
    closed: list[Path] = []  # folders that may not be read stay in the list, as other sources that give nothing
    for parent, folders, names in os.walk(folder, onerror=lambda error: closed.append(Path(error.filename))):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions:
                yield Path(parent, name)
    yield from closed


def open_image(source: Source | IO[bytes], apply_exif: bool = False) -> Image.Image:
    """The decoded image of a file, or of an open binary file, in the mode it is stored in.

    The first frame of an animation. The orientation that EXIF states is left aside, as in the training of the published
    weights, unless `apply_exif`. Raises UnreadableImage, and nothing else, for whatever yields no whole picture: missing,
    empty, truncated, no image at all, or more than twice `PIL.Image.MAX_IMAGE_PIXELS` (179 million pixels by default).
    """
    if isinstance(source, (str, os.PathLike)):
        label = os.fspath(source)
        _check_file(label)
    else:
        label = getattr(source, "name", "<stream>")
    # Decoders meet damaged files with errors of every kind (OSError, SyntaxError, struct.error, zlib.error, IndexError,
    # MemoryError ...); all of them mean the same to a caller who has more files to read, and the first stays as __cause__.
    try:
        with Image.open(source) as image:
            image.load()
            return ImageOps.exif_transpose(image) if apply_exif else image
    except Exception as error:
        raise UnreadableImage(label, _reason(error)) from error


def _check_file(path: str) -> None:
    if os.path.isdir(path):
        closed = not os.access(path, os.R_OK | os.X_OK)
        raise UnreadableImage(path, f"it is a folder {'that may not be read' if closed else 'in which no image was found'}")
    if not os.path.exists(path):
        nothing = "the pattern matches no image" if glob.has_magic(path) else "there is no such file"
        raise UnreadableImage(path, nothing)
    if not os.path.isfile(path):  # a pipe would wait for ever
        raise UnreadableImage(path, "it is not a regular file")
    if os.path.getsize(path) == 0:
        raise UnreadableImage(path, "the file is empty (0 bytes)")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image in a format that Pillow reads"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it is too large to be trusted ({error}); raise PIL.Image.MAX_IMAGE_PIXELS to read it"
    return f"{error or 'it cannot be decoded'} ({type(error).__name__})"


def read_images(
    sources: Source | Iterable[Source], apply_exif: bool = False
) -> Iterator[tuple[Path, Image.Image | UnreadableImage]]:
    """Every image of `find_images(sources)` with its path, one at a time; for a bad one the error in its place.

    for path, image in read_images(["photos", "more/*.png"]):
        if isinstance(image, UnreadableImage): ...
    """
    for path in find_images(sources):
        try:
            image: Image.Image | UnreadableImage = open_image(path, apply_exif)
        except UnreadableImage as error:
            image = error
        yield path, image


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB, by one stated rule a mode; an RGB image itself.

    Transparency lies over white. Integers of 16 bits (I;16, I) are scaled to 8, not clipped, floats (F) are taken on
    the scale 0 to 255. Palettes, greys, CMYK, YCbCr, HSV and LAB go through their colour conversions. The EXIF
    orientation is left as it is. Raises BadArgument for what is no PIL image.
    """
    if not isinstance(image, Image.Image):
        raise BadArgument(f"a {type(image).__name__} where a PIL image belongs; PIL.Image.fromarray makes one of an array")
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _to_bytes(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        with_alpha = image.convert("RGBA") if image.mode != "La" else image.convert("LA").convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, with_alpha).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # it is None only for a conversion in place
        return converted
    return image.convert("RGB")


def to_grey(image: Image.Image) -> Image.Image:
    """The image in mode L (8-bit luminance), by the rules of `to_rgb`; an L image itself."""
    if isinstance(image, Image.Image) and "transparency" not in image.info:
        if image.mode in ("L", "1"):
            return image if image.mode == "L" else image.convert("L")
        if image.mode.startswith("I") or image.mode == "F":
            return _to_bytes(image)
    return to_rgb(image).convert("L")


def _to_bytes(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F":
        scaled = np.rint(np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255))
    else:
        scaled = (values.astype(np.int64).clip(0, 65535) + 128) // 257  # 65535 is 255 * 257
    return Image.fromarray(scaled.astype(np.uint8))
