"""What is known of an architecture and of its weights before anything is built: records read by key or attribute."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from .weights import provenance
from .weights.pretrained import PretrainedCfg

__all__ = ["CERTIFIED", "MODES", "Fact", "ModelInfo", "WeightsInfo", "measured", "published"]

T = TypeVar("T")

CERTIFIED = Path(__file__).parent / "exporting" / "certified.json"
MODES = ("static", "dynamic")  # files of one shape; files with batch, height and width free


class Fact(Generic[T]):
    """One entry of a record as a read-only attribute; its docstring says what the entry means.

    `key` is the entry's name where that differs from the attribute's.
    """

    def __init__(self, meaning: str, key: str = "") -> None:
        self.__doc__ = meaning
        self.key = key

    def __set_name__(self, owner: type, name: str) -> None:
        self.key = self.key or name

    @overload
    def __get__(self, record: None, owner: type) -> Fact[T]: ...
    @overload
    def __get__(self, record: dict[str, Any], owner: type) -> T: ...
    def __get__(self, record: dict[str, Any] | None, owner: type) -> Fact[T] | T:
        if record is None:
            return self
        value: T = record[self.key]
        return value

    def __set__(self, record: dict[str, Any], value: object) -> None:
        raise AttributeError(f"{self.key} is a fact: it can be read, not set")


class Record(dict[str, Any]):
    """A dict of facts, each an attribute too: `record["params"]` and `record.params` are one; JSON writes it as it is."""

    __slots__ = ()

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__({**dict.fromkeys(self.keys_declared()), **facts})

    @classmethod
    def keys_declared(cls) -> list[str]:
        """The keys of the facts that the class declares, in their order."""
        return [value.key for value in vars(cls).values() if isinstance(value, Fact)]


class WeightsInfo(Record):
    """One published set of weights: where it comes from, what it may be used for, what it expects to see.

    Besides the facts below it holds, by key, the fields of `PretrainedCfg` that are not empty. What no source states
    is None. `license`, `datasets` and `gated` follow the rules and sources of `weights/provenance.toml`; everything
    else is timm's configuration of the weights.
    """

    __slots__ = ()

    name = Fact[str]("`architecture.tag`, as `create_model` takes it.")
    tag = Fact[str]("The part of the name behind the dot.")
    license = Fact[str | None]("Licence as an SPDX identifier in lower case, or the hub's ('apple-amlr', 'gemma').")
    license_url = Fact[str | None]("A page with the licence's text, or the publisher's page that states it.")
    datasets = Fact[tuple[str, ...] | None]("Data sets trained on, in order: ('imagenet-21k', 'imagenet-1k').")
    num_classes = Fact[int]("Classes that the weights tell apart; 0 for weights without a classifier.")
    input_size = Fact[tuple[int, int, int]]("Channels, height and width of the images trained on, in pixels.")
    test_input_size = Fact[tuple[int, int, int] | None]("The size to evaluate at, where it is another one.")
    mean = Fact[tuple[float, ...]]("Mean of each channel, for pixel values in [0, 1].")
    std = Fact[tuple[float, ...]]("Standard deviation of each channel.")
    interpolation = Fact[str]("How images are resized: 'bicubic', 'bilinear', ...")
    crop_pct = Fact[float]("Side of the centre crop as a fraction of the resized image's shorter side.")
    crop_mode = Fact[str]("How the resized image is cut: 'center', 'squash' or 'border'.")
    hf_hub_id = Fact[str | None]("Repository on the Hugging Face Hub, `owner/name`.")
    url = Fact[str | None]("A plain address of the file, where there is one.")
    gated = Fact[bool | None](
        "Whether the hub asks for an account and its owner's consent: False where a plain address or a Python package "
        "has the weights too, None where nothing is known."
    )
    origin_url = Fact[str | None]("Page of the project that made them.")
    paper_ids = Fact[str | tuple[str, ...] | None]("The papers, as 'arXiv:2104.00298'.")

    def __repr__(self) -> str:
        data = " > ".join(self.datasets) if self.datasets else "data not stated"
        return f"<WeightsInfo {self.name}: {data}, {self.input_size[-1]} px, {self.license or 'licence not stated'}>"


class ModelInfo(Record):
    """What an architecture is, measured in advance: size, cost, levels, limits, and its published weights.

    Costs are of one image of `input_size`. The facts of an architecture that a user registered are None, but for its
    name, its module and the weights that the module declares: nobody has measured it.
    """

    __slots__ = ()

    name = Fact[str]("The architecture.")
    module = Fact[str]("The model file it comes from, a module of `ziggurat.models`.")
    class_name = Fact[str | None]("The class that is built; as an entry `class`.", key="class")
    params = Fact[int | None]("Parameters, classifier included.")
    macs = Fact[int | None]("Multiply-adds of convolutions, linear layers and attention.")
    activations = Fact[int | None]("Elements that convolutions and linear layers put out.")
    input_size = Fact[tuple[int, int, int] | None]("Native channels, height and width, in pixels.")
    min_size = Fact[int | None]("The smallest height and width that are accepted, in pixels.")
    size_rule = Fact[str | None]("The sizes that are accepted and the sizes of the levels that they give, in a sentence.")
    native_size_only = Fact[bool | None]("Whether images are resized to the native size and maps resampled back.")
    embedding = Fact[int | None]("Width of the vector of `embed`, in numbers.")
    levels = Fact[list[dict[str, Any]] | None]("The levels in order: `channels`, `reduction` (stride) and `module`.")
    channels = Fact[tuple[int, ...] | None]("Channels of each level.")
    strides = Fact[tuple[int, ...] | None]("Stride of each level, in pixels of the input.")
    output_strides = Fact[dict[int, dict[str, Any]] | None](
        "The values of `output_stride` that `create_model` takes: the `stride` that results, `how` it is reached "
        "('native', 'dilated', 'stitched') and the `macs` it costs."
    )
    prefix_tokens = Fact[dict[str, int] | None]("Tokens in front of those of the map, by kind; None without any.")
    first_conv = Fact[str | None]("Path of the layer that reads the image's channels.")
    classifier = Fact[str | list[str] | None]("Path of the classifier, or of the several.")
    exports = Fact[dict[str, dict[str, dict[str, float | str | None]]] | None](
        "What `ziggurat.export` can write, measured on `exports_of`: `exports[format][view]['static' or 'dynamic']` is the "
        "largest error of the file's outputs in the format's own runtime, as a share of their largest value; or a sentence "
        "that says why there is no such number; or None where it was not tried. Dynamic files leave batch, height and "
        "width free."
    )
    exports_of = Fact[str | None]("The architecture that `exports` was measured on, the smallest of the same class.")
    key_digest = Fact[str | None]("Digest of the state dict's keys and shapes; as an entry `keys`.", key="keys")
    pretrained = Fact[dict[str, WeightsInfo]]("Published weights by tag, first those that `pretrained=True` loads.")

    def __repr__(self) -> str:
        if self.params is None:
            known = "not measured"
        else:
            assert self.macs is not None and self.input_size is not None and self.strides is not None
            size = " x ".join(map(str, self.input_size))
            strides = " ".join(map(str, dict.fromkeys(self.strides)))
            known = f"{self.params / 1e6:.1f} M parameters, {self.macs / 1e9:.2f} GMACs at {size}, strides {strides}"
            if self.embedding is not None:
                known += f", {self.embedding} numbers"
        return f"<ModelInfo {self.name}: {known}, {len(self.pretrained)} pretrained>"


def measured(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the catalog as `ModelInfo` gives it: values of its own, tuples for sizes, whole numbers for strides."""
    levels = [dict(level) for level in facts["levels"]]
    return {
        **facts,
        "input_size": tuple(facts["input_size"]),
        "levels": levels,
        "size_rule": size_rule(facts),
        "channels": tuple(level["channels"] for level in levels),
        "strides": tuple(level["reduction"] for level in levels),
        "output_strides": {int(stride): dict(way) for stride, way in facts["output_strides"].items()},
        **exports(facts["module"], facts["class"]),
    }


