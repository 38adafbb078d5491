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

__all__ = ["COUNTER", "from_mindcv"]

Tensors: TypeAlias = dict[str, Tensor]
Rule: TypeAlias = Callable[[Tensors, Collection[str]], Tensors]

FAMILIES = "ziggurat.models."
COUNTER = "num_batches_tracked"  # torch's batch norms have it, MindSpore's do not, and inference never reads it


def from_mindcv(model: nn.Module, state_dict: Tensors, own: Collection[str]) -> Tensors:
    """A state dict under the model's names, `own`, where it is MindCV's for this network; any other as it is."""
    is_family = type(model).__module__.startswith(FAMILIES)  # a class of one's own may have such a name too
    rule = RULES.get(type(model).__name__) if is_family else None
    if rule is None or any(name.endswith(COUNTER) for name in state_dict):
        return state_dict
    return rule(state_dict, own)


def renamed(*steps: tuple[str, str | Callable[[re.Match[str]], str]]) -> Rule:
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


def numbered(start: str, trunk: Collection[str], others: Rule) -> Rule:
    """A rule for networks whose layers are numbered through in MindCV, the names that match `start`.

    They are the layers of the model's top-level modules `trunk`, in order of their numbers, in whichever order the file
    has them; what a network cut after a level lacks comes last. `others` renames the rest.
    """
    pattern = re.compile(start)

    def rule(state_dict: Tensors, own: Collection[str]) -> Tensors:
        inside = sorted((name for name in state_dict if pattern.match(name)), key=numbers)
        ours = leaves([name for name in own if name.partition(".")[0] in trunk])
        return others(moved(state_dict, paired(leaves(inside), ours)), own)

    return rule


def paired(theirs: Mapping[str, set[str]], ours: Mapping[str, set[str]]) -> dict[str, str]:
    """Layers of a checkpoint and the model's, in order, as far as both go; raises `CheckpointMismatch` for unlike ones."""
    new_paths = dict(zip(theirs, ours))
    for their_path, our_path in new_paths.items():
        if theirs[their_path] != ours[our_path]:
            raise CheckpointMismatch(
                f"the checkpoint's module {their_path} has {', '.join(sorted(theirs[their_path]))} where the model's "
                f"{our_path} has {', '.join(sorted(ours[our_path]))}. Choose the architecture that it is of; "
                "if it was cut off, fetch it again."
            )
    return new_paths


def moved(state_dict: Tensors, new_paths: Mapping[str, str]) -> Tensors:
    """The state dict with layers at new paths; layers that have none stay."""
    split = ((*path_and_leaf(name), tensor) for name, tensor in state_dict.items())
    return {f"{new_paths.get(path, path)}.{leaf}": tensor for path, leaf, tensor in split}


def numbers(name: str) -> list[int]:
    """All numbers in a name."""
    return [int(digits) for digits in re.findall(r"\d+", name)]


def path_and_leaf(name: str) -> tuple[str, str]:
    """A tensor's name as its layer's path and the rest; a gate's two convolutions make one layer."""
    path, _, leaf = name.rpartition(".")
    gate, _, part = path.rpartition(".")
    return (gate, f"{part}.{leaf}") if part in ("conv_reduce", "conv_expand") else (path, leaf)


def leaves(names: Collection[str]) -> Mapping[str, set[str]]:
    """Paths of the layers that hold tensors, in order, and what each calls them; without batch-norm counters."""
    found: dict[str, set[str]] = {}
    for name in names:
        path, leaf = path_and_leaf(name)
        if leaf != COUNTER:
            found.setdefault(path, set()).add(leaf)
    return found


def shortcuts(names: Collection[str]) -> dict[str, list[str]]:
    """The numbered layers of each residual block's shortcut, in order: `{"layer1.0.downsample": ["0", "1"]}`."""
    found: dict[str, list[str]] = {}
    for name in sorted(names, key=numbers):
        block = SHORTCUT.match(name)
        if block and block[2] not in found.setdefault(block[1], []):
            found[block[1]].append(block[2])
    return found


