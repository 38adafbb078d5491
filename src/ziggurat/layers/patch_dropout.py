"""Patch dropout: training on a random part of the tokens."""

from __future__ import annotations

import torch
from torch import nn

from ziggurat.errors import BadArgument

__all__ = ["PatchDropout", "PatchDropoutWithIndices", "patch_dropout_forward"]


def patch_dropout_forward(
    x: torch.Tensor, prob: float, num_prefix_tokens: int, ordered: bool, training: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The kept tokens and where they stood among the patches; outside training everything, and None.

    From (N, prefix + L, C) at least one patch an image is kept, and all prefix tokens. `ordered` keeps their order.
    """
    if not training or prob == 0.0:
        return x, None
    prefix, patches = x[:, :num_prefix_tokens], x[:, num_prefix_tokens:]
    batch, length = patches.shape[:2]
    keep = max(1, int(length * (1.0 - prob)))
    indices = torch.randn(batch, length, device=x.device).argsort(dim=-1)[:, :keep]
    if ordered:
        indices = indices.sort(dim=-1).values
    kept = patches.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    return torch.cat((prefix, kept), dim=1), indices


class PatchDropoutWithIndices(nn.Module):
    """Patch dropout that also says which patches it kept, as positions need to know (None where it kept all)."""

    def __init__(self, prob: float = 0.5, num_prefix_tokens: int = 1, ordered: bool = False) -> None:
        super().__init__()
        if not 0.0 <= prob < 1.0:
            raise BadArgument(f"prob={prob}: the share of patches to drop is at least 0 and below 1")
        self.prob = prob
        self.num_prefix_tokens = num_prefix_tokens
        self.ordered = ordered

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return patch_dropout_forward(x, self.prob, self.num_prefix_tokens, self.ordered, self.training)


class PatchDropout(PatchDropoutWithIndices):
    """Random patches dropped in training (Liu et al. 2022, arXiv 2208.07220; Li et al. 2022, FLIP, arXiv 2212.00794).

    (N, prefix + L, C) to (N, prefix + kept, C); nothing is dropped in evaluation.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x)[0]
