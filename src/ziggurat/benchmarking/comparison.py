"""Contenders run against each other: in turn, round by round, on one machine that does nothing else meanwhile."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BadArgument
from .contenders import Case, check_backend, split
from .costs import Layer, least_seconds
from .worker import ContenderFailed, Worker

__all__ = ["Comparison", "Machine", "Result", "compare", "measured"]

ROUND = 0.25  # seconds of calls of a contender in a round, at least
MOST_CALLS = 50  # of a contender in a round
DEVICES = ("cpu", "cuda")
PAUSE = 0.05  # seconds between two contenders, in which threads that wait in a loop fall asleep

Say = Callable[[str], None]


@dataclass
class Machine:
    """What computed, and the most it can: `peaks` in flops/s by precision (None: not measured), `bandwidth` in bytes/s."""

    device: str
    threads: int
    load: float | None
    system: str
    versions: dict[str, str]
    bandwidth: float
    peaks: dict[str, float | None]

    def join(self, again: Machine) -> None:
        """Takes over what a further measurement found more of: other work can only have made it less."""
        self.bandwidth = max(self.bandwidth, again.bandwidth)
        self.peaks = {precision: max(peak, again.peaks[precision] or 0.0) if peak else peak for precision, peak in self.peaks.items()}


@dataclass
class Result:
    """A contender's figures. Times are in seconds, memory in bytes; `rounds` are the seconds of each call, round by round.

    `failure` says why there are none. `error` is the largest absolute difference of an output to ours in eager float32, as
    a share of that output's largest absolute value (None: outputs of other shapes, or not finite). `build_seconds` are
    those from the weights to the first outputs, `build_memory` the peak of that, `memory` the peak while it runs.
    """

    case: Case
    backend: str
    failure: str = ""
    note: str = ""
    error: float | None = None
    build_seconds: float | None = None
    build_memory: int | None = None
    memory: int | None = None
    rounds: list[list[float]] = field(default_factory=list)
    ratio: float | None = None
    """Times as fast as the baseline, by the medians."""
    paired: float | None = None
    """The median of that ratio in each round."""
    of_peak: float | None = None
    """The share of the machine's arithmetic that its multiply-adds take."""
    of_roofline: float | None = None
    """The time that its layers need at least, as a share of the time it takes; see `costs.least_seconds`."""
    is_baseline: bool = False

    @property
    def precision(self) -> str:
        """The case's, or the contender's own."""
        return split(self.backend)[1] or self.case.precision

    @property
    def medians(self) -> list[float]:
        return [statistics.median(calls) for calls in self.rounds]

    @property
    def seconds(self) -> float:
        """The median of the rounds' medians, of a call."""
        return statistics.median(self.medians)

    @property
    def images_per_second(self) -> float:
        return self.case.batch / self.seconds

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of images per second over the rounds."""
        slow, fast = (percentile(self.medians, share) for share in (75, 25))
        return self.case.batch / slow, self.case.batch / fast

    def latency(self, share: float) -> float:
        """The seconds that `share` per cent of all calls took at most."""
        return percentile([seconds for calls in self.rounds for seconds in calls], share)

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON has it; see `report`."""
        row = asdict(self.case) | {"backend": self.backend, "failure": self.failure or None}
        if self.failure:
            return row
        low, high = self.spread
        return row | {
            "note": self.note, "baseline": self.is_baseline, "images_per_second": self.images_per_second,
            "quartiles": [low, high], "ratio": self.ratio, "paired_ratio": self.paired,
            "latency": {f"p{share}": self.latency(share) for share in (50, 90, 99)}, "error": self.error,
            "build_seconds": self.build_seconds, "build_memory": self.build_memory, "memory": self.memory,
            "of_peak": self.of_peak, "of_roofline": self.of_roofline, "rounds": self.rounds,
        }


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` per cent of `values` lie, between the two that are nearest."""
    ordered = sorted(values)
    place = share / 100 * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@dataclass
class Comparison:
    """All results, and the machine that they are of. `settings` are the arguments of `compare`."""

    machine: Machine
    settings: dict[str, Any]
    results: list[Result]

    def of(self, case: Case) -> dict[str, Result]:
        """The results of a case by backend."""
        return {result.backend: result for result in self.results if result.case == case}

    def as_dict(self) -> dict[str, Any]:
        return {"machine": asdict(self.machine), "settings": self.settings, "results": [one.as_dict() for one in self.results]}

    def write(self, path: Path) -> None:
        """JSON of it all; `report` says what it holds."""
        path.write_text(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def compare(
    cases: Iterable[Case], backends: Sequence[str], *, rounds: int = 7, threads: int | None = None, device: str = "cpu",
    baseline: str | None = None, say: Say = lambda sentence: None, on_case: Callable[[Machine, list[Result]], None] | None = None,
) -> Comparison:
    """Each of `backends` timed on each of `cases`: first the machine itself, and again before each network, then case by case.

    The contenders of a case are made one after the other, each in a process of its own; then they run in turn, one at a
    time, in another order each round, so that what else the machine does falls on all of them alike. A contender that
    cannot be made, or dies, is a result with its reason. A name such as 'optimize@fp32' has that precision, whatever the
    case says. `baseline` is what ratios are to (None: timm as it is, or else ours, or else the first that runs). `threads`
    None leaves their number to each runtime. `say` hears what is going on, `on_case` the machine and the results of each
    case. No process is left when it returns or raises.

    Raises `BadArgument` for an unknown name, and `MissingExtra` for a peer that is not installed.
    """
    cases, backends = list(dict.fromkeys(cases)), list(dict.fromkeys(backends))
    for backend in backends:
        check_backend(backend)
    for case in cases:
        known(case)
    if rounds < 1 or not cases or not backends:
        raise BadArgument(f"{len(cases)} cases, {len(backends)} backends, rounds={rounds}: give 1 or more of each")
    if device.partition(":")[0] not in DEVICES:
        raise BadArgument(f"device={device!r}: what is timed runs on {' or '.join(DEVICES)}")
    precisions = [split(backend)[1] or case.precision for case in cases for backend in backends]
    machine: Machine | None = None
    results: list[Result] = []
    kits_of: dict[Case, Mapping[str, Any]] = {}
    for group in grouped(cases):
        with tempfile.TemporaryDirectory(prefix="ziggurat-bench-") as folder:
            with Worker(threads) as worker:
                say("the machine's peak")
                again = peaks_by(worker, precisions, threads, device)
                if machine is None:
                    machine = again
                machine.join(again)
                say(f"{group[0].network}: weights and references")
                try:
                    kits = worker.ask("prepare", cases=[asdict(case) for case in group], folder=folder)["kits"]
                except ContenderFailed as failed:
                    why, kits = f"no references: {failed}", [None] * len(group)
            for case, kit in zip(group, kits):
                if kit is None:
                    found = [Result(case, backend, failure=why) for backend in backends]
                else:
                    kits_of[case] = kit
                    found = run_case(case, kit, backends, rounds, threads, device, folder, say)
                    rate(found, kit, machine, baseline)
                results += found
                if on_case is not None:
                    on_case(machine, found)
    assert machine is not None
    for case, kit in kits_of.items():
        rate([result for result in results if result.case == case], kit, machine, baseline)  # by the best peak seen
    return Comparison(machine, {"backends": backends, "rounds": rounds, "threads": threads, "device": device}, results)


def measured(precisions: Iterable[str], threads: int | None = None, device: str = "cpu") -> Machine:
    """The machine and its peaks in `precisions`, found in a process of its own."""
    with Worker(threads) as worker:
        return peaks_by(worker, precisions, threads, device)


def peaks_by(worker: Worker, precisions: Iterable[str], threads: int | None, device: str) -> Machine:
    return Machine(**worker.ask("machine", precisions=list(dict.fromkeys(precisions)), threads=threads, device=device))


def known(case: Case) -> None:
    """Raises `UnknownModel` or `UnknownTag`, as creating the network would."""
    from .. import registry

    registry.model_info(registry.resolve_name(case.network))


def grouped(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases that share their weights and images, in the order in which they come."""
    groups: dict[Any, list[Case]] = {}
    for case in cases:
        groups.setdefault((case.network, case.size, case.pixels), []).append(case)
    return list(groups.values())


def run_case(
    case: Case, kit: Mapping[str, Any], backends: Sequence[str], rounds: int, threads: int | None, device: str, folder: str, say: Say
) -> list[Result]:
    """The contenders of a case, made and then timed in turn."""
    results = [Result(case, backend) for backend in backends]
    with ExitStack() as stack:
        running: list[tuple[Result, Worker, int, int]] = []
        for number, result in enumerate(results):
            say(f"{case}: {result.backend}")
            own = Path(tempfile.mkdtemp(prefix=f"{number}-", dir=folder))
            worker = stack.enter_context(Worker(threads))
            try:
                built = worker.ask("build", backend=result.backend, case=asdict(case), kit=kit, device=device, threads=threads,
                                   folder=str(own))
            except ContenderFailed as failed:
                result.failure = str(failed)
                worker.__exit__(None, None, None)
                continue
            once = built.pop("once")
            for name, value in built.items():
                setattr(result, name, value)
            calls = min(max(1, math.ceil(ROUND / once)), MOST_CALLS)
            running.append((result, worker, calls, int(once < ROUND)))  # waiting has emptied the caches
        for number in range(rounds):
            say(f"{case}: round {number + 1} of {rounds}")
            first = number % max(len(running), 1)
            for result, worker, calls, warm in running[first:] + running[:first]:
                if result.failure:
                    continue
                time.sleep(PAUSE)
                try:
                    answer = worker.ask("run", calls=calls, first=warm)
                except ContenderFailed as failed:
                    result.failure = f"while it ran: {failed}"
                    continue
                result.rounds.append(answer["seconds"])
                result.memory = answer["memory"]
    return results


def rate(results: Sequence[Result], kit: Mapping[str, Any], machine: Machine, baseline: str | None) -> None:
    """Fills in what follows from the times: ratios and shares."""
    good = {result.backend: result for result in results if not result.failure}
    base = next((good[name] for name in (baseline, "timm-eager", "eager", *good) if name in good), None)
    layers = [Layer(*layer) for layer in kit["layers"]]
    for result in good.values():
        assert base is not None
        result.is_baseline = result is base
        result.ratio = base.seconds / result.seconds
        result.paired = statistics.median(one / other for one, other in zip(base.medians, result.medians))
        peak = machine.peaks[result.precision]
        if peak:
            result.of_peak = kit["flops"] / result.seconds / peak
            result.of_roofline = least_seconds(layers, result.precision, peak, machine.bandwidth) / result.seconds
