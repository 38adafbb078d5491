"""A module of torch as a model of OpenVINO's, and OpenVINO without what it reports of its use."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..packages import require_packages
from .program import Unavailable, in_brief, is_of_memory

__all__ = ["converted", "import_openvino", "root_logger_muted", "unreported"]

REPORTER = "openvino_telemetry"


def import_openvino(instead: str = "another backend") -> Any:
    """The package openvino, without the one by which its import and its converter report their use over the network.

    Raises `MissingExtra`, which advises to take `instead`. OpenVINO has a stand-in for where the reporter is not installed.
    """
    require_packages("backend='openvino'", ["openvino"], "openvino", f"take {instead}")
    with unreported("openvino"):
        import openvino

    return openvino


@contextmanager
def unreported(package: str) -> Iterator[None]:
    """Has the block import `package`, unless that was done before, as if the package that reports its use were missing.

    That one writes to the home folder too, and the command that it offers to object with would as well.
    """
    if package in sys.modules:
        yield
        return
    held = sys.modules.pop(REPORTER, None)
    sys.modules[REPORTER] = None  # type: ignore[assignment]  # importing it raises ImportError
    try:
        yield
    finally:
        del sys.modules[REPORTER]
        if held is not None:
            sys.modules[REPORTER] = held


def converted(module: nn.Module, example: Tensor, instead: str = "another backend") -> Any:
    """`module`, which takes one tensor, as an `openvino.Model` for tensors of the shape and type of `example`.

    Raises `Unavailable`, which advises to take `instead`, where the module cannot be converted.
    """
    import_openvino(instead)
    from openvino.frontend import FrontEndManager

    frontend = FrontEndManager().load_by_framework("pytorch")
    try:
        with torch.no_grad(), root_logger_muted():
            decoder = _traced(module, example) or _exported(module, example)  # held: the frontend does not
            model = frontend.convert(frontend.load(decoder))
        model.reshape(list(example.shape))
    except Exception as error:  # tracing, export and conversion raise what they like; nothing is lost of it
        if is_of_memory(error):
            raise
        raise Unavailable(f"backend='openvino': OpenVINO cannot take this network ({in_brief(error)}); take {instead}") from error
    return model


def _traced(module: nn.Module, example: Tensor) -> Any:
    """The network as it runs on black images; None where modules of others are in it, which may run otherwise on others.

    Tracing takes a tenth of the time of an export, and most of a small run is its start. Modules of ziggurat and torch
    branch on shapes only, which are fixed here.
    """
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    if not {type(part).__module__.partition(".")[0] for part in module.modules()} <= {"torch", __name__.partition(".")[0]}:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is deprecated, and of each branch
        traced = torch.jit.trace(module, (example,), check_trace=False, strict=False)
    return TorchScriptPythonDecoder(traced, example_input=(example,))


def _exported(module: nn.Module, example: Tensor) -> Any:
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    return TorchFXPythonDecoder.from_exported_program(torch.export.export(module, (example,), strict=False))


@contextmanager
def root_logger_muted() -> Iterator[None]:
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
