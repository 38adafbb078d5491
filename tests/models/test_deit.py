"""DeiT: two tokens and two classifiers that agree on one answer, except while a teacher is there."""

import pytest
import timm
import torch

import ziggurat
from parity.oracle import TOLERANCE, compare
from ziggurat.errors import BadArgument

SMALL = dict(embed_dim=64, depth=3, num_heads=2, num_classes=7)
DISTILLED = "deit_tiny_distilled_patch16_224"


@pytest.mark.parametrize("name", [DISTILLED, "deit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_parity(name):
    found = compare(name, **SMALL)
    assert max(found.values()) <= TOLERANCE, found


def test_distilled_training():
    model = ziggurat.create_model(DISTILLED, img_size=32, **SMALL)
    x = torch.randn(2, 3, 32, 32)
    assert model.get_classifier() == (model.head, model.head_dist)
    model.set_distilled_training()
    scores, distilled = model.train()(x)
    model.eval()
    assert torch.allclose(model(x), (scores + distilled) / 2, atol=1e-6)
    model.train().set_distilled_training(False)
    assert model(x).shape == (2, 7)


def test_tokens_and_embedding():
    model = ziggurat.create_model(DISTILLED, img_size=32, **SMALL).eval()
    x = torch.randn(2, 3, 32, 32)
    tokens = model.tokens(x)
    assert list(tokens) == ["cls", "distillation", "patches"]
    assert model.num_prefix_tokens == 2
    assert torch.allclose(model.embed(x), (tokens["cls"] + tokens["distillation"]) / 2, atol=1e-6)


def test_reset_classifier_makes_both_anew():
    model = ziggurat.create_model(DISTILLED, img_size=32, **SMALL).eval()
    x = torch.randn(2, 3, 32, 32)
    model.reset_classifier(3)
    assert (model.head.out_features, model.head_dist.out_features) == (3, 3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, 64)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 6, 64)


def test_features_only_holds_no_classifier():
    model = ziggurat.create_model(DISTILLED, img_size=32, features_only=True, **SMALL)
    assert not any(key.startswith("head") for key in model.state_dict())
    assert [level.shape for level in model(torch.randn(1, 3, 32, 32))] == [(1, 64, 2, 2)] * 3


def test_other_pooling_is_refused():
    with pytest.raises(BadArgument, match="'token'"):
        ziggurat.create_model(DISTILLED, global_pool="avg")
    with pytest.raises(BadArgument, match="reg_tokens"):
        ziggurat.create_model(DISTILLED, reg_tokens=2)


def test_published_names_and_another_size():
    made = ziggurat.create_model(DISTILLED, img_size=48, **SMALL)
    published = {"model": {name: value.clone() for name, value in made.state_dict().items()}}
    ours = ziggurat.create_model(DISTILLED, img_size=64, **SMALL)
    theirs = timm.create_model(DISTILLED, img_size=64, **SMALL)
    got = ours.remap_checkpoint(dict(published))
    wanted = timm.models.deit.checkpoint_filter_fn(dict(published), theirs, adapt_layer_scale=True)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    ours.load_state_dict(got)
    assert ours.pos_embed.shape == (1, 2 + 16, 64)
