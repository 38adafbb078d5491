"""What can go wrong with one image, in words that programs can count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .commit import committed

if TYPE_CHECKING:
    import pyarrow

__all__ = ["CAUSES", "STAGES", "Failure", "failures_table", "read_failures", "write_failures"]

STAGES = ("read", "decode", "preprocess", "forward", "nonfinite")

CAUSES = {
    "missing": "there is nothing at the address any more",
    "denied": "the address may not be read",
    "unavailable": "reading failed again and again, though it may succeed another time; never a statement about the image",
    "changed": "the file is another than when the run was planned; retry takes it as it is now",
    "empty": "zero bytes",
    "truncated": "the file ends too early",
    "not_an_image": "no format that Pillow knows",
    "corrupt": "a known format whose content cannot be decoded",
    "too_large": "more pixels than Pillow's limit against decompression bombs",
    "timeout": "decoding took longer than allowed, and its process was ended",
    "signal": "the process that decoded it died of a signal, again and again",
    "memory": "there was not enough memory for this image alone",
    "nan": "the network put out NaN or infinity for it",
    "overflow": "a value is beyond what float16 holds; float32 would keep it",
}


class Failure(NamedTuple):
    """Why an image has no row: at which stage, of which cause (of `CAUSES`), in which words.

    `bytes` is the length of what was read (-1 if nothing was) and `sha256` its hash, so that a bad file can be told from
    one that was replaced since. Messages hold nothing that another run would write differently.
    """

    stage: str
    cause: str
    message: str
    bytes: int = -1
    sha256: str = ""


def failures_table(rows: Iterable[Mapping[str, Any]] = ()) -> pyarrow.Table:
    """Failures as a table: row (int64, of the plan), key, stage, cause, message, bytes (int64), sha256."""
    import pyarrow as pa

    text = pa.string()
    schema = pa.schema([("row", pa.int64()), ("key", text), ("stage", text), ("cause", text), ("message", text),
                        ("bytes", pa.int64()), ("sha256", text)])
    return pa.Table.from_pylist(list(rows), schema)


def read_failures(path: Path) -> pyarrow.Table:
    """A table of failures; an empty one where there is no file, as for a unit without any."""
    import pyarrow.parquet as pq

    return pq.read_table(path) if path.exists() else failures_table()


def write_failures(path: Path, table: pyarrow.Table, partial: Path) -> None:
    """Commits a table of failures."""
    import pyarrow.parquet as pq

    with committed(path, partial) as growing:
        pq.write_table(table, growing)
