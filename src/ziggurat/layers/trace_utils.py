"""Help for tracers: checks they can follow, and the list of what they should keep whole."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ziggurat.errors import MissingExtra

__all__ = [
    "_assert",
    "_float_to_int",
    "create_feature_extractor",
    "get_graph_node_names",
    "get_notrace_functions",
    "get_notrace_modules",
    "is_exporting",
    "is_notrace_function",
    "is_notrace_module",
    "register_notrace_function",
    "register_notrace_module",
]

# A check that symbolic tracing records rather than evaluates; a plain `assert` on a traced value stops the tracer.
_assert = torch._assert

# torch 2.6 cannot tell export from compilation; both need the same care
_torch_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)

_leaf_modules: set[type[nn.Module]] = set()
_leaf_functions: set[Callable] = set()


def _float_to_int(x: float) -> int:
    """`x` cut to an integer."""
    return int(x)


def is_exporting() -> bool:
    """Whether the running forward pass is being recorded by torch.export or the ONNX exporter."""
    return _torch_is_exporting() or torch.onnx.is_in_onnx_export()


def register_notrace_module(module: type[nn.Module]) -> type[nn.Module]:
    """A class decorator: `create_feature_extractor` keeps such modules as single nodes."""
    _leaf_modules.add(module)
    return module


def is_notrace_module(module: type[nn.Module]) -> bool:
    """Whether this class is kept as a single node."""
    return module in _leaf_modules


def get_notrace_modules() -> list[type[nn.Module]]:
    """The classes kept as single nodes, in a stable order."""
    return sorted(_leaf_modules, key=lambda cls: (cls.__module__, cls.__qualname__))


def register_notrace_function(name_or_fn: str | Callable) -> Any:
    """A decorator, or called with the name of a function of the calling module: tracing keeps its calls whole."""
    function = sys._getframe(1).f_globals[name_or_fn] if isinstance(name_or_fn, str) else name_or_fn
    _leaf_functions.add(function)
    return name_or_fn


def is_notrace_function(func: Callable) -> bool:
    """Whether calls of this function are kept whole."""
    return func in _leaf_functions


def get_notrace_functions() -> list[Callable]:
    """The functions whose calls are kept whole, in a stable order."""
    return sorted(_leaf_functions, key=lambda f: (f.__module__, f.__qualname__))


def _extraction() -> Any:
    try:
        from torchvision.models import feature_extraction
    except ImportError as e:
        raise MissingExtra(
            "feature extraction by graph node needs torchvision, which is not installed; install torchvision, "
            "or ask the model itself with features_only=True or forward_intermediates"
        ) from e
    return feature_extraction


def _tracer_options() -> dict[str, Any]:
    return {"leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions()}


def get_graph_node_names(model: nn.Module) -> tuple[list[str], list[str]]:
    """The names of the nodes of the traced model, in training and in evaluation mode."""
    return _extraction().get_graph_node_names(model, tracer_kwargs=_tracer_options())


def create_feature_extractor(model: nn.Module, return_nodes: dict[str, str] | list[str]) -> Callable[..., dict[str, Tensor]]:
    """A graph module that returns the outputs of the named nodes as a dict."""
    return _extraction().create_feature_extractor(model, return_nodes, tracer_kwargs=_tracer_options())
