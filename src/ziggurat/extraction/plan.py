"""The frozen list of what an extraction works on: columns of numbered rows, about 100 bytes an image."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, lru_cache
from hashlib import sha256
from itertools import accumulate, islice
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadArgument
from ..packages import require_packages
from .sources import Item, refreshed

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["Difference", "Plan", "PlanFile", "open_plan"]

CHUNK = 1 << 13  # rows of one record batch and of one row group: what is made or replaced at a time
IN_PROCESS_ONLY = b"in_process_only"  # in the file's metadata, where `Plan.in_process_only` is true


class Difference(NamedTuple):
    """How inputs differ from a plan: keys that are new, that are gone, and whose address, size or stamp is another."""

    added: list[str]
    removed: list[str]
    changed: list[str]

    def __bool__(self) -> bool:
        return any(self)


class Plan:
    """Items by row number. Rows never move: `extended` appends, so that what was computed for a row stays its own.

    Columns: row (int64), key, container, member (text), offset, size (int64), stamp (text), as in `Item`. Two plans are
    equal if their columns are. Raises MissingExtra where pyarrow is not installed.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def make(cls, items: Iterable[Item]) -> Plan:
        """The plan of items in the order of their keys. Raises BadArgument for a key that two of them have."""
        ordered = sorted(items, key=lambda item: item.key)
        _refuse_twins(ordered)
        return cls(_table(_batches(ordered)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """The plan that was saved at `path`. Raises BadArgument for a file that is no plan."""
        pa, _ = _arrow()
        with open_plan(path) as file:
            try:
                batches = list(file.iter_batches(CHUNK, use_threads=False))
            except (OSError, pa.ArrowInvalid) as error:
                raise _unreadable(path, str(error)) from error
        return cls(_table(batches))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as Parquet. Equal plans give equal bytes (of one version of pyarrow)."""
        _, pq = _arrow()
        schema = self.table.schema.with_metadata({IN_PROCESS_ONLY: ""} if self.in_process_only else None)
        with pq.ParquetWriter(os.fspath(path), schema, version="2.6", data_page_version="1.0",
                              compression="zstd", compression_level=1, use_dictionary=["container", "stamp"],
                              write_statistics=["row", "key"]) as file:
            for start in range(0, len(self), CHUNK):  # of its own chunks, however the table came to be
                part = self.table.slice(start, CHUNK).combine_chunks().replace_schema_metadata(schema.metadata)
                file.write_table(part, row_group_size=CHUNK)

    def __len__(self) -> int:
        return self.table.num_rows

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.table.equals(other.table)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Plan({len(self)} rows, {self.fingerprint[:12]})"

    def items(self, start: int = 0, stop: int | None = None) -> list[Item]:
        """The items of the rows start <= row < stop, and of no others: the rest stays in columns."""
        part = self.table.slice(start, None if stop is None else max(0, stop - start)).drop_columns("row").to_pydict()
        return [Item(*values) for values in zip(*part.values(), strict=True)]

    def keys(self, start: int = 0, stop: int | None = None) -> list[str]:
        """The keys of the rows start <= row < stop."""
        return self.table["key"].slice(start, None if stop is None else max(0, stop - start)).to_pylist()

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, len(self), CHUNK):
            yield from self.items(start, start + CHUNK)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the columns: of what the plan says, whatever file it is kept in."""
        digest = sha256()
        for name in self.table.column_names:
            digest.update(f"{name}\n".encode())
            for start in range(0, len(self), CHUNK):
                values = self.table[name].slice(start, CHUNK).to_pylist()
                digest.update("".join(f"{value}\n" for value in values).encode())  # no value holds a newline
        return digest.hexdigest()

    def difference(self, items: Iterable[Item]) -> Difference:
        """How `items`, as listed now, differ from the plan; false if they do not. Keys are sorted."""
        new = {item.key: item for item in items}
        removed, changed = [], []
        for old in self:
            now = new.pop(old.key, None)
            if now is None:
                removed.append(old.key)
            elif now != old:
                changed.append(old.key)
        return Difference(sorted(new), sorted(removed), sorted(changed))

    def extended(self, items: Iterable[Item]) -> Plan:
        """The plan with the items of keys that it lacks behind its rows, sorted among themselves. Old rows stay as they are."""
        new = {item.key: item for item in items}
        for key in self._every_key():
            new.pop(key, None)
        added = sorted(new.values(), key=lambda item: item.key)
        return Plan(_table([*self.table.to_batches(), *_batches(added, len(self))]))

    def refreshed(self, rows: Iterable[int], refresh: Callable[[Item], Item] = refreshed) -> Plan:
        """The plan with the addresses, sizes and stamps of some rows as they are now; keys and row numbers stay."""
        wanted = set(rows)
        if wanted and not 0 <= min(wanted) <= max(wanted) < len(self):
            raise BadArgument(f"rows go from {min(wanted)} to {max(wanted)}, the plan's from 0 to {len(self) - 1}")
        batches: list[pa.RecordBatch] = []
        start = 0
        for batch in self.table.to_batches():
            here = wanted.intersection(range(start, start + batch.num_rows)) if wanted else set()
            if here:
                now = [refresh(item) if start + index in here else item
                       for index, item in enumerate(self.items(start, start + batch.num_rows))]
                batches += _batches(now, start)
            else:
                batches.append(batch)
            start += batch.num_rows
        return Plan(_table(batches))

    @property
    def in_process_only(self) -> bool:
        """Whether an image is in fsspec's memory://, which another process would find empty: read them in this one."""
        import pyarrow.compute as pc

        return bool(pc.any(pc.match_substring(self.table["container"], "memory://")).as_py())

    def _every_key(self) -> Iterator[str]:
        for start in range(0, len(self), CHUNK):
            yield from self.keys(start, start + CHUNK)


class PlanFile:
    """A saved plan of which no more is in memory than two row groups, of 8,192 rows: for those who need a unit at a time."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open_plan(path)
        facts = self._file.metadata
        self._starts = list(accumulate((facts.row_group(number).num_rows for number in range(facts.num_row_groups)), initial=0))
        self._lock = Lock()  # units are read and written on different threads
        self._kept = lru_cache(maxsize=2)(self._file.read_row_group)
        self.in_process_only = IN_PROCESS_ONLY in (self._file.schema_arrow.metadata or {})

    def __len__(self) -> int:
        return self._starts[-1]

    def items(self, start: int, stop: int) -> list[Item]:
        """The items of the rows start <= row < stop."""
        return self._part(start, stop).items()

    def keys(self, start: int, stop: int) -> list[str]:
        """The keys of the rows start <= row < stop."""
        return self._part(start, stop).keys()

    def _part(self, start: int, stop: int) -> Plan:
        pa, _ = _arrow()
        stop = min(stop, len(self))
        if start >= stop:
            return Plan(_table([]))
        groups = range(bisect_right(self._starts, start) - 1, bisect_left(self._starts, stop))
        with self._lock:
            table = pa.concat_tables([self._kept(number) for number in groups])
        return Plan(table.slice(start - self._starts[groups.start], stop - start))


def open_plan(path: str | os.PathLike[str]) -> pq.ParquetFile:
    """The file of a plan, of which no row is read yet. Raises BadArgument for one that is no plan, or not there."""
    pa, pq = _arrow()
    try:
        file = pq.ParquetFile(os.fspath(path))
    except FileNotFoundError as error:
        raise _unreadable(path, "there is no such file") from error
    except pa.ArrowInvalid as error:
        raise _unreadable(path, str(error)) from error
    if file.schema_arrow.names != _schema(pa).names:
        raise _unreadable(path, f"its columns are {file.schema_arrow.names}")
    return file


def _unreadable(path: str | os.PathLike[str], why: str) -> BadArgument:
    return BadArgument(f"{os.fspath(path)!r} cannot be read as a plan: {why}; bring it back, or start over with --fresh")


def _refuse_twins(ordered: list[Item]) -> None:
    for before, item in zip(ordered, islice(ordered, 1, None)):
        if before.key == item.key:
            raise BadArgument(f"the key {item.key!r} stands for two inputs, in {before.container!r} and in "
                              f"{item.container!r}; keys must be unique")


def _batches(items: list[Item], first_row: int = 0) -> Iterator[pa.RecordBatch]:
    pa, _ = _arrow()
    schema = _schema(pa)
    for start in range(0, len(items), CHUNK):
        part = items[start : start + CHUNK]
        columns = [range(first_row + start, first_row + start + len(part)), *zip(*part, strict=True)]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        yield pa.record_batch(arrays, schema=schema)


def _table(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    pa, _ = _arrow()
    return pa.Table.from_batches(list(batches), schema=_schema(pa))


def _schema(pa):  # type: ignore[no-untyped-def]  # of the module, which is no type
    kinds = {"row": pa.int64(), "key": pa.string(), "container": pa.string(), "member": pa.string(), "offset": pa.int64(),
             "size": pa.int64(), "stamp": pa.string()}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


def _arrow():  # type: ignore[no-untyped-def]  # pyarrow, pyarrow.parquet
    require_packages("a plan, which is kept as Parquet,", ["pyarrow"], "extract")
    import pyarrow
    import pyarrow.parquet

    return pyarrow, pyarrow.parquet
