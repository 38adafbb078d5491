"""The gates and spatial attention layers of convolutional networks agree with timm's, in every option."""

from __future__ import annotations

import pytest
import torch
from agreement import assert_agree, assert_sound, outputs, pair
from torch import nn

from ziggurat.errors import BadArgument
from ziggurat.layers.bottleneck_attn import BottleneckAttn
from ziggurat.layers.create_attn import BY_NAME, create_attn, get_attn
from ziggurat.layers.eca import EcaModule
from ziggurat.layers.gather_excite import GatherExcite
from ziggurat.layers.halo_attn import HaloAttn
from ziggurat.layers.lambda_layer import LambdaLayer
from ziggurat.layers.non_local_attn import BatNonLocalAttn
from ziggurat.layers.pool2d_ceil import AvgPool2dCeil
from ziggurat.layers.selective_kernel import SelectiveKernel
from ziggurat.layers.squeeze_excite import SEModule

SE, CA, NL = "squeeze_excite.", "coord_attn.", "non_local_attn."
BN, ACT = nn.BatchNorm2d, nn.SiLU

GATES = [
    (SE + "SEModule", {}),
    (SE + "SEModule", dict(rd_channels=5, add_maxpool=True, bias=False, act_layer=ACT, norm_layer=BN)),
    (SE + "SEModule", dict(rd_ratio=0.25, rd_divisor=4, act_layer="silu", gate_layer="hard_sigmoid")),
    (SE + "EffectiveSEModule", {}),
    (SE + "EffectiveSEModule", dict(add_maxpool=True, gate_layer="sigmoid", rd_ratio=0.5)),
    ("eca.EcaModule", dict(kernel_size=5)),
    ("eca.EcaModule", dict(channels=32, gamma=1, beta=3)),
    ("eca.EcaModule", dict(channels=32, use_mlp=True, act_layer=ACT, rd_channels=3)),
    ("eca.EcaModule", dict(channels=32, use_mlp=True)),
    ("eca.CecaModule", dict(channels=32)),
    ("eca.CecaModule", dict(kernel_size=5, gate_layer="hard_sigmoid")),
    ("cbam.CbamModule", {}),
    ("cbam.CbamModule", dict(rd_channels=7, spatial_kernel_size=3, act_layer=ACT, mlp_bias=True)),
    ("cbam.LightCbamModule", {}),
    ("cbam.LightCbamModule", dict(rd_ratio=0.25, spatial_kernel_size=3, mlp_bias=True)),
    ("global_context.GlobalContext", {}),
    ("global_context.GlobalContext", dict(use_attn=False, fuse_add=True, act_layer=ACT)),
    ("global_context.GlobalContext", dict(fuse_add=True, fuse_scale=False, init_last_zero=True, rd_channels=6)),
    (CA + "CoordAttn", {}),
    (CA + "CoordAttn", dict(rd_channels=5, bias=True, norm_layer=None, act_layer=ACT, has_skip=True)),
    (CA + "SimpleCoordAttn", {}),
    (CA + "SimpleCoordAttn", dict(rd_ratio=0.5, bias=False, gate_layer="hard_sigmoid", has_skip=True)),
    (CA + "EfficientLocalAttn", {}),
    (CA + "EfficientLocalAttn", dict(kernel_size=3, bias=True, norm_layer=BN, act_layer=ACT, has_skip=True)),
    (CA + "StripAttn", {}),
    (CA + "StripAttn", dict(kernel_size=5, bias=True, has_skip=True)),
    (CA + "StripAttn", dict(use_conv=False)),
    (NL + "NonLocalAttn", {}),
    (NL + "NonLocalAttn", dict(use_scale=False, rd_channels=6)),
    (NL + "BatNonLocalAttn", dict(block_size=3)),
    (NL + "BatNonLocalAttn", dict(block_size=3, groups=4, rd_channels=12, act_layer=ACT)),
]
SPATIAL = [
    ("selective_kernel.SelectiveKernel", {}),
    ("selective_kernel.SelectiveKernel", dict(out_channels=48, stride=2, groups=4, rd_channels=9, act_layer=ACT)),
    ("selective_kernel.SelectiveKernel", dict(kernel_size=[3, 5], keep_3x3=False, split_input=False, dilation=2)),
    ("selective_kernel.SelectiveKernel", dict(kernel_size=5)),
    ("split_attn.SplitAttn", {}),
    ("split_attn.SplitAttn", dict(out_channels=48, radix=1, groups=2, stride=2, bias=True, norm_layer=BN)),
    ("split_attn.SplitAttn", dict(radix=4, groups=2, norm_layer=BN, rd_channels=8, act_layer=ACT, kernel_size=5)),
    ("split_attn.SplitAttn", dict(padding=2, dilation=2, drop_layer=nn.Identity)),
    ("bottleneck_attn.BottleneckAttn", dict(feat_size=(12, 6))),
    ("bottleneck_attn.BottleneckAttn", dict(feat_size=(12, 6), dim_out=48, stride=2, num_heads=2, dim_head=10)),
    ("bottleneck_attn.BottleneckAttn", dict(feat_size=(12, 6), qk_ratio=0.5, qkv_bias=True, scale_pos_embed=True)),
    ("halo_attn.HaloAttn", dict(block_size=3, halo_size=1)),
    ("halo_attn.HaloAttn", dict(block_size=6, halo_size=2, stride=2, dim_out=48, num_heads=4, dim_head=6)),
    ("halo_attn.HaloAttn", dict(block_size=3, stride=2, qk_ratio=0.5, num_heads=2, qkv_bias=True)),
    ("halo_attn.HaloAttn", dict(block_size=6, stride=2, avg_down=True, scale_pos_embed=True)),
    ("lambda_layer.LambdaLayer", {}),
    ("lambda_layer.LambdaLayer", dict(dim_out=32, stride=2, num_heads=2, dim_head=None, r=3, qk_ratio=0.5)),
    ("lambda_layer.LambdaLayer", dict(feat_size=(12, 6), r=None, qkv_bias=True)),
]


