"""MindCV's parameters under our names: each name and shape of each network, without a value.

    python tests/parity/mindcv_names.py [NAME ...]      a line a network that does not fit, and how many do

The names are in `mindcv_files/names.json.xz`, which `make_mindcv_names.py` writes.
"""

from __future__ import annotations

import functools
import json
import lzma
import sys
from pathlib import Path

import torch

import ziggurat
from ziggurat import registry
from ziggurat.factory import WithoutWeights
from ziggurat.weights.adapting import adapt_state_dict
from ziggurat.weights.mindcv import COUNTER
from ziggurat.weights.mindspore import torch_names
from ziggurat.weights.pretrained import MINDCV_TAG, PretrainedCfg

FILE = Path(__file__).with_name("mindcv_files") / "names.json.xz"


@functools.cache
def parameters() -> dict[str, list[tuple[str, list[int]]]]:
    """Names and shapes of the parameters of MindCV's networks, by the network's name."""
    with lzma.open(FILE, "rt") as file:
        found: dict[str, list[tuple[str, list[int]]]] = json.load(file)
    return found


def counterparts() -> dict[str, str]:
    """MindCV's names and ours, of the networks whose weights have MindCV's tag here."""
    return {
        theirs: f"{ours}.{MINDCV_TAG}"
        for names in registry.mindcv_names()["names"].values()
        for theirs, ours in names.items()
        if theirs in parameters() and MINDCV_TAG in registry.weights_of(ours)
    }


def unlike(theirs: str) -> list[str]:
    """Names that are missing on one side, or whose shapes differ, for MindCV's network `theirs`."""
    with torch.device("meta"), WithoutWeights():
        model = ziggurat.create_model(counterparts()[theirs])
        given = torch_names({name: torch.empty(shape) for name, shape in parameters()[theirs]})
    own = {name: tensor.shape for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}
    adapted = adapt_state_dict(model, given, PretrainedCfg(**model.pretrained_cfg))
    found = {name: tensor.shape for name, tensor in adapted.items()}
    return [name for name in {**own, **found} if own.get(name) != found.get(name)]


def main() -> int:
    names = sys.argv[1:] or sorted(counterparts())
    failed = 0
    for name in names:
        wrong = unlike(name)
        failed += bool(wrong)
        if wrong:
            print(f"{name} as {counterparts()[name]}: {len(wrong)} names do not fit, first {', '.join(wrong[:3])}")
    print(f"{len(names) - failed} of {len(names)} networks fit, name by name")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
