"""Vision transformers: equal to timm's in every block, pooling and input, and readers of other people's checkpoints."""

import copy
import math
import pickle

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import fx

import ziggurat
from parity.oracle import TOLERANCE, compare, difference, redraw
from ziggurat.errors import BadArgument, UnsupportedStride
from ziggurat.layers.patch_embed import resample_patch_embed
from ziggurat.layers.pos_embed import resample_abs_pos_embed
from ziggurat.models.vision_transformer import Block, VisionTransformer

SMALL = dict(embed_dim=64, depth=3, num_heads=2, mlp_ratio=4, num_classes=7)


def pair(name="vit_tiny_patch16_224", **kwargs):
    """timm's model and ours with the same redrawn weights."""
    theirs = timm.create_model(name, **kwargs).eval()
    redraw(theirs)
    ours = ziggurat.create_model(name, **kwargs).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def images(*size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "test_vit4"])
def test_parity(name):
    found = compare(name)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("name", [
    "vit_base_patch32_clip_quickgelu_224", "vit_base_patch16_rpn_224", "vit_small_patch16_18x2_224",
    "vit_base_patch16_xp_224", "vit_pwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256",
    "vit_dwee_patch16_reg1_gap_256", "beit3_base_patch16_224", "aimv2_large_patch14_224",
    "vit_base_patch32_siglip_256", "vit_base_patch16_siglip_gap_224", "vit_so150m_patch16_reg4_map_256",
])  # fmt: skip
def test_parity_of_blocks_and_heads_narrowed(name):
    found = compare(name, **SMALL)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("name", [
    "vit_giant_patch14_dinov2", "vit_base_patch14_reg4_dinov2", "vit_base_patch16_radio_v3",
    "vit_intern300m_patch14_448", "vit_so400m_patch14_siglip_384", "flexivit_small",
])  # fmt: skip
def test_parity_at_a_size_of_ones_own(name):
    ours, theirs = pair(name, img_size=70, patch_size=14, **SMALL)
    x = images(70, 70)
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) <= TOLERANCE
        last, levels = ours.forward_intermediates(x, norm=True)
        last_reference, references = theirs.forward_intermediates(x, norm=True)
    assert difference(last, last_reference) <= TOLERANCE
    assert all(difference(a, b) <= TOLERANCE for a, b in zip(levels, references, strict=True))


@pytest.mark.parametrize("options", [
    dict(global_pool="avg"), dict(global_pool="max"), dict(global_pool="avgmax", pool_include_prefix=True),
    dict(global_pool="map"), dict(global_pool="prr"), dict(global_pool=""), dict(global_pool="avg", fc_norm=False),
    dict(fc_norm=True), dict(final_norm=False), dict(in_chans=1), dict(qk_norm=True, scale_attn_norm=True),
    dict(no_embed_class=True, reg_tokens=2), dict(pos_embed="none"), dict(pre_norm=True, embed_norm_layer="layernorm"),
    dict(attn_layer="diff"), dict(init_values=0.1, proj_bias=False, act_layer="relu", norm_layer="layernorm"),
])  # fmt: skip
def test_parity_of_arguments(options):
    ours, theirs = pair(img_size=64, **SMALL, **options)
    x = torch.randn(2, options.get("in_chans", 3), 64, 64)
    with torch.no_grad():
        features, reference = ours.forward_features(x), theirs.forward_features(x)
        assert difference(features, reference) <= TOLERANCE
        for pre_logits in (False, True):
            got = ours.forward_head(features, pre_logits=pre_logits)
            assert difference(got, theirs.forward_head(reference, pre_logits=pre_logits)) <= TOLERANCE


@pytest.mark.parametrize("name", [
    "vit_tiny_patch16_224", "vit_base_patch16_rpn_224", "vit_small_patch16_18x2_224", "vit_base_patch16_xp_224",
    "vit_dpwee_patch16_reg1_gap_256",
])  # fmt: skip
def test_masks_reach_every_block(name):
    ours, theirs = pair(name, img_size=48, **SMALL)
    x = images(48, 48)
    tokens = 9 + ours.num_prefix_tokens
    may_read = torch.rand(tokens, tokens) > 0.4
    may_read |= torch.eye(tokens, dtype=torch.bool)
    free = ours.forward_features(x)
    for inputs in (dict(attn_mask=may_read), dict(is_causal=True)):
        with torch.no_grad():
            got, wanted = ours.forward_features(x, **inputs), theirs.forward_features(x, **inputs)
            levels = ours.forward_intermediates(x, intermediates_only=True, **inputs)
            references = theirs.forward_intermediates(x, intermediates_only=True, **inputs)
        assert difference(got, wanted) <= TOLERANCE
        assert all(difference(a, b) <= TOLERANCE for a, b in zip(levels, references, strict=True))
        assert not torch.allclose(got, free)


