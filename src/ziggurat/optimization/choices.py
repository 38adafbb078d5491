"""What `optimize` found to be fastest, kept on disk by model, shape, versions and machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from .program import Recipe

__all__ = ["Trial", "cache_folder", "forget", "machine", "processor", "read", "structure", "versions", "write"]

LAYOUTS = ("", "as given", "contiguous", "channels_last")
RUNTIMES = ("torch", "numpy", "openvino", "nncf", "onnxruntime", "onnx", "onnxscript")


@dataclass(frozen=True)
class Trial:
    """A recipe that was tried: `images_per_second` and its `ratio` to the network as it was given, eager in fp32.

    `error` is the largest difference to that one's outputs as a share of their largest value (`largest_error`), `seconds`
    what building took. `dropped` says why a recipe is not used; where it was not timed, the speeds are None.
    """

    recipe: Recipe
    images_per_second: float | None = None
    ratio: float | None = None
    error: float | None = None
    seconds: float | None = None
    dropped: str = ""


def cache_folder() -> Path:
    """Where choices are kept: `$ZIGGURAT_CACHE`, else `ziggurat` in `$XDG_CACHE_HOME`, else in ~/.cache."""
    named = os.environ.get("ZIGGURAT_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ziggurat"


def machine(device: torch.device) -> dict[str, Any]:
    """What of this machine decides speed: its processor, the instructions torch found there, and the GPU of `device`."""
    found = {"system": platform.system(), "machine": platform.machine(), "processor": " ".join(processor()), "cores": os.cpu_count(),
             "instructions": torch.backends.cpu.get_cpu_capability(), "device": device.type}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def processor() -> tuple[str, str]:
    """The processor's name and a digest of its abilities, where the system tells; virtual machines of one name differ in these."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    return name, hashlib.sha256(told.get("flags", told.get("Features", "")).encode()).hexdigest()[:12]


def versions() -> dict[str, str | None]:
    """The versions of ziggurat, of Python and of the runtimes; None for one that is not installed."""
    found: dict[str, str | None] = {"ziggurat": __version__, "python": platform.python_version()}
    for name in RUNTIMES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def structure(model: nn.Module) -> str:
    """A digest of what `model` is: its modules with their settings, its tensors' names, shapes and types, not their values."""
    lines = [f"{type(model).__module__}.{type(model).__qualname__}", repr(model)]
    lines += [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in model.state_dict().items()]
    lines.append(json.dumps([getattr(model, name, None) for name in ("architecture", "arguments", "out_indices")], default=repr))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read(asked: Mapping[str, Any]) -> tuple[int, list[Trial]] | None:
    """What was found for `asked`: the index of the chosen trial, and all of them; None where nothing was kept.

    An entry that cannot be read as one is removed, with a warning.
    """
    path = _path(asked)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["asked"] != json.loads(json.dumps(asked)):
            raise ValueError("it answers another question")
        trials = [Trial(**{**trial, "recipe": Recipe(**trial["recipe"])}) for trial in kept["trials"]]
        chosen = kept["chosen"]
        if type(chosen) is not int or not 0 < chosen < len(trials) or not all(map(_is_sound, trials)):
            raise ValueError("what it holds is no table of trials")
        trial = trials[chosen]
        if trial.dropped or trial.recipe.backend not in asked["backends"] or trial.recipe.part > asked["images"][0][0]:
            raise ValueError("what it chose is no choice")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        warnings.warn(f"{path}: this entry of the cache cannot be used ({type(error).__name__}: {error}); it is made anew",
                      stacklevel=3)
        _removed(path)
        return None
    except OSError:  # mostly there is none; where the folder is at fault, writing says so
        return None
    return chosen, trials


def _is_sound(trial: Trial) -> bool:
    """Whether an entry's trial has the types that were written; a file may have been edited, or cut and mended."""
    numbers = (trial.images_per_second, trial.ratio, trial.error, trial.seconds)
    words = [getattr(trial.recipe, field.name) for field in fields(Recipe) if field.name != "part"]
    return (all(number is None or isinstance(number, (int, float)) for number in numbers) and isinstance(trial.dropped, str)
            and all(isinstance(word, str) for word in words) and trial.recipe.layout in LAYOUTS
            and type(trial.recipe.part) is int and trial.recipe.part >= 0)


def write(asked: Mapping[str, Any], chosen: int, trials: list[Trial]) -> None:
    """Keeps what was found. Another process may do so at the same time; a cache that cannot be written is warned of."""
    path = _path(asked)
    entry = {"asked": asked, "chosen": chosen, "trials": [asdict(trial) for trial in trials]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, suffix=".partial") as folder:
            made = Path(folder, path.name)
            made.write_text(json.dumps(entry, indent=1), encoding="utf-8")
            os.replace(made, path)
    except OSError as error:
        warnings.warn(f"{path}: the choice could not be kept ({error}); name another folder in ZIGGURAT_CACHE", stacklevel=3)


def forget(asked: Mapping[str, Any]) -> None:
    """Removes the entry of `asked`, if there is one."""
    _removed(_path(asked))


def _removed(path: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that cannot be written: `write`, which follows, says so
        path.unlink(missing_ok=True)


def _path(asked: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "choices" / f"{digest[:32]}.json"
