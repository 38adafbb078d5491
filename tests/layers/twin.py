"""A layer of ours and timm's of the same name, with the same random state."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn

import ziggurat.layers as ours

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import timm.layers as theirs

__all__ = ["agree", "close", "ours", "randomise", "theirs", "twin"]


def randomise(module: nn.Module) -> nn.Module:
    """Draws every parameter and buffer, so that none hides behind a 0 or a 1; variances stay positive."""
    with torch.no_grad():
        for name, t in (*module.named_parameters(), *module.named_buffers()):
            if t.is_floating_point() and not name.endswith("filt"):
                t.copy_(torch.rand_like(t) + 0.5 if "var" in name or name == "r" else torch.randn_like(t) * 0.5)
    return module


def twin(name: str, *args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """(ours, timm's), ours having loaded timm's state strictly."""

    def resolve(package: Any) -> dict[str, Any]:
        # "=name" stands for that package's own layer
        return {
            k: getattr(package, v[1:]) if isinstance(v, str) and v.startswith("=") else v for k, v in kwargs.items()
        }

    a = getattr(ours, name)(*args, **copy.deepcopy(resolve(ours)))
    b = randomise(getattr(theirs, name)(*args, **copy.deepcopy(resolve(theirs))))
    assert list(a.state_dict()) == list(b.state_dict())
    a.load_state_dict(b.state_dict(), strict=True)
    return a, b


def close(mine: torch.Tensor, his: torch.Tensor, what: str = "") -> None:
    """Equal shape and type, and values to 1e-5 of the largest."""
    assert (mine.shape, mine.dtype) == (his.shape, his.dtype), what
    reach = 1e-5 * his.abs().max().item() if his.numel() else 0.0
    torch.testing.assert_close(mine, his, atol=reach, rtol=0, msg=lambda m: f"{what} {m}")


def agree(a: nn.Module, b: nn.Module, *inputs: torch.Tensor) -> None:
    """Equal outputs, gradients of the input, and state afterwards, in evaluation and then in training mode."""
    for training in (False, True):
        results = []
        for m in (a, b):
            x, *rest = (t.clone() for t in inputs)
            x.requires_grad_()
            torch.manual_seed(0)
            y = m.train(training)(x + 0, *rest)
            y.square().sum().backward()
            results.append((y.detach(), x.grad))
        for what, mine, his in zip(("output", "gradient"), *results):
            close(mine, his, what)
    for (name, mine), his in zip(a.state_dict().items(), b.state_dict().values()):
        close(mine, his, name)
