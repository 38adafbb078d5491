"""Normalisation and the activation after it as one layer, the activation changeable or left out by argument.

Between the two sits `drop`, a place for a regulariser such as DropBlock. Children are named `drop` and `act`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .create_act import create_act_layer, get_act_layer
from .norm import (
    FrozenBatchNorm2d,
    GroupNorm,
    LayerNorm,
    LayerNorm2d,
    LayerNorm2dFp32,
    LayerNormFp32,
    RmsNorm,
    RmsNorm2d,
    RmsNorm2dFp32,
    RmsNormFp32,
)
from .trace_utils import _assert
from .typing import LayerType

__all__ = [
    "BatchNormAct2d",
    "FrozenBatchNormAct2d",
    "GroupNorm1Act",
    "GroupNormAct",
    "LayerNormAct",
    "LayerNormAct2d",
    "LayerNormAct2dFp32",
    "LayerNormActFp32",
    "RmsNormAct",
    "RmsNormAct2d",
    "RmsNormAct2dFp32",
    "RmsNormActFp32",
    "SyncBatchNormAct",
    "convert_sync_batchnorm",
    "freeze_batch_norm_2d",
    "unfreeze_batch_norm_2d",
]

Kwargs = dict[str, Any]
DropType = type[nn.Module] | None


class _Act(nn.Module):
    """What the classes below add to a norm: `drop`, `act`, and running them after it."""

    drop: nn.Module
    act: nn.Module

    def add_act(
        self, apply_act: bool, act_layer: LayerType | None, act_kwargs: Kwargs | None, inplace: bool, drop: DropType
    ) -> None:
        """Makes the two children, identities where nothing is asked for."""
        self.drop = nn.Identity() if drop is None else drop()
        wanted = get_act_layer(act_layer) if apply_act else None
        options = {"inplace": inplace} | (act_kwargs or {})
        self.act = create_act_layer(wanted, **options) or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))  # the norm, next in line


class BatchNormAct2d(_Act, nn.BatchNorm2d):
    """Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167) and activation of (N, C, H, W)."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        apply_act: bool = True, act_layer: LayerType | None = nn.ReLU, act_kwargs: Kwargs | None = None,
        inplace: bool = True, drop_layer: DropType = None,
    ) -> None:
        nn.BatchNorm2d.__init__(self, num_features, eps, momentum, affine, track_running_stats)
        self.add_act(apply_act, act_layer, act_kwargs, inplace, drop_layer)

    def _check_input_dim(self, input: Tensor) -> None:
        # torch's own check is an `if`, at which symbolic tracing stops
        _assert(input.ndim == 4, f"BatchNormAct2d({self.num_features}) takes (N, C, H, W)")


class SyncBatchNormAct(_Act, nn.SyncBatchNorm):
    """`BatchNormAct2d` with statistics over all processes; made by `convert_sync_batchnorm`, which hands it `act`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.SyncBatchNorm.__init__(self, *args, **kwargs)
        self.drop = nn.Identity()
        self.act = nn.Identity()


class FrozenBatchNormAct2d(_Act, FrozenBatchNorm2d):
    """`BatchNormAct2d` whose statistics and affine are fixed buffers."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        apply_act: bool = True, act_layer: LayerType | None = nn.ReLU, act_kwargs: Kwargs | None = None,
        inplace: bool = True, drop_layer: DropType = None,
    ) -> None:
        FrozenBatchNorm2d.__init__(self, num_features, eps)
        self.add_act(apply_act, act_layer, act_kwargs, inplace, drop_layer)


def _hand_over(old: nn.Module, new: nn.Module) -> nn.Module:
    """Gives `new` the tensors, mode, activation and drop of `old`; a frozen norm has buffers where others have both."""
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        value = getattr(old, name, None)
        if value is None or not hasattr(new, name):
            continue
        if name in new._buffers:
            setattr(new, name, value.detach())
        elif isinstance(value, nn.Parameter):
            setattr(new, name, value)
        else:
            setattr(new, name, nn.Parameter(value.detach()))
    for name in ("drop", "act"):
        if hasattr(new, name):
            setattr(new, name, getattr(old, name))
    return new.train(old.training)


def _replace(module: nn.Module, rule: Any) -> nn.Module:
    """The tree with `rule(module)` in place of each module for which it gives one; changed in place below the root."""
    new = rule(module)
    if new is not None:
        return new
    for name, child in module.named_children():
        replaced = _replace(child, rule)
        if replaced is not child:
            setattr(module, name, replaced) if name.isidentifier() else module.add_module(name, replaced)
    return module


