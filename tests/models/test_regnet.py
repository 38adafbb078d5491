"""RegNet: the line of widths, the variants against timm, and checkpoints from elsewhere."""

import pytest
import torch

import ziggurat
from parity.oracle import TOLERANCE, compare
from ziggurat.models.regnet import Bottleneck, Stage, stage_shapes

SIZE = 64


@pytest.mark.parametrize("name, kwargs", [
    ("regnetx_002", {}),
    ("regnety_002", {}),
    ("regnetx_004_tv", {}),  # groups fitted as torchvision does
    ("regnetz_005", {}),  # widening bottlenecks, no shortcut at a change of shape, a convolution before the head
    ("regnety_002", dict(preact=True, act_layer="silu", downsample="avg", depth=9)),
    ("regnety_002", dict(preact=True, depth=9, output_stride=16)),
    ("regnety_002", dict(norm_layer="groupnorm1", linear_out=True, depth=9)),
    ("regnetx_002", dict(output_stride=8)),
    ("regnetx_002", dict(downsample="avg", output_stride=8)),
])  # fmt: skip
def test_outputs_are_timms(name, kwargs):
    found = compare(name, SIZE, **kwargs)
    assert max(found.values()) <= TOLERANCE, found


def test_stages_follow_the_papers_line():
    # table 5 of the paper: REGNETX-200MF and REGNETX-1.6GF
    assert stage_shapes(13, 24, 36.44, 2.49, 8) == [Stage(24, 1, 8), Stage(56, 1, 8), Stage(152, 4, 8), Stage(368, 7, 8)]
    assert stage_shapes(18, 80, 34.01, 2.25, 24) == [
        Stage(72, 2, 24), Stage(168, 4, 24), Stage(408, 10, 24), Stage(912, 2, 24)
    ]  # fmt: skip


def test_a_stage_narrower_than_a_group_is_one_group():
    first = stage_shapes(27, 640, 230.83, 2.53, 1000)[0]
    assert (first.width, first.group_size) == (640, 640)


def test_torchvisions_checkpoint_loads():
    models = pytest.importorskip("torchvision.models")
    theirs = models.regnet_y_400mf().eval()
    ours = ziggurat.create_model("regnety_004").eval()
    ours.load_state_dict(ours.remap_checkpoint(theirs.state_dict()))
    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_a_classy_vision_checkpoint_gets_our_names():
    model = ziggurat.create_model("regnety_002")
    state_dict = model.state_dict()
    theirs = {
        "conv1.conv": "f.a.0", "conv1.bn": "f.a.1", "conv2.conv": "f.b.0", "conv2.bn": "f.b.1",
        "se.fc1": "f.se.excitation.0", "se.fc2": "f.se.excitation.2", "conv3.conv": "f.c", "conv3.bn": "f.final_bn",
        "downsample.conv": "proj", "downsample.bn": "bn",
    }  # fmt: skip
    trunk, heads = {}, {"0.projection_head.weight": torch.zeros(1)}
    for name, tensor in state_dict.items():
        parts = name.split(".")
        if parts[0] == "stem":
            trunk[f"_feature_blocks.conv1.stem.{('conv', 'bn').index(parts[1])}.{parts[2]}"] = tensor
        elif parts[0] == "head":
            heads[f"0.clf.0.{parts[2]}"] = tensor
        else:
            stage, block = int(parts[0][1:]), int(parts[1][1:])
            part = theirs[".".join(parts[2:4])]
            trunk[f"_feature_blocks.res{stage + 1}.block{stage}-{block - 1}.{part}.{parts[4]}"] = tensor
    found = model.remap_checkpoint({"classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": heads}}}})
    assert found.keys() == state_dict.keys()
    assert all(found[name] is state_dict[name] or torch.equal(found[name], state_dict[name]) for name in found)


def test_our_own_checkpoint_is_left_alone():
    model = ziggurat.create_model("regnetz_005")
    state_dict = model.state_dict()
    assert list(model.remap_checkpoint(state_dict)) == list(state_dict)


@pytest.mark.parametrize("zero_init_last", [True, False])
def test_residual_branches_start_as_zero_where_asked(zero_init_last):
    model = ziggurat.create_model("regnetx_002", zero_init_last=zero_init_last)
    scales = [block.last_norm.weight for block in model.modules() if isinstance(block, Bottleneck)]
    assert len(scales) == 13
    assert all(bool((scale == 0).all()) == zero_init_last for scale in scales)


def test_convolutions_start_with_the_fan_out_of_a_group():
    model = ziggurat.create_model("regnety_032")
    conv = model.s3.b2.conv2.conv
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 24)) ** 0.5, rel=0.02)
    assert not model.s3.b2.se.fc1.bias.any()


def test_what_follows_the_last_stage_is_no_level():
    model = ziggurat.create_model("regnetz_005").eval()
    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        last, levels = model.forward_intermediates(x)
    assert last.shape[1] == model.num_features == 1024
    assert levels[-1].shape[1] == model.feature_info[-1]["num_chs"] == 256
    model.prune_intermediate_layers([4])
    assert not any(name.startswith("final_conv") for name, _ in model.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(x), levels[-1])


def test_stochastic_depth_spans_the_blocks_of_all_stages():
    model = ziggurat.create_model("regnetx_002", drop_path_rate=0.12)
    rates = [model.get_submodule(path).drop_path.drop_prob for path in ("s1.b1", "s2.b1", "s3.b1", "s4.b7")]
    assert rates == pytest.approx([0.0, 0.01, 0.02, 0.12])