def name(case: object) -> str | None:
    return case.split(".")[1] if isinstance(case, str) else None


@pytest.mark.parametrize("where, options", GATES + SPATIAL, ids=name)
def test_agrees_with_timm(where: str, options: dict) -> None:
    first = () if "eca" in where.split(".")[0] else (32,)
    ours, theirs = pair(where, *first, **options)
    torch.manual_seed(0)
    assert_agree(ours, theirs, torch.randn(2, 32, 12, 6))


@pytest.mark.parametrize("where, options", [c for c in GATES + SPATIAL if "halo" in c[0] or "lambda" in c[0]][:5])
def test_agrees_at_another_size(where: str, options: dict) -> None:
    ours, theirs = pair(where, 32, **options)
    assert_agree(ours, theirs, torch.randn(1, 32, 18, 24))


def test_channels_last_gate_agrees_with_timm() -> None:
    ours, theirs = pair("squeeze_excite.SqueezeExciteCl", 32, rd_ratio=0.25, act_layer=nn.GELU)
    assert_agree(ours, theirs, torch.randn(2, 6, 5, 32))


@pytest.mark.parametrize("kind", sorted(BY_NAME))
def test_traces_compiles_and_copies(kind: str) -> None:
    special = {
        "bottleneck": dict(feat_size=(6, 6)),
        "halo": dict(block_size=3, halo_size=1),
        "bat": dict(block_size=3),
    }
    module = create_attn(kind, 32, **special.get(kind, {}))
    assert module is not None
    assert_sound(module.eval(), torch.randn(2, 32, 6, 6))


@pytest.mark.parametrize("kind", sorted(BY_NAME))
def test_builds_on_the_meta_device(kind: str) -> None:
    with torch.device("meta"):
        module = create_attn(kind, 16, **(dict(feat_size=(7, 7)) if kind == "bottleneck" else {}))
        assert module is not None
        side = 8 if kind == "halo" else 7
        out = module.eval()(torch.empty(1, 16, side, side))
    assert out.device.type == "meta"
    assert out.shape[1] == 16


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("extent", [0, 2, 4])
@pytest.mark.parametrize("add_maxpool", [False, True])
def test_gather_excite_keeps_the_shape_and_gates_by_neighbourhood(extra: bool, extent: int, add_maxpool: bool) -> None:
    # timm 1.0.31 cannot build this layer, so its definition is checked instead
    feat_size = 8 if extra and extent == 0 else None
    layer = GatherExcite(16, feat_size, extra, extent, rd_channels=8, add_maxpool=add_maxpool).eval()
    x = torch.randn(2, 16, 8, 8).abs() + 0.1
    gate = outputs(layer, x)[0] / x
    assert gate.min() > 0
    assert gate.max() < 1
    side = extent or 8
    first = gate[:, :, :side, :side]
    torch.testing.assert_close(first, first[:, :, :1, :1].expand_as(first))
    if extent:
        assert not torch.equal(gate[:, :, 0, 0], gate[:, :, -1, -1])


