"""What MindCV computes otherwise than timm, as arguments of the families, and its weights under our names."""

import re

import pytest
import torch

import ziggurat
from parity import mindcv, mindcv_names
from ziggurat.compat.mindcv import create_model
from ziggurat.errors import BadArgument, CheckpointMismatch
from ziggurat.factory import WithoutWeights
from ziggurat.layers import AvgPool2dWithin, create_pool2d
from ziggurat.weights.reading import load_checkpoint, read_state_dict

TOLERANCE = 1e-5

BLOCKS = dict(levels_per="block")  # as MindCV's MobileNets and EfficientNets list their levels
STAGES = dict(levels_per="stage")


@pytest.mark.parametrize("theirs, ours, kwargs", [
    ("resnet18", "resnet18", {}),
    ("resnest14", "resnest14d", {}),
    ("mobilenet_v2_035_224", "mobilenetv2_035", BLOCKS),
    ("mobilenet_v3_small_075", "mobilenetv3_small_075", BLOCKS),  # other widths
    ("mobilenet_v3_small_100", "mobilenetv3_small_100", BLOCKS),
    ("efficientnet_b0", "efficientnet_b0", STAGES),
    ("repvgg_a0", "repvgg_a0", {}),
    ("mnasnet_050", "mnasnet_050", {}),
    ("mobilenet_v1_025", "mobilenetv1_025", {}),
])  # fmt: skip
def test_a_checkpoint_of_mindcvs_gives_its_outputs(theirs, ours, kwargs, tmp_path):
    path = mindcv.checkpoint(theirs, tmp_path)
    model = ziggurat.create_model(ours, checkpoint_path=path, **kwargs).eval()
    mindcv.hold(model, theirs)


@pytest.mark.parametrize("theirs", [
    "efficientnet_v2_s",
    "mobilenet_v2_130_224",
    "mobilenet_v3_large_075",
    "repvgg_b1g2",
    "res2net50_v1b",  # no pool in the shortcut of the first stage, where ours has one that does nothing
    "densenet121",
    "regnet_y_200mf",
    "seresnet18",
    "seresnext26_32x4d",
    "skresnet18",
])  # fmt: skip
def test_every_parameter_of_mindcvs_has_its_place(theirs):
    """A few; all of them are read by `python tests/parity/mindcv_names.py`."""
    assert not mindcv_names.unlike(theirs)


def test_the_tag_says_what_the_weights_need_and_the_plain_name_does_not():
    with torch.device("meta"), WithoutWeights():
        tagged, plain = (ziggurat.create_model(f"mobilenetv3_large_075{tag}") for tag in (".mindcv_in1k", ""))
    assert sum(p.numel() for p in tagged.parameters()) == 3377576  # MindCV's
    assert sum(p.numel() for p in plain.parameters()) == 3993528  # timm's
    assert tagged.conv_head.out_channels == 960


def test_a_pyramid_takes_what_it_needs_of_a_checkpoint_in_any_order(tmp_path):
    name = "mobilenetv3_small_100.mindcv_in1k"
    path = mindcv.checkpoint("mobilenet_v3_small_100", tmp_path)
    whole = ziggurat.create_model(name, checkpoint_path=path).eval()
    given = dict(sorted(read_state_dict(path).items()))  # as safetensors files are sorted
    part = ziggurat.create_model(name, features_only=True, out_strides=(4, 8), pretrained=True,
                                 pretrained_cfg_overlay=dict(state_dict=given)).eval()
    x = mindcv.images(64)
    with torch.no_grad():
        levels = part(x)
        wanted = whole.pyramid(x, strides=(4, 8))
    assert all(torch.equal(level, wanted[stride]) for level, stride in zip(levels, (4, 8)))


def test_other_classes_and_channels(tmp_path):
    path = mindcv.checkpoint("mobilenet_v2_035_224", tmp_path)
    model = ziggurat.create_model("mobilenetv2_035", checkpoint_path=path, num_classes=5, in_chans=1).eval()
    full = ziggurat.create_model("mobilenetv2_035", checkpoint_path=path).eval()
    assert torch.equal(model.bn2.weight, full.bn2.weight)
    x = mindcv.images(64)[:, :1]
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(x), full.forward_features(x.expand(-1, 3, -1, -1)),
                                   rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    path = mindcv.checkpoint("mobilenet_v2_035_224", tmp_path)
    with pytest.raises(CheckpointMismatch, match="Choose the architecture"):
        ziggurat.create_model("efficientnet_b0", checkpoint_path=path)


