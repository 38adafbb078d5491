"""Batch norms made synchronised, frozen, split, and back."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from twin import close, ours, randomise, theirs

from ziggurat.errors import BadArgument


class Half(nn.Module):
    def forward(self, x):
        return x * 0.5


def build(package):
    norm = package.BatchNormAct2d
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        norm(8, act_layer="silu", drop_layer=Half),
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, eps=0.1)),
    ).eval()


def pair():
    b = randomise(build(theirs))
    a = build(ours)
    a.load_state_dict(b.state_dict())
    return a, b, torch.randn(4, 3, 6, 6)


def test_freezing_fixes_statistics_and_comes_back():
    a, b, x = pair()
    before, keys = a(x), list(a.state_dict())
    frozen = ours.freeze_batch_norm_2d(a)
    assert list(frozen.state_dict()) == list(theirs.freeze_batch_norm_2d(b).state_dict())
    assert [n for n, _ in frozen.named_parameters()] == [n for n, _ in b.named_parameters()]
    close(frozen.train()(x), before)
    assert frozen[1].running_mean.equal(b[1].running_mean)
    thawed = ours.unfreeze_batch_norm_2d(frozen)
    assert list(thawed.state_dict()) == keys
    assert [n for n, _ in thawed.named_parameters()] == [n for n, _ in build(ours).named_parameters()]
    close(thawed.eval()(x), before)
    assert isinstance(thawed[1], ours.BatchNormAct2d)
    assert not torch.equal(thawed.train()(x), before)


def test_frozen_norm_loads_the_state_of_an_ordinary_one():
    plain = randomise(nn.BatchNorm2d(8)).eval()
    frozen = ours.FrozenBatchNorm2d(8)
    frozen.load_state_dict(plain.state_dict(), strict=True)
    x = torch.randn(2, 8, 4, 4)
    close(frozen(x), plain(x))


def test_synchronised():
    a, b, x = pair()
    before = a(x)
    synced = ours.convert_sync_batchnorm(a)
    assert isinstance(synced[1], ours.SyncBatchNormAct)
    assert type(synced[2][1]) is nn.SyncBatchNorm
    assert list(synced.state_dict()) == list(b.state_dict())
    close(synced(x), before)
    frozen = ours.freeze_batch_norm_2d(synced)
    assert isinstance(frozen[1], ours.FrozenBatchNormAct2d)
    close(frozen(x), before)
    assert isinstance(ours.convert_sync_batchnorm(ours.BatchNormAct2d(4)), ours.SyncBatchNormAct)


def test_split():
    a, b, x = pair()
    before = a(x)
    a, b = ours.convert_splitbn_model(a, 2), theirs.convert_splitbn_model(b, 2)
    assert list(a.state_dict()) == list(b.state_dict())
    close(a(x), before)
    close(a.train()(x), b.train()(x))
    for mine, his in zip(a.state_dict().values(), b.state_dict().values()):
        close(mine, his)
    # the parts are independent: changing the second half leaves the first alone
    other = torch.cat([x[:2], x[2:] + 5])
    close(a(other)[:2], a(x)[:2])
    with pytest.raises(BadArgument, match="batch of 3"):
        a(x[:3])
    with pytest.raises(BadArgument, match="two parts"):
        ours.SplitBatchNorm2d(8, num_splits=1)


def test_converting_keeps_what_was_not_trained():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
    model[0].weight.requires_grad_(False)
    assert not ours.convert_splitbn_model(model)[0].aux_bn[0].weight.requires_grad
    dict_of = nn.ModuleDict({"a-b": nn.BatchNorm2d(4)})
    assert type(ours.freeze_batch_norm_2d(dict_of)["a-b"]) is ours.FrozenBatchNorm2d
