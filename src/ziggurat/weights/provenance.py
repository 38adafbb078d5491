"""Where published weights come from: the data sets they were trained on, their licence, whether the hub gates them.

Facts and rules lie in `provenance.toml`, each with its source; what it does not settle comes from the configuration of
the weights (`pretrained`), and what nobody states is None: nothing is guessed. Reading them needs no torch.
"""

from __future__ import annotations

import functools
import re
from fnmatch import translate
from pathlib import Path
from typing import Any

from .pretrained import PretrainedCfg, read_toml

__all__ = ["data_set_named", "data_sets", "gated", "known_data_sets", "licence"]

TABLE = Path(__file__).with_name("provenance.toml")


@functools.cache
def provenance() -> dict[str, Any]:
    """The table as it stands in the file."""
    return read_toml(TABLE)


@functools.cache
def data_sets(tag: str) -> tuple[str, ...] | None:
    """The data sets that a tag names, in the order of training; None where it names none or a mixture.

    `augreg_in21k_ft_in1k` is ImageNet-21k, then fine-tuned on ImageNet-1k. Data that is trained on twice is named once.
    """
    table = provenance()
    named = table["tags"].get(tag) or [table["words"][word] for word in tag.split("_") if word in table["words"]]
    return tuple(dict.fromkeys(named)) or None


def known_data_sets() -> dict[str, str]:
    """The names that `data_sets` answers with, and what each stands for."""
    return dict(provenance()["datasets"])


def data_set_named(name: str) -> str:
    """A data set's name as `data_sets` spells it: in lower case, and the one used here of two that are in use."""
    name = name.lower()
    return str(provenance()["aliases"].get(name, name))


@functools.cache
def _stated() -> list[tuple[re.Pattern[str], str, str]]:
    return [
        (re.compile("|".join(map(translate, row["names"]))), row["license"], row["source"])
        for row in provenance()["stated"]
    ]


def licence(name: str, cfg: PretrainedCfg) -> tuple[str | None, str | None]:
    """The licence of the weights `architecture.tag`, and a page that states it; each None where it is not stated.

    The licence is an identifier of SPDX in lower case, or the hub's where SPDX has none ('apple-amlr', 'gemma').
    """
    for names, stated, source in _stated():
        if names.match(name):
            return stated, source
    if cfg.license is None or cfg.license == "unknown":
        return None, None
    stated = cfg.license.lower()
    return stated, provenance()["licenses"].get(stated)


def gated(cfg: PretrainedCfg) -> bool | None:
    """Whether an account on the hub and its owner's consent are needed to fetch the weights.

    False where they have a plain address or come in a Python package, None where the hub alone has them: no list says
    which of its repositories are gated.
    """
    return False if cfg.url or cfg.file or cfg.package else None
