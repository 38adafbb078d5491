"""EfficientNet and the networks searched and scaled before and after it (Tan and Le 2019, arXiv 1905.11946).

One trunk carries MobileNet (Howard et al. 2017, 1704.04861) and MobileNetV2 (Sandler et al. 2018, 1801.04381), MnasNet
(Tan et al. 2018, 1807.11626), Single-Path NAS (Stamoulis et al. 2019, 1904.02877), FBNet-C (Wu et al. 2018,
1812.03443), MixNet (Tan and Le 2019, 1907.09595), CondConv (Yang et al. 2019, 1904.04971), EfficientNet for EdgeTPU
(Gupta and Akin 2020, 2003.02838), EfficientNet Lite, TinyNet (Han et al. 2020, 2010.14819), EfficientNetV2 (Tan and Le
2021, 2104.00298) and EfficientNet-X (Li et al. 2021, 2102.05610). A 1x1 convolution widens the last level before it is
pooled. The `tf_` variants are for weights trained in TensorFlow: they pad as it does and have its batch norm's epsilon.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..backbone import Family
from ..layers.create_conv2d import create_conv2d
from ..layers.create_norm_act import get_norm_act_layer
from ..layers.evo_norm import EvoNorm2dS0
from ..layers.norm_act import GroupNormAct, LayerNormAct2d
from ..layers.typing import LayerType, PadType
from .efficientnet_builder import BlockArgs, MobileBackbone, resolve_layers

__all__ = ["EfficientNet"]


class EfficientNet(MobileBackbone):
    """A strided stem, stages of mobile blocks, a 1x1 convolution, pooling.

    `num_features` is the width of that convolution, which is left out where it is 0. `act_layer` is ReLU unless given,
    `norm_layer` a batch norm with `bn_eps` and `bn_momentum`. All else is in `MobileBackbone`.
    """

    def __init__(
        self,
        block_args: BlockArgs,
        num_classes: int = 1000,
        num_features: int = 1280,
        in_chans: int = 3,
        pad_type: PadType = "",
        act_layer: LayerType | None = None,
        norm_layer: LayerType | None = None,
        bn_eps: float = 1e-5,
        bn_momentum: float = 0.1,
        **kwargs: Any,
    ) -> None:
        act_layer, norm_layer = resolve_layers(act_layer, norm_layer, bn_eps, bn_momentum)
        super().__init__(block_args, num_classes, in_chans, pad_type=pad_type, act_layer=act_layer,
                         norm_layer=norm_layer, **kwargs)
        width = self.plan.levels[-1]["num_chs"]
        self.conv_head: nn.Module | None = None
        if num_features > 0:
            norm = get_norm_act_layer(norm_layer, act_layer)
            assert norm is not None
            self.conv_head = create_conv2d(width, num_features, 1, padding=pad_type)
            self.bn2 = norm(num_features)
            if self.levels_per != "stride":
                self.plan.mark(num_features, "bn2")
        self.make_head("classifier", num_features or width)

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        x = self.bn1(self.conv_stem(x))
        if self.stem_is_level:
            yield x
        for i, stage in enumerate(self.blocks):
            for part in stage.children() if self.levels_per == "block" else (stage,):
                x = part(x)
                if i in self.level_stages:
                    yield x
        if self.conv_head is not None:
            yield self.bn2(self.conv_head(x))

    def remap_checkpoint(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Puts checkpoints of the package efficientnet-pytorch, which counts blocks through all stages, under our names."""
        if "_conv_stem.weight" not in state_dict:
            return state_dict
        places = [f"blocks.{i}.{j}" for i, stage in enumerate(self.blocks) for j, _ in enumerate(stage.children())]
        remapped = {}
        for key, value in state_dict.items():
            layer, _, rest = key.partition(".")
            names, place = OUTER, ""
            if layer == "_blocks":
                number, layer, rest = rest.split(".", 2)
                if int(number) >= len(places):
                    names = {}  # stays as it is, for the loader to complain of, or to pass over if the model is pruned
                else:
                    expands = f"_blocks.{number}._expand_conv.weight" in state_dict
                    names, place = EXPANDING if expands else SEPARABLE, f"{places[int(number)]}."
            remapped[f"{place}{names[layer]}.{rest}" if layer in names else key] = value
        return remapped


