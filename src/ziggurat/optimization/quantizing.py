"""int8 by the quantisers of OpenVINO (NNCF) and ONNX Runtime, fitted to calibration images."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import BadArgument
from ..view import View

__all__ = ["quantized_onnx", "quantized_openvino"]


def quantized_openvino(model: Any, view: View, example: Tensor, calibration: Tensor | None) -> Any:
    raise BadArgument("soon")


def quantized_onnx(source: Path, target: Path, calibration: Tensor | None, part: int) -> None:
    raise BadArgument("soon")
