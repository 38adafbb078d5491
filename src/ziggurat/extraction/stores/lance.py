"""Vectors as Lance: one data file a unit, and one data set over all of them, committed when the run is complete.

Workers write OUTPUT/data/NNNNNN.lance, whose bytes depend on nothing but the numbers; `finalise` then makes OUTPUT a
Lance data set of these files. What it adds, OUTPUT/_versions and OUTPUT/_transactions, holds the time and a random name,
and is the only part of a finished run that differs from one run to the next.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ..commit import committed, flush_tree

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["finalise", "read_index", "view", "write"]

VERSION = "2.1"  # of the file format: named, so that a newer package writes the same bytes
ADDED = ("_versions", "_transactions")  # by finalise


def write(
    stem: Path, partial: Path, index: pa.Table, values: dict[str, np.ndarray], about: dict[str, str]
) -> list[Path]:
    import pyarrow as pa
    from lance.file import LanceFileWriter

    ((name, array),) = values.items()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
    table = index.append_column(pa.field(name, vectors.type, nullable=False), vectors).replace_schema_metadata(about)
    final = _path(stem)
    partial.mkdir(parents=True, exist_ok=True)
    # in a folder of its own, as Lance leaves an unfinished file under another name when the disk is full
    with (TemporaryDirectory(dir=partial, prefix=f"{stem.name}-") as folder, committed(final, Path(folder)) as path,
          _plain_errors(), LanceFileWriter(str(path), table.schema, version=VERSION) as writer):
        writer.write_batch(table)
    return [final]


def read_index(stem: Path) -> pa.Table:
    from lance.file import LanceFileReader

    return LanceFileReader(str(_path(stem)), columns=["key", "row"]).read_all().to_table()


def view(stem: Path) -> dict[str, Vectors]:
    vectors = Vectors(_path(stem))
    return {vectors.name: vectors}


class Vectors:
    """A column of vectors [N D] in a Lance file; what is sliced is what is read."""

    def __init__(self, path: Path) -> None:
        from lance.file import LanceFileReader

        field = LanceFileReader(str(path)).metadata().schema.field(2)
        self.name: str = field.name
        self.dtype = np.dtype(field.type.value_type.to_pandas_dtype())
        self.reader = LanceFileReader(str(path), columns=[self.name])
        self.shape: tuple[int, ...] = (self.reader.num_rows(), field.type.list_size)

    def __getitem__(self, which: Any) -> np.ndarray:
        if not isinstance(which, slice):
            return self[which : which + 1][0]
        first, last, step = which.indices(len(self))
        assert step == 1, "rows are read in their order"
        result = np.empty((max(0, last - first), self.shape[1]), self.dtype)
        done = 0
        if len(result):
            for batch in self.reader.read_range(first, len(result)).to_batches():
                result[done : done + len(batch)] = batch.column(0).flatten().to_numpy().reshape(-1, self.shape[1])
                done += len(batch)
        return result

    def __len__(self) -> int:
        return self.shape[0]


def finalise(folder: Path) -> None:
    """Makes a Lance data set of the files of all units, in the place of an earlier one; one that has them all is left."""
    import lance
    from lance.file import LanceFileReader
    from lance.fragment import DataFile, FragmentMetadata

    schema: pa.Schema | None = None
    fragments: list[FragmentMetadata] = []
    for path in sorted((folder / "data").glob("*.lance"), key=lambda path: int(path.stem)):
        reader = LanceFileReader(str(path))
        schema = reader.metadata().schema
        if count := reader.num_rows():
            columns = list(range(len(schema)))
            major, minor = map(int, VERSION.split("."))
            file = DataFile(path.name, columns, columns, major, minor, path.stat().st_size)
            fragments.append(FragmentMetadata(len(fragments), [file], count))
    if _held(folder) == [(fragment.files[0].path, fragment.physical_rows) for fragment in fragments]:
        return
    for name in ADDED:  # earlier versions would name files that a retry has written anew
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    if schema is not None:
        lance.LanceDataset.commit(str(folder), lance.LanceOperation.Overwrite(schema, fragments))
        for name in ADDED:
            flush_tree(folder / name)


def _held(folder: Path) -> list[tuple[str, int]] | None:
    """The files and numbers of rows of the data set as it is; None where there is none that can be read."""
    import lance

    if not (folder / ADDED[0]).exists():
        return None
    try:
        data = lance.dataset(str(folder))
    except (OSError, ValueError):  # half of it was removed when a process died
        return None
    return [(file.path, fragment.physical_rows) for fragment in data.get_fragments() for file in fragment.data_files()]


def _path(stem: Path) -> Path:
    return stem.parent / "data" / f"{stem.name}.lance"


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Gives errors of the operating system their number, which Lance tells in words only."""
    try:
        yield
    except OSError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if error.errno is None and code:
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        raise
