"""The forward pass of an extraction: batches of pixels in, arrays out, by the backend that is chosen once for a run."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from ..backbone import Backbone
from ..errors import BadArgument, MissingExtra, ZigguratError
from .backends import (
    CompileEngine,
    CudaCompileEngine,
    CudaEngine,
    Engine,
    OpenVinoEngine,
    TorchEngine,
    Unavailable,
    is_of_memory,
    largest_divisor,
    one_thread_each,
)
from .decoding import Preprocessing
from .outputs import Outputs
from .views import Views

__all__ = ["BACKENDS", "PRECISIONS", "Forward", "OutOfMemory", "Views", "make_forward"]

BACKENDS = ("auto", "torch", "compile", "openvino")
PRECISIONS = {"fp32": 0.9999, "bf16": 0.99}
"""What numbers are computed in, and the least cosine to eager float32 at which a backend is taken."""
PART = 4
"""Images at once in a thread of the CPU: what took EfficientNet the least time of it, from 1 to 32."""


class OutOfMemory(ZigguratError, MemoryError):
    """A forward pass for which there is not enough memory with a single image either."""


class Forward:
    """Runs a network over batches: `for tag, values in forward.stream(batches)`.

    `backend` ('torch', 'compile' or 'openvino') and `precision` ('fp32' or 'bf16') are what was chosen, `reason` says why,
    for people. `shapes` are those of the outputs by name, without the batch. `batch_size`, `device` and `threads` are as
    given. `seconds` is how long it has computed so far; on a GPU, by the GPU's own clock.
    """

    def __init__(self, backend: str, reason: str, engine: Engine, build: Callable[[int], Engine], threads: int) -> None:
        self.backend, self.reason, self.threads = backend, reason, threads
        self.precision, self.batch_size = engine.precision, engine.batch
        self.shapes: dict[str, tuple[int, ...]] = engine.views.shapes
        self.device: torch.device = engine.views.scale.device
        self._engine, self._build = engine, build

    @property
    def seconds(self) -> float:
        return self._engine.seconds

    def stream(self, batches: Iterable[tuple[Any, np.ndarray]]) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        """The outputs of each batch with its tag, in order.

        `batches` are pairs of anything and uint8 pixels (`batch_size` H W C), read a few ahead; an array given may not be
        written to again. Outputs are float32 by name. Where memory does not suffice, a batch is computed in halves, in
        quarters and so on, and so are all after it; the last bits of the numbers may then be others. Raises `OutOfMemory`
        when a single image is too much. While it lasts, torch has one thread a call.
        """
        begun: deque[tuple[Any, np.ndarray, Engine, Any]] = deque()
        with one_thread_each():
            try:
                for tag, pixels in batches:
                    begun.append((tag, pixels, *self._begin(self._checked(pixels))))
                    if len(begun) > self._engine.ahead:
                        yield self._finish(*begun.popleft())
                while begun:
                    yield self._finish(*begun.popleft())
            finally:
                for _, _, engine, unread in begun:  # of a caller that has seen enough
                    with suppress(MemoryError, RuntimeError):
                        engine.finish(unread)

    def _checked(self, pixels: np.ndarray) -> np.ndarray:
        expected = (self.batch_size, *self._engine.views.image_shape)
        if pixels.shape != expected or pixels.dtype != np.uint8:
            raise BadArgument(f"a batch of {pixels.dtype} {pixels.shape}: give uint8 {expected}, zeros where there is no image")
        return pixels

    def _begin(self, pixels: np.ndarray) -> tuple[Engine, Any]:
        while True:
            try:
                return self._engine, self._engine.begin(pixels)
            except (MemoryError, RuntimeError) as error:
                self._halve(self._engine, error)

    def _finish(self, tag: Any, pixels: np.ndarray, engine: Engine, begun: Any) -> tuple[Any, dict[str, np.ndarray]]:
        while True:
            try:
                return tag, engine.finish(begun)
            except (MemoryError, RuntimeError) as error:
                self._halve(engine, error)
            engine, begun = self._begin(pixels)

    def _halve(self, failed: Engine, error: BaseException) -> None:
        """Goes over to parts of half the size, unless that was done since `failed` began; raises what is not of memory."""
        if not is_of_memory(error):
            raise error
        if self._engine is not failed:
            return
        if failed.part == 1:
            raise _too_large(failed.views.image_shape[:2]) from error
        engine = self._build(largest_divisor(failed.batch, failed.part // 2))
        engine.seconds = failed.seconds
        self._engine = engine


def make_forward(
    model: Backbone,
    outputs: Outputs,
    preprocessing: Preprocessing,
    *,
    backend: str = "auto",
    precision: str = "fp32",
    batch_size: int = 32,
    device: str | torch.device = "auto",
    threads: int | None = None,
) -> Forward:
    """The forward pass of `model` for `outputs` of pixels prepared as `preprocessing` says.

    The model is taken over: moved to `device` ('auto' is a GPU where there is one), put into evaluation mode and
    channels_last memory. `backend` 'auto' is OpenVINO on a CPU where it is installed, takes the network and agrees with
    torch on a batch of noise, and torch everywhere else: never by a measurement of time, so that two runs on one machine
    choose the same. OpenVINO and torch.compile are held against torch in float32 before they are taken: the cosine of
    each output of each image is at least 0.9999 with `precision` 'fp32' and 0.99 with 'bf16'. On a CPU, `threads` (all
    cores) parts of a batch are computed at once.

    Raises `BadArgument` for what cannot work, a backend asked for by name that cannot run among it, and `MissingExtra`
    for 'openvino' where it is not installed.
    """
    if backend not in BACKENDS:
        raise BadArgument(f"backend={backend!r}: give one of {', '.join(BACKENDS)}")
    if precision not in PRECISIONS:
        raise BadArgument(f"precision={precision!r}: give {' or '.join(PRECISIONS)}")
    if batch_size < 1 or (threads is not None and threads < 1):
        raise BadArgument(f"batch_size={batch_size}, threads={threads}: give 1 or more")
    device = _device(device)
    is_cpu = device.type == "cpu"
    count = threads or os.cpu_count() or 1
    try:
        views = Views(model.to(device), outputs, preprocessing)
    except (MemoryError, RuntimeError) as error:
        if is_of_memory(error):
            raise _too_large(preprocessing.size) from error
        raise

    def of(name: str, part: int) -> Engine:
        if is_cpu or name == "openvino":
            on_cpu = {"torch": TorchEngine, "compile": CompileEngine, "openvino": OpenVinoEngine}[name]
            return on_cpu(views, batch_size, part, precision, count)
        return {"torch": CudaEngine, "compile": CudaCompileEngine}[name](views, batch_size, part, precision)

    def forward(name: str, why: str) -> Forward:
        engine = of(name, largest_divisor(batch_size, PART) if is_cpu else batch_size)
        package = "openvino" if name == "openvino" else "torch"
        reason = f"{name} ({package} {version(package)}, {precision} on {device.type}): {why}"
        made = Forward(name, reason, engine, partial(of, name), count)
        if name != "torch":
            cosine = _agreement(made, views)
            if not cosine >= PRECISIONS[precision]:
                raise Unavailable(f"backend={name!r} differs from torch for this network: the cosine on a batch of noise is "
                                  f"{cosine:.6f}, and {PRECISIONS[precision]} is required; take backend='torch'")
            made.reason += f"; cosine to torch in float32 {cosine:.6f}"
            engine.seconds = 0.0
        return made

    if backend != "auto":
        return forward(backend, "asked for")
    if not is_cpu:
        return forward("torch", "the default on a GPU")
    try:
        return forward("openvino", "the fastest on a CPU")
    except (MissingExtra, Unavailable) as error:
        return forward("torch", str(error))


def _too_large(size: Sequence[int]) -> OutOfMemory:
    return OutOfMemory(f"not enough memory for the forward pass of a single image of {size[0]} x {size[1]} pixels; take "
                       "smaller images, fewer outputs, a smaller network or a device with more memory")


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise BadArgument(f"device={device!r}: give auto, cpu, cuda or cuda:0, say") from error
    if chosen.type not in ("cpu", "cuda"):
        raise BadArgument(f"device={str(device)!r}: the forward pass runs on cpu or cuda")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise BadArgument(f"device={str(device)!r}: torch finds no GPU here; give cpu or auto")
    return chosen


def _agreement(forward: Forward, views: Views) -> float:
    """The least cosine of any output of two images of noise to those of torch in float32; NaN where there is one."""
    height, width, channels = views.image_shape
    coarse = np.random.default_rng(0).integers(0, 256, (2, -(-height // 16), -(-width // 16), channels), np.uint8)
    pixels = np.zeros((forward.batch_size, height, width, channels), np.uint8)
    count = min(2, forward.batch_size)
    pixels[:count] = coarse.repeat(16, axis=1).repeat(16, axis=2)[:count, :height, :width]
    with torch.inference_mode():
        exact = views(torch.from_numpy(pixels[:count]).to(views.scale.device))
    ((_, found),) = forward.stream([(None, pixels)])
    cosines = [
        _cosine(one.astype(np.float64).ravel(), other.cpu().double().numpy().ravel())
        for name, others in zip(views.names, exact) for one, other in zip(found[name], others)
    ]
    return float(np.min(cosines))


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    norms = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / norms) if norms else float(not one.any() and not other.any())
