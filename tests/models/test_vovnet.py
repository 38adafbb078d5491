"""VoVNet: outputs against timm, where blocks have shortcuts and gates, the max pools' rounding, the stem's stride."""

import pytest
import torch

import ziggurat
from parity.oracle import TOLERANCE, compare
from ziggurat.errors import BadArgument, UnsupportedStride
from ziggurat.models.vovnet import OsaBlock, VovNet

SIZE = 64
TINY = dict(stem_chs=(4, 6, 8), stage_conv_chs=(4, 4, 4, 4), stage_out_chs=(8, 12, 16, 20), layer_per_block=2,
            block_per_stage=(1, 2, 1, 1), num_classes=3)  # fmt: skip


@pytest.mark.parametrize("name, kwargs", [
    ("ese_vovnet19b_slim", {}),
    ("ese_vovnet19b_slim_dw", {}),
    ("vovnet39a", {}),
    ("eca_vovnet39b", {}),
    ("ese_vovnet39b_evos", {}),
    ("ese_vovnet19b_slim", dict(act_layer="silu", num_classes=3, global_pool="max")),
])  # fmt: skip
def test_outputs_are_timms(name, kwargs):
    found = compare(name, SIZE, **kwargs)
    assert max(found.values()) <= TOLERANCE, found


def test_the_embedding_of_a_model_without_classifier():
    model = ziggurat.create_model("ese_vovnet19b_dw")
    model.reset_classifier(0)
    with torch.no_grad():
        assert list(model.eval()(torch.randn(2, 3, SIZE, SIZE)).shape) == [2, 1024]


def test_only_the_last_block_is_gated_and_the_first_has_no_shortcut():
    stage = VovNet(**{**TINY, "block_per_stage": (3, 1, 1, 1)}, residual=True, attn="ese").stages[0].blocks
    assert [block.residual for block in stage] == [False, True, True]
    assert [block.attn is not None for block in stage] == [False, False, True]


def test_a_shortcut_adds_the_blocks_input():
    plain, residual = OsaBlock(8, 4, 8, 2), OsaBlock(8, 4, 8, 2, residual=True)
    residual.load_state_dict(plain.state_dict())
    x = torch.randn(1, 8, 7, 7)
    with torch.no_grad():
        torch.testing.assert_close(residual.eval()(x), plain.eval()(x) + x)


def test_depthwise_blocks_reduce_their_input_first_where_it_is_wider():
    assert OsaBlock(8, 4, 8, 1, depthwise=True).conv_reduction is not None
    assert OsaBlock(4, 4, 8, 1, depthwise=True).conv_reduction is None
    assert OsaBlock(8, 4, 8, 1).conv_reduction is None


def test_a_stage_halves_and_rounds_up():
    model = VovNet(**TINY).eval()
    with torch.no_grad():
        levels = model.forward_intermediates(torch.randn(1, 3, 60, 90), intermediates_only=True)
    assert [tuple(level.shape[2:]) for level in levels] == [(30, 45), (15, 23), (8, 12), (4, 6), (2, 3)]


def test_a_stem_of_stride_2_leaves_the_rest_to_the_first_stage():
    model = VovNet(**TINY, stem_stride=2).eval()
    with torch.no_grad():
        levels = model.forward_intermediates(torch.randn(1, 3, SIZE, SIZE), intermediates_only=True)
    assert model.feature_info.module_name() == ["stem.2", "stages.0", "stages.1", "stages.2", "stages.3"]
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert [tuple(level.shape[1:]) for level in levels] == [
        (8, 32, 32), (8, 16, 16), (12, 8, 8), (16, 4, 4), (20, 2, 2)
    ]  # fmt: skip
    with pytest.raises(BadArgument, match="stem_stride=8"):
        VovNet(**TINY, stem_stride=8)


def test_strides_cannot_be_traded_for_dilation():
    with pytest.raises(UnsupportedStride, match="output_stride=16"):
        ziggurat.create_model("ese_vovnet19b_slim", output_stride=16, output_stride_mode="dilated")


def test_the_classifier_starts_without_bias():
    model = VovNet(**TINY)
    assert not model.head.fc.bias.any()
    weight = ziggurat.create_model("ese_vovnet19b_slim").stages[3].blocks[0].conv_mid[1].conv.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 112)) ** 0.5, rel=0.02)