def test_a_block_of_ones_own_need_not_know_masks():
    class Plain(Block):
        def forward(self, x):
            return super().forward(x)

    model = VisionTransformer(img_size=32, block_fn=Plain, **SMALL).eval()
    assert model(images(32, 32)).shape == (2, 7)


# ---------------------------------------------------------------- views


def test_prefix_tokens_and_intermediates():
    ours, theirs = pair(img_size=(32, 64), reg_tokens=2, **SMALL)
    x = images(32, 64)
    assert (ours.num_prefix_tokens, ours.num_reg_tokens, ours.has_class_token) == (3, 2, True)
    with torch.no_grad():
        for how in (dict(), dict(norm=True), dict(output_fmt="NLC", norm=True), dict(indices=[0, 1], stop_early=True)):
            got = ours.forward_intermediates(x, return_prefix_tokens=True, **how)
            wanted = theirs.forward_intermediates(x, return_prefix_tokens=True, **how)
            assert difference(got[0], wanted[0]) <= TOLERANCE
            for (level, prefix), (reference, prefix_reference) in zip(got[1], wanted[1], strict=True):
                assert difference(level, reference) <= TOLERANCE
                assert difference(prefix, prefix_reference) <= TOLERANCE
        for how in (dict(n=2), dict(n=[0, 2], reshape=True, norm=True)):
            got, wanted = ours.get_intermediate_layers(x, **how), theirs.get_intermediate_layers(x, **how)
            assert all(difference(a, b) <= TOLERANCE for a, b in zip(got, wanted, strict=True))
        tokens, last = ours.tokens(x), theirs.forward_features(x)
    assert list(tokens) == ["cls", "registers", "patches"]
    assert difference(tokens["cls"], last[:, 0]) <= TOLERANCE
    assert difference(tokens["registers"], last[:, 1:3]) <= TOLERANCE
    assert difference(tokens["patches"].flatten(2).mT, last[:, 3:]) <= TOLERANCE
    assert tokens["patches"].shape == (2, 64, 2, 4)


def test_features_only_gives_the_last_three_blocks_unless_told():
    model = ziggurat.create_model("test_vit", features_only=True)
    assert model.feature_info.module_name() == ["blocks.3", "blocks.4", "blocks.5"]
    assert model.feature_info.reduction() == [16, 16, 16]
    cut = ziggurat.create_model("test_vit", features_only=True, out_indices=(0, 2))
    assert [level.shape for level in cut(images(32, 48))] == [(2, 64, 2, 3)] * 2
    assert not any(key.startswith(("blocks.3", "norm", "head", "fc_norm")) for key in cut.state_dict())


@pytest.mark.parametrize("options", [dict(), dict(prune_norm=True), dict(prune_head=False)])
@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3"])
def test_pruning(name, options):
    ours, theirs = pair(name)
    x = images(160, 160)
    assert list(ours.prune_intermediate_layers([1, 3], **options)) == theirs.prune_intermediate_layers([1, 3], **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) <= TOLERANCE


def test_reset_classifier():
    ours, theirs = pair(img_size=32, **SMALL)
    x = images(32, 32)
    for pool in ("avg", "max", "avgmax", "token", ""):
        for model in (ours, theirs):
            model.reset_classifier(0, pool)
        with torch.no_grad():
            assert difference(ours(x), theirs(x)) <= TOLERANCE
    ours.reset_classifier(5, "map")
    assert ours(x).shape == (2, 5)
    assert ours.global_pool == "map" and "attn_pool.latent" in ours.state_dict()
    ours.reset_classifier(4, "token")
    assert ours(x).shape == (2, 4) and not any(key.startswith("attn_pool") for key in ours.state_dict())
    with pytest.raises(BadArgument, match="'avgmax'"):
        ours.reset_classifier(4, "mean")