# what efficientnet-pytorch calls the layers: outside of blocks, in an inverted residual, in a depthwise separable block
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
GATE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
EXPANDING = GATE | {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
                    "_project_conv": "conv_pwl", "_bn2": "bn3"}
SEPARABLE = GATE | {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}

MOBILE_V1_BLOCKS = (
    "dsa_r1_k3_s1_c64",
    "dsa_r2_k3_s2_c128",
    "dsa_r2_k3_s2_c256",
    "dsa_r6_k3_s2_c512",
    "dsa_r2_k3_s2_c1024",
)
MOBILE_V2_BLOCKS = (
    "ds_r1_k3_s1_c16",
    "ir_r2_k3_s2_e6_c24",
    "ir_r3_k3_s2_e6_c32",
    "ir_r4_k3_s2_e6_c64",
    "ir_r3_k3_s1_e6_c96",
    "ir_r3_k3_s2_e6_c160",
    "ir_r1_k3_s1_e6_c320",
)
MNAS_A1_BLOCKS = (
    "ds_r1_k3_s1_e1_c16_noskip",
    "ir_r2_k3_s2_e6_c24",
    "ir_r3_k5_s2_e3_c40_se0.25",
    "ir_r4_k3_s2_e6_c80",
    "ir_r2_k3_s1_e6_c112_se0.25",
    "ir_r3_k5_s2_e6_c160_se0.25",
    "ir_r1_k3_s1_e6_c320",
)
MNAS_B1_BLOCKS = (
    "ds_r1_k3_s1_c16_noskip",
    "ir_r3_k3_s2_e3_c24",
    "ir_r3_k5_s2_e3_c40",
    "ir_r3_k5_s2_e6_c80",
    "ir_r2_k3_s1_e6_c96",
    "ir_r4_k5_s2_e6_c192",
    "ir_r1_k3_s1_e6_c320_noskip",
)
MNAS_SMALL_BLOCKS = (
    "ds_r1_k3_s1_c8",
    "ir_r1_k3_s2_e3_c16",
    "ir_r2_k3_s2_e6_c16",
    "ir_r4_k5_s2_e6_c32_se0.25",
    "ir_r3_k3_s1_e6_c32_se0.25",
    "ir_r3_k5_s2_e6_c88_se0.25",
    "ir_r1_k3_s1_e6_c144",
)
SPNAS_BLOCKS = (
    "ds_r1_k3_s1_c16_noskip",
    "ir_r3_k3_s2_e3_c24",
    "ir_r1_k5_s2_e6_c40 ir_r3_k3_s1_e3_c40",
    "ir_r1_k5_s2_e6_c80 ir_r3_k3_s1_e3_c80",
    "ir_r1_k5_s1_e6_c96 ir_r3_k5_s1_e3_c96",
    "ir_r4_k5_s2_e6_c192",
    "ir_r1_k3_s1_e6_c320_noskip",
)
FBNET_C_BLOCKS = (
    "ir_r1_k3_s1_e1_c16",
    "ir_r1_k3_s2_e6_c24 ir_r2_k3_s1_e1_c24",
    "ir_r1_k5_s2_e6_c32 ir_r1_k5_s1_e3_c32 ir_r1_k5_s1_e6_c32 ir_r1_k3_s1_e6_c32",
    "ir_r1_k5_s2_e6_c64 ir_r1_k5_s1_e3_c64 ir_r2_k5_s1_e6_c64",
    "ir_r3_k5_s1_e6_c112 ir_r1_k5_s1_e3_c112",
    "ir_r4_k5_s2_e6_c184",
    "ir_r1_k3_s1_e6_c352",
)
B_BLOCKS = (
    "ds_r1_k3_s1_e1_c16_se0.25",
    "ir_r2_k3_s2_e6_c24_se0.25",
    "ir_r2_k5_s2_e6_c40_se0.25",
    "ir_r3_k3_s2_e6_c80_se0.25",
    "ir_r3_k5_s1_e6_c112_se0.25",
    "ir_r4_k5_s2_e6_c192_se0.25",
    "ir_r1_k3_s1_e6_c320_se0.25",
)
LITE_BLOCKS = (
    "ds_r1_k3_s1_e1_c16",
    "ir_r2_k3_s2_e6_c24",
    "ir_r2_k5_s2_e6_c40",
    "ir_r3_k3_s2_e6_c80",
    "ir_r3_k5_s1_e6_c112",
    "ir_r4_k5_s2_e6_c192",
    "ir_r1_k3_s1_e6_c320",
)
CONDCONV_BLOCKS = (
    "ds_r1_k3_s1_e1_c16_se0.25",
    "ir_r2_k3_s2_e6_c24_se0.25",
    "ir_r2_k5_s2_e6_c40_se0.25",
    "ir_r3_k3_s2_e6_c80_se0.25",
    "ir_r3_k5_s1_e6_c112_se0.25_cc4",
    "ir_r4_k5_s2_e6_c192_se0.25_cc4",
    "ir_r1_k3_s1_e6_c320_se0.25_cc4",
)
EDGE_BLOCKS = (
    "er_r1_k3_s1_e4_c24_fc24_noskip",
    "er_r2_k3_s2_e8_c32",
    "er_r4_k3_s2_e8_c48",
    "ir_r5_k5_s2_e8_c96",
    "ir_r4_k5_s1_e8_c144",
    "ir_r2_k5_s2_e8_c192",
)
X_BLOCKS = (
    "ds_r1_k3_s1_e1_c16_se0.25_d1",
    "er_r2_k3_s2_e6_c24_se0.25_nre",
    "er_r2_k5_s2_e6_c40_se0.25_nre",
    "ir_r3_k3_s2_e6_c80_se0.25",
    "ir_r3_k5_s1_e6_c112_se0.25",
    "ir_r4_k5_s2_e6_c192_se0.25",
    "ir_r1_k3_s1_e6_c320_se0.25",
)
H_BLOCKS = (
    "ds_r1_k3_s1_e1_c16_se0.25_d1",
    "er_r2_k3_s2_e4_c24_se0.25_nre",
    "er_r2_k5_s2_e4_c40_se0.25_nre",
    "ir_r3_k3_s2_e4_c80_se0.25",
    "ir_r3_k5_s1_e6_c112_se0.25",
    "ir_r4_k5_s2_e6_c192_se0.25",
    "ir_r1_k3_s1_e6_c320_se0.25",
)
V2_S_BLOCKS = (
    "cn_r2_k3_s1_e1_c24_skip",
    "er_r4_k3_s2_e4_c48",
    "er_r4_k3_s2_e4_c64",
    "ir_r6_k3_s2_e4_c128_se0.25",
    "ir_r9_k3_s1_e6_c160_se0.25",
    "ir_r15_k3_s2_e6_c256_se0.25",
)
V2_M_BLOCKS = (
    "cn_r3_k3_s1_e1_c24_skip",
    "er_r5_k3_s2_e4_c48",
    "er_r5_k3_s2_e4_c80",
    "ir_r7_k3_s2_e4_c160_se0.25",
    "ir_r14_k3_s1_e6_c176_se0.25",
    "ir_r18_k3_s2_e6_c304_se0.25",
    "ir_r5_k3_s1_e6_c512_se0.25",
)
V2_L_BLOCKS = (
    "cn_r4_k3_s1_e1_c32_skip",
    "er_r7_k3_s2_e4_c64",
    "er_r7_k3_s2_e4_c96",
    "ir_r10_k3_s2_e4_c192_se0.25",
    "ir_r19_k3_s1_e6_c224_se0.25",
    "ir_r25_k3_s2_e6_c384_se0.25",
    "ir_r7_k3_s1_e6_c640_se0.25",
)
V2_XL_BLOCKS = (
    "cn_r4_k3_s1_e1_c32_skip",
    "er_r8_k3_s2_e4_c64",
    "er_r8_k3_s2_e4_c96",
    "ir_r16_k3_s2_e4_c192_se0.25",
    "ir_r24_k3_s1_e6_c256_se0.25",
    "ir_r32_k3_s2_e6_c512_se0.25",
    "ir_r8_k3_s1_e6_c640_se0.25",
)
V2_B_BLOCKS = (
    "cn_r1_k3_s1_e1_c16_skip",
    "er_r2_k3_s2_e4_c32",
    "er_r2_k3_s2_e4_c48",
    "ir_r3_k3_s2_e4_c96_se0.25",
    "ir_r5_k3_s1_e6_c112_se0.25",
    "ir_r8_k3_s2_e6_c192_se0.25",
)
V2_RW_BLOCKS = (
    "er_r2_k3_s1_e1_c24",
    "er_r4_k3_s2_e4_c48",
    "er_r4_k3_s2_e4_c64",
    "ir_r6_k3_s2_e4_c128_se0.25",
    "ir_r9_k3_s1_e6_c160_se0.25",
    "ir_r15_k3_s2_e6_c272_se0.25",
)
MIX_S_BLOCKS = (
    "ds_r1_k3_s1_e1_c16",
    "ir_r1_k3_a1.1_p1.1_s2_e6_c24 ir_r1_k3_a1.1_p1.1_s1_e3_c24",
    "ir_r1_k3.5.7_s2_e6_c40_se0.5_nsw ir_r3_k3.5_a1.1_p1.1_s1_e6_c40_se0.5_nsw",
    "ir_r1_k3.5.7_p1.1_s2_e6_c80_se0.25_nsw ir_r2_k3.5_p1.1_s1_e6_c80_se0.25_nsw",
    "ir_r1_k3.5.7_a1.1_p1.1_s1_e6_c120_se0.5_nsw ir_r2_k3.5.7.9_a1.1_p1.1_s1_e3_c120_se0.5_nsw",
    "ir_r1_k3.5.7.9.11_s2_e6_c200_se0.5_nsw ir_r2_k3.5.7.9_p1.1_s1_e6_c200_se0.5_nsw",
)
MIX_M_BLOCKS = (
    "ds_r1_k3_s1_e1_c24",
    "ir_r1_k3.5.7_a1.1_p1.1_s2_e6_c32 ir_r1_k3_a1.1_p1.1_s1_e3_c32",
    "ir_r1_k3.5.7.9_s2_e6_c40_se0.5_nsw ir_r3_k3.5_a1.1_p1.1_s1_e6_c40_se0.5_nsw",
    "ir_r1_k3.5.7_s2_e6_c80_se0.25_nsw ir_r3_k3.5.7.9_a1.1_p1.1_s1_e6_c80_se0.25_nsw",
    "ir_r1_k3_s1_e6_c120_se0.5_nsw ir_r3_k3.5.7.9_a1.1_p1.1_s1_e3_c120_se0.5_nsw",
    "ir_r1_k3.5.7.9_s2_e6_c200_se0.5_nsw ir_r3_k3.5.7.9_p1.1_s1_e6_c200_se0.5_nsw",
)
EDGETPU_BLOCKS = (
    "cn_r1_k1_s1_c16",
    "er_r1_k3_s2_e8_c32 er_r3_k3_s1_e4_c32",
    "er_r1_k3_s2_e8_c48 er_r3_k3_s1_e4_c48",
    "ir_r1_k3_s2_e8_c96 ir_r3_k3_s1_e4_c96",
    "ir_r1_k3_s1_e8_c96_noskip ir_r3_k3_s1_e4_c96",
    "ir_r1_k5_s2_e8_c160 ir_r3_k5_s1_e4_c160",
    "ir_r1_k3_s1_e8_c192",
)
EDGETPU_V2_XS_BLOCKS = (
    "cn_r1_k1_s1_c16",
    "er_r1_k3_s2_e8_c32 er_r1_k3_s1_e4_gs64_c32",
    "er_r1_k3_s2_e8_c48 er_r1_k3_s1_e4_gs64_c48 er_r1_k3_s1_e4_c48 er_r1_k3_s1_e4_gs64_c48",
    "er_r1_k3_s2_e8_c96 ir_r3_k3_s1_e4_c96",
    "ir_r1_k3_s1_e8_c144 ir_r3_k3_s1_e4_c144",
    "ir_r1_k3_s2_e8_c160 ir_r3_k3_s1_e4_c160",
    "ir_r1_k3_s1_e8_c192",
)
EDGETPU_V2_S_BLOCKS = (
    "cn_r1_k1_s1_c24",
    "er_r1_k3_s2_e8_c48 er_r1_k3_s1_e4_gs64_c48",
    "er_r1_k3_s2_e8_c64 er_r1_k3_s1_e4_gs64_c64 er_r1_k3_s1_e4_c64 er_r1_k3_s1_e4_gs64_c64",
    "er_r1_k3_s2_e8_c128 ir_r3_k3_s1_e4_c128",
    "ir_r1_k3_s1_e8_c160 ir_r3_k3_s1_e4_c160",
    "ir_r1_k3_s2_e8_c192 ir_r3_k3_s1_e4_c192",
    "ir_r1_k3_s1_e8_c256",
)
EDGETPU_V2_M_BLOCKS = (
    "cn_r1_k1_s1_c32",
    "er_r1_k3_s2_e8_c64 er_r1_k3_s1_e4_gs64_c64",
    "er_r1_k3_s2_e8_c80 er_r1_k3_s1_e4_gs64_c80 er_r1_k3_s1_e4_c80 er_r1_k3_s1_e4_gs64_c80",
    "er_r1_k3_s2_e8_c160 ir_r3_k3_s1_e4_c160",
    "ir_r1_k3_s1_e8_c192 ir_r3_k3_s1_e4_c192",
    "ir_r1_k3_s2_e8_c240 ir_r3_k3_s1_e4_c240",
    "ir_r1_k3_s1_e8_c320",
)
EDGETPU_V2_L_BLOCKS = (
    "cn_r1_k1_s1_c32",
    "er_r1_k3_s2_e8_c64 er_r1_k3_s1_e4_gs128_c64",
    "er_r1_k3_s2_e8_c96 er_r1_k3_s1_e4_gs128_c96 er_r1_k3_s1_e4_c96 er_r1_k3_s1_e4_gs128_c96",
    "er_r1_k3_s2_e8_c192 ir_r3_k3_s1_e4_c192",
    "ir_r1_k3_s1_e8_c240 ir_r3_k3_s1_e4_c240",
    "ir_r1_k3_s2_e8_c256 ir_r3_k3_s1_e4_c256",
    "ir_r1_k3_s1_e8_c384",
)
TEST_BLOCKS = (
    "cn_r1_k3_s1_e1_c16_skip",
    "er_r1_k3_s2_e4_c24",
    "er_r1_k3_s2_e4_c32",
    "ir_r1_k3_s2_e4_c48_se0.25",
    "ir_r1_k3_s2_e4_c64_se0.25",
)

