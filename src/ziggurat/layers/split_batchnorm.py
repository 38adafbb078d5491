"""Batch normalisation with statistics of its own for each part of the batch.

Made for training on clean and altered images at once (AdvProp, Xie et al. 2019, arXiv 1911.09665).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ziggurat.errors import BadArgument

from .norm_act import BatchNormAct2d
from .trace_utils import _assert

__all__ = ["SplitBatchNorm2d", "convert_splitbn_model"]


class SplitBatchNorm2d(nn.BatchNorm2d):
    """While training, the batch in `num_splits` equal parts: the first normalised here, the others by `aux_bn`.

    At inference the first part's statistics serve for all. Raises BadArgument for fewer than two parts, and in the
    forward pass for a batch that they do not divide.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        num_splits: int = 2,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        if num_splits < 2:
            raise BadArgument(f"a split batch norm has two parts or more, got num_splits={num_splits}")
        self.num_splits = num_splits
        self.aux_bn = nn.ModuleList(
            nn.BatchNorm2d(num_features, eps, momentum, affine, track_running_stats) for _ in range(num_splits - 1)
        )
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()

    def _check_input_dim(self, input: Tensor) -> None:
        # torch's own check is an `if`, at which symbolic tracing stops
        _assert(input.ndim == 4, f"SplitBatchNorm2d({self.num_features}) takes (N, C, H, W)")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return self.act(self.drop(super().forward(input)))
        if input.shape[0] % self.num_splits:
            raise BadArgument(f"a batch of {input.shape[0]} does not divide into {self.num_splits} equal parts")
        first, *others = input.chunk(self.num_splits)
        parts = [super().forward(first)] + [norm(part) for norm, part in zip(self.aux_bn, others)]
        return self.act(self.drop(torch.cat(parts)))


def _split(norm: _BatchNorm, num_splits: int) -> SplitBatchNorm2d:
    """A split batch norm, every part starting from the weights and statistics of `norm`."""
    new = SplitBatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, num_splits
    )
    parts: list[nn.BatchNorm2d] = [new, *new.aux_bn]
    for part in parts:
        for name, value in (*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)):
            copy = value.detach().clone()
            if isinstance(value, nn.Parameter):
                copy = nn.Parameter(copy, requires_grad=value.requires_grad)
            setattr(part, name, copy)
    if isinstance(norm, BatchNormAct2d):
        new.drop, new.act = norm.drop, norm.act
    return new.train(norm.training)


def convert_splitbn_model(module: nn.Module, num_splits: int = 2) -> nn.Module:
    """The module with every batch norm a split one, activations kept.

    Below the root the module is changed in place; a batch norm given itself comes back as a new module.
    """
    if isinstance(module, _BatchNorm):
        return _split(module, num_splits)
    for name, child in module.named_children():
        module.add_module(name, convert_splitbn_model(child, num_splits))
    return module