def test_what_cannot_be():
    with pytest.raises(BadArgument, match="class_token=True"):
        ziggurat.create_model("test_vit", class_token=False)
    with pytest.raises(BadArgument, match="attn, diff"):
        ziggurat.create_model("test_vit", attn_layer="linear")
    with pytest.raises(BadArgument, match="'jax'"):
        ziggurat.create_model("test_vit", weight_init="flax")
    with pytest.raises(BadArgument, match="'learn'"):
        ziggurat.create_model("test_vit", pos_embed="rope")
    with pytest.raises(BadArgument, match="block_fn=Block"):
        ziggurat.create_model("vit_pwee_patch16_reg1_gap_256", scale_attn_norm=True)
    with pytest.raises(UnsupportedStride):
        ziggurat.create_model("test_vit", output_stride=8, output_stride_mode="dilated")


# ---------------------------------------------------------------- sizes


def levels_as_timms(ours, theirs, x):
    """Our levels, held to timm's as the scores are."""
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) <= TOLERANCE
        levels = ours.forward_intermediates(x, intermediates_only=True)
        references = theirs.forward_intermediates(x, intermediates_only=True)
    assert all(difference(a, b) <= TOLERANCE for a, b in zip(levels, references, strict=True))
    return levels


@pytest.mark.parametrize("options", [dict(), dict(no_embed_class=True, reg_tokens=1), dict(dynamic_img_pad=True)])
def test_images_of_any_size(options):
    ours, theirs = pair(img_size=64, dynamic_img_size=True, **SMALL, **options)
    for size in ((64, 64), (96, 48), (50, 70)) if "dynamic_img_pad" in options else ((64, 64), (96, 48)):
        levels_as_timms(ours, theirs, images(*size))


@pytest.mark.parametrize("name", [
    "vit_tiny_patch16_224", "vit_base_patch16_reg4_gap_256", "vit_base_patch14_reg4_dinov2", "deit3_small_patch16_224",
    "deit_tiny_distilled_patch16_224", "flexivit_small", "aimv2_large_patch14_224", "vit_base_patch16_siglip_224",
    "vit_so400m_patch14_siglip_384", "vit_base_patch16_rpn_224", "vit_base_patch16_radio_v3",
])  # fmt: skip
def test_images_of_any_size_without_being_asked(name):
    """As timm's models do that are made with `dynamic_img_size` and `dynamic_img_pad`."""
    small = SMALL | dict(depth=2)
    theirs = timm.create_model(name, dynamic_img_size=True, dynamic_img_pad=True, **small).eval()
    redraw(theirs)
    ours = ziggurat.create_model(name, **small).eval()
    ours.load_state_dict(theirs.state_dict())
    stride = ours.feature_info[-1]["reduction"]
    for size in ((75, 50), (32, 113)):
        levels = levels_as_timms(ours, theirs, images(*size))
        assert levels[-1].shape[2:] == ours.feature_info.sizes(*size, idx=-1)
        assert levels[-1].shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))


def test_a_size_that_leaves_a_rest_is_cut_as_published_and_others_are_padded():
    ours, theirs = pair("vit_so400m_patch14_siglip_384", img_size=(48, 34), **SMALL)
    x = images(48, 34)
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) <= TOLERANCE
        for size, grid in (((48, 34), (3, 2)), ((48, 35), (4, 3)), ((47, 34), (4, 3))):
            assert ours.pyramid(images(*size))[14].shape[2:] == ours.feature_info.sizes(*size, idx=-1) == grid
    padding = ziggurat.create_model("vit_so400m_patch14_siglip_384", img_size=(48, 34), dynamic_img_pad=True, **SMALL)
    assert padding.pyramid(x)[14].shape[2:] == padding.feature_info.sizes(48, 34, idx=-1) == (4, 3)
    ours.set_input_size((28, 28))
    assert ours.pyramid(images(48, 34))[14].shape[2:] == ours.feature_info.sizes(48, 34, idx=-1) == (4, 3)


