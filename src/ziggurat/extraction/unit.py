"""A unit of work: consecutive images of the plan, from their bytes to committed files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import __version__
from ..backbone import Backbone
from ..errors import ChangedRun, IncompleteRun
from .commit import sha256_of, size_of, write_json
from .decoding import Preprocessing
from .failures import Failure, failures_table, read_failures, write_failures
from .forward import Forward, make_forward
from .manifest import ABOUT, Manifest
from .plan import PlanFile
from .sources import Item
from .stores import FileFact, read_unit, write_unit
from .workers import Decoders

__all__ = ["Report", "UnitRunner", "disk_sentence", "load_model", "sidecar", "sidecar_path", "versions_of", "weights_sha256"]

STAGES = ("read", "decode", "forward", "write")


class Report(NamedTuple):
    """What became of a unit: rows written, and failures by 'stage/cause'."""

    unit: int
    rows: int
    failures: dict[str, int]


class _Batch(NamedTuple):
    """Slots of a batch: `rows` are the plan's rows of those that hold an image, `failed` those that do not."""

    unit: int
    slots: list[int]
    rows: list[int]
    failed: dict[int, Failure]
    is_last: bool


class UnitRunner:
    """Runs units of a planned run, in a pipeline: processes decode, this thread computes, another writes.

    Images have fixed places: position p of a unit is in batch p // batch_size, at slot p % batch_size, and what has no
    image there is zeros. So neither timing nor the failure of a neighbour reaches the numbers of an image.

    The network is `forward`, or made of `model`, or of the model that the manifest names. Weights, or versions of what
    computes, that are not those of the run raise `ChangedRun`. `workers` are decoder processes (0: decode in this one).
    Plain numbers in the constructor, so that engines can make it in their own processes; `run(unit)` and
    `runner({"item": unit})` are what they call. A disk that refuses what is written raises `IncompleteRun`.
    """

    def __init__(
        self,
        dest: str | Path,
        *,
        model: Backbone | None = None,
        forward: Forward | None = None,
        workers: int | None = None,
        device: str = "auto",
        timeout: float = 60.0,
        retries: int = 3,
    ) -> None:
        self.dest = Path(dest)
        self.manifest = manifest = Manifest.load(dest)
        self.plan = PlanFile(self.dest / ABOUT / "plan.parquet")
        self.preprocessing = Preprocessing.from_stamp(manifest.preprocessing)
        here = dataclasses.replace(manifest, preprocessing=self.preprocessing.stamp(), versions=versions_of(manifest.backend))
        if changes := manifest.differences(here):
            raise ChangedRun(f"what computes here is not what {str(dest)!r} was begun with:\n  " + "\n  ".join(changes) +
                             "\ninstall the same versions, or start over with --fresh")
        if forward is None:
            if model is None:
                model = load_model(manifest.model, has_head=manifest.outputs.logits)
            if weights_sha256(model) != manifest.model["weights_sha256"]:
                raise ChangedRun(f"the weights of {manifest.model['name']} are not those that this run was begun with; "
                                 "bring those back, or start over with --fresh")
            forward = make_forward(
                model, manifest.outputs, self.preprocessing, backend=manifest.backend, precision=manifest.precision,
                batch_size=manifest.batch_size, device=device, threads=manifest.threads,
            )
        self.forward = forward
        self.decoders = Decoders(available_cores() if workers is None else workers, self.preprocessing, timeout=timeout,
                                 retries=retries, ahead=2 * manifest.batch_size, read_here=self.plan.in_process_only)
        self.writer = ThreadPoolExecutor(1, "write")
        self.write_seconds = 0.0
        self.type = torch.float16 if manifest.outputs.dtype == "f16" else torch.float32

    def __enter__(self) -> UnitRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the decoders and waits for the file being written."""
        self.writer.shutdown(wait=True)
        self.decoders.close()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """`run`, for engines whose tasks are dictionaries: {'item': unit} to a report as plain values."""
        return self.run(int(row["item"]))._asdict()

    def seconds(self) -> dict[str, float]:
        """Busy seconds of the stages, summed over what works in them."""
        return {**self.decoders.seconds(), "forward": self.forward.seconds, "write": self.write_seconds}

    # ---------------------------------------------------------------- units

    def run(self, unit: int) -> Report:
        """Computes one unit and commits it."""
        return next(iter(self.run_all([unit])))

    def run_all(self, units: Sequence[int], after_batch: Callable[[int, int], None] | None = None) -> Iterator[Report]:
        """Computes units one after another without a pause between them; a report comes when a unit is on the disk.

        `after_batch(images, failures)` is called behind each batch; what it raises ends the run, and the units in flight
        leave nothing.
        """
        yield from self._run(units, lambda unit: range(*self.manifest.units[unit]), after_batch, keeps=False)

    def retry_all(self, units: Sequence[int], after_batch: Callable[[int, int], None] | None = None) -> Iterator[Report]:
        """Computes the failed images of units anew, and writes those units with the rows that they had and the new."""
        yield from self._run(units, lambda unit: failed_rows(self.dest, unit), after_batch, keeps=True)

    def _run(
        self, units: Sequence[int], rows_of: Callable[[int], Sequence[int]],
        after_batch: Callable[[int, int], None] | None, keeps: bool,
    ) -> Iterator[Report]:
        pending: Future[Report] | None = None
        collected = _Collected()
        for batch, values in self.forward.stream(self._batches(units, rows_of)):
            self._collect(collected, batch, values)
            if after_batch is not None:
                after_batch(len(batch.slots) + len(batch.failed), len(batch.failed))
            if batch.is_last:
                if pending is not None:
                    yield pending.result()  # no more than one unit waits to be written
                pending = self.writer.submit(self._commit, batch.unit, collected, keeps)
                collected = _Collected()
        if pending is not None:
            yield pending.result()

    def _batches(
        self, units: Sequence[int], rows_of: Callable[[int], Sequence[int]]
    ) -> Iterator[tuple[_Batch, np.ndarray]]:
        """Batches of pixels with what is in their slots; the last of each unit says so."""
        size = self.manifest.batch_size
        decoded = self.decoders.map(item for unit in units for item in self._items(rows_of(unit)))
        for unit in units:
            start, _ = self.manifest.units[unit]
            groups: dict[int, list[int]] = {}
            for row in rows_of(unit):
                groups.setdefault((row - start) // size, []).append(row)
            for number, rows in enumerate(groups.values(), 1):
                pixels = np.zeros((size, *self.preprocessing.size, self.preprocessing.channels), np.uint8)
                batch = _Batch(unit, [], [], {}, number == len(groups))
                for row in rows:
                    found = next(decoded)
                    if isinstance(found, Failure):
                        batch.failed[row] = found
                        continue
                    slot = (row - start) % size
                    pixels[slot] = found
                    batch.slots.append(slot)
                    batch.rows.append(row)
                yield batch, pixels

    def _items(self, rows: Sequence[int]) -> Iterable[Item]:
        """The plan's items of some rows of one unit, read from the plan a stretch at a time."""
        if isinstance(rows, range):
            for first in range(rows.start, rows.stop, 1024):
                yield from self.plan.items(first, min(first + 1024, rows.stop))
        else:
            for row in rows:
                yield from self.plan.items(row, row + 1)

    def _collect(self, collected: _Collected, batch: _Batch, values: dict[str, np.ndarray]) -> None:
        """Keeps the rows of a batch in the type of the files; an image whose numbers cannot be kept is a failure."""
        collected.failures.update(batch.failed)
        if not batch.slots:
            return
        kept = {name: torch.from_numpy(value[batch.slots]).to(self.type).numpy() for name, value in values.items()}
        finite = np.ones(len(batch.slots), bool)
        for value in kept.values():
            finite &= np.isfinite(value).reshape(len(value), -1).all(1)
        for place in np.flatnonzero(~finite):
            collected.failures[batch.rows[place]] = _not_finite(values, batch.slots[place])
        collected.rows += [row for row, good in zip(batch.rows, finite) if good]
        for name, value in kept.items():
            collected.values.setdefault(name, []).append(value if finite.all() else value[finite])

    # ---------------------------------------------------------------- the disk

    def _commit(self, unit: int, found: _Collected, keeps: bool) -> Report:
        """Writes a unit: its data, its failures, and last the sidecar that makes it done; with the rows that it `keeps`."""
        started = time.perf_counter()
        try:
            report = self._written(unit, found, keeps)
        except OSError as error:
            raise IncompleteRun(disk_sentence(error)) from error
        self.write_seconds += time.perf_counter() - started
        return report

    def _written(self, unit: int, found: _Collected, keeps: bool) -> Report:
        manifest = self.manifest
        start, stop = manifest.units[unit]
        rows = np.array(found.rows, np.int64)
        values = {
            name: np.concatenate(found.values[name]) if name in found.values
            else torch.empty((0, *shape), dtype=self.type).numpy()
            for name, shape in manifest.shapes.items()
        }
        path = sidecar_path(self.dest, unit)
        if keeps:
            kept_rows, _, kept = read_unit(self.dest, manifest.outputs, unit)
            order = np.argsort(np.concatenate([kept_rows, rows]), kind="stable")
            rows = np.concatenate([kept_rows, rows])[order]
            values = {name: np.concatenate([kept[name], value])[order] for name, value in values.items()}
        path.unlink(missing_ok=True)  # from here on the unit is to be redone, until its new sidecar is there
        keys = self.plan.keys(start, stop)
        files = write_unit(self.dest, manifest.outputs, unit, rows, [keys[row - start] for row in rows], values,
                           {"model": manifest.model["name"], "preprocessing": manifest.preprocessing["id"]})
        failures = [
            {"row": row, "key": keys[row - start], **failure._asdict()} for row, failure in sorted(found.failures.items())
        ]
        table = failures_path(self.dest, unit)
        if failures:
            write_failures(table, failures_table(failures), self.dest / ABOUT / "partial")
            files.append(FileFact(table.relative_to(self.dest).as_posix(), size_of(table), sha256_of(table)))
        else:
            table.unlink(missing_ok=True)
        causes = Counter(f"{failure['stage']}/{failure['cause']}" for failure in failures)
        write_json(path, {
            "unit": unit, "start": start, "stop": stop, "rows": len(rows), "failures": dict(sorted(causes.items())),
            "files": [file._asdict() for file in files],
        }, self.dest / ABOUT / "partial")
        return Report(unit, len(rows), dict(causes))


