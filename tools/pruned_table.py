"""Writes src/ziggurat/backbone/pruned.json: the channel counts of pruned architectures, read off timm's models.

    python tools/pruned_table.py

Needs timm (the `test` extra). Only layers whose shape differs from the unpruned parent's are listed.
"""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch
from torch import nn

PARENTS = {
    "ecaresnet50d_pruned": "ecaresnet50d",
    "ecaresnet101d_pruned": "ecaresnet101d",
    "efficientnet_b1_pruned": "efficientnet_b1",
    "efficientnet_b2_pruned": "efficientnet_b2",
    "efficientnet_b3_pruned": "efficientnet_b3",
}
TABLE = Path(__file__).parents[1] / "src" / "ziggurat" / "backbone" / "pruned.json"


def shapes(model: nn.Module) -> dict[str, list[int]]:
    """The first two dimensions of each weight that belongs to a layer."""
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    return {name: list(m.weight.shape[:2]) for name, m in model.named_modules() if isinstance(m, kinds)}


def main() -> None:
    table = {}
    for name, parent in PARENTS.items():
        with torch.device("meta"):
            pruned, whole = timm.create_model(name), timm.create_model(parent)
        before = shapes(whole)
        x = torch.zeros(1, 3, 64, 64, device="meta")
        levels = [level.shape[1] for level in timm.create_model(name, features_only=True).to("meta")(x)]
        table[name] = dict(
            first_conv=pruned.pretrained_cfg["first_conv"],
            num_features=pruned.num_features,
            levels=levels,
            shapes={path: shape for path, shape in shapes(pruned).items() if shape != before[path]},
        )
    TABLE.write_text(json.dumps(table, separators=(",", ":")).replace('},"', '},\n"') + "\n", encoding="utf-8")
    print({name: len(row["shapes"]) for name, row in table.items()})


if __name__ == "__main__":
    main()
