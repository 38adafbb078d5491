"""MindCV as the oracle, without MindSpore: checkpoints drawn anew, and what MindCV's networks put out for them.

The files in `mindcv_files` are written by `make_mindcv.py` (`make parity-mindcv`).

    python tests/parity/mindcv.py [NAME ...]      each network against its file, as a table
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from mindspore_writer import value_of
from parity.drawing import drawn, image, sampled

FILES = Path(__file__).with_name("mindcv_files")
TOLERANCE = 1e-5  # of the largest value of an output


@functools.cache
def oracle(name: str) -> dict[str, Any]:
    """What is kept of MindCV's network `name`: its facts under 'facts', and arrays."""
    with np.load(FILES / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return {**arrays, "facts": json.loads(str(arrays["facts"]))}


def facts(name: str) -> dict[str, Any]:
    """Parameters ([name, shape, trainable]), levels (MindCV's feature_info), outputs by size, failures by size."""
    found: dict[str, Any] = oracle(name)["facts"]
    return found


def sizes(name: str) -> list[int]:
    """Sides of the images that MindCV ran the network with."""
    return [int(size) for size in facts(name)["outputs"]]


def checkpoint(name: str, directory: Path) -> Path:
    """The network's checkpoint as MindSpore writes it, with the parameters that the oracle had."""
    path = directory / f"{name}.ckpt"
    with path.open("wb") as stream:
        for key, shape, trainable in facts(name)["parameters"]:
            value = drawn(name, key, tuple(shape), trainable)
            value = oracle(name)[f"kept/{key}"] if value is None else value
            is_half = key in facts(name).get("half", ())  # PVT's positions
            stream.write(value_of(key, value.astype(np.float16) if is_half else value))
    return path


def images(size: int) -> Tensor:
    """The image that the oracle saw, 1 3 H W."""
    return torch.from_numpy(image(size))


def variant(name: str) -> str:
    """What stands before the names of the outputs that ours are held to: nothing, or for HRNet 'unrounded/'.

    MindCV rounds HRNet's branches to float16, which moves levels by 3e-4 of the largest value, not always alike.
    """
    return "unrounded/" if name.startswith("hrnet") else ""


def difference(name: str, size: int, key: str, ours: Tensor) -> float:
    """Largest difference over the largest value; `key` is 'logits' or 'level0', 'level1' ..., behind its `variant`.

    Raises AssertionError where the shapes differ.
    """
    stated = facts(name)["outputs"][str(size)][key]
    assert list(ours.shape) == stated["shape"], f"{name} {size} {key}: {list(ours.shape)}, not {stated['shape']}"
    found = sampled(ours.detach().contiguous().numpy())
    return float(np.abs(found - oracle(name)[f"{size}/{key}"]).max()) / stated["largest"]


@torch.no_grad()
def compare(model: Any, name: str, size: int, levels: Sequence[int] | None = None) -> dict[str, float]:
    """Differences of a backbone's scores and of its levels, which are MindCV's of the indices `levels` (all)."""
    x = images(size)
    count = len(facts(name)["levels"] or ())
    levels = range(count) if levels is None else levels
    kind = variant(name)
    found = {"logits": difference(name, size, f"{kind}logits", model(x))}
    if levels:
        maps = model.forward_intermediates(x, intermediates_only=True)
        assert len(maps) == len(levels), f"{len(maps)} levels for {len(levels)} of MindCV's"
        found |= {f"level{i}": difference(name, size, f"{kind}level{i}", level) for i, level in zip(levels, maps)}
    return found


def hold(model: Any, name: str) -> int:
    """Asserts that a backbone's scores and levels are MindCV's at every size that it ran; returns how many outputs."""
    found: dict[str, float] = {}
    for size in sizes(name):
        found = compare(model, name, size)
        assert max(found.values()) <= TOLERANCE, (size, found)
    return len(found)


def main() -> int:
    from ziggurat.compat.mindcv import create_model

    worst = 0.0
    for name in sys.argv[1:] or sorted(path.stem for path in FILES.glob("*.npz")):
        kind = variant(name)
        for size in sizes(name):
            with tempfile.TemporaryDirectory() as directory:
                path = checkpoint(name, Path(directory))
                scores = create_model(name, checkpoint_path=path).eval()
                found = {"logits": difference(name, size, f"{kind}logits", scores(images(size)))}
                if facts(name)["levels"]:
                    count = len(facts(name)["levels"])
                    pyramid = create_model(name, checkpoint_path=path, features_only=True, out_indices=range(count)).eval()
                    found |= {f"level{i}": difference(name, size, f"{kind}level{i}", level)
                              for i, level in enumerate(pyramid(images(size)))}
            largest = max(found, key=lambda key: found[key])
            worst = max(worst, found[largest])
            print(f"{name:28} {size:4} px  {len(found):2} outputs  largest {found[largest]:.1e} ({largest})"
                  f"{'' if found[largest] <= TOLERANCE else '  FAILS'}", flush=True)
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
