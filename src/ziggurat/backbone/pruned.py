"""Channel-pruned architectures: a parent's modules, with the channels that pruning left.

The widths that the authors of "Knapsack Pruning with Inner Distillation" (Aflalo et al. 2020, arXiv 2002.08258)
published follow no rule, so they are a table: `pruned.json`, made from published checkpoints by tools/pruned_table.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from .base import Backbone, draws_weights

__all__ = ["fit_channels"]

TABLE = Path(__file__).with_name("pruned.json")


def fit_channels(model: Backbone, variant: str) -> None:
    """Rebuilds the layers of `model` with the channels that the table has for `variant`."""
    facts = json.loads(TABLE.read_text(encoding="utf-8"))[variant]
    for path, shape in facts["shapes"].items():
        if path in model.classifiers:
            continue  # its width follows from the pooling as well
        _resize(model.get_submodule(path), shape, is_stem=path == facts["first_conv"])
    for level, channels in zip(model.feature_info, facts["levels"]):
        level["num_chs"] = channels
    model.num_features = facts["num_features"]
    model.reset_classifier(model.num_classes)
    if draws_weights.get():
        model.init_weights()


def _resize(layer: nn.Module, shape: list[int], is_stem: bool) -> None:
    """Gives one layer other channels, in place: `shape` is that of its weight's first one or two dimensions."""
    if isinstance(layer, nn.Conv2d):
        out_chs, group_width = shape
        is_depthwise = layer.groups > 1
        layer.groups = out_chs if is_depthwise else 1
        layer.in_channels = layer.in_channels if is_stem else group_width * layer.groups
        layer.out_channels = out_chs
        kept = (out_chs, layer.in_channels // layer.groups, *layer.kernel_size)
    else:
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm), type(layer)
        layer.num_features = shape[0]
        kept = (shape[0],)
        layer.running_mean = torch.zeros(kept)
        layer.running_var = torch.ones(kept)
    layer.weight = nn.Parameter(_like(layer.weight, kept))
    if layer.bias is not None:
        layer.bias = nn.Parameter(_like(layer.bias, kept[:1]))
    layer.reset_parameters()


def _like(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(shape, device=tensor.device, dtype=tensor.dtype)
