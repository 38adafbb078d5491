"""From a table of blocks in compact notation to the stem and stages of efficientnet and mobilenetv3.

The notation began with the MnasNet authors' published code (Tan et al. 2018, arXiv 1807.11626) and timm extended it. A
stage is a sequence of words such as `ir_r2_k3_s2_e6_c24_se0.25` (or a string of them, between spaces): the kind of
block, then its options, joined by `_`:

- `r2` repeats, `k3` kernel, `s2` stride of the first, `c24` channels (before the width is scaled)
- `e6` expansion, `se0.25` squeeze of the channel gate, `gs16` channels a group, `cc4` experts of a mixed convolution
- `a3`, `p1` kernels before and after the depthwise one; `k3.5.7` shares the channels among three kernels
- `skip`, `noskip`; `nre`, `nr6`, `nhs`, `nsw`, `nmi` name the activation; `fc24` width that the expansion counts from
- `d1` folds 2 x 2 pixels into channels, up to the next strided block
- of attention: `h8` heads, `d64` channels of a key (in `mqa` and `mha`), `v2` stride of keys and values

Kinds: `cn` convolution, `ds` depthwise separable (`dsa` with a last activation, without shortcut), `ir` inverted
residual, `er` edge residual, `uir` universal inverted residual, `mqa` and `mha` attention.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import nn

from ..backbone import Backbone, Plan, Step
from ..errors import BadArgument
from ..layers.attention2d import MultiQueryAttention2d
from ..layers.create_act import get_act_layer
from ..layers.create_attn import get_attn
from ..layers.create_conv2d import create_conv2d
from ..layers.create_norm_act import get_norm_act_layer
from ..layers.shapes import make_divisible
from ..layers.typing import LayerType, PadType
from ..layers.weight_init import init_weight_tf
from .efficientnet_blocks import (
    CondConvResidual,
    ConvBnAct,
    DepthwiseSeparableConv,
    EdgeResidual,
    InvertedResidual,
    MobileAttention,
    SqueezeExcite,
    UniversalInvertedResidual,
)

__all__ = ["MobileBackbone", "decode_arch_def", "resolve_layers", "round_channels"]

BlockArgs = Sequence[Sequence[Any]]
"""Stages of blocks: words of the notation, or what `decode_arch_def` makes of them."""

ACTIVATIONS = {"nre": "relu", "nr6": "relu6", "nhs": "hard_swish", "nsw": "swish", "nmi": "mish"}

OPTIONS = ("r", "k", "s", "c", "e", "se", "gs", "cc", "a", "p", "fc", "d", "h", "v")

BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "cn": ConvBnAct,
    "ds": DepthwiseSeparableConv,
    "dsa": DepthwiseSeparableConv,
    "ir": InvertedResidual,
    "er": EdgeResidual,
    "uir": UniversalInvertedResidual,
    "mqa": partial(MobileAttention, use_multi_query=True),
    "mha": partial(MobileAttention, use_multi_query=False),
}


def round_channels(
    channels: float,
    multiplier: float = 1.0,
    divisor: int = 8,
    channel_min: int | None = None,
    round_limit: float = 0.9,
) -> int:
    """`channels` times `multiplier` as a multiple of `divisor`; see `make_divisible` for the rest."""
    return make_divisible(channels * multiplier, divisor, channel_min, round_limit) if multiplier else int(channels)


def kernel_sides(text: str) -> int | list[int]:
    """A kernel's side, or the sides of several."""
    sides = [int(side) for side in text.split(".")]
    return sides[0] if len(sides) == 1 else sides


