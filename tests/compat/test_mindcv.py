"""MindCV's names, entry points and lists of levels."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest
import timm
import torch

import ziggurat
from commanding import ziggurat_
from parity import mindcv as oracle
from ziggurat import registry
from ziggurat.backbone.base import draws_weights
from ziggurat.compat import mindcv
from ziggurat.errors import BadArgument, UnknownModel
from ziggurat.testing import CHECKS, check_backbone

LEVELS = json.loads((Path(__file__).parents[1] / "parity" / "mindcv_levels.json").read_text(encoding="utf-8"))
"""Channels and reductions of all levels of every network that MindCV gives levels of."""
NAMES = registry.mindcv_names()["names"]
ABSENT = registry.mindcv_names()["absent"]
RENAMED = {theirs: ours for names in NAMES.values() for theirs, ours in names.items() if ours not in (None, theirs)}

renames = pytest.mark.filterwarnings("ignore:.* is MindCV's name:UserWarning")


def on_meta(name: str, **kwargs: object) -> ziggurat.Backbone:
    drawn = draws_weights.set(False)
    try:
        with torch.device("meta"):
            return mindcv.create_model(name, **kwargs)
    finally:
        draws_weights.reset(drawn)


# -------------------------------------------------------------------- names


def test_every_name_is_one_here_or_says_which_it_will_be():
    flat = {theirs: ours for names in NAMES.values() for theirs, ours in names.items()}
    assert (len(NAMES), len(flat)) == (52, 275)
    known, to_come = set(ziggurat.list_models()), set(timm.list_models())
    for theirs, ours in flat.items():
        if ours in known:
            assert registry.is_model(theirs)
            assert registry.model_info(theirs).name == ours
            continue
        assert not registry.is_model(theirs)
        assert (ours is None) == (theirs in ABSENT)
        assert ours is None or ours in to_come
        with pytest.raises(UnknownModel, match=re.escape(ABSENT[theirs] if ours is None else "its family is not here yet")) as told:
            ziggurat.create_model(theirs)
        assert ours is None or ours in str(told.value)


def test_a_name_of_mindcvs_is_answered_with_ours():
    with torch.device("meta"), pytest.warns(UserWarning, match="mobilenet_v3_small_100 is MindCV's name.* mobilenetv3_small_100 here"):
        model = ziggurat.create_model("mobilenet_v3_small_100", num_classes=7)
    assert (model.architecture, model.num_classes) == ("mobilenetv3_small_100", 7)
    assert ziggurat.model_info("mobilenet_v3_small_100.lamb_in1k").pretrained.keys() == {"lamb_in1k"}
    with torch.device("meta"), pytest.warns(UserWarning, match="is MindCV's name"):
        assert ziggurat.model_entrypoint("mobilenet_v3_small_100")().num_classes == 1000


def test_other_names_are_answered_as_before():
    with pytest.raises(UnknownModel, match="nearest are mobilenetv3_small_100"):
        ziggurat.create_model("mobilenetv3_small_10")
    assert not RENAMED.keys() & ziggurat.get_deprecated_models().keys()
    assert not RENAMED.keys() & set(ziggurat.list_models())


def test_an_unknown_name_is_answered_with_mindcvs():
    for make in (mindcv.create_model, mindcv.model_entrypoint):
        with pytest.raises(UnknownModel, match="no model 'bit_resnet50': nearest are BiT_resnet50, "):
            make("bit_resnet50")
    with pytest.raises(UnknownModel, match="no model 'resnet5O': nearest are resnet50, "):
        mindcv.create_model("resnet5O")


@pytest.mark.parametrize("create_model", [mindcv.create_model, ziggurat.create_model])
def test_no_name_at_all(create_model):
    with pytest.raises(BadArgument, match="model_name=None: give the name of an architecture"):
        create_model(None)


def test_channels_under_either_name():
    assert on_meta("resnet18").in_chans == 3
    assert on_meta("resnet18", in_chans=1).in_chans == on_meta("resnet18", in_channels=1).in_chans == 1
    with torch.device("meta"):
        assert mindcv.model_entrypoint("resnet18")(in_chans=1).in_chans == 1
    with pytest.raises(BadArgument, match="in_chans=1 and in_channels=3 are two names of one argument"):
        on_meta("resnet18", in_chans=1, in_channels=3)


def test_a_users_architecture_wins(monkeypatch):
    def rexnet_09(pretrained=False, **kwargs):
        return torch.nn.Identity()

    monkeypatch.setattr(registry, "_registered", {})
    ziggurat.register_model(rexnet_09)
    assert isinstance(ziggurat.create_model("rexnet_09"), torch.nn.Identity)
    assert mindcv.model_entrypoint("rexnet_09") is rexnet_09
    assert "rexnet_09" in mindcv.list_models(module=__name__.rpartition(".")[2])


@pytest.mark.filterwarnings("default:.* is MindCV's name:UserWarning")
def test_the_command_knows_mindcvs_names():
    printed, told = ziggurat_("info", "mobilenet_v3_small_100")
    assert printed.splitlines()[0] == "mobilenetv3_small_100"
    assert told == "ziggurat: mobilenet_v3_small_100 is MindCV's name; it is called mobilenetv3_small_100 here.\n"
    _, told = ziggurat_("list", "mobilenet_v3_small*", status=1)
    assert "mobilenet_v3_small_075 is mobilenetv3_small_075, mobilenet_v3_small_100 is mobilenetv3_small_100" in told


# -------------------------------------------------------------------- listing


def test_listing_is_by_mindcvs_names():
    names = mindcv.list_models()
    assert names == sorted(names)
    assert {"resnet50", "mobilenet_v2_035_96", "regnet_x_200mf"} <= set(names)
    assert not set(names) & ABSENT.keys()
    assert mindcv.list_models("mobilenet_v3_*", exclude_filters="*_075") == ["mobilenet_v3_large_100", "mobilenet_v3_small_100"]
    assert mindcv.list_models(module="resnest", filter=["*14", "*26"]) == ["resnest14", "resnest26"]
    assert {"mobilenetv3", "resnet"} <= set(mindcv.list_modules()) <= NAMES.keys()
    assert mindcv.is_model("mobilenet_v3_large_100")
    assert not mindcv.is_model("mobilenet_v4_large_100")
    with pytest.raises(UnknownModel):
        mindcv.model_entrypoint("mobilenet_v4_large_100")


def test_pretrained_are_those_with_weights_of_mindcvs():
    assert mindcv.list_models("mobilenet_v2_1?0*", pretrained=True, exclude_filters="*_100_*") == ["mobilenet_v2_100", "mobilenet_v2_140"]
    assert mindcv.list_models("resnet*", module="resnet") == mindcv.list_models("resnet*", module="resnet", pretrained=True)
    assert mindcv.list_models("resnest*", pretrained=True) == ["resnest101", "resnest50"]


# -------------------------------------------------------------------- levels


@renames
@pytest.mark.parametrize("module", sorted({module for module, names in NAMES.items() if names.keys() & LEVELS.keys()}))
def test_levels_are_mindcvs(module):
    names = {theirs: ours for theirs, ours in NAMES[module].items() if theirs in LEVELS}
    assert names == NAMES[module]
    seen = set()
    for theirs, ours in names.items():
        channels, reductions = LEVELS[theirs]
        if module not in mindcv.LEVELS_PER:
            levels = ziggurat.model_info(theirs).levels
            assert [level["channels"] for level in levels] == channels, theirs
            assert [level["reduction"] for level in levels] == reductions, theirs
        elif ours not in seen:  # of an architecture that MindCV has for several sizes of image, one
            info = on_meta(theirs, features_only=True, out_indices=range(len(channels))).feature_info
            assert (info.channels(), info.reduction(), len(info)) == (channels, reductions, len(channels)), theirs
            seen.add(ours)


def test_all_networks_with_levels_are_covered():
    assert len(LEVELS) == 83


@renames
@pytest.mark.parametrize(("name", "channels"), [
    ("mobilenet_v3_small_100", [16, 16, 24, 24, 40]), ("efficientnet_b0", [32, 16, 24, 40, 80]),
    ("convnextv2_atto", [40, 80, 160, 320]), ("resnet18", [64, 64, 128, 256, 512]),
])  # fmt: skip
def test_levels_given_out_unless_told(name, channels):
    model = on_meta(name, features_only=True)
    assert model.out_channels == channels == [level.shape[1] for level in model(torch.zeros(1, 3, 64, 64, device="meta"))]


@renames
def test_levels_come_in_the_order_asked_for():
    model = on_meta("mobilenet_v3_small_100", features_only=True, out_indices=[3, 1, -1])
    assert model.out_channels == [24, 16, 576]
    maps = model(torch.zeros(1, 3, 64, 64, device="meta"))
    assert isinstance(maps, list)
    assert [tuple(level.shape[1:]) for level in maps] == [(24, 8, 8), (16, 16, 16), (576, 2, 2)]


def test_our_names_are_taken_too_with_mindcvs_levels():
    assert on_meta("mobilenetv3_small_100", features_only=True, out_indices=[12]).out_channels == [576]


@renames
@pytest.mark.parametrize(("indices", "said"), [([0, 13], "no level 13"), ([-14], "no level -14"), ([1, 1], "twice"), ([], "empty")])
def test_levels_that_mindcv_would_drop_in_silence(indices, said):
    with pytest.raises(BadArgument, match=said):
        on_meta("mobilenet_v3_small_100", features_only=True, out_indices=indices)


@renames
def test_keys_are_those_of_the_whole_network():
    whole = on_meta("mobilenet_v2_035_224").state_dict()
    for indices in ([0], [7], None):
        part = on_meta("mobilenet_v2_035_224", features_only=True, out_indices=indices).state_dict()
        assert part.keys() < whole.keys()


@renames
def test_a_finer_choice_of_levels_is_kept_and_saved(tmp_path):
    model = mindcv.create_model("mobilenet_v3_small_075", features_only=True, out_indices=[2, 5], in_channels=1).eval()
    ziggurat.save(model, tmp_path / "saved")
    again = ziggurat.load(tmp_path / "saved").eval()
    x = torch.randn(1, 1, 40, 52)
    assert again.out_channels == model.out_channels
    assert all(torch.equal(a, b) for a, b in zip(model(x), again(x)))


def test_a_level_per_stage_or_block_is_on_the_contract():
    for name, part in (("mobilenetv3_small_050", "block"), ("mobilenetv2_035", "stage")):
        check_backbone(functools.partial(ziggurat.create_model, name, levels_per=part), 48,
                       skip=CHECKS.keys() - {"levels", "features_only", "pruning"})
    with pytest.raises(BadArgument, match="'stride', 'stage' or 'block'"):
        ziggurat.create_model("mobilenetv2_035", levels_per="level")


@renames
def test_fine_tuned_autoencoders_pool_their_patches():
    assert {name for name, _ in on_meta("mae_b_16_224_finetune").named_parameters() if "norm." in name} == {"fc_norm.weight", "fc_norm.bias"}


@renames
def test_networks_without_levels_in_mindcv_have_ours():
    assert on_meta("regnet_x_200mf", features_only=True).feature_info.reduction() == [2, 4, 8, 16, 32]


# -------------------------------------------------------------------- numbers


@renames
@pytest.mark.parametrize("name", ["mobilenet_v2_035_224", "mobilenet_v3_small_100", "efficientnet_b0"])
def test_every_level_is_mindcvs(name, tmp_path):
    path = oracle.checkpoint(name, tmp_path)
    count = len(LEVELS[name][0])
    model = mindcv.create_model(name, checkpoint_path=path, features_only=True, out_indices=range(count)).eval()
    for size in oracle.sizes(name):
        with torch.no_grad():
            maps = model(oracle.images(size))
        found = [oracle.difference(name, size, f"level{i}", level) for i, level in enumerate(maps)]
        assert len(found) == count
        assert max(found) <= 1e-5, found


def test_numbers_are_mindcvs_by_its_tag():
    assert mindcv.create_model("resnet18").pretrained_cfg["tag"] == "mindcv_in1k"
    assert mindcv.create_model("resnet18.a1_in1k").pretrained_cfg["tag"] == "a1_in1k"
    assert ziggurat.create_model("resnet18").pretrained_cfg["tag"] != "mindcv_in1k"


def test_a_checkpoint_and_published_weights_exclude_each_other(tmp_path):
    with pytest.raises(BadArgument, match="one of the two"):
        mindcv.create_model("resnet18", pretrained=True, checkpoint_path=tmp_path / "resnet18.ckpt")
