"""Maps as safetensors: one file a unit, one tensor a level [N C H W], mapped into memory when read.

The file is written here and not by the package, which wants all of it in memory once more and has no error of its own
for a full disk: eight bytes with the length of the header, the header in JSON, the numbers. Any reader of safetensors
takes it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..commit import committed
from .index import read_index, write_index

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_index", "view", "write"]

DTYPES: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write(
    stem: Path, partial: Path, index: pa.Table, values: dict[str, np.ndarray], about: dict[str, str]
) -> list[Path]:
    facts: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name, array in values.items():
        facts[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    header = json.dumps(facts, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that the numbers are aligned
    final = stem.with_suffix(".safetensors")
    with committed(final, partial) as path, path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for array in values.values():
            stream.write(array.data)
    return [final, write_index(stem, partial, index)]


def view(stem: Path) -> dict[str, np.ndarray]:
    path = stem.with_suffix(".safetensors")
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        facts = json.loads(stream.read(length))
    facts.pop("__metadata__", None)
    return {name: _mapped(path, 8 + length, fact) for name, fact in facts.items()}


def _mapped(path: Path, start: int, fact: dict[str, Any]) -> np.ndarray:
    dtype, shape = DTYPES[fact["dtype"]], tuple(fact["shape"])
    if math.prod(shape) == 0:
        return np.empty(shape, dtype)  # nothing can be mapped
    return np.memmap(path, dtype, "r", start + fact["data_offsets"][0], shape)
