"""OpenVINO's files (.xml, weights in .bin beside it), checked in OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import BadArgument, ExportFailed
from ..optimization.onnx_conversion import quiet
from ..optimization.openvino_conversion import import_openvino, root_logger_muted
from ..view import View
from .export import exported_program
from .loaded import Loaded
from .resampling import ANTIALIASED, interpolation_as_products

__all__ = ["open", "write"]

SECTION = "ziggurat"  # of the runtime information that a model of OpenVINO's carries


def write(view: View, example: Tensor, path: Path, dynamic: Sequence[str], metadata: dict[str, str]) -> None:
    """Writes an .xml and a .bin beside it, the weights in fp32."""
    openvino = import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    program = interpolation_as_products(exported_program(view, example, dynamic), ANTIALIASED)
    frontend = FrontEndManager().load_by_framework("pytorch")
    with quiet(), root_logger_muted():  # torch 2.11 warns of how it is used there
        decoder = TorchFXPythonDecoder.from_exported_program(program)  # held: the frontend does not
        try:
            model = frontend.convert(frontend.load(decoder))
        except openvino.frontend.OpConversionFailure as error:
            causes = [line.removeprefix("-- ") for line in str(error).splitlines() if line.startswith("-- ")]
            raise ExportFailed(f"format='openvino': OpenVINO cannot convert this network ({'; '.join(causes)}); "
                               "take another format") from error
    (images,) = model.inputs
    images.get_tensor().set_names({"images"})
    for output, name in zip(model.outputs, view.names, strict=True):
        output.get_tensor().set_names({name})
    axes = zip(("batch", "channels", "height", "width"), example.shape)
    model.reshape([-1 if axis in dynamic else side for axis, side in axes])
    for key, value in metadata.items():
        model.set_rt_info(value, [SECTION, key])
    openvino.save_model(model, path, compress_to_fp16=False)


def open(path: Path) -> Loaded:
    """An .xml, and the .bin beside it, in OpenVINO on the CPU, in fp32."""
    core = import_openvino().Core()
    model = core.read_model(path)
    if not model.has_rt_info([SECTION, "outputs"]):
        raise BadArgument(f"{path} states no metadata of ziggurat's; give a file that ziggurat.export wrote")
    metadata = model.get_rt_info(SECTION).value
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images: Tensor) -> Sequence[Any]:
        found = compiled([images.numpy()])
        return [found[output].copy() for output in compiled.outputs]

    return Loaded("openvino", path, run, [output.get_any_name() for output in compiled.outputs], metadata)
