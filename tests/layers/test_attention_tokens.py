"""Attention over tokens and maps, its pools, MLPs and small token layers agree with timm's, in every option."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from agreement import assert_agree, assert_sound, find, pair
from torch import nn

from ziggurat.errors import BadArgument
from ziggurat.layers.attention import Attention, AttentionRope, maybe_add_mask, resolve_self_attn_mask
from ziggurat.layers.attention2d import Attention2d
from ziggurat.layers.attention_pool import AttentionPoolLatent, AttentionPoolPrr
from ziggurat.layers.attention_pool2d import AttentionPool2d, RotAttentionPool2d
from ziggurat.layers.layer_scale import LayerScale
from ziggurat.layers.mlp import GluMlp, Mlp
from ziggurat.layers.patch_dropout import PatchDropout, PatchDropoutWithIndices

LN = partial(nn.LayerNorm, eps=1e-6)
A, AR, DA, A2 = "attention.Attention", "attention.AttentionRope", "diff_attention.DiffAttention", "attention2d."
P1, P2 = "attention_pool.", "attention_pool2d."

TOKENS = [
    (A, {}),
    (A, dict(num_heads=4, attn_head_dim=6, dim_out=24, qkv_bias=True, proj_bias=False)),
    (A, dict(qk_norm=True, scale_norm=True, norm_layer=LN, gated=True, qkv_bias=True)),
    (AR, dict(num_heads=4)),
    (AR, dict(num_heads=4, qkv_fused=False, num_kv_heads=2, qkv_bias=False, attn_head_dim=6, dim_out=24)),
    (AR, dict(num_heads=4, qk_norm=True, scale_norm=True, norm_layer=LN, gated=True, proj_bias=False)),
    (DA, {}),
    (DA, dict(num_heads=4, qkv_bias=True, dual_lambda=True, depth=3, proj_bias=False)),
    (DA, dict(qk_norm=True, scale_norm=True, norm_layer=LN, depth=2)),
    (P1 + "AttentionPoolLatent", {}),
    (P1 + "AttentionPoolLatent", dict(num_heads=4, pos_embed="abs", feat_size=7, latent_len=3, latent_dim=12)),
    (P1 + "AttentionPoolLatent", dict(latent_len=2, qk_norm=True, norm_layer=LN, pool_type="avg", mlp_ratio=2.0)),
    (P1 + "AttentionPoolLatent", dict(q_proj=False, qkv_bias=False, out_features=24, act_layer=nn.SiLU)),
    (P1 + "AttentionPoolLatent", dict(out_features=0)),
    (P1 + "AttentionPoolPrr", {}),
    (P1 + "AttentionPoolPrr", dict(num_heads=4, pool_type="avg", pre_norm=True, post_norm=True)),
    (P1 + "AttentionPoolPrr", dict(post_norm=True, norm_layer=LN)),
    ("mlp.Mlp", {}),
    ("mlp.Mlp", dict(hidden_features=20, out_features=12, act_layer=nn.SiLU, norm_layer=LN, bias=(True, False))),
    ("mlp.GluMlp", {}),
    ("mlp.GluMlp", dict(hidden_features=40, out_features=12, norm_layer=LN, gate_last=False, bias=False)),
    ("mlp.SwiGLUPacked", dict(hidden_features=24)),
    ("mlp.SwiGLU", {}),
    ("mlp.SwiGLU", dict(hidden_features=21, align_to=8, norm_layer=LN, bias=(False, True))),
    ("mlp.GatedMlp", dict(hidden_features=48, norm_layer=LN)),
    ("mlp.GatedMlp", dict(hidden_features=48, norm_layer=LN, gate_layer=partial(nn.Linear, out_features=24))),
    ("layer_scale.LayerScale", dict(init_values=0.1)),
    ("layer_scale.LayerScale", dict(inplace=True)),
    ("patch_dropout.PatchDropout", {}),
]
MAPS = [
    (A2 + "MultiQueryAttentionV2", dict(dim_out=24, num_heads=4, key_dim=6, value_dim=10)),
    (A2 + "MultiQueryAttention2d", {}),
    (A2 + "MultiQueryAttention2d", dict(dim_out=24, num_heads=4, key_dim=6, value_dim=10, query_strides=2, kv_stride=2)),
    (A2 + "MultiQueryAttention2d", dict(query_strides=(2, 1), padding="same", use_bias=True)),
    (A2 + "MultiQueryAttention2d", dict(kv_stride=2, dw_kernel_size=5, padding="same")),
    (A2 + "Attention2d", dict(num_heads=4)),
    (A2 + "Attention2d", dict(dim_out=48, num_heads=4, expand_first=True, head_first=True, bias=False)),
    (A2 + "Attention2d", dict(dim_out=48, num_heads=4, head_first=True)),
    ("mlp.Mlp", dict(hidden_features=20, use_conv=True, norm_layer=nn.BatchNorm2d)),
    ("mlp.GluMlp", dict(hidden_features=20, use_conv=True, out_features=12)),
    ("mlp.ConvMlp", dict(hidden_features=20, out_features=12, norm_layer=nn.BatchNorm2d, bias=(False, True))),
    ("mlp.GlobalResponseNormMlp", dict(use_conv=True, hidden_features=20)),
    ("mlp.GlobalResponseNormMlp", dict(bias=False)),
    ("grn.GlobalResponseNorm", {}),
    ("grn.GlobalResponseNorm", dict(channels_last=False)),
    ("layer_scale.LayerScale2d", dict(init_values=0.1)),
    (P2 + "AttentionPool2d", dict(head_dim=8)),
    (P2 + "AttentionPool2d", dict(feat_size=(6, 8), out_features=12, num_heads=4, class_token=True)),
    (P2 + "AttentionPool2d", dict(head_dim=16, qkv_separate=True, pool_type="", feat_size=8)),
    (P2 + "AttentionPool2d", dict(head_dim=16, embed_dim=48, out_features=0)),
    (P2 + "RotAttentionPool2d", dict(head_dim=8)),
    (P2 + "RotAttentionPool2d", dict(out_features=12, num_heads=4, class_token=True, ref_feat_size=(6, 8))),
    (P2 + "RotAttentionPool2d", dict(head_dim=16, qkv_separate=True, pool_type="")),
    (P2 + "RotAttentionPool2d", dict(head_dim=16, rope_type="dinov3")),
    (P2 + "RotAttentionPool2d", dict(head_dim=16, rope_type="mrope", out_features=0)),
]


def name(case: object) -> str | None:
    return case.split(".")[1] if isinstance(case, str) else None


@pytest.mark.parametrize("where, options", TOKENS, ids=name)
def test_agrees_on_tokens(where: str, options: dict) -> None:
    ours, theirs = pair(where, *(() if "Dropout" in where else (32,)), **options)
    x = torch.randn(2, 7, 32)
    if options.get("inplace"):
        assert_agree(ours, theirs, x.clone())
        before = x.clone()
        assert ours(before.requires_grad_(False)).data_ptr() == before.data_ptr()
    else:
        assert_agree(ours, theirs, x)


@pytest.mark.parametrize("where, options", MAPS, ids=name)
def test_agrees_on_maps(where: str, options: dict) -> None:
    ours, theirs = pair(where, 32, **options)
    last = "GlobalResponse" in where and not options.get("use_conv") and options.get("channels_last", True)
    assert_agree(ours, theirs, torch.randn(2, 8, 6, 32) if last else torch.randn(2, 32, 8, 6))


@pytest.mark.parametrize("where, options", [case for case in TOKENS if case[0] in (A, AR, DA)] + MAPS[1:6], ids=name)
def test_fused_and_spelled_out_agree_with_and_without_a_mask(where: str, options: dict) -> None:
    ours, theirs = pair(where, 32, **options)
    tokens = "2d" not in where
    x = torch.randn(2, 7, 32) if tokens else torch.randn(2, 32, 4, 4)
    length = 7 if tokens else 16
    queries = length // 4 if options.get("query_strides") == 2 else length
    queries = length // 2 if options.get("query_strides") == (2, 1) else queries
    keys = length // 4 if options.get("kv_stride") else length
    added = torch.randn(queries, keys)
    allowed = torch.rand(queries, keys) > 0.3
    allowed[:, 0] = True
    for mask in (None, added, allowed) if tokens else (None, added):
        results = []
        for fused in (True, False):
            ours.fused_attn = theirs.fused_attn = fused
            assert_agree(ours, theirs, x, attn_mask=mask)
            results.append(ours(x, attn_mask=mask))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("where, options", [case for case in TOKENS if case[0] in (A, AR, DA)], ids=name)
def test_causal_attention_reads_no_later_token(where: str, options: dict) -> None:
    ours, theirs = pair(where, 32, **options)
    x = torch.randn(2, 7, 32)
    changed = x.clone()
    changed[:, 5:] += 1.0
    padding = torch.ones(7, 7, dtype=torch.bool)
    padding[:, 1] = False
    for fused in (True, False):
        ours.fused_attn = theirs.fused_attn = fused
        assert_agree(ours, theirs, x, is_causal=True)
        torch.testing.assert_close(ours(x, is_causal=True)[:, :5], ours(changed, is_causal=True)[:, :5])
        both = ours(x, attn_mask=padding, is_causal=True)  # a mask is not forgotten beside it
        other = x.clone()
        other[:, 1] += 1.0
        torch.testing.assert_close(both[:, 2:], ours(other, attn_mask=padding, is_causal=True)[:, 2:])
        assert not torch.allclose(both, ours(x, is_causal=True))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shape", [(6, 16), (4, 6, 16), (2, 1, 6, 16)])
def test_rotary_attention_agrees(half: bool, shape: tuple[int, ...]) -> None:
    ours, theirs = pair(AR, 32, num_heads=4, rotate_half=half)
    assert_agree(ours, theirs, torch.randn(2, 7, 32), rope=torch.randn(shape))


def test_latent_pool_takes_a_mask() -> None:
    ours, theirs = pair(P1 + "AttentionPoolLatent", 32)
    mask = torch.zeros(2, 1, 1, 7)
    mask[..., 4:] = float("-inf")
    x = torch.randn(2, 7, 32)
    assert_agree(ours, theirs, x, attn_mask=mask)
    torch.testing.assert_close(ours(x, attn_mask=mask), ours(x[:, :4]))


@pytest.mark.parametrize("where", [P2 + "AttentionPool2d", P2 + "RotAttentionPool2d"])
def test_map_pools_at_other_sizes_before_logits_and_after_reset(where: str) -> None:
    ours, theirs = pair(where, 32, out_features=12, head_dim=8)
    for shape in ((7, 7), (5, 9), (10, 3)):
        x = torch.randn(2, 32, *shape)
        assert_agree(ours, theirs, x)
        assert_agree(ours, theirs, x, pre_logits=True)
    ours.double().reset(5, "")
    assert ours(torch.randn(2, 32, 7, 7).double()).shape == (2, 5, 7, 7)
    ours.reset(0, "token")
    assert ours.out_features == 32
    assert ours(torch.randn(2, 32, 7, 7).double()).shape == (2, 32)


def test_masks_are_resolved() -> None:
    scores = torch.zeros(1, 1, 3, 3)
    allowed = torch.tensor([[True, False, True]])
    theirs = find("timm", "attention.resolve_self_attn_mask")
    for mask in (None, allowed, torch.randn(3, 3)):
        wanted, found = theirs(3, scores, mask), resolve_self_attn_mask(3, scores, mask)
        assert (found is None) == (wanted is None)
        assert wanted is None or torch.equal(found, wanted)
    assert torch.equal(resolve_self_attn_mask(3, scores, None, True), theirs(3, scores, None, True))
    assert maybe_add_mask(scores) is scores
    assert torch.equal(maybe_add_mask(scores, allowed.float()), scores + allowed.float())


def test_dropout_of_patches() -> None:
    x = torch.arange(24.0).reshape(2, 12, 1).expand(-1, -1, 4)
    wanted, found = find("timm", "patch_dropout.PatchDropoutWithIndices"), PatchDropoutWithIndices
    for options in (dict(prob=0.5), dict(prob=0.9, num_prefix_tokens=2, ordered=True), dict(prob=0.99), dict(prob=0.0)):
        results = []
        for make in (wanted, found):
            torch.manual_seed(3)
            results.append(make(**options).train()(x))
        assert torch.equal(results[0][0], results[1][0])
        assert (results[0][1] is None) == (results[1][1] is None)
        assert results[0][1] is None or torch.equal(results[0][1], results[1][1])
    assert PatchDropout(0.5).eval()(x) is x
    with pytest.raises(BadArgument, match="prob=1.5"):
        PatchDropout(1.5)


def test_dropout_of_attention_is_applied_in_training_only() -> None:
    x = torch.randn(2, 7, 32)
    for fused in (True, False):
        layer = Attention(32, attn_drop=0.5)
        layer.fused_attn = fused
        assert not torch.allclose(layer.train()(x), layer(x))
        assert torch.equal(layer.eval()(x), layer(x))


SOUND = [
    (TOKENS[2], (2, 7, 32)),
    (TOKENS[4], (2, 7, 32)),
    (TOKENS[6], (2, 7, 32)),
    (TOKENS[10], (2, 7, 32)),
    (TOKENS[15], (2, 7, 32)),
    (TOKENS[20], (2, 7, 32)),
    (TOKENS[23], (2, 7, 32)),
    *[(MAPS[i], (2, 32, 8, 6)) for i in (0, 2, 4, 6, 11, 17, 21, 24)],
]


@pytest.mark.parametrize("case, shape", SOUND, ids=lambda c: name(c[0]) if isinstance(c[0], str) else None)
def test_traces_compiles_and_copies(case: tuple[str, dict], shape: tuple[int, ...]) -> None:
    module = find("ziggurat", case[0])(32, **case[1])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    assert_sound(module.eval(), torch.randn(shape))


@pytest.mark.parametrize("where, options", [TOKENS[2], TOKENS[8], MAPS[2], MAPS[17], MAPS[21]], ids=name)
def test_builds_on_the_meta_device(where: str, options: dict) -> None:
    with torch.device("meta"):
        module = find("ziggurat", where)(32, **options).eval()
        out = module(torch.empty(2, 32, 8, 6) if "2d" in where else torch.empty(2, 7, 32))
    assert out.device.type == "meta"


@pytest.mark.parametrize("where, options", [TOKENS[2], MAPS[2], MAPS[17], MAPS[21]], ids=name)
def test_exports(where: str, options: dict) -> None:
    module = find("ziggurat", where)(32, **options).eval()
    x = torch.randn(2, 32, 8, 6) if "2d" in where else torch.randn(2, 7, 32)
    batch = torch.export.Dim("batch", min=2, max=16)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},))
    other = torch.cat((x, x))
    torch.testing.assert_close(program.module()(other), module(other))


def test_arguments_that_cannot_work_are_refused() -> None:
    refused = [
        (lambda: Attention(32, num_heads=5), "num_heads=5"),
        (lambda: Attention(32, qk_norm=True), "norm_layer"),
        (lambda: AttentionRope(32, num_kv_heads=2), "qkv_fused=False"),
        (lambda: AttentionRope(32, num_kv_heads=3, qkv_fused=False), "num_kv_heads=3"),
        (lambda: Attention2d(32, num_heads=5), "num_heads=5"),
        (lambda: AttentionPoolLatent(32, pos_embed="abs"), "feat_size"),
        (lambda: AttentionPoolLatent(32, pos_embed="rel"), "'rel'"),
        (lambda: AttentionPoolLatent(32, q_proj=False, latent_dim=8), "latent_dim"),
        (lambda: AttentionPoolPrr(32, pool_type="max"), "'max'"),
        (lambda: AttentionPool2d(32, head_dim=7), "head_dim=7"),
        (lambda: RotAttentionPool2d(32, head_dim=8, pool_type="avg"), "'avg'"),
        (lambda: RotAttentionPool2d(32, head_dim=8, rope_type="none"), "'none'"),
        (lambda: GluMlp(31), "hidden_features=31"),
    ]
    for build, message in refused:
        with pytest.raises(BadArgument, match=message):
            build()


def test_start_values() -> None:
    assert torch.equal(LayerScale(4, init_values=0.5).gamma, torch.full((4,), 0.5))
    glu = GluMlp(16)
    glu.init_weights()
    assert torch.equal(glu.fc1.bias[8:], torch.ones(8))
    assert glu.fc1.weight[8:].abs().max() < 1e-4
    assert Mlp(8, drop=(0.1, 0.2)).drop2.p == 0.2
