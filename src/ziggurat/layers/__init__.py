"""Layers that several families share. Names resolve when they are used: importing this package imports no torch."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from ..lazy import LazyNames

_WHERE = LazyNames(__name__, {
    "activations": "GELU GELUTanh HardMish HardSigmoid HardSwish Mish PReLU QuickGELU Sigmoid Swish Tanh gelu gelu_tanh "
    "hard_mish hard_sigmoid hard_swish mish quick_gelu sigmoid swish tanh",
    "adaptive_avgmax_pool": "AdaptiveAvgMaxPool2d AdaptiveCatAvgMaxPool2d FastAdaptiveAvgPool SelectAdaptivePool2d "
    "adaptive_avgmax_pool2d adaptive_catavgmax_pool2d adaptive_pool_feat_mult select_adaptive_pool2d",
    "attention": "Attention AttentionRope maybe_add_mask resolve_self_attn_mask",
    "attention2d": "Attention2d MultiQueryAttention2d MultiQueryAttentionV2",
    "attention_pool": "AttentionPoolLatent AttentionPoolPrr",
    "attention_pool2d": "AttentionPool2d RotAttentionPool2d",
    "blur_pool": "BlurPool2d create_aa get_aa_layer",
    "bottleneck_attn": "BottleneckAttn",
    "cbam": "CbamModule LightCbamModule",
    "classifier": "ClNormMlpClassifierHead ClassifierHead NormMlpClassifierHead create_classifier",
    "cond_conv2d": "CondConv2d get_condconv_initializer",
    "config": "is_exportable is_no_jit is_scriptable set_exportable set_fused_attn set_layer_config set_no_jit "
    "set_reentrant_ckpt set_scriptable use_fused_attn use_reentrant_ckpt",
    "conv2d_ceil": "Conv2dCeil",
    "conv2d_same": "Conv2dSame conv2d_same create_conv2d_pad",
    "conv_bn_act": "ConvBnAct ConvNormAct ConvNormActAa",
    "coord_attn": "CoordAttn EfficientLocalAttn SimpleCoordAttn StripAttn",
    "create_act": "create_act_layer get_act_fn get_act_layer",
    "create_attn": "create_attn get_attn",
    "create_conv2d": "create_conv2d",
    "create_norm": "create_norm_layer get_norm_layer",
    "create_norm_act": "create_norm_act_layer get_norm_act_layer",
    "diff_attention": "DiffAttention",
    "drop": "DropBlock2d DropPath calculate_drop_path_rates drop_block_2d drop_path",
    "eca": "CecaModule CircularEfficientChannelAttn EcaModule EfficientChannelAttn",
    "evo_norm": "EvoNorm2dB0 EvoNorm2dB1 EvoNorm2dB2 EvoNorm2dS0 EvoNorm2dS0a EvoNorm2dS1 EvoNorm2dS1a EvoNorm2dS2 "
    "EvoNorm2dS2a",
    "fast_norm": "fast_group_norm fast_layer_norm is_fast_norm set_fast_norm",
    "filter_response_norm": "FilterResponseNormAct2d FilterResponseNormTlu2d",
    "format": "Format get_channel_dim get_spatial_dim nchw_to nhwc_to",
    "gather_excite": "GatherExcite",
    "global_context": "GlobalContext",
    "grid": "meshgrid ndgrid",
    "grn": "GlobalResponseNorm",
    "halo_attn": "HaloAttn",
    "hybrid_embed": "HybridEmbed HybridEmbedWithSize",
    "interpolate": "RegularGridInterpolator",
    "lambda_layer": "LambdaLayer",
    "layer_scale": "LayerScale LayerScale2d",
    "linear": "Linear",
    "median_pool": "MedianPool2d",
    "mixed_conv2d": "MixedConv2d",
    "mlp": "ConvMlp GatedMlp GlobalResponseNormMlp GluMlp Mlp SwiGLU SwiGLUPacked",
    "non_local_attn": "BatNonLocalAttn NonLocalAttn",
    "norm": "FrozenBatchNorm2d GroupNorm GroupNorm1 LayerNorm LayerNorm2d LayerNorm2dFp32 LayerNormFp32 RmsNorm "
    "RmsNorm2d RmsNorm2dFp32 RmsNormFp32 SimpleNorm SimpleNorm2d SimpleNorm2dFp32 SimpleNormFp32",
    "norm_act": "BatchNormAct2d FrozenBatchNormAct2d GroupNorm1Act GroupNormAct LayerNormAct LayerNormAct2d "
    "LayerNormAct2dFp32 LayerNormActFp32 RmsNormAct RmsNormAct2d RmsNormAct2dFp32 RmsNormActFp32 SyncBatchNormAct "
    "convert_sync_batchnorm freeze_batch_norm_2d unfreeze_batch_norm_2d",
    "other_pool": "LsePlus1d LsePlus2d SimPool1d SimPool2d",
    "padding": "get_padding get_padding_value get_same_padding is_static_pad pad_same",
    "patch_dropout": "PatchDropout PatchDropoutWithIndices patch_dropout_forward",
    "patch_embed": "PatchEmbed PatchEmbedInterpolator PatchEmbedWithSize resample_patch_embed",
    "placement": "get_device_dtype",
    "pool1d": "global_pool_nlc",
    "pool2d_same": "AvgPool2dSame AvgPool2dWithin MaxPool2dSame avg_pool2d_same create_pool2d max_pool2d_same",
    "pos_embed": "resample_abs_pos_embed resample_abs_pos_embed_nhwc",
    "pos_embed_rel": "RelPosBias RelPosBiasTf RelPosMlp gen_relative_log_coords gen_relative_position_index "
    "resize_rel_axes resize_rel_pos_bias_table resize_rel_pos_bias_table_levit resize_rel_pos_bias_table_simple",
    "pos_embed_sincos": "FourierEmbed RotaryEmbedding RotaryEmbeddingCat RotaryEmbeddingDinoV3 RotaryEmbeddingMRope "
    "RotaryEmbeddingMixed apply_keep_indices_nlc apply_rot_embed apply_rot_embed_cat apply_rot_embed_list "
    "build_fourier_pos_embed build_rotary_pos_embed build_sincos2d_pos_embed create_rope_embed freq_bands "
    "get_mixed_freqs pixel_freq_bands",
    "selective_kernel": "SelectiveKernel",
    "separable_conv": "SeparableConv2d SeparableConvNormAct",
    "shapes": "extend_tuple make_divisible to_2tuple to_3tuple to_4tuple to_ntuple",
    "space_to_depth": "DepthToSpace SpaceToDepth",
    "split_attn": "SplitAttn",
    "split_batchnorm": "SplitBatchNorm2d convert_splitbn_model",
    "squeeze_excite": "EffectiveSEModule EffectiveSqueezeExcite SEModule SqueezeExcite",
    "std_conv": "ScaledStdConv2d ScaledStdConv2dSame StdConv2d StdConv2dSame",
    "test_time_pool": "TestTimePoolHead apply_test_time_pool",
    "trace_utils": "_assert _float_to_int create_feature_extractor get_graph_node_names get_notrace_functions "
    "get_notrace_modules is_exporting is_notrace_function is_notrace_module register_notrace_function "
    "register_notrace_module",
    "typing": "LayerType PadType disable_compiler",
    "weight_init": "init_weight_jax init_weight_vit is_meta_device lecun_normal_ trunc_normal_ trunc_normal_tf_ "
    "variance_scaling_",
})

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    return _WHERE.imported(name)


def __dir__() -> list[str]:
    return _WHERE.listed()


class _Layers(ModuleType):
    """This package: where a file and what it defines have one name (create_conv2d), the name means the latter."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in _WHERE:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Layers