SILU = dict(act_layer="silu")
RELU6 = dict(act_layer="relu6")
TF = dict(pad_type="same", bn_eps=1e-3)  # as TensorFlow pads and normalises
PRUNED = TF | dict(pruned=True)

MOBILE_V1 = dict(block_args=MOBILE_V1_BLOCKS, num_features=0) | RELU6
MOBILE_V2 = dict(block_args=MOBILE_V2_BLOCKS) | RELU6
MOBILE_V2_DEEP = MOBILE_V2 | dict(fix_stem=True, fix_first_last=True)
MNAS_A1 = dict(block_args=MNAS_A1_BLOCKS)
MNAS_B1 = dict(block_args=MNAS_B1_BLOCKS)

# what scales a base model: width, depth, and the head's width
B1 = dict(depth_multiplier=1.1)
B2 = dict(channel_multiplier=1.1, depth_multiplier=1.2, num_features=1408)
B3 = dict(channel_multiplier=1.2, depth_multiplier=1.4, num_features=1536)
B4 = dict(channel_multiplier=1.4, depth_multiplier=1.8, num_features=1792)
B5 = dict(channel_multiplier=1.6, depth_multiplier=2.2, num_features=2048)
B6 = dict(channel_multiplier=1.8, depth_multiplier=2.6, num_features=2304)
B7 = dict(channel_multiplier=2.0, depth_multiplier=3.1, num_features=2560)
B8 = dict(channel_multiplier=2.2, depth_multiplier=3.6, num_features=2816)
L2 = dict(channel_multiplier=4.3, depth_multiplier=5.3, num_features=5504)

