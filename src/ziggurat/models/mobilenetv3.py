"""MobileNetV3 and networks with its head: pooled first, widened after (Howard et al. 2019, arXiv 1905.02244).

One trunk carries FBNetV3 (Dai et al. 2020, 2006.02049), PP-LCNet (Cui et al. 2021, 2109.15099) and MobileNetV4 (Qin et
al. 2024, 2404.10518). The last level is pooled before the convolution that widens it, so that this costs next to
nothing; in MobileNetV4 a norm follows that convolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..backbone import Family
from ..errors import UnsupportedPooling
from ..layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from ..layers.create_act import create_act_layer
from ..layers.create_norm_act import get_norm_act_layer
from ..layers.typing import LayerType
from .efficientnet_blocks import SqueezeExcite
from .efficientnet_builder import BlockArgs, MobileBackbone, resolve_layers, round_channels

__all__ = ["MobileNetV3"]


class MobileNetV3(MobileBackbone):
    """A strided stem, stages of mobile blocks, pooling, and a 1x1 convolution before the classifier.

    `num_features` is the width of that convolution, times `channel_multiplier` with `scale_head`; `head_bias` gives it a
    bias, `head_norm` a norm in place of the bias. `act_layer` is ReLU unless given, `norm_layer` a batch norm with `bn_eps` and `bn_momentum`. All else is in
    `MobileBackbone`.
    """

    def __init__(
        self,
        block_args: BlockArgs,
        num_classes: int = 1000,
        in_chans: int = 3,
        stem_size: int = 16,
        num_features: int = 1280,
        head_bias: bool = True,
        head_norm: bool = False,
        act_layer: LayerType | None = None,
        norm_layer: LayerType | None = None,
        bn_eps: float = 1e-5,
        bn_momentum: float = 0.1,
        se_from_exp: bool = True,
        channel_multiplier: float = 1.0,
        scale_head: bool = False,
        **kwargs: Any,
    ) -> None:
        act_layer, norm_layer = resolve_layers(act_layer, norm_layer, bn_eps, bn_momentum)
        super().__init__(block_args, num_classes, in_chans, stem_size=stem_size, act_layer=act_layer,
                         norm_layer=norm_layer, se_from_exp=se_from_exp, channel_multiplier=channel_multiplier, **kwargs)
        if scale_head:
            num_features = round_channels(num_features, channel_multiplier)
        self.global_pool = SelectAdaptivePool2d(pool_type=self._pool_type)
        width = self.plan.levels[-1]["num_chs"] * self.global_pool.feat_mult()
        self.conv_head: nn.Module | None = nn.Conv2d(width, num_features, 1, bias=head_bias and not head_norm)
        if head_norm:
            norm = get_norm_act_layer(norm_layer, act_layer)
            assert norm is not None
            self.norm_head: nn.Module | None = norm(num_features)
        else:
            self.norm_head = create_act_layer(act_layer, inplace=True)
        self.make_head("classifier", hidden=num_features)
        self.classifier = self.new_classifier("classifier")

    def pool(self, x: Tensor) -> Tensor:
        """The pooled last level after the head's convolution; a map where nothing is pooled."""
        x = self.global_pool(x)
        if self.conv_head is not None and self.norm_head is not None:
            x = self.norm_head(self.conv_head(x))
        return x.flatten(1) if self._pool_type else x

    def set_pool(self, global_pool: str) -> None:
        pool = SelectAdaptivePool2d(pool_type=global_pool)
        if self.conv_head is not None and pool.feat_mult() != self.global_pool.feat_mult():
            raise UnsupportedPooling(f"global_pool={global_pool!r} changes the width that conv_head reads; create the "
                                     "model with it, or take one of avg, max and avgmax")
        self.global_pool = pool

    def drop_head(self) -> None:
        self.conv_head = self.norm_head = None
        self._hidden = None
        super().drop_head()

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        x = self.bn1(self.conv_stem(x))
        if self.stem_is_level:
            yield x
        for i, stage in enumerate(self.blocks):
            for part in stage.children() if self.levels_per == "block" else (stage,):
                x = part(x)
                if i in self.level_stages:
                    yield x


