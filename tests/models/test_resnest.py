"""ResNeSt: radix, cardinality and the place of the pooled stride, against timm."""

import pytest
import torch

import ziggurat
from parity.oracle import TOLERANCE, compare, compare_keys
from ziggurat.backbone import Step
from ziggurat.models.resnest import ResNestBottleneck

SIZE = 64


@pytest.mark.parametrize("name, kwargs", [
    ("resnest14d", {}),
    ("resnest50d_4s2x40d", dict(layers=(1, 1, 1, 1))),  # pooled before the convolution, radix 4, two groups
    ("resnest50d_1s4x24d", dict(layers=(1, 1, 1, 1))),  # radix 1
    ("resnest14d", dict(output_stride=8)),
    ("resnest14d", dict(output_stride=16)),
])  # fmt: skip
def test_outputs_are_timms(name, kwargs):
    found = compare(name, SIZE, **kwargs)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("name", ["resnest50d_4s2x40d", "resnest50d_1s4x24d", "resnest101e"])
def test_keys_of_larger_variants_are_timms(name):
    compare_keys(name)


def test_five_maps():
    model = ziggurat.create_model("resnest26d", features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(2, 3, 224, 224))
    assert [tuple(level.shape) for level in maps] == [
        (2, 64, 112, 112), (2, 256, 56, 56), (2, 512, 28, 28), (2, 1024, 14, 14), (2, 2048, 7, 7)
    ]  # fmt: skip


@pytest.mark.parametrize("avd_first", [True, False])
def test_a_pool_strides_in_place_of_the_convolution(avd_first):
    shortcut = torch.nn.Conv2d(16, 64, 1, 2)
    block = ResNestBottleneck(16, 16, Step(2, 1, 1), shortcut, radix=2, avd=True, avd_first=avd_first).eval()
    assert block.conv2.conv.stride == (1, 1)
    pool, other = (block.avd_first, block.avd_last) if avd_first else (block.avd_last, block.avd_first)
    assert pool.stride == 2 and isinstance(other, torch.nn.Identity)
    with torch.no_grad():
        assert block(torch.randn(1, 16, 8, 8)).shape == (1, 64, 4, 4)