EFF = dict(block_args=B_BLOCKS) | SILU
LITE = dict(block_args=LITE_BLOCKS, num_features=1280, fix_stem=True, fix_first_last=True) | RELU6
CONDCONV = dict(block_args=CONDCONV_BLOCKS) | SILU
EIGHT_EXPERTS = dict(experts_multiplier=2)
EDGE = dict(block_args=EDGE_BLOCKS)
X = dict(block_args=X_BLOCKS) | SILU
H = dict(block_args=H_BLOCKS) | SILU
TINY = EFF | dict(depth_trunc="round", fix_stem=True)

V2_S = dict(block_args=V2_S_BLOCKS, stem_size=24) | SILU
V2_M = dict(block_args=V2_M_BLOCKS, stem_size=24) | SILU
V2_L = dict(block_args=V2_L_BLOCKS) | SILU
V2_XL = dict(block_args=V2_XL_BLOCKS) | SILU
V2_B = dict(block_args=V2_B_BLOCKS, round_limit=0.0) | SILU | TF
V2_RW = dict(block_args=V2_RW_BLOCKS, stem_size=24) | SILU
V2_T = V2_S | dict(channel_multiplier=0.8, depth_multiplier=0.9, num_features=1024)

MIX_S = dict(block_args=MIX_S_BLOCKS, stem_size=16, num_features=1536)
MIX_M = dict(block_args=MIX_M_BLOCKS, stem_size=24, num_features=1536, depth_trunc="round")
TEST = dict(block_args=TEST_BLOCKS, stem_size=24, num_features=256, round_limit=0.0) | SILU

