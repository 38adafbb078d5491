"""`norm=`: one argument with one default for all architectures, timm's numbers, and what happened in feature_info."""

import inspect

import pytest
import timm
import torch
from timm.models._features import FeatureGetterNet

import ziggurat
from parity.oracle import TOLERANCE, difference, redraw
from ziggurat.backbone import Backbone
from ziggurat.errors import BadArgument

SMALL_VIT = dict(embed_dim=48, depth=3, num_heads=3, img_size=64)
SMALL_V2 = dict(layers=(1, 1, 1, 1), channels=(16, 32, 48, 64), stem_chs=8)
# architecture, arguments, the levels that the final norm fits
CASES = [
    ("vit_tiny_patch16_224", SMALL_VIT, {0, 1, 2}),
    ("vit_tiny_patch16_224", SMALL_VIT | dict(global_pool="avg"), set()),  # its norm lies behind the pooling
    ("vit_tiny_patch16_224", SMALL_VIT | dict(global_pool="avg", fc_norm=False), {0, 1, 2}),
    ("resnetv2_50", SMALL_V2, {4}),
    ("test_resnet", {}, set()),
]  # fmt: skip
IDS = ["vit", "fc_norm", "pooled_vit", "resnetv2", "resnet"]


def pair(name, kwargs):
    """timm's model and ours with the same redrawn weights, and images."""
    theirs = timm.create_model(name, **kwargs).eval()
    redraw(theirs)
    ours = ziggurat.create_model(name, **kwargs).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def features(name, kwargs, like, **asked):
    """A features-only model with the weights of the classifier `like`."""
    model = ziggurat.create_model(name, features_only=True, **kwargs, **asked).eval()
    own = like.state_dict()
    model.load_state_dict({key: own[key] for key in model.state_dict()})
    return model


def test_it_is_off_wherever_it_is_an_argument():
    model = ziggurat.create_model("vit_tiny_patch16_224", **SMALL_VIT).eval()
    x = torch.randn(1, 3, 64, 64)
    for view in (Backbone.pyramid, Backbone.extract, Backbone.forward_intermediates):
        assert inspect.signature(view).parameters["norm"].default is None
    assert torch.equal(model.pyramid(x)[16], model.pyramid(x, norm=False)[16])
    assert torch.equal(model.extract(x, ("pyramid",))["pyramid"][16], model.pyramid(x, norm=False)[16])
    pairs = zip(*(model.forward_intermediates(x, intermediates_only=True, **n) for n in ({}, {"norm": False})))
    assert all(torch.equal(a, b) for a, b in pairs)
    plain = features("vit_tiny_patch16_224", SMALL_VIT, model)
    assert torch.equal(plain(x)[-1], model.pyramid(x, norm=False)[16])
    assert plain.feature_info.get("norm") == [False] * 3
    assert "norm" not in repr(plain.feature_info)


@torch.no_grad()
@pytest.mark.parametrize("name, kwargs, fits", CASES, ids=IDS)
def test_numbers_are_timms(name, kwargs, fits):
    ours, theirs, x = pair(name, kwargs)
    plain = ours.forward_intermediates(x, intermediates_only=True)
    normed = ours.forward_intermediates(x, norm=True, intermediates_only=True)
    for found, norm in ((plain, False), (normed, True)):
        wanted = theirs.forward_intermediates(x, norm=norm, intermediates_only=True)
        assert max(map(difference, found, wanted)) <= TOLERANCE
    assert {i for i, (a, b) in enumerate(zip(plain, normed)) if not torch.equal(a, b)} == fits


@torch.no_grad()
@pytest.mark.parametrize("name, kwargs, fits", CASES, ids=IDS)
def test_features_only_does_what_feature_info_says(name, kwargs, fits):
    ours, theirs, x = pair(name, kwargs)
    last = len(ours.feature_info) - 1
    order = (last, 0)  # kept in this order
    model = features(name, kwargs, ours, out_indices=order, norm=True)
    wanted = ours.forward_intermediates(x, order, norm=True, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(model(x), wanted))
    assert model.feature_info.get("norm") == [i in fits for i in order]
    assert repr(model.feature_info).count("normed") == len(fits & set(order))
    held = {key for key in model.state_dict() if key.startswith("norm.")}
    assert held == ({key for key in ours.state_dict() if key.startswith("norm.")} if fits else set())
    assert not any(key.startswith(("head", "fc")) for key in model.state_dict())
    getter = FeatureGetterNet(theirs, out_indices=sorted(order), norm=True)
    assert max(map(difference, model(x), getter(x)[::-1])) <= TOLERANCE


@torch.no_grad()
def test_levels_that_it_does_not_fit_stay_and_its_parameters_go():
    ours, _, x = pair("resnetv2_50", SMALL_V2)
    model = features("resnetv2_50", SMALL_V2, ours, out_indices=(1, 3), norm=True)
    wanted = ours.forward_intermediates(x, (1, 3), intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(model(x), wanted))
    assert model.feature_info.get("norm") == [False, False]
    assert not any(key.startswith("norm.") for key in model.state_dict())


@torch.no_grad()
def test_views_of_a_model_made_with_it():
    ours, _, x = pair("vit_tiny_patch16_224", SMALL_VIT)
    model = features("vit_tiny_patch16_224", SMALL_VIT, ours, out_indices=(1,), norm=True)
    (level,) = model(x)
    assert torch.equal(level, model.pyramid(x)[16])
    assert torch.equal(level, model.extract(x, ("pyramid",))["pyramid"][16])
    assert torch.equal(level, model.forward_intermediates(x, [1], intermediates_only=True)[0])
    assert torch.equal(model.pyramid(x, norm=False)[16], ours.forward_intermediates(x, [1], intermediates_only=True)[0])
    model.set_input_size(img_size=80)
    assert model.feature_info.get("norm") == [True]
    coarser = features("vit_tiny_patch16_224", SMALL_VIT, ours, out_strides=(32, 16), pyramid="interpolate", norm=True)
    assert coarser.feature_info.get("norm") == [True, True]
    assert torch.equal(coarser(x)[1], ours.pyramid(x, norm=True)[16])
    with pytest.raises(BadArgument, match="patch_size=8: the pyramid was made for strides of 16"):
        coarser.set_input_size(patch_size=8)


@torch.no_grad()
def test_a_norm_that_was_left_out_is_not_silently_missing():
    ours, _, x = pair("vit_tiny_patch16_224", SMALL_VIT)
    model = features("vit_tiny_patch16_224", SMALL_VIT, ours)
    for view in (model.pyramid, model.forward_intermediates, lambda x, norm: model.extract(x, ("pyramid",), norm=norm)):
        with pytest.raises(BadArgument, match="pruned without its final norm; create it with features_only=True, norm=True"):
            view(x, norm=True)
    pruned = ziggurat.create_model("vit_tiny_patch16_224", **SMALL_VIT)
    pruned.prune_intermediate_layers([1], prune_norm=True)
    with pytest.raises(BadArgument, match="prune_norm=False"):
        pruned.forward_intermediates(x, [1], norm=True)
    with pytest.raises(BadArgument, match=r"norm=True is about the levels of features_only=True"):
        ziggurat.create_model("vit_tiny_patch16_224", norm=True)
    without = features("vit_tiny_patch16_224", SMALL_VIT | dict(global_pool="avg"), ziggurat.create_model(
        "vit_tiny_patch16_224", **SMALL_VIT, global_pool="avg"))
    assert torch.equal(without.pyramid(x, norm=True)[16], without.pyramid(x)[16])  # there was none to lose
