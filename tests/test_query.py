"""`search` against a slow and plain selection by `model_info`, and what it says of values that do not exist."""

from __future__ import annotations

import pytest

import ziggurat
from ziggurat import list_models, model_info, search
from ziggurat.errors import BadArgument

INFOS = {name: model_info(name) for name in list_models()}
WEIGHTS = {weights.name: (info, weights) for info in INFOS.values() for weights in info.pretrained.values()}


def architectures(condition):
    return [name for name, info in INFOS.items() if condition(info)]


def weights(condition):
    return {name for name, (info, found) in WEIGHTS.items() if condition(info, found)}


CONDITIONS = [
    (dict(stride=4), lambda i: 4 in i.strides),
    (dict(stride=[4, 8, 16, 32]), lambda i: {4, 8, 16, 32} <= set(i.strides)),
    (dict(stride=14), lambda i: 14 in i.strides),
    (dict(min_params=5e6, max_params=6e6), lambda i: 5e6 <= i.params <= 6e6),
    (dict(max_params=INFOS["resnet18"].params, min_params=INFOS["resnet18"].params), lambda i: i.params == 11689512),
    (dict(max_macs=2e8), lambda i: i.macs <= 2e8),
    (dict(max_activations=1e6), lambda i: i.activations <= 1e6),
    (dict(min_embedding=768, max_embedding=768), lambda i: i.embedding == 768),
    (dict(min_input_size=448), lambda i: max(i.input_size[1:]) >= 448),
    (dict(max_input_size=176, module="resnet"), lambda i: i.module == "resnet" and i.input_size[1] <= 176),
    (dict(filter="vit_small*", exclude_filters="*384*"), lambda i: i.name.startswith("vit_small") and "384" not in i.name),
    (dict(native_size_only=True), lambda i: i.native_size_only),
    (dict(native_size_only=False, max_params=5e6), lambda i: not i.native_size_only and i.params <= 5e6),
    (dict(output_stride=8), lambda i: 8 in i.output_strides),
    (dict(output_stride=8, how="dilated"), lambda i: i.output_strides.get(8, {}).get("how") == "dilated"),
    (dict(output_stride=8, how="stitched", max_macs=3e10),
     lambda i: 8 in i.output_strides and i.output_strides[8]["how"] == "stitched" and i.output_strides[8]["macs"] <= 3e10),
]  # fmt: skip


@pytest.mark.parametrize("asked, condition", CONDITIONS, ids=lambda value: repr(value) if isinstance(value, dict) else "")
def test_architectures(asked, condition):
    found = search(**asked)
    assert found == architectures(condition)
    assert len(found) < len(INFOS) or asked == dict(output_stride=8)
    assert found or asked == dict(native_size_only=True)


OF_WEIGHTS = [
    (dict(pretrained=True, module="regnet"), lambda i, w: i.module == "regnet"),
    (dict(license="apache-2.0", stride=4, max_params=30e6, pretrained=True),
     lambda i, w: w.license == "apache-2.0" and 4 in i.strides and i.params <= 30e6),
    (dict(license=["MIT", "bsd-3-clause"]), lambda i, w: w.license in ("mit", "bsd-3-clause")),
    (dict(dataset="imagenet-22k"), lambda i, w: "imagenet-21k" in (w.datasets or ())),
    (dict(dataset=["laion-2b", "laion-400m"]), lambda i, w: {"laion-2b", "laion-400m"} & set(w.datasets or ())),
    (dict(pretrained=True, min_input_size=512), lambda i, w: max(w.input_size[1:]) >= 512),
    (dict(license="mit", dataset="wit-400m", max_macs=5e9),
     lambda i, w: w.license == "mit" and "wit-400m" in (w.datasets or ()) and i.macs <= 5e9),
]  # fmt: skip


@pytest.mark.parametrize("asked, condition", OF_WEIGHTS, ids=lambda value: repr(value) if isinstance(value, dict) else "")
def test_weights(asked, condition):
    found = search(**asked)
    assert set(found) == weights(condition)
    assert 0 < len(found) == len(set(found)) < len(WEIGHTS)
    assert found == [name for name in list_models(pretrained=True) if name in found], "in the order of list_models"


def test_nothing_asked_is_everything():
    assert search() == list_models()
    assert search(pretrained=True) == list_models(pretrained=True)


def test_a_licence_that_is_not_stated_is_never_found():
    named = {name for licence in {w.license for _, w in WEIGHTS.values() if w.license} for name in search(license=licence)}
    assert named == weights(lambda i, w: w.license is not None) != set(WEIGHTS)


@pytest.mark.parametrize("key", ["params", "macs", "activations", "embedding"])
def test_order(key):
    ahead = search("res*", sort=key)
    figures = [INFOS[name][key] for name in ahead]
    assert figures == sorted(figures)
    assert [INFOS[name][key] for name in search("res*", sort=f"-{key}")] == figures[::-1]
    assert ahead == sorted(search("res*"), key=lambda name: INFOS[name][key]), "natural order among equals"


def test_order_of_names_sizes_and_what_is_not_known():
    assert search("resnet1*", sort="-name") == search("resnet1*")[::-1]
    sizes = [WEIGHTS[name][1].input_size[1] for name in search("resnet50.*", pretrained=True, sort="input_size")]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 1
    costs = [INFOS[name].output_strides[8]["macs"] for name in search("resnet*", output_stride=8, sort="macs")]
    assert costs == sorted(costs)


@pytest.mark.parametrize(
    "asked, said",
    [
        (dict(license="gpl-3.0"), "no license 'gpl-3.0': there are apache-2.0, .*mit.*"),
        (dict(license=["mit", "unknown"]), "no license 'unknown': there are apache-2.0"),
        (dict(dataset="imagenet-1000"), "no dataset 'imagenet-1000': nearest are imagenet-1k"),
        (dict(module="resnt"), "no module 'resnt': nearest are resnet"),
        (dict(stride=5), r"no stride 5: there are 1, 2, 4, 8, 14, 16, 32"),
        (dict(stride=(4, 64)), "no stride 64: there are"),
        (dict(output_stride=5), "no output_stride 5: there are .*8, 16"),
        (dict(output_stride=8, how="magic"), "no how 'magic': there are dilated, .*stitched"),
        (dict(how="dilated"), "give output_stride=8"),
        (dict(sort="size"), "no sort 'size': there are name, params, macs, activations, embedding, input_size"),
    ],
    ids=repr,
)
def test_values_that_do_not_exist(asked, said):
    with pytest.raises(BadArgument, match=said):
        search(**asked)


def test_it_is_public():
    assert ziggurat.search is search
    assert "search" in ziggurat.__all__
