"""Layers chosen by name, class, function or partial, as timm chooses them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from twin import agree, close, ours, theirs, twin

from ziggurat.errors import BadArgument

FREE = ["batchnorm", "batchnorm2d", "groupnorm", "groupnorm1", "layernorm", "layernorm2d", "layernormfp32", "layernorm2dfp32", "rmsnorm", "rmsnorm2d", "rmsnormfp32", "rmsnorm2dfp32"]
JOINT = ["evonormb0", "evonormb1", "evonormb2", "evonorms0", "evonorms0a", "evonorms1", "evonorms1a", "evonorms2", "evonorms2a", "frn", "frntlu"]
SIMPLE = ["batchnorm1d", "simplenorm", "simplenorm2d", "simplenormfp32", "simplenorm2dfp32", "frozenbatchnorm2d"]


@pytest.mark.parametrize("name", FREE + SIMPLE)
def test_norm_by_name(name):
    cls = ours.get_norm_layer(name)
    assert cls.__name__ == theirs.get_norm_layer(name).__name__
    assert ours.get_norm_layer(name.upper()) is ours.get_norm_layer(name[:4] + "_" + name[4:]) is cls
    assert ours.get_norm_layer(cls) is cls
    bound = ours.get_norm_layer(partial(cls, eps=0.5))
    assert bound.func is cls
    assert ours.create_norm_layer(bound, 32).eps == 0.5


@pytest.mark.parametrize("name", FREE + JOINT)
def test_norm_with_activation_by_name(name):
    mine, his = ours.get_norm_act_layer(name, "silu"), theirs.get_norm_act_layer(name, "silu")

    def parts(layer):
        return (layer.func.__name__, layer.keywords) if isinstance(layer, partial) else (layer.__name__, {})

    assert parts(mine) == parts(his)
    assert parts(ours.get_norm_act_layer(name.replace("norm", "_Norm") + "-relu", "silu")) == parts(his)
    layer = ours.create_norm_act_layer(name, 32, act_layer="silu", apply_act=False)
    assert layer.state_dict().keys() == theirs.create_norm_act_layer(name, 32, "silu", apply_act=False).state_dict().keys()


@pytest.mark.parametrize("cls", [nn.BatchNorm2d, "LayerNorm", "LayerNorm2d", "GroupNorm", "GroupNorm1", "RmsNorm2d"])
def test_the_class_of_a_norm_gives_its_counterpart(cls):
    mine = getattr(ours, cls) if isinstance(cls, str) else cls
    his = getattr(theirs, cls) if isinstance(cls, str) else cls
    a, b = ours.get_norm_act_layer(mine, "gelu"), theirs.get_norm_act_layer(his, "gelu")
    assert a.func.__name__ == b.func.__name__
    assert a.keywords == b.keywords


def test_partials_and_functions():
    a = ours.get_norm_act_layer(partial(ours.GroupNormAct, num_groups=4, act_layer="tanh"), act_layer="relu")
    assert a.keywords == {"num_groups": 4, "act_layer": "tanh"}
    assert isinstance(a(8).act, ours.Tanh)
    assert isinstance(ours.get_norm_act_layer("batchnorm")(8).act, nn.Identity)  # no activation asked for

    def make(channels, **kwargs):
        return nn.Identity()

    assert ours.get_norm_act_layer(make, "relu") is make
    assert ours.get_norm_act_layer(None) is ours.get_norm_act_layer("") is None
    assert ours.get_norm_layer(None) is ours.get_norm_layer("") is None


@pytest.mark.parametrize("aa", [None, "", "avg", "avgpool", "blur", "blurpool", "blurpc", nn.AvgPool2d, "=BlurPool2d"])
@pytest.mark.parametrize("stride", [1, 2])
def test_anti_aliasing(aa, stride):
    if isinstance(aa, str) and aa.startswith("="):
        mine, his = (getattr(p, aa[1:]) for p in (ours, theirs))
    else:
        mine = his = aa
    x = torch.randn(2, 8, 9, 7)
    a, b = ours.create_aa(mine, channels=8, stride=stride), theirs.create_aa(his, channels=8, stride=stride)
    assert type(a).__name__ == type(b).__name__
    close(a(x), b(x))
    assert ours.create_aa(mine, 8, stride, enable=False, noop=None) is None
    assert ours.create_aa(ours.AvgPool2dSame, 8, 2)(x).shape == (2, 8, 5, 4)
    partial_blur = partial(ours.BlurPool2d, filt_size=5)
    assert ours.create_aa(partial_blur, 8, stride).filt.shape == (8, 1, 5, 5)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"stride": 2, "padding": "same"}, {"groups": 4, "bias": True}, {"padding": "same", "dilation": 2}, {"depthwise": True}],
)
@pytest.mark.parametrize("kernel", [3, (3, 2)])
def test_conditional_convolution(kwargs, kernel):
    a, b = twin("create_conv2d", 8, 8, kernel, num_experts=3, **kwargs)
    assert isinstance(a, ours.CondConv2d)
    agree(a, b, torch.randn(2, 8, 9, 7), torch.rand(2, 3))
    traced = torch.fx.symbolic_trace(a)
    x, routing = torch.randn(4, 8, 6, 6), torch.rand(4, 3)
    close(traced(x, routing), a(x, routing))


def test_experts_are_drawn_one_by_one():
    seen = []
    ours.get_condconv_initializer(lambda w: seen.append(tuple(w.shape)), 3, (2, 4, 1, 1))(torch.zeros(3, 8))
    assert seen == [(2, 4, 1, 1)] * 3
    experts = ours.CondConv2d(4, 2, 1, num_experts=3)
    ours.get_condconv_initializer(nn.init.ones_, 3, (2, 4, 1, 1))(experts.weight)
    assert experts.weight.unique().tolist() == [1]
    with pytest.raises(BadArgument, match=r"\(3, 8\)"):
        ours.get_condconv_initializer(seen.append, 3, (2, 4, 1, 1))(torch.zeros(4, 8))


@pytest.mark.parametrize(
    "call",
    [
        lambda: ours.get_norm_layer("batchnrm"),
        lambda: ours.get_norm_layer(3),
        lambda: ours.create_norm_layer("", 8),
        lambda: ours.get_norm_act_layer("simplenorm3"),
        lambda: ours.get_norm_act_layer(nn.Linear),
        lambda: ours.create_norm_act_layer(None, 8),
    ],
)
def test_unknown_norms(call):
    with pytest.raises(BadArgument, match=r"use |name one|not 3"):
        call()
