"""The nearest images and the near-duplicates of a finished run, by the cosine of their embeddings.

    run = ziggurat.open("photos.features")
    for found in ziggurat.extraction.search_images(run, ["cat.jpg"], k=5):
        for neighbour in found.neighbours:
            print(found.query, neighbour.similarity, neighbour.key)

Both read the run a block at a time, so that memory does not grow with it, and both are exact. Only many queries at once
go through an index of FAISS where that is installed (`FAISS_QUERIES`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import BadArgument, ChangedRun, UnreadableImage
from ..packages import is_installed, require_packages
from .decoding import DecodeFailure, Preprocessing, decode
from .manifest import ABOUT
from .outputs import Outputs
from .sources import Item, ReadFailure, list_inputs, read_bytes

if TYPE_CHECKING:
    from ..backbone import Backbone
    from .opening import Run

__all__ = ["DUPLICATES", "FAISS_QUERIES", "Duplicates", "Found", "Neighbour", "Pair", "find_duplicates", "search_images"]

DUPLICATES = 0.9
"""The cosine from which two images are near-duplicates, unless another is given. Of EfficientNet-Lite0, over the photos
of `examples/`: their copies as JPEG of quality 75, at half or double the size, 10 % brighter or without 5 % of the margin
have 0.927 and more to the original; a quarter of a photo has 0.78 at most to the whole, and two photos 0.41 at most."""
FAISS_QUERIES = 1000
"""The number of queries at once from which an index of FAISS is built. It takes less time than it saves from 270 queries
on over 10,000 vectors of 384 numbers, 530 over 100,000 and 810 over 300,000 (`benchmarks/neighbours.py`, time of the CPU);
and since it misses some neighbours, it has to save something."""

BLOCK = 2048  # vectors read and compared at a time
PANEL = 16384  # vectors that are held, to be compared with all behind them

Query = str | os.PathLike[str] | np.ndarray | Tensor
Block = tuple[np.ndarray, np.ndarray]  # rows of the plan (N), ascending, and their vectors (N D)


class Neighbour(NamedTuple):
    """An image of the run: its key, its row in the plan, and the cosine of its embedding to the query's, -1 to 1."""

    key: str
    row: int
    similarity: float


class Found(NamedTuple):
    """What was found for one query, the most similar first.

    `query` is its key or name; `image` says where its bytes are, None for a vector.
    """

    query: str
    image: Item | None
    neighbours: list[Neighbour]


class Pair(NamedTuple):
    """Two images of the run, by key and row, `row` < `other_row`, and the cosine of their embeddings."""

    similarity: float
    key: str
    other: str
    row: int
    other_row: int


class Duplicates(NamedTuple):
    """The most similar pairs, most similar first, and how many pairs there are in all among how many images."""

    pairs: list[Pair]
    total: int
    images: int


def search_images(
    run: Run | str | os.PathLike[str],
    queries: Query | Sequence[Query],
    k: int = 10,
    *,
    index: str = "auto",
    device: str | torch.device = "auto",
    model: Backbone | None = None,
) -> list[Found]:
    """The `k` images of a run that are most similar to each query; equal ones in the order of the plan.

    A query is a key of the run, whose vector is taken from it; or an image, a folder, a glob or an address of images,
    which are decoded and embedded as the run's were, with its model (or with `model`, if the run was made with one that
    has no name); or a vector. `index` is 'exact', 'faiss' (an inverted file, which missed up to four neighbours in a
    hundred where it was measured), or 'auto': FAISS from `FAISS_QUERIES` queries on, where it is installed.

    Raises `BadArgument` for a run without embeddings and for vectors of another width, `UnreadableImage` for a query that
    is no image, `ChangedRun` if the weights are not those of the run.
    """
    run = _opened(run)
    if k < 1:
        raise BadArgument(f"k={k}: give 1 or more")
    names, images, vectors = query_vectors(run, queries, device, model)
    search = nearest_by_faiss if chosen_index(index, len(names)) == "faiss" else nearest
    rows, cosines = search(partial(run.embedding.batches, BLOCK), vectors, k)
    keys = _keys(run, rows)
    return [Found(name, image, [Neighbour(keys[row], row, cosine) for row, cosine in zip(*each)])
            for name, image, *each in zip(names, images, rows.tolist(), cosines.tolist())]


