"""Processes that read and decode images: in order, with a bounded lead, and with nothing lost when one of them dies.

    with Decoders(8, Preprocessing.of(model)) as decoders:
        for found in decoders.map(items):           # pixels uint8 (H, W, C), or the Failure that says what is wrong

An image that hangs its decoder, crashes it or exhausts its memory is tried again, alone in a process; it is filed when
the same happens a second time (a fourth, if the process was killed: that may come from outside, and tells least of the
image). So a decoder that is killed costs no image, and an image no neighbour.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from multiprocessing import connection, resource_tracker
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile

from ..errors import BadArgument
from .decoding import DecodeFailure, Preprocessing, decode
from .failures import Failure
from .sources import Item, ReadFailure, read_bytes

__all__ = ["Decoders"]

CHUNK = 8  # consecutive images for one process, so that it reads on where it was in a tar or a Parquet row group
BACK_OFF = 0.25  # seconds before a transient error is tried again; doubled each time
SOON = 0.005  # seconds for which a process gathers what it reports
REMOTE_READERS = 8  # images that a process reads at once from addresses such as s3://; from a disk, the next one
TICK = 0.2  # seconds between looks at how long decoding takes
PATIENCE = 3.0  # seconds for a process to end by itself

IDLE, READING, DECODING = range(3)

OFTEN = {-9: (4, "four times"), -15: (4, "four times")}  # after how many deaths by SIGKILL and SIGTERM an image is filed
TWICE = (2, "twice")  # by any other, and of other causes

Read = Callable[[Item], bytes]
Decode = Callable[[bytes, Preprocessing], np.ndarray]


class _Job(NamedTuple):
    """What a process is to do."""

    preprocessing: Preprocessing
    retries: int
    read: Read
    decode: Decode
    pillow: tuple[int | None, bool]  # Pillow's limits as the program has set them


@dataclass(eq=False)
class _Task:
    """An image on its way, and the slot of the shared memory where its pixels come to be."""

    item: Item
    slot: int
    is_alone: bool = False
    is_wanted: bool = True
    is_done: bool = False
    failure: Failure | None = None
    read: tuple[int, str] = (-1, "")  # bytes and their hash, known of what is tried alone
    seen: Counter[str] = field(default_factory=Counter)  # what has happened to it, and how often


@dataclass(eq=False)
class _Worker:
    """A process and what it has in its hands, by slot, in the order in which it was handed."""

    process: Any
    pipe: connection.Connection
    hands: dict[int, _Task] = field(default_factory=dict)
    is_ready: bool = False
    overdue: _Task | None = None

    @property
    def is_isolating(self) -> bool:
        """Whether it has an image that is to be alone."""
        return any(task.is_alone for task in self.hands.values())


class _Board:
    """Memory shared with the processes: pixels, and at which stage each slot is and since when.

    Its file is deleted as soon as it is made, so the system frees it when the last process that maps it is gone.
    """

    def __init__(self, context: Any, slots: int, shape: tuple[int, ...]) -> None:
        self.shape = slots, *shape
        self.memory = context.RawArray(ctypes.c_ubyte, int(np.prod(self.shape)))
        self.stages = context.RawArray(ctypes.c_ubyte, slots)
        self.began = context.RawArray(ctypes.c_double, slots)  # time.monotonic(), which processes share

    def pixels(self) -> np.ndarray:
        return np.frombuffer(self.memory, np.uint8).reshape(self.shape)


class Decoders:
    """`count` processes that read items and decode them; 0 does it in this process.

    `timeout` is in seconds, for the decoding of one image (in this process there is none, and no shelter from crashes).
    Reading that fails for a passing reason is tried `retries` times more. No more than `ahead` items (by default 32 a
    process) are taken before they are asked for, nor decoded images held. With `read_here` this process reads and sends
    the bytes, for sources that no other process can see. `read` and `decode` are module-level functions in place of
    `sources.read_bytes` and `decoding.decode`.

    The processes do not import the program's main module, so a script needs no `if __name__ == "__main__":`.
    """

    def __init__(
        self,
        count: int,
        preprocessing: Preprocessing,
        *,
        timeout: float = 60.0,
        retries: int = 3,
        ahead: int | None = None,
        read_here: bool = False,
        read: Read = read_bytes,
        decode: Decode = decode,
    ) -> None:
        ahead = max(1, 32 * count) if ahead is None else ahead
        if count < 0 or retries < 0 or ahead < 1 or not timeout > 0:
            raise BadArgument(f"count={count}, retries={retries}, ahead={ahead}, timeout={timeout}: "
                              "count and retries are 0 or more, ahead 1 or more, timeout above 0 seconds")
        self.count = count
        self.timeout = timeout
        self.read_here = read_here
        self._job = _Job(preprocessing, retries, read, decode, (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES))
        self._seconds = {"read": 0.0, "decode": 0.0}
        self._workers: list[_Worker] = []
        self._is_mapping = self._is_closed = False
        if not count:
            return
        ahead = max(ahead, count)
        self._chunk = max(1, min(CHUNK, ahead // (2 * count)))
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:  # imported once, and shared by the processes
            self._context.set_forkserver_preload(["torch", "PIL.Image", __name__, f"{__package__}.fork_server"])
        self._board = _Board(self._context, ahead, (*preprocessing.size, preprocessing.channels))
        self._pixels = self._board.pixels()
        self._free = list(range(ahead))
        self._queue: deque[_Task] = deque()
        self._alone: deque[_Task] = deque()
        self._fruitless = 0.0  # deaths in a row that no image was to blame for
        self._looked = 0.0
        try:
            for _ in range(count):
                self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes; what has not ended after 3 seconds is killed."""
        self._is_closed = True
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.pipe.close()  # which they take as the end, even while they decode
        deadline = time.monotonic() + PATIENCE
        for worker in workers:
            _end(worker.process, deadline - time.monotonic())

    def seconds(self) -> dict[str, float]:
        """Busy seconds of 'read' and 'decode', summed over the processes."""
        return dict(self._seconds)

    def map(self, items: Iterable[Item]) -> Iterator[np.ndarray | Failure]:
        """The pixels (uint8, height width channels) of each item, or its failure, in order; one `map` at a time.

        Items are taken as they are needed, at most `ahead` early. Raises RuntimeError where processes die time and again
        with no image to blame, and with the traceback where reading or decoding raises what it should not.
        """
        if self._is_mapping or self._is_closed:
            raise RuntimeError("these decoders are closed" if self._is_closed else "a map of these decoders is under way")
        self._is_mapping = True
        try:
            yield from self._map(iter(items)) if self.count else map(self._here, items)
        finally:
            self._is_mapping = False

    # ---------------------------------------------------------------- this process

    def _here(self, item: Item) -> np.ndarray | Failure:
        data = self._fetched(item)
        if isinstance(data, Failure):
            return data
        began = time.perf_counter()
        found = _decoded(data, self._job)
        self._seconds["decode"] += time.perf_counter() - began
        return found

    def _fetched(self, item: Item) -> bytes | Failure:
        began = time.perf_counter()
        data = _fetched(item, self._job)
        self._seconds["read"] += time.perf_counter() - began
        return data

    # ---------------------------------------------------------------- the order

    def _map(self, items: Iterator[Item]) -> Iterator[np.ndarray | Failure]:
        window: deque[_Task] = deque()  # taken and not yet given out
        has_more = True
        try:
            while True:
                while has_more and len(self._free) >= self._chunk:
                    taken = [_Task(item, self._free.pop()) for item in islice(items, self._chunk)]
                    has_more = len(taken) == self._chunk
                    window.extend(taken)
                    self._queue.extend(taken)
                    self._hand_out()
                if not window and not has_more:
                    return
                if window and window[0].is_done:
                    task = window.popleft()
                    found = task.failure or self._pixels[task.slot].copy()
                    self._free.append(task.slot)
                    yield found
                else:
                    self._attend()
                    self._hand_out()
        finally:
            self._queue.clear()
            self._alone.clear()
            in_hands = {task for worker in self._workers for task in worker.hands.values()}
            for task in window:
                task.is_wanted = False
                if task not in in_hands:  # its slot is free when its process has done with it
                    self._free.append(task.slot)

    def _hand_out(self) -> None:
        """Gives waiting tasks to the processes that have least; one that is to be alone gets a process that has nothing."""
        if not self._queue and not self._alone:
            return
        by_load = sorted((worker for worker in self._workers if not worker.is_isolating), key=lambda worker: len(worker.hands))
        emptied, others = by_load[: len(self._alone)], by_load[len(self._alone) :]
        for worker in emptied:
            if not worker.hands:
                task = self._alone.popleft()
                task.is_alone = True
                self._give(worker, [task])
        # where bytes are sent, few of them wait in the processes
        most = 2 * self._chunk if self.read_here else len(self._pixels)
        while self._queue and others:
            worker = min(others, key=lambda worker: len(worker.hands))
            if len(worker.hands) >= most:
                break
            self._give(worker, [self._queue.popleft() for _ in range(min(self._chunk, len(self._queue)))])
            if worker not in self._workers:  # it was found dead
                others.remove(worker)

    def _give(self, worker: _Worker, tasks: list[_Task]) -> None:
        handed: list[tuple[int, Item | bytes, bool]] = []
        for task in tasks:
            source: Item | bytes | Failure = self._fetched(task.item) if self.read_here else task.item
            if isinstance(source, Failure):
                task.failure, task.is_done = source, True
                continue
            worker.hands[task.slot] = task
            handed.append((task.slot, source, task.is_alone))
        try:
            worker.pipe.send(handed)
        except OSError:  # it died, or takes nothing any more
            _kill(worker.process)
            self._bury(worker)

    # ---------------------------------------------------------------- the processes

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        _limit_sending(ours, self.timeout)
        process = self._context.Process(target=_work, args=(_Deafness(), theirs, self._board, self._job), name="ziggurat-decoder", daemon=True)
        with _interrupts_kept_off(), _main_hidden():
            process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))

    def _attend(self) -> None:
        """Takes in what the processes report, for up to a tick."""
        pipes = {worker.pipe: worker for worker in self._workers}
        for pipe in connection.wait(list(pipes), TICK):
            worker = pipes[pipe]  # type: ignore[index]
            try:
                reports = worker.pipe.recv()
            except (EOFError, OSError):
                self._bury(worker)
                continue
            for report in reports:
                self._take(worker, *report)
        if time.monotonic() - self._looked > TICK:
            self._end_overdue()

    def _take(self, worker: _Worker, kind: str, slot: int, *facts: Any) -> None:
        if kind == "error":
            key = repr(worker.hands[slot].item.key) if slot in worker.hands else "its start"
            raise RuntimeError(f"a decoding process met an error that no image explains, at {key}:\n{facts[0]}")
        if kind == "ready":
            worker.is_ready = True
        elif kind == "read":
            worker.hands[slot].read = facts[0], facts[1]
        else:
            failure, reading, decoding = facts
            self._fruitless = 0
            self._seconds["read"] += reading
            self._seconds["decode"] += decoding
            self._settle(worker.hands.pop(slot), failure)

    def _end_overdue(self) -> None:
        self._looked = time.monotonic()
        for worker in self._workers:
            for slot, task in worker.hands.items():
                began = self._board.began[slot]
                if self._board.stages[slot] == DECODING and self._looked - began > self.timeout and worker.overdue is None:
                    worker.overdue = task
                    _kill(worker.process)  # its pipe ends then

    def _bury(self, worker: _Worker) -> None:
        """Finds out which images a process may have died of, gives the others back, and starts another process."""
        self._workers.remove(worker)
        worker.pipe.close()
        code = _end(worker.process, PATIENCE)
        stages = {slot: self._board.stages[slot] for slot in worker.hands}
        for slot in worker.hands:
            self._board.stages[slot] = IDLE
        if worker.overdue is not None:
            blamed = [task for task in worker.hands.values() if task is worker.overdue]
            times, cause, message = TWICE, "timeout", f"decoding it took longer than {self.timeout:g} s"
        else:
            # between two images, memory that one of them has damaged may be what it died of: any that it had is suspect
            blamed = [task for slot, task in worker.hands.items() if stages[slot] != IDLE] or list(worker.hands.values())
            blamed = blamed if worker.is_ready else []
            times, cause, message = OFTEN.get(code or 0, TWICE), "signal", f"its process {_death(code)}"
            # a kill may come from outside, as often as somebody likes: four of them count as one death of its own
            self._fruitless = 0 if blamed else self._fruitless + 1 / OFTEN.get(code or 0, (1, ""))[0]
        innocent = [task for task in worker.hands.values() if task not in blamed]
        for task in innocent:
            if not task.is_wanted:
                self._free.append(task.slot)
            elif task.is_alone:
                self._alone.append(task)
        self._queue.extendleft(reversed([task for task in innocent if task.is_wanted and not task.is_alone]))
        for task in blamed:
            stage = "read" if stages[task.slot] == READING else "decode"
            self._settle(task, Failure(stage, cause, f"{message}, {times[1]}", *task.read), times[0])
        if self._fruitless > self.count + 3:
            raise RuntimeError(
                f"decoding processes die again and again before they have an image in their hands; the last {_death(code)}"
            )
        self._start()

    def _settle(self, task: _Task, failure: Failure | None, times: int = TWICE[0]) -> None:
        """Ends a task, unless what happened may not be its own doing: then it is tried again, alone."""
        if not task.is_wanted:
            self._free.append(task.slot)
            return
        if failure is not None and failure.cause in ("timeout", "signal", "memory"):
            task.seen[failure.message] += 1
            if task.seen[failure.message] < times:
                task.is_alone = False
                self._alone.append(task)
                return
        task.failure, task.is_done = failure, True