def decode_block(word: str) -> tuple[dict[str, Any], int]:
    """One word of the notation as arguments of its block, and how often it is repeated.

    Raises `BadArgument` for a kind of block or an option that the notation does not have.
    """
    kind, *parts = word.split("_")
    if kind not in BLOCKS:
        raise BadArgument(f"block {word!r}: no kind {kind!r}; there are {', '.join(BLOCKS)}")
    given: dict[str, str] = {}
    act_layer: LayerType | None = None
    skip = None
    for part in parts:
        if part in ACTIVATIONS:
            act_layer = get_act_layer(ACTIVATIONS[part])
        elif part in ("skip", "noskip"):
            skip = part == "skip"
        else:
            option = re.fullmatch(r"([a-z]+)([\d.]+)", part)
            if option is None or option[1] not in OPTIONS:
                raise BadArgument(f"block {word!r}: {part!r} is no option of the notation; "
                                  f"see {__name__} for those there are")
            given[option[1]] = option[2]
    missing = [key for key in "ksc" if key not in given]
    if missing:
        raise BadArgument(f"block {word!r} lacks {missing[0]!r}: kernel k, stride s and channels c are always given")

    args: dict[str, Any] = dict(block_type=kind, out_chs=int(given["c"]), stride=int(given["s"]), act_layer=act_layer)
    kernel, before, after = (kernel_sides(given.get(key, "1")) for key in "kap")
    experts = int(given.get("cc", 0))
    expansion, squeeze = float(given.get("e", 1)), float(given.get("se", 0))
    folds = int(given.get("d", 0)) > 0
    if kind == "cn":
        args |= dict(kernel_size=kernel, skip=skip is True)
    elif kind in ("ds", "dsa"):
        args |= dict(dw_kernel_size=kernel, pw_kernel_size=after, se_ratio=squeeze, pw_act=kind == "dsa",
                     noskip=kind == "dsa" or skip is False, s2d=folds)
    elif kind == "ir":
        args |= dict(dw_kernel_size=kernel, exp_kernel_size=before, pw_kernel_size=after, exp_ratio=expansion,
                     se_ratio=squeeze, noskip=skip is False, s2d=folds)
    elif kind == "er":
        args |= dict(exp_kernel_size=kernel, pw_kernel_size=after, exp_ratio=expansion, se_ratio=squeeze,
                     force_in_chs=int(given.get("fc", 0)), noskip=skip is False)
    elif kind == "uir":
        args |= dict(dw_kernel_size_start=int(given.get("a", 0)), dw_kernel_size_mid=kernel,
                     dw_kernel_size_end=int(given.get("p", 0)), exp_ratio=expansion, se_ratio=squeeze,
                     noskip=skip is False)
    else:
        width = int(given.get("d", 64))
        args |= dict(dw_kernel_size=kernel, num_heads=int(given.get("h", 8)), key_dim=width, value_dim=width,
                     kv_stride=int(given.get("v", 1)), noskip=skip is False)
    if "gs" in given:
        args["group_size"] = int(given["gs"])
    if experts:
        if kind != "ir":
            raise BadArgument(f"block {word!r}: experts (cc) are for inverted residuals (ir)")
        args["num_experts"] = experts
    return args, int(given.get("r", 1))


def scale_depth(repeats: list[int], multiplier: float, rounding: str) -> list[int]:
    """Repeats of a stage's blocks for `multiplier` times as many in all, each at least once.

    The total is rounded up ('ceil') or to the nearest ('round'); from the last block to the first, each takes its
    share of what is left.
    """
    left = sum(repeats)
    wanted = max(1, round(left * multiplier)) if rounding == "round" else math.ceil(left * multiplier)
    scaled = []
    for repeat in reversed(repeats):
        share = max(1, round(repeat / left * wanted))
        scaled.append(share)
        left -= repeat
        wanted -= share
    return scaled[::-1]


def decode_arch_def(
    arch_def: BlockArgs,
    depth_multiplier: float | Sequence[float] = 1.0,
    depth_trunc: str = "ceil",
    experts_multiplier: int = 1,
    fix_first_last: bool = False,
    group_size: int | None = None,
) -> list[list[dict[str, Any]]]:
    """Stages of words as stages of blocks' arguments, repeats written out.

    `depth_multiplier` scales the blocks of every stage (or of each, if a sequence), rounding as `depth_trunc` says;
    `fix_first_last` leaves the first and the last as they are. `group_size` is for blocks that do not say their own.
    Raises `BadArgument` for a word that is not of the notation.
    """
    count = len(arch_def)
    factors = list(depth_multiplier) if isinstance(depth_multiplier, Sequence) else [depth_multiplier] * count
    if len(factors) != count:
        raise BadArgument(f"depth_multiplier has {len(factors)} values for {count} stages; give one a stage, or one")
    if fix_first_last:
        factors[0] = factors[-1] = 1.0
    stages = []
    for words, factor in zip(arch_def, factors):
        decoded = [decode_block(word) for word in (words.split() if isinstance(words, str) else words)]
        repeats = scale_depth([repeat for _, repeat in decoded], factor, depth_trunc)
        blocks = []
        for (args, _), repeat in zip(decoded, repeats):
            if "num_experts" in args:
                args["num_experts"] *= experts_multiplier
            if group_size is not None:
                args.setdefault("group_size", group_size)
            blocks += [dict(args) for _ in range(repeat)]
        stages.append(blocks)
    return stages


def place_folding(stages: BlockArgs) -> list[list[dict[str, Any]]]:
    """The blocks with strides only where they are (on a stage's first), and folded pixels carried on.

    From the block that says `s2d` to the next strided one all channels count four times; `s2d` becomes 1 in the first
    of them, 2 in the others. The strided block's stride is spent by then, and its expansion counts unfolded channels.
    """
    placed = []
    is_folded = False
    for stage in stages:
        blocks = []
        for index, block in enumerate(stage):
            args = dict(block, stride=block["stride"] if index == 0 else 1)
            starts = args.pop("s2d", False) and not is_folded
            if is_folded and args["stride"] > 1:
                args |= dict(stride=1, exp_ratio=args.get("exp_ratio", 1.0) / 4)
                is_folded = False
            elif starts or is_folded:
                args["s2d"] = 1 if starts else 2
                is_folded = True
            blocks.append(args)
        placed.append(blocks)
    return placed


