"""ShuffleNet V2: scores against torchvision and MindCV, where channels are shuffled, widths of the first unit."""

import pytest
import torch

import ziggurat
from parity import mindcv
from parity.torchvision_models import TOLERANCE, difference, facts_disagree, redrawn
from ziggurat.errors import BadArgument
from ziggurat.models.shufflenetv2 import ShuffleNetV2

TINY = dict(channels=(6, 20, 40, 80, 64), depths=(2, 2, 2), num_classes=3)
TAGS = {"shufflenet_v2_x0_5": "tv", "shufflenet_v2_x1_0": "tv", "shufflenet_v2_x1_5": "tv2", "shufflenet_v2_x2_0": "tv2"}


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "shufflenet_v2_x1_0"])
def test_outputs_and_keys_are_torchvisions(name):
    theirs = redrawn(name)
    ours = ziggurat.create_model(name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for size in (64, 75):
        assert difference(ours, theirs, size) <= TOLERANCE, size


def test_what_is_said_of_torchvisions_weights():
    for name, tag in TAGS.items():
        assert facts_disagree(f"{name}.{tag}_in1k") == [], name


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "shufflenet_v2_x1_0"])
def test_a_checkpoint_of_mindcvs_gives_its_outputs(name, tmp_path):
    model = ziggurat.create_model(name, checkpoint_path=mindcv.checkpoint(name, tmp_path)).eval()
    mindcv.hold(model, name)


def test_a_pyramid_and_other_classes_take_mindcvs_checkpoint(tmp_path):
    path = mindcv.checkpoint("shufflenet_v2_x0_5", tmp_path)
    name = "shufflenet_v2_x0_5.mindcv_in1k"
    whole = ziggurat.create_model(name, checkpoint_path=path).eval()
    part = ziggurat.create_model(name, checkpoint_path=path, features_only=True, out_strides=(8, 16)).eval()
    with torch.no_grad():
        levels = whole.pyramid(mindcv.images(64), strides=(8, 16))
        assert all(torch.equal(level, levels[stride]) for level, stride in zip(part(mindcv.images(64)), (8, 16)))


def test_the_first_unit_widens_both_branches_or_one():
    both, one = (ShuffleNetV2(**TINY, widens_first=widens).stage2[0] for widens in (True, False))
    assert [branch[-2].num_features for branch in (both.branch1, both.branch2)] == [10, 10]
    assert [branch[-2].num_features for branch in (one.branch1, one.branch2)] == [6, 14]


@pytest.mark.parametrize("shuffles_first, passed_on, comes_out", [
    (False, slice(10), slice(None, None, 2)),
    (True, slice(None, None, 2), slice(10)),
])  # fmt: skip
@torch.no_grad()
def test_where_channels_are_shuffled(shuffles_first, passed_on, comes_out):
    strided, plain = ShuffleNetV2(**TINY, shuffles_first=shuffles_first).eval().stage2
    x = torch.randn(1, 20, 8, 8)
    assert torch.equal(plain(x)[:, comes_out], x[:, passed_on])
    stem = torch.randn(1, 6, 8, 8)
    assert torch.equal(strided(stem)[:, comes_out], strided.branch1(stem))


def test_paddings_of_the_pool():
    with pytest.raises(BadArgument, match="pool_pad_type='valid'"):
        ziggurat.create_model("shufflenet_v2_x0_5", pool_pad_type="valid")
