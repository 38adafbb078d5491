"""Measures architectures into src/ziggurat/catalog/<module>.json, which the registry answers from.

    python tools/catalog.py [MODULE ...] [--check]

Each row of a family is built on the meta device and run at its own input size, at one that no grid divides, and at every
output stride; its levels are held to what it declares. With --check nothing is written: files that differ from what was
measured are named, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ziggurat.backbone import Backbone
from ziggurat.backbone.measure import OUTPUT_STRIDES, measure
from ziggurat.factory import WithoutWeights, build_model_with_cfg
from ziggurat.models import _families
from ziggurat.registry import CATALOG
from ziggurat.weights.pretrained import PretrainedCfg, pretrained_cfgs


def measured(
    module: str, names: Sequence[str] | None = None, output_strides: Sequence[int] = OUTPUT_STRIDES
) -> dict[str, dict[str, Any]]:
    """The facts of one module's architectures by name: of all, or of those named."""
    family = importlib.import_module(f"ziggurat.models.{module}").family
    weights = pretrained_cfgs(module)
    facts = {}
    for name in names or family:
        cls, row = family[name]
        row.pop("trained_with", None)  # the architecture is measured, not some weights
        cfg = next(iter(weights.get(name, {}).values()), PretrainedCfg())

        def create(cls: Any = cls, name: str = name, cfg: PretrainedCfg = cfg, row: Any = row, **kwargs: Any) -> Backbone:
            with torch.device("meta"), WithoutWeights():
                return build_model_with_cfg(cls, name, pretrained_cfg=cfg, **{**row, **kwargs})

        facts[name] = measure(create, cfg.input_size, output_strides)
    return facts


def page(facts: Mapping[str, Any]) -> str:
    """A catalog file of these facts, a line an architecture."""
    rows = (f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in facts.items())
    return "{\n" + ",\n".join(rows) + "\n}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="modules of ziggurat.models (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing, report what is stale")
    args = parser.parse_args()
    stale = []
    for module in args.modules or _families():
        path = Path(CATALOG) / f"{module}.json"
        text = page(measured(module))
        if args.check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(module)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{module}: {text.count(chr(10)) - 2} architectures")
    if stale:
        print(f"stale: {', '.join(stale)}; run make catalog F={stale[0]}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
