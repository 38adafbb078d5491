"""ReXNet: outputs against timm and MindCV, widths, shortcuts of part of the channels, drop path."""

import pytest
import torch

import ziggurat
from parity import mindcv
from parity.oracle import TOLERANCE, compare
from ziggurat.backbone import Step
from ziggurat.layers.drop import DropPath
from ziggurat.models.rexnet import LinearBottleneck, RexNet
from ziggurat.testing import check_compile, check_export

SIZE = 64
SHORT = dict(depth_mult=0.4, num_classes=3)  # nine blocks


@pytest.mark.parametrize("name, kwargs", [
    ("rexnet_100", {}),
    ("rexnetr_130", SHORT),
    ("rexnet_100", SHORT | dict(output_stride=8)),
    ("rexnet_130", SHORT | dict(output_stride=16, se_ratio=0.0, act_layer="relu", dw_act_layer="silu")),
])  # fmt: skip
def test_outputs_are_timms(name, kwargs):
    found = compare(name, SIZE, **kwargs)
    assert max(found.values()) <= TOLERANCE, found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return mindcv.checkpoint("rexnet_09", tmp_path_factory.mktemp("mindcv"))


def test_outputs_are_mindcvs(checkpoint):
    model = ziggurat.create_model("rexnet_090", checkpoint_path=checkpoint).eval()
    assert mindcv.sizes("rexnet_09") == [64, 75]
    assert mindcv.hold(model, "rexnet_09") == 6


def test_a_pyramid_of_mindcvs_weights_cut_after_a_level(checkpoint):
    model = ziggurat.create_model("rexnet_090.mindcv_in1k", checkpoint_path=checkpoint, features_only=True,
                                  out_indices=(2, 0)).eval()
    assert len(model.features) == 5
    with torch.no_grad():
        for index, level in zip((2, 0), model(mindcv.images(75))):
            assert mindcv.difference("rexnet_09", 75, f"level{index}", level) <= 1e-5


def test_widths_of_the_smallest_variant_are_the_published_ones():
    with torch.device("meta"):
        model = ziggurat.create_model("rexnet_090")
    assert sum(p.numel() for p in model.parameters()) == 4_091_257
    assert model.feature_info.channels() == [16, 36, 56, 117, 168]
    assert model.stem.out_channels == 32  # no network starts narrower
    assert model.num_features == 1152


def test_the_shortcut_covers_the_channels_that_there_are():
    block = LinearBottleneck(6, 10, Step(1, 1, 1), exp_ratio=2, se_ratio=0.25).eval()
    x = torch.randn(1, 6, 5, 5)
    with torch.no_grad():
        out = block(x)
        block.use_shortcut = False
        plain = block(x)
    torch.testing.assert_close(out[:, :6], plain[:, :6] + x)
    torch.testing.assert_close(out[:, 6:], plain[:, 6:], rtol=0, atol=0)


@pytest.mark.parametrize("step, out_chs", [(Step(2, 1, 1), 8), (Step(1, 2, 1), 8), (Step(1, 1, 1), 5)])
def test_there_is_no_shortcut_where_the_map_changes_or_channels_go(step, out_chs):
    assert not LinearBottleneck(6, out_chs, step).use_shortcut


def test_equal_widths_add_up():
    block = LinearBottleneck(8, 8, Step(1, 1, 1)).eval()
    assert block.use_shortcut
    assert not block.grows
    x = torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        assert block(x).shape == x.shape


def test_drop_path_reaches_its_rate_in_the_last_block():
    model = RexNet(**SHORT, drop_path_rate=0.4)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.4 * k / 8 for k in range(9)])


def test_the_dropout_before_the_classifier_is_the_papers():
    with torch.device("meta"):
        assert ziggurat.create_model("rexnetr_100").drop_rate == 0.2


@pytest.mark.parametrize("check", [check_compile, check_export])
def test_a_small_one_is_captured(check):
    check(lambda **kwargs: RexNet(width_mult=0.5, depth_mult=0.2, **kwargs), SIZE)
