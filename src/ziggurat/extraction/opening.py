"""Reading a run back: `run = ziggurat.open(DEST)`, then `run.embedding["photos/cat.jpg"]`. Nothing is read before it is asked for.

Images have a key (their name) and a row (their number in the plan, which never changes). An image that failed has no
numbers; it is passed over when all are gone through, and asking for it raises a `KeyError` that says what was wrong.
"""

from __future__ import annotations

import bisect
import operator
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, SupportsIndex, TypeVar, overload

import numpy as np

from ..errors import BadArgument, IncompleteRun
from .failures import failures_table, read_failures
from .manifest import ABOUT, Manifest
from .outputs import DTYPES, bytes_per_image, group
from .plan import open_plan
from .stores import Array, view_unit

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Keys", "Run", "View", "open"]

T = TypeVar("T")
AT_ONCE = 16 << 20  # bytes read ahead when images are gone through one by one


def open(dest: str | os.PathLike[str], incomplete: bool = False) -> Run:
    """The run in the folder `dest`, whatever its formats are.

    Raises `BadArgument` for a folder that holds no run, and `IncompleteRun` for one that `verify` has not found complete;
    with `incomplete`, the units that are done can be read.
    """
    dest = Path(dest)
    manifest = Manifest.load(dest)
    if not incomplete and not all((dest / name).exists() for name in ("_SUCCESS", "failures.parquet")):
        raise IncompleteRun(f"{str(dest)!r} is not complete, or not verified: give the extract command again, or "
                            f"'ziggurat verify {dest}'; incomplete=True opens what is there")
    return Run(dest, manifest, incomplete)


