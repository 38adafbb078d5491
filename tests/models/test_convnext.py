"""ConvNeXt: every stem, norm, perceptron and head against timm, image sizes, and checkpoints of other dialects."""

import re

import pytest
import timm
import torch
from timm.models import group_parameters as timm_groups
from timm.models.convnext import checkpoint_filter_fn
from torch import nn

import ziggurat
from parity import mindcv
from parity.oracle import TOLERANCE, compare, compare_keys, redraw
from ziggurat.backbone import group_parameters
from ziggurat.errors import BadArgument, CheckpointMismatch
from ziggurat.layers import Conv2dCeil, DropPath, GlobalResponseNorm
from ziggurat.weights.mindcv import from_mindcv
from ziggurat.weights.mindspore import torch_names

SIZE = 64
V2 = dict(use_grn=True, ls_init_value=None)


@pytest.mark.parametrize("name, kwargs", [
    ("test_convnext", {}),
    ("test_convnext3", {}),  # kernels of three sizes
    ("convnext_zepto_rms_ols", {}),
    ("test_convnext2", dict(stem_type="overlap_tiered", norm_layer="rmsnorm2d", conv_mlp=True)),
    ("test_convnext2", dict(stem_type="overlap", conv_mlp=True) | V2),
    ("test_convnext2", V2),
    ("test_convnext2", dict(head_norm_first=True, global_pool="catavgmax", conv_bias=False)),
    ("test_convnext2", dict(head_hidden_size=40, global_pool="avgmax", norm_layer="rmsnorm")),
    ("test_convnext2", dict(norm_layer="batchnorm2d", norm_eps=None, conv_mlp=True, act_layer="relu", num_classes=3)),
    ("test_convnext2", dict(patch_size=2, kernel_sizes=3)),
    ("test_convnext2", dict(patch_size=8)),  # the last stage dilates: nothing is coarser than 32
    ("test_convnext2", dict(output_stride=16)),
    ("test_convnext2", dict(output_stride=8, dims=(32, 32, 32, 32))),
])  # fmt: skip
def test_outputs_are_timms(name, kwargs):
    found = compare(name, SIZE, **kwargs)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("name", ["convnext_atto_ols", "convnext_tiny_hnf", "convnext_large_mlp"])
def test_keys_are_timms(name):
    compare_keys(name)


def test_patches_of_any_size():
    torch.manual_seed(0)
    conv = Conv2dCeil(3, 5, 4)
    whole, cut = torch.randn(2, 3, 12, 8), torch.randn(2, 3, 11, 5)
    assert torch.equal(conv(whole), nn.Conv2d.forward(conv, whole))
    filled = torch.zeros(2, 3, 12, 8)
    filled[:, :, :11, :5] = cut
    assert torch.equal(conv(cut), conv(filled))


@pytest.mark.parametrize("pad_type, before", [("", 0), ("same", 1)])
def test_images_are_filled_up_behind_or_around(pad_type, before):
    model = ziggurat.create_model("test_convnext2", pad_type=pad_type, features_only=True).eval()
    x = torch.randn(1, 3, 62, 94)
    filled = torch.zeros(1, 3, 64, 96)
    filled[:, :, before : before + 62, before : before + 94] = x
    with torch.no_grad():
        levels, wanted = model(x), model(filled)
    assert [tuple(level.shape[2:]) for level in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert all(torch.equal(level, other) for level, other in zip(levels, wanted))


def test_drop_path_and_initial_weights_are_timms():
    kwargs = dict(drop_path_rate=0.3, ls_init_value=1e-3, head_init_scale=0.01)
    torch.manual_seed(0)
    ours, theirs = (lib.create_model("test_convnext", **kwargs) for lib in (ziggurat, timm))
    rates = [module.drop_prob for module in ours.modules() if isinstance(module, DropPath)]
    wanted = [getattr(block.drop_path, "drop_prob", 0.0) for stage in theirs.stages for block in stage.blocks]
    assert rates == pytest.approx(wanted)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters()):
        if mine.ndim == 1:
            assert torch.equal(mine, other), name
        else:
            assert mine.std().item() == pytest.approx(other.std().item(), rel=0.15), name
            assert abs(mine.mean().item()) < 0.2 * mine.std().item(), name


