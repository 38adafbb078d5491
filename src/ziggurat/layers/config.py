"""Switches that hold for the whole process: which attention kernel layers choose when they are built.

The switches about TorchScript are accepted for code written for timm and remembered, but change nothing here: no layer
has a scripted variant to choose.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = [
    "is_exportable",
    "is_no_jit",
    "is_scriptable",
    "set_exportable",
    "set_fused_attn",
    "set_layer_config",
    "set_no_jit",
    "set_reentrant_ckpt",
    "set_scriptable",
    "use_fused_attn",
    "use_reentrant_ckpt",
]

_state: dict[str, Any] = {
    "scriptable": False,
    "exportable": False,
    "no_jit": False,
    "reentrant_checkpoint": False,
    # 0: attention spelled out; 1: torch's fused kernel where it is sound; 2: also where it is experimental
    "fused_attention": int(os.environ.get("ZIGGURAT_FUSED_ATTN", "1")),
}


class _Switch:
    """Sets switches at once; used as a context manager, puts them back as they were on leaving."""

    def __init__(self, **values: bool | None) -> None:
        wanted = {name: value for name, value in values.items() if value is not None}
        self.before = {name: _state[name] for name in wanted}
        _state.update(wanted)

    def __enter__(self) -> _Switch:
        return self

    def __exit__(self, *error: object) -> None:
        _state.update(self.before)


class set_scriptable(_Switch):
    """Remembers whether layers should suit TorchScript, at once or for a `with` block; changes no layer."""

    def __init__(self, mode: bool) -> None:
        super().__init__(scriptable=mode)


class set_exportable(_Switch):
    """Asks for layers that old exporters understand, at once or for a `with` block: attention is then spelled out."""

    def __init__(self, mode: bool) -> None:
        super().__init__(exportable=mode)


class set_no_jit(_Switch):
    """Remembers whether scripted activations are unwanted, at once or for a `with` block; changes no layer."""

    def __init__(self, mode: bool) -> None:
        super().__init__(no_jit=mode)


class set_layer_config(_Switch):
    """Sets several switches together, at once or for a `with` block; None leaves a switch as it is."""

    def __init__(
        self,
        scriptable: bool | None = None,
        exportable: bool | None = None,
        no_jit: bool | None = None,
        no_activation_jit: bool | None = None,
    ) -> None:
        super().__init__(scriptable=scriptable, exportable=exportable, no_jit=no_jit)


def is_scriptable() -> bool:
    """Whether layers were asked to suit TorchScript (remembered only)."""
    return _state["scriptable"]


def is_exportable() -> bool:
    """Whether layers were asked to suit old exporters."""
    return _state["exportable"]


def is_no_jit() -> bool:
    """Whether scripted activations were declined (remembered only)."""
    return _state["no_jit"]


def set_fused_attn(enable: bool = True, experimental: bool = False) -> None:
    """Chooses between torch's fused attention and the spelled-out one for attention layers built from now on.

    `experimental` also takes the fused kernel in layers whose bias it handles less well.
    The start value is the environment variable ZIGGURAT_FUSED_ATTN (0, 1 or 2; 1 where it is not set).
    """
    _state["fused_attention"] = int(enable) + int(enable and experimental)


def use_fused_attn(experimental: bool = False) -> bool:
    """Whether an attention layer built now should call `scaled_dot_product_attention`."""
    return not _state["exportable"] and _state["fused_attention"] > int(experimental)


def set_reentrant_ckpt(enable: bool = True) -> None:
    """Chooses the reentrant form of `torch.utils.checkpoint`."""
    _state["reentrant_checkpoint"] = bool(enable)


def use_reentrant_ckpt() -> bool:
    """Whether gradient checkpointing should use its reentrant form."""
    return _state["reentrant_checkpoint"]
