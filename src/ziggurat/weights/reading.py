"""A checkpoint file as a state dict: names to plain tensors, and never code that the file holds.

What a file is, is read from its first bytes, not from its name: safetensors, PyTorch (zip and the older pickle
stream), MindSpore or NumPy `.npz`. All but the pickle stream and NumPy's are memory-mapped: a tensor is read from disk
when it is used. Training checkpoints are unwrapped: as timm does, PyTorch's averaged (EMA) weights are preferred; as
MindCV does, MindSpore's last ones. The prefixes that `DistributedDataParallel` and `torch.compile` put before names are
removed.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ziggurat.errors import BadArgument, CheckpointMismatch, SourceUnavailable, UnsafeCheckpoint
from ziggurat.weights.adapting import by_order, mismatch, remapped
from ziggurat.weights.mindspore import is_mindspore, read_mindspore, state_dicts

__all__ = [
    "clean_state_dict",
    "load_checkpoint",
    "load_state_dict",
    "load_state_dict_from_path",
    "made_by_mindspore",
    "preferred_file",
    "read_state_dict",
]

logger = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model", "encoder")
AVERAGED = ("state_dict_ema", "model_ema")
ORIGIN, MINDSPORE = "origin", "mindspore"  # what safetensors that we converted say of where they come from
PREFIXES = re.compile(r"^(?:(?:module|_orig_mod)\.)+")

# What a directory of weights is searched for, best first: names, then endings.
PLAIN_NAMES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
CLIP_NAMES = ("model.safetensors", *(f"pytorch_model.{ending}" for ending in ("safetensors", "bin", "pth")))
FILE_NAMES = PLAIN_NAMES + tuple(f"open_clip_{name}" for name in CLIP_NAMES)
FILE_ENDINGS = (".safetensors", ".pth", ".pth.tar", ".bin")

# What readers raise on damaged bytes; all of it is reported with its cause.
DAMAGE = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    zipfile.BadZipFile,
)


def read_state_dict(
    path: str | os.PathLike[str], use_ema: bool | None = None, need_ema: bool = False
) -> dict[str, Tensor]:
    """The tensors of a checkpoint file (or of a directory's `preferred_file`), on the CPU, named as in the bare model.

    `use_ema` prefers a training checkpoint's averaged weights to its last ones, or (False) takes the last; None prefers
    what the file's own framework does: PyTorch's the averaged, MindSpore's the last. With `need_ema` it must have
    averaged ones. MindSpore's normalisations come under torch's names. Raises `SourceUnavailable` for a file
    that is missing or damaged, `UnsafeCheckpoint` for one that would have to run code, `CheckpointMismatch` for one
    that holds no state dict.
    """
    path = preferred_file(path) if os.path.isdir(path) else Path(path)
    content = read_content(path)
    if use_ema is None:  # which only a checkpoint with averaged weights has to be asked
        use_ema = not (averaged(content) and made_by_mindspore(path))
    content = unwrap(content, use_ema or need_ema, path, need_ema)
    tensors = {}
    for name, value in clean_state_dict(content).items():
        if not isinstance(value, Tensor):
            raise CheckpointMismatch(
                f"{path} holds {name!r}, which is no tensor but of type {type(value).__name__}; allowed are a state "
                f"dict or a training checkpoint with one under {', '.join(WRAPPERS + AVERAGED)}. "
                "Save the state dict alone and load that."
            )
        tensors[name] = value.detach()
    return tensors


def made_by_mindspore(path: str | os.PathLike[str]) -> bool:
    """Whether the tensors of a file come from MindSpore: its `.ckpt`, its safetensors, or what we converted from these.

    Only headers are read. False for a file that is no checkpoint; raises `SourceUnavailable` for one that is missing.
    """
    path = preferred_file(path) if os.path.isdir(path) else Path(path)
    start = first_bytes(path)
    if start[8:9] != b"{":
        return is_mindspore(start)
    metadata = metadata_of(path)
    return metadata.get("format") == "ms" or metadata.get(ORIGIN) == MINDSPORE


def metadata_of(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; its tensors are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, *DAMAGE) as error:
        raise damaged(path, "safetensors", error) from error


def first_bytes(path: Path) -> bytes:
    """Enough of a file to tell its kind."""
    if not path.is_file():
        raise SourceUnavailable(f"there is no file {path}; give the path of a checkpoint.")
    try:
        with path.open("rb") as stream:
            return stream.read(32)
    except OSError as error:
        raise SourceUnavailable(f"{path} cannot be opened: {error.strerror}.") from error


def read_content(path: Path) -> Mapping[str, Any]:
    """What a file holds, by the kind that its first bytes show."""
    start = first_bytes(path)
    if start.startswith(b"PK\x03\x04"):
        return read_npz(path) if path.suffix.lower() == ".npz" else read_torch(path, mapped=True)
    if start[8:9] == b"{":
        return read_safetensors(path)
    if start.startswith(b"\x80"):
        return read_torch(path, mapped=False)
    if is_mindspore(start):
        return read_mindspore(path)
    raise SourceUnavailable(f"{path} is no checkpoint: {appearance(start)}. Fetch the file again.")


def appearance(start: bytes) -> str:
    """What a file that begins with these bytes is likely to be instead of a checkpoint."""
    if not start:
        return "it is empty"
    if start.startswith(b"version h"):
        return "it is a Git LFS pointer to the weights, not the weights"
    if start.lstrip().startswith(b"<"):
        return "it is a web page, perhaps an error message saved under the name of the weights"
    return f"it begins with {start[:9]!r}, neither safetensors, PyTorch, MindSpore nor NumPy"


def damaged(path: Path, kind: str, error: Exception) -> SourceUnavailable:
    cause = str(error).split("\n")[0].strip(" .") or type(error).__name__
    return SourceUnavailable(f"{path} ({path.stat().st_size} bytes) is a damaged {kind} file: {cause}. Fetch it again.")


def read_safetensors(path: Path) -> Mapping[str, Any]:
    """The tensors of a safetensors file, as views of the mapped file; MindSpore's sorted as those of its `.ckpt`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            is_of_mindspore = (file.metadata() or {}).get("format") == "ms"
    except (SafetensorError, *DAMAGE) as error:
        raise damaged(path, "safetensors", error) from error
    return state_dicts(tensors) if is_of_mindspore else tensors


def read_torch(path: Path, mapped: bool) -> Mapping[str, Any]:
    """What `torch.save` wrote, restricted to tensors, containers, numbers and text."""
    try:
        # A Namespace only holds attributes; training scripts save their arguments in one.
        with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as stream:
            # torch goes by the name of a file that is called .safetensors, and maps no stream
            source, mmap = (stream, False) if path.suffix == ".safetensors" else (path, mapped)
            content = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise unsafe(path, error) from error
    except DAMAGE as error:
        if "TorchScript" in str(error):
            raise unsafe(path, error) from error
        raise damaged(path, "PyTorch", error) from error
    if not isinstance(content, Mapping):
        raise CheckpointMismatch(
            f"{path} holds an object of type {type(content).__name__}; allowed is a dict of tensors by name."
        )
    return content


def unsafe(path: Path, error: Exception) -> UnsafeCheckpoint:
    named = re.findall(r"GLOBAL ([\w.]+)", str(error))
    what = (
        f"objects of {named[0]}"
        if named
        else "a TorchScript program"
        if "TorchScript" in str(error)
        else "Python objects"
    )
    return UnsafeCheckpoint(
        f"{path} holds more than plain tensors ({what}), and reading that could run any code. "
        "No automatic unsafe pickle fallback is performed. "  # compat: code written for timm matches this sentence
        "If you trust where it comes from, load it yourself, save its tensors with safetensors.torch.save_file, "
        "and give that file."
    )


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of a NumPy archive; JAX's bfloat16, which NumPy stores as two opaque bytes, becomes torch's."""
    import numpy as np

    tensors = {}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            for name in archive.files:
                array = archive[name]
                if array.dtype == np.dtype("V2"):
                    tensors[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
                else:
                    tensors[name] = torch.from_numpy(array)
    except DAMAGE as error:
        if "allow_pickle" in str(error):
            raise unsafe(path, error) from error
        raise damaged(path, "NumPy", error) from error
    return tensors


def averaged(content: Mapping[str, Any]) -> bool:
    """Whether a training checkpoint has averaged (EMA) weights."""
    return any(isinstance(content.get(name), Mapping) for name in AVERAGED)


def unwrap(content: Mapping[str, Any], use_ema: bool, path: Path, need_ema: bool = False) -> Mapping[str, Any]:
    """The state dict inside a training checkpoint, or `content` itself where it is one."""
    if need_ema and not averaged(content):
        raise CheckpointMismatch(f"{path} holds no averaged (EMA) weights; read it without asking for them.")
    for name in (AVERAGED if use_ema else ()) + WRAPPERS:
        inner = content.get(name)
        if isinstance(inner, Mapping):
            return inner
    dicts = [name for name, value in content.items() if isinstance(value, Mapping)]
    if dicts and set(dicts) <= set(AVERAGED):
        raise CheckpointMismatch(f"{path} holds averaged (EMA) weights only; ask for them (ema=True, or --ema).")
    if dicts:
        raise CheckpointMismatch(
            f"{path} holds several parts ({', '.join(map(str, content))}); a state dict is looked for under "
            f"{', '.join(AVERAGED + WRAPPERS)}. Save the part that you want ({', '.join(map(str, dicts[:3]))}?) alone."
        )
    return content


def clean_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict without the prefixes that wrappers put before names (`module.`, `_orig_mod.`, in any order).

    A name keeps its prefix where another tensor has the name without it.
    """
    plain = {name: PREFIXES.sub("", name) for name in state_dict}
    return {name if new != name and new in state_dict else new: state_dict[name] for name, new in plain.items()}


def refuse_unsafe(weights_only: bool) -> None:
    if not weights_only:
        raise BadArgument(
            "weights_only=False was asked for; allowed is True, because ziggurat never unpickles code. "
            "Load such a file with torch yourself and pass its state dict on."
        )


def load_state_dict(
    checkpoint_path: str | os.PathLike[str],
    use_ema: bool | None = None,
    device: str | torch.device = "cpu",
    weights_only: bool = True,
) -> dict[str, Tensor]:
    """`read_state_dict` under timm's name and arguments, the tensors on `device`."""
    refuse_unsafe(weights_only)
    tensors = read_state_dict(checkpoint_path, use_ema=use_ema)
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def preferred_file(directory: str | os.PathLike[str]) -> Path:
    """The checkpoint file of a directory: the known names first, then the safest ending, then the alphabet."""
    directory = Path(directory)
    for name in FILE_NAMES:
        if (directory / name).exists():
            return directory / name
    for ending in FILE_ENDINGS:
        found = sorted(directory.glob(f"*{ending}"))
        if len(found) > 1:
            logger.warning("%s holds %s; the first is taken.", directory, ", ".join(path.name for path in found))
        if found:
            return found[0]
    raise SourceUnavailable(
        f"No suitable checkpoints found in {directory}: allowed are {', '.join(PLAIN_NAMES)} "
        f"or any file that ends in {', '.join(FILE_ENDINGS)}."
    )


def load_state_dict_from_path(path: str | os.PathLike[str], weights_only: bool = True) -> dict[str, Tensor]:
    """The state dict of a directory's `preferred_file`."""
    refuse_unsafe(weights_only)
    return read_state_dict(preferred_file(path))


def load_checkpoint(
    model: nn.Module,
    checkpoint_path: str | os.PathLike[str],
    use_ema: bool | None = None,
    device: str | torch.device = "cpu",
    strict: bool = True,
    remap: bool = False,
    filter_fn: Callable[..., Mapping[str, Tensor]] | None = None,
    weights_only: bool = True,
) -> Any:
    """Load a checkpoint file into a model as it is, without fitting it; returns torch's missing and unexpected keys.

    `remap` goes by the order of the tensors instead of by their names, every shape checked. `filter_fn` is called
    with the state dict and the model. `ziggurat.weights.loading.load_weights` is the one that adapts channels and
    classes. Raises `CheckpointMismatch`.
    """
    state_dict: Mapping[str, Tensor] = load_state_dict(checkpoint_path, use_ema, device, weights_only)
    state_dict = remapped(model, state_dict, model.state_dict())
    if remap:
        state_dict = by_order(model.state_dict(), state_dict)
    elif filter_fn is not None:
        state_dict = filter_fn(state_dict, model)
    if strict:
        sentence = mismatch({name: tensor.shape for name, tensor in model.state_dict().items()}, state_dict)
        if sentence:
            raise CheckpointMismatch(f"{checkpoint_path}: {sentence}")
    return model.load_state_dict(state_dict, strict=strict)
