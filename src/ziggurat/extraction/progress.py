"""What a run says while it goes on: events, and three ways to report them.

A job calls a function with one event after the other. `Bar` draws them on a terminal, `Lines` prints a line a minute
where nobody watches, `JsonLines` writes an object a line for programs. Nothing here reads a clock: the seconds are
those that the events bring, so that the same events always say the same.
"""

from __future__ import annotations

import json as json_module
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, TextIO, TypeAlias

__all__ = [
    "Bar", "Cause", "Event", "Finished", "JsonLines", "Lines", "Planned", "Progress", "Reporter", "Resumed", "Unit", "Verified",
    "reporter_for", "summary",
]

REMEDIES = {
    "missing": "bring the file back, then retry",
    "denied": "allow reading it, then retry",
    "unavailable": "wait for the storage, then retry",
    "changed": "retry, which takes it as it is now",
    "empty": "copy the file again, then retry",
    "truncated": "copy the file again, then retry",
    "not_an_image": "leave it out, or convert it",
    "corrupt": "replace the file, then retry",
    "too_large": "make the image smaller, then retry",
    "timeout": "retry on a quieter machine, or replace the file",
    "signal": "replace the file: it ends its decoder",
    "memory": "retry with more memory or a smaller image",
    "nan": "compute with --precision fp32, or check the weights",
    "overflow": "extract anew with --dtype f32",
}

RECENT = 10.0  # seconds that "now" looks back
STAGES = ("read", "decode", "forward", "write")


@dataclass(frozen=True)
class Planned:
    """What is to be done, before the first image: `to_do` of all `images` are left to this process.

    Sizes are bytes: what the output is expected to take, and what is free where it goes (-1 if that is unknown).
    `reason` says in words which backend was chosen and why, `duplicates` how often an input was named again.
    """

    images: int
    units: int
    to_do: int
    bytes_estimated: int
    free_bytes: int
    model: str
    backend: str
    reason: str = ""
    duplicates: int = 0


@dataclass(frozen=True)
class Resumed:
    """A run that had begun earlier goes on: so many of its units are done."""

    units_done: int
    images_done: int


@dataclass(frozen=True)
class Progress:
    """How far this process has come: all counts and seconds since it began.

    `busy` has the seconds that each of the stages read, decode, forward and write was at work. Reading and decoding
    share `workers` processes, so theirs may add up to `workers * seconds`.
    """

    images: int
    failures: int
    seconds: float
    busy: Mapping[str, float] = field(default_factory=dict)
    workers: int = 1


@dataclass(frozen=True)
class Unit:
    """A unit was committed: so many of its images have a row, so many failed."""

    unit: int
    rows: int
    failures: int


@dataclass(frozen=True)
class Verified:
    """Every unit is there, with the hashes that were written down, and the counts add up to the plan's."""

    rows: int
    failures: int
    files: int
    bytes: int


@dataclass(frozen=True)
class Cause:
    """How many images failed at one stage for one cause, and the key of the first."""

    stage: str
    cause: str
    count: int
    example: str


@dataclass(frozen=True)
class Finished:
    """The end: `images` were done by this process in `seconds`; `rows` and `failures` are those of the whole run.

    `state` is 'complete', 'quarantined' (complete but for the failures), 'resumable' or 'stopped' (too many images
    failed); `reason` says in a sentence what is missing, and what to do.
    """

    state: str
    images: int
    rows: int
    failures: int
    seconds: float
    by_cause: tuple[Cause, ...] = ()
    reason: str = ""

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0


Event: TypeAlias = Planned | Resumed | Progress | Unit | Verified | Finished