def test_nothing_is_interpolated_at_the_models_own_size(monkeypatch):
    model = ziggurat.create_model("vit_tiny_patch16_224", img_size=48, **SMALL).eval()
    resized = []
    monkeypatch.setattr(torch.nn.functional, "interpolate", lambda *args, **kwargs: resized.append(args))
    monkeypatch.setattr(torch.nn.functional, "pad", lambda *args, **kwargs: resized.append(args))
    model(images(48, 48))
    assert not resized


def test_set_input_size():
    ours, theirs = pair(img_size=64, **SMALL)
    ours.pos_embed.requires_grad_(False)
    for model in (ours, theirs):
        model.set_input_size(img_size=(64, 48), patch_size=8)
    assert not ours.pos_embed.requires_grad
    assert set(ours.feature_info.reduction()) == {8}
    x = images(64, 48)
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) <= TOLERANCE
        assert ours.pyramid(x)[8].shape == (2, 64, 8, 6)


def test_traced_and_compiled_forms():
    model = ziggurat.create_model("test_vit").eval()
    x, wider = images(64, 64), images(96, 128)
    with torch.no_grad():
        wanted, wanted_wider = model(x), model(wider)
        assert torch.equal(fx.symbolic_trace(model)(wider), wanted_wider)
        assert torch.allclose(torch.compile(model, fullgraph=True, backend="eager")(x), wanted, atol=1e-5)
        batch = torch.export.Dim("batch", min=2, max=8)
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
        assert torch.allclose(exported(torch.cat((x, x)))[:2], wanted, atol=1e-5)


def test_training_with_less_memory_gives_the_same_gradients():
    model = ziggurat.create_model("test_vit2", proj_drop_rate=0.0).train()
    x = images(64, 64)
    model(x).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    model(x).square().sum().backward()
    assert all(torch.allclose(p.grad, wanted[name], atol=1e-5) for name, p in model.named_parameters())


def test_dropped_patches_and_paths():
    model = ziggurat.create_model("test_vit", patch_drop_rate=0.5, drop_path_rate=0.2, pos_drop_rate=0.1).train()
    assert model.forward_features(images(64, 64)).shape == (2, 1 + 8, 64)
    rates = [block.drop_path1.drop_prob for block in model.blocks]
    assert rates == pytest.approx([0.2 * i / 5 for i in range(6)])
    assert model.eval().forward_features(images(64, 64)).shape == (2, 1 + 16, 64)


def test_copies():
    model = ziggurat.create_model("test_vit3", img_size=32).eval()
    x = images(32, 32)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.reset_classifier(3)
        assert other(x).shape == (2, 3)
        assert torch.equal(other.forward_features(x), model.forward_features(x))


# ---------------------------------------------------------------- first weights


def test_initial_weights():
    torch.manual_seed(3)
    usual = ziggurat.create_model("test_vit", img_size=32)
    assert usual.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert usual.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)
    assert 0 < usual.cls_token.std().item() < 1e-5
    assert not usual.head.bias.any() and usual.head.weight.any()

    jax = ziggurat.create_model("test_vit", img_size=32, weight_init="jax_nlhb")
    assert not jax.head.weight.any()
    assert torch.allclose(jax.head.bias, torch.tensor(-math.log(1000)))
    reach = math.sqrt(6 / (64 + 192))
    assert reach * 0.9 < jax.blocks[0].mlp.fc1.weight.abs().max().item() <= reach
    assert 0 < jax.blocks[0].mlp.fc1.bias.abs().max().item() < 1e-5

    moco = ziggurat.create_model("test_vit", img_size=32, weight_init="moco")
    reach = math.sqrt(6 / (64 + 64))
    assert reach * 0.95 < moco.blocks[0].attn.qkv.weight.abs().max().item() <= reach

    fixed = ziggurat.create_model("test_vit", img_size=32, fix_init=True)
    assert fixed.blocks[5].attn.proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(12), rel=0.1)

    post = ziggurat.create_model("vit_base_patch16_rpn_224", img_size=32, **SMALL)
    assert torch.equal(post.blocks[0].norm1.weight, torch.full((64,), 1e-5))
    gated = ziggurat.create_model("vit_giant_patch14_dinov2", img_size=28, **SMALL)
    assert gated.blocks[0].ls1.gamma[0].item() == pytest.approx(1e-5)


# ---------------------------------------------------------------- checkpoints under other names


