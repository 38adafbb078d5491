"""A model as a folder: `config.json` says how it is made again, `model.safetensors` holds its weights.

The folder is laid out like a repository of the Hugging Face Hub, so that `create_model("local-dir:PATH")` and timm read
it too, where timm knows the arguments. Nothing in it is pickled.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from . import __version__
from .backbone import Backbone
from .errors import BadArgument, SourceUnavailable
from .factory import create_model
from .weights.adapting import grouped
from .weights.hub import SAVED, WEIGHT_FILES, describe, read_json, write_folder

__all__ = ["load", "save"]

CONFIG = "config.json"


def save(
    model: Backbone, directory: str | Path, class_names: Sequence[str] | None = None, overwrite: bool = False
) -> None:
    """Writes a model that `create_model` made into a folder, from which `load` makes it again.

    Kept are the architecture, all arguments (those that `reset_classifier`, `set_input_size`, `keep_levels` and
    `add_pyramid` changed since, too), what `freeze` holds, the class names (`class_names` sets the model's), the
    preprocessing and the weights in their dtype. Not kept: training mode, gradient checkpointing, optimizers.

    A folder that `save` wrote is replaced, file by file, each written aside first. Raises `BadArgument` for another
    folder that is not empty, unless `overwrite`, and for a model that name and arguments do not make again: one built
    from its class (register a function that does, `register_model`), one whose arguments are no plain values, or one
    that was pruned or rebuilt by hand. Changes that leave all weights as they are (another activation) are warned of.
    """
    directory = Path(directory)
    check_place(directory, overwrite)
    if class_names is not None:
        model.class_names = tuple(class_names)
    config = description(model)
    check_made_again(model, config)
    write_folder(directory, config, model.state_dict())


def load(directory: str | Path, **overrides: Any) -> Backbone:
    """The model that `save` wrote into a folder, or another view of it: `overrides` are arguments of `create_model`.

    `load(path, features_only=True, out_strides=(8, 16))` makes a pyramid of a saved classifier, `num_classes=0` an
    embedder, `in_chans=5` adapts the stem, `dtype` and `device` place it. Raises `SourceUnavailable`, naming the file,
    where one is missing or damaged, and `CheckpointMismatch` where the weights do not fit what is asked for.
    """
    directory = Path(directory)
    stated = read_json(directory / CONFIG) if (directory / CONFIG).is_file() else {}
    for name in (CONFIG, WEIGHT_FILES[0]):
        if not (directory / name).is_file():
            raise SourceUnavailable(f"there is no {directory / name}; give a folder that ziggurat.save wrote.")
    named = (stated.get(SAVED) or {}).get("dtype")
    if named is not None:
        dtype = getattr(torch, str(named), None)
        if not isinstance(dtype, torch.dtype):
            raise SourceUnavailable(f"{directory / CONFIG} is damaged: there is no type {named!r:.40}.")
        overrides.setdefault("dtype", dtype)
    return create_model(f"local-dir:{directory}", pretrained=True, **overrides)


def check_place(directory: Path, overwrite: bool) -> None:
    """Raises `BadArgument` where a folder holds what saving could destroy."""
    if directory.exists() and not directory.is_dir():
        raise BadArgument(f"{directory} is a file; give a folder")
    found = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    if not found or overwrite or (CONFIG in found and SAVED in read_json(directory / CONFIG)):
        return
    shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
    raise BadArgument(f"{directory} holds {shown}, which ziggurat.save did not write; give a new folder, or "
                      f"overwrite=True to write {CONFIG} and {WEIGHT_FILES[0]} into this one")


def description(model: Backbone) -> dict[str, Any]:
    """What config.json says of a model."""
    if not isinstance(model, Backbone) or not model.architecture:
        raise BadArgument(f"this {type(model).__name__} was not made by create_model, so no name and arguments are known "
                          "that make it again: put its construction into a function, list that with "
                          "ziggurat.register_model, create the model by its name, and load the weights into it")
    tensors = model.state_dict()
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if tensor.is_floating_point()}
    if len(dtypes) > 1:
        raise BadArgument(f"weights of several types ({', '.join(sorted(dtypes))}): model.to(...) one of them first")
    if any(tensor.is_meta for tensor in tensors.values()):
        raise BadArgument("this model is on the meta device and has no weights to save")
    own: dict[str, Any] = {"version": __version__, "dtype": dtypes.pop()}
    if model.frozen is not None:
        own["frozen"] = model.frozen.upto
    told: dict[str, Any] = {"architecture": model.architecture, SAVED: own}
    if model.class_names is not None:
        told["label_names"] = model.class_names
    return describe(model, told, {name: plain(name, value) for name, value in model.arguments.items()})


def plain(name: str, value: Any) -> Any:
    """An argument as JSON has it; raises `BadArgument` where it has no such form."""
    if isinstance(value, (list, tuple)):
        return [plain(name, part) for part in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(name, part) for key, part in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise BadArgument(f"{name}={value!r:.60} is no plain value, so config.json cannot hold it: create the model with a "
                      "name (act_layer='gelu', say), or register a function that builds it (ziggurat.register_model)")


def check_made_again(model: Backbone, config: Mapping[str, Any]) -> None:
    """Raises `BadArgument` where `config` does not make a model of the same weights; without weights, this is cheap."""
    place = Path(mkdtemp())
    try:
        (place / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        again = create_model(f"local-dir:{place}", device="meta")
    finally:
        shutil.rmtree(place)
    ours, theirs = ({name: tuple(t.shape) for name, t in m.state_dict().items()} for m in (model, again))
    differences = [
        f"{what} {grouped(found)}"
        for what, found in (
            ("it has besides", [name for name in ours if name not in theirs]),
            ("it lacks", [name for name in theirs if name not in ours]),
            ("of another shape are", [name for name in ours if name in theirs and ours[name] != theirs[name]]),
        )
        if found
    ]
    given = "".join(f", {name}={value!r}" for name, value in config.get("model_args", {}).items())
    made = f"create_model({model.architecture!r}{given})"
    if differences:
        raise BadArgument(f"this model is no longer what {made} makes: {'; '.join(differences)}. Save its state_dict alone, "
                          "or register a function that makes such a model (ziggurat.register_model) and create it by name")
    before, after = ({name: f"{type(part).__name__}({part.extra_repr()})" for name, part in m.named_modules() if name}
                     for m in (model, again))
    changed = [name for name in before if before[name] != after.get(name)]
    if changed:
        name = changed[0]
        warnings.warn(f"{name} is {before[name]}, and {after.get(name)} in what {made} makes: such changes are not saved "
                      f"({len(changed)} modules)", stacklevel=3)