def test_a_norm_before_pooling_closes_the_trunk_and_one_behind_it_does_not():
    x = torch.randn(1, 3, SIZE, SIZE)
    for head_norm_first in (True, False):
        model = ziggurat.create_model("test_convnext2", head_norm_first=head_norm_first).eval()
        redraw(model)
        with torch.no_grad():
            plain, normed = model.pyramid(x)[32], model.pyramid(x, norm=True)[32]
        assert torch.equal(plain, normed) is not head_norm_first
        if head_norm_first:
            torch.testing.assert_close(normed, model.norm_pre(plain))


def test_groups_of_parameters_are_timms():
    """Layer-wise learning rates count the layers between stages to the first block behind them."""
    for coarse in (False, True):  # a norm before pooling is a group of its own in timm's coarse ones
        with torch.device("meta"):
            ours, theirs = (lib.create_model("test_convnext", head_norm_first=not coarse) for lib in (ziggurat, timm))
        groups = group_parameters(ours, ours.group_matcher(coarse), reverse=True)
        assert groups == timm_groups(theirs, theirs.group_matcher(coarse), reverse=True)


@pytest.mark.parametrize("kwargs", [{}, dict(head_hidden_size=40), dict(head_norm_first=True)])
@pytest.mark.parametrize("level", [1, 3])
def test_pruning_leaves_what_timms_does(kwargs, level):
    x = torch.randn(1, 3, SIZE, SIZE)
    found = []
    for lib in (timm, ziggurat):
        model = lib.create_model("test_convnext2", **kwargs).eval()
        model.prune_intermediate_layers([level])
        found.append((list(model.state_dict()), model.num_features, model.head_hidden_size, model(x).shape))
    assert found[0] == found[1]
    model.reset_classifier(5, "avg")
    assert list(model(x).shape) == [1, 5]


def test_response_norm_of_nothing_has_gradients():
    """Of a channel that is zero everywhere, as after a ReLU."""
    x = torch.randn(2, 3, 3, 4)
    x[..., 1] = 0
    gradients = []
    for last in (True, False):
        norm = GlobalResponseNorm(4, channels_last=last)
        nn.init.ones_(norm.weight)
        given = x.clone().requires_grad_()
        norm(given if last else given.permute(0, 3, 1, 2)).square().sum().backward()
        gradients.append(given.grad)
    assert torch.isfinite(gradients[0]).all()
    torch.testing.assert_close(*gradients)


# ---------------------------------------------------------------- checkpoints


def meta_names(state_dict):
    """A checkpoint as Meta publishes it."""
    found = {}
    for name, value in state_dict.items():
        name = re.sub(r"^stem\.", "downsample_layers.0.", name)
        name = re.sub(r"^stages\.(\d)\.downsample", r"downsample_layers.\1", name)
        name = name.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        name = name.replace("head.norm", "norm").replace("head.fc", "head")
        if ".grn." in name:
            name = name.replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
            value = value.view(1, 1, 1, -1)
        found[name] = value.flatten(1) if "pwconv" in name and value.ndim == 4 else value
    return found


def same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kwargs", [{}, V2, V2 | dict(conv_mlp=True)])
def test_metas_checkpoints_are_read(kwargs, tmp_path):
    model = ziggurat.create_model("test_convnext2", **kwargs)
    redraw(model)
    theirs = meta_names(model.state_dict())
    assert "stages.1.0.pwconv1.weight" in theirs
    assert all("pwconv" not in name or value.ndim < 3 for name, value in theirs.items())
    torch.save({"model": theirs}, tmp_path / "published.pth")
    loaded = ziggurat.create_model("test_convnext2", checkpoint_path=tmp_path / "published.pth", **kwargs)
    same(loaded.state_dict(), model.state_dict())
    same(loaded.remap_checkpoint(theirs), checkpoint_filter_fn(theirs, timm.create_model("test_convnext2", **kwargs)))


def test_what_distillation_leaves_in_a_checkpoint_is_passed_over():
    model = ziggurat.create_model("test_convnext2", num_classes=0)
    theirs = meta_names(model.state_dict())
    extra = {"norms.3.weight": theirs["norm.weight"], "projectors.a.weight": torch.ones(3, 3)}
    same(model.remap_checkpoint(theirs | extra), model.state_dict())