def numbered(model):
    """A state dict that can be told apart anywhere: redrawn weights."""
    redraw(model)
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(got, wanted, rtol=0.0):
    assert got.keys() == wanted.keys(), got.keys() ^ wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=rtol, atol=rtol, msg=name)


def swapped(state_dict, names, prefix=""):
    found = {}
    for name, value in state_dict.items():
        for old, new in names:
            name = name.replace(old, new)
        found[prefix + name] = value
    return found


def clip_like(own):
    theirs = swapped(own, [
        ("patch_embed.proj", "conv1"), ("pos_embed", "positional_embedding"), ("blocks.", "transformer.resblocks."),
        ("norm_pre", "ln_pre"), ("norm1", "ln_1"), ("norm2", "ln_2"), ("qkv.", "in_proj_"), ("attn.proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("cls_token", "class_embedding"),
    ], "visual.")  # fmt: skip
    for part in ("weight", "bias"):
        theirs[f"visual.ln_post.{part}"] = theirs.pop(f"visual.norm.{part}")
    theirs["visual.proj"] = theirs.pop("visual.head.weight").t()
    assert not theirs.pop("visual.head.bias").any()
    theirs["visual.class_embedding"] = theirs["visual.class_embedding"].flatten()
    theirs["visual.positional_embedding"] = theirs["visual.positional_embedding"][0]
    return theirs | {"token_embedding.weight": torch.ones(3), "transformer.resblocks.0.ln_1.weight": torch.ones(3)}


def trunk_like(own):
    theirs = {f"visual.trunk.{name}": value for name, value in own.items() if not name.startswith("head.")}
    return theirs | {"visual.head.proj.weight": own["head.weight"], "text.positional_embedding": torch.ones(3)}


def beit3_like(own):
    theirs = {"beit3.text_embed.weight": torch.ones(4), "beit3.vision_embed.mask_token": torch.ones(4)}
    for name, value in own.items():
        if name == "pos_embed":
            theirs["beit3.encoder.embed_positions.A.weight"] = torch.cat((torch.zeros(2, 64), value[0]))
        elif name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            module, leaf = rest.rsplit(".", 1)
            branch = f"beit3.encoder.layers.{number}."
            if module == "attn.qkv":
                for part, rows in zip("qkv", value.chunk(3)):
                    theirs[f"{branch}self_attn.A.{part}_proj.{leaf}"] = rows
                    theirs[f"{branch}self_attn.B.{part}_proj.{leaf}"] = rows + 1
                continue
            module = {
                "norm1": "self_attn_layer_norm.A", "norm2": "final_layer_norm.A", "attn.norm": "self_attn.A.inner_attn_ln",
                "attn.proj": "self_attn.A.out_proj", "mlp.fc1": "ffn.A.fc1", "mlp.fc2": "ffn.A.fc2",
                "mlp.norm": "ffn.A.ffn_layernorm",
            }[module]  # fmt: skip
            theirs[f"{branch}{module}.{leaf}"] = value
        elif name in ("cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias"):
            theirs["beit3.vision_embed." + name.removeprefix("patch_embed.")] = value
        else:
            theirs[name] = value
    return theirs


def aimv2_like(own):
    theirs = swapped(own, [
        ("blocks.", "trunk.blocks."), ("norm1", "norm_1"), ("norm2", "norm_2"), ("fc1_g", "fc1"), ("fc1_x", "fc3"),
        ("patch_embed.", "preprocessor.patchifier."), ("pos_embed", "preprocessor.pos_embed"),
    ])  # fmt: skip
    for part in [name for name in theirs if name.startswith("norm.")]:
        theirs["trunk.post_trunk_" + part] = theirs.pop(part)
    return theirs


def dinov2_like(own):
    theirs = swapped(own, [("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3"), ("reg_token", "register_tokens")])
    return theirs | {"mask_token": torch.zeros(1, 64)}


@pytest.mark.parametrize("name, disguise, options", [
    ("vit_base_patch16_clip_224", clip_like, {}),
    ("vit_base_patch16_siglip_224", trunk_like, {}),
    ("beit3_base_patch16_224", beit3_like, {}),
    ("aimv2_large_patch14_224", aimv2_like, dict(patch_size=16)),
    ("vit_giant_patch14_dinov2", dinov2_like, dict(patch_size=16)),
    ("vit_giant_patch14_reg1_tipsv2", lambda own: swapped(dinov2_like(own), [], "vision_encoder."), dict(patch_size=16)),
    ("vit_base_patch16_224", lambda own: {"encoder": swapped(own, [], "module.")}, {}),
    ("deit3_small_patch16_224", lambda own: {"model": swapped(own, [("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2")])},
     {}),
])  # fmt: skip
def test_dialects(name, disguise, options):
    ours = ziggurat.create_model(name, img_size=48, **SMALL, **options)
    own = numbered(ours)
    if disguise in (clip_like, trunk_like):
        own["head.bias"].zero_()  # a projection has none
    foreign = disguise(own)
    if "vision_encoder.cls_token" in foreign:  # only the class token has a position there
        position = torch.randn(1, 1, 64)
        foreign["vision_encoder.pos_embed"] = torch.cat((position, own["pos_embed"]), dim=1)
        own["cls_token"] = foreign["vision_encoder.cls_token"] + position[:, 0]
    theirs = timm.create_model(name, img_size=48, **SMALL, **options)
    got = ours.remap_checkpoint(dict(foreign))
    same(got, own)
    same(got, checkpoint_filter_fn(dict(foreign), theirs, adapt_layer_scale=True))
    same(ours.remap_checkpoint(own), own)


def test_radio():
    ours = ziggurat.create_model("vit_base_patch16_radio_v3", img_size=(64, 32), **SMALL)
    own = numbered(ours)
    inner = "radio_model.model."
    foreign = {inner + k.replace(".gamma", ".grandma"): v for k, v in own.items() if k.startswith("blocks.")}
    foreign |= {
        f"{inner}patch_generator.embedder.weight": own["patch_embed.proj.weight"].flatten(1),
        f"{inner}patch_generator.cls_token.token": torch.cat((own["cls_token"], own["reg_token"]), dim=1)[0],
        f"{inner}patch_generator.pos_embed": torch.randn(1, 16 * 16, 64),
        "radio_model.input_conditioner.norm_mean": torch.zeros(3),
    }
    theirs = timm.create_model("vit_base_patch16_radio_v3", img_size=(64, 32), **SMALL)
    how = dict(interpolation="bilinear", antialias=False, align_corners=True)
    wanted = checkpoint_filter_fn(dict(foreign), theirs, **how)
    same(ours.remap_checkpoint(foreign), wanted)
    assert wanted["pos_embed"].shape == (1, 8, 64)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "flexivit_small", "vit_base_patch14_reg4_dinov2"])
