"""ByobNet: every kind of block, stem and head against timm; fusing; pruning; checkpoints from elsewhere."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

import ziggurat
from parity.oracle import TOLERANCE, compare, difference, redraw
from ziggurat.errors import BadArgument
from ziggurat.models.byobnet import MobileOneBlock, RepVggBlock


@pytest.mark.parametrize("name, kwargs", [
    ("test_byobnet", {}),  # an edge, a dark, a basic and a bottleneck block
    ("test_byobnet", dict(output_stride=8)),
    ("test_byobnet", dict(global_pool="catavgmax", act_layer="gelu")),
    ("gernet_s", {}),  # a stage without a stride, which is no level
    ("repvgg_a0", {}),
    ("mobileone_s0", {}),
    ("resnet51q", {}),  # a stem of bare convolutions
    ("bat_resnext26ts", {}),
    ("eca_resnet33ts", {}),
    ("regnetz_b16_evos", {}),
])  # fmt: skip
def test_outputs_are_timms(name, kwargs):
    found = compare(name, 64, **kwargs)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("kwargs", [
    dict(head_type="mlp"),
    dict(head_type="attn_abs", img_size=64),
    dict(head_type="attn_rot", img_size=64),
    dict(stem_type="quad", stem_pool="avg2", num_features=64, downsample="conv1x1", aa_layer="avg", output_stride=32),
    dict(stem_type="7x7", stem_pool="max", output_stride=32),
    dict(stem_type="deep", width_factor=2.0, output_stride=32),
])  # fmt: skip
def test_heads_and_stems_are_timms(kwargs):
    ours, theirs = (
        make("test_byobnet", num_classes=5, **kwargs).eval() for make in (ziggurat.create_model, timm.create_model)
    )
    redraw(ours)
    redraw(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert difference(ours(x), theirs(x)) <= TOLERANCE
    features = ours.forward_features(x)
    assert (
        difference(ours.forward_head(features, pre_logits=True), theirs.forward_head(features, pre_logits=True))
        <= TOLERANCE
    )


@pytest.mark.parametrize("head", ["mlp", "attn_abs"])
def test_other_heads_are_removed_and_reset(head):
    model = ziggurat.create_model("test_byobnet", head_type=head, img_size=64).eval()
    x = torch.randn(2, 3, 64, 64)
    embedding = model.embed(x)
    assert embedding.shape == (2, model.head_hidden_size)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    torch.testing.assert_close(model.embed(x), embedding)
    model.prune_intermediate_layers([1])
    assert model(x).shape == (2, 32, 16, 16)
    assert not any(key.startswith("head") for key in model.state_dict())
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3)


@pytest.mark.parametrize("levels", [[0], [1, 2], [-1]])
@pytest.mark.parametrize("name", ["test_byobnet", "resnet32ts"])  # a level at the stem's end, and one within it
def test_pruned_as_timm_prunes(name, levels):
    ours, theirs = ziggurat.create_model(name).eval(), timm.create_model(name).eval()
    redraw(theirs)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    expected = theirs.forward_intermediates(x, indices=levels, intermediates_only=True)
    assert list(ours.prune_intermediate_layers(levels)) == list(theirs.prune_intermediate_layers(levels))
    assert set(ours.state_dict()) <= set(theirs.state_dict())
    for level, reference in zip(ours.forward_intermediates(x, indices=levels, intermediates_only=True), expected):
        torch.testing.assert_close(level, reference)


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
def test_branches_fuse_into_one_convolution(name):
    model = ziggurat.create_model(name, attn_layer="se").eval()
    redraw(model)
    model.double()  # random weights of so many branches multiply rounding
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before, fused = model(x), copy.deepcopy(model)
        for _ in range(2):  # a second time changes nothing
            for block in fused.modules():
                if isinstance(block, (RepVggBlock, MobileOneBlock)):
                    block.reparameterize()
        after = fused(x)
    assert (before - after).abs().max() <= 1e-4 * before.abs().max()
    assert sum(p.numel() for p in fused.parameters()) < sum(p.numel() for p in model.parameters())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in copy.deepcopy(fused).modules())


def test_a_dilated_block_fuses_too():
    model = ziggurat.create_model("mobileone_s0", output_stride=8).eval()
    redraw(model)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        dense = model.forward_features(x)
        for block in model.modules():
            if isinstance(block, MobileOneBlock):
                block.reparameterize()
        fused = model.forward_features(x)
    assert dense.shape == (1, 1024, 8, 8)
    assert (dense - fused).abs().max() <= 1e-4 * dense.abs().max()


def test_norms_that_look_at_the_input_do_not_fuse():
    block = next(
        m for m in ziggurat.create_model("repvgg_a0", norm_layer="groupnorm1").modules() if isinstance(m, RepVggBlock)
    )
    with pytest.raises(BadArgument, match="batch norms"):
        block.reparameterize()


@pytest.mark.parametrize("name", ["mobileone_s0", "resnet51q"])
def test_a_dense_map_is_the_native_one_in_between(name):
    native = ziggurat.create_model(name).eval()
    redraw(native)
    dense = ziggurat.create_model(name, output_stride=16).eval()
    dense.load_state_dict(native.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        coarse, fine = native.forward_features(x), dense.forward_features(x)
    assert fine.shape[-1] == 2 * coarse.shape[-1]
    assert (fine[..., ::2, ::2] - coarse).abs().max() <= TOLERANCE * coarse.abs().max()


def clip_key(key: str) -> str:
    """Our key as CLIP's authors call it."""
    parts = key.split(".")
    if parts[0] == "stem":
        return f"{parts[2]}{parts[1][-1]}.{parts[3]}"
    if parts[0] == "head":
        names = {"pos_embed": "positional_embedding", "proj": "c_proj"}
        inner = names.get(parts[1]) or f"{parts[1]}_proj"
        return ".".join(["attnpool", inner, *parts[2:]])
    stage, unit = f"layer{int(parts[1]) + 1}", parts[2]
    if parts[3] == "shortcut":
        return f"{stage}.{unit}.downsample.{0 if parts[5] == 'weight' or parts[4:6] == ['conv', 'conv'] else 1}.{parts[-1]}"
    return f"{stage}.{unit}.{parts[4]}{parts[3][4]}.{parts[5]}"


