"""An exported file in the runtime of its format, called with images."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BadArgument, ZigguratError
from ..optimization.program import in_brief, is_of_memory
from ..packages import require_packages
from . import metadata as meta

__all__ = ["Loaded", "open"]


class Loaded:
    """A file that `ziggurat.export` wrote, in the runtime of its `format`: called with images, it gives tensors by name.

    `names` are those of its outputs, in order, and `metadata` what the file says of itself (`exporting.metadata.of` tells
    the keys). `input_shape` is (B C H W), with None for an axis of any length. Images are arrays or tensors of that
    shape, float32 and normalised, or uint8 where the file normalises (`metadata["pixels"]`).
    """

    def __init__(
        self, format: str, path: str | Path, run: Callable[[Tensor], Sequence[Any]], names: Sequence[str],
        metadata: Mapping[str, str],
    ) -> None:
        self.format, self.path, self.names = format, Path(path), tuple(names)
        self.metadata = meta.parsed(metadata)
        self.input_shape: tuple[int | None, ...] = tuple(self.metadata["input_shape"])
        self._run = run

    def __call__(self, images: np.ndarray | Tensor) -> dict[str, Tensor]:
        """The outputs on `images`, float32; raises `BadArgument` for images of another type or shape than the file takes."""
        if isinstance(images, np.ndarray):
            images = np.ascontiguousarray(images)  # torch takes no negative strides
        images = torch.as_tensor(images).detach().cpu().contiguous()
        dtype = torch.uint8 if self.metadata["pixels"] else torch.float32
        if images.dtype != dtype:
            raise BadArgument(f"images of {images.dtype}: {self.path.name} takes {dtype}"
                              + (", bytes of 0 to 255" if self.metadata["pixels"] else ", normalised by mean and std"))
        if images.ndim != 4 or any(side not in (None, got) for side, got in zip(self.input_shape, images.shape)):
            wanted = ", ".join(axis if side is None else str(side) for axis, side in zip("BCHW", self.input_shape))
            raise BadArgument(f"images of shape {tuple(images.shape)}: {self.path.name} takes ({wanted})")
        least, step = self.metadata["min_size"], self.metadata["side_step"]
        free = [got for side, got in zip(self.input_shape[2:], images.shape[2:]) if side is None]
        if any(got < least or got % step for got in free):
            raise BadArgument(f"images of {images.shape[2]} x {images.shape[3]} pixels: {self.path.name} takes sides of {least} and "
                              "more" + (f", multiples of {step}" if step > 1 else ""))
        outputs = self._run(images)
        assert len(outputs) == len(self.names), "the runtime gives other outputs than the file names"
        return {name: torch.as_tensor(output) for name, output in zip(self.names, outputs)}

    def __repr__(self) -> str:
        return f"<Loaded {self.path.name}: {self.format}, {self.metadata['architecture']}, gives {', '.join(self.names)}>"


def open(path: str | Path) -> Loaded:
    """The file at `path`, which `ziggurat.export` wrote, in the runtime of its format, on the CPU.

    Raises `BadArgument` for a path that is none of an exported file, and `MissingExtra` where the runtime is missing.
    """
    from .export import FORMATS, format_module

    path = Path(path).expanduser()
    if not path.exists():
        raise BadArgument(f"there is no {path}; give a file that ziggurat.export wrote")
    fitting = [name for name, entry in FORMATS.items() if entry.suffix == path.suffix]
    if not fitting:
        known = ", ".join(sorted({entry.suffix for entry in FORMATS.values()}))
        raise BadArgument(f"{path} ends in none of {known}; give a file that ziggurat.export wrote")
    if len(fitting) > 1:  # .pt2: a program, or one that is compiled
        fitting = ["aoti" if _is_compiled(path) else "torch"]
    (format,) = fitting
    require_packages(f"format={format!r}", FORMATS[format].packages[-1:], FORMATS[format].extra)
    try:
        loaded: Loaded = format_module(format).open(path)
    except Exception as error:  # runtimes raise what they like; nothing is lost of it
        if isinstance(error, ZigguratError) or is_of_memory(error):
            raise
        raise BadArgument(f"{path} is damaged, or no file of ziggurat.export's ({in_brief(error)})") from error
    return loaded


def _is_compiled(path: Path) -> bool:
    names = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    if not any(name.endswith("archive_format") for name in names):  # which torch.export and AOTInductor write
        raise BadArgument(f"{path} is damaged, or no file of ziggurat.export's")
    return any("aotinductor" in name for name in names)
