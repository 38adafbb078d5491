"""What is said of the origin of published weights: data sets, licences and gating, against timm's own statements."""

from __future__ import annotations

import dataclasses
import re
from fnmatch import fnmatchcase

import pytest
import timm

import ziggurat
from ziggurat.registry import get_pretrained_cfg
from ziggurat.weights.pretrained import PretrainedCfg
from ziggurat.weights.provenance import data_set_named, data_sets, gated, known_data_sets, licence, provenance

WEIGHTS = {name: get_pretrained_cfg(name) for name in ziggurat.list_pretrained()}
CLASSES = {"imagenet-1k": {1000}, "imagenet-12k": {11821}, "imagenet-21k": {21843, 21841, 11221}, "bamboo-cls": {115217}}

OTHERS = {"pip_in1k": "apache-2.0", "mindcv_in1k": None}  # what publishers that timm does not know state


@pytest.mark.parametrize(
    "tag, expected",
    [
        ("a1_in1k", ("imagenet-1k",)),
        ("augreg_in21k", ("imagenet-21k",)),
        ("fb_in22k_ft_in1k", ("imagenet-21k", "imagenet-1k")),
        ("laion2b_ft_in12k_in1k", ("laion-2b", "imagenet-12k", "imagenet-1k")),
        ("in22k_ft_in22k_in1k", ("imagenet-21k", "imagenet-1k")),
        ("fb_swsl_ig1b_ft_in1k", ("ig-1b", "imagenet-1k")),
        ("openai", ("wit-400m",)),
        ("mae", ("imagenet-1k",)),
        ("lvd142m", ("lvd-142m",)),
        ("c_radio", None),
        ("untrained", None),
        ("", None),
    ],
)
def test_a_tag_names_its_data_in_the_order_of_training(tag, expected):
    assert data_sets(tag) == expected


def test_every_tag_names_its_data_or_is_a_known_mixture():
    mixtures = provenance()["mixtures"]
    for tag in {cfg.tag for cfg in WEIGHTS.values()}:
        assert (data_sets(tag) is None) == any(fnmatchcase(tag, pattern) for pattern in mixtures), tag


def test_the_last_data_set_has_as_many_classes_as_the_classifier():
    """The names' rule against a fact that the names do not state: timm's number of classes."""
    checked = 0
    for name, cfg in WEIGHTS.items():
        last = (data_sets(cfg.tag) or ("",))[-1]
        if cfg.num_classes and last in CLASSES:
            assert cfg.num_classes in CLASSES[last], name
            checked += 1
    assert checked > 600


def test_the_vocabulary_is_what_is_used():
    used = {name for cfg in WEIGHTS.values() for name in data_sets(cfg.tag) or ()}
    assert used == set(known_data_sets())


def test_a_data_set_of_two_names_is_one():
    assert data_set_named("ImageNet-22k") == data_set_named("imagenet-21k") == "imagenet-21k"


def test_licences_are_timms_except_where_the_publisher_is_cited():
    stated = {pattern: row for row in provenance()["stated"] for pattern in row["names"]}
    corrected = set()
    for name, cfg in WEIGHTS.items():
        theirs = OTHERS[cfg.tag] if cfg.tag in OTHERS else getattr(timm.get_pretrained_cfg(name), "license", None)
        patterns = [pattern for pattern in stated if fnmatchcase(name, pattern)]
        if patterns:
            row = stated[patterns[0]]
            assert licence(name, cfg) == (row["license"], row["source"])
            if row["license"] != theirs:
                corrected.add(patterns[0])
        else:
            assert licence(name, cfg)[0] == (None if theirs in (None, "unknown") else theirs), name
    assert corrected == set(stated), "a correction that timm has taken over, or that fits no weights"


def test_sources_are_addresses():
    cited = [row["source"] for row in provenance()["stated"]] + list(provenance()["licenses"].values())
    assert all(re.fullmatch(r"https://\S+", address) for address in cited)
    assert all(re.search(r"arXiv \d{4}\.\d{5}|https://|et al\. \d{4}", said) for said in known_data_sets().values())


def test_what_is_not_stated_is_none():
    assert licence("net.a", PretrainedCfg(license=None)) == (None, None)
    assert licence("net.a", PretrainedCfg(license="unknown")) == (None, None)
    assert licence("net.a", PretrainedCfg(license="MIT")) == ("mit", provenance()["licenses"]["mit"])
    assert licence("net.a", PretrainedCfg(license="home-made")) == ("home-made", None)


@pytest.mark.parametrize("place, expected", [("url", False), ("package", False), ("file", False), ("hf_hub_id", None)])
def test_gated_is_known_of_what_lies_outside_the_hub(place, expected):
    assert gated(dataclasses.replace(PretrainedCfg(), **{place: "somewhere"})) is expected
