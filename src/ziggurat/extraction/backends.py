"""What runs the forward pass: torch, torch.compile or OpenVINO. Each takes batches of one size and gives arrays.

An image's numbers depend on its pixels and the size of a part alone, never on the other images of the batch nor on the
number of threads, and are the same in every process: all shapes are static and nothing is tuned by time.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..optimization.openvino_conversion import converted, import_openvino
from ..optimization.program import Unavailable, in_brief, is_of_memory, one_thread_each
from .views import Views

__all__ = ["CompileEngine", "CudaCompileEngine", "CudaEngine", "Engine", "OpenVinoEngine", "TorchEngine", "Unavailable",
           "import_openvino", "is_of_memory", "largest_divisor", "one_thread_each"]

Values = dict[str, np.ndarray]
Call = Callable[[Tensor], tuple[Tensor, ...]]
INSTEAD = "backend='torch' or 'compile'"  # of OpenVINO


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
        openvino = import_openvino(INSTEAD)
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise Unavailable("backend='openvino' has no bf16 on this CPU, which lacks the instructions; "
                              "take precision='fp32', or backend='torch', which emulates it slowly")
        options = {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision], "NUM_STREAMS": threads,
                   "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        pixels = torch.zeros((part, *views.image_shape), dtype=torch.uint8)
        self.compiled = core.compile_model(converted(views, pixels, INSTEAD), "CPU", options)
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
        raise Unavailable(f"backend='compile': torch.compile fails here ({in_brief(error)}); take backend='torch'") from error
    return call


def _computed(call: Call, pixels: Tensor, precision: str) -> tuple[Tensor, ...]:
    with torch.inference_mode(), torch.autocast(pixels.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return call(pixels)


def _joined(names: Sequence[str], parts: Iterable[Sequence[Tensor]]) -> Values:
    return {name: torch.cat(views).contiguous().numpy() for name, views in zip(names, zip(*parts))}


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is no more than `most`."""
    return next(part for part in range(max(1, min(most, number)), 0, -1) if number % part == 0)


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.require(pixels, np.uint8, ["C", "W"]))