def test_weights_of_another_grid(name):
    made = ziggurat.create_model(name, img_size=64, patch_size=16, **SMALL)
    own = numbered(made)
    ours = ziggurat.create_model(name, img_size=(48, 72), patch_size=12, **SMALL)
    how = dict(interpolation="bilinear", antialias=False) if name == "flexivit_small" else {}
    got = ours.remap_checkpoint(own)
    prefix = 0 if ours.no_embed_class else ours.num_prefix_tokens
    assert torch.equal(got["pos_embed"], resample_abs_pos_embed(own["pos_embed"], (4, 6), (4, 4), prefix, **how))
    assert torch.equal(got["patch_embed.proj.weight"], resample_patch_embed(own["patch_embed.proj.weight"], (12, 12), **how))
    theirs = timm.create_model(name, img_size=(48, 72), patch_size=12, **SMALL)
    same(got, checkpoint_filter_fn(dict(own), theirs, **how), rtol=1e-5)  # patch weights are the solution of a system
    ours.load_state_dict(got)


def flax_arrays(own, depth, big_vision, stacked):
    """The arrays of the original checkpoints, from our tensors (2 heads of 32)."""
    arrays = {}

    def norm(here, there):
        arrays[f"{there}/scale"], arrays[f"{there}/bias"] = own[f"{here}.weight"], own[f"{here}.bias"]

    def linear(here, there):
        arrays[f"{there}/kernel"], arrays[f"{there}/bias"] = own[f"{here}.weight"].t(), own[f"{here}.bias"]

    def heads(weight, bias, there):
        arrays[f"{there}/kernel"], arrays[f"{there}/bias"] = weight.t().reshape(64, 2, 32), bias.reshape(2, 32)

    def joined(here, there):
        arrays[f"{there}/kernel"] = own[f"{here}.weight"].t().reshape(2, 32, 64)
        arrays[f"{there}/bias"] = own[f"{here}.bias"]

    arrays["embedding/kernel"] = own["patch_embed.proj.weight"].permute(2, 3, 1, 0)
    arrays["embedding/bias"] = own["patch_embed.proj.bias"]
    arrays["pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"] = own["pos_embed"]
    norm("norm", "Transformer/encoder_norm")
    linear("head", "head")
    if "cls_token" in own:
        arrays["cls"] = own["cls_token"]
    if "attn_pool.latent" in own:
        pool, attn = "MAPHead_0", "MAPHead_0/MultiHeadDotProductAttention_0"
        arrays[f"{pool}/probe"] = own["attn_pool.latent"]
        heads(own["attn_pool.q.weight"], own["attn_pool.q.bias"], f"{attn}/query")
        for part, w, b in zip(("key", "value"), own["attn_pool.kv.weight"].chunk(2), own["attn_pool.kv.bias"].chunk(2)):
            heads(w, b, f"{attn}/{part}")
        joined("attn_pool.proj", f"{attn}/out")
        norm("attn_pool.norm", f"{pool}/LayerNorm_0")
        for i in range(2):
            linear(f"attn_pool.mlp.fc{i + 1}", f"{pool}/MlpBlock_0/Dense_{i}")
    attn, second, mlp = (0, 1, 0) if big_vision else (1, 2, 3)
    for i in range(depth):
        here, there = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        norm(f"{here}.norm1", f"{there}/LayerNorm_0")
        norm(f"{here}.norm2", f"{there}/LayerNorm_{second}")
        qkv = zip(("query", "key", "value"), own[f"{here}.attn.qkv.weight"].chunk(3), own[f"{here}.attn.qkv.bias"].chunk(3))
        for part, w, b in qkv:
            heads(w, b, f"{there}/MultiHeadDotProductAttention_{attn}/{part}")
        joined(f"{here}.attn.proj", f"{there}/MultiHeadDotProductAttention_{attn}/out")
        for k in range(2):
            linear(f"{here}.mlp.fc{k + 1}", f"{there}/MlpBlock_{mlp}/Dense_{k}")
    if stacked:
        first = "Transformer/encoderblock_0/"
        for leaf in [name[len(first) :] for name in arrays if name.startswith(first)]:
            arrays[f"Transformer/encoderblock/{leaf}"] = torch.stack(
                [arrays.pop(f"Transformer/encoderblock_{i}/{leaf}") for i in range(depth)]
            )
    root = "params/img/" if stacked else "params/" if big_vision else ""
    return {root + name: value.numpy() for name, value in arrays.items()}