def find_duplicates(
    run: Run | str | os.PathLike[str], threshold: float = DUPLICATES, limit: int = 1000, *,
    device: str | torch.device = "auto",
) -> Duplicates:
    """The pairs of images whose embeddings have a cosine of `threshold` (above 0, to 1) or more: the `limit` most similar.

    Every image is compared with every other one: the work grows with the square of their number. What is the same image
    to one network need not be to another; look at the pairs before you delete something.
    """
    run = _opened(run)
    if not 0 < threshold <= 1:
        raise BadArgument(f"threshold={threshold}: give a cosine above 0, up to 1")
    if limit < 1:
        raise BadArgument(f"limit={limit}: give 1 or more")
    cosines, rows, others, total = similar_pairs(partial(run.embedding.batches, BLOCK), threshold, limit, _device(device))
    keys = _keys(run, np.concatenate([rows, others]))
    pairs = [Pair(cosine, keys[row], keys[other], row, other)
             for cosine, row, other in zip(cosines.tolist(), rows.tolist(), others.tolist())]
    return Duplicates(pairs, total, len(run.embedding))


def chosen_index(index: str, queries: int) -> str:
    """'exact' or 'faiss', for so many queries. Raises `MissingExtra` where FAISS is asked for and not installed."""
    if index not in ("auto", "exact", "faiss"):
        raise BadArgument(f"index={index!r}: give auto, exact or faiss")
    if index == "faiss":
        require_packages("index='faiss'", ["faiss"], "faiss", "take index='exact'")
    if index == "auto":
        return "faiss" if queries >= FAISS_QUERIES and is_installed("faiss") else "exact"
    return index


def query_vectors(
    run: Run, queries: Query | Sequence[Query], device: str | torch.device = "auto", model: Backbone | None = None
) -> tuple[list[str], list[Item | None], np.ndarray]:
    """Names of the queries of `search_images`, where their images are, and their embeddings (Q D).

    A folder or a glob is as many queries as it holds images.
    """
    if isinstance(queries, (str, os.PathLike)) or (isinstance(queries, (np.ndarray, Tensor)) and queries.ndim == 1):
        queries = [queries]
    if not len(queries):
        raise BadArgument("queries are none: give an image, a folder, a key of the run or a vector")
    (width,) = run.manifest.shapes["embedding"]
    names: list[str] = []
    images: list[Item | None] = []
    vectors: list[np.ndarray | None] = []  # None: to be embedded
    for query in queries:
        if isinstance(query, (np.ndarray, Tensor)):
            vector = np.asarray(query, np.float32)
            if vector.shape != (width,) or not np.isfinite(vector).all():
                raise BadArgument(f"a query is a vector of shape {vector.shape}; the run's have {width} finite numbers")
            found: list[tuple[str, Item | None, np.ndarray | None]] = [(f"vector {len(names)}", None, vector)]
        elif (row := _row_of(run, os.fspath(query))) is not None:
            found = [(os.fspath(query), items_of(run, [row])[row], _stored(run, os.fspath(query)))]
        else:
            found = [(item.key, item, None) for item in list_inputs(query).items]
        names += [name for name, _, _ in found]
        images += [image for _, image, _ in found]
        vectors += [vector for _, _, vector in found]
    missing = [image for image, vector in zip(images, vectors) if vector is None and image is not None]
    embedded = _embedded(run, missing, device, model) if missing else iter(())
    return names, images, np.stack([next(embedded) if vector is None else vector for vector in vectors])


# -------------------------------------------------------------------- numbers

Blocks = Callable[[int], Iterable[Block]]  # from the vector at a position (not a row: failed images have none) to the last


