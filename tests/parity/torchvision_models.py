"""torchvision as the oracle of the architectures that timm has not: its networks with redrawn parameters, its weights' facts."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import nn

from ziggurat.registry import get_pretrained_cfg

TOLERANCE = 1e-5


@torch.no_grad()
def redrawn(name: str, **kwargs: Any) -> nn.Module:
    """torchvision's network `name` in evaluation, every parameter and running statistic drawn so that it matters."""
    model = torchvision.models.get_model(name, weights=None, **kwargs).eval()
    generator = torch.Generator().manual_seed(1)
    for key, value in model.state_dict().items():
        if key.endswith("running_var") or (key.endswith("weight") and value.ndim == 1):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif value.is_floating_point():
            value.normal_(0, 0.1, generator=generator)
    return model


@torch.no_grad()
def difference(ours: nn.Module, theirs: nn.Module, size: int) -> float:
    """Largest difference of the scores over the largest score, for images of `size` x `size` pixels."""
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    wanted = theirs(x)
    return float((ours.eval()(x) - wanted).abs().max() / wanted.abs().max())


def facts_disagree(name: str, published: str = "IMAGENET1K_V1") -> list[str]:
    """What our table says otherwise of the weights `name` than torchvision does of its own, but for the pixels' range."""
    weights = torchvision.models.get_model_weights(name.partition(".")[0])[published]
    theirs = weights.transforms()
    cfg = get_pretrained_cfg(name)
    assert cfg is not None
    stated = {
        "url": (cfg.url, weights.url),
        "input_size": (cfg.input_size, (3, *theirs.crop_size * 2)),
        "crop_pct": (round(cfg.crop_pct, 3), int(1000 * theirs.crop_size[0] / theirs.resize_size[0]) / 1000),
        "interpolation": (cfg.interpolation, theirs.interpolation.value),
        "num_classes": (cfg.num_classes, len(weights.meta["categories"])),
        "license": (cfg.license, weights.meta.get("license")),
    }
    return [key for key, (ours, wanted) in stated.items() if ours != wanted]
