"""What a run keeps: named, checked, written down and read again."""

from __future__ import annotations

import json

import pytest

from ziggurat import packages
from ziggurat.errors import BadArgument, MissingExtra
from ziggurat.extraction.outputs import Outputs, bytes_per_image, check_installed, group

EVERY = Outputs.make(embed=True, strides=(16, 8), tokens=True, logits=True, taps=("blocks.7", "norm"), dtype="f32", format="npy,zarr")


def test_nothing_asked_is_the_embedding_and_something_asked_is_that_alone() -> None:
    assert Outputs.make() == Outputs(embed=True)
    assert not Outputs.make(strides=8).embed
    assert Outputs.make(taps="norm").directories() == ("taps/norm",)
    assert EVERY.directories() == ("embedding", "logits", "taps/blocks.7", "taps/norm", "pyramid", "tokens")


def test_the_order_in_which_strides_are_named_makes_no_other_run() -> None:
    assert EVERY.strides == (8, 16)
    assert Outputs.make(True, [8, 16], True, True, ["blocks.7", "norm"], "f32", "zarr,npy") == EVERY


@pytest.mark.parametrize(("format", "vectors", "maps"), [
    ("", "parquet", "safetensors"), ("npy", "npy", "safetensors"), ("zarr", "parquet", "zarr"),
    ("lance, zarr", "lance", "zarr"), ("safetensors,parquet", "parquet", "safetensors"),
])
def test_a_format_is_of_vectors_or_of_maps(format: str, vectors: str, maps: str) -> None:
    outputs = Outputs.make(format=format)
    assert (outputs.vectors, outputs.maps) == (vectors, maps)


@pytest.mark.parametrize(("arguments", "sentence"), [
    ({"strides": (8, 0)}, r"strides=\(0, 8\): 0 is no stride"),
    ({"strides": (8, 8)}, "more than once"),
    ({"strides": ("8",)}, "'8' is no stride"),
    ({"strides": (True,)}, "True is no stride"),
    ({"taps": ("blocks.7", "blocks.7")}, "more than once"),
    ({"taps": ("a/../b",)}, "no name of a module"),
    ({"taps": ("..",)}, "no name of a module"),
    ({"taps": ("",)}, "no name of a module"),
    ({"dtype": "bf16"}, "dtype='bf16' is not known; give f16 or f32"),
    ({"format": "hdf5"}, "'hdf5' is not known; give parquet, npy or lance for vectors, safetensors or zarr for maps"),
    ({"format": "npy,lance"}, "two formats for vectors"),
])
def test_what_cannot_work_is_refused_with_what_would(arguments: dict, sentence: str) -> None:
    with pytest.raises(BadArgument, match=sentence):
        Outputs.make(**arguments)


def test_without_any_output_there_is_no_run() -> None:
    with pytest.raises(BadArgument, match="no output is asked for; give one or more of embed"):
        Outputs()


def test_json_and_back() -> None:
    for outputs in (EVERY, Outputs.make()):
        assert Outputs.from_json(json.loads(json.dumps(outputs.to_json()))) == outputs
    with pytest.raises(BadArgument, match="outputs with attention"):
        Outputs.from_json({**EVERY.to_json(), "attention": True})


def test_names_are_grouped_by_directory_in_their_order() -> None:
    names = ["embedding", "taps/blocks.7", "pyramid/stride_8", "tokens/cls", "pyramid/stride_16", "tokens/patches"]
    assert group(names) == {
        "embedding": ("embedding",), "taps/blocks.7": ("taps/blocks.7",),
        "pyramid": ("pyramid/stride_8", "pyramid/stride_16"), "tokens": ("tokens/cls", "tokens/patches"),
    }


def test_bytes_of_a_resnet_50_pyramid() -> None:
    shapes = {f"pyramid/stride_{stride}": (64 * stride, 224 // stride, 224 // stride) for stride in (4, 8, 16, 32)}
    assert bytes_per_image(shapes, "f16") == 2 * 64 * 224 * 224 * (1 / 4 + 1 / 8 + 1 / 16 + 1 / 32) == 3_010_560
    assert bytes_per_image({"embedding": (2048,), "logits": (1000,)}, "f32") == 4 * 3048


@pytest.mark.parametrize(("outputs", "missing", "extra"), [
    (Outputs.make(), "pyarrow", "extract"),
    (Outputs.make(strides=8), "pyarrow", "extract"),
    (Outputs.make(format="lance"), "lance", "lance"),
    (Outputs.make(strides=8, format="zarr"), "zarr", "zarr"),
])
def test_a_missing_package_is_told_with_its_extra(
    outputs: Outputs, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_installed(outputs)
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(MissingExtra, match=rf"needs {missing}, not installed: pip install 'ziggurat\[{extra}\]'"):
        check_installed(outputs)


def test_packages_of_formats_that_are_not_written_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: object() if name == "pyarrow" else None)
    check_installed(Outputs.make(embed=True, format="zarr"))  # no maps are asked for
    check_installed(Outputs.make(strides=8, format="lance"))
