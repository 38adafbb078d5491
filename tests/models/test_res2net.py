"""Res2Net: scales, groups and the ladder of a block, against timm."""

import pytest
import torch
from torch import nn

from parity.oracle import TOLERANCE, compare, compare_keys
from ziggurat.backbone import Step
from ziggurat.models.res2net import Bottle2neck
from ziggurat.models.resnet import Cell

SIZE = 64


@pytest.mark.parametrize("name, kwargs", [
    ("res2net50_26w_4s", dict(layers=(1, 2, 1, 1))),
    ("res2net50_48w_2s", dict(layers=(1, 2, 1, 1))),
    ("res2net50_14w_8s", dict(layers=(1, 2, 1, 1))),
    ("res2net50d", dict(layers=(1, 2, 1, 1))),
    ("res2next50", dict(layers=(1, 2, 1, 1))),
    ("res2net50_26w_4s", dict(layers=(1, 1, 2, 2), output_stride=8)),
    ("res2net50_26w_4s", dict(layers=(1, 1, 2, 2), output_stride=16)),
    ("res2net50d", dict(layers=(1, 1, 2, 2), output_stride=8)),
])  # fmt: skip
def test_outputs_are_timms(name, kwargs):
    found = compare(name, SIZE, **kwargs)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("name", ["res2net50_26w_6s", "res2net50_26w_8s", "res2net101d", "res2next50"])
def test_keys_of_larger_variants_are_timms(name):
    compare_keys(name)


def test_parts_feed_each_other_but_in_a_stages_first_block():
    """A change of the first part reaches the later parts of an ordinary block, and in the first block its own alone."""
    inner = Bottle2neck(64, 16, Step(1, 1, 1), cell=Cell(), scale=4)
    first = Bottle2neck(64, 16, Step(1, 1, 1), nn.Identity(), Cell(), scale=4)
    for block, reached in ((inner, [True, True, True, False]), (first, [True, False, False, False])):
        block.eval()
        seen = []
        block.conv3.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        block.conv1.register_forward_hook(lambda module, args, out, seen=seen: _nudged(out) if seen else out)
        x = torch.randn(1, 64, 6, 6)
        with torch.no_grad():
            block(x), block(x)
        changed = [not torch.equal(a, b) for a, b in zip(*(parts.split(16, dim=1) for parts in seen))]
        assert changed == reached


def _nudged(parts):
    return torch.cat([parts[:, :16].abs() + 1, parts[:, 16:]], dim=1)