GROUP8 = dict(norm_layer=partial(GroupNormAct, group_size=8))  # group norm, and how many channels make a group
GROUP16 = dict(norm_layer=partial(GroupNormAct, group_size=16))

family = Family(EfficientNet, {
    "mobilenetv1_025": MOBILE_V1 | dict(channel_multiplier=0.25),
    "mobilenetv1_050": MOBILE_V1 | dict(channel_multiplier=0.5),
    "mobilenetv1_075": MOBILE_V1 | dict(channel_multiplier=0.75),
    "mobilenetv1_100": MOBILE_V1,
    "mobilenetv1_100h": MOBILE_V1 | dict(num_features=1024),
    "mobilenetv1_125": MOBILE_V1 | dict(channel_multiplier=1.25),

    "mobilenetv2_035": MOBILE_V2 | dict(channel_multiplier=0.35),
    "mobilenetv2_050": MOBILE_V2 | dict(channel_multiplier=0.5),
    "mobilenetv2_075": MOBILE_V2 | dict(channel_multiplier=0.75),
    "mobilenetv2_100": MOBILE_V2,
    "mobilenetv2_130": MOBILE_V2 | dict(channel_multiplier=1.3, num_features=1664),
    "mobilenetv2_140": MOBILE_V2 | dict(channel_multiplier=1.4, num_features=1792),
    "mobilenetv2_110d": MOBILE_V2_DEEP | dict(channel_multiplier=1.1, depth_multiplier=1.2),
    "mobilenetv2_120d": MOBILE_V2_DEEP | dict(channel_multiplier=1.2, depth_multiplier=1.4),

    "mnasnet_050": MNAS_B1 | dict(channel_multiplier=0.5),
    "mnasnet_075": MNAS_B1 | dict(channel_multiplier=0.75),
    "mnasnet_100": MNAS_B1,
    "mnasnet_130": MNAS_B1 | dict(channel_multiplier=1.3),
    "mnasnet_140": MNAS_B1 | dict(channel_multiplier=1.4),
    "mnasnet_small": dict(block_args=MNAS_SMALL_BLOCKS, stem_size=8),
    "semnasnet_050": MNAS_A1 | dict(channel_multiplier=0.5),
    "semnasnet_075": MNAS_A1 | dict(channel_multiplier=0.75),
    "semnasnet_100": MNAS_A1,
    "semnasnet_140": MNAS_A1 | dict(channel_multiplier=1.4),
    "spnasnet_100": dict(block_args=SPNAS_BLOCKS),
    "fbnetc_100": dict(block_args=FBNET_C_BLOCKS, stem_size=16, num_features=1984, trained_with=dict(bn_eps=1e-3)),

    "efficientnet_b0": EFF,
    "efficientnet_b1": EFF | B1,
    "efficientnet_b2": EFF | B2,
    "efficientnet_b3": EFF | B3,
    "efficientnet_b4": EFF | B4,
    "efficientnet_b5": EFF | B5,
    "efficientnet_b6": EFF | B6,
    "efficientnet_b7": EFF | B7,
    "efficientnet_b8": EFF | B8,
    "efficientnet_l2": EFF | L2,
    "efficientnet_b1_pruned": EFF | B1 | PRUNED,
    "efficientnet_b2_pruned": EFF | B2 | PRUNED,
    "efficientnet_b3_pruned": EFF | B3 | PRUNED,
    "efficientnet_b0_gn": EFF | GROUP8,
    "efficientnet_b0_g8_gn": EFF | GROUP8 | dict(group_size=8),
    "efficientnet_b0_g16_evos": EFF | dict(group_size=16, channel_divisor=16),
    "efficientnet_b3_gn": EFF | B3 | GROUP16 | dict(channel_divisor=16),
    "efficientnet_b3_g8_gn": EFF | B3 | GROUP16 | dict(group_size=8, channel_divisor=16),
    "efficientnet_blur_b0": EFF | dict(aa_layer="blurpc"),
    "efficientnet_lite0": LITE,
    "efficientnet_lite1": B1 | LITE,
    "efficientnet_lite2": B2 | LITE,
    "efficientnet_lite3": B3 | LITE,
    "efficientnet_lite4": B4 | LITE,
    "efficientnet_cc_b0_4e": CONDCONV,
    "efficientnet_cc_b0_8e": CONDCONV | EIGHT_EXPERTS,
    "efficientnet_cc_b1_8e": CONDCONV | B1 | EIGHT_EXPERTS,
    "efficientnet_es": EDGE,
    "efficientnet_es_pruned": EDGE,
    "efficientnet_em": EDGE | B1,
    "efficientnet_el": EDGE | B3,
    "efficientnet_el_pruned": EDGE | B3,
    "efficientnet_x_b3": X | B3,
    "efficientnet_x_b5": X | B5,
    "efficientnet_h_b5": H | dict(channel_multiplier=1.92, depth_multiplier=2.2, num_features=2456),

    "tf_efficientnet_b0": EFF | TF,
    "tf_efficientnet_b1": EFF | B1 | TF,
    "tf_efficientnet_b2": EFF | B2 | TF,
    "tf_efficientnet_b3": EFF | B3 | TF,
    "tf_efficientnet_b4": EFF | B4 | TF,
    "tf_efficientnet_b5": EFF | B5 | TF,
    "tf_efficientnet_b6": EFF | B6 | TF,
    "tf_efficientnet_b7": EFF | B7 | TF,
    "tf_efficientnet_b8": EFF | B8 | TF,
    "tf_efficientnet_l2": EFF | L2 | TF,
    "tf_efficientnet_lite0": LITE | TF,
    "tf_efficientnet_lite1": B1 | LITE | TF,
    "tf_efficientnet_lite2": B2 | LITE | TF,
    "tf_efficientnet_lite3": B3 | LITE | TF,
    "tf_efficientnet_lite4": B4 | LITE | TF,
    "tf_efficientnet_cc_b0_4e": CONDCONV | TF,
    "tf_efficientnet_cc_b0_8e": CONDCONV | EIGHT_EXPERTS | TF,
    "tf_efficientnet_cc_b1_8e": CONDCONV | B1 | EIGHT_EXPERTS | TF,
    "tf_efficientnet_es": EDGE | TF,
    "tf_efficientnet_em": EDGE | B1 | TF,
    "tf_efficientnet_el": EDGE | B3 | TF,

    "efficientnetv2_s": V2_S,
    "efficientnetv2_m": V2_M,
    "efficientnetv2_l": V2_L,
    "efficientnetv2_xl": V2_XL,
    "efficientnetv2_rw_t": V2_T,
    "efficientnetv2_rw_s": V2_RW | dict(num_features=1792),
    "efficientnetv2_rw_m": V2_RW | dict(channel_multiplier=1.2, depth_multiplier=(1.2, 1.2, 1.2, 1.2, 1.6, 1.6),
                                        num_features=2152),
    "gc_efficientnetv2_rw_t": V2_T | dict(se_layer="gc"),
    "tf_efficientnetv2_s": V2_S | TF,
    "tf_efficientnetv2_m": V2_M | TF,
    "tf_efficientnetv2_l": V2_L | TF,
    "tf_efficientnetv2_xl": V2_XL | TF,
    "tf_efficientnetv2_b0": V2_B,
    "tf_efficientnetv2_b1": V2_B | B1,
    "tf_efficientnetv2_b2": V2_B | B2,
    "tf_efficientnetv2_b3": V2_B | B3,

    "mixnet_s": MIX_S,
    "mixnet_m": MIX_M,
    "mixnet_l": MIX_M | dict(channel_multiplier=1.3),
    "mixnet_xl": MIX_M | dict(channel_multiplier=1.6, depth_multiplier=1.2),
    "mixnet_xxl": MIX_M | dict(channel_multiplier=2.4, depth_multiplier=1.3),
    "tf_mixnet_s": MIX_S | TF,
    "tf_mixnet_m": MIX_M | TF,
    "tf_mixnet_l": MIX_M | TF | dict(channel_multiplier=1.3),

    "tinynet_a": TINY | dict(depth_multiplier=1.2),
    "tinynet_b": TINY | dict(channel_multiplier=0.75, depth_multiplier=1.1),
    "tinynet_c": TINY | dict(channel_multiplier=0.54, depth_multiplier=0.85),
    "tinynet_d": TINY | dict(channel_multiplier=0.54, depth_multiplier=0.695),
    "tinynet_e": TINY | dict(channel_multiplier=0.51, depth_multiplier=0.6),

    "mobilenet_edgetpu_100": dict(block_args=EDGETPU_BLOCKS),
    "mobilenet_edgetpu_v2_xs": dict(block_args=EDGETPU_V2_XS_BLOCKS),
    "mobilenet_edgetpu_v2_s": dict(block_args=EDGETPU_V2_S_BLOCKS, stem_size=64, stem_kernel_size=5),
    "mobilenet_edgetpu_v2_m": dict(block_args=EDGETPU_V2_M_BLOCKS, stem_size=64, stem_kernel_size=5,
                                   num_features=1344),
    "mobilenet_edgetpu_v2_l": dict(block_args=EDGETPU_V2_L_BLOCKS, stem_size=64, stem_kernel_size=7,
                                   num_features=1408),

    "test_efficientnet": TEST,
    "test_efficientnet_gn": TEST | GROUP8,
    "test_efficientnet_ln": TEST | dict(norm_layer=LayerNormAct2d),
    "test_efficientnet_evos": TEST | dict(norm_layer=partial(EvoNorm2dS0, group_size=8)),
})  # fmt: skip

__getattr__ = family.entrypoint