class _Collected:
    """The rows of a unit that have been computed so far."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.values: dict[str, list[np.ndarray]] = {}
        self.failures: dict[int, Failure] = {}


def _not_finite(values: dict[str, np.ndarray], slot: int) -> Failure:
    """Which output of an image cannot be kept, and why."""
    for name, value in values.items():
        if not np.isfinite(value[slot]).all():
            return Failure("nonfinite", "nan", f"{name} has values that are not finite")
    name, largest = max(((name, float(np.abs(value[slot]).max())) for name, value in values.items()), key=lambda pair: pair[1])
    return Failure("nonfinite", "overflow", f"{name} reaches {largest:.6g}, beyond float16; --dtype f32 keeps it")


def sidecar_path(dest: Path, unit: int) -> Path:
    """Where a unit says that it is done."""
    return dest / ABOUT / "units" / f"{unit:06d}.json"


def failures_path(dest: Path, unit: int) -> Path:
    """The table of a unit's failures; there is none where there is no failure."""
    return dest / ABOUT / "failures" / f"{unit:06d}.parquet"


def failed_rows(dest: Path, unit: int) -> list[int]:
    """Rows of the plan that failed in a committed unit, in order."""
    rows: list[int] = read_failures(failures_path(dest, unit)).column("row").to_pylist()
    return rows