def scale_expansions(
    stages: BlockArgs, stem_size: int, stem_width: int, round_chs: Callable[[float], int]
) -> list[list[dict[str, Any]]]:
    """The blocks with expansions that make their middles those of the unscaled network, each scaled and rounded.

    `stem_size` is the stem's width in that network, `stem_width` in this one.
    """
    scaled = []
    unscaled, width = stem_size, stem_width
    for stage in stages:
        blocks = []
        for block in stage:
            args = dict(block)
            if "exp_ratio" in args and not args.get("force_in_chs"):
                args["exp_ratio"] = round_chs(make_divisible(unscaled * args["exp_ratio"])) / width
            unscaled = args["out_chs"]
            width = round_chs(unscaled)
            blocks.append(args)
        scaled.append(blocks)
    return scaled


def takes(layer: Callable[..., Any], argument: str) -> bool:
    """Whether `layer` can be called with this argument."""
    return argument in inspect.signature(layer).parameters


def resolve_layers(
    act_layer: LayerType | None, norm_layer: LayerType | None, bn_eps: float, bn_momentum: float
) -> tuple[LayerType, LayerType]:
    """The activation and the norm asked for: ReLU and batch norm unless told; the last two are that batch norm's."""
    return get_act_layer(act_layer) or nn.ReLU, norm_layer or partial(nn.BatchNorm2d, eps=bn_eps, momentum=bn_momentum)


class StageMaker:
    """Makes blocks from their arguments, with what all blocks of a network share."""

    def __init__(
        self,
        plan: Plan,
        round_chs_fn: Callable[[float], int],
        se_layer: LayerType | None,
        se_from_exp: bool,
        layer_scale_init_value: float | None,
        aa_layer: LayerType | None,
        **common: Any,
    ) -> None:
        self.plan = plan
        self.round_chs = round_chs_fn
        self.se_layer = get_attn(se_layer)
        self.se_from_exp = se_from_exp
        self.layer_scale_init_value = layer_scale_init_value
        self.aa_layer = aa_layer
        self.common = common  # act_layer, norm_layer, pad_type

    def stage(self, in_chs: int, blocks: Sequence[dict[str, Any]]) -> Iterator[tuple[nn.Module, int]]:
        """The blocks of one stage, each with the channels that it puts out."""
        step = self.plan.step(blocks[0]["stride"])
        for args in blocks:
            block, in_chs = self.block(in_chs, args, step)
            yield block, in_chs
            step = Step(1, step.dilation, step.dilation)

    def block(self, in_chs: int, args: dict[str, Any], step: Step) -> tuple[nn.Module, int]:
        """One block and the channels that it puts out."""
        args = dict(args)
        act_layer = args.pop("act_layer", None)
        kind = args.pop("block_type")
        make = CondConvResidual if "num_experts" in args else BLOCKS[kind]
        options = dict(self.common, stride=step.stride, dilation=step.first_dilation)
        if act_layer is not None:
            options["act_layer"] = act_layer
        folds = args.get("s2d", 0)
        if folds == 1:
            self.plan.spend(2)
        out_chs = self.round_chs(args["out_chs"]) * (4 if folds else 1)
        if args.get("force_in_chs"):
            options["force_in_chs"] = self.round_chs(args["force_in_chs"])
        if "se_ratio" in args:
            expansion = 1.0 if self.se_from_exp else args.get("exp_ratio", 1.0)
            options["se_layer"] = self.gate(args.pop("se_ratio"), expansion, 4 if folds == 1 else 1)
        if kind in ("uir", "mqa", "mha"):
            options["layer_scale_init_value"] = self.layer_scale_init_value
        if kind not in ("mqa", "mha"):
            options["aa_layer"] = self.aa_layer
        return make(in_chs, **{**args, **options, "out_chs": out_chs}), out_chs

    def gate(self, ratio: float, expansion: float, folded: int) -> Callable[..., nn.Module] | None:
        """The channel gate for the middle of a block; `ratio` is to the block's own input channels, unfolded."""
        if not ratio or self.se_layer is None:
            return None
        if not takes(self.se_layer, "rd_ratio"):
            return self.se_layer
        return partial(self.se_layer, rd_ratio=ratio / expansion / folded)


