"""A view of a network as an ONNX model, by torch's exporter, without what the exporter prints."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..packages import require_packages
from ..view import View, evaluating
from .program import Unavailable, in_brief, is_of_memory

__all__ = ["BATCH", "INPUT", "import_onnxruntime", "onnx_of", "quiet"]

INPUT = "images"
BATCH = "batch"  # what the free dimension is called
ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
WITH_ATTENTION = 23  # the first version of ONNX's operators with one for it
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def import_onnxruntime() -> Any:
    """The package onnxruntime; raises `MissingExtra` where it, or what torch's exporter needs, is not installed."""
    require_packages("backend='onnxruntime'", PACKAGES, "onnx", "take another backend")
    import onnxruntime

    return onnxruntime


def onnx_of(view: View, images: Tensor) -> Any:
    """`view` for batches of any size of images like these, as torch's `ONNXProgram`; for `images` alone where one size is needed.

    The batch dimension, where it is free, is called 'batch', the input 'images', the outputs as in `view.names`. Raises
    `Unavailable` where the exporter cannot take the network.
    """
    several = images if len(images) > 1 else images.repeat(2, 1, 1, 1)  # an export takes 1 for a constant
    free = {INPUT: {0: torch.export.Dim(BATCH)}}
    try:
        with evaluating(view), quiet():
            try:
                return _exported(view, several, free)
            except Exception as error:  # the batch is no free dimension here: a fixed one, or its cause, comes next
                if is_of_memory(error):
                    raise
                return _exported(view, images, None)
    except Exception as error:  # the exporter raises what it likes; nothing is lost of it
        if is_of_memory(error):
            raise
        raise Unavailable("backend='onnxruntime': torch cannot export this network to ONNX "
                          f"({in_brief(error)}); take another backend") from error


def _exported(view: View, images: Tensor, free: Any) -> Any:
    with torch.no_grad():
        program = torch.export.export(view, (images,), dynamic_shapes=free, strict=False)
        attends = any(node.target is ATTENTION for node in program.graph.nodes)
        return torch.onnx.export(program, dynamo=True, dynamic_shapes=free and {INPUT: {0: BATCH}}, input_names=[INPUT],
                                 output_names=list(view.names), opset_version=WITH_ATTENTION if attends else None, verbose=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps torch's exporters from printing progress, and from warning and logging of what they then raise, too."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
