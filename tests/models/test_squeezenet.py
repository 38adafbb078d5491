"""SqueezeNet: scores against torchvision and MindCV, levels on the full grid, a head that classifies before pooling."""

import pytest
import torch

import ziggurat
from parity import mindcv
from parity.torchvision_models import TOLERANCE, difference, facts_disagree, redrawn
from ziggurat.errors import BadArgument, UnsupportedPooling
from ziggurat.models.squeezenet import SqueezeNet
from ziggurat.registry import get_pretrained_cfg
from ziggurat.testing import ScoresAndPyramid

NAMES = ("squeezenet1_0", "squeezenet1_1")


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_keys_are_torchvisions(name):
    theirs = redrawn(name)
    ours = ziggurat.create_model(name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for size in (32, 64, 75):
        assert difference(ours, theirs, size) <= TOLERANCE, size
    assert facts_disagree(f"{name}.tv_in1k") == []
    cfg = get_pretrained_cfg(f"{name}.tv_in1k")
    with torch.device("meta"):
        last = ziggurat.create_model(name).forward_features(torch.zeros(1, *cfg.input_size))
    assert cfg.pool_size == tuple(last.shape[2:])


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_mindcvs_gives_its_outputs(name, tmp_path):
    model = ziggurat.create_model(name, checkpoint_path=mindcv.checkpoint(name, tmp_path)).eval()
    mindcv.hold(model, name)


@pytest.mark.parametrize("name, before", [("squeezenet1_0", 1), ("squeezenet1_1", 0)])
def test_levels_hold_the_networks_maps_and_repeat_their_edges(name, before):
    model = ziggurat.create_model(name).eval()
    maps = []
    for level in model.feature_info:
        model.get_submodule(level["module"]).register_forward_hook(lambda module, args, out: maps.append(out))
    x = torch.randn(1, 3, 67, 90)
    with torch.no_grad():
        last, levels = model.forward_intermediates(x)
    assert last is maps[-1]
    for stride, level, own in zip((2, 4, 8, 16), levels, maps):
        rows, columns = -(-67 // stride), -(-90 // stride)
        assert level.shape[2:] == (rows, columns)
        down = torch.arange(rows).sub(before).clamp(0, own.shape[2] - 1)
        right = torch.arange(columns).sub(before).clamp(0, own.shape[3] - 1)
        assert torch.equal(level, own[:, :, down][..., right])


@torch.no_grad()
def test_what_a_spot_of_the_image_changes_lies_in_the_same_place_of_every_level():
    for name in NAMES:
        model = ziggurat.create_model(name).eval()
        for parameter in model.parameters():
            parameter.fill_(1e-2)
        dark, bright = torch.zeros(2, 1, 3, 256, 256)
        bright[..., 120:136, 56:72] = 1.0
        levels = model.pyramid(dark)
        for stride, level in model.pyramid(bright).items():
            change = (level - levels[stride])[0].sum(0)
            centres = (torch.arange(len(change)) + 0.5) * stride
            found = [float((mass * centres).sum() / mass.sum()) for mass in (change.sum(1), change.sum(0))]
            assert abs(found[0] - 128) <= stride / 2 + 1, (name, stride, found)
            assert abs(found[1] - 64) <= stride / 2 + 1, (name, stride, found)


def test_the_head_scores_positions_and_pools_the_scores():
    model = ziggurat.create_model("squeezenet1_1", num_classes=5).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = model.forward_features(x)
        scored = model.get_classifier()(features).relu()
        torch.testing.assert_close(model(x), scored.mean((2, 3)))
        torch.testing.assert_close(model.embed(x), features.mean((2, 3)))
        model.reset_classifier(5, "max")
        torch.testing.assert_close(model(x), model.get_classifier()(features).relu().amax((2, 3)))
        model.reset_classifier(4, "")
        assert model(x).shape == (1, 4, 3, 3)
    with pytest.raises(UnsupportedPooling, match="use '', avg, max or avgmax"):
        ziggurat.create_model("squeezenet1_1", global_pool="catavgmax")


def test_a_network_cut_after_a_level_gets_a_head_that_fits():
    model = ziggurat.create_model("squeezenet1_1")
    model.prune_intermediate_layers([1])
    model.reset_classifier(3, "avg")
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    assert model.head_hidden_size == 128


def test_pools_that_do_not_hang_over_need_larger_images():
    model = ziggurat.create_model("squeezenet1_0.mindcv_in1k").eval()
    with pytest.raises(BadArgument, match="takes 35 x 35 or more"):
        model(torch.randn(1, 3, 34, 64))
    assert [level.shape[2:] for level in model.pyramid(torch.randn(1, 3, 35, 35)).values()] == [
        (18, 18), (9, 9), (5, 5), (3, 3)
    ]  # fmt: skip


@torch.no_grad()
def test_a_stitched_network_exports():
    """Its own maps have fewer cells than the grid that they are stitched on."""
    tiny = SqueezeNet(stem_chs=4, stem_kernel_size=3, stages=[[(2, 4)]] * 3, num_classes=3, output_stride=8)
    views = ScoresAndPyramid(tiny.eval())
    x = torch.randn(1, 3, 32, 33)
    found, wanted = torch.export.export(views, (x,)).module()(x), views(x)
    assert list(found) == ["scores", "stride 2", "stride 4", "stride 8"]
    for view, value in found.items():
        torch.testing.assert_close(value, wanted[view])