class Run:
    """A run on disk, of which `open` makes the object.

    `embedding`, `logits`, `pyramid`, `tokens` and `taps` (a dictionary by the module's name) are `View`s; one that was not
    asked for raises an `AttributeError` that names those that were. `len(run)` images have numbers, `images` were planned;
    `manifest` says what the run was asked for.
    """

    def __init__(self, path: Path, manifest: Manifest, incomplete: bool) -> None:
        self.path = path
        self.manifest = manifest
        self.images = manifest.images
        self._incomplete = incomplete
        self._names = group(manifest.shapes)
        self._directories = {name: directory for directory, names in self._names.items() for name in names}
        self._opened: dict[str, tuple[int, dict[str, Array]]] = {}
        self._plan = _PlanKeys(path / ABOUT / "plan.parquet", manifest.segments)
        self._done = self._done_units()
        self._failed = np.sort(self._failures["row"].to_numpy())
        # of each unit, how many images with numbers lie before it
        counts = [0]
        for unit, (start, stop) in enumerate(manifest.units):
            failed = int(np.subtract(*np.searchsorted(self._failed, [stop, start])))
            counts.append(counts[-1] + (stop - start - failed if self._done is None or unit in self._done else 0))
        self._before = np.array(counts)

    def __repr__(self) -> str:
        return (f"Run({str(self.path)!r}: {len(self)} of {self.images} images by {self.manifest.model['name']}, "
                f"{', '.join(self.manifest.outputs.directories())})")

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, self._incomplete)

    def __len__(self) -> int:
        return int(self._before[-1])

    @property
    def embedding(self) -> View[np.ndarray]:
        return self._vectors("embedding")

    @property
    def logits(self) -> View[np.ndarray]:
        return self._vectors("logits")

    @cached_property
    def taps(self) -> dict[str, View[np.ndarray]]:
        return {tap: self._vectors(f"taps/{tap}") for tap in self.manifest.outputs.taps}

    @property
    def pyramid(self) -> View[dict[int, np.ndarray]]:
        """Maps [C H W] by stride."""
        return self._maps("pyramid", lambda name: int(name.rpartition("_")[2]))

    @property
    def tokens(self) -> View[dict[str, np.ndarray]]:
        """The parts of `model.tokens` by name: 'cls' [C], 'registers' [R C], 'patches' [C H W], as far as there are."""
        return self._maps("tokens", lambda name: name.partition("/")[2])

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The images that failed, by row: row, key, stage, cause, message, bytes and sha256 of what was read."""
        return self._failures.to_pylist()

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows of the images that have numbers, ascending: those of what `numpy` gives."""
        return np.concatenate([np.empty(0, np.int64), *(self._rows(unit) for unit in range(len(self.manifest.units)))])

    @property
    def keys(self) -> Keys:
        """The keys of the images that have numbers, in the order of `rows`; a sequence that is read when used."""
        return Keys(self)

    def keys_of(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The keys of rows of the plan."""
        return self._plan.at(np.asarray(rows, np.int64))

    def row_of(self, key: str) -> int:
        """The row of a key. Raises `KeyError` if the plan has none of that name."""
        return self._plan.find(key)

    def batches(self, size: int) -> Iterator[dict[str, Any]]:
        """All outputs of `size` images at a time: 'row' [N], 'key', and arrays [N ...] by name ('pyramid/stride_8')."""
        names = list(self.manifest.shapes)
        for first, last in _steps(0, len(self), size):
            yield {"row": self._rows_between(first, last), "key": self.keys[first:last], **self._read(names, first, last)}

    # ---------------------------------------------------------------- what views ask

    def _vectors(self, name: str) -> View[np.ndarray]:
        self._check(name)
        return View(self, (name,), lambda values: values[name])

    def _maps(self, directory: str, label: Callable[[str], T]) -> View[dict[T, np.ndarray]]:
        self._check(directory)
        labels = {name: label(name) for name in self._names[directory]}
        return View(self, tuple(labels), lambda values: {labels[name]: value for name, value in values.items()})

    def _check(self, directory: str) -> None:
        held = self.manifest.outputs.directories()
        if directory not in held:
            raise AttributeError(f"{str(self.path)!r} has no {directory}, which was not asked for; it holds {', '.join(held)}")

    def _locate(self, which: str | SupportsIndex) -> tuple[int, int]:
        """Unit and position in its arrays of a key or a row. Raises `KeyError` for an image that has no numbers."""
        row = self.row_of(which) if isinstance(which, str) else operator.index(which)
        if not 0 <= row < self.images:
            raise IndexError(f"row {row}: rows of this run go from 0 to {self.images - 1}")
        unit = self.manifest.units.of_row(row)
        if self._done is not None and unit not in self._done:
            raise KeyError(f"{which!r} has no numbers yet: its unit {unit} is not done")
        start, _ = self.manifest.units[unit]
        before, here = np.searchsorted(self._failed, [start, row])
        if here < len(self._failed) and self._failed[here] == row:
            failure = self._failure(row)
            raise KeyError(f"{which!r} has no numbers, it failed: {failure['stage']}, {failure['cause']}: {failure['message']}")
        return unit, row - start - int(here - before)

    def _read(self, names: Sequence[str], first: int, last: int) -> dict[str, np.ndarray]:
        """The numbers of the images at positions [first, last) of `rows`, in memory of their own."""
        dtype = DTYPES[self.manifest.outputs.dtype]
        values = {name: np.empty((last - first, *self.manifest.shapes[name]), dtype) for name in names}
        for unit, begin, end in self._spans(first, last):
            offset = int(self._before[unit]) + begin - first
            for name, value in values.items():
                value[offset : offset + end - begin] = self._array(name, unit)[begin:end]
        return values

    def _rows_between(self, first: int, last: int) -> np.ndarray:
        parts = [self._rows(unit)[begin:end] for unit, begin, end in self._spans(first, last)]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def _position(self, row: int) -> int:
        """How many images with numbers have a row before this one."""
        if row >= self.images:
            return len(self)
        unit = self.manifest.units.of_row(row)
        return int(self._before[unit]) + int(np.searchsorted(self._rows(unit), row))

    def _array(self, name: str, unit: int) -> Array:
        """An output of a unit; of each directory the last unit is kept open."""
        directory = self._directories[name]
        kept = self._opened.get(directory)
        if kept is None or kept[0] != unit:
            arrays = view_unit(self.path, self.manifest.outputs, directory, unit)
            expected = int(self._before[unit + 1] - self._before[unit])
            for one in self._names[directory]:
                if one not in arrays or tuple(arrays[one].shape) != (expected, *self.manifest.shapes[one]):
                    raise IncompleteRun(f"{one} of unit {unit} in {str(self.path)!r} is not what the run says, which is {expected} "
                                        f"images: 'ziggurat verify {self.path}' finds what is damaged")
            kept = self._opened[directory] = unit, arrays
        return kept[1][name]

    def _spans(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """The units that hold positions [first, last) of `rows`, each with the range of its own positions."""
        unit = int(np.searchsorted(self._before, first, "right")) - 1
        while first < last:
            start, stop = int(self._before[unit]), min(last, int(self._before[unit + 1]))
            if first < stop:
                yield unit, first - start, stop - start
                first = stop
            unit += 1

    def _rows(self, unit: int) -> np.ndarray:
        """The rows of a unit that have numbers."""
        start, stop = self.manifest.units[unit]
        if self._before[unit] == self._before[unit + 1]:
            return np.empty(0, np.int64)
        first, last = np.searchsorted(self._failed, [start, stop])
        return np.delete(np.arange(start, stop), self._failed[first:last] - start)

    def _done_units(self) -> set[int] | None:
        """The units that are committed; None for all."""
        if not self._incomplete:
            return None
        return {int(path.stem) for path in (self.path / ABOUT / "units").glob("*.json")}

    @cached_property
    def _failures(self) -> pa.Table:
        if self._done is None:
            return read_failures(self.path / "failures.parquet")
        import pyarrow as pa

        tables = [read_failures(self.path / ABOUT / "failures" / f"{unit:06d}.parquet") for unit in sorted(self._done)]
        return pa.concat_tables([failures_table(), *tables])

    def _failure(self, row: int) -> dict[str, Any]:
        place = int(np.flatnonzero(self._failures["row"].to_numpy() == row)[0])
        return self._failures.slice(place, 1).to_pylist()[0]


class View(Generic[T]):
    """One output of a run: `view["key"]`, `view[12]` (a row), `view[100:200]` (of rows, without those that failed).

    A value is an array, or a dictionary of arrays; of several images each array has a dimension more in front. All are
    copies in memory. Iterating gives pairs of key and value. `len` images have numbers.
    """

    def __init__(self, run: Run, names: tuple[str, ...], pack: Callable[[dict[str, np.ndarray]], T]) -> None:
        self.run = run
        self._names = names
        self._pack = pack

    def __repr__(self) -> str:
        shapes = (f"{name} {self.run.manifest.shapes[name]}" for name in self._names)
        return f"View({len(self)} images: {', '.join(shapes)} {self.run.manifest.outputs.dtype})"

    def __len__(self) -> int:
        return len(self.run)

    def __getitem__(self, which: str | SupportsIndex | slice) -> T:
        if isinstance(which, slice):
            start, stop, step = which.indices(self.run.images)
            if step != 1:
                raise BadArgument(f"a step of {step}: rows are read in their order, give start:stop")
            return self._between(*map(self.run._position, (start, max(start, stop))))
        unit, position = self.run._locate(which)
        return self._pack({name: np.array(self.run._array(name, unit)[position]) for name in self._names})

    def __contains__(self, key: object) -> bool:
        try:
            self.run._locate(key)  # type: ignore[arg-type]  # a TypeError for what is neither key nor row
        except (KeyError, IndexError):
            return False
        return True

    def __iter__(self) -> Iterator[tuple[str, T]]:
        shapes = {name: self.run.manifest.shapes[name] for name in self._names}
        size = max(1, AT_ONCE // max(1, bytes_per_image(shapes, self.run.manifest.outputs.dtype)))
        for first, last in _steps(0, len(self), size):
            values = self.run._read(self._names, first, last)
            for position, key in enumerate(self.run.keys[first:last]):
                yield key, self._pack({name: value[position].copy() for name, value in values.items()})

    def numpy(self) -> T:
        """The numbers of all images, in the order of `run.rows` and `run.keys`: arrays [N ...], in memory as a whole."""
        return self._between(0, len(self))

    def batches(self, size: int, start: int = 0) -> Iterator[tuple[np.ndarray, T]]:
        """Rows [N] and values [N ...] of `size` images at a time, from position `start` of `run.rows` to the last."""
        for first, last in _steps(start, len(self), size):
            yield self.run._rows_between(first, last), self._between(first, last)

    def _between(self, first: int, last: int) -> T:
        return self._pack(self.run._read(self._names, first, last))


class Keys(Sequence[str]):
    """The keys of a run's images that have numbers: `keys[5]` is of the row `run.rows[5]`. Read from the plan when used."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __len__(self) -> int:
        return len(self.run)

    @overload
    def __getitem__(self, which: int) -> str: ...
    @overload
    def __getitem__(self, which: slice) -> list[str]: ...
    def __getitem__(self, which: int | slice) -> str | list[str]:
        if isinstance(which, slice):
            first, last, step = which.indices(len(self))
            if step == 1:
                return self.run.keys_of(self.run._rows_between(first, max(first, last)))
            return [self[place] for place in range(first, last, step)]
        place = range(len(self))[which]
        return self.run.keys_of(self.run._rows_between(place, place + 1))[0]

    def __iter__(self) -> Iterator[str]:
        for first, last in _steps(0, len(self), _PlanKeys.CHUNK):
            yield from self[first:last]

    def __contains__(self, key: object) -> bool:
        try:
            self.run._locate(key)  # type: ignore[arg-type]
        except LookupError:
            return False
        return True


class _PlanKeys:
    """The keys of a plan, of which only a few row groups are ever in memory. Keys of a segment are sorted."""

    CHUNK = 4096
    KEPT = 16  # row groups

    def __init__(self, path: Path, segments: Sequence[tuple[int, int]]) -> None:
        self.file = open_plan(path)
        self.segments = segments
        facts = self.file.metadata
        sizes = [facts.row_group(number).num_rows for number in range(facts.num_row_groups)]
        self.starts = np.cumsum([0, *sizes])
        self._kept: OrderedDict[int, pa.StringArray] = OrderedDict()

    def at(self, rows: np.ndarray) -> list[str]:
        """The keys of rows, in their order."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.starts[-1]:
            raise IndexError(f"rows from {rows.min()} to {rows.max()}: the plan's go from 0 to {self.starts[-1] - 1}")
        numbers = np.searchsorted(self.starts, rows, "right") - 1
        keys = np.empty(len(rows), object)
        for number in np.unique(numbers):
            here = numbers == number
            keys[here] = self._group(int(number)).take(_arrow(rows[here] - self.starts[number])).to_pylist()
        return keys.tolist()

    def find(self, key: str) -> int:
        """The row of a key, by bisection of each segment."""
        for start, stop in self.segments:
            row = bisect.bisect_left(range(start, stop), key, key=self._key) + start
            if row < stop and self._key(row) == key:
                return row
        raise KeyError(f"no image of this run has the key {key!r}; run.keys has those that it holds")

    def _key(self, row: int) -> str:
        number = int(np.searchsorted(self.starts, row, "right")) - 1
        return self._group(number)[row - self.starts[number]].as_py()

    def _group(self, number: int) -> pa.StringArray:
        if number not in self._kept:
            self._kept[number] = self.file.read_row_group(number, columns=["key"])["key"].combine_chunks()
            if len(self._kept) > self.KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]


def _arrow(numbers: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.array(numbers)


def _steps(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    if size < 1:
        raise BadArgument(f"size={size}: give 1 or more images")
    return ((start, min(start + size, last)) for start in range(first, last, size))
