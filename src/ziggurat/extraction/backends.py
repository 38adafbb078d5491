"""What runs the forward pass: torch, torch.compile or OpenVINO. Each takes batches of one size and gives arrays.

An image's numbers depend on its pixels and the size of a part alone, never on the other images of the batch nor on the
number of threads, and are the same in every process: all shapes are static and nothing is tuned by time.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BadArgument, MissingExtra
from .views import Views

__all__ = ["CompileEngine", "CudaCompileEngine", "CudaEngine", "Engine", "OpenVinoEngine", "TorchEngine", "Unavailable",
           "import_openvino", "is_of_memory", "largest_divisor", "one_thread_each"]

Values = dict[str, np.ndarray]
Call = Callable[[Tensor], tuple[Tensor, ...]]


class Unavailable(BadArgument):
    """A backend that cannot run this network, or not here; the message says why and what can."""


class Engine(ABC):
    """Runs `views` on batches of `batch` images, `part` of them at a time, in the order in which they are begun.

    `ahead` batches are worth beginning before the first is finished. `seconds` is how long it has computed.
    """

    ahead = 0

    def __init__(self, views: Views, batch: int, part: int, precision: str) -> None:
        self.views, self.batch, self.part, self.precision = views, batch, part, precision
        self.seconds = self._last = 0.0

    @abstractmethod
    def begin(self, pixels: np.ndarray) -> Any:
        """Starts on pixels (B H W C), contiguous, which may not change until `finish`; returns what `finish` takes."""

    @abstractmethod
    def finish(self, begun: Any) -> Values:
        """The outputs by name, float32 (B ...); nothing of the batch is being computed when this returns or raises."""

    def was_busy(self, start: float, end: float) -> None:
        """Counts the seconds from `start` to `end` that were not counted with a batch before."""
        self.seconds += max(0.0, end - max(start, self._last))
        self._last = end


class TorchEngine(Engine):
    """The network as it is, with maps in channels_last memory: `threads` parts of a batch at once, each in one thread.

    That takes half the time of the CPU that threads inside of each layer take, which wait for each other in a loop, and
    the numbers do not depend on how many there are. It is for `one_thread_each` to be entered around its use.
    """

    def __init__(self, views: Views, batch: int, part: int, precision: str, threads: int) -> None:
        super().__init__(views, batch, part, precision)
        self.ahead = math.ceil(threads * part / batch)
        self.call = _channels_last(views)
        self.pool = ThreadPoolExecutor(threads, "forward")

    def begin(self, pixels: np.ndarray) -> tuple[float, list[Future[tuple[tuple[Tensor, ...], float]]]]:
        parts = _tensor(pixels).split(self.part)
        return time.perf_counter(), [self.pool.submit(self._part, part) for part in parts]

    def _part(self, pixels: Tensor) -> tuple[tuple[Tensor, ...], float]:
        return _computed(self.call, pixels, self.precision), time.perf_counter()

    def finish(self, begun: tuple[float, list[Future[tuple[tuple[Tensor, ...], float]]]]) -> Values:
        start, futures = begun
        wait(futures)
        parts = [future.result() for future in futures]
        self.was_busy(start, max(end for _, end in parts))
        return _joined(self.views.names, (views for views, _ in parts))


class CompileEngine(TorchEngine):
    """The network through torch.compile with its weights folded in as constants (Inductor's freezing)."""

    def __init__(self, views: Views, batch: int, part: int, precision: str, threads: int) -> None:
        super().__init__(views, batch, part, precision, threads)
        with one_thread_each():
            self.call = _compiled(self, options={"freezing": True})


class CudaEngine(Engine):
    """The network on a GPU: pixels are copied there from pinned memory while the batch before them is computed.

    `seconds` is the time that the GPU computes, by its own clock.
    """

    ahead = 2

    def __init__(self, views: Views, batch: int, part: int, precision: str) -> None:
        super().__init__(views, batch, part, precision)
        self.device = views.scale.device
        self.call = _channels_last(views)
        self.copies = torch.cuda.Stream(self.device)

    def begin(self, pixels: np.ndarray) -> list[tuple[list[Tensor], list[Any]]]:
        return [self._part(part) for part in _tensor(pixels).split(self.part)]

    def _part(self, pixels: Tensor) -> tuple[list[Tensor], list[Any]]:
        stream = torch.cuda.current_stream(self.device)
        start, computed, copied = events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        with torch.cuda.stream(self.copies):
            there = pixels.pin_memory().to(self.device, non_blocking=True)
        stream.wait_stream(self.copies)
        there.record_stream(stream)
        start.record(stream)
        views = _computed(self.call, there, self.precision)
        computed.record(stream)
        # on the same stream: a captured graph writes its next outputs to the memory of these
        back = [view.to("cpu", non_blocking=True) for view in views]
        copied.record(stream)
        return back, events

    def finish(self, begun: list[tuple[list[Tensor], list[Any]]]) -> Values:
        for _, (start, computed, copied) in begun:
            copied.synchronize()
            self.seconds += start.elapsed_time(computed) / 1000
        return _joined(self.views.names, (back for back, _ in begun))


class CudaCompileEngine(CudaEngine):
    """The network through torch.compile as a captured CUDA graph."""

    def __init__(self, views: Views, batch: int, part: int, precision: str) -> None:
        super().__init__(views, batch, part, precision)
        graph = _compiled(self, mode="reduce-overhead")

        def replayed(pixels: Tensor) -> tuple[Tensor, ...]:
            torch.compiler.cudagraph_mark_step_begin()
            return graph(pixels)

        self.call = replayed


class OpenVinoEngine(Engine):
    """The network in OpenVINO, on the CPU: `threads` parts of a batch at once, each in one thread.

    So the numbers do not depend on the number of threads. Raises `MissingExtra` where OpenVINO is not installed and
    `Unavailable` where it cannot take the network or the CPU lacks the precision.
    """

    def __init__(self, views: Views, batch: int, part: int, precision: str, threads: int) -> None:
        super().__init__(views, batch, part, precision)
        if views.scale.device.type != "cpu":
            raise Unavailable(f"backend='openvino' runs on the CPU and the network is on {views.scale.device}; "
                              "take backend='torch' or 'compile'")
        openvino = import_openvino()
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise Unavailable("backend='openvino' has no bf16 on this CPU, which lacks the instructions; "
                              "take precision='fp32', or backend='torch', which emulates it slowly")
        options = {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision], "NUM_STREAMS": threads,
                   "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        self.compiled = core.compile_model(_converted(views, part), "CPU", options)
        self.tensor = openvino.Tensor
        self.ahead = math.ceil(threads * part / batch)
        self.idle: list[list[Any]] = []

    def begin(self, pixels: np.ndarray) -> tuple[np.ndarray, Values, list[Any], list[float]]:
        pixels = np.ascontiguousarray(pixels)
        values = {name: np.empty((len(pixels), *self.views.shapes[name]), np.float32) for name in self.views.names}
        requests = self.idle.pop() if self.idle else [self.compiled.create_infer_request() for _ in range(self.batch // self.part)]
        starts = []
        for request, first in zip(requests, range(0, len(pixels), self.part)):
            rows = slice(first, first + self.part)
            request.set_input_tensor(self.tensor(pixels[rows], shared_memory=True))
            for index, value in enumerate(values.values()):
                request.set_output_tensor(index, self.tensor(value[rows], shared_memory=True))
            starts.append(time.perf_counter())
            request.start_async()
        return pixels, values, requests, starts

    def finish(self, begun: tuple[np.ndarray, Values, list[Any], list[float]]) -> Values:
        _, values, requests, starts = begun
        errors = []
        for request in requests:  # all of them, since they write to memory that is ours
            try:
                request.wait()
            except (MemoryError, RuntimeError) as error:
                errors.append(error)
        if errors:
            raise errors[0]
        self.was_busy(starts[0], max(start + request.latency / 1000 for start, request in zip(starts, requests)))
        self.idle.append(requests)
        return values


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Has torch compute each call in the thread that makes it, for as long as the block lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _channels_last(views: Views) -> Call:
    return views.to(memory_format=torch.channels_last)


def _compiled(engine: Engine, **how: Any) -> Call:
    """The views through torch.compile, compiled; raises `Unavailable` where that cannot be."""
    call: Call = torch.compile(engine.views, dynamic=False, **how)
    pixels = torch.zeros((engine.part, *engine.views.image_shape), dtype=torch.uint8, device=engine.views.scale.device)
    try:
        _computed(call, pixels, engine.precision)
    except Exception as error:  # compilers raise what they like; nothing is lost of it
        if is_of_memory(error):
            raise
        raise Unavailable(f"backend='compile': torch.compile fails here ({_in_brief(error)}); take backend='torch'") from error
    return call


def _computed(call: Call, pixels: Tensor, precision: str) -> tuple[Tensor, ...]:
    with torch.inference_mode(), torch.autocast(pixels.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return call(pixels)


def _joined(names: Sequence[str], parts: Iterable[Sequence[Tensor]]) -> Values:
    return {name: torch.cat(views).contiguous().numpy() for name, views in zip(names, zip(*parts))}


def import_openvino() -> Any:
    """The package openvino, without the one by which its import and its converter report their use over the network.

    That one writes to the home folder too, and the command that it offers to object with would as well. OpenVINO has a
    stand-in for where it is not installed.
    """
    if find_spec("openvino") is None:
        raise MissingExtra("backend='openvino' needs OpenVINO, which is not installed: pip install 'ziggurat[openvino]', "
                           "or take backend='torch' or 'compile'")
    reporter = "openvino_telemetry"
    if "openvino" not in sys.modules and reporter not in sys.modules:
        sys.modules[reporter] = None  # type: ignore[assignment]  # importing it raises ImportError
        try:
            import openvino
        finally:
            del sys.modules[reporter]
    import openvino

    return openvino


def _converted(views: Views, batch: int) -> Any:
    """`views` as a model of OpenVINO's for batches of one size; raises `Unavailable` where that cannot be."""
    from openvino.frontend import FrontEndManager

    pixels = torch.zeros((batch, *views.image_shape), dtype=torch.uint8)
    frontend = FrontEndManager().load_by_framework("pytorch")
    try:
        with torch.no_grad(), _root_logger_muted():
            decoder = _traced(views, pixels) or _exported(views, pixels)  # held: the frontend does not
            model = frontend.convert(frontend.load(decoder))
        model.reshape(list(pixels.shape))
    except Exception as error:  # tracing, export and conversion raise what they like; nothing is lost of it
        if is_of_memory(error):
            raise
        raise Unavailable(f"backend='openvino': OpenVINO cannot take this network ({_in_brief(error)}); "
                          "take backend='torch' or 'compile'") from error
    return model


def _traced(views: Views, pixels: Tensor) -> Any:
    """The network as it runs on black images; None where modules of others are in it, which may run otherwise on others.

    Tracing takes a tenth of the time of an export, and most of a small run is its start. Modules of ziggurat and torch
    branch on shapes only, which are fixed here.
    """
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    if not {type(module).__module__.partition(".")[0] for module in views.modules()} <= {"torch", __name__.partition(".")[0]}:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is deprecated, and of each branch
        traced = torch.jit.trace(views, (pixels,), check_trace=False, strict=False)
    return TorchScriptPythonDecoder(traced, example_input=(pixels,))


def _exported(views: Views, pixels: Tensor) -> Any:
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    return TorchFXPythonDecoder.from_exported_program(torch.export.export(views, (pixels,), strict=False))


@contextmanager
def _root_logger_muted() -> Iterator[None]:
    """Keeps OpenVINO's converter from logging, as the root, operators that this version of torch has not, with tracebacks.

    The handler is there so that `logging.warning` does not install one of its own.
    """

    def mute(record: logging.LogRecord) -> bool:
        return False

    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    root.addFilter(mute)
    try:
        yield
    finally:
        root.removeFilter(mute)
        root.removeHandler(handler)


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is no more than `most`."""
    return next(part for part in range(max(1, min(most, number)), 0, -1) if number % part == 0)


def is_of_memory(error: BaseException) -> bool:
    """Whether `error` says that there is not enough memory, on a GPU or in the host."""
    signs = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "Cannot allocate memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))


def _in_brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.require(pixels, np.uint8, ["C", "W"]))
