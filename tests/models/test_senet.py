"""The SENets of Caffe's descent: each block against timm, where they stride, their stems."""

import pytest
import torch

import ziggurat
from parity.oracle import TOLERANCE, compare, compare_keys
from ziggurat.errors import UnsupportedStride
from ziggurat.models.senet import SEBottleneck, SENet, SEResNetBottleneck, SEResNeXtBottleneck

SIZE = 64


@pytest.mark.parametrize("name, kwargs", [
    ("legacy_seresnet18", {}),
    ("legacy_seresnet50", dict(layers=(1, 1, 1, 1))),
    ("legacy_seresnext26_32x4d", dict(layers=(1, 1, 1, 1))),
    ("legacy_senet154", dict(layers=(1, 1, 1, 1))),
    ("legacy_seresnet18", dict(num_classes=3, global_pool="max", drop_rate=0.0)),
])  # fmt: skip
def test_outputs_are_timms(name, kwargs):
    found = compare(name, SIZE, **kwargs)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("name", ["legacy_seresnet34", "legacy_seresnext26_32x4d", "legacy_senet154"])
def test_keys_of_larger_variants_are_timms(name):
    compare_keys(name)


def test_where_bottlenecks_stride():
    by_block = {SEResNetBottleneck: [2, 1, 1], SEResNeXtBottleneck: [1, 2, 1], SEBottleneck: [1, 2, 1]}
    for make, strides in by_block.items():
        block = make(64, 64, 1, 16, stride=2)
        assert [block.conv1.stride[0], block.conv2.stride[0], block.conv3.stride[0]] == strides


def test_the_stems_pool_rounds_up():
    model = SENet(SEResNetBottleneck, (1, 1, 1, 1), num_classes=3).eval()
    with torch.no_grad():
        stem, level = model.forward_intermediates(torch.randn(1, 3, 68, 68), indices=[0, 1], intermediates_only=True)
    assert stem.shape[2:] == (34, 34) and level.shape[2:] == (17, 17)  # (34 - 3) / 2 + 1 is 16.5


def test_dropout_before_the_classifier_is_on_by_default():
    assert ziggurat.create_model("legacy_seresnet18").drop_rate == 0.2


def test_strides_cannot_be_traded_for_dilation():
    with pytest.raises(UnsupportedStride, match="output_stride=16"):
        ziggurat.create_model("legacy_seresnet18", output_stride=16, output_stride_mode="dilated")