# ---------------------------------------------------------------- one image


def _fetched(item: Item, job: _Job) -> bytes | Failure:
    """The bytes of an item; what may pass is tried again, after a while that doubles."""
    attempt = 0
    while True:
        try:
            return job.read(item)
        except MemoryError:
            return Failure("read", "memory", "there is not enough memory to read it")
        except ReadFailure as error:
            if not error.transient:
                return Failure("read", error.cause, error.message)
            if attempt == job.retries:
                return Failure("read", "unavailable", error.message)
        time.sleep(BACK_OFF * 2**attempt)
        attempt += 1


def _decoded(data: bytes, job: _Job) -> np.ndarray | Failure:
    try:
        return job.decode(data, job.preprocessing)
    except DecodeFailure as error:
        stage, cause, message = error.stage, error.cause, error.message
    except MemoryError:
        stage, cause, message = "decode", "memory", "there is not enough memory to decode it"
    return Failure(stage, cause, message, len(data), sha256(data).hexdigest())


# ---------------------------------------------------------------- in a process


class _Found(NamedTuple):
    """What reading one item gave: its bytes, or the failure, or an error that is ours; and how long that took."""

    slot: int
    is_alone: bool
    data: bytes | Failure | Exception
    seconds: float


class _Deafness:
    """An argument that makes the process to which it is sent ignore Ctrl-C, as it arrives: the parent ends a process.

    Arriving first, it is there before whatever the others import, and before multiprocessing prints tracebacks.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return signal.signal, (signal.SIGINT, signal.SIG_IGN)


def _work(_: object, pipe: connection.Connection, board: _Board, job: _Job) -> None:
    """What a process does until its pipe ends; then it is gone at once, whatever it was at."""
    torch.set_num_threads(1)
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = job.pillow
    reports, slots = _Reports(pipe), board.pixels()
    found: _Found | None = None
    try:
        reports.send([("ready", -1)])  # before anything is read: what this process dies of from here on is an image
        reading = _Reading(pipe, board, job)
        while True:
            found = reading.next()
            if isinstance(found.data, Exception):
                raise found.data
            if isinstance(found.data, Failure):
                reports.add(found.slot, found.data, found.seconds, 0.0)
            else:
                if found.is_alone:  # if this process dies of it, this much is known of it
                    reports.send([("read", found.slot, len(found.data), sha256(found.data).hexdigest())])
                start = time.perf_counter()
                board.began[found.slot] = time.monotonic()
                board.stages[found.slot] = DECODING
                pixels = _decoded(found.data, job)
                if isinstance(pixels, np.ndarray):
                    assert pixels.shape == slots.shape[1:] and pixels.dtype == np.uint8
                    slots[found.slot] = pixels
                board.stages[found.slot] = IDLE
                failure = pixels if isinstance(pixels, Failure) else None
                reports.add(found.slot, failure, found.seconds, time.perf_counter() - start)
    except BrokenPipeError:
        os._exit(0)
    except BaseException:
        with suppress(OSError):
            reports.send([("error", found.slot if found else -1, traceback.format_exc())])
        os._exit(1)


class _Reports:
    """What is to be told to the parent, gathered for a moment by a thread: a message costs more than an image's copy.

    Being a thread, it tells of an image that is done even if the next one hangs.
    """

    def __init__(self, pipe: connection.Connection) -> None:
        self.pipe = pipe
        self.sending = threading.Lock()
        self.waiting: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        threading.Thread(target=self._send_all, daemon=True).start()

    def add(self, slot: int, failure: Failure | None, reading: float, decoding: float) -> None:
        self.waiting.put(("done", slot, failure, reading, decoding))

    def send(self, reports: list[tuple[Any, ...]]) -> None:
        with self.sending:
            self.pipe.send(reports)

    def _send_all(self) -> None:
        try:
            while True:
                reports = [self.waiting.get()]
                time.sleep(SOON)
                while not self.waiting.empty():
                    reports.append(self.waiting.get())
                self.send(reports)
        except OSError:  # there is no parent any more
            os._exit(0)


class _Reading:
    """Reads what the parent asks for ahead of the decoding, on threads: few images ahead, so that few are in memory.

    What lies on a disk is read one after another, since neighbours share a tar or a row group; from afar several at once.
    """

    def __init__(self, pipe: connection.Connection, board: _Board, job: _Job) -> None:
        self.pipe, self.stages, self.job = pipe, board.stages, job
        self.found: queue.SimpleQueue[_Found] = queue.SimpleQueue()
        self.room = threading.Semaphore(REMOTE_READERS + 1)
        self.lanes: dict[int, queue.SimpleQueue[tuple[int, Item | bytes, bool]]] = {}  # by number of threads
        threading.Thread(target=self._receive, daemon=True).start()

    def next(self) -> _Found:
        found = self.found.get()
        self.room.release()
        return found

    def _receive(self) -> None:
        try:
            while True:
                for task in self.pipe.recv():
                    source = task[1]
                    is_far = isinstance(source, Item) and "://" in source.container and not source.member
                    self._lane(REMOTE_READERS if is_far else 1).put(task)
        except (EOFError, OSError):
            os._exit(0)

    def _lane(self, threads: int) -> queue.SimpleQueue[tuple[int, Item | bytes, bool]]:
        if threads not in self.lanes:
            self.lanes[threads] = queue.SimpleQueue()
            for _ in range(threads):
                threading.Thread(target=self._read_all, args=(self.lanes[threads],), daemon=True).start()
        return self.lanes[threads]

    def _read_all(self, tasks: queue.SimpleQueue[tuple[int, Item | bytes, bool]]) -> None:
        while True:
            slot, source, is_alone = tasks.get()
            self.room.acquire()
            start = time.perf_counter()
            self.stages[slot] = READING
            try:
                data: bytes | Failure | Exception = _fetched(source, self.job) if isinstance(source, Item) else source
            except Exception as error:  # raised again by the main thread, and so by the parent
                data = error
            self.stages[slot] = IDLE
            self.found.put(_Found(slot, is_alone, data, time.perf_counter() - start))


# ---------------------------------------------------------------- processes


def _kill(process: Any) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()


def _end(process: Any, patience: float) -> int | None:
    """Waits for a process's end and then kills it; its exit code, None if not even that has ended it."""
    process.join(max(0.0, patience))
    if process.exitcode is None:
        process.kill()
        process.join(PATIENCE)
    code: int | None = process.exitcode
    if code is not None:
        process.close()
    return code


def _death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    known = {number.value: number.name for number in signal.Signals}
    return f"died of {known.get(-code, f'signal {-code}')}"


def _limit_sending(pipe: connection.Connection, seconds: float) -> None:
    """Makes sending raise OSError where the other side, stopped or hung, takes nothing for so long."""
    if os.name == "posix":
        with socket.socket(fileno=os.dup(pipe.fileno())) as end:
            end.setblocking(True)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(min(seconds, 1e6)) + 1, 0))


@contextmanager
def _interrupts_kept_off() -> Iterator[None]:
    """Ctrl-C does not reach a server of processes that is started here while it imports: a blocked signal is inherited.

    The last of its imports, `fork_server`, ends that.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which unblocks the signal when it starts, and starts before the server does
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Processes started here do not import the main module, of which they need nothing: it may be a script that runs us."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