def unit_length(vectors: np.ndarray | Tensor, device: torch.device | None = None) -> Tensor:
    """Vectors (N D) as float32 of length 1; one of length 0 stays as it is, so that its cosine to everything is 0."""
    vectors = torch.as_tensor(vectors).to(device).float()
    lengths = vectors.norm(dim=1, keepdim=True)
    return vectors / lengths.masked_fill(lengths == 0, 1)


def cosines_of(one: Tensor, other: Tensor) -> Tensor:
    """Products (M N) of vectors of length 1, to six digits: what differs by less is taken as equal."""
    return (one @ other.T).round(decimals=6).clamp(-1, 1)


def nearest(blocks: Blocks, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """For each query (Q D) the `k` most similar of all vectors: rows and cosines (Q K), best first, equal ones by row.

    K is less than `k` where there are fewer vectors.
    """
    asked = unit_length(queries)
    best, best_rows = torch.empty(len(asked), 0), torch.empty(len(asked), 0, dtype=torch.int64)
    for numbers, vectors in blocks(0):
        cosines, rows = cosines_of(asked, unit_length(vectors)), torch.as_tensor(numbers)
        if best.shape[1] == k:  # a later row must be better than the worst that is kept
            better = (cosines > best[:, -1:]).any(0)
            cosines, rows = cosines[:, better], rows[better]
        cosines = torch.cat([best, cosines], 1)
        rows = torch.cat([best_rows, rows.expand(len(asked), -1)], 1)
        kept = largest(cosines, k)
        best, best_rows = cosines.gather(1, kept), rows.gather(1, kept)
    return best_rows.numpy(), best.numpy()


def largest(values: Tensor, k: int) -> Tensor:
    """Places of the `k` largest of each row of values (Q N), the largest first; of equal ones the earlier."""
    if values.shape[1] > k:
        # `topk` leaves open which of equal values it takes: all that reach its last one are ordered here
        enough = values >= values.topk(k, 1).values[:, -1:]
        count = int(enough.sum(1).max())
        places = enough.byte().sort(dim=1, descending=True, stable=True).indices[:, :count]
    else:
        places = torch.arange(values.shape[1]).expand(len(values), -1)
    order = values.gather(1, places).sort(dim=1, descending=True, stable=True).indices
    return places.gather(1, order[:, :k])


def nearest_by_faiss(blocks: Blocks, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """`nearest` by an inverted file: about sqrt(N) cells, a sixteenth of which is searched. It holds all vectors as float16."""
    import faiss

    count = sum(len(rows) for rows, _ in blocks(0))
    if count <= k:
        return nearest(blocks, queries, k)
    width = queries.shape[1]
    cells = max(1, round(count**0.5))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width), width, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False)
    index.cp.min_points_per_centroid = 1  # it warns of fewer than 39, on stderr
    step = max(1, count // (40 * cells))
    index.train(np.concatenate([unit_length(vectors[::step]).numpy() for _, vectors in blocks(0)]))
    numbers = []
    for rows, vectors in blocks(0):
        index.add(unit_length(vectors).numpy())
        numbers.append(rows)
    index.nprobe = max(8, cells // 16)
    cosines, places = index.search(unit_length(queries).numpy(), k)
    if (places < 0).any():  # the cells searched hold fewer than k
        return nearest(blocks, queries, k)
    return np.concatenate(numbers)[places], cosines.clip(-1, 1)


def similar_pairs(
    blocks: Blocks, threshold: float, limit: int, device: torch.device | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Cosines, rows and other rows of the `limit` most similar pairs, and the number of all that reach the threshold.

    Ordered by cosine, then by rows.
    """
    total, start = 0, 0
    cosines, rows, others = np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64)
    while panel := _panel(blocks(start)):
        panel_rows = np.concatenate([numbers for numbers, _ in panel])
        held = torch.cat([unit_length(vectors, device) for _, vectors in panel])
        for numbers, vectors in blocks(start):
            block = unit_length(vectors, device)
            for first in range(0, len(held), BLOCK):
                all_cosines = cosines_of(held[first : first + BLOCK], block)
                similar = (all_cosines >= threshold).nonzero(as_tuple=True)
                found = all_cosines[similar].cpu().numpy()
                left, right = (places.cpu().numpy() for places in similar)
                ahead = panel_rows[first + left] < numbers[right]  # each pair once, and no image with itself
                total += int(ahead.sum())
                cosines = np.concatenate([cosines, found[ahead]])
                rows = np.concatenate([rows, panel_rows[first + left[ahead]]])
                others = np.concatenate([others, numbers[right[ahead]]])
                if len(cosines) > limit:
                    kept = np.lexsort((others, rows, -cosines))[:limit]
                    cosines, rows, others = cosines[kept], rows[kept], others[kept]
        start += len(held)
    order = np.lexsort((others, rows, -cosines))
    return cosines[order], rows[order], others[order], total


def _panel(blocks: Iterable[Block]) -> list[Block]:
    """The first `PANEL` vectors, in blocks."""
    return list(islice(blocks, PANEL // BLOCK))


# -------------------------------------------------------------------- the run


def _opened(run: Run | str | os.PathLike[str]) -> Run:
    from .opening import open

    run = open(run) if isinstance(run, (str, os.PathLike)) else run
    if not run.manifest.outputs.embed:
        raise BadArgument(f"{str(run.path)!r} holds no embeddings, but {', '.join(run.manifest.outputs.directories())}; "
                          "extract anew with --embed")
    return run


def _keys(run: Run, rows: np.ndarray) -> dict[int, str]:
    """The keys of rows, each asked for once."""
    rows = np.unique(rows)
    return dict(zip(rows.tolist(), run.keys_of(rows)))


def items_of(run: Run, rows: Sequence[int]) -> dict[int, Item]:
    """Where the images of rows of the plan are; only the parts of the plan are read that hold them."""
    import pyarrow.parquet as pq

    table = pq.read_table(run.path / ABOUT / "plan.parquet", columns=["row", *Item._fields], filters=[("row", "in", set(rows))])
    return {line.pop("row"): Item(**line) for line in table.to_pylist()}


def _row_of(run: Run, key: str) -> int | None:
    try:
        return run.row_of(key)
    except KeyError:
        return None


def _stored(run: Run, key: str) -> np.ndarray:
    try:
        return run.embedding[key].astype(np.float32)
    except KeyError as error:  # it failed, or is not done yet
        raise BadArgument(error.args[0]) from error


def _embedded(run: Run, images: Sequence[Item], device: str | torch.device, model: Backbone | None) -> Iterator[np.ndarray]:
    """The embedding (D) of images that are not of the run, computed as its were; by torch, whatever the run's backend."""
    from .forward import make_forward
    from .unit import load_model, weights_sha256

    manifest = run.manifest
    if model is None:
        model = load_model(manifest.model, has_head=manifest.outputs.logits)
    if weights_sha256(model) != manifest.model["weights_sha256"]:
        raise ChangedRun(f"the weights of {manifest.model['name']} are not those that {str(run.path)!r} was made with, so "
                         "that vectors cannot be compared; bring those back, or extract anew")
    preprocessing = Preprocessing.from_stamp(manifest.preprocessing)
    size = min(len(images), manifest.batch_size)
    forward = make_forward(model, Outputs(embed=True), preprocessing, backend="torch", precision=manifest.precision,
                           batch_size=size, device=device)
    pixels = (_pixels(image, preprocessing) for image in images)
    blank = np.zeros((*preprocessing.size, preprocessing.channels), np.uint8)

    def batches() -> Iterator[tuple[int, np.ndarray]]:
        for _ in range(0, len(images), size):
            taken = list(islice(pixels, size))
            yield len(taken), np.stack(taken + [blank] * (size - len(taken)))

    for count, values in forward.stream(batches()):
        yield from values["embedding"][:count]


def _pixels(image: Item, preprocessing: Preprocessing) -> np.ndarray:
    try:
        return decode(read_bytes(image), preprocessing)
    except (ReadFailure, DecodeFailure) as failure:
        raise UnreadableImage(image.key, failure.message) from failure


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)
