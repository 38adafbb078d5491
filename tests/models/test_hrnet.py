"""HRNet: outputs against timm and MindCV, levels of parallel branches, what pyramids hold and run."""

import pytest
import timm
import torch

import ziggurat
from parity import mindcv
from parity.oracle import TOLERANCE, compare, difference, redraw
from ziggurat.errors import BadArgument
from ziggurat.models.hrnet import HighResolutionNet

SIZE = 64


def stage(branches, modules=1, block_type="BASIC"):
    return dict(num_modules=modules, num_branches=branches, block_type=block_type, num_blocks=(1,) * branches,
                num_channels=tuple(4 * 2**i for i in range(branches)), fuse_method="SUM")


SMALL = dict(stage1=stage(1, block_type="BOTTLENECK"), stage2=stage(2), stage3=stage(3), stage4=stage(4, 2))


def small(**kwargs):
    return HighResolutionNet(**SMALL | dict(num_classes=3) | kwargs)


@pytest.mark.parametrize("name, kwargs", [
    ("hrnet_w18_small", {}),
    ("hrnet_w18_ssld", SMALL | dict(stage3=stage(3, 3), num_classes=3, global_pool="avgmax")),
])  # fmt: skip
def test_outputs_are_timms(name, kwargs):
    found = compare(name, SIZE, **kwargs)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("location", ["incre", ""])
def test_pyramids_of_either_location_have_timms_keys_and_maps(location):
    arguments = dict(features_only=True, feature_location=location, **SMALL)
    theirs = timm.create_model("hrnet_w18", **arguments).eval()
    redraw(theirs)
    ours = ziggurat.create_model("hrnet_w18", **arguments).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        for level, wanted in zip(ours(x), theirs(x), strict=True):
            assert difference(level, wanted) <= 1e-6


def test_where_levels_are_taken_leaves_the_scores_as_they_are():
    widened, plain = small().eval(), small(feature_location="").eval()
    plain.load_state_dict(widened.state_dict())
    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), widened(x), rtol=0, atol=0)
        branches = plain.forward_intermediates(x, intermediates_only=True)[1:]
        for widen, branch, level in zip(widened.incre_modules, branches, widened.pyramid(x, (4, 8, 16, 32)).values()):
            torch.testing.assert_close(widen(branch), level, rtol=0, atol=0)


@pytest.mark.parametrize("location", ["incre", ""])
def test_a_finer_pyramid_holds_nothing_that_fuses_coarser_branches(location):
    model = small(feature_location=location).eval()
    x = torch.randn(1, 3, SIZE, SIZE)
    wanted = model.pyramid(x, 8)[8]
    model.keep_levels((2,))
    assert [len(module.fuse_layers) for module in model.stage4] == [4, 2]
    assert len(model.stage4[-1].branches) == 4  # all of them are in each sum
    assert (model.incre_modules is None) == (not location)
    torch.testing.assert_close(model(x)[0], wanted, rtol=0, atol=0)


def test_one_level_does_not_run_what_makes_coarser_ones():
    model = small().eval()
    ran = []
    for i, fuse in enumerate(model.stage4[-1].fuse_layers):
        fuse[0].register_forward_hook(lambda module, args, out, i=i: ran.append(i))
    with torch.no_grad():
        model.pyramid(torch.randn(1, 3, SIZE, SIZE), (4, 8))
    assert ran == [0, 1]


def test_freezing_holds_the_levels_up_to_one_and_trains_the_others():
    model = small()
    model.freeze(upto=1)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith(("stage3", "stage4.0", "incre_modules.0")) for name in trains)
    assert all(any(name.startswith(f"stage4.1.fuse_layers.{i}.") for name in trains) == (i > 0) for i in range(4))


@pytest.mark.parametrize("sides, kwargs", [((32, 33), {}), ((75, 50), dict(stage3=stage(3, block_type="BOTTLENECK")))])
def test_branches_take_the_size_of_those_they_join(sides, kwargs):
    model = small(**kwargs).eval()
    with torch.no_grad():
        levels = model.forward_intermediates(torch.randn(1, 3, *sides), intermediates_only=True)
    assert [tuple(level.shape[2:]) for level in levels] == model.feature_info.sizes(*sides)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return mindcv.checkpoint("hrnet_w32", tmp_path_factory.mktemp("mindcv"))


def test_outputs_are_mindcvs(checkpoint):
    model = ziggurat.create_model("hrnet_w32", checkpoint_path=checkpoint).eval()
    assert mindcv.sizes("hrnet_w32") == [64, 75]
    assert mindcv.hold(model, "hrnet_w32") == 6


def test_outputs_are_mindcvs_to_the_precision_of_float16_where_it_rounds_branches(checkpoint):
    model = ziggurat.create_model("hrnet_w32.mindcv_in1k", checkpoint_path=checkpoint).eval()
    with torch.no_grad():
        features, levels = model.forward_intermediates(mindcv.images(64))
        assert mindcv.difference("hrnet_w32", 64, "logits", model.forward_head(features)) <= 1e-4
        for i, level in enumerate(levels):
            assert mindcv.difference("hrnet_w32", 64, f"level{i}", level) <= torch.finfo(torch.float16).eps / 2


def test_a_pyramid_of_mindcvs_weights(checkpoint):
    model = ziggurat.create_model("hrnet_w32", checkpoint_path=checkpoint, features_only=True, out_indices=(1, 0)).eval()
    with torch.no_grad():
        for index, level in zip((1, 0), model(mindcv.images(64))):
            assert mindcv.difference("hrnet_w32", 64, f"unrounded/level{index}", level) <= 1e-5


@pytest.mark.parametrize("kwargs, said", [
    (dict(feature_location="head"), "feature_location='head'"),
    (dict(stage3=stage(2)), "stage3 of 2 branches: give it 3"),
    (dict(stage2=stage(2, block_type="Basic")), "block_type='Basic': give one of BASIC, BOTTLENECK"),
    (dict(stage2=stage(2) | dict(fuse_method="CAT")), "fuse_method='CAT'"),
    (dict(stage2=stage(2) | dict(num_branches=3)), "give as many numbers of blocks and channels"),
])  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(kwargs, said):
    with pytest.raises(BadArgument, match=said):
        small(**kwargs)
