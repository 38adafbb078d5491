"""Vectors as NumPy arrays [N D] in NNNNNN.npy, mapped into memory when read; keys and rows in NNNNNN.rows.parquet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..commit import committed
from .index import read_index, write_index

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_index", "view", "write"]


def write(
    stem: Path, partial: Path, index: pa.Table, values: dict[str, np.ndarray], about: dict[str, str]
) -> list[Path]:
    (array,) = values.values()
    final = stem.with_suffix(".npy")
    with committed(final, partial) as path, path.open("wb") as stream:
        # not np.save, whose error for a full disk does not say that it is one
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        stream.write(array.data)
    return [final, write_index(stem, partial, index)]


def view(stem: Path) -> dict[str, np.ndarray]:
    array = np.load(stem.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    return {stem.parent.name: array}
