"""Layers with state or arithmetic of their own give what timm's give, and can be traced, compiled, exported, copied."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from twin import agree, ours, twin

IMG = (4, 32, 9, 7)
TOKENS = (2, 5, 32)

CASES = [
    # norms
    ("GroupNorm", (32,), {"num_groups": 4}, IMG),
    ("GroupNorm1", (32,), {}, IMG),
    ("LayerNorm", (32,), {}, TOKENS),
    ("LayerNorm", (32,), {"affine": False, "eps": 1e-2}, TOKENS),
    ("LayerNormFp32", (32,), {}, TOKENS),
    ("LayerNorm2d", (32,), {}, IMG),
    ("LayerNorm2dFp32", (32,), {}, IMG),
    ("RmsNorm", (32,), {}, TOKENS),
    ("RmsNorm", (32,), {"affine": False}, TOKENS),
    ("RmsNormFp32", (32,), {}, TOKENS),
    ("RmsNorm2d", (32,), {"eps": 1e-2}, IMG),
    ("RmsNorm2dFp32", (32,), {}, IMG),
    ("SimpleNorm", (32,), {}, TOKENS),
    ("SimpleNormFp32", (32,), {}, TOKENS),
    ("SimpleNorm2d", (32,), {}, IMG),
    ("SimpleNorm2d", (32,), {"affine": False}, IMG),
    ("SimpleNorm2dFp32", (32,), {}, IMG),
    # norms with activation
    ("BatchNormAct2d", (32,), {}, IMG),
    ("BatchNormAct2d", (32,), {"momentum": 0.3, "eps": 1e-2, "act_layer": "silu", "drop_layer": nn.Identity}, IMG),
    ("BatchNormAct2d", (32,), {"act_layer": "leaky_relu", "act_kwargs": {"negative_slope": 0.3}}, IMG),
    ("BatchNormAct2d", (32,), {"apply_act": False}, IMG),
    ("BatchNormAct2d", (32,), {"track_running_stats": False, "affine": False}, IMG),
    ("BatchNormAct2d", (32,), {"act_layer": None}, IMG),
    ("FrozenBatchNormAct2d", (32,), {"act_layer": "gelu"}, IMG),
    ("GroupNormAct", (32,), {"num_groups": 8}, IMG),
    ("GroupNormAct", (32,), {"group_size": 8, "act_layer": nn.Hardswish}, IMG),
    ("GroupNorm1Act", (32,), {"inplace": False}, IMG),
    ("LayerNormAct", (32,), {"act_layer": "tanh"}, TOKENS),
    ("LayerNormActFp32", (32,), {}, TOKENS),
    ("LayerNormAct2d", (32,), {"eps": 1e-3}, IMG),
    ("LayerNormAct2dFp32", (32,), {"apply_act": False}, IMG),
    ("RmsNormAct", (32,), {}, TOKENS),
    ("RmsNormActFp32", (32,), {}, TOKENS),
    ("RmsNormAct2d", (32,), {}, IMG),
    ("RmsNormAct2dFp32", (32,), {}, IMG),
    *[(f"EvoNorm2dB{i}", (32,), {"apply_act": act}, IMG) for i in "012" for act in (True, False)],
    *[
        (f"EvoNorm2dS{i}", (32,), {"groups": 8, "apply_act": act}, IMG)
        for i in ("0", "0a", "1", "1a", "2", "2a")
        for act in (True, False)
    ],
    ("EvoNorm2dS0", (32,), {"group_size": 4, "eps": 1e-2}, IMG),
    ("EvoNorm2dS1", (32,), {"act_layer": nn.ReLU}, IMG),
    ("FilterResponseNormTlu2d", (32,), {}, IMG),
    ("FilterResponseNormTlu2d", (32,), {"apply_act": False, "eps": 1e-2}, IMG),
    ("FilterResponseNormAct2d", (32,), {"act_layer": nn.SiLU}, IMG),
    ("FilterResponseNormAct2d", (32,), {"apply_act": False}, IMG),
    ("SplitBatchNorm2d", (32,), {"num_splits": 2}, IMG),
    # convolutions
    ("Conv2dSame", (32, 8, 3), {"stride": 2}, IMG),
    ("Conv2dSame", (32, 8, (3, 2)), {"stride": (2, 1), "dilation": 2, "groups": 4, "bias": False}, IMG),
    ("create_conv2d", (32, 8, 5), {"stride": 2, "padding": "same"}, IMG),
    ("create_conv2d", (32, 8, 3), {"stride": 1, "padding": "SAME", "bias": True}, IMG),
    ("create_conv2d", (32, 8, 3), {"padding": "valid", "dilation": 2}, IMG),
    ("create_conv2d", (32, 8, (3, 5)), {"padding": ""}, IMG),
    ("create_conv2d", (32, 32, 3), {"padding": 1, "depthwise": True}, IMG),
    ("create_conv2d", (32, 32, [3, 5, 7]), {"stride": 2, "depthwise": True, "padding": "same"}, IMG),
    ("create_conv2d", (32, 32, [3, 5]), {"groups": 32}, IMG),
    ("create_conv2d", (32, 40, [1, 1, 1]), {"groups": 1, "bias": True}, IMG),
    ("MixedConv2d", (32, 32, [3, 5]), {"dilation": 2}, IMG),
    ("SeparableConv2d", (32, 8), {"stride": 2, "channel_multiplier": 2.0, "bias": True}, IMG),
    ("SeparableConvNormAct", (32, 8, 5), {"padding": "same", "stride": 2, "apply_act": False}, IMG),
    ("ConvNormAct", (32, 8, 3), {"stride": 2}, IMG),
    ("ConvNormAct", (32, 8, 3), {"stride": 2, "aa_layer": "blurpc", "act_layer": "silu"}, IMG),
    ("ConvNormAct", (32, 8, 3), {"stride": 2, "aa_layer": "=BlurPool2d", "norm_layer": "groupnorm1"}, IMG),
    ("ConvNormAct", (32, 8, 3), {"apply_act": False, "bias": True, "groups": 4, "dilation": 2}, IMG),
    ("ConvNormAct", (32, 8, 3), {"apply_norm": False, "drop_layer": nn.Identity}, IMG),
    ("ConvNormAct", (32, 8, 3), {"norm_kwargs": {"eps": 0.1}, "act_kwargs": {"inplace": False}}, IMG),
    ("ConvNormAct", (32, 32, 3), {"norm_layer": "evonorms0", "conv_kwargs": {"padding_mode": "reflect"}}, IMG),
    ("ConvNormActAa", (32, 8, 3), {"stride": 2, "aa_layer": "avg"}, IMG),
    ("StdConv2d", (32, 8, 3), {"stride": 2, "groups": 2, "bias": True}, IMG),
    ("StdConv2d", (32, 8, 3), {"padding": 2, "dilation": 2, "eps": 1e-3}, IMG),
    ("StdConv2dSame", (32, 8, 3), {"stride": 2}, IMG),
    ("StdConv2dSame", (32, 8, 3), {"stride": 2, "padding": "valid"}, IMG),
    ("ScaledStdConv2d", (32, 8, 3), {"stride": 2, "gamma": 1.7, "gain_init": 0.7}, IMG),
    ("ScaledStdConv2dSame", (32, 8, 3), {"stride": 2, "groups": 4, "bias": False}, IMG),
    # pooling
    ("AvgPool2dSame", (2, 2), {}, IMG),
    ("AvgPool2dSame", (3, 2), {"count_include_pad": False, "ceil_mode": True}, IMG),
    ("create_pool2d", ("avg", 3, 2), {"padding": "same"}, IMG),
    ("create_pool2d", ("avg", 2), {"padding": "", "count_include_pad": False}, IMG),
    ("create_pool2d", ("max", 3, 2), {"padding": "same"}, IMG),
    ("create_pool2d", ("max", (3, 2), (2, 1)), {"padding": "same", "dilation": 2}, IMG),
    ("create_pool2d", ("max", 3, 2), {"padding": 1}, IMG),
    ("BlurPool2d", (32,), {}, IMG),
    ("BlurPool2d", (32,), {"filt_size": 5, "stride": 1, "pad_mode": "constant"}, IMG),
    ("BlurPool2d", (), {"filt_size": 4}, IMG),
    ("AdaptiveAvgMaxPool2d", (2,), {}, IMG),
    *[
        ("SelectAdaptivePool2d", (), {"pool_type": p, "flatten": f, "input_fmt": o}, IMG)
        for p in ("", "avg", "max", "avgmax", "catavgmax", "fast", "fastmax", "fastavgmax")
        for f in (True, False)
        for o in ("NCHW", "NHWC")
    ],
    ("SelectAdaptivePool2d", (), {"pool_type": "fastcatavgmax", "flatten": True}, IMG),
    ("SelectAdaptivePool2d", ((2, 3),), {"pool_type": "catavgmax"}, IMG),
    ("LsePlus2d", (), {"r": 3.0}, IMG),
    ("LsePlus2d", (), {"r_learnable": False, "flatten": False}, IMG),
    ("LsePlus1d", (), {}, TOKENS),
    ("SimPool2d", (32,), {"num_heads": 4, "qkv_bias": True}, IMG),
    ("SimPool2d", (32,), {"qk_norm": True, "gamma": 1.25}, IMG),
    ("SimPool1d", (32,), {"num_heads": 2}, TOKENS),
    ("SpaceToDepth", (4,), {}, (2, 3, 8, 12)),
    ("DepthToSpace", (2,), {}, (2, 12, 4, 3)),
    # heads
    ("ClassifierHead", (32, 5), {}, IMG),
    ("ClassifierHead", (32, 5), {"pool_type": "catavgmax", "use_conv": True}, IMG),
    ("ClassifierHead", (32, 5), {"pool_type": "", "use_conv": True}, IMG),
    ("ClassifierHead", (7, 5), {"pool_type": "avgmax", "input_fmt": "NHWC"}, IMG),
    ("ClassifierHead", (32, 0), {"pool_type": ""}, IMG),
    ("NormMlpClassifierHead", (32, 5), {"hidden_size": 9}, IMG),
    ("NormMlpClassifierHead", (32, 5), {"pool_type": "", "hidden_size": 9, "act_layer": "gelu"}, IMG),
    ("NormMlpClassifierHead", (32, 0), {"norm_layer": "rmsnorm2d"}, IMG),
    ("ClNormMlpClassifierHead", (7, 5), {"pool_type": "max"}, IMG),
    ("ClNormMlpClassifierHead", (7, 5), {"pool_type": "", "hidden_size": 9}, IMG),
    ("ClNormMlpClassifierHead", (32, 5), {"pool_type": "avgmax", "input_fmt": "NLC"}, TOKENS),
]
every = pytest.mark.parametrize(
    "name,args,kwargs,shape", CASES, ids=[f"{i}-{n}" for i, (n, *_) in enumerate(CASES)]
)


@every
def test_same_keys_outputs_gradients_and_statistics(name, args, kwargs, shape):
    agree(*twin(name, *args, **kwargs), torch.randn(shape))


@every
def test_symbolic_trace_and_copies_give_the_same(name, args, kwargs, shape):
    model, _ = twin(name, *args, **kwargs)
    model.eval()
    x = torch.randn(shape)
    expected = model(x + 0)
    other = torch.cat([x, x], dim=-2) if len(shape) == 4 else torch.cat([x, x])
    concrete = {"pre_logits": False} if "ClassifierHead" in name else None
    traced = torch.fx.symbolic_trace(model, concrete_args=concrete)
    torch.testing.assert_close(traced(x + 0), expected)
    torch.testing.assert_close(traced(other + 0), model(other + 0))  # another size: tracing fixed none
    for twice in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twice(x + 0), expected)


@every
def test_meta_device_gives_keys_and_shapes(name, args, kwargs, shape):
    model, _ = twin(name, *args, **kwargs)
    resolved = {k: getattr(ours, v[1:]) if isinstance(v, str) and v[:1] == "=" else v for k, v in kwargs.items()}
    with torch.device("meta"):
        hollow = getattr(ours, name)(*args, **resolved).eval()
        assert hollow(torch.randn(shape)).shape == model.eval()(torch.randn(shape, device="cpu")).shape
    assert {k: v.shape for k, v in hollow.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert all(t.is_meta for t in (*hollow.parameters(), *hollow.buffers()))


GRAPHS = [
    ("BatchNormAct2d", (32,), {}),
    ("FrozenBatchNormAct2d", (32,), {}),
    ("LayerNormAct2d", (32,), {}),
    ("EvoNorm2dB0", (32,), {}),
    ("EvoNorm2dS0", (32,), {}),
    ("FilterResponseNormTlu2d", (32,), {}),
    ("Conv2dSame", (32, 8, 3), {"stride": 2}),
    ("MixedConv2d", (32, 32, [3, 5]), {"stride": 2, "padding": "same"}),
    ("ScaledStdConv2dSame", (32, 8, 3), {"stride": 2}),
    ("ConvNormAct", (32, 8, 3), {"stride": 2, "aa_layer": "blur"}),
    ("create_pool2d", ("max", 3, 2), {"padding": "same"}),
    ("AvgPool2dSame", (2, 2), {}),
    ("SimPool2d", (32,), {}),
    ("LsePlus2d", (), {}),
    ("NormMlpClassifierHead", (32, 5), {"hidden_size": 9}),
]
graphs = pytest.mark.parametrize("name,args,kwargs", GRAPHS, ids=[n for n, *_ in GRAPHS])


@graphs
def test_compiles_as_one_graph(name, args, kwargs):
    model = getattr(ours, name)(*args, **kwargs)
    x = torch.randn(2, 32, 16, 12)
    compiled = torch.compile(model.eval(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x + 0), model(x + 0))
    torch.compile(model.train(), fullgraph=True, backend="aot_eager")(x.requires_grad_()).sum().backward()
    assert x.grad is not None


@graphs
@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_sizes_left_open(name, args, kwargs, strict):
    model = getattr(ours, name)(*args, **kwargs).eval()
    x = torch.randn(2, 32, 16, 12)
    auto = torch.export.Dim.AUTO
    program = torch.export.export(model, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},), strict=strict)
    for size in ((2, 32, 16, 12), (3, 32, 17, 11)):
        x = torch.randn(size)
        torch.testing.assert_close(program.module()(x + 0), model(x + 0))
