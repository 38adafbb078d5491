"""The classes of ImageNet and of its supersets, in the orders that published classifiers use.

Names, lemmas and definitions are WordNet's (Miller 1995); which synsets a set holds is given by its publisher:
ImageNet-1k (Russakovsky et al. 2015), ImageNet-22k of fall 2011 (Deng et al. 2009), Google's 21k, MIIL's 21k
(Ridnik et al. 2021, arXiv 2104.10972), timm's 12k, and Microsoft's 22k, which puts the 1k classes first.
"""

from __future__ import annotations

import functools
import lzma
import re
from importlib import resources
from typing import Any, NamedTuple

from ..errors import BadArgument
from .dataset_info import DatasetInfo

__all__ = ["ImageNetInfo", "infer_imagenet_subset"]

# the letter that marks a set's synsets in the tables
_SETS = {
    "imagenet1k": "k",
    "imagenet12k": "t",
    "imagenet21kmiil": "m",
    "imagenet22k": "w",
    "imagenet22kms": "w",
    "imagenet21k": "g",
    "imagenet21kgoog": "g",
}

_BY_CLASSES = {
    1000: "imagenet-1k",
    11221: "imagenet-21k-miil",
    11821: "imagenet-12k",
    21841: "imagenet-22k",
    21842: "imagenet-22k-ms",
    21843: "imagenet-21k-goog",
}


class _Synset(NamedTuple):
    sets: str
    lemmas: str
    definition: str


@functools.cache
def _synsets_1k() -> dict[str, _Synset]:
    return _rows(resources.files(__package__).joinpath("imagenet_1k.tsv").read_bytes())


@functools.cache
def _synsets_all() -> dict[str, _Synset]:
    """All 21 844 synsets in their order; a second of work, so the 1k classes have a table of their own."""
    packed = resources.files(__package__).joinpath("imagenet_beyond_1k.tsv.xz").read_bytes()
    return dict(sorted((_synsets_1k() | _rows(lzma.decompress(packed))).items()))


def _rows(table: bytes) -> dict[str, _Synset]:
    rows = (line.split("\t") for line in table.decode("utf-8").splitlines() if not line.startswith("#"))
    return {synset: _Synset(*facts) for synset, *facts in rows}


def infer_imagenet_subset(model_or_cfg: Any) -> str | None:
    """The ImageNet set whose number of classes a model, or a pretrained_cfg, has; None where there is none.

    A number is a guess: a classifier of your own 1000 classes looks like ImageNet-1k.
    """
    if isinstance(model_or_cfg, dict):
        count = model_or_cfg.get("num_classes")
    else:
        count = getattr(model_or_cfg, "num_classes", None)
        count = count or (getattr(model_or_cfg, "pretrained_cfg", None) or {}).get("num_classes")
    return _BY_CLASSES.get(count) if count else None


class ImageNetInfo(DatasetInfo):
    """The labels of an ImageNet classifier. A label name is a WordNet synset such as "n01440764"; its description are
    the lemmas ("tench, Tinca tinca"), detailed with the definition behind a colon.

    `subset` is one of imagenet-1k, -12k, -21k (Google's, also -21k-goog), -21k-miil, -22k, -22k-ms; capitals, dashes,
    underscores and spaces do not matter. Raises BadArgument for another.
    """

    def __init__(self, subset: str = "imagenet-1k") -> None:
        key = re.sub(r"[-_\s]", "", subset.lower())
        if key not in _SETS:
            raise BadArgument(f"Unknown imagenet subset {subset!r}: it is one of {', '.join(_BY_CLASSES.values())}")
        self._table = _synsets_1k() if key == "imagenet1k" else _synsets_all()
        self._synsets = [synset for synset, facts in self._table.items() if _SETS[key] in facts.sets]
        if key == "imagenet22kms":
            first = list(_synsets_1k())
            taken = set(first)
            self._synsets = first + [synset for synset in self._synsets if synset not in taken]

    def num_classes(self) -> int:
        return len(self._synsets)

    def label_names(self) -> list[str]:
        return self._synsets

    def label_descriptions(self, detailed: bool = False, as_dict: bool = False) -> list[str] | dict[str, str]:
        described = {synset: self.label_name_to_description(synset, detailed) for synset in self._synsets}
        return described if as_dict else list(described.values())

    def index_to_label_name(self, index: int) -> str:
        if not 0 <= index < len(self._synsets):
            raise BadArgument(f"class {index} of a set whose classes are 0 to {len(self._synsets) - 1}")
        return self._synsets[index]

    def label_name_to_description(self, label: str, detailed: bool = False) -> str:
        facts = self._table.get(label) or _synsets_all().get(label)
        if facts is None:
            raise BadArgument(f"{label!r} is no synset of ImageNet; label_names() lists those of this set")
        return f"{facts.lemmas}: {facts.definition}" if detailed else facts.lemmas