def test_gather_excite_without_parameters_is_the_mean_through_a_sigmoid() -> None:
    x = torch.randn(2, 16, 8, 8)
    layer = GatherExcite(16, use_mlp=False)
    torch.testing.assert_close(layer(x), x * x.mean((2, 3), keepdim=True).sigmoid())
    local = GatherExcite(16, use_mlp=False, extent=2)
    # the window of side 3 around the first cell covers it and its neighbours within the map
    wanted = x[:, :, 0, 0] * x[:, :, :2, :2].mean((2, 3)).sigmoid()
    torch.testing.assert_close(local(x)[:, :, 0, 0], wanted)


def test_light_cbam_takes_its_gate() -> None:
    # timm 1.0.31 takes gate_layer here and uses the sigmoid all the same
    layer = create_attn("lcbam", 16, gate_layer="hard_sigmoid")
    assert layer is not None
    assert [type(m) for m in layer.modules()].count(nn.Hardsigmoid) == 2
    x = torch.randn(2, 16, 5, 5)
    pooled = 0.5 * (x.mean((2, 3), keepdim=True) + x.amax((2, 3), keepdim=True))
    torch.testing.assert_close(layer.channel(x), x * nn.functional.hardsigmoid(layer.channel.score(pooled)))


def test_attention_by_type() -> None:
    assert get_attn(True) is SEModule
    assert get_attn("SE") is SEModule
    assert get_attn(EcaModule) is EcaModule
    for none in (None, False, ""):
        assert get_attn(none) is None
        assert create_attn(none, 8) is None
    assert isinstance(create_attn("ecam", 8), EcaModule)
    with pytest.raises(BadArgument, match="nearest are .*'?eca"):
        get_attn("ecaa")


def test_arguments_that_cannot_work_are_refused() -> None:
    with pytest.raises(BadArgument, match="kernel_size=4"):
        EcaModule(kernel_size=4)
    with pytest.raises(BadArgument, match="needs channels"):
        EcaModule(use_mlp=True)
    with pytest.raises(BadArgument, match="feat_size"):
        GatherExcite(16, extra_params=True)
    with pytest.raises(BadArgument, match="extent=3"):
        GatherExcite(16, extra_params=True, extent=3)
    with pytest.raises(BadArgument, match="feat_size"):
        BottleneckAttn(32)
    with pytest.raises(BadArgument, match="num_heads=5"):
        BottleneckAttn(32, feat_size=(6, 6), num_heads=5)
    with pytest.raises(BadArgument, match="stride=3"):
        HaloAttn(32, stride=3)
    with pytest.raises(BadArgument, match="feat_size"):
        LambdaLayer(32, r=None)
    with pytest.raises(BadArgument, match="kernel_size=2"):
        SelectiveKernel(32, kernel_size=2)
    with pytest.raises(BadArgument, match="split_input=False"):
        SelectiveKernel(33)


@pytest.mark.parametrize(
    "layer",
    [
        BottleneckAttn(32, feat_size=(6, 6)),
        BottleneckAttn(32, feat_size=(6, 6), stride=2),
        HaloAttn(32, block_size=4),
        HaloAttn(32, block_size=4, stride=2),
        HaloAttn(32, block_size=3, stride=2),
        LambdaLayer(32, feat_size=(6, 6), r=None),
        BatNonLocalAttn(32, block_size=3),
    ],
)
def test_maps_of_any_size(layer: torch.nn.Module) -> None:
    """The sides of the result are rounded up, and the traced form gives the same."""
    traced = torch.fx.symbolic_trace(layer.eval())
    stride = 2 if isinstance(getattr(layer, "pool", None), AvgPool2dCeil) or getattr(layer, "query_stride", 1) == 2 else 1
    for height, width in ((6, 6), (9, 5), (1, 2), (12, 11)):
        x = torch.randn(2, 32, height, width)
        out = layer(x)
        assert out.shape == (2, 32, -(-height // stride), -(-width // stride))
        assert torch.isfinite(out).all()
        assert torch.equal(traced(x), out)


def test_non_local_blocks_begin_as_the_identity() -> None:
    layer = create_attn("nl", 16)
    assert layer is not None
    x = torch.randn(2, 16, 5, 5)
    assert torch.equal(layer.eval()(x), x)