V3_LARGE_BLOCKS = (
    "ds_r1_k3_s1_e1_c16_nre",
    "ir_r1_k3_s2_e4_c24_nre ir_r1_k3_s1_e3_c24_nre",
    "ir_r3_k5_s2_e3_c40_se0.25_nre",
    "ir_r1_k3_s2_e6_c80 ir_r1_k3_s1_e2.5_c80 ir_r2_k3_s1_e2.3_c80",
    "ir_r2_k3_s1_e6_c112_se0.25",
    "ir_r3_k5_s2_e6_c160_se0.25",
    "cn_r1_k1_s1_c960",
)
V3_RW_BLOCKS = (
    "ds_r1_k3_s1_e1_c16_nre_noskip",
    "ir_r1_k3_s2_e4_c24_nre ir_r1_k3_s1_e3_c24_nre",
    "ir_r3_k5_s2_e3_c40_se0.25_nre",
    "ir_r1_k3_s2_e6_c80 ir_r1_k3_s1_e2.5_c80 ir_r2_k3_s1_e2.3_c80",
    "ir_r2_k3_s1_e6_c112_se0.25",
    "ir_r3_k5_s2_e6_c160_se0.25",
    "cn_r1_k1_s1_c960",
)
V3_LARGE_MINIMAL_BLOCKS = (
    "ds_r1_k3_s1_e1_c16",
    "ir_r1_k3_s2_e4_c24 ir_r1_k3_s1_e3_c24",
    "ir_r3_k3_s2_e3_c40",
    "ir_r1_k3_s2_e6_c80 ir_r1_k3_s1_e2.5_c80 ir_r2_k3_s1_e2.3_c80",
    "ir_r2_k3_s1_e6_c112",
    "ir_r3_k3_s2_e6_c160",
    "cn_r1_k1_s1_c960",
)
V3_SMALL_BLOCKS = (
    "ds_r1_k3_s2_e1_c16_se0.25_nre",
    "ir_r1_k3_s2_e4.5_c24_nre ir_r1_k3_s1_e3.67_c24_nre",
    "ir_r1_k5_s2_e4_c40_se0.25 ir_r2_k5_s1_e6_c40_se0.25",
    "ir_r2_k5_s1_e3_c48_se0.25",
    "ir_r3_k5_s2_e6_c96_se0.25",
    "cn_r1_k1_s1_c576",
)
V3_SMALL_MINIMAL_BLOCKS = (
    "ds_r1_k3_s2_e1_c16",
    "ir_r1_k3_s2_e4.5_c24 ir_r1_k3_s1_e3.67_c24",
    "ir_r1_k3_s2_e4_c40 ir_r2_k3_s1_e6_c40",
    "ir_r2_k3_s1_e3_c48",
    "ir_r3_k3_s2_e6_c96",
    "cn_r1_k1_s1_c576",
)
FBNET_V3B_BLOCKS = (
    "ds_r2_k3_s1_e1_c16",
    "ir_r1_k5_s2_e4_c24 ir_r3_k5_s1_e2_c24",
    "ir_r1_k5_s2_e5_c40_se0.25 ir_r4_k5_s1_e3_c40_se0.25",
    "ir_r1_k5_s2_e5_c72 ir_r4_k3_s1_e3_c72",
    "ir_r1_k3_s1_e5_c120_se0.25 ir_r5_k5_s1_e3_c120_se0.25",
    "ir_r1_k3_s2_e6_c184_se0.25 ir_r5_k5_s1_e4_c184_se0.25 ir_r1_k5_s1_e6_c224_se0.25",
    "cn_r1_k1_s1_c1344",
)
FBNET_V3D_BLOCKS = (
    "ds_r2_k3_s1_e1_c16",
    "ir_r1_k3_s2_e5_c24 ir_r5_k3_s1_e2_c24",
    "ir_r1_k5_s2_e4_c40_se0.25 ir_r4_k3_s1_e3_c40_se0.25",
    "ir_r1_k3_s2_e5_c72 ir_r4_k3_s1_e3_c72",
    "ir_r1_k3_s1_e5_c128_se0.25 ir_r6_k5_s1_e3_c128_se0.25",
    "ir_r1_k3_s2_e6_c208_se0.25 ir_r5_k5_s1_e5_c208_se0.25 ir_r1_k5_s1_e6_c240_se0.25",
    "cn_r1_k1_s1_c1440",
)
FBNET_V3G_BLOCKS = (
    "ds_r3_k3_s1_e1_c24",
    "ir_r1_k5_s2_e4_c40 ir_r4_k5_s1_e2_c40",
    "ir_r1_k5_s2_e4_c56_se0.25 ir_r4_k5_s1_e3_c56_se0.25",
    "ir_r1_k5_s2_e5_c104 ir_r4_k3_s1_e3_c104",
    "ir_r1_k3_s1_e5_c160_se0.25 ir_r8_k5_s1_e3_c160_se0.25",
    "ir_r1_k3_s2_e6_c264_se0.25 ir_r6_k5_s1_e5_c264_se0.25 ir_r2_k5_s1_e6_c288_se0.25",
    "cn_r1_k1_s1_c1728",
)
LCNET_BLOCKS = (
    "dsa_r1_k3_s1_c32",
    "dsa_r2_k3_s2_c64",
    "dsa_r2_k3_s2_c128",
    "dsa_r1_k3_s2_c256 dsa_r1_k5_s1_c256",
    "dsa_r4_k5_s1_c256",
    "dsa_r2_k5_s2_c512_se0.25",
)
V4_CONV_SMALL_BLOCKS = (
    "cn_r1_k3_s2_e1_c32 cn_r1_k1_s1_e1_c32",
    "cn_r1_k3_s2_e1_c96 cn_r1_k1_s1_e1_c64",
    "uir_r1_a5_k5_s2_e3_c96 uir_r4_a0_k3_s1_e2_c96 uir_r1_a3_k0_s1_e4_c96",
    "uir_r1_a3_k3_s2_e6_c128 uir_r1_a5_k5_s1_e4_c128 uir_r1_a0_k5_s1_e4_c128 uir_r1_a0_k5_s1_e3_c128 "
    "uir_r2_a0_k3_s1_e4_c128",
    "cn_r1_k1_s1_c960",
)
V4_CONV_MEDIUM_BLOCKS = (
    "er_r1_k3_s2_e4_c48",
    "uir_r1_a3_k5_s2_e4_c80 uir_r1_a3_k3_s1_e2_c80",
    "uir_r1_a3_k5_s2_e6_c160 uir_r2_a3_k3_s1_e4_c160 uir_r1_a3_k5_s1_e4_c160 uir_r1_a3_k3_s1_e4_c160 "
    "uir_r1_a3_k0_s1_e4_c160 uir_r1_a0_k0_s1_e2_c160 uir_r1_a3_k0_s1_e4_c160",
    "uir_r1_a5_k5_s2_e6_c256 uir_r1_a5_k5_s1_e4_c256 uir_r2_a3_k5_s1_e4_c256 uir_r1_a0_k0_s1_e4_c256 "
    "uir_r1_a3_k0_s1_e4_c256 uir_r1_a3_k5_s1_e2_c256 uir_r1_a5_k5_s1_e4_c256 uir_r2_a0_k0_s1_e4_c256 "
    "uir_r1_a5_k0_s1_e2_c256",
    "cn_r1_k1_s1_c960",
)
V4_CONV_LARGE_BLOCKS = (
    "er_r1_k3_s2_e4_c48",
    "uir_r1_a3_k5_s2_e4_c96 uir_r1_a3_k3_s1_e4_c96",
    "uir_r1_a3_k5_s2_e4_c192 uir_r3_a3_k3_s1_e4_c192 uir_r1_a3_k5_s1_e4_c192 uir_r5_a5_k3_s1_e4_c192 "
    "uir_r1_a3_k0_s1_e4_c192",
    "uir_r4_a5_k5_s2_e4_c512 uir_r1_a5_k0_s1_e4_c512 uir_r1_a5_k3_s1_e4_c512 uir_r2_a5_k0_s1_e4_c512 "
    "uir_r1_a5_k3_s1_e4_c512 uir_r1_a5_k5_s1_e4_c512 uir_r3_a5_k0_s1_e4_c512",
    "cn_r1_k1_s1_c960",
)
V4_HYBRID_MEDIUM_BLOCKS = (
    "er_r1_k3_s2_e4_c48",
    "uir_r1_a3_k5_s2_e4_c80 uir_r1_a3_k3_s1_e2_c80",
    "uir_r1_a3_k5_s2_e6_c160 uir_r1_a0_k0_s1_e2_c160 uir_r1_a3_k3_s1_e4_c160 uir_r1_a3_k5_s1_e4_c160 "
    "mqa_r1_k3_h4_s1_v2_d64_c160 uir_r1_a3_k3_s1_e4_c160 mqa_r1_k3_h4_s1_v2_d64_c160 uir_r1_a3_k0_s1_e4_c160 "
    "mqa_r1_k3_h4_s1_v2_d64_c160 uir_r1_a3_k3_s1_e4_c160 mqa_r1_k3_h4_s1_v2_d64_c160 uir_r1_a3_k0_s1_e4_c160",
    "uir_r1_a5_k5_s2_e6_c256 uir_r1_a5_k5_s1_e4_c256 uir_r2_a3_k5_s1_e4_c256 uir_r1_a0_k0_s1_e2_c256 "
    "uir_r1_a3_k5_s1_e2_c256 uir_r1_a0_k0_s1_e2_c256 uir_r1_a0_k0_s1_e4_c256 mqa_r1_k3_h4_s1_d64_c256 "
    "uir_r1_a3_k0_s1_e4_c256 mqa_r1_k3_h4_s1_d64_c256 uir_r1_a5_k5_s1_e4_c256 mqa_r1_k3_h4_s1_d64_c256 "
    "uir_r1_a5_k0_s1_e4_c256 mqa_r1_k3_h4_s1_d64_c256 uir_r1_a5_k0_s1_e4_c256",
    "cn_r1_k1_s1_c960",
)
V4_HYBRID_LARGE_BLOCKS = (
    "er_r1_k3_s2_e4_c48",
    "uir_r1_a3_k5_s2_e4_c96 uir_r1_a3_k3_s1_e4_c96",
    "uir_r1_a3_k5_s2_e4_c192 uir_r3_a3_k3_s1_e4_c192 uir_r1_a3_k5_s1_e4_c192 uir_r2_a5_k3_s1_e4_c192 "
    "mqa_r1_k3_h8_s1_v2_d48_c192 uir_r1_a5_k3_s1_e4_c192 mqa_r1_k3_h8_s1_v2_d48_c192 uir_r1_a5_k3_s1_e4_c192 "
    "mqa_r1_k3_h8_s1_v2_d48_c192 uir_r1_a5_k3_s1_e4_c192 mqa_r1_k3_h8_s1_v2_d48_c192 uir_r1_a3_k0_s1_e4_c192",
    "uir_r4_a5_k5_s2_e4_c512 uir_r1_a5_k0_s1_e4_c512 uir_r1_a5_k3_s1_e4_c512 uir_r2_a5_k0_s1_e4_c512 "
    "uir_r1_a5_k3_s1_e4_c512 uir_r1_a5_k5_s1_e4_c512 mqa_r1_k3_h8_s1_d64_c512 uir_r1_a5_k0_s1_e4_c512 "
    "mqa_r1_k3_h8_s1_d64_c512 uir_r1_a5_k0_s1_e4_c512 mqa_r1_k3_h8_s1_d64_c512 uir_r1_a5_k0_s1_e4_c512 "
    "mqa_r1_k3_h8_s1_d64_c512 uir_r1_a5_k0_s1_e4_c512",
    "cn_r1_k1_s1_c960",
)