@functools.cache
def certified() -> dict[str, Any]:
    """The certificate of exports, as tools/certify.py writes it; its `classes` are called `module.class`."""
    found: dict[str, Any] = json.loads(CERTIFIED.read_text(encoding="utf-8"))
    return found


def exports(module: str, class_name: str) -> dict[str, Any]:
    """The facts of `ModelInfo` on exports, for the architectures of one class of one module."""
    row = certified()["classes"].get(f"{module}.{class_name}")
    return {"exports": copy.deepcopy(row["exports"]), "exports_of": row["architecture"]} if row else {}


def size_rule(facts: Mapping[str, Any]) -> str:
    """In words, what `min_size` and `native_size_only` of a row of the catalog say."""
    accepted = f"height and width of {facts['min_size']} px or more"
    if facts["native_size_only"]:
        _, height, width = facts["input_size"]
        return f"{accepted}, brought to {height} x {width}; maps are brought back to H / stride x W / stride, rounded up"
    return f"{accepted}; maps of H / stride x W / stride, rounded up"


def published(name: str, cfg: PretrainedCfg) -> WeightsInfo:
    """What is known of the weights `architecture.tag`, whose configuration is `cfg`."""
    tag = name.partition(".")[2]
    fields = {field: value for field, value in cfg.to_dict().items() if field != "state_dict"}
    url = cfg.url if isinstance(cfg.url, str) or cfg.url is None else cfg.url[0]
    license, license_url = provenance.licence(name, cfg)
    return WeightsInfo({
        **fields,
        "url": url or None,
        "name": name,
        "tag": tag,
        "license": license,
        "license_url": license_url,
        "datasets": provenance.data_sets(tag),
        "gated": provenance.gated(cfg),
    })
