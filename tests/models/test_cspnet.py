"""CSPNet and DarkNet: outputs against timm, which half goes through the blocks, stems, dilation, initial weights."""

import pytest
import torch

import ziggurat
from parity.oracle import TOLERANCE, compare, compare_keys
from ziggurat.backbone import Step
from ziggurat.errors import BadArgument
from ziggurat.models.cspnet import BottleneckBlock, Cs3Stage, CspNet, CspStage, DarkBlock

SIZE = 64
PLAIN = dict(norm_layer="batchnorm", act_layer="relu")
TINY = dict(depths=(1, 1), widths=(8, 16), num_classes=3)


@pytest.mark.parametrize("name, kwargs", [
    ("cspresnet50d", {}),
    ("cspresnext50", {}),
    ("cspdarknet53", {}),  # a first stage of other proportions
    ("darknet17", {}),
    ("sedarknet21", {}),  # timm gives five of its six levels
    ("cs3darknet_s", {}),
    ("cs3darknet_focus_s", {}),
    ("cs3sedarknet_l", {}),
    ("cspresnet50d", dict(output_stride=8)),
    ("darknet17", dict(output_stride=16)),
    ("cs3darknet_s", dict(output_stride=8, act_layer="relu")),
    ("cs3darknet_s", dict(aa_layer="avg")),
])  # fmt: skip
def test_outputs_are_timms(name, kwargs):
    found = compare(name, SIZE, **kwargs)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("name", ["cspresnet50w", "darknetaa53", "cs3sedarknet_xdw", "cs3se_edgenet_x"])
def test_keys_of_larger_variants_are_timms(name):
    compare_keys(name)


@pytest.mark.parametrize("stage, half", [(CspStage, "second"), (Cs3Stage, "first")])
def test_one_half_goes_around_the_blocks(stage, half):
    model = stage(4, 8, 2, Step(2, 1, 1), lambda channels: DarkBlock(channels, **PLAIN), **PLAIN).eval()
    seen = []
    model.blocks.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        expanded = model.conv_exp(model.conv_down(x))
        out = model(x)
    assert out.shape == (1, 8, 4, 4)
    torch.testing.assert_close(seen[0], expanded[:, :4] if half == "first" else expanded[:, 4:])


def test_the_halves_may_be_linear():
    def make(cross_linear):
        torch.manual_seed(0)
        stage = CspStage(4, 8, 0, Step(1, 1, 1), DarkBlock, cross_linear=cross_linear, **PLAIN)
        return torch.cat(stage.eval().halves(torch.randn(1, 4, 8, 8)), dim=1)

    with torch.no_grad():
        assert make(cross_linear=True).min() < 0
        assert make(cross_linear=False).min() == 0


def test_a_stage_that_does_not_stride_has_no_strided_convolution():
    model = ziggurat.create_model("cspresnet50d")
    assert model.stages[0].conv_down is None and model.stages[1].conv_down is not None


def test_a_dilated_stage_keeps_its_convolution_and_its_keys():
    plain, dilated = CspNet(**TINY, stage="cs3"), CspNet(**TINY, stage="cs3", output_stride=4, output_stride_mode="dilated")
    assert list(plain.state_dict()) == list(dilated.state_dict())
    assert dilated.stages[1].conv_down.conv.stride == (1, 1)
    assert dilated.stages[1].blocks[0].conv2.conv.dilation == (2, 2)
    assert dilated.feature_info.reduction() == [2, 4, 4]


@pytest.mark.parametrize("stem, levels", [
    (dict(stem_stride=1), [("stem.conv2", 4, 1), ("stages.0", 8, 2), ("stages.1", 16, 4)]),
    (dict(stem_stride=2), [("stem.conv2", 4, 2), ("stages.0", 8, 4), ("stages.1", 16, 8)]),
    (dict(stem_stride=4), [("stem.conv1", 2, 2), ("stages.0", 8, 8), ("stages.1", 16, 16)]),
    (dict(stem_stride=4, stem_pool="max"), [("stem.conv2", 4, 2), ("stages.0", 8, 8), ("stages.1", 16, 16)]),
    (dict(stem_stride=4, stem_pool="max", aa_layer="blur"),
     [("stem.conv2", 4, 2), ("stages.0", 8, 8), ("stages.1", 16, 16)]),
])  # fmt: skip
def test_stems(stem, levels):
    model = CspNet(**TINY, stem_chs=(2, 4), **stem).eval()
    found = [(level["module"], level["num_chs"], level["reduction"]) for level in model.feature_info]
    assert found == levels
    with torch.no_grad():
        maps = model.forward_intermediates(torch.randn(1, 3, SIZE, SIZE), intermediates_only=True)
    assert [(m.shape[1], SIZE // m.shape[2]) for m in maps] == [(channels, stride) for _, channels, stride in levels]


def test_a_pool_belongs_to_a_stem_of_stride_4():
    with pytest.raises(BadArgument, match="stem_pool='max'"):
        CspNet(**TINY, stem_stride=2, stem_pool="max")


@pytest.mark.parametrize("zero_init_last", [True, False])
def test_residual_branches_start_as_zero_where_asked(zero_init_last):
    model = CspNet((2, 1), (8, 16), block=("dark", "bottle"), zero_init_last=zero_init_last, num_classes=3)
    scales = [m.last_norm.weight for m in model.modules() if isinstance(m, (DarkBlock, BottleneckBlock))]
    assert len(scales) == 3
    assert all(bool((scale == 0).all()) == zero_init_last for scale in scales)
    assert model.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.4) and not model.head.fc.bias.any()
