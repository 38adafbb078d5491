"""Embeddings to a file, row by row: Parquet, NumPy or CSV, chosen by the ending, complete or not there at all."""

from __future__ import annotations

import csv
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from .. import __version__
from ..errors import BadArgument
from ..packages import require_packages

__all__ = ["EmbeddingWriter", "open_writer"]

DTYPES: dict[str, np.dtype[Any]] = {"f16": np.dtype(np.float16), "f32": np.dtype(np.float32)}
ROWS = 1024  # gathered before they are written


class EmbeddingWriter(ABC):
    """A file of embeddings in the making: `with open_writer(path) as writer: writer.add(image_path, vector)`.

    It grows beside its final name and takes it when the `with` block ends well; a block that raises, or adds nothing,
    leaves nothing behind. `count` rows of `width` numbers have been added.
    """

    def __init__(self, path: Path, dtype: np.dtype, about: Mapping[str, str]) -> None:
        self.path = path
        self.dtype = dtype
        self.about = {"ziggurat": __version__, **about}
        self.count = 0
        self.width: int | None = None
        self._growing = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._paths: list[str] = []
        self._rows: list[np.ndarray] = []

    def add(self, path: str | os.PathLike[str], vector: Tensor) -> None:
        """One row: the image's path, which is the key, and its embedding (D)."""
        row = vector.detach().float().cpu().numpy()
        if row.ndim != 1 or (self.width is not None and len(row) != self.width):
            raise BadArgument(f"an embedding of shape {row.shape} where {self.width or 'one vector'} was expected")
        with np.errstate(over="ignore"):
            narrow = row.astype(self.dtype)
        if not np.array_equal(np.isfinite(narrow), np.isfinite(row)):
            raise BadArgument(f"the embedding of {os.fspath(path)!r} holds {np.abs(row).max():g}, "
                              "which 16 bits cannot; write f32")
        if self.width is None:
            self.width = len(row)
            self.begin()
        self._paths.append(os.fspath(path))
        self._rows.append(narrow)
        self.count += 1
        if len(self._rows) == ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self.write(self._paths, np.stack(self._rows))
            self._paths, self._rows = [], []

    @abstractmethod
    def begin(self) -> None:
        """Opens the file; `width` is known now."""

    @abstractmethod
    def write(self, paths: Sequence[str], rows: np.ndarray) -> None:
        """Appends rows (N D)."""

    def complete(self) -> None:  # noqa: B027  # a format may have nothing of the kind
        """Writes what is known only at the end; not called when the block raised."""

    @abstractmethod
    def close(self) -> None:
        """Closes the file, whatever has become of it."""

    def __enter__(self) -> EmbeddingWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.width is None:
            return
        try:
            if kind is None:
                self._flush()
                self.complete()
            self.close()
            if kind is None:
                os.replace(self._growing, self.path)
        finally:
            self.close()
            self._growing.unlink(missing_ok=True)


class ParquetWriter(EmbeddingWriter):
    """Columns `path` (text) and `embedding` (a list of fixed size), the model's name in the schema's metadata."""

    def begin(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = pa.float16() if self.dtype == np.float16 else pa.float32()
        vector = pa.list_(number, self.width)
        self.schema = pa.schema([("path", pa.string()), ("embedding", vector)], metadata=dict(self.about))
        self.file = pq.ParquetWriter(self._growing, self.schema)

    def write(self, paths: Sequence[str], rows: np.ndarray) -> None:
        import pyarrow as pa

        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), self.width)
        self.file.write_table(pa.table([pa.array(paths, pa.string()), vectors], schema=self.schema))

    def close(self) -> None:
        self.file.close()


class NumpyWriter(EmbeddingWriter):
    """An array (N D) in `NAME.npy`, and the paths of its rows in `NAME.paths.json`."""

    stream: BinaryIO

    def begin(self) -> None:
        self.keys: list[str] = []
        self.stream = self._growing.open("wb")
        self._header()

    def _header(self) -> None:
        # NumPy leaves room in the header for the number of rows, which is known only at the end
        shape = (len(self.keys), self.width)
        facts: dict[str, Any] = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.stream, facts)

    def write(self, paths: Sequence[str], rows: np.ndarray) -> None:
        self.keys += paths
        self.stream.write(rows.tobytes())

    def complete(self) -> None:
        start = self.stream.tell() - len(self.keys) * self.dtype.itemsize * (self.width or 0)
        self.stream.seek(0)
        self._header()
        assert self.stream.tell() == start, "NumPy's header grew"
        self.path.with_suffix(".paths.json").write_text(json.dumps(self.keys, indent=0), encoding="utf-8")

    def close(self) -> None:
        self.stream.close()


class ArchiveWriter(NumpyWriter):
    """Arrays `path` (N) and `embedding` (N D) in one `.npz`, beside `about`, the model's name as JSON."""

    def complete(self) -> None:
        self.stream.seek(0)
        self._header()
        self.stream.close()
        rows = np.lib.format.open_memmap(self._growing, mode="r")
        packed = self._growing.with_suffix(".npz")
        np.savez(packed, path=np.array(self.keys), embedding=rows, about=np.array(json.dumps(self.about)))
        os.replace(packed, self._growing)


class CsvWriter(EmbeddingWriter):
    """Columns path, e0, e1, ...; numbers with as many digits as give them back exactly."""

    def begin(self) -> None:
        self.stream = self._growing.open("w", newline="", encoding="utf-8")
        self.rows = csv.writer(self.stream)
        self.rows.writerow(["path", *(f"e{i}" for i in range(self.width or 0))])

    def write(self, paths: Sequence[str], rows: np.ndarray) -> None:
        for path, row in zip(paths, rows):
            self.rows.writerow([path, *(str(number) for number in row)])

    def close(self) -> None:
        self.stream.close()


WRITERS: dict[str, type[EmbeddingWriter]] = {
    ".parquet": ParquetWriter, ".npy": NumpyWriter, ".npz": ArchiveWriter, ".csv": CsvWriter,
}


def open_writer(
    path: str | os.PathLike[str], dtype: str = "f32", about: Mapping[str, str] | None = None
) -> EmbeddingWriter:
    """The writer for a file name's ending: .parquet, .npy, .npz or .csv; folders on the way are made.

    `dtype` is 'f32' or 'f16', the type of the numbers in the file; `about` goes into formats that hold such notes.
    Raises `BadArgument` for another ending or a place that cannot be written, `MissingExtra` for Parquet without pyarrow.
    """
    path = Path(path)
    kind = WRITERS.get(path.suffix.lower())
    if kind is None:
        raise BadArgument(f"{str(path)!r} ends in {path.suffix or 'nothing'!r}; write to a file that ends in {', '.join(WRITERS)}")
    if dtype not in DTYPES:
        raise BadArgument(f"dtype={dtype!r}: give {' or '.join(DTYPES)}")
    if kind is ParquetWriter:
        require_packages("Parquet", ["pyarrow"], "parquet", "write .npz, .npy or .csv")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadArgument(f"the folder {str(path.parent)!r} cannot be made: {error.strerror}; choose another") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise BadArgument(f"{str(path)!r} cannot be written: it is a folder, or lies in one that is closed; choose another")
    return kind(path, DTYPES[dtype], about or {})