HARD_SWISH = dict(act_layer="hard_swish")
TF = dict(pad_type="same", bn_eps=1e-3)  # as TensorFlow pads and normalises

hard_se = partial(SqueezeExcite, gate_layer="hard_sigmoid")
relu_se = partial(hard_se, force_act_layer=nn.ReLU)
V3_SE = dict(se_layer=partial(relu_se, rd_round_fn=round_channels))

V3_LARGE = dict(block_args=V3_LARGE_BLOCKS) | HARD_SWISH | V3_SE
V3_SMALL = dict(block_args=V3_SMALL_BLOCKS, num_features=1024) | HARD_SWISH | V3_SE
FBNET_V3 = HARD_SWISH | dict(
    num_features=1984, head_bias=False, se_from_exp=False, round_limit=0.95,
    se_layer=partial(hard_se, rd_round_fn=partial(round_channels, round_limit=0.95)),
)  # fmt: skip
LCNET = dict(block_args=LCNET_BLOCKS, se_layer=relu_se) | HARD_SWISH

V4 = dict(stem_size=32, head_norm=True)
V4_CONV_SMALL = V4 | dict(block_args=V4_CONV_SMALL_BLOCKS)
V4_CONV_MEDIUM = V4 | dict(block_args=V4_CONV_MEDIUM_BLOCKS)
V4_CONV_LARGE = V4 | dict(block_args=V4_CONV_LARGE_BLOCKS, stem_size=24)
V4_HYBRID_MEDIUM = V4 | dict(block_args=V4_HYBRID_MEDIUM_BLOCKS, layer_scale_init_value=1e-5)
V4_HYBRID_LARGE = V4 | dict(block_args=V4_HYBRID_LARGE_BLOCKS, stem_size=24, act_layer="gelu",
                            layer_scale_init_value=1e-5)

