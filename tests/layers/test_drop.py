"""Dropping blocks and paths."""

from __future__ import annotations

import pytest
import torch
from twin import ours, theirs

from ziggurat.errors import BadArgument


@pytest.mark.parametrize("couple", [True, False])
@pytest.mark.parametrize("block", [1, 2, 3, 7, 20])
def test_block_is_a_whole_square_within_the_map(couple, block):
    x = torch.ones(8, 3, 12, 10)
    y = ours.drop_block_2d(x, 0.3, block, couple_channels=couple, scale_by_keep=False)
    assert set(y.unique().tolist()) <= {0.0, 1.0}
    assert (y == 0).any()
    h, w = min(block, 12), min(block, 10)
    # every dropped position is in a window that is dropped whole
    whole = (torch.nn.functional.avg_pool2d(y, (h, w), 1) == 0).float()
    cover = torch.nn.functional.max_pool2d(
        torch.nn.functional.pad(whole, (w - 1, w - 1, h - 1, h - 1)), (h, w), stride=1
    )
    assert torch.equal(cover, 1 - y)
    assert bool((y == y[:, :1]).all()) == couple


def test_block_keeps_the_mean_and_the_fraction():
    x = torch.ones(64, 2, 32, 32)
    y = ours.drop_block_2d(x, 0.1, 5)
    assert y.mean().item() == pytest.approx(1, abs=1e-4)
    assert (y == 0).float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_block_noise_and_in_place():
    x = torch.zeros(4, 2, 16, 16)
    noisy = ours.drop_block_2d(x, 0.3, 3, with_noise=True)
    assert 0 < (noisy != 0).float().mean() < 0.6
    ones = torch.ones(4, 2, 16, 16)
    assert ours.drop_block_2d(ones, 0.3, 3, inplace=True) is ones
    assert (ones == 0).any()


def test_path_drops_samples_and_keeps_the_mean():
    x = torch.ones(4000, 2, 1)
    y = ours.drop_path(x, 0.25, training=True)
    assert sorted(y.unique().tolist()) == pytest.approx([0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert bool((y[:, 0] == y[:, 1]).all())
    assert set(ours.drop_path(x, 0.25, True, scale_by_keep=False).unique().tolist()) == {0.0, 1.0}
    assert ours.drop_path(x, 1.0, training=True).abs().max() == 0


def test_modules_drop_while_training_only():
    x = torch.ones(64, 2, 8, 8)
    for module in (ours.DropPath(0.5), ours.DropBlock2d(0.5, 3)):
        assert module.eval()(x) is x
        assert (module.train()(x) == 0).any()
    assert ours.DropPath(0.0).train()(x) is x
    assert "0.500" in ours.DropPath(0.5).extra_repr()
    with pytest.warns(UserWarning, match="blok_size"):
        ours.DropBlock2d(blok_size=3)


@pytest.mark.parametrize("depths", [1, 5, [3, 4, 6, 3], [1]])
def test_rates_rise_to_the_last_block(depths):
    for stagewise in (False, True) if isinstance(depths, list) else (False,):
        mine = ours.calculate_drop_path_rates(0.3, depths, stagewise=stagewise)
        his = theirs.calculate_drop_path_rates(0.3, depths, stagewise=stagewise)
        flat = (lambda r: [v for s in r for v in s]) if stagewise else list
        assert flat(mine) == pytest.approx(flat(his), abs=1e-7)
        assert not stagewise or [len(s) for s in mine] == depths


def test_rates_by_stage_need_stages():
    with pytest.raises(BadArgument, match="pass a list"):
        ours.calculate_drop_path_rates(0.1, 4, stagewise=True)
