"""A checkpoint of any kind that `reading` knows, rewritten as a safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ziggurat.errors import BadArgument, CheckpointMismatch
from ziggurat.weights.hub import aside
from ziggurat.weights.reading import MINDSPORE, ORIGIN, made_by_mindspore, read_state_dict

__all__ = ["Converted", "convert_checkpoint"]

ENDING = ".safetensors"


class Converted(NamedTuple):
    """What was written: how many tensors, and the bytes of the file."""

    tensors: int
    bytes: int


def convert_checkpoint(
    source: str | os.PathLike[str], target: str | os.PathLike[str], ema: bool | None = None, overwrite: bool = False
) -> Converted:
    """Writes the state dict in a checkpoint (`reading.read_state_dict`) to a safetensors file, dtypes as they are.

    Of a training checkpoint, `ema` takes the averaged weights (True: it must have them), the last (False), or, as
    loading does, PyTorch's averaged ones if it has them and MindSpore's last (None). Metadata says where tensors come
    from MindSpore (`reading.made_by_mindspore`). The file is written aside and takes its name when it is complete.
    Raises `BadArgument` for a target that exists, unless `overwrite`, and one that cannot be written, and what
    `read_state_dict` raises, or `CheckpointMismatch` for one without tensors.
    """
    target = Path(target)
    if target.suffix != ENDING:
        raise BadArgument(f"{target}: what is written is safetensors; give a name that ends in {ENDING}")
    if target.is_dir() or (target.exists() and not overwrite):
        raise BadArgument(f"{target} exists already; give another name"
                          f"{'' if target.is_dir() else ', or overwrite=True (--force) to replace it'}")
    tensors = read_state_dict(source, use_ema=ema, need_ema=ema is True)
    if not tensors:
        raise CheckpointMismatch(f"{source} holds no tensors; give a checkpoint of a network.")
    for name, tensor in tensors.items():
        if tensor.dtype == torch.complex128:
            raise CheckpointMismatch(f"{source} holds {name!r} in complex128, which safetensors lacks; save it as complex64.")
    write(tensors, target, {ORIGIN: MINDSPORE} if made_by_mindspore(source) else {})
    return Converted(len(tensors), target.stat().st_size)


def write(tensors: Mapping[str, Tensor], target: Path, said: Mapping[str, str]) -> None:
    """Write tensors as safetensors, which knows no two that share memory, nor any that skip part of theirs."""
    import safetensors.torch

    plain, seen = {}, set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage()
        is_whole = tensor.is_contiguous() and memory.nbytes() == tensor.nbytes and memory.data_ptr() not in seen
        seen.add(memory.data_ptr())
        plain[name] = tensor if is_whole else tensor.clone().contiguous()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with aside(target) as path:
            safetensors.torch.save_file(plain, path, metadata={"format": "pt", **said})
    except (OSError, safetensors.SafetensorError) as error:
        raise BadArgument(f"{target} cannot be written: {str(error).rstrip('.')}") from error
