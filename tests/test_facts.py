"""`model_info`: a record whose facts are attributes and entries, and agree with the model that is built."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import types

import pytest
import torch

import ziggurat
from ziggurat import ModelInfo, WeightsInfo, model_info, registry
from ziggurat.errors import UnknownModel, UnknownTag
from ziggurat.facts import Fact, size_rule


def facts_of(cls):
    return {name: value for name, value in vars(cls).items() if isinstance(value, Fact)}


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_facts_are_those_of_the_model(name):
    info = model_info(name)
    with torch.device("meta"):
        model = ziggurat.create_model(name).eval()
    assert info.class_name == type(model).__name__
    assert info.params == sum(p.numel() for p in model.parameters())
    assert info.channels == tuple(model.feature_info.channels())
    assert info.strides == tuple(model.feature_info.reduction())
    with torch.device("meta"):
        assert model.embed(torch.zeros(2, *info.input_size)).shape == (2, info.embedding)


@pytest.mark.parametrize("record", [model_info("resnet18"), model_info("resnet18").pretrained["a1_in1k"]], ids=repr)
def test_every_fact_is_documented_and_an_entry_too(record):
    declared = facts_of(type(record))
    for name, fact in declared.items():
        assert fact.__doc__
        assert getattr(record, name) == record[fact.key]
    assert list(record)[: len(declared)] == [fact.key for fact in declared.values()]
    assert set(declared) <= set(dir(record))
    with pytest.raises(AttributeError, match="can be read, not set"):
        record.name = "another"
    with pytest.raises(AttributeError):
        _ = record.no_such_fact


def test_every_architecture_has_every_fact_measured():
    needed = facts_of(ModelInfo).keys() - {"prefix_tokens", "embedding"}
    for info in map(model_info, registry.catalog()):
        assert not [fact for fact in needed if getattr(info, fact) is None], info


def test_it_is_a_dict_that_json_and_pickle_take():
    info = model_info("vit_tiny_patch16_224")
    again = json.loads(json.dumps(info))
    assert again["params"] == info["params"] == dict(info)["params"]
    assert again["pretrained"]["augreg_in21k_ft_in1k"]["datasets"] == ["imagenet-21k", "imagenet-1k"]
    for other in (copy.deepcopy(info), pickle.loads(pickle.dumps(info))):
        assert type(other) is ModelInfo
        assert other == info
    info.levels[0]["channels"] = -1
    assert model_info("vit_tiny_patch16_224").channels[0] == model_info("vit_tiny_patch16_224").levels[0]["channels"] == 192


def test_the_rule_of_sizes_says_what_the_flags_say():
    row = {"input_size": [3, 224, 192], "min_size": 32, "native_size_only": False}
    assert size_rule(row) == "height and width of 32 px or more; maps of H / stride x W / stride, rounded up"
    assert "32 px or more, brought to 224 x 192;" in size_rule(row | {"native_size_only": True})


def test_output_strides_are_keyed_by_number():
    info = model_info("resnet18")
    assert {8, 16} <= set(info.output_strides)
    for asked, way in info.output_strides.items():
        assert way["stride"] <= asked
        assert way["macs"] >= info.macs or way["how"] == "native"
    assert info.output_strides[8]["how"] == "dilated"
    assert model_info("vit_tiny_patch16_224").output_strides[8]["how"] == "stitched"


def test_weights():
    info = model_info("resnet50")
    assert next(iter(info.pretrained)) == ziggurat.get_pretrained_cfg("resnet50").tag == "a1_in1k"
    weights = info.pretrained["a1_in1k"]
    assert (weights.name, weights.tag, weights.license) == ("resnet50.a1_in1k", "a1_in1k", "apache-2.0")
    assert (weights.datasets, weights.num_classes, weights.hf_hub_id) == (("imagenet-1k",), 1000, "timm/resnet50.a1_in1k")
    assert (weights.input_size, weights.test_input_size) == ((3, 224, 224), (3, 288, 288))
    assert weights.gated is False
    assert model_info("vit_base_patch16_224").pretrained["mae"].license == "cc-by-nc-4.0"
    assert model_info("res2net50d").pretrained["in1k"].license is None
    assert model_info("tf_efficientnet_lite0").pretrained["pip_in1k"].url is None
    only = model_info("resnet50.a1_in1k")
    assert list(only.pretrained) == ["a1_in1k"]
    assert only.name == "resnet50"


def test_tags_without_weights_are_no_weights():
    assert ziggurat.get_pretrained_cfg("resnet200").tag == "untrained"
    assert model_info("resnet200").pretrained == {}


def test_one_line_says_the_most_of_it():
    assert repr(model_info("resnet18.a1_in1k")) == (
        "<ModelInfo resnet18: 11.7 M parameters, 1.81 GMACs at 3 x 224 x 224, strides 2 4 8 16 32, 512 numbers, 1 pretrained>"
    )
    assert repr(model_info("resnet18").pretrained["fb_ssl_yfcc100m_ft_in1k"]) == (
        "<WeightsInfo resnet18.fb_ssl_yfcc100m_ft_in1k: yfcc-100m > imagenet-1k, 224 px, cc-by-nc-4.0>"
    )
    assert "data not stated" in repr(model_info("aimv2_large_patch14_224").pretrained["apple_pt"])
    assert "licence not stated" in repr(model_info("res2net50d").pretrained["in1k"])


def test_names_that_are_not_there():
    with pytest.raises(UnknownModel, match="nearest are resnet18"):
        model_info("resnet18x")
    with pytest.raises(UnknownTag, match="no_such_tag"):
        model_info("resnet18.no_such_tag")


@pytest.fixture
def own(monkeypatch):
    """A function of a user's own under the name of an architecture of ours, with weights of its own."""
    module = types.ModuleType("own_module")
    module.default_cfgs = ziggurat.generate_default_cfgs({"resnet18.mine": dict(hf_hub_id="me/", license="MIT")})
    monkeypatch.setitem(sys.modules, "own_module", module)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))

    def resnet18(pretrained=False, **kwargs):
        raise NotImplementedError

    resnet18.__module__ = "own_module"
    with pytest.warns(UserWarning, match="Overwriting resnet18"):
        ziggurat.register_model(resnet18)


@pytest.mark.usefixtures("own")
def test_a_users_own_architecture_is_not_measured():
    info = model_info("resnet18")
    assert (info.name, info.module, info.params, info.levels, info.output_strides) == ("resnet18", "own_module", *[None] * 3)
    assert info.pretrained["mine"].license == "mit"
    assert info.pretrained["mine"].hf_hub_id == "me/resnet18.mine"
    assert repr(info) == "<ModelInfo resnet18: not measured, 1 pretrained>"
    assert isinstance(info.pretrained["mine"], WeightsInfo)
    assert ziggurat.search("resnet18", license="mit") == ["resnet18.mine"]
    assert ziggurat.search("resnet18", max_params=1e9) == []
    assert ziggurat.search("resnet18*", stride=4)[0] == "resnet18d"
    assert ziggurat.search("resnet18*", sort="-params")[-1] == "resnet18"
