"""Which images the rows of an array are: a table of keys and rows of the plan, beside formats that hold numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..commit import committed

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["index_path", "index_table", "read_index", "write_index"]


def index_table(rows: np.ndarray, keys: Sequence[str]) -> pa.Table:
    """Columns `key` (text) and `row` (int64, of the plan)."""
    import pyarrow as pa

    schema = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("row", pa.int64(), nullable=False)])
    return pa.table([pa.array(keys, pa.string()), pa.array(rows, pa.int64())], schema=schema)


def index_path(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.rows.parquet")


def write_index(stem: Path, partial: Path, index: pa.Table) -> Path:
    import pyarrow.parquet as pq

    final = index_path(stem)
    with committed(final, partial) as path:
        pq.write_table(index, path, compression="none", use_dictionary=False)
    return final


def read_index(stem: Path) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(index_path(stem))
