"""What runs the forward pass: torch, torch.compile or OpenVINO. Each takes batches of one size and gives arrays.

An image's numbers depend on its pixels and the size of the batch alone, never on the other images of the batch, and are
the same in every process: all shapes are static and nothing is tuned by time.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BadArgument, MissingExtra
from .views import Views

__all__ = ["CompileEngine", "CudaCompileEngine", "CudaEngine", "Engine", "OpenVinoEngine", "TorchEngine", "Unavailable",
           "is_of_memory", "largest_divisor"]

Values = dict[str, np.ndarray]


class Unavailable(BadArgument):
    """A backend that cannot run this network, or not here; the message says why and what can."""


class Engine(ABC):
    """Runs `views` on batches of `batch` images, `part` of them at a time, in the order in which they are begun.

    `ahead` batches are worth beginning before the first is finished. `seconds` is how long it has computed.
    """

    ahead = 0

    def __init__(self, views: Views, batch: int, part: int, precision: str) -> None:
        self.views, self.batch, self.part, self.precision = views, batch, part, precision
        self.seconds = 0.0

    @abstractmethod
    def begin(self, pixels: np.ndarray) -> Any:
        """Starts on pixels (B H W C), contiguous, which may not change until `finish`; returns what `finish` takes."""

    @abstractmethod
    def finish(self, begun: Any) -> Values:
        """The outputs by name, float32 (B ...)."""


class TorchEngine(Engine):
    """The network as it is, with maps in channels_last memory."""

    def __init__(self, views: Views, batch: int, part: int, precision: str) -> None:
        super().__init__(views, batch, part, precision)
        self.device = views.scale.device
        self.call: Callable[[Tensor], tuple[Tensor, ...]] = views.to(memory_format=torch.channels_last)

    def compute(self, pixels: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.call(pixels)

    def begin(self, pixels: np.ndarray) -> Any:
        start = time.perf_counter()
        parts = [self.compute(part) for part in _tensor(pixels).split(self.part)]
        values = self.joined(parts)
        self.seconds += time.perf_counter() - start
        return values

    def finish(self, begun: Any) -> Values:
        values: Values = begun
        return values

    def joined(self, parts: Iterable[Sequence[Tensor]]) -> Values:
        return {name: torch.cat(views).contiguous().numpy() for name, views in zip(self.views.names, zip(*parts))}


class CudaEngine(TorchEngine):
    """The network on a GPU: pixels are copied there from pinned memory while the batch before them is computed.

    `seconds` is the time that the GPU computes, by its own clock.
    """

    ahead = 2

    def __init__(self, views: Views, batch: int, part: int, precision: str) -> None:
        super().__init__(views, batch, part, precision)
        self.copies = torch.cuda.Stream(self.device)

    def begin(self, pixels: np.ndarray) -> Any:
        return [self._begin(part) for part in _tensor(pixels).split(self.part)]

    def _begin(self, pixels: Tensor) -> tuple[list[Tensor], Any, Any]:
        stream = torch.cuda.current_stream(self.device)
        start, computed, done = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        with torch.cuda.stream(self.copies):
            there = pixels.pin_memory().to(self.device, non_blocking=True)
        stream.wait_stream(self.copies)
        there.record_stream(stream)
        start.record(stream)
        views = self.compute(there)
        computed.record(stream)
        # on the same stream: a captured graph writes its next outputs to the memory of these
        back = [view.to("cpu", non_blocking=True) for view in views]
        done.record(stream)
        return back, (start, computed), done

    def finish(self, begun: Any) -> Values:
        for _, (start, computed), done in begun:
            done.synchronize()
            self.seconds += start.elapsed_time(computed) / 1000
        return self.joined(back for back, _, _ in begun)


class CompileEngine(TorchEngine):
    """The network through torch.compile with its weights folded in as constants (Inductor's freezing)."""

    def __init__(self, views: Views, batch: int, part: int, precision: str) -> None:
        super().__init__(views, batch, part, precision)
        _compile(self, options={"freezing": True})


class CudaCompileEngine(CudaEngine):
    """The network through torch.compile as one captured CUDA graph."""

    def __init__(self, views: Views, batch: int, part: int, precision: str) -> None:
        super().__init__(views, batch, part, precision)
        _compile(self, mode="reduce-overhead")

    def compute(self, pixels: Tensor) -> tuple[Tensor, ...]:
        torch.compiler.cudagraph_mark_step_begin()
        return super().compute(pixels)


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
        self.last_end = 0.0

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
        for request in requests:
            request.wait()
        end = max(start + request.latency / 1000 for start, request in zip(starts, requests))
        self.seconds += max(0.0, end - max(starts[0], self.last_end))
        self.last_end = end
        self.idle.append(requests)
        return values


def _compile(engine: TorchEngine, **how: Any) -> None:
    """Puts torch.compile in front of the network and compiles it; raises `Unavailable` where that cannot be."""
    engine.call = torch.compile(engine.views, dynamic=False, **how)
    pixels = torch.zeros((engine.part, *engine.views.image_shape), dtype=torch.uint8, device=engine.device)
    try:
        engine.compute(pixels)
    except Exception as error:  # compilers raise what they like; nothing is lost of it
        if is_of_memory(error):
            raise
        raise Unavailable(f"backend='compile': torch.compile fails here ({_in_brief(error)}); take backend='torch'") from error


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
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    shape = (batch, *views.image_shape)
    frontend = FrontEndManager().load_by_framework("pytorch")
    try:
        with torch.no_grad(), _root_logger_muted():
            program = torch.export.export(views, (torch.zeros(shape, dtype=torch.uint8),), strict=False)
            decoder = TorchFXPythonDecoder.from_exported_program(program)  # held, since the loaded model refers to it
            model = frontend.convert(frontend.load(decoder))
        model.reshape(list(shape))
    except Exception as error:  # export and conversion raise what they like; nothing is lost of it
        if is_of_memory(error):
            raise
        raise Unavailable(f"backend='openvino': OpenVINO cannot take this network ({_in_brief(error)}); "
                          "take backend='torch' or 'compile'") from error
    return model


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
