"""The data of a unit on disk: one file, or a few of one name, for each output; the same bytes for the same numbers.

A format of vectors is a module with three functions, of maps likewise; `stem` is DEST/OUTPUT/NNNNNN, without an ending:

- `write(stem, partial, index, values, about)` commits the unit's files and returns their paths. `index` is a table of
  `key` and `row`; `values` are arrays by name whose first dimension is that of the table (of vectors there is one).
- `read_index(stem)` gives that table back.
- `view(stem)` gives the arrays by name, read when they are sliced: `array[3]`, `array[10:20]` are NumPy arrays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..commit import STATE, sha256_of, size_of
from ..outputs import MAP_GROUPS, Outputs, group
from . import lance, npy, parquet, safetensors, zarr
from .index import index_table

__all__ = ["Array", "FileFact", "finalise", "read_unit", "view_unit", "write_unit"]

FORMATS: dict[str, ModuleType] = {
    "parquet": parquet, "npy": npy, "lance": lance, "safetensors": safetensors, "zarr": zarr,
}


class FileFact(NamedTuple):
    """A committed file or folder: its path from DEST with '/', its size in bytes and its SHA-256 (`sha256_of`)."""

    path: str
    bytes: int
    sha256: str


class Array(Protocol):
    """Numbers on disk [N ...], read when sliced along N."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, which: Any, /) -> Any: ...


def write_unit(
    dest: Path,
    outputs: Outputs,
    unit: int,
    rows: np.ndarray,
    keys: Sequence[str],
    values: Mapping[str, np.ndarray],
    about: Mapping[str, Any] | None = None,
) -> list[FileFact]:
    """Commits a unit's numbers, `values` [N ...] by the names of the forward pass, and says what was written.

    `rows` (int64, ascending) and `keys` are those of the N images that have numbers. `about` (model, preprocessing) is
    noted in the formats that hold notes, as JSON under 'ziggurat'. Raises `OSError` when the disk is full; then, as after
    a kill, files of the unit may be there already, and the next attempt replaces them.
    """
    index = index_table(rows, keys)
    noted = {"ziggurat": json.dumps({**(about or {}), "dtype": outputs.dtype}, sort_keys=True)}
    partial = dest / STATE / "partial"
    facts = []
    for directory, names in group(values).items():
        arrays = {_inner(name): np.ascontiguousarray(values[name]) for name in names}
        for name, array in arrays.items():
            assert len(array) == len(rows), f"{directory}/{name} has {len(array)} rows for {len(rows)} images"
        for path in _format(outputs, directory).write(_stem(dest, directory, unit), partial, index, arrays, noted):
            facts.append(FileFact(path.relative_to(dest).as_posix(), size_of(path), sha256_of(path)))
    return facts


def view_unit(dest: Path, outputs: Outputs, directory: str, unit: int) -> dict[str, Array]:
    """The arrays of one output's unit, by the names of the forward pass; nothing but headers is read yet."""
    found = _format(outputs, directory).view(_stem(dest, directory, unit))
    return {f"{directory}/{name}" if directory in MAP_GROUPS else directory: array for name, array in found.items()}


def read_unit(dest: Path, outputs: Outputs, unit: int) -> tuple[np.ndarray, list[str], dict[str, np.ndarray]]:
    """All that `write_unit` wrote: rows, keys and values."""
    values: dict[str, np.ndarray] = {}
    index = None
    for directory in outputs.directories():
        values |= {name: np.asarray(array[:]) for name, array in view_unit(dest, outputs, directory, unit).items()}
        if index is None:
            index = _format(outputs, directory).read_index(_stem(dest, directory, unit))
    assert index is not None, "a run has an output"
    return index["row"].to_numpy(), index["key"].to_pylist(), values


def finalise(dest: Path, outputs: Outputs) -> None:
    """What can be written only when all units are there: of Lance, the data set over the units' files."""
    for directory in outputs.directories():
        if _format(outputs, directory) is lance:
            lance.finalise(dest / directory)


def _format(outputs: Outputs, directory: str) -> ModuleType:
    return FORMATS[outputs.maps if directory in MAP_GROUPS else outputs.vectors]


def _stem(dest: Path, directory: str, unit: int) -> Path:
    return dest / directory / f"{unit:06d}"


def _inner(name: str) -> str:
    """A tensor's name within its files: embedding, logits, feature (of a tap), stride_8, cls."""
    directory, _, rest = name.partition("/")
    return "feature" if directory == "taps" else rest or name
