"""A run from its plan to its proof: extract, status, retry and verify."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from ..backbone import Backbone
from ..errors import BadArgument, IncompleteRun
from .commit import clean_partial, lock
from .decoding import Preprocessing
from .engines import await_plan, own_device, run_on_ray, world
from .forward import Forward, make_forward
from .manifest import ABOUT, Manifest
from .outputs import Outputs, bytes_per_image, check_installed
from .plan import Plan, PlanFile
from .planning import (
    begin,
    check_same,
    default_unit_size,
    disk_errors_told,
    extend_plan,
    free_bytes,
    held,
    model_of,
    outside,
    save_plan,
    withdraw,
)
from .progress import Event, Finished, Planned, Progress, Resumed, Unit
from .proof import causes, damage_sentence, prove, set_aside
from .sources import list_inputs
from .unit import (
    Report,
    UnitRunner,
    available_cores,
    disk_sentence,
    failed_rows,
    sidecar,
    sidecar_path,
    versions_of,
)

__all__ = ["EXIT_CODES", "Summary", "extract", "retry", "status", "verify"]

EXIT_CODES = {"complete": 0, "quarantined": 3, "resumable": 4, "stopped": 1, "waiting": 0}
ENGINES = ("auto", "local", "rank", "ray")
MANY_ERRORS = 0.5  # the share of failures that stops a run by itself, once this many images were tried
ENOUGH = 1000

Sources = str | PathLike[str] | Sequence[str | PathLike[str]]
Listener = Callable[[Event], None]


class Summary(NamedTuple):
    """Where a run stands.

    `state` is 'complete' (verified, every image has its row), 'quarantined' (verified, some images failed and are in
    failures.parquet), 'resumable' (units are missing, or it has not been verified: the same command goes on), 'stopped'
    (too many images failed) or, of one of several `ranks`, 'waiting' (its own units are done, others' are not).
    `failures` counts by 'stage/cause'. `reason` says what is missing, in a sentence.
    """

    state: str
    out: str
    images: int
    rows: int
    failures: dict[str, int]
    units: int
    units_done: int
    seconds: float = 0.0
    images_per_second: float = 0.0
    reason: str = ""
    ranks: int = 1

    @property
    def exit_code(self) -> int:
        """0 complete, 3 quarantined, 4 resumable, 1 stopped.

        Of several ranks, 0 for quarantined and waiting too: torchrun and SLURM would end the others for anything else.
        """
        return 0 if self.ranks > 1 and self.state == "quarantined" else EXIT_CODES[self.state]


class _Stop(Exception):
    """A run that ends before its time, with the state and the sentence of its summary."""

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(reason)
        self.state, self.reason = state, reason


def extract(
    source: Sources,
    model: str | Backbone,
    out: str | PathLike[str],
    *,
    embed: bool = False,
    strides: int | Sequence[int] = (),
    tokens: bool = False,
    logits: bool = False,
    taps: str | Sequence[str] = (),
    dtype: str = "f16",
    format: str = "",
    size: int | tuple[int, int] | None = None,
    decode: str = "exact",
    exif: str = "ignore",
    column: str | None = None,
    checkpoint: str | PathLike[str] | None = None,
    random: bool = False,
    classes: int | None = None,
    backend: str = "auto",
    precision: str = "fp32",
    device: str = "auto",
    batch_size: int | None = None,
    unit_size: int | None = None,
    threads: int | None = None,
    workers: int | None = None,
    timeout: float = 60.0,
    retries: int = 3,
    engine: str = "auto",
    engine_options: Mapping[str, Any] | None = None,
    fresh: bool = False,
    extend: bool = False,
    max_error_rate: float | None = None,
    check: bool = True,
    plan_only: bool = False,
    dry_run: bool = False,
    on_event: Listener | None = None,
) -> Summary:
    """Features of all images behind `source`, on disk under `out`; the same call goes on with a run that was ended.

    `source` is a folder, a glob, a list file, tar or WebDataset shards, Parquet (its image `column`), an fsspec address, or
    several of these. Outputs, of one forward pass: `embed` (what is taken if nothing is named), `logits`, `tokens`, the
    pyramid's levels of `strides`, and `taps`, submodules by name, pooled. `dtype` is 'f16' or 'f32'. `format` names
    one for vectors (parquet, npy, lance), one for maps (safetensors, zarr), or both.

    Images are prepared as the model's weights want them, at `size` pixels if given. `decode` is 'exact', 'reference'
    (Pillow alone) or 'fast' (JPEG decoded at a smaller scale); `exif` is 'ignore' or 'apply'.

    The model is a name (its published weights, a `checkpoint`, or `random` ones) or a Backbone. `backend` is auto, torch,
    compile or openvino, `precision` 'fp32' or 'bf16'. `batch_size` (32), `unit_size` (images a file, by their number and
    size), `threads` of the forward pass and the backend are kept for the whole run, since they decide its last bits;
    `workers` (decoding processes), `device` and `engine` ('local', 'rank' for torchrun and SLURM, 'ray') are free.

    `fresh` starts over, `extend` adds inputs that are new. A decoder that takes longer than `timeout` seconds an image is
    ended; reads that fail are tried `retries` times more. The run stops when more than `max_error_rate` of its images have
    failed (of 100 at least, or of all; without it, of half of 1,000). At the end it is verified unless `check` is False.
    With `plan_only` the plan is frozen and nothing computed, with `dry_run` nothing is written.

    Raises `BadArgument` for what cannot work, `ChangedRun` if `out` holds a run of other inputs or arguments, `MissingExtra`
    for a package that is not installed.
    """
    began = time.perf_counter()
    emit = on_event or _silent
    if "://" in os.fspath(out):
        raise BadArgument(f"out={os.fspath(out)!r}: results are written to a folder of a file system; copy them to a store afterwards")
    out = Path(out)
    if engine not in ENGINES:
        raise BadArgument(f"engine={engine!r}: give one of {', '.join(ENGINES)}")
    if max_error_rate is not None and not 0 <= max_error_rate <= 1:
        raise BadArgument(f"max_error_rate={max_error_rate}: give a share of the images, from 0 to 1")
    for name, value in (("batch_size", batch_size), ("unit_size", unit_size), ("threads", threads)):
        if value is not None and value < 1:
            raise BadArgument(f"{name}={value}: give 1 or more")
    _check_decoding(workers, timeout, retries)
    if fresh and extend:
        raise BadArgument("fresh and extend exclude each other: start over, or add to what is there")
    outputs = Outputs.make(embed=embed, strides=strides, tokens=tokens, logits=logits, taps=taps, dtype=dtype, format=format)
    check_installed(outputs)
    rank, ranks = world() if engine in ("auto", "rank") else (0, 1)
    if ranks > 1:
        if fresh or extend:
            raise BadArgument(f"{'fresh' if fresh else 'extend'} with {ranks} processes: the others could not tell the old plan "
                              "from the new; give the command to one process first, with --plan-only")
        device = own_device() if device == "auto" else device
    session = _Session(
        out, emit, began, rank, ranks, engine == "ray", max_error_rate, check, engine_options or {},
        {"workers": workers, "device": device, "timeout": timeout, "retries": retries},
    )
    if rank > 0:
        await_plan(out)
        with lock(out, shared=True):
            return session.work(None)

    if os.path.lexists(out) and not out.is_dir():
        raise BadArgument(f"out={str(out)!r} is {'a link to nowhere' if out.is_symlink() else 'a file'}; give a folder")
    is_there = Manifest.path(out).exists()
    if not is_there and out.is_dir() and any(path.name != ABOUT for path in out.iterdir()):
        raise BadArgument(f"out={str(out)!r} is a folder with other things in it; give one that is empty or not there")
    before = Manifest.load(out) if is_there and not fresh else None
    listing = list_inputs(source, column=column)
    items, duplicates = outside(listing.items, out), listing.duplicates
    if not items:
        raise BadArgument(f"source={str(source)!r} holds no image outside of {str(out)!r}; give a folder or file that does")
    backbone, spec = model_of(model, checkpoint, random, classes, outputs)
    preprocessing = Preprocessing.of(backbone, size=_pair(size), decode=decode, exif=exif)
    forward = make_forward(
        backbone, outputs, preprocessing, precision=precision, device=device,
        backend=before.backend if before and backend == "auto" else backend,
        batch_size=batch_size or (before.batch_size if before else 32),
        threads=threads or (before.threads if before else available_cores()),
    )
    per_image = bytes_per_image(forward.shapes, outputs.dtype)
    asked = Manifest(
        model=spec, outputs=outputs, shapes=forward.shapes, preprocessing=preprocessing.stamp(), backend=forward.backend,
        precision=precision, batch_size=forward.batch_size, threads=forward.threads,
        unit_size=unit_size or (before.unit_size if before else default_unit_size(len(items), per_image, forward.batch_size)),
        versions=versions_of(forward.backend), source=listing.description,
    )
    if before is not None:
        check_same(out, before, asked, items, extend)
    if dry_run:
        units = -(-len(items) // asked.unit_size)
        emit(Planned(len(items), units, len(items), per_image * len(items), free_bytes(out), spec["name"], forward.backend,
                     forward.reason, duplicates))
        return Summary("resumable", str(out), len(items), 0, {}, units, 0, reason="a dry run: nothing was computed")
    with held(out, shared=ranks > 1):
        with disk_errors_told(out):
            if ranks == 1:
                clean_partial(out)
            now = Manifest.load(out) if not fresh and Manifest.path(out).exists() else None
            if now != before:
                raise BadArgument(f"another process has begun or extended a run in {str(out)!r} meanwhile; give the same "
                                  "command again to go on with that")
            if before is None:
                begin(out, items, asked)
            elif extend:
                extend_plan(out, before, items)
        del items, listing  # the plan on the disk takes their place: memory shall not hold both
        if plan_only:
            session.planned(forward.reason, duplicates)
            return status(out)
        summary = session.work(forward, duplicates)
        if ranks == 1:
            clean_partial(out)  # what workers of Ray left that died
        return summary


def retry(
    dest: str | PathLike[str],
    *,
    model: Backbone | None = None,
    device: str = "auto",
    workers: int | None = None,
    timeout: float = 60.0,
    retries: int = 3,
    check: bool = True,
    on_event: Listener | None = None,
) -> Summary:
    """Computes the failed images of a run anew, and no others; what succeeds becomes a row, what fails stays a failure.

    Images that were mended or fetched since are read as they are now, and the plan takes note of that. `model` is needed
    for a run that was begun with a Backbone instead of a name. Raises as `extract`.
    """
    began = time.perf_counter()
    dest, emit = Path(dest), on_event or _silent
    _check_decoding(workers, timeout, retries)
    Manifest.load(dest)
    counts = _Counts(0, emit)
    stopped: _Stop | None = None
    with held(dest):
        clean_partial(dest)
        manifest, plan = Manifest.load(dest), Plan.load(dest / ABOUT / "plan.parquet")
        units = [unit for unit in range(len(manifest.units)) if (sidecar(dest, unit) or {}).get("failures")]
        damaged = set_aside(dest, manifest, plan, units)  # what is kept of a unit must be what was written
        units = [unit for unit in units if unit not in damaged]
        if units:
            with _ended_by_signals() as ended, UnitRunner(
                dest, model=model, device=device, workers=workers, timeout=timeout, retries=retries
            ) as runner:
                with disk_errors_told(dest):
                    withdraw(dest)
                    save_plan(dest, plan.refreshed([row for unit in units for row in failed_rows(dest, unit)]))
                runner.plan = PlanFile(dest / ABOUT / "plan.parquet")
                images = sum(sum((sidecar(dest, unit) or {})["failures"].values()) for unit in units)
                emit(Planned(manifest.images, len(units), images, images * bytes_per_image(manifest.shapes, manifest.outputs.dtype),
                             free_bytes(dest), manifest.model["name"], manifest.backend))
                stopped = _run_all(runner, runner.retry_all, units, counts, ended, max_error_rate=1.0)
        summary = _finish(dest, began, counts, stopped, check)
        return summary._replace(reason=damage_sentence(damaged)) if damaged and stopped is None else summary


def status(dest: str | PathLike[str]) -> Summary:
    """Where a run stands, read from what its units say of themselves; another process may be at work on it."""
    dest = Path(dest)
    manifest = Manifest.load(dest)
    rows, done, causes = 0, 0, Counter[str]()
    for unit in range(len(manifest.units)):
        facts = sidecar(dest, unit)
        if facts is not None:
            rows, done = rows + facts["rows"], done + 1
            causes.update(facts["failures"])
    units = len(manifest.units)
    if done < units:
        state, reason = "resumable", f"{units - done} of {units} units are to be computed; the same command goes on"
    elif not (dest / "_SUCCESS").exists():
        state, reason = "resumable", "all units are there, but not verified; run 'ziggurat verify'"
    else:
        state, reason = ("quarantined" if causes else "complete"), ""
    return Summary(state, str(dest), manifest.images, rows, dict(sorted(causes.items())), units, done, reason=reason)


def verify(dest: str | PathLike[str], *, on_event: Listener | None = None) -> Summary:
    """Reads a run back: every unit there, sizes and hashes as committed, rows and failures together the plan, all finite.

    If so, failures.parquet and _SUCCESS are written. A unit that is damaged loses its sidecar, so that the same command
    computes it anew, and the summary's `reason` says what is wrong with the first of them.
    """
    dest = Path(dest)
    Manifest.load(dest)
    with held(dest):
        clean_partial(dest)
        return _finish(dest, time.perf_counter(), _Counts(0, on_event or _silent), None, check=True)


def _check_decoding(workers: int | None, timeout: float, retries: int) -> None:
    if workers is not None and workers < 0:
        raise BadArgument(f"workers={workers}: give 0 (decode in this process) or more")
    if retries < 0:
        raise BadArgument(f"retries={retries}: give 0 or more")
    if not 0 < timeout < math.inf:
        raise BadArgument(f"timeout={timeout}: give seconds, above 0")


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


# -------------------------------------------------------------------- working


class _Counts:
    """Images done and failed, of `images` and with those of earlier sessions, and of them what was done here."""

    def __init__(self, images: int, emit: Listener, done: int = 0, failed: int = 0) -> None:
        self.images, self.emit, self.done, self.failed = images, emit, done, failed
        self.here = self.failed_here = 0
        self.began = time.perf_counter()

    def add(self, images: int, failed: int, busy: Mapping[str, float], workers: int) -> None:
        self.done, self.here = self.done + images, self.here + images
        self.failed, self.failed_here = self.failed + failed, self.failed_here + failed
        self.emit(Progress(self.here, self.failed_here, time.perf_counter() - self.began, busy, workers))

    def stop_if_too_many(self, rate: float | None) -> None:
        """Raises `_Stop` for more failures than are allowed."""
        limit, enough = (MANY_ERRORS, ENOUGH) if rate is None else (rate, min(100, self.images))
        if self.done >= enough and self.failed > limit * self.done:
            raise _Stop("stopped", f"{self.failed} of {self.done} images failed, more than --max-error-rate {limit:g} "
                                   "allows; look at 'ziggurat status', mend the cause, and give the same command")


@dataclass(frozen=True)
class _Session:
    """One call of `extract` on a planned run: what it is, and what it was told that is not the run's."""

    out: Path
    emit: Listener
    began: float
    rank: int
    ranks: int
    on_ray: bool
    max_error_rate: float | None
    check: bool
    engine_options: Mapping[str, Any]
    options: Mapping[str, Any]  # of UnitRunner

    def work(self, forward: Forward | None, duplicates: int = 0) -> Summary:
        """Computes the units that are not done (of this rank), and proves the whole when none is missing."""
        manifest = Manifest.load(self.out)
        done, todo, rows, failed = 0, [], 0, 0
        for unit in range(len(manifest.units)):
            facts = sidecar(self.out, unit)
            if facts is not None:
                done, rows, failed = done + 1, rows + facts["rows"], failed + sum(facts["failures"].values())
            elif unit % self.ranks == self.rank:
                todo.append(unit)
        images = sum(stop - start for start, stop in (manifest.units[unit] for unit in todo))
        self.planned(forward.reason if forward is not None else "", duplicates, images)
        if done:
            self.emit(Resumed(done, rows + failed))
        # a rank knows of its own images only
        counts = _Counts(manifest.images, self.emit, rows + failed, failed) if self.ranks == 1 else _Counts(images, self.emit)
        stopped: _Stop | None = None
        if todo:
            with disk_errors_told(self.out):
                withdraw(self.out)
                for unit in todo:
                    sidecar_path(self.out, unit).unlink(missing_ok=True)  # one that a crash has damaged
            with _ended_by_signals() as ended:
                if self.on_ray:
                    reports = run_on_ray(self.out, todo, self.options, **self.engine_options)
                    stopped = _follow_ray(reports, counts, ended, self.max_error_rate)
                else:
                    with UnitRunner(self.out, forward=forward, **self.options) as runner:
                        stopped = _run_all(runner, runner.run_all, todo, counts, ended, self.max_error_rate)
        return _finish(self.out, self.began, counts, stopped, self.check, self.ranks)


    def planned(self, reason: str, duplicates: int, images: int | None = None) -> None:
        """Says what is to be done: so many images, by default all."""
        manifest = Manifest.load(self.out)
        images = manifest.images if images is None else images
        self.emit(Planned(
            manifest.images, len(manifest.units), images,
            images * bytes_per_image(manifest.shapes, manifest.outputs.dtype), free_bytes(self.out), manifest.model["name"],
            manifest.backend, reason, duplicates,
        ))


def _run_all(
    runner: UnitRunner, run: Callable[..., Iterator[Report]], units: Sequence[int], counts: _Counts,
    ended: threading.Event, max_error_rate: float | None,
) -> _Stop | None:
    """Runs units; the reason for which it ended before the last of them, if it did."""

    def after_batch(images: int, failed: int) -> None:
        counts.add(images, failed, runner.seconds(), runner.decoders.count)
        counts.stop_if_too_many(max_error_rate)
        if ended.is_set():
            raise _Stop("resumable", "it was asked to end; the same command goes on")

    try:
        for report in run(units, after_batch):
            counts.emit(Unit(report.unit, report.rows, sum(report.failures.values())))
    except _Stop as stop:
        return stop
    except IncompleteRun as error:  # the disk
        return _Stop("resumable", str(error))
    return None


def _follow_ray(
    reports: Iterator[dict[str, Any]], counts: _Counts, ended: threading.Event, max_error_rate: float | None
) -> _Stop | None:
    """Takes the reports of Ray's workers; the reason for which it ended before the last of them, if it did."""
    try:
        for report in reports:
            failed = sum(report["failures"].values())
            counts.emit(Unit(report["unit"], report["rows"], failed))
            counts.add(report["rows"] + failed, failed, {}, 0)
            counts.stop_if_too_many(max_error_rate)
            if ended.is_set():
                raise _Stop("resumable", "it was asked to end; the same command goes on")
    except _Stop as stop:
        return stop
    except IncompleteRun as error:
        return _Stop("resumable", str(error))
    except OSError as error:
        return _Stop("resumable", disk_sentence(error))
    return None


@contextmanager
def _ended_by_signals() -> Iterator[threading.Event]:
    """Set by the first SIGTERM or Ctrl-C, which then end a run between two batches; a second one ends it at once."""
    ended = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield ended
        return
    before: dict[int, Any] = {}

    def end(number: int, frame: Any) -> None:
        ended.set()
        signal.signal(number, before[number])

    for wanted in (signal.SIGINT, signal.SIGTERM):
        before[wanted] = signal.signal(wanted, end) or signal.SIG_DFL  # None: a handler that is not Python's
    try:
        yield ended
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)


def _finish(out: Path, began: float, counts: _Counts, stopped: _Stop | None, check: bool, ranks: int = 1) -> Summary:
    """The end of a run: its proof if nothing is missing, and its summary."""
    found = status(out)
    if found.units_done < found.units:
        withdraw(out)
    if stopped is not None:
        found = found._replace(state=stopped.state, reason=stopped.reason)
    elif found.units_done == found.units and check:
        try:
            damaged = prove(out, counts.emit)
            found = status(out)
            if damaged:
                found = found._replace(reason=damage_sentence(damaged))
        except OSError as error:
            found = found._replace(reason=disk_sentence(error))
    elif ranks > 1 and found.units_done < found.units:
        found = found._replace(state="waiting", reason="the units of this rank are done; the last rank to end verifies the run")
    seconds = time.perf_counter() - began
    found = found._replace(ranks=ranks, seconds=seconds, images_per_second=counts.here / seconds)
    counts.emit(Finished(found.state, counts.here, found.rows, sum(found.failures.values()), seconds, causes(out), found.reason))
    return found


def _silent(event: Event) -> None:
    """For callers that do not want to hear."""
