"""Programs of ONNX Runtime: parts of a batch in a thread each, or the whole batch by all threads."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ..view import View
from .memory import OutputMemory
from .onnx_conversion import BATCH, INPUT, import_onnxruntime, onnx_of
from .onnx_rewriting import rewrite
from .openvino_program import parts
from .program import PartsProgram, Program, Recipe, Unavailable, in_brief, is_of_memory
from .quantizing import quantize_onnx

__all__ = ["PartsOnnxRuntimeProgram", "WholeOnnxRuntimeProgram", "build", "recipes"]

TYPES = {torch.float32: np.float32, torch.uint8: np.uint8}


class Session:
    """An inference session that reads and writes memory of torch's, on one device; several threads may use it at once."""

    def __init__(self, session: Any, device: torch.device, graph: Graph) -> None:
        self.session, self.device, self.graph = session, device, graph  # the graph: its file may be mapped
        self.names = [output.name for output in session.get_outputs()]

    def __call__(self, images: Tensor, outputs: Sequence[Tensor]) -> None:
        binding = self.session.io_binding()
        place = self.device.type, self.device.index or 0
        binding.bind_input(INPUT, *place, TYPES[images.dtype], tuple(images.shape), images.data_ptr())
        for name, output in zip(self.names, outputs, strict=True):
            binding.bind_output(name, *place, np.float32, tuple(output.shape), output.data_ptr())
        self.session.run_with_iobinding(binding)


class PartsOnnxRuntimeProgram(PartsProgram):
    """A view in ONNX Runtime on the CPU: `threads` parts at a time, in one thread each."""

    def __init__(self, recipe: Recipe, session: Session, shapes: Sequence[tuple[int, ...]], threads: int) -> None:
        super().__init__(recipe, shapes, threads)
        self.session = session

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return super().__call__(images.detach().contiguous())

    def write(self, images: Tensor, outputs: Sequence[Tensor]) -> None:
        self.session(images, outputs)


class WholeOnnxRuntimeProgram(Program):
    """A view in ONNX Runtime: the whole batch by all threads of the CPU, or by a GPU."""

    def __init__(self, recipe: Recipe, session: Session, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__(recipe)
        self.session, self.shapes, self.memory = session, tuple(shapes), OutputMemory()

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        images = images.detach().contiguous()
        if not images.is_cuda:
            outputs = tuple(self.memory.empty((len(images), *shape)) for shape in self.shapes)
        else:  # ONNX Runtime computes in a stream of its own, and waits for it before it returns
            outputs = tuple(torch.empty((len(images), *shape), device=images.device) for shape in self.shapes)
            torch.cuda.current_stream(images.device).synchronize()
        self.session(images, outputs)
        return outputs


class Graph:
    """An ONNX model in a file of its own, which goes away with this object."""

    def __init__(self, free_batch: bool) -> None:
        folder = tempfile.mkdtemp(prefix="ziggurat-onnx-")
        self.path = Path(folder, "view.onnx")
        self.free_batch = free_batch
        weakref.finalize(self, _removed, folder)


def _removed(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


GRAPHS: WeakKeyDictionary[View, dict[tuple[int, bool], Graph]] = WeakKeyDictionary()
"""By the batch, which is 0 where it is free, and by whether it is rewritten."""


def recipes(backend: str, view: View, images: Tensor, precision: str, threads: int) -> list[Recipe]:
    """What is worth trying for `images`, the best guess first.

    Raises `MissingExtra` where ONNX Runtime or what the export needs is not installed, and `Unavailable` where it cannot
    compute in `precision`, or where the images are.
    """
    onnxruntime = import_onnxruntime()
    kind = images.device.type
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(kind)
    if provider not in onnxruntime.get_available_providers():
        raise Unavailable(f"backend='onnxruntime' as installed does not run on {kind}: for a GPU of NVIDIA's install "
                          "onnxruntime-gpu, or take backend='compile'")
    if precision not in ("fp32", "int8") or (precision == "int8" and kind != "cpu"):
        raise Unavailable(f"backend='onnxruntime' has no {precision} on {kind} here; it computes in fp32, and in int8 on the CPU")
    return [Recipe("onnxruntime", precision, part) for part in (parts(len(images), threads) if kind == "cpu" else [0])]


def build(view: View, images: Tensor, recipe: Recipe, threads: int, calibration: Tensor | None = None) -> Program:
    """`recipe`, made for batches like `images`.

    `calibration` (N C H W) is what int8 is fitted to. Raises `Unavailable` where the network cannot be exported or ONNX
    Runtime does not take it, and `BadArgument` for int8 without calibration.
    """
    example = images[: recipe.part or len(images)]
    # several threads within an operator gain nothing by the rewriting: spreading a gate is not one they share
    graph = _graph(view, example, rewritten=recipe.precision == "fp32" and recipe.part > 0)
    if recipe.precision == "int8":
        quantized = Graph(graph.free_batch)
        quantize_onnx(graph.path, quantized.path, view, example, calibration)
        graph = quantized
    session = _session(graph, images.device, recipe.part or len(images), 1 if recipe.part else threads)
    if recipe.part:
        return PartsOnnxRuntimeProgram(recipe, session, view.shapes, threads)
    return WholeOnnxRuntimeProgram(recipe, session, view.shapes)


def _session(graph: Graph, device: torch.device, batch: int, threads: int) -> Session:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    if threads == 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if graph.free_batch:
        options.add_free_dimension_override_by_name(BATCH, batch)
    provider: Any = ("CUDAExecutionProvider", {"device_id": device.index or 0}) if device.type == "cuda" else "CPUExecutionProvider"
    try:
        return Session(onnxruntime.InferenceSession(str(graph.path), options, providers=[provider]), device, graph)
    except Exception as error:  # its errors have no class in common; nothing is lost of it
        if is_of_memory(error):
            raise
        raise Unavailable(f"backend='onnxruntime': ONNX Runtime cannot take this network ({in_brief(error)}); "
                          "take another backend") from error


def _graph(view: View, part: Tensor, rewritten: bool) -> Graph:
    """The view as a file for batches like `part`, made once for all of them where it can be; `rewritten` for floats in parts."""
    made = GRAPHS.setdefault(view, {})
    free, fixed = (0, rewritten), (len(part), rewritten)
    if free not in made and fixed not in made:
        program = onnx_of(view, part)
        for kind in (False, True):  # both, since exporting takes the time
            if kind:
                rewrite(program.model)
            graph = Graph(free_batch=not isinstance(program.model.graph.inputs[0].shape[0], int))
            program.save(graph.path, external_data=True)
            made[0 if graph.free_batch else len(part), kind] = graph
    return made.get(free) or made[fixed]