class MobileBackbone(Backbone):
    """A strided convolution and stages of mobile blocks; the head is the subclass's.

    - `block_args`: the stages, in the notation of this module or decoded; `depth_multiplier`, `depth_trunc`,
      `experts_multiplier`, `fix_first_last` and `group_size` are those of `decode_arch_def`.
    - `channel_multiplier`: scales all widths (the stem's not if `fix_stem`), rounded to multiples of `channel_divisor`
      and down by no more than `round_limit` allows; `round_chs_fn` in their place is any function of the width.
      With `scale_expansion` the middles of blocks are scaled and rounded likewise; else they are multiples of the
      block's scaled input.
    - `stem_size`, `stem_kernel_size`: channels and kernel of the stem.
    - `pad_type`: '' pads symmetrically, 'same' as TensorFlow does; `stem_pad_type`: the stem's, if it is another.
    - `act_layer`, `norm_layer`, `aa_layer`: layers by name or class; with an `aa_layer`, it strides and not the kernels.
    - `se_layer` (`SqueezeExcite`): the gate; `se_from_exp` measures its squeeze from the expanded channels.
    - `layer_scale_init_value`: of universal blocks and attention; None leaves layer scale out.
    - `levels_per`: 'stride', a level for the last stage of each stride; 'stage' or 'block', one for each of those, for
      the stem, and for a convolution behind them that is not behind the pooling.
    """

    units = r"blocks\.(\d+)\.(\d+)"
    dilates_to = 2
    drop_path_reaches_rate = False

    def __init__(
        self,
        block_args: BlockArgs,
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int | None = None,
        global_pool: str = "avg",
        stem_size: int = 32,
        stem_kernel_size: int = 3,
        fix_stem: bool = False,
        pad_type: PadType = "",
        stem_pad_type: PadType | None = None,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        aa_layer: LayerType | None = None,
        se_layer: LayerType | None = None,
        se_from_exp: bool = False,
        round_chs_fn: Callable[[float], int] | None = None,
        channel_multiplier: float = 1.0,
        channel_divisor: int = 8,
        round_limit: float = 0.9,
        scale_expansion: bool = False,
        depth_multiplier: float | Sequence[float] = 1.0,
        depth_trunc: str = "ceil",
        experts_multiplier: int = 1,
        fix_first_last: bool = False,
        group_size: int | None = None,
        layer_scale_init_value: float | None = None,
        levels_per: str = "stride",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, output_stride, **kwargs)
        if levels_per not in ("stride", "stage", "block"):
            raise BadArgument(f"levels_per={levels_per!r}: give 'stride', 'stage' or 'block'")
        self.levels_per = levels_per
        if isinstance(block_args[0][0], str):
            block_args = decode_arch_def(block_args, depth_multiplier, depth_trunc, experts_multiplier,
                                         fix_first_last, group_size)
        round_chs = round_chs_fn or partial(round_channels, multiplier=channel_multiplier, divisor=channel_divisor,
                                            round_limit=round_limit)
        norm = get_norm_act_layer(norm_layer, act_layer)
        assert norm is not None

        width = stem_size if fix_stem else round_chs(stem_size)
        if scale_expansion:
            block_args = scale_expansions(block_args, stem_size, width, round_chs)
        stages = place_folding(block_args)
        self.conv_stem = create_conv2d(in_chans, width, stem_kernel_size, stride=2,
                                       padding=pad_type if stem_pad_type is None else stem_pad_type)
        self.bn1 = norm(width)
        self.plan.spend(2)
        strided = [stage[0]["stride"] > 1 or stage[0].get("s2d") == 1 for stage in stages]
        self.stem_is_level = strided[0] or levels_per != "stride"
        if self.stem_is_level:
            self.plan.mark(width, "bn1")

        maker = StageMaker(self.plan, round_chs, se_layer or SqueezeExcite, se_from_exp, layer_scale_init_value,
                           aa_layer, act_layer=act_layer, norm_layer=norm_layer, pad_type=pad_type)
        self.blocks = nn.Sequential()
        self.level_stages: list[int] = []  # by stride, a stage makes a level where the next one strides, and at the end
        for i, blocks in enumerate(stages):
            stage = nn.Sequential()
            self.blocks.append(stage)
            for j, (block, out_chs) in enumerate(maker.stage(width, blocks)):
                stage.append(block)
                width = out_chs
                if levels_per == "block":
                    self.plan.mark(width, f"blocks.{i}.{j}")
            if levels_per != "stride" or i + 1 == len(stages) or strided[i + 1]:
                self.level_stages.append(i)
            if levels_per != "block" and i in self.level_stages:
                self.plan.mark(width, f"blocks.{i}")

    def init_weights(self) -> None:
        """Normal weights by fan out, as the authors' TensorFlow code draws them; attention draws its own."""
        for name, module in self.named_modules():
            init_weight_tf(module, name)
        for module in self.blocks.modules():
            if isinstance(module, MultiQueryAttention2d):
                module.init_weights()
