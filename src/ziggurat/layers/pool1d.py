"""Pooling of tokens to one vector."""

from __future__ import annotations

from torch import Tensor

from ziggurat.errors import BadArgument

__all__ = ["global_pool_nlc"]


def global_pool_nlc(
    x: Tensor, pool_type: str = "token", num_prefix_tokens: int = 1, reduce_include_prefix: bool = False
) -> Tensor:
    """(N, L, C) to (N, C): the first token, or avg, max or avgmax over the tokens; '' leaves the tokens as they are.

    The first `num_prefix_tokens` (class and register tokens) are left out of a reduction unless
    `reduce_include_prefix`. Raises BadArgument for another name.
    """
    if not pool_type:
        return x
    if pool_type == "token":
        return x[:, 0]
    patches = x if reduce_include_prefix else x[:, num_prefix_tokens:]
    if pool_type == "avg":
        return patches.mean(dim=1)
    if pool_type == "max":
        return patches.amax(dim=1)
    if pool_type == "avgmax":
        return (patches.amax(dim=1) + patches.mean(dim=1)) * 0.5
    raise BadArgument(f"no token pooling {pool_type!r}: use '' or one of token, avg, max, avgmax")
