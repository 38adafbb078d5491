"""ResNet and what shares its trunk: every stem, block and option against timm, and the views that users ask for."""

import pytest
import torch
from torch import nn

import ziggurat
from parity.oracle import TOLERANCE, compare, compare_keys
from ziggurat.backbone import Step
from ziggurat.errors import BadArgument
from ziggurat.models.resnet import BasicBlock, Bottleneck, ResNet

SIZE = 64
TINY = dict(block="Bottleneck", layers=(1, 1, 1, 1), channels=(4, 4, 4, 4), num_classes=3)


@pytest.mark.parametrize("name, kwargs", [
    ("test_resnet", {}),  # both blocks in one network
    ("resnet10t", {}),  # a tiered stem
    ("resnet18", {}),
    ("resnet18d", {}),  # a deep stem, pooled shortcuts
    ("resnet18", dict(norm_layer="groupnorm")),
    ("resnext50_32x4d", {}),
    ("seresnet18", {}),
    ("ecaresnet26t", {}),
    ("resnetblur18", {}),
    ("resnetaa34d", {}),
    ("resnetrs50", {}),  # a strided convolution for the stem's pool
    ("resnet10t", dict(replace_stem_pool=True, aa_layer="avg")),
    ("resnet10t", dict(act_layer="silu", global_pool="catavgmax", num_classes=3)),
    ("resnet14t", dict(down_kernel_size=3, avg_down=False, block_reduce_first=2)),
    ("ecaresnet50d_pruned", {}),
])  # fmt: skip
def test_outputs_are_timms(name, kwargs):
    found = compare(name, SIZE, **kwargs)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("name, output_stride, kwargs", [
    ("resnet18", 8, {}),
    ("resnet18", 16, {}),
    ("resnet14t", 8, {}),
    ("resnet14t", 16, {}),
    ("resnet14t", 8, dict(down_kernel_size=3, avg_down=False)),
    ("resnetblur18", 8, {}),
    ("test_resnet", 16, {}),
])  # fmt: skip
def test_dilated_outputs_are_timms(name, output_stride, kwargs):
    found = compare(name, SIZE, output_stride=output_stride, **kwargs)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("name", ["wide_resnet50_2", "senet154", "ecaresnetlight", "ecaresnet101d_pruned",
                                  "seresnextaa201d_32x8d", "resnetrs420"])  # fmt: skip
def test_keys_of_larger_variants_are_timms(name):
    compare_keys(name)


def test_the_pyramid_of_a_resnet34():
    model = ziggurat.create_model("resnet34", features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(2, 3, 224, 224))
    assert [tuple(level.shape) for level in maps] == [
        (2, 64, 112, 112), (2, 64, 56, 56), (2, 128, 28, 28), (2, 256, 14, 14), (2, 512, 7, 7)
    ]  # fmt: skip
    assert model.feature_info.channels() == [64, 64, 128, 256, 512]
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]


def test_a_level_holds_only_the_modules_that_it_needs():
    model = ziggurat.create_model("resnet34", features_only=True, out_indices=[3])
    assert len(model) == 7
    assert list(model) == ["conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3"]
    assert not any(name.startswith(("layer4", "fc")) for name in model.state_dict())


def test_levels_of_a_dilated_network():
    model = ziggurat.create_model("ecaresnet101d", features_only=True, output_stride=8, out_indices=(2, 4)).eval()
    assert model.feature_info.channels() == [512, 2048]
    assert model.feature_info.reduction() == [8, 8]
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 320, 320))
    assert [tuple(level.shape) for level in maps] == [(1, 512, 40, 40), (1, 2048, 40, 40)]


def test_dilation_keeps_the_weights_and_the_grid_it_refines():
    """Without a blur or an average in the shortcuts, every second pixel of a dilated map is the native map."""
    native = ziggurat.create_model("resnet18").eval()
    dilated = ziggurat.create_model("resnet18", output_stride=16).eval()
    dilated.load_state_dict(native.state_dict())
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        coarse, fine = native.forward_features(x), dilated.forward_features(x)
    assert fine.shape[2:] == (6, 6)
    torch.testing.assert_close(fine[:, :, ::2, ::2], coarse)


def test_a_bottleneck_strides_on_its_3x3_convolution():
    block = Bottleneck(4, 4, Step(2, 1, 1), nn.Conv2d(4, 16, 1, 2))
    assert block.conv1.stride == (1, 1) and block.conv2.stride == (2, 2)


def test_a_blur_takes_the_stride_of_the_convolution_before_it():
    model = ResNet(**TINY, aa_layer="blur")
    block = model.layer2[0]
    assert block.conv2.stride == (1, 1) and block.aa.stride == 2
    assert isinstance(model.layer1[0].aa, nn.Identity)


@pytest.mark.parametrize("zero_init_last", [True, False])
def test_residual_branches_start_as_zero_where_asked(zero_init_last):
    model = ziggurat.create_model("test_resnet", zero_init_last=zero_init_last)
    scales = [m.last_norm.weight for m in model.modules() if isinstance(m, (BasicBlock, Bottleneck))]
    assert len(scales) == 4
    assert all(bool((scale == 0).all()) == zero_init_last for scale in scales)


def test_stochastic_depth_grows_over_the_blocks():
    model = ziggurat.create_model("resnet18", drop_path_rate=0.7)
    rates = [block.drop_path.drop_prob for i in (1, 2, 3, 4) for block in getattr(model, f"layer{i}")]
    assert rates == pytest.approx([0.1 * k for k in range(8)])


def test_drop_block_is_in_the_last_two_stages_and_acts_in_training():
    model = ResNet(**TINY, drop_block_rate=0.5)
    found = [type(getattr(model, f"layer{i}")[0].drop_block).__name__ for i in (1, 2, 3, 4)]
    assert found == ["Identity", "Identity", "DropBlock2d", "DropBlock2d"]
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), model(x))
        layer3 = model.train().layer3[0].drop_block
        assert not torch.equal(layer3(torch.ones(2, 16, 16, 16)), torch.ones(2, 16, 16, 16))


def test_an_unreachable_output_stride_says_so():
    with pytest.raises(BadArgument, match="output_stride=12"):
        ziggurat.create_model("resnet18", output_stride=12)


def test_a_setting_that_a_block_has_no_use_for_is_refused():
    with pytest.raises(ziggurat.errors.BadArgument, match="cardinality=32: not defined for BasicBlock"):
        ziggurat.create_model("resnet18", cardinality=32)