@pytest.mark.parametrize("name, big_vision, stacked", [
    ("vit_tiny_patch16_224", False, False),
    ("vit_base_patch16_siglip_224", True, False),
    ("vit_base_patch16_siglip_224", True, True),
])  # fmt: skip
def test_jax_checkpoints(name, big_vision, stacked, tmp_path):
    made = ziggurat.create_model(name, img_size=64, **SMALL)
    own = numbered(made)
    path = tmp_path / "published.npz"
    np.savez(path, **flax_arrays(own, 3, big_vision, stacked))

    ours = ziggurat.create_model(name, img_size=64, checkpoint_path=path, **SMALL)
    same(ours.state_dict(), own)

    larger = ziggurat.create_model(name, img_size=96, checkpoint_path=path, **SMALL)
    theirs = timm.create_model(name, img_size=96, **SMALL)
    theirs.load_pretrained(str(path))
    same(larger.state_dict(), theirs.state_dict())


def test_weights_for_attention_pooling_load_into_a_model_that_pools_otherwise():
    own = numbered(ziggurat.create_model("vit_base_patch16_siglip_224", img_size=32, **SMALL))
    ours = ziggurat.create_model("vit_base_patch16_siglip_gap_224", img_size=32, **SMALL)
    ours.load_state_dict(ours.remap_checkpoint(own))
    assert torch.equal(ours.norm.weight, own["norm.weight"])