def resnet(state_dict: Tensors, own: Collection[str]) -> Tensors:
    """Stem, gates, selective kernels, shortcuts and classifier.

    Where MindCV's shortcut has no pool, and ours one that does nothing, its layers move on.
    """
    stem = DEEP_STEM if "layer0.6.weight" in state_dict else STEM
    found = as_convolutions(RESNET_NAMES(stem(state_dict, own), own), ".se.fc1.weight", ".se.fc2.weight")
    theirs, ours = shortcuts(found), shortcuts(own)
    return moved(found, {f"{block}.{old}": f"{block}.{new}" for block in theirs if block in ours
                         for old, new in zip(theirs[block], ours[block])})


def mobilenet_v3(state_dict: Tensors, own: Collection[str]) -> Tensors:
    """The head's convolution, which is a fully connected layer there, and the classifier."""
    return as_convolutions(V3_NAMES(state_dict, own), "conv_head.weight")


def senet(state_dict: Tensors, own: Collection[str]) -> Tensors:
    """The stem, gates and the classifier of the legacy SENets."""
    return as_convolutions(SENET_NAMES(state_dict, own), ".se_module.fc1.weight", ".se_module.fc2.weight")


def as_convolutions(state_dict: Tensors, *ends: str) -> Tensors:
    """The state dict with the matrices whose names end so as kernels of 1x1."""
    return {name: tensor[:, :, None, None] if name.endswith(ends) and tensor.ndim == 2 else tensor
            for name, tensor in state_dict.items()}


SHORTCUT = re.compile(r"(layer\d+\.\d+\.downsample)\.(\d+)\.")
STEM = renamed((r"^layer0\.0\.", "conv1."), (r"^layer0\.1\.", "bn1."))
DEEP_STEM = renamed((r"^layer0\.7\.", "bn1."), (r"^layer0\.", "conv1."))
RESNET_NAMES = renamed(
    (r"\bdown_sample\.", "downsample."),
    (r"\.se_module\.conv_reduce\.", ".se.fc1."),
    (r"\.se_module\.conv_expand\.", ".se.fc2."),
    (r"(layer\d+\.\d+\.conv\d|\.paths\.\d+)(?:\.features)?\.0\.", r"\1.conv."),
    (r"(layer\d+\.\d+\.conv\d|\.paths\.\d+)(?:\.features)?\.1\.", r"\1.bn."),
    (r"^classifier\.", "fc."),
)
SENET_NAMES = renamed(
    (r"^layer0\.0\.", "layer0.conv1."),
    (r"^layer0\.1\.", "layer0.bn1."),
    (r"\.se_module\.conv_reduce\.", ".se_module.fc1."),
    (r"\.se_module\.conv_expand\.", ".se_module.fc2."),
    (r"^classifier\.", "last_linear."),
)

REGNET = renamed(
    (r"^0\.blocks\.(\d)\.blocks\.(\d+)\.", lambda block: f"s{int(block[1]) + 1}.b{int(block[2]) + 1}."),
    (r"^0\.blocks\.(\d+)\.", lambda block: f"s1.b{int(block[1]) + 1}."),  # the first stage lacks its own number
    (r"\.proj\.", ".downsample.conv."),
    (r"(\.b\d+)\.bn\.", r"\1.downsample.bn."),
    (r"\.f\.se\.conv_reduce\.", ".se.fc1."),
    (r"\.f\.se\.conv_expand\.", ".se.fc2."),
    *((rf"\.f\.{letter}\.", f".conv{i}.conv.") for i, letter in enumerate("abc", 1)),
    *((rf"\.f\.{letter}_bn\.", f".conv{i}.bn.") for i, letter in enumerate("abc", 1)),
)

DENSENET = renamed(
    (r"\.cell_list\.(\d+)\.", lambda layer: f".denselayer{int(layer[1]) + 1}."),
    (r"\.transition(\d)\.features\.", r".transition\1."),
)

NUMBERED = r"features[._]\d"  # with an underscore where MindCV saved a pyramid
V3_NAMES = renamed((r"^classifier\.0\.", "conv_head."), (r"^classifier\.3\.", "classifier."))