def test_clips_checkpoint_is_read():
    with torch.device("meta"):
        model = ziggurat.create_model("resnet50_clip", num_classes=1024)
        pooled = ziggurat.create_model("resnet50_clip_gap", num_classes=0)
    state_dict = model.state_dict()
    foreign = {"visual." + clip_key(key): value for key, value in state_dict.items()}
    assert "visual.layer2.0.downsample.1.running_mean" in foreign
    assert "visual.attnpool.c_proj.weight" in foreign
    foreign["transformer.resblocks.0.ln_1.weight"] = torch.zeros(1)
    ours = model.remap_checkpoint(foreign)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in state_dict.items()}
    assert set(pooled.remap_checkpoint(foreign)) == set(pooled.state_dict())
    unchanged = model.remap_checkpoint(state_dict)
    assert unchanged.keys() == state_dict.keys()
    assert all(unchanged[key] is value for key, value in state_dict.items())


@pytest.mark.parametrize("name, keys", [
    ("repvgg_d2se", {
        "stage0.rbr_dense.conv.weight": "stem.conv_kxk.conv.weight",
        "stage0.se.down.weight": "stem.attn.fc1.weight",
        "stage1.1.rbr_identity.weight": "stages.0.1.identity.weight",
        "stage2.0.rbr_1x1.bn.running_var": "stages.1.0.conv_1x1.bn.running_var",
        "linear.bias": "head.fc.bias",
    }),
    ("mobileone_s4", {
        "stage0.rbr_conv.0.conv.weight": "stem.conv_kxk.0.conv.weight",
        "stage1.2.rbr_skip.weight": "stages.0.2.identity.weight",
        "stage3.19.se.expand.bias": "stages.2.19.attn.fc2.bias",
        "stage4.0.rbr_scale.bn.bias": "stages.3.0.conv_scale.bn.bias",
        "linear.weight": "head.fc.weight",
    }),
])  # fmt: skip
def test_the_authors_names_of_parallel_branches(name, keys):
    with torch.device("meta"):
        model = ziggurat.create_model(name)
    assert list(model.remap_checkpoint(dict.fromkeys(keys))) == list(keys.values())
    assert set(keys.values()) <= set(model.state_dict())


def test_drop_block_is_in_the_last_two_stages():
    model = ziggurat.create_model("resnext26ts", drop_block_rate=0.1)
    drops = {name: m.block_size for name, m in model.named_modules() if type(m).__name__ == "DropBlock2d"}
    assert {name.split(".")[1]: size for name, size in drops.items()} == {"2": 5, "3": 3}


@pytest.mark.parametrize("kwargs, message", [
    (dict(head_type="token"), "head_type"),
    (dict(stem_type="9x9"), "stem_type"),
    (dict(stem_pool="median"), "stem_pool"),
    (dict(head_type="attn_abs"), "img_size"),
    (dict(width_factor=0.5), "group_size"),
])  # fmt: skip
def test_what_cannot_be_built_says_so(kwargs, message):
    with pytest.raises(BadArgument, match=message), torch.device("meta"):
        ziggurat.create_model("test_byobnet", **kwargs)