def convert_sync_batchnorm(module: nn.Module, process_group: Any = None) -> nn.Module:
    """The module with every batch norm made a synchronised one, activations kept.

    Below the root the module is changed in place; a batch norm given itself comes back as a new module.
    """

    def rule(m: nn.Module) -> nn.Module | None:
        if not isinstance(m, _BatchNorm) or isinstance(m, nn.SyncBatchNorm):
            return None
        cls = SyncBatchNormAct if isinstance(m, BatchNormAct2d) else nn.SyncBatchNorm
        new = cls(m.num_features, m.eps, m.momentum, m.affine, m.track_running_stats, process_group)
        return _hand_over(m, new)

    return _replace(module, rule)


def freeze_batch_norm_2d(module: nn.Module) -> nn.Module:
    """The module with every 2-d (or synchronised) batch norm frozen; see `convert_sync_batchnorm` on what is changed."""

    def rule(m: nn.Module) -> nn.Module | None:
        if isinstance(m, (BatchNormAct2d, SyncBatchNormAct)):
            return _hand_over(m, FrozenBatchNormAct2d(m.num_features, m.eps, apply_act=False))
        if isinstance(m, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            return _hand_over(m, FrozenBatchNorm2d(m.num_features, m.eps))
        return None

    return _replace(module, rule)


def unfreeze_batch_norm_2d(module: nn.Module) -> nn.Module:
    """The module with every frozen batch norm an ordinary one again; see `convert_sync_batchnorm` on what is changed."""

    def rule(m: nn.Module) -> nn.Module | None:
        if isinstance(m, FrozenBatchNormAct2d):
            return _hand_over(m, BatchNormAct2d(m.num_features, m.eps, apply_act=False))
        if isinstance(m, FrozenBatchNorm2d):
            return _hand_over(m, nn.BatchNorm2d(m.num_features, m.eps))
        return None

    return _replace(module, rule)


class GroupNormAct(_Act, GroupNorm):
    """Group normalisation and activation; `group_size`, channels a group, stands in for `num_groups` where given."""

    def __init__(
        self,
        num_channels: int,
        num_groups: int = 32,
        eps: float = 1e-5,
        affine: bool = True,
        group_size: int | None = None,
        apply_act: bool = True, act_layer: LayerType | None = nn.ReLU, act_kwargs: Kwargs | None = None,
        inplace: bool = True, drop_layer: DropType = None,
    ) -> None:
        groups = num_channels // group_size if group_size else num_groups
        GroupNorm.__init__(self, num_channels, groups, eps, affine)
        self.add_act(apply_act, act_layer, act_kwargs, inplace, drop_layer)


class GroupNorm1Act(_Act, GroupNorm):
    """Group normalisation with one group, and activation."""

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        apply_act: bool = True, act_layer: LayerType | None = nn.ReLU, act_kwargs: Kwargs | None = None,
        inplace: bool = True, drop_layer: DropType = None,
    ) -> None:
        GroupNorm.__init__(self, num_channels, 1, eps, affine)
        self.add_act(apply_act, act_layer, act_kwargs, inplace, drop_layer)


class _ChannelNormAct(_Act):
    """The constructor that the norms over channels share; the norm is the second base."""

    default_eps = 1e-5

    def __init__(
        self,
        num_channels: int | Sequence[int],
        eps: float | None = None,
        affine: bool = True,
        apply_act: bool = True, act_layer: LayerType | None = nn.ReLU, act_kwargs: Kwargs | None = None,
        inplace: bool = True, drop_layer: DropType = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_channels, self.default_eps if eps is None else eps, affine, **kwargs)
        self.add_act(apply_act, act_layer, act_kwargs, inplace, drop_layer)


class LayerNormAct(_ChannelNormAct, LayerNorm):
    """Layer normalisation over the last dimension, and activation."""


class LayerNormActFp32(_ChannelNormAct, LayerNormFp32):
    """`LayerNormAct`, the norm in float32."""


class LayerNormAct2d(_ChannelNormAct, LayerNorm2d):
    """Layer normalisation over the channels of (N, C, H, W), and activation."""


class LayerNormAct2dFp32(_ChannelNormAct, LayerNorm2dFp32):
    """`LayerNormAct2d`, the norm in float32."""


class RmsNormAct(_ChannelNormAct, RmsNorm):
    """RMS normalisation over the last dimension, and activation."""

    default_eps = 1e-6


class RmsNormActFp32(_ChannelNormAct, RmsNormFp32):
    """`RmsNormAct`, the norm in float32."""

    default_eps = 1e-6


class RmsNormAct2d(_ChannelNormAct, RmsNorm2d):
    """RMS normalisation over the channels of (N, C, H, W), and activation."""

    default_eps = 1e-6


class RmsNormAct2dFp32(_ChannelNormAct, RmsNorm2dFp32):
    """`RmsNormAct2d`, the norm in float32."""

    default_eps = 1e-6
