"""ONNX files, checked in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..optimization.onnx_conversion import quiet
from ..view import View
from .export import exported_program
from .loaded import Loaded
from .resampling import CUBIC, interpolation_as_products

__all__ = ["open", "write"]

LARGEST = 1_800_000_000  # bytes of weights in the file itself: protocol buffers end at 2 GiB


def write(view: View, example: Tensor, path: Path, dynamic: Sequence[str], metadata: dict[str, str]) -> None:
    """Writes an ONNX file; weights of more than 1.8 GB go into a second one, PATH.data."""
    program = exported_program(view, example, dynamic)
    if dynamic:  # ONNX Runtime refuses to make maps smaller by it where channels come last
        program = interpolation_as_products(program, CUBIC)
    axes = {i: axis for i, axis in enumerate(("batch", "channels", "height", "width")) if axis in dynamic}
    with quiet():
        written = torch.onnx.export(program, dynamo=True, dynamic_shapes={"images": axes} if axes else None,
                                    input_names=["images"], output_names=list(view.names), verbose=False)
    assert written is not None
    graph: Any = written.model.graph
    for part in (*graph.all_nodes(), *graph.inputs, *graph.outputs):
        part.metadata_props.clear()  # where in torch's program it came from, paths of this machine among it
    written.model.metadata_props.update(metadata)
    weights = sum(tensor.nbytes for tensor in view.state_dict().values())
    written.save(path, external_data=weights > LARGEST)


def open(path: Path) -> Loaded:
    """An ONNX file in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Sequence[Any]:
        outputs: Sequence[Any] = session.run(None, {"images": images.numpy()})
        return outputs

    names = [output.name for output in session.get_outputs()]
    return Loaded("onnx", path, run, names, session.get_modelmeta().custom_metadata_map)