@pytest.mark.parametrize("height, width", [(6, 7), (5, 8)])
def test_an_average_leaves_the_padding_out(height, width):
    x = torch.rand(2, 3, height, width) + 1
    found = AvgPool2dWithin(3, 2)(x)
    assert found.shape[2:] == (-(-height // 2), -(-width // 2))
    before = [side % 2 for side in (height, width)]  # of an even side, 'same' pads the end alone
    for row in range(found.shape[2]):
        for column in range(found.shape[3]):
            top, left = 2 * row - before[0], 2 * column - before[1]
            window = x[:, :, max(top, 0) : top + 3, max(left, 0) : left + 3]
            torch.testing.assert_close(found[:, :, row, column], window.mean((2, 3)))


def test_pools_padded_same_give_maps_that_round_up_and_export():
    with torch.device("meta"), WithoutWeights():
        model = ziggurat.create_model("resnest14d", pool_pad_type="same").eval()
        levels = model.pyramid(torch.empty(1, 3, 75, 50))
    assert {s: tuple(level.shape[2:]) for s, level in levels.items()} == {
        s: (-(-75 // s), -(-50 // s)) for s in (2, 4, 8, 16, 32)
    }
    pools = torch.nn.Sequential(create_pool2d("max", 3, 2, padding="same"), AvgPool2dWithin(3, 2))
    x, larger = torch.randn(1, 3, 19, 14), torch.randn(1, 3, 24, 37)
    dynamic = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(pools, (x,), dynamic_shapes=(dynamic,)).module()
    for image in (x, larger):
        torch.testing.assert_close(program(image), pools(image))
        torch.testing.assert_close(torch.fx.symbolic_trace(pools)(image), pools(image))


def test_other_padding_of_pools_is_refused():
    with pytest.raises(BadArgument, match="pool_pad_type='valid'"):
        ziggurat.create_model("resnet18", pool_pad_type="valid")


def test_expansions_scale_alike_where_the_rest_does_not():
    with torch.device("meta"), WithoutWeights():
        plain, asked = (ziggurat.create_model("mobilenetv3_small_100", scale_expansion=scale, scale_head=scale)
                        for scale in (False, True))
    assert {key: v.shape for key, v in plain.state_dict().items()} == {
        key: v.shape for key, v in asked.state_dict().items()
    }


def test_a_file_of_mindcvs_stands_for_its_tag_wherever_it_is_given(tmp_path):
    path = mindcv.checkpoint("resnet18", tmp_path)
    by_overlay = ziggurat.create_model("resnet18", pretrained=True, pretrained_cfg_overlay=dict(file=str(path))).eval()
    assert max(mindcv.compare(by_overlay, "resnet18", 64).values()) <= TOLERANCE
    by_hand = ziggurat.create_model("resnet18.mindcv_in1k").eval()
    load_checkpoint(by_hand, path)
    assert max(mindcv.compare(by_hand, "resnet18", 64).values()) <= TOLERANCE


@pytest.mark.filterwarnings("ignore:.* is MindCV.s name")
@pytest.mark.parametrize("name, flattened", [("convnextv2_atto", "feature"), ("mobilenet_v3_small_075", "features"),
                                             ("rexnet_09", "features")])
def test_a_pyramid_that_mindcv_saved(name, flattened, tmp_path):
    whole = read_state_dict(mindcv.checkpoint(name, tmp_path))
    cut = {re.sub(rf"^{flattened}\.", f"{flattened}_", key): tensor for key, tensor in whole.items()}
    torch.save(cut, tmp_path / "pyramid.pth")
    ours = create_model(name, features_only=True, out_indices=(2,), checkpoint_path=tmp_path / "pyramid.pth").eval()
    level, = ours(mindcv.images(64))
    assert mindcv.difference(name, 64, "level2", level) <= TOLERANCE
