"""MindCV's names for the modules of networks that are under other names here.

Normalisations come under torch's names from the reader (`mindspore`). What is left are modules that MindCV calls
differently: a rule for each class of backbones says how. A rule looks at names and at the order of modules, never at
shapes, so that it holds for any number of classes or channels and for a network cut after a level. Classes without a
rule have MindCV's names, or are unknown to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

from torch import Tensor, nn

from ziggurat.errors import CheckpointMismatch

__all__ = ["COUNTER", "MINDCV_TAG", "from_mindcv"]

Tensors: TypeAlias = dict[str, Tensor]
Rule: TypeAlias = Callable[[Tensors, Collection[str]], Tensors]

MINDCV_TAG = "mindcv_in1k"  # of the weights that MindCV publishes; the tables say what else they need
COUNTER = "num_batches_tracked"  # MindSpore has none, old checkpoints of torch neither, and inference never reads it


def from_mindcv(model: nn.Module, state_dict: Tensors, own: Collection[str]) -> Tensors:
    """A state dict under the model's names, `own`, where it is MindCV's for this network; any other as it is."""
    rule = RULES.get(type(model).__name__)
    return state_dict if rule is None else rule(state_dict, own)


def renamed(*steps: tuple[str, str]) -> Rule:
    """A rule of patterns and what takes their place, each tried in turn on every name."""
    compiled = [(re.compile(pattern), instead) for pattern, instead in steps]

    def rule(state_dict: Tensors, own: Collection[str]) -> Tensors:
        found = {}
        for name, tensor in state_dict.items():
            for pattern, instead in compiled:
                name = pattern.sub(instead, name)
            found[name] = tensor
        return found

    return rule


def in_order(start: str) -> Rule:
    """A rule for networks whose modules are registered in one order: names that match `start` show that it applies."""
    pattern = re.compile(start)

    def rule(state_dict: Tensors, own: Collection[str]) -> Tensors:
        if not any(map(pattern.match, state_dict)):
            return state_dict
        theirs, ours = leaves(state_dict), leaves(own)
        new_names = dict(zip(theirs, ours))  # what a network cut after a level lacks comes last
        for their_path, our_path in new_names.items():
            if theirs[their_path] != ours[our_path]:
                raise CheckpointMismatch(
                    f"the checkpoint's module {their_path} has {', '.join(sorted(theirs[their_path]))} where the model's "
                    f"{our_path} has {', '.join(sorted(ours[our_path]))}. Choose the architecture that it is of."
                )
        found = {}
        for name, tensor in state_dict.items():
            path, _, leaf = name.rpartition(".")
            found[f"{new_names.get(path, path)}.{leaf}"] = tensor
        return found

    return rule


def leaves(names: Collection[str]) -> Mapping[str, set[str]]:
    """Paths of the modules that hold tensors, in order, and what each calls them; without batch-norm counters."""
    found: dict[str, set[str]] = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        if leaf != COUNTER:
            found.setdefault(path, set()).add(leaf)
    return found


RESNET = renamed((r"\bdown_sample\.", "downsample."), (r"^classifier\.", "fc."))

CONVNEXT = renamed(  # to Meta's names, which the family reads
    *((rf"^feature\.{2 * stage}\.", f"downsample_layers.{stage}.") for stage in range(4)),
    *((rf"^feature\.{2 * stage + 1}\.", f"stages.{stage}.") for stage in range(4)),
    (r"\.gamma_$", ".gamma"),
    (r"^classifier\.", "head."),
)

RULES: dict[str, Rule] = {
    "ConvNeXt": CONVNEXT,
    "ResNet": RESNET,
}
"""By the name of the backbone's class."""
