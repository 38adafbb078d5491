"""Sizes, padding, pooling functions, formats and activations give timm's numbers."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from twin import close, ours, theirs

from ziggurat.errors import BadArgument


@pytest.mark.parametrize("v", [1, 4, 11, 12, 27.6, 60, 100, 513])
def test_make_divisible(v):
    for divisor, least, limit in itertools.product((4, 8, 3), (None, 16), (0.9, 0.0, 1.0)):
        expected = theirs.make_divisible(v, divisor, least, round_limit=limit)
        assert ours.make_divisible(v, divisor, least, round_limit=limit) == expected


def test_tuples():
    for x in (3, "ab", (1, 2), [1, 2, 3], None):
        assert ours.to_2tuple(x) == theirs.to_2tuple(x)
        assert ours.to_ntuple(4)(x) == theirs.to_ntuple(4)(x)
    for x, n in itertools.product((3, (1, 2), [1, 2, 3]), (1, 2, 5)):
        assert ours.extend_tuple(x, n) == theirs.extend_tuple(x, n)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5, (3, 4)])
@pytest.mark.parametrize("stride,dilation", [(1, 1), (2, 1), (1, 2), (3, 2), ((1, 2), 1)])
def test_padding_values(kernel, stride, dilation):
    from timm.layers import padding as their_padding

    opts = {"stride": stride, "dilation": dilation}
    assert ours.get_padding(kernel, stride, dilation) == theirs.get_padding(kernel, stride, dilation)
    assert ours.is_static_pad(kernel, **opts) == their_padding.is_static_pad(kernel, **opts)
    for rule in ("", "same", "SAME", "valid", 3, (1, 2)):
        assert ours.get_padding_value(rule, kernel, **opts) == their_padding.get_padding_value(rule, kernel, **opts)
    two = [ours.to_2tuple(a) for a in (kernel, stride, dilation)]
    x = torch.randn(1, 1, 7, 10)
    close(ours.pad_same(x, *two, value=2.0), theirs.pad_same(x, *two, value=2.0))
    for size in (1, 7, 10):
        args = (size, *(t[0] for t in two))
        assert ours.get_same_padding(*args) == theirs.get_same_padding(*args)


def test_padding_that_is_not_needed_copies_nothing():
    x = torch.randn(1, 1, 8, 8)
    assert ours.pad_same(x, (2, 2), (2, 2)) is x


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax"])
def test_global_pooling_functions(pool):
    x = torch.randn(2, 3, 5, 4)
    for size in (1, (2, 3)):
        close(ours.select_adaptive_pool2d(x, pool, size), theirs.select_adaptive_pool2d(x, pool, size))
    assert ours.SelectAdaptivePool2d(pool_type=pool).feat_mult() == (2 if pool == "catavgmax" else 1)


@pytest.mark.parametrize("pool", ["", "token", "avg", "max", "avgmax"])
def test_token_pooling(pool):
    x = torch.randn(2, 6, 3)
    for prefix, include in itertools.product((0, 1, 2), (True, False)):
        args = (x, pool, prefix, include)
        close(ours.global_pool_nlc(*args), theirs.global_pool_nlc(*args))


@pytest.mark.parametrize("fmt", ["NCHW", "NHWC", "NCL", "NLC"])
def test_formats(fmt):
    mine, his = ours.Format(fmt), theirs.Format(fmt)
    x = torch.randn(2, 3, 4, 5)
    close(ours.nchw_to(x, mine), theirs.nchw_to(x, his))
    close(ours.nhwc_to(x, mine), theirs.nhwc_to(x, his))
    assert ours.get_channel_dim(fmt) == theirs.get_channel_dim(fmt)
    assert ours.get_spatial_dim(fmt) == theirs.get_spatial_dim(fmt)


@pytest.mark.parametrize("options", [{}, {"kernel_size": (2, 3), "stride": 2}, {"padding": 1}, {"stride": 2, "same": True}])
def test_median_pool(options):
    from timm.layers.median_pool import MedianPool2d

    x = torch.randn(2, 3, 7, 8)
    close(ours.MedianPool2d(**options)(x), MedianPool2d(**options)(x))


def test_a_median_removes_a_speck():
    x = torch.zeros(1, 1, 5, 5)
    x[..., 2, 2] = 9
    assert ours.MedianPool2d(padding=1)(x).abs().max() == 0


ACTS = ["silu", "swish", "mish", "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "gelu_tanh", "quick_gelu", "sigmoid", "tanh", "hard_sigmoid", "hardsigmoid", "hard_swish", "hardswish", "hard_mish"]


@pytest.mark.parametrize("name", ACTS)
def test_activation_by_name(name):
    x = torch.linspace(-9, 9, 181)
    expected = theirs.get_act_fn(name)(x.clone())
    close(ours.get_act_fn(name)(x), expected)
    close(ours.get_act_layer(name)()(x.clone()), expected)
    close(ours.create_act_layer(name, inplace=True)(x.clone()), expected)
    close(ours.get_act_fn(name.upper())(x.clone()), expected)


@pytest.mark.parametrize("name", ["Swish", "Mish", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "HardMish", "GELU",
                                  "GELUTanh", "QuickGELU", "PReLU"])
@pytest.mark.parametrize("inplace", [True, False])
def test_activation_modules(name, inplace):
    x = torch.linspace(-9, 9, 181)
    results = []
    for package in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = getattr(package, name)(inplace=inplace)(leaf + 0)
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad))
    for mine, his in zip(*results):
        close(mine, his)


def test_activations_without_a_name():
    assert ours.get_act_layer(None) is ours.get_act_layer("") is ours.get_act_fn("") is ours.create_act_layer(None) is None
    assert ours.get_act_layer(torch.nn.ReLU) is torch.nn.ReLU
    assert ours.get_act_fn(F.relu) is F.relu
    assert isinstance(ours.create_act_layer("prelu", num_parameters=3), torch.nn.PReLU)
    assert isinstance(ours.create_act_layer("identity", inplace=True), torch.nn.Identity)


@pytest.mark.parametrize("enabled", [True, False])
def test_norms_in_autocast_precision(enabled):
    """With the fast path a norm stays in the autocast dtype; without it the result is float32."""
    x = torch.randn(2, 8, 4, 4)
    ours.set_fast_norm(enabled)
    try:
        layers = [ours.GroupNorm(8, 2), ours.LayerNorm2d(8), ours.RmsNorm2d(8)]
    finally:
        ours.set_fast_norm(False)
    for layer in layers:
        plain = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        assert y.dtype == (torch.bfloat16 if enabled else torch.float32), layer
        torch.testing.assert_close(y.float(), plain, atol=0.05, rtol=0.05)


def test_float32_norms_give_the_input_type_back():
    x = (torch.randn(2, 8, 3, 3) * 100 + 1000).bfloat16()
    for name in ("LayerNorm2dFp32", "RmsNorm2dFp32", "SimpleNorm2dFp32"):
        mine = getattr(ours, name)(8).bfloat16()
        his = getattr(theirs, name)(8).bfloat16()
        torch.testing.assert_close(mine(x), his(x), atol=0, rtol=0.01)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ours.get_act_layer("rely"),
        lambda: ours.get_act_fn("rely"),
        lambda: ours.get_act_fn("prelu"),
        lambda: ours.select_adaptive_pool2d(torch.zeros(1, 1, 2, 2), "mean"),
        lambda: ours.SelectAdaptivePool2d(pool_type="mean"),
        lambda: ours.SelectAdaptivePool2d(2, pool_type="fast"),
        lambda: ours.SelectAdaptivePool2d(2, pool_type="avg", input_fmt="NHWC"),
        lambda: ours.global_pool_nlc(torch.zeros(1, 2, 3), "mean"),
        lambda: ours.create_pool2d("median", 2),
        lambda: ours.create_pool2d("avg", 2, dilation=2),
        lambda: ours.BlurPool2d(3, filt_size=1),
        lambda: ours.create_aa("blurr", 3),
        lambda: ours.SimPool1d(10, num_heads=3),
        lambda: ours.create_conv2d(4, 4, [3, 5], num_experts=2),
        lambda: ours.create_conv2d(4, 4, [3, 5], groups=2),
    ],
)
def test_bad_arguments_say_what_is_allowed(call):
    with pytest.raises(BadArgument, match=r"use |needs |known|nearest"):
        call()
