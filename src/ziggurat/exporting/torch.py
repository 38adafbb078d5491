"""A view as a program of torch.export: a .pt2 that torch opens without ziggurat, with the metadata in it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..view import View
from .loaded import Loaded

__all__ = ["open", "write"]

METADATA = "metadata.json"  # under extra/ in the file, and by this name for `torch.export.load(path, extra_files={...})`


def write(view: View, example: Tensor, path: Path, dynamic: Sequence[str], metadata: dict[str, str]) -> None:
    """Writes `view` as `FormatModule.write` says."""
    from .export import exported_program

    program = exported_program(view, example, dynamic)
    torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})


def open(path: Path) -> Loaded:
    """The program at `path`, run by torch without gradients."""
    extra = {METADATA: ""}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11, of the weights that it reads
        module = torch.export.load(path, extra_files=extra).module()
    metadata = json.loads(extra[METADATA])

    @torch.no_grad()
    def run(images: Tensor) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = module(images)
        return outputs

    return Loaded("torch", path, run, json.loads(metadata["outputs"]), metadata)
