"""A network as a file for other runtimes, checked in them: ONNX, OpenVINO, torch.export, AOTInductor, Core ML.

    ziggurat.export(model, "resnet50.onnx")                       # any batch, height and width
    network = ziggurat.exporting.open("resnet50.onnx")            # in the format's own runtime
    scores = network(images)["scores"]

Names are loaded when they are first used; importing this package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..lazy import LazyNames

_HOME = LazyNames(__name__, {"export": "FORMATS Exported prepare", "loaded": "Loaded open"})

__all__ = ["FORMATS", "Exported", "Loaded", "prepare"]  # and open, which is not to take the builtin's place

if TYPE_CHECKING:
    from .export import FORMATS as FORMATS
    from .export import Exported as Exported
    from .export import prepare as prepare
    from .loaded import Loaded as Loaded
    from .loaded import open as open


def __getattr__(name: str) -> Any:
    return _HOME.imported(name)


def __dir__() -> list[str]:
    return _HOME.listed()
