"""Vectors as Parquet: columns `key`, `row` and the vector, a list of fixed size, stored plainly.

It opens in pandas, Polars, DuckDB and Arrow as it is. Spark has no type of 16 bits for numbers with a fraction: write
'f32' for it.
"""

from __future__ import annotations

import bisect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..commit import committed

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_index", "view", "write"]

GROUP = 8192  # rows in a row group, the least that a reader decodes


def write(
    stem: Path, partial: Path, index: pa.Table, values: dict[str, np.ndarray], about: dict[str, str]
) -> list[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ((name, array),) = values.items()
    kind = pa.list_(pa.field("element", pa.from_numpy_dtype(array.dtype), nullable=False), array.shape[1])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), type=kind)
    table = index.append_column(pa.field(name, kind, nullable=False), vectors).replace_schema_metadata(about)
    final = stem.with_suffix(".parquet")
    with committed(final, partial) as path:
        # of vectors, dictionaries and statistics cost much time and space and help nobody, and nor does compression
        pq.write_table(table, path, row_group_size=GROUP, compression="none", use_dictionary=False,
                       write_statistics=["key", "row"])
    return [final]


def read_index(stem: Path) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(stem.with_suffix(".parquet"), columns=["key", "row"])


def view(stem: Path) -> dict[str, Vectors]:
    vectors = Vectors(stem.with_suffix(".parquet"))
    return {vectors.name: vectors}


class Vectors:
    """A column of vectors [N D], decoded a row group at a time; the last one is kept."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self.file = pq.ParquetFile(path, memory_map=True)
        facts = self.file.metadata
        field = self.file.schema_arrow.field(2)
        self.name: str = field.name
        self.dtype = np.dtype(field.type.value_type.to_pandas_dtype())
        self.shape: tuple[int, ...] = (facts.num_rows, field.type.list_size)
        self.starts = [0]
        for number in range(facts.num_row_groups):
            self.starts.append(self.starts[-1] + facts.row_group(number).num_rows)
        self._kept: tuple[int, np.ndarray] | None = None

    def __getitem__(self, which: Any) -> np.ndarray:
        if not isinstance(which, slice):
            number = bisect.bisect_right(self.starts, which) - 1
            return self._group(number)[which - self.starts[number]]
        first, last, step = which.indices(len(self))
        assert step == 1, "rows are read in their order"
        result = np.empty((max(0, last - first), self.shape[1]), self.dtype)
        for number, start in enumerate(self.starts[:-1]):
            begin, end = max(first, start), min(last, self.starts[number + 1])
            if begin < end:
                result[begin - first : end - first] = self._group(number)[begin - start : end - start]
        return result

    def __len__(self) -> int:
        return self.shape[0]

    def _group(self, number: int) -> np.ndarray:
        if self._kept is None or self._kept[0] != number:
            column = self.file.read_row_group(number, columns=[self.name]).column(self.name).combine_chunks()
            self._kept = number, column.flatten().to_numpy().reshape(-1, self.shape[1])
        return self._kept[1]