PVT = renamed(*((rf"^Blocks\.{stage}\.", f"block{stage + 1}.") for stage in range(4)))

CONVNEXT = renamed(  # to Meta's names, which the family reads
    (r"^feature_(\d+)\.", r"feature.\1."),  # of a pyramid that MindCV saved
    *((rf"^feature\.{2 * stage}\.", f"downsample_layers.{stage}.") for stage in range(4)),
    *((rf"^feature\.{2 * stage + 1}\.", f"stages.{stage}.") for stage in range(4)),
    (r"\.gamma_$", ".gamma"),
    (r"^classifier\.", "head."),
)

HRNET = renamed((r"\bdown_sample\.", "downsample."), (r"^downsample_modules\.", "downsamp_modules."))

REXNET = renamed(
    (r"^features_(\d+)\.", r"features.\1."),  # of a pyramid that MindCV saved
    (r"\.features\.0\.", ".conv."),
    (r"\.features\.1\.", ".bn."),
    (r"\.se\.conv_reduce\.", ".se.fc1."),
    (r"\.se\.conv_expand\.", ".se.fc2."),
    (r"^cls\.1\.", "head.fc."),
)

GOOGLENET = renamed((r"^(inception\w+)\.b(\d)\.", r"\1.branch\2."), (r"^classifier\.", "fc."))

SHUFFLENET_V2 = renamed(
    *((rf"^features\.{first + i}\.", f"stage{stage}.{i}.")
      for stage, first, depth in ((2, 0, 4), (3, 4, 8), (4, 12, 4)) for i in range(depth)),
    (r"\.branch_proj\.", ".branch1."),
    (r"\.branch_main\.", ".branch2."),
    (r"^first_conv\.", "conv1."),
    (r"^conv_last\.", "conv5."),
    (r"^classifier\.", "fc."),
)

NASNET = renamed(
    (r"^conv0\.0\.", "conv0.conv."),
    (r"^conv0\.1\.", "conv0.bn."),
    (r"\.(conv_1x1|conv_prev_1x1)\.1\.", r".\1.conv."),
    (r"\.(conv_1x1|conv_prev_1x1)\.2\.", r".\1.bn."),
    (r"\.path_1\.1\.", ".path_1.conv."),
    (r"\.path_2\.2\.", ".path_2.conv."),
    (r"^classifier\.", "last_linear."),
)

REPMLP = renamed((r"^(conv_embedding|embeds\.\d+)\.conv\.(conv|bn)\.", r"\1.\2."))


def repmlp(state_dict: Tensors, own: Collection[str]) -> Tensors:
    """MindCV's RepMLPNet has a second stem, `conv2d`, that it never runs."""
    return {name: tensor for name, tensor in REPMLP(state_dict, own).items() if not name.startswith("conv2d.")}


RULES: dict[str, Rule] = {
    "ByobNet": renamed((r"\b(rbr_dense|rbr_1x1)\.0\.", r"\1.conv."), (r"\b(rbr_dense|rbr_1x1)\.1\.", r"\1.bn.")),
    "ConvNeXt": CONVNEXT,
    "DenseNet": DENSENET,
    "EfficientNet": numbered(NUMBERED, ("conv_stem", "bn1", "blocks", "conv_head", "bn2"),
                             others=renamed((r"^(?:classifier\.1|mlp_head)\.", "classifier."))),
    "GoogLeNet": GOOGLENET,
    "HighResolutionNet": HRNET,
    "MobileNetV3": numbered(NUMBERED, ("conv_stem", "bn1", "blocks"), others=mobilenet_v3),
    "NASNet": NASNET,
    "PNASNet": NASNET,
    "PyramidVisionTransformer": PVT,
    "RegNet": REGNET,
    "RepMLPNet": repmlp,
    "ResNet": resnet,
    "RexNet": REXNET,
    "SENet": senet,
    "ShuffleNetV2": SHUFFLENET_V2,
}
"""By the name of the backbone's class."""
