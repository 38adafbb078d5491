"""Class names: timm's for every index of every set, and one's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import timm.data as oracle

import ziggurat.data as data
from ziggurat.errors import BadArgument

SUBSETS = ["imagenet-1k", "imagenet-12k", "imagenet-21k", "imagenet-21k-goog", "imagenet-21k-miil", "imagenet-22k"]


@pytest.mark.parametrize("subset", [*SUBSETS, "imagenet-22k-ms", "ImageNet 1K"])
def test_every_class_is_called_as_in_timm(subset: str) -> None:
    ours, theirs = data.ImageNetInfo(subset), oracle.ImageNetInfo(subset)
    assert ours.num_classes() == theirs.num_classes()
    assert ours.label_names() == theirs.label_names()
    for detailed in (False, True):
        assert ours.label_descriptions(detailed) == theirs.label_descriptions(detailed)
        assert ours.label_descriptions(detailed, as_dict=True) == theirs.label_descriptions(detailed, as_dict=True)
    last = ours.num_classes() - 1
    for index in (0, 7, last):
        assert ours.index_to_label_name(index) == theirs.index_to_label_name(index)
        assert ours.index_to_description(index, detailed=True) == theirs.index_to_description(index, detailed=True)
    assert ours.label_indices() == theirs.label_indices()
    assert ours.has_label(last)
    assert not ours.has_label(last + 1)
    with pytest.raises(BadArgument, match=f"0 to {last}"):
        ours.index_to_label_name(last + 1)


def test_facts_by_hand() -> None:
    info = data.ImageNetInfo()
    assert info.index_to_label_name(0) == "n01440764"
    assert info.index_to_description(0) == "tench, Tinca tinca"
    assert info.label_name_to_description("n00004475") == "organism, being"  # of the 22k only
    with pytest.raises(BadArgument, match="no synset"):
        info.label_name_to_description("n99999999")
    with pytest.raises(BadArgument, match="imagenet-22k-ms"):
        data.ImageNetInfo("imagenet-23k")


@pytest.mark.parametrize("count", [0, None, 10, 1000, 11221, 11821, 21841, 21842, 21843])
def test_subset_is_inferred_as_in_timm(count: int | None) -> None:
    for thing in (
        {"num_classes": count},
        SimpleNamespace(num_classes=count),
        SimpleNamespace(pretrained_cfg={"num_classes": count}),
        SimpleNamespace(num_classes=count, pretrained_cfg={"num_classes": 1000}),
        SimpleNamespace(),
        {},
    ):
        assert data.infer_imagenet_subset(thing) == oracle.infer_imagenet_subset(thing)
    subset = data.infer_imagenet_subset({"num_classes": count})
    assert subset is None or data.ImageNetInfo(subset).num_classes() == count


def test_own_labels() -> None:
    info = data.CustomDatasetInfo(["cat", "dog"], {"cat": "a cat", "dog": "a dog"})
    assert info.index_to_description(1) == "a dog"
    assert info.label_descriptions() == {"cat": "a cat", "dog": "a dog"}
    assert data.CustomDatasetInfo(("cat",)).index_to_description(0) == "cat"
    sparse = data.CustomDatasetInfo({"2": "dog", "0": "cat"})
    assert sparse.num_classes() == 2
    assert sparse.label_names() == {"2": "dog", "0": "cat"}
    assert sparse.label_indices() == (2, 0)
    assert sparse.has_label(2)
    assert not sparse.has_label(1)
    with pytest.raises(KeyError):
        sparse.index_to_label_name(1)


@pytest.mark.parametrize("arguments, error, words", [
    (([],), BadArgument, "not empty"),
    (("cat",), BadArgument, "list, tuple or dict"),
    (({"cat": "cat"},), BadArgument, "integer-like"),
    (({-1: "cat"},), BadArgument, "below 0"),
    (({"01": "cat", 1: "dog"},), BadArgument, "Duplicate label index 1"),
    (({1.5: "cat"},), TypeError, "float"),
    ((["cat", 3],), TypeError, "strings"),
    ((["cat"], ["a cat"]), TypeError, "dict"),
    ((["cat"], {"dog": "a dog"}), BadArgument, "Missing descriptions"),
])  # fmt: skip
def test_bad_labels_are_named(arguments: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        data.CustomDatasetInfo(*arguments)


def test_mapper() -> None:
    info = data.CustomDatasetInfo({0: "cat", 2: "dog", 4: "horse"}, {"cat": "A", "dog": "B", "horse": "C"})
    mapper = data.DatasetInfoLabelMapper(info)
    assert [mapper(index) for index in range(3)] == ["A", "<unmapped:1>", "B"]
    assert mapper.coverage(4) == data.LabelMappingCoverage(mapped=2, missing=2, extra=1)
    assert data.DatasetInfoLabelMapper(info, "name")(2) == "dog"
    detailed = data.DatasetInfoLabelMapper(data.ImageNetInfo(), "detailed")
    assert detailed(1) == oracle.DatasetInfoLabelMapper(oracle.ImageNetInfo(), "detailed")(1)
    with pytest.raises(KeyError):
        data.DatasetInfoLabelMapper(info, fallback_format=None)(1)
    with pytest.raises(BadArgument, match="label type"):
        data.DatasetInfoLabelMapper(info, "title")
    with pytest.raises(BadArgument, match="num_classes=-1"):
        mapper.coverage(-1)
