"""Maps as Zarr v3: one group a unit, NNNNNN.zarr, one array a level [N C H W]; a chunk is an image, a shard the unit.

So a reader fetches single images from an object store, and no two writers ever touch one shard. Not compressed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..commit import committed
from .index import read_index, write_index

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_index", "view", "write"]


def write(
    stem: Path, partial: Path, index: pa.Table, values: dict[str, np.ndarray], about: dict[str, str]
) -> list[Path]:
    import zarr

    final = stem.with_suffix(".zarr")
    with committed(final, partial) as path:
        group = zarr.create_group(path, zarr_format=3, attributes=dict(about))
        for name, array in values.items():
            images, *shape = array.shape
            level = group.create_array(name, shape=array.shape, dtype=array.dtype, chunks=(1, *shape),
                                       shards=(max(images, 1), *shape), compressors=None, fill_value=0)
            if images:
                level[:] = array
    return [final, write_index(stem, partial, index)]


def view(stem: Path) -> dict[str, Any]:
    import zarr

    return dict(zarr.open_group(stem.with_suffix(".zarr"), mode="r").arrays())
