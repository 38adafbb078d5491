"""Programs of OpenVINO on a CPU: parts of a batch in a stream each, or the whole batch by all threads."""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor

from ..view import View
from .memory import OutputMemory
from .openvino_conversion import converted, import_openvino
from .program import Program, Recipe, Unavailable
from .quantizing import quantized_openvino, require_nncf

__all__ = ["OpenVinoProgram", "build", "recipes"]

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}  # with int8, of what is not quantised
CAPABILITIES = {"bf16": "BF16", "fp16": "FP16"}


class OpenVinoProgram(Program):
    """A view in OpenVINO, which reads the images and writes the outputs where torch has them.

    `threads` parts are computed at a time, in one thread each; a part of 0 images is the whole batch. Several threads may
    call it, and wait for each other: one call has work for all cores.
    """

    def __init__(self, view: View, recipe: Recipe, model: Any, batch: int, threads: int) -> None:
        super().__init__(recipe)
        openvino = import_openvino()
        options = {"INFERENCE_PRECISION_HINT": HINTS[recipe.precision], "INFERENCE_NUM_THREADS": threads,
                   "NUM_STREAMS": threads if recipe.part else 1, "ENABLE_CPU_PINNING": False}
        self.compiled = openvino.Core().compile_model(model, "CPU", options)
        self.tensor = openvino.Tensor
        self.part, self.shapes = recipe.part or batch, view.shapes
        self.requests = [self.compiled.create_infer_request() for _ in range(batch // self.part)]
        self.memory = OutputMemory()
        self.one_call = threading.Lock()

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        batch = len(images)
        assert batch <= self.part * len(self.requests) and batch % self.part == 0, f"{batch} images in parts of {self.part}"
        pixels = images.detach().contiguous()
        outputs = tuple(self.memory.empty((batch, *shape)) for shape in self.shapes)
        with self.one_call:
            begun = []
            try:
                for request, first in zip(self.requests, range(0, batch, self.part)):
                    rows = slice(first, first + self.part)
                    request.set_input_tensor(self._shared(pixels[rows]))
                    for index, output in enumerate(outputs):
                        request.set_output_tensor(index, self._shared(output[rows]))
                    request.start_async()
                    begun.append(request)
            finally:
                errors = [error for error in map(_ended, begun) if error is not None]
        if errors:
            raise errors[0]
        return outputs

    def _shared(self, tensor: Tensor) -> Any:
        return self.tensor(tensor.numpy(), shared_memory=True)


def _ended(request: Any) -> RuntimeError | None:
    """Waits for `request`, which writes to memory that is ours, and gives the error that ended it."""
    try:
        request.wait()
    except RuntimeError as error:
        return error
    return None


def recipes(backend: str, view: View, images: Tensor, precision: str, threads: int) -> list[Recipe]:
    """What is worth trying for `images`, the best guess first.

    Raises `MissingExtra` where OpenVINO is not installed, and `Unavailable` where it cannot compute in `precision` here.
    """
    openvino = import_openvino()
    if images.device.type != "cpu":
        raise Unavailable(f"backend='openvino' runs on the CPU and the network is on {images.device}; move it to the CPU, "
                          "or take backend='compile'")
    if precision == "int8":
        require_nncf()
    needed = CAPABILITIES.get(precision)
    if needed and needed not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Unavailable(f"backend='openvino' has no {precision} on this CPU, which lacks the instructions; "
                          "take precision='fp32' or 'int8'")
    return [Recipe("openvino", precision, part) for part in parts(len(images), threads)]


def parts(batch: int, threads: int) -> list[int]:
    """Sizes of parts worth trying: single images, a part a thread, and 0, the whole batch by all threads together."""
    found = [1] if batch > 1 else []
    if batch % threads == 0 and batch // threads > 1:
        found.append(batch // threads)
    return [*found, 0] if threads > 1 or batch > 1 else [0]


def build(view: View, images: Tensor, recipe: Recipe, threads: int, calibration: Tensor | None = None) -> OpenVinoProgram:
    """`recipe`, made for batches like `images`.

    `calibration` (N C H W) is what int8 is fitted to. Raises `Unavailable` where OpenVINO cannot take the network, and
    `BadArgument` for int8 without calibration.
    """
    example = images[: recipe.part or len(images)]
    model = converted(view, example)
    if recipe.precision == "int8":
        model = quantized_openvino(model, view, example, calibration)
    return OpenVinoProgram(view, recipe, model, len(images), threads)
