"""A network as a function of batches, for engines that bring the images and keep the features themselves."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from PIL import Image

from ..backbone import Backbone
from ..errors import BadArgument
from .decoding import DecodeFailure, Preprocessing, decode
from .forward import Forward, make_forward
from .outputs import Outputs
from .places import ReadFailure
from .sources import Item, read_bytes

__all__ = ["Embedder"]


@dataclass(frozen=True)
class Embedder:
    """Batches of images to features: a callable for Ray Data, Spark, Daft and `datasets.map`.

        embed = ziggurat.Embedder("resnet50")
        embed({"image": ["a.jpg", open("b.png", "rb").read()]})["embedding"]     # float32 (2, 2048)

    A batch is a mapping of columns; what stands in `column` is bytes of a file, its path or address, a PIL image, an array
    (uint8, H W C or H W), or the {'bytes', 'path'} of Hugging Face datasets, one an image. Columns are added: each of
    `outputs` as a float32 array (N, ...), and 'failure', a text an image: '' if all is well, else its cause (of
    `ziggurat.extraction.CAUSES`). An image with a cause has NaN in all outputs; it costs nothing but itself.

    `outputs` are 'embedding', 'logits', 'tokens' (columns 'tokens/cls', ...), 'pyramid/stride_8' and 'taps/NAME', of one
    forward pass. `model` is a name, with its published weights or those of a `checkpoint`, or a Backbone in evaluation mode,
    of which a copy is used. Images are prepared as by `ziggurat.extract`, and its numbers are the same for the same batches.
    `workers` threads decode; `threads` (all cores) compute on a CPU.

    It holds only these arguments: it is small to pickle, if `model` is a name, and the network is made at the first batch,
    once in a process. Raises `BadArgument` for arguments that cannot work and columns that are not there.
    """

    model: str | Backbone
    _: KW_ONLY
    checkpoint: str | None = None
    column: str = "image"
    outputs: Sequence[str] = ("embedding",)
    batch_size: int = 32
    device: str = "auto"
    backend: str = "torch"
    precision: str = "fp32"
    size: int | None = None
    decode: str = "exact"
    exif: str = "ignore"
    workers: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", (self.outputs,) if isinstance(self.outputs, str) else tuple(self.outputs))
        _outputs(self.outputs)
        if self.workers < 1:
            raise BadArgument(f"workers={self.workers}: give 1 or more")
        if isinstance(self.model, Backbone) and self.model.training:
            raise BadArgument("the model is in training mode, where the images of a batch change each other's features; "
                              "call model.eval() first")

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if self.column not in batch:
            raise BadArgument(f"column={self.column!r}: the batch has {', '.join(map(repr, batch))}")
        with _ONE_AT_A_TIME:
            forward, preprocessing = _made(self)
            images = list(batch[self.column])
            found = {name: np.full((len(images), *shape), np.nan, np.float32) for name, shape in forward.shapes.items()}
            failures = np.array([""] * len(images), object)
            with ThreadPoolExecutor(self.workers, "decode") as pool:
                pixels = pool.map(partial(_pixels, preprocessing=preprocessing), images)
                for start, values in forward.stream(_batches(pixels, failures, forward, preprocessing)):
                    for name, value in values.items():
                        found[name][start : start + self.batch_size] = value[: len(images) - start]
        finite = np.array([all(np.isfinite(value[row]).all() for value in found.values()) for row in range(len(images))], bool)
        failures[~finite & (failures == "")] = "nan"
        for value in found.values():
            value[failures != ""] = np.nan
        return {**batch, **found, "failure": failures.tolist()}


_ONE_AT_A_TIME = threading.Lock()  # a process has one network, whatever threads call


@lru_cache(maxsize=1)
def _made(embedder: Embedder) -> tuple[Forward, Preprocessing]:
    """The network of an embedder, once in a process."""
    outputs, model = _outputs(embedder.outputs), embedder.model
    if isinstance(model, str):
        from .unit import load_model

        model = load_model({"name": model, "checkpoint": embedder.checkpoint}, has_head=outputs.logits)
    else:
        model = copy.deepcopy(model)  # the caller's stays on its device, without the hooks of taps, and can be pickled
    size = None if embedder.size is None else (embedder.size, embedder.size)
    preprocessing = Preprocessing.of(model, size=size, decode=embedder.decode, exif=embedder.exif)
    return make_forward(model, outputs, preprocessing, backend=embedder.backend, precision=embedder.precision,
                        batch_size=embedder.batch_size, device=embedder.device, threads=embedder.threads), preprocessing


def _outputs(names: Sequence[str]) -> Outputs:
    strides = [name.removeprefix("pyramid/stride_") for name in names if name.startswith("pyramid/stride_")]
    taps = [name.removeprefix("taps/") for name in names if name.startswith("taps/")]
    if unknown := set(names) - {"embedding", "logits", "tokens", *(f"pyramid/stride_{stride}" for stride in strides if stride.isdecimal()),
                                *(f"taps/{tap}" for tap in taps)}:
        raise BadArgument(f"outputs: {', '.join(map(repr, sorted(unknown)))} is none; give some of 'embedding', 'logits', 'tokens', "
                          "'pyramid/stride_8' (or another stride), 'taps/blocks.7' (or another module)")
    return Outputs(embed="embedding" in names, logits="logits" in names, tokens="tokens" in names,
                   strides=tuple(sorted(map(int, strides))), taps=tuple(taps))


def _batches(
    pixels: Iterator[np.ndarray | str], failures: np.ndarray, forward: Forward, preprocessing: Preprocessing
) -> Iterator[tuple[int, np.ndarray]]:
    """Batches of full size with zeros where an image failed, each with the number of its first image."""
    size = forward.batch_size
    for start in range(0, len(failures), size):
        batch = np.zeros((size, *preprocessing.size, preprocessing.channels), np.uint8)
        for slot in range(min(size, len(failures) - start)):
            image = next(pixels)
            if isinstance(image, str):
                failures[start + slot] = image
            else:
                batch[slot] = image
        yield start, batch


def _pixels(image: Any, preprocessing: Preprocessing) -> np.ndarray | str:
    """What one image is for the network, or the cause for which it is nothing."""
    if isinstance(image, Mapping):
        image = image["path"] if image.get("bytes") is None else image["bytes"]
    try:
        if image is None:
            return "missing"
        if isinstance(image, (str, os.PathLike)):
            path = os.fspath(image)
            image = read_bytes(Item(path, path, "", -1, -1, ""))
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
            image = Image.fromarray(image)
        if isinstance(image, (bytes, Image.Image)):
            return decode(image, preprocessing)
    except (DecodeFailure, ReadFailure) as failure:
        return failure.cause
    kind = f"an array {image.dtype} {image.shape}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
    raise BadArgument(f"cannot take {kind} for an image; give bytes, a path, a PIL image or an array (uint8, H W C or H W)")
