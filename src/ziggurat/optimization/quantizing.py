"""int8 by the quantisers of OpenVINO (NNCF) and of ONNX Runtime, their ranges found on calibration images.

Weights are quantised by output channel, and what flows between layers by tensor. On CPUs without VNNI, two products of
bytes are added up in 16 bits, which overflow in silence: there, weights have 7 bits (NNCF's overflow fix, ONNX Runtime's
reduced range).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadArgument
from ..packages import require_packages
from ..view import View
from .openvino_conversion import unreported
from .program import Unavailable, in_brief, is_of_memory

__all__ = ["batches", "quantize_onnx", "quantized_openvino", "require_nncf"]


def require_nncf() -> None:
    """Raises `MissingExtra` where NNCF, OpenVINO's quantiser, is not installed."""
    require_packages("precision='int8' with backend='openvino'", ["nncf"], "int8", "take backend='onnxruntime'")


def quantized_openvino(model: Any, view: View, example: Tensor, calibration: Tensor | None) -> Any:
    """`model`, an `openvino.Model` of `view` for batches like `example`, in int8 by NNCF.

    Raises `MissingExtra`, `BadArgument` for calibration images that are none, and `Unavailable` where NNCF fails.
    """
    require_nncf()
    data = batches(calibration, example)
    with _quiet("nncf"), unreported("nncf"):
        import nncf

        advanced = nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.DISABLE if _has_vnni() else nncf.OverflowFix.ENABLE)
        with _unavailable("openvino", "NNCF"):
            return nncf.quantize(model, nncf.Dataset([batch.numpy() for batch in data]), subset_size=len(data),
                                 model_type=nncf.ModelType.TRANSFORMER if _has_tokens(view) else None,
                                 advanced_parameters=advanced)


def quantize_onnx(source: Path, target: Path, view: View, example: Tensor, calibration: Tensor | None) -> None:
    """Writes the ONNX file `source` of `view`, for batches like `example`, as `target` in int8, by ONNX Runtime's quantiser.

    Of a network of tokens, the matrix products alone are. Raises as `quantized_openvino` does.
    """
    data = iter([{"images": batch.numpy()} for batch in batches(calibration, example)])
    with _quiet(""):
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

        class Reader(CalibrationDataReader):
            def get_next(self) -> dict[str, Any] | None:
                return next(data, None)

        with _unavailable("onnxruntime", "its quantiser"):
            quantize_static(onnx.load(source), target, Reader(), per_channel=True, reduce_range=not _has_vnni(),
                            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, use_external_data_format=True,
                            op_types_to_quantize=["Conv", "Gemm", "MatMul"] if _has_tokens(view) else None)


def batches(calibration: Tensor | None, example: Tensor) -> list[Tensor]:
    """`calibration` (N C H W) in batches of the size of `example`; the last one is filled up with the first images.

    Raises `BadArgument` where it is None, or its images are not like those of `example`.
    """
    like = f"({', '.join(map(str, ('N', *example.shape[1:])))}), {str(example.dtype).removeprefix('torch.')}"
    if calibration is None:
        raise BadArgument(f"precision='int8' needs calibration images: give calibration=, a tensor {like}, of 100 to 300 images "
                          "of the kind that will come, prepared like them")
    if calibration.ndim != 4 or calibration.shape[1:] != example.shape[1:] or calibration.dtype != example.dtype or not len(calibration):
        raise BadArgument(f"calibration: a tensor {tuple(calibration.shape)}, {str(calibration.dtype).removeprefix('torch.')}, "
                          f"and the network's images are {like}; give these, 100 to 300 of the kind that will come")
    size = len(example)
    rows = torch.arange(-(-len(calibration) // size) * size) % len(calibration)
    return list(calibration.detach().cpu()[rows].split(size))


def _has_tokens(view: View) -> bool:
    return getattr(view.model, "layout", "NCHW") != "NCHW"


def _has_vnni() -> bool:
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_vnni") or can.get("avx_vnni")) or can.get("architecture") not in ("x86_64", "AMD64")


@contextmanager
def _unavailable(backend: str, quantiser: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # quantisers raise what they like; nothing is lost of it
        if is_of_memory(error):
            raise
        raise Unavailable(f"backend='{backend}', precision='int8': {quantiser} cannot take this network ({in_brief(error)}); "
                          "take precision='fp32', or another backend") from error


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keeps a quantiser's bars of progress off the terminal, and its advice and warnings too, which are not the user's."""
    logger = logging.getLogger(name)
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled
