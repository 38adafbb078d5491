"""A view compiled by AOTInductor: a .pt2 of machine code, for machines like this one, that needs no compiler to run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ExportFailed
from ..view import View
from .loaded import Loaded

__all__ = ["open", "write"]

OWN = "ziggurat_"  # in front of our keys, since torch keeps its own beside them


def write(view: View, example: Tensor, path: Path, dynamic: Sequence[str], metadata: dict[str, str]) -> None:
    """Writes `view` as `FormatModule.write` says; raises `ExportFailed` where there is no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    from .export import exported_program

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ExportFailed("format='aoti': no C++ compiler was found; install g++ or clang++, or name one in the "
                           "environment variable CXX, or take format='torch'") from error
    program = exported_program(view, example, dynamic)
    stored = {OWN + key: value for key, value in metadata.items()}
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(path), inductor_configs={"aot_inductor.metadata": stored}
    )


def open(path: Path) -> Loaded:
    """The package at `path`, on the machine that it was compiled for or one like it."""
    package = torch._inductor.aoti_load_package(str(path))
    metadata = {key.removeprefix(OWN): value for key, value in package.get_metadata().items() if key.startswith(OWN)}

    @torch.no_grad()
    def run(images: Tensor) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = package(images)
        return outputs

    return Loaded("aoti", path, run, json.loads(metadata["outputs"]), metadata)
