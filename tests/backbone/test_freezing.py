"""Freezing up to a level, and gradient checkpointing in every view, frozen units or not."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from ziggurat import create_model
from ziggurat.errors import BadArgument

SMALL = {  # stages with batch norm; blocks of tokens
    "test_resnet": dict(num_classes=5, drop_path_rate=0.3),
    "test_vit": dict(num_classes=5, drop_path_rate=0.3, img_size=32, proj_drop_rate=0.2, pos_drop_rate=0.2),
}


def small(name, **kwargs):
    torch.manual_seed(0)
    return create_model(name, **{**SMALL[name], **kwargs})


def images(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def training(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def under(names, *owners):
    return {name for name in names if name.split(".")[0] in owners}


@pytest.mark.parametrize("upto", [2, -3])
def test_a_convolutional_network_up_to_a_level(upto):
    model = small("test_resnet")
    every = training(model)
    modules = model.freeze(upto)
    assert modules == ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2")
    assert training(model) == under(every, "layer3", "layer4", "fc")
    model.unfreeze()
    assert training(model) == every
    assert model.frozen is None
    assert model.layer1[0].bn1.training


def test_a_token_network_with_its_positions():
    model = small("test_vit")
    every = training(model)
    model.freeze(upto=1)
    assert training(model) == {name for name in every if name.startswith(("blocks.2.", "blocks.3.", "blocks.4.",
                                                                          "blocks.5.", "norm.", "fc_norm.", "head."))}
    assert not {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.1.attn.qkv.weight"} & training(model)


@pytest.mark.parametrize("name", SMALL)
def test_all_of_it_and_a_classifier_made_afterwards(name):
    model = small(name)
    model.freeze()
    assert training(model) == set()
    assert not model.train().get_classifier().training
    model.reset_classifier(7)
    classifier = model.classifiers[0]
    assert training(model) == {f"{classifier}.weight", f"{classifier}.bias"}
    assert model.train().get_classifier().training


@pytest.mark.parametrize("name", SMALL)
def test_what_is_frozen_neither_drifts_nor_drops(name):
    model = small(name)
    level = model.eval().forward_intermediates(images(), indices=[1], intermediates_only=True)[0]
    before = copy.deepcopy(model.state_dict())
    model.freeze(upto=1)
    for _ in range(2):
        model.train()
        assert model.training
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1, weight_decay=0.1)
        scores, (same,) = model.forward_intermediates(images(), indices=[1])
        assert torch.equal(same, level)
        assert not same.requires_grad
        model.forward_head(scores).square().mean().backward()
        optimizer.step()
        model.eval()
    after = model.state_dict()
    frozen = [key for key in after if any(key == path or key.startswith(path + ".") for path in model.frozen.modules)]
    assert any("running_mean" in key for key in frozen) == (name == "test_resnet")
    assert all(torch.equal(after[key], before[key]) for key in frozen)
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert any(key.startswith(("layer4", "blocks.5")) for key in moved)
    assert moved.isdisjoint({*frozen, "cls_token", "pos_embed"})


def test_what_did_not_train_before_does_not_train_after():
    model = small("test_resnet")
    model.layer1.requires_grad_(False)
    before = training(model)
    model.freeze(upto=3)
    model.freeze(upto=1)  # replaces the call before
    assert training(model) == before - under(before, "conv1", "bn1", "layer1")
    assert model.train().layer2[0].bn1.training
    model.unfreeze()
    model.unfreeze()
    assert training(model) == before


def test_levels_that_are_not_there():
    model = small("test_resnet")
    model.freeze(upto=0)
    for wrong in (5, -6):
        with pytest.raises(BadArgument, match=f"upto={wrong}: there is no such level; give 0 to 4"):
            model.freeze(upto=wrong)
    assert model.frozen.upto == 0
    part = small("test_resnet", features_only=True, out_indices=(1, 2))
    part.freeze(upto=-1)
    assert training(part) == set()
    with pytest.raises(BadArgument, match="give 0 to 2"):
        part.freeze(upto=3)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_frozen_too(name, duplicate):
    model = small(name)
    keys = list(model.state_dict())
    model.set_grad_checkpointing()
    model.freeze(upto=1)
    other = duplicate(model)
    assert list(other.state_dict()) == keys
    assert training(other) == training(model)
    other.train()
    for path in other.frozen.modules:
        assert not any(module.training for module in other.get_submodule(path).modules())
    other.unfreeze()
    assert training(other) > training(model)


def test_pruning_leaves_the_rest_frozen():
    model = small("test_resnet")
    model.freeze(upto=3)
    model.keep_levels([1, 2])
    assert training(model.train()) == set()
    assert not model.layer2.training


VIEWS = {
    "scores": lambda model, x: [model(x)],
    "embed": lambda model, x: [model.embed(x)],
    "pyramid": lambda model, x: list(model.pyramid(x).values()),
    "intermediates": lambda model, x: model.forward_intermediates(x, indices=[0, -1], intermediates_only=True),
    "tokens": lambda model, x: list(model.tokens(x).values()),
    "features_only": lambda model, x: model(x),
}
CASES = [(name, view) for name in SMALL for view in VIEWS if (name, view) != ("test_resnet", "tokens")]


def gradients(name, view, upto, checkpointed):
    model = small(name, **({"features_only": True, "out_indices": (0, 2, -1)} if view == "features_only" else {})).train()
    if upto is not None:
        model.freeze(upto)
    model.set_grad_checkpointing(checkpointed)
    torch.manual_seed(2)  # drop path and dropout draw the same
    outputs = VIEWS[view](model, images())
    sum(output.square().mean() for output in outputs if output.requires_grad).backward()
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}, training(model)


@pytest.mark.parametrize("upto", [None, 1])
@pytest.mark.parametrize("name, view", CASES)
def test_checkpointing_gives_the_same_gradients(name, view, upto):
    wanted, trained = gradients(name, view, upto, checkpointed=False)
    got, _ = gradients(name, view, upto, checkpointed=True)
    assert wanted
    assert wanted.keys() <= trained
    assert got.keys() == wanted.keys()
    for key in wanted:
        torch.testing.assert_close(got[key], wanted[key], rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name, block", [("test_resnet", "layer1.0.conv1"), ("test_vit", "blocks.0.attn")])
def test_units_run_again_in_the_backward_pass_unless_they_are_frozen(name, block):
    model = small(name).train()
    model.set_grad_checkpointing()
    runs = []
    model.get_submodule(block).register_forward_hook(lambda *_: runs.append(block))
    model(images()).sum().backward()
    assert len(runs) == 2
    model.freeze(upto=1)
    model(images()).sum().backward()
    assert len(runs) == 3