class Meter:
    """Rates, time left and the bottleneck, from the progress seen so far."""

    def __init__(self) -> None:
        self.to_do = 0
        self.seen = deque([Progress(0, 0, 0.0)])  # the last `RECENT` seconds, and one more behind them

    def add(self, progress: Progress) -> None:
        self.seen.append(progress)
        while len(self.seen) > 2 and progress.seconds - self.seen[1].seconds >= RECENT:
            self.seen.popleft()

    @property
    def last(self) -> Progress:
        return self.seen[-1]

    @property
    def recently(self) -> float:
        """Images a second in the last seconds."""
        first, last = self.seen[0], self.last
        return (last.images - first.images) / max(last.seconds - first.seconds, 1e-9)

    @property
    def overall(self) -> float:
        """Images a second since the beginning."""
        return self.last.images / max(self.last.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        return (self.to_do - self.last.images) / self.overall if self.last.images else None

    def bottleneck(self) -> tuple[str, float] | None:
        """The stage that holds up the others, and the share of the last seconds in which its processes were at work.

        Reading and decoding are done by the same processes. Where these are the busiest, the one is named that takes
        more of their time.
        """
        first, last = self.seen[0], self.last
        if last.seconds <= first.seconds:
            return None
        spent = {stage: last.busy.get(stage, 0.0) - first.busy.get(stage, 0.0) for stage in STAGES}
        shares = {
            max("decode", "read", key=spent.__getitem__): (spent["read"] + spent["decode"]) / max(last.workers, 1),
            "forward": spent["forward"],
            "write": spent["write"],
        }
        stage = max(shares, key=shares.__getitem__)
        return (stage, min(shares[stage] / (last.seconds - first.seconds), 1.0)) if shares[stage] else None

    def facts(self) -> Iterable[str]:
        """Speed, failures, time left and bottleneck in words."""
        yield f"{self.recently:,.1f} images/s now, {self.overall:,.1f} overall"
        yield counted(self.last.failures, "failure")
        if self.seconds_left is not None:
            yield f"{duration(self.seconds_left)} left"
        if narrowest := self.bottleneck():
            yield f"bottleneck: {narrowest[0]} ({narrowest[1]:.0%} busy)"


class Reporter:
    """Takes events, and is a context in which they come: leaving it gives the terminal back."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __call__(self, event: Event) -> None:
        raise NotImplementedError

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stream.flush()


class JsonLines(Reporter):
    """An object a line, pure ASCII: {"event": "progress", "images": 4096, ...}; progress once a second at most."""

    every = 1.0  # seconds

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.meter = Meter()
        self.due = 0.0

    def __call__(self, event: Event) -> None:
        value: dict[str, Any] = {"event": type(event).__name__.lower(), **asdict(event)}
        if isinstance(event, Planned):
            self.meter.to_do = event.to_do
        elif isinstance(event, Progress):
            self.meter.add(event)
            if event.seconds < self.due:
                return
            self.due = event.seconds + self.every
            narrowest = self.meter.bottleneck()
            value |= {"images_per_second": self.meter.recently, "images_per_second_overall": self.meter.overall,
                      "seconds_left": self.meter.seconds_left, "bottleneck": narrowest and narrowest[0]}
        elif isinstance(event, Finished):
            value["images_per_second"] = event.images_per_second
        print(json_module.dumps(value), file=self.stream, flush=True)


class Lines(Reporter):
    """For people who read it later, in a log: what is planned, a line a minute, and the summary."""

    every = 60.0  # seconds

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.meter = Meter()
        self.due = self.every

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.meter.add(event)
            if event.seconds >= self.due:
                self.due = event.seconds + self.every
                done = f"{event.images:,} of {self.meter.to_do:,} images"
                self.say(", ".join([done, *self.meter.facts()]))
        elif isinstance(event, Planned):
            self.meter.to_do = event.to_do
            self.say(planned(event))
        elif isinstance(event, Resumed):
            self.say(f"{counted(event.units_done, 'unit')} with {counted(event.images_done, 'image')} done earlier")
        elif isinstance(event, Verified):
            self.say(f"verified: {counted(event.files, 'file')}, {size(event.bytes)}, "
                     f"{counted(event.rows, 'row')}, {counted(event.failures, 'failure')}")
        elif isinstance(event, Finished):
            self.say(summary(event))

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class Bar(Lines):
    """For people who watch: a bar that is gone when the run ends, with the words of `Lines` above and below it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        columns = (BarColumn(bar_width=16), MofNCompleteColumn(), TextColumn("{task.fields[facts]}", markup=False))
        self.console = Console(file=stream)
        self.bar = RichProgress(*columns, console=self.console, transient=True, redirect_stdout=False, redirect_stderr=False)
        self.task = self.bar.add_task("", total=None, facts="", visible=False)

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()
        super().__exit__(kind, error, trace)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.meter.add(event)
            self.bar.update(self.task, total=self.meter.to_do, completed=event.images, facts=self.short(), visible=True)
            return
        if isinstance(event, Finished | Verified):
            self.bar.update(self.task, visible=False)
        super().__call__(event)

    def short(self) -> str:
        """`Meter.facts` in the room that a terminal has."""
        meter = self.meter
        parts = [f"{meter.recently:,.0f}/s ({meter.overall:,.0f})", f"{meter.last.failures:,} failed"]
        if meter.seconds_left is not None:
            parts.append(f"{duration(meter.seconds_left)} left")
        if narrowest := meter.bottleneck():
            parts.append(f"{narrowest[0]} {narrowest[1]:.0%}")
        return ", ".join(parts)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def reporter_for(json: bool = False, stream: TextIO | None = None) -> Reporter:
    """The reporter that fits: JSON on stdout, a bar on a terminal, lines elsewhere; on stderr, or on `stream`."""
    if json:
        return JsonLines(stream or sys.stdout)
    stream = stream or sys.stderr
    return Bar(stream) if stream.isatty() else Lines(stream)


def planned(event: Planned) -> str:
    """Images, model, backend, and what room the output needs."""
    backend = event.reason or event.backend
    room = f"about {size(event.bytes_estimated)} on disk"
    if event.free_bytes >= 0:
        room += f", {size(event.free_bytes)} free"
    work = f"{counted(event.images, 'image')} in {counted(event.units, 'unit')}"
    if event.to_do != event.images:
        work += f", {event.to_do:,} to do here"
    if event.duplicates:
        work += f" ({event.duplicates:,} more named again, and taken once)"
    return f"{work}; {event.model} by {backend}; {room}"


def summary(event: Finished) -> str:
    """The end in words, and a table of the failures by cause: most frequent first, with what to do."""
    head = (f"{event.state}: {counted(event.rows, 'row')}, {counted(event.failures, 'failure')}; "
            f"{counted(event.images, 'image')} in {duration(event.seconds)} ({event.images_per_second:,.1f} images/s)")
    if event.reason:
        head += f"\n{event.reason}"
    if not event.by_cause:
        return head
    ordered = sorted(event.by_cause, key=lambda each: (-each.count, each.stage, each.cause))
    rows = [["stage", "cause", "count", "first", "what to do"],
            *([each.stage, each.cause, f"{each.count:,}", each.example, REMEDIES[each.cause]] for each in ordered)]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ("  ".join(cell.rjust(w) if i == 2 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))) for row in rows)
    return "\n".join([head, *(line.rstrip() for line in lines)])


def counted(number: int, thing: str) -> str:
    """'1 image', '12,000 images'."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: '1:02:03', '0:07'; days before them: '2 d 1:02:03'."""
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    clock = f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours or days else f"{rest // 60}:{rest % 60:02}"
    return f"{days} d {clock}" if days else clock


def size(count: int) -> str:
    """Bytes in the unit that keeps the number short: '512 B', '3.0 MB' (powers of 1000)."""
    number, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if number < 999.5 or unit == "PB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
