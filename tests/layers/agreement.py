"""The comparison that the layer tests share: same weights, same input, same output as timm's layer of that name."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import zlib
from typing import Any

import torch
from torch import nn


def find(package: str, where: str) -> Any:
    file, name = where.split(".")
    return getattr(importlib.import_module(f"{package}.layers.{file}"), name)


def draw_weights(module: nn.Module) -> None:
    """Weights, factors and running statistics that all matter to the output."""
    for name, tensor in module.state_dict().items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if tensor.is_floating_point():
            noise = torch.empty(tensor.shape).normal_(generator=generator)
            positive = "running_var" in name
            tensor.copy_(noise.abs() + 0.5 if positive else noise * 0.3 + 0.1)


def pair(where: str, *args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """Our layer and timm's with the same weights, strictly loaded in the same order of keys, in evaluation mode."""
    theirs = find("timm", where)(*args, **kwargs).eval()
    ours = find("ziggurat", where)(*args, **kwargs).eval()
    draw_weights(theirs)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    ours.load_state_dict(state, strict=True)
    return ours, theirs


def outputs(module: nn.Module, *inputs: Any, **kwargs: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        out = module(*inputs, **kwargs)
    return [t for t in (out if isinstance(out, (list, tuple)) else [out]) if isinstance(t, torch.Tensor)]


def assert_agree(ours: nn.Module, theirs: nn.Module, *inputs: Any, **kwargs: Any) -> None:
    found, wanted = outputs(ours, *inputs, **kwargs), outputs(theirs, *inputs, **kwargs)
    assert len(found) == len(wanted) > 0
    for a, b in zip(found, wanted):
        assert a.shape == b.shape
        scale = max(b.abs().max().item(), 1e-6)
        assert (a - b).abs().max().item() <= 2e-5 * scale


def assert_sound(module: nn.Module, *inputs: Any, fx: bool = True, **kwargs: Any) -> None:
    """Copies, pickles, traces and compiles to the same result."""
    wanted = outputs(module, *inputs, **kwargs)
    forms = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    if fx:  # what has a default is left out by the models that call the layer, and so is no input of the graph
        parameters = inspect.signature(module.forward).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        forms.append(torch.fx.symbolic_trace(module, concrete_args=defaults))
    forms.append(torch.compile(module, backend="eager", fullgraph=True))
    for form in forms:
        for a, b in zip(outputs(form, *inputs, **kwargs), wanted):
            torch.testing.assert_close(a, b)
    torch._dynamo.reset()