@pytest.mark.parametrize("kwargs, layers", [
    ({}, {"head.fc": "proj"}),
    (dict(head_hidden_size=40), {"head.pre_logits.fc": "mlp.fc1", "head.fc": "mlp.fc2"}),
])  # fmt: skip
def test_the_tower_of_an_openclip_checkpoint_is_read(kwargs, layers):
    model = ziggurat.create_model("test_convnext2", num_classes=6, **kwargs)
    redraw(model)
    nn.init.zeros_(model.head.fc.bias)
    theirs = {"logit_scale": torch.ones(()), "transformer.resblocks.0.weight": torch.ones(2)}
    for name, value in model.state_dict().items():
        path, _, leaf = name.rpartition(".")
        if path not in layers:
            theirs[f"visual.trunk.{name}"] = value
        elif name != "head.fc.bias":  # projections have none
            theirs[f"visual.head.{layers[path]}.{leaf}"] = value
    same(model.remap_checkpoint(theirs), model.state_dict())
    same(model.remap_checkpoint(theirs), checkpoint_filter_fn(theirs, model))


def test_perceptrons_are_read_as_convolutions_and_as_linear_layers():
    conv, linear = (ziggurat.create_model("test_convnext2", conv_mlp=conv_mlp).eval() for conv_mlp in (True, False))
    redraw(conv)
    linear.load_state_dict(linear.remap_checkpoint(conv.state_dict()))
    same(conv.remap_checkpoint(linear.state_dict()), conv.state_dict())
    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), linear(x), rtol=1e-4, atol=1e-4)


def test_masked_autoencoders_come_without_a_last_norm():
    model = ziggurat.create_model("test_convnext2", **V2)
    state_dict = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    overlay = dict(state_dict=state_dict, num_classes=0)
    with pytest.warns(UserWarning, match="head.norm"):
        loaded = ziggurat.create_model("test_convnext2", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0,
                                       **V2)
    assert torch.equal(loaded.stem[0].weight, model.stem[0].weight)
    pyramid = ziggurat.create_model("test_convnext2", pretrained=True, pretrained_cfg_overlay=overlay, features_only=True,
                                    **V2)
    same(pyramid.state_dict(), state_dict)


def test_mindcvs_outputs(tmp_path):
    name = "convnextv2_atto"
    path = mindcv.checkpoint(name, tmp_path)
    model = ziggurat.create_model(f"{name}.mindcv_in1k", checkpoint_path=path).eval()
    mindcv.hold(model, name)
    pyramid = ziggurat.create_model(f"{name}.mindcv_in1k", checkpoint_path=path, features_only=True, out_indices=(1,))
    assert torch.equal(pyramid.stages[1].blocks[0].norm.weight, model.stages[1].blocks[0].norm.weight)


def test_mindcvs_names_of_the_first_version():
    with torch.device("meta"):
        model = ziggurat.create_model("convnext_tiny")
        theirs = {name: torch.empty(shape) for name, shape, _ in mindcv.facts("convnext_tiny")["parameters"]}
    assert "feature.1.0.gamma_" in theirs
    found = model.remap_checkpoint(from_mindcv(model, torch_names(theirs), model.state_dict()))
    wanted = model.state_dict()
    assert {name: value.shape for name, value in found.items()} == {name: v.shape for name, v in wanted.items()}


@pytest.mark.parametrize("kwargs, told", [
    (dict(stem_type="deep"), "stem_type='deep'"),
    (dict(pad_type="valid"), "pad_type='valid'"),
    (dict(norm_layer="batchnorm2d"), "norm_layer='batchnorm2d'"),
    (dict(norm_layer=nn.BatchNorm2d), "conv_mlp=True"),
    (dict(head_norm_first=True, head_hidden_size=8), "head_hidden_size=8"),
])  # fmt: skip
def test_arguments_that_do_not_fit(kwargs, told):
    with pytest.raises(BadArgument, match=re.escape(told)):
        ziggurat.create_model("test_convnext2", **kwargs)


def test_a_checkpoint_of_another_width_is_refused(tmp_path):
    torch.save(meta_names(ziggurat.create_model("test_convnext").state_dict()), tmp_path / "other.pth")
    with pytest.raises(CheckpointMismatch):
        ziggurat.create_model("test_convnext2", checkpoint_path=tmp_path / "other.pth")
