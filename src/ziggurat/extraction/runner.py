"""The walk from image files to a model's views: decode ahead on threads, run in batches, hand out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..backbone import Backbone
from ..data.config import resolve_model_data_config
from ..data.image import find_images, open_image
from ..data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from ..data.transforms_factory import create_transform
from ..errors import BadArgument, UnreadableImage

__all__ = ["Score", "class_labels", "classify_images", "embed_images", "extract_images", "image_transform"]

Sources = str | PathLike[str] | Iterable[str | PathLike[str]]
Prepare = Callable[[Image.Image], Tensor]


class Score(NamedTuple):
    """One class of an image: its index, its label (a WordNet synset for ImageNet), its name, and its probability."""

    index: int  # type: ignore[assignment]  # in place of the method that every tuple has
    label: str
    name: str
    probability: float


def image_transform(model: Backbone) -> Prepare:
    """The evaluation preprocessing of a model's weights: a PIL image to its input (C H W)."""
    return create_transform(**resolve_model_data_config(model), is_training=False)  # type: ignore[return-value]


def extract_images(
    model: Backbone,
    sources: Sources,
    outputs: Sequence[str] = ("embedding",),
    strides: int | Sequence[int] | None = None,
    batch_size: int = 32,
    workers: int = 4,
    transform: Prepare | None = None,
    norm: bool | None = None,
) -> Iterator[tuple[Path, dict[str, Any] | UnreadableImage]]:
    """The views `outputs` (see `Backbone.extract`) of every image behind `sources`, with its path, in order of path.

    Views are on the CPU and without the batch dimension: an 'embedding' is (D), a level of a 'pyramid' (C H/s W/s).
    An image that cannot be read comes as the error that says why, in its place. `sources` are paths, folders and glob
    patterns (`find_images`). `strides` and `norm` are the pyramid's. No more than two batches of images are held, whatever the number of files. `workers`
    threads decode and prepare, with `transform` or the model's own preprocessing.
    """
    if model.training:
        raise BadArgument("the model is in training mode, where the images of a batch change each other's features; "
                          "call model.eval() first")
    if batch_size < 1 or workers < 1:
        raise BadArgument(f"batch_size={batch_size}, workers={workers}: give 1 or more")
    transform = transform or image_transform(model)
    parameter = next(model.parameters())
    waiting: list[tuple[Path, Tensor | UnreadableImage]] = []

    def run() -> Iterator[tuple[Path, dict[str, Any] | UnreadableImage]]:
        images = [image for _, image in waiting if isinstance(image, Tensor)]
        views: dict[str, Any] = {}
        if images:
            batch = torch.stack(images).to(parameter.device, parameter.dtype)
            with torch.inference_mode():
                views = _to_cpu(model.extract(batch, outputs, strides=strides, norm=norm))
        position = 0
        for path, image in waiting:
            if isinstance(image, UnreadableImage):
                yield path, image
            else:
                yield path, _row(views, position)
                position += 1
        waiting.clear()

    for path, image in _prepared(find_images(sources), transform, workers, ahead=batch_size):
        waiting.append((path, image))
        if len(waiting) == batch_size:
            yield from run()
    yield from run()


def embed_images(
    model: Backbone, sources: Sources, batch_size: int = 32, workers: int = 4
) -> Iterator[tuple[Path, Tensor | UnreadableImage]]:
    """The embedding (D) of every image behind `sources`, with its path; for a bad one the error in its place."""
    for path, found in extract_images(model, sources, ("embedding",), batch_size=batch_size, workers=workers):
        yield path, found if isinstance(found, UnreadableImage) else found["embedding"]


def classify_images(
    model: Backbone, sources: Sources, top: int = 5, batch_size: int = 32, workers: int = 4
) -> Iterator[tuple[Path, list[Score] | UnreadableImage]]:
    """The `top` most probable classes of every image behind `sources`, best first; for a bad one the error.

    Raises `BadArgument` for a model without a classifier.
    """
    if top < 1:
        raise BadArgument(f"top={top}: give 1 or more")
    labels = class_labels(model)
    for path, found in extract_images(model, sources, ("scores",), batch_size=batch_size, workers=workers):
        if isinstance(found, UnreadableImage):
            yield path, found
            continue
        probabilities, classes = found["scores"].float().softmax(-1).topk(min(top, len(labels)))
        yield path, [Score(i, labels[i][0], labels[i][1], p) for i, p in zip(classes.tolist(), probabilities.tolist())]


def class_labels(model: Backbone) -> list[tuple[str, str]]:
    """Label and name of each class: what the weights state, else ImageNet's where the number fits, else the index."""
    if not model.num_classes or model.out_indices is not None:
        raise BadArgument("this model has no classifier; create it without num_classes=0 and features_only")
    if model.class_names is not None:
        described = model.pretrained_cfg.get("label_descriptions") or {}
        return [(label, described.get(label, label)) for label in model.class_names]
    subset = infer_imagenet_subset(model)
    if subset is None:
        return [(str(index), f"class {index}") for index in range(model.num_classes)]
    known = ImageNetInfo(subset)
    return list(zip(known.label_names(), known.label_descriptions()))


def _prepared(
    paths: Iterable[Path], transform: Prepare, workers: int, ahead: int
) -> Iterator[tuple[Path, Tensor | UnreadableImage]]:
    """Each path with its prepared image or its error, in order, at most `ahead` of them in work or waiting."""

    def prepare(path: Path) -> Tensor | UnreadableImage:
        try:
            return transform(open_image(path))
        except UnreadableImage as error:
            return error

    pool = ThreadPoolExecutor(workers)
    begun: deque[tuple[Path, Future[Tensor | UnreadableImage]]] = deque()
    try:
        for path in paths:
            begun.append((path, pool.submit(prepare, path)))
            if len(begun) >= ahead:
                done, future = begun.popleft()
                yield done, future.result()
        while begun:
            done, future = begun.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # a consumer that stops early waits for no more than what is being decoded


def _to_cpu(view: Any) -> Any:
    return {key: _to_cpu(part) for key, part in view.items()} if isinstance(view, dict) else view.cpu()


def _row(view: Any, position: int) -> Any:
    """One image of a view, as memory of its own, so that keeping it does not keep its batch."""
    if isinstance(view, dict):
        return {key: _row(part, position) for key, part in view.items()}
    return view[position].clone()