family = Family(MobileNetV3, {
    "mobilenetv3_large_075": V3_LARGE | dict(channel_multiplier=0.75),
    "mobilenetv3_large_100": V3_LARGE,
    "mobilenetv3_large_150d": V3_LARGE | dict(channel_multiplier=1.5, depth_multiplier=1.2),
    "mobilenetv3_small_050": V3_SMALL | dict(channel_multiplier=0.5, fix_stem=True),
    "mobilenetv3_small_075": V3_SMALL | dict(channel_multiplier=0.75),
    "mobilenetv3_small_100": V3_SMALL,
    "mobilenetv3_rw": dict(block_args=V3_RW_BLOCKS, head_bias=False, bn_eps=1e-3, se_layer=hard_se) | HARD_SWISH,
    "tf_mobilenetv3_large_075": V3_LARGE | TF | dict(channel_multiplier=0.75),
    "tf_mobilenetv3_large_100": V3_LARGE | TF,
    "tf_mobilenetv3_large_minimal_100": V3_LARGE | TF | dict(block_args=V3_LARGE_MINIMAL_BLOCKS, act_layer="relu"),
    "tf_mobilenetv3_small_075": V3_SMALL | TF | dict(channel_multiplier=0.75),
    "tf_mobilenetv3_small_100": V3_SMALL | TF,
    "tf_mobilenetv3_small_minimal_100": V3_SMALL | TF | dict(block_args=V3_SMALL_MINIMAL_BLOCKS, act_layer="relu"),

    "fbnetv3_b": FBNET_V3 | dict(block_args=FBNET_V3B_BLOCKS),
    "fbnetv3_d": FBNET_V3 | dict(block_args=FBNET_V3D_BLOCKS, stem_size=24),
    "fbnetv3_g": FBNET_V3 | dict(block_args=FBNET_V3G_BLOCKS, stem_size=32),

    "lcnet_035": LCNET | dict(channel_multiplier=0.35),
    "lcnet_050": LCNET | dict(channel_multiplier=0.5),
    "lcnet_075": LCNET | dict(channel_multiplier=0.75),
    "lcnet_100": LCNET,
    "lcnet_150": LCNET | dict(channel_multiplier=1.5),

    "mobilenetv4_conv_small": V4_CONV_SMALL,
    "mobilenetv4_conv_small_035": V4_CONV_SMALL | dict(channel_multiplier=0.35, fix_stem=True),
    "mobilenetv4_conv_small_050": V4_CONV_SMALL | dict(channel_multiplier=0.5, fix_stem=True),
    "mobilenetv4_conv_medium": V4_CONV_MEDIUM,
    "mobilenetv4_conv_large": V4_CONV_LARGE,
    "mobilenetv4_conv_aa_medium": V4_CONV_MEDIUM | dict(aa_layer="avgceil"),
    "mobilenetv4_conv_aa_large": V4_CONV_LARGE | dict(aa_layer="avgceil"),
    "mobilenetv4_conv_blur_medium": V4_CONV_MEDIUM | dict(aa_layer="blurpc"),
    "mobilenetv4_hybrid_medium": V4_HYBRID_MEDIUM,
    "mobilenetv4_hybrid_medium_075": V4_HYBRID_MEDIUM | dict(channel_multiplier=0.75, fix_stem=True),
    "mobilenetv4_hybrid_large": V4_HYBRID_LARGE,
    "mobilenetv4_hybrid_large_075": V4_HYBRID_LARGE | dict(channel_multiplier=0.75, fix_stem=True),
})  # fmt: skip

__getattr__ = family.entrypoint
