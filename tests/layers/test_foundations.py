"""Switches, first weights, tracing help, and the package itself."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import nn
from twin import ours, theirs

from ziggurat.errors import BadArgument
from ziggurat.layers import trace_utils


def test_fused_attention_switch():
    assert ours.use_fused_attn()
    assert not ours.use_fused_attn(experimental=True)
    try:
        ours.set_fused_attn(True, experimental=True)
        assert ours.use_fused_attn(experimental=True)
        ours.set_fused_attn(False)
        assert not ours.use_fused_attn()
        assert not ours.SimPool1d(8).fused_attn
    finally:
        ours.set_fused_attn()
    with ours.set_exportable(True):
        assert not ours.use_fused_attn()
    assert ours.use_fused_attn()


def test_fused_and_plain_attention_agree():
    x = torch.randn(2, 5, 8)
    pool = ours.SimPool1d(8, num_heads=2)
    fused = pool(x)
    pool.fused_attn = False
    torch.testing.assert_close(pool(x), fused)


def test_remembered_switches_are_put_back():
    with ours.set_layer_config(scriptable=True, no_jit=True):
        assert ours.is_scriptable()
        assert ours.is_no_jit()
        assert not ours.is_exportable()
        with ours.set_scriptable(False):
            assert not ours.is_scriptable()
        assert ours.is_scriptable()
    assert [ours.is_scriptable(), ours.is_no_jit()] == [False, False]


def test_checkpoint_switch():
    before = ours.use_reentrant_ckpt()
    ours.set_reentrant_ckpt(not before)
    assert ours.use_reentrant_ckpt() is not before
    ours.set_reentrant_ckpt(before)


@pytest.mark.parametrize("mode,fan", [("fan_in", 200), ("fan_out", 400), ("fan_avg", 300)])
@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
def test_variance_scaling(mode, fan, distribution):
    w = ours.variance_scaling_(torch.empty(400, 200), scale=2.0, mode=mode, distribution=distribution)
    std = math.sqrt(2 / fan)
    assert w.std().item() == pytest.approx(std, rel=0.02)
    assert w.mean().item() == pytest.approx(0, abs=std * 0.02)
    reach = {"normal": 9, "uniform": math.sqrt(3), "truncated_normal": 2 / 0.8796}[distribution]
    assert w.abs().max() <= std * reach * 1.001


def test_cut_normals():
    w = ours.trunc_normal_(torch.empty(300, 300), std=1.0, a=-1.0, b=0.5)
    assert (w.min() >= -1, w.max() <= 0.5) == (True, True)
    w = ours.trunc_normal_tf_(torch.empty(300, 300), mean=3.0, std=0.1)
    assert w.mean().item() == pytest.approx(3, abs=0.01)
    assert (w - 3).abs().max() <= 0.2 + 1e-6
    assert ours.lecun_normal_(torch.empty(400, 100)).std().item() == pytest.approx(0.1, rel=0.03)
    assert ours.trunc_normal_(torch.empty(3, device="meta")).is_meta


@pytest.mark.parametrize("function", ["init_weight_vit", "init_weight_jax"])
@pytest.mark.parametrize("name", ["head", "blocks.0.mlp.fc1", "blocks.0.attn.qkv"])
@pytest.mark.parametrize("make", [lambda: nn.Linear(64, 48), lambda: nn.Conv2d(16, 48, 2), lambda: nn.Linear(64, 48, bias=False)])
def test_initialising_by_name(function, name, make):
    if name == "head" and make().bias is None:
        m = make()
        getattr(ours, function)(m, name)  # timm's fails where the head has no bias
        assert m.weight.abs().max() == 0
        return
    spread = []
    for package in (ours, theirs):
        torch.manual_seed(0)
        m = make()
        getattr(package, function)(m, name, head_bias=-3.0)
        spread.append([(t.float().mean().item(), t.float().std().item()) for t in m.parameters()])
    for mine, his in zip(*spread):
        assert mine == pytest.approx(his, abs=0.005, rel=0.1)


def test_a_module_that_initialises_itself_is_asked_to():
    calls = []
    m = nn.ReLU()
    m.init_weights = lambda: calls.append(1)
    ours.init_weight_vit(m, "x")
    ours.init_weight_jax(m, "x")
    assert calls == [1, 1]


def test_unknown_ways_to_draw():
    with pytest.raises(BadArgument, match="fan_avg"):
        ours.variance_scaling_(torch.empty(2, 2), mode="fan")
    with pytest.raises(BadArgument, match="truncated_normal"):
        ours.variance_scaling_(torch.empty(2, 2), distribution="cauchy")


def test_the_blur_filter_can_be_made_again_after_meta():
    with torch.device("meta"):
        hollow = ours.BlurPool2d(4, filt_size=5)
    filled = hollow.to_empty(device="cpu")
    filled.init_non_persistent_buffers()
    assert torch.equal(filled.filt, ours.BlurPool2d(4, filt_size=5).filt)
    assert filled.filt.sum((2, 3)).flatten().tolist() == pytest.approx([1] * 4)


def test_device_and_dtype_of_a_module():
    module = nn.Sequential(nn.Linear(2, 2).double(), nn.Linear(2, 2))
    assert ours.get_device_dtype(module) == {"device": torch.device("cpu"), "dtype": torch.float64}
    assert ours.get_device_dtype(module, dtype=torch.half)["dtype"] is torch.half
    assert ours.get_device_dtype(nn.ReLU()) == {"device": None, "dtype": None}


class Asks(nn.Module):
    def forward(self, x):
        return x + 1 if ours.is_exporting() else x - 1


def test_export_is_noticed():
    x = torch.zeros(2)
    assert Asks()(x).tolist() == [-1, -1]
    for strict in (False, True):
        assert torch.export.export(Asks(), (x,), strict=strict).module()(x).tolist() == [1, 1]


def double(x):
    return x * 2


class Branching(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.branch = Branching()

    def forward(self, x):
        return self.branch(double(self.conv(x)))


def test_registered_modules_and_functions_stay_whole(monkeypatch):
    monkeypatch.setattr(trace_utils, "_leaf_modules", set())
    monkeypatch.setattr(trace_utils, "_leaf_functions", set())
    with pytest.raises(torch.fx.proxy.TraceError):
        ours.get_graph_node_names(Net())
    assert ours.register_notrace_module(Branching) is Branching
    assert ours.register_notrace_function("double") == "double"
    assert ours.get_notrace_functions() == [double]
    assert ours.get_notrace_modules() == [Branching]
    assert ours.is_notrace_module(Branching)
    assert ours.is_notrace_function(double)
    assert ours.get_graph_node_names(Net())[1] == ["x", "conv", "double", "branch"]
    x = torch.randn(1, 3, 2, 2)
    net = Net().eval()
    out = ours.create_feature_extractor(net, {"double": "twice"})(x)
    torch.testing.assert_close(out["twice"], net.conv(x) * 2)


def test_importing_the_package_imports_no_torch():
    code = "import sys, ziggurat.layers as L; dir(L); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_resolves_and_is_declared_where_it_lives():
    for name in ours.__all__:
        file = sys.modules["ziggurat.layers"]._WHERE[name]
        value = getattr(ours, name)
        assert not isinstance(value, ModuleType), name
        module = __import__(f"ziggurat.layers.{file}", fromlist=["x"])
        assert getattr(module, name) is value
        assert name in module.__all__, f"{name} is not in {file}.__all__"
    assert set(ours.__all__) <= set(dir(ours))
    with pytest.raises(AttributeError, match="no_such_layer"):
        ours.no_such_layer  # noqa: B018


def test_every_public_name_of_timm_is_here():
    public = {n for n in dir(theirs) if not n.startswith("__") and not isinstance(getattr(theirs, n), ModuleType)}
    assert public - set(ours.__all__) == {"InplaceAbn"}  # a CUDA extension of its own, long unmaintained


def test_a_name_wins_over_the_file_of_that_name():
    from ziggurat.layers.create_conv2d import create_conv2d

    assert ours.create_conv2d is create_conv2d
    assert isinstance(ours.drop, ModuleType)
    assert pickle.loads(pickle.dumps(create_conv2d)) is create_conv2d