def sidecar(dest: Path, unit: int) -> dict[str, Any] | None:
    """What a committed unit says of itself; None for one that is not done, as also where a crash left no JSON."""
    try:
        facts = json.loads(sidecar_path(dest, unit).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    is_whole = isinstance(facts, dict) and {"unit", "start", "stop", "rows", "failures", "files"} <= facts.keys()
    return facts if is_whole else None


def disk_sentence(error: OSError) -> str:
    """What a disk has refused, and what to do."""
    where = f" ({error.filename})" if error.filename else ""
    return f"the disk refused: {error.strerror or error}{where}; make room or mend it, and give the same command"


# -------------------------------------------------------------------- the model


def load_model(spec: dict[str, Any], has_head: bool) -> Backbone:
    """The model that a manifest names (name, checkpoint, random, classes), in evaluation mode.

    Without `has_head` the classifier is left out. Random weights are drawn from a fixed seed, so that all workers and a
    resumed run have the same.
    """
    from ..factory import create_model

    if spec.get("given"):
        raise ChangedRun(f"this run was begun with a model object ({spec['name']}), which cannot be made again from its name; "
                         "call the function of the same name with model=")
    options: dict[str, Any] = {} if has_head else {"num_classes": 0}
    if spec.get("classes") is not None:
        options = {"pretrained_cfg_overlay": {"num_classes": spec["classes"], "label_offset": None}}
    checkpoint = spec.get("checkpoint")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(spec["name"], pretrained=not spec.get("random") and checkpoint is None,
                             checkpoint_path=checkpoint, **options)
    return model.eval()


def weights_sha256(model: Backbone) -> str:
    """SHA-256 over the names, types, shapes and bytes of all parameters and buffers, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def versions_of(backend: str) -> dict[str, str]:
    """What computes the numbers, with its version."""
    found = {"ziggurat": __version__, "torch": torch.__version__}
    if backend == "openvino":
        found["openvino"] = version("openvino")
    return found


def available_cores() -> int:
    """Cores that this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
