"""Bring your own attention: networks of `ByobNet`'s blocks with self-attention in place of spatial convolutions.

- BoTNet: global self-attention with learned relative positions (Srinivas et al. 2021, arXiv 2101.11605).
- HaloNet: self-attention within blocks that see a halo around them (Vaswani et al. 2021, 2103.12731).
- LambdaResNet: lambda layers (Bello 2021, 2102.08602), over a neighbourhood, or over the whole map ("rpt").

Self-attention blocks stand at the end of stages, or between bottlenecks. Images may be of any size: relative positions
are interpolated linearly, as they are when weights of one image size are loaded at another; maps that halo attention's
blocks do not divide are filled up, and what lies beyond the halo of the map is masked.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..backbone import Family
from .byobnet import ECA, RZB, SE, STRIDED, Blocks, ByobNet, S, T, bottle, resnet_stages


def mixed(depth: int, width: int, attend: Collection[int], **options: Any) -> tuple[Blocks, ...]:
    """A stage of bottlenecks, with self-attention blocks at the positions `attend`."""
    options = dict(ratio=0.25) | options
    return tuple(Blocks("self_attn" if k in attend else "bottle", 1, width, **options) for k in range(depth))


def attended(depth: int, width: int, ratio: float = 0.25, **options: Any) -> Blocks:
    """A stage of self-attention blocks alone."""
    return Blocks("self_attn", depth, width, ratio=ratio, **options)


BOT = dict(self_attn_layer="bottleneck")
HALO2 = dict(self_attn_layer="halo", self_attn_kwargs=dict(block_size=8, halo_size=2))
HALO3 = dict(self_attn_layer="halo", self_attn_kwargs=dict(block_size=8, halo_size=3))
LAMBDA = dict(self_attn_layer="lambda", self_attn_kwargs=dict(r=9))
FIXED = dict(fixed_input_size=True)

R26 = T | dict(blocks=(*resnet_stages((2, 2), (256, 512)), mixed(2, 1024, {1}), attended(2, 2048)))
RX26 = T | S | ECA | dict(blocks=(
    *resnet_stages((2, 2), (256, 512), group_size=16), mixed(2, 1024, {1}, group_size=16),
    attended(2, 2048, group_size=16)))  # fmt: skip
R33 = T | S | STRIDED | SE | dict(num_features=1280, blocks=(
    bottle(2, 256, stride=1, ratio=0.25), mixed(3, 512, {2}), mixed(3, 1024, {2}),
    attended(2, 1536, ratio=0.333)))  # fmt: skip
R50 = (
    T
    | S
    | dict(
        blocks=(
            bottle(3, 256, stride=1, ratio=0.25),
            mixed(4, 512, {3}),
            mixed(6, 1024, {1, 3, 5}),
            mixed(3, 2048, {1}),
        )
    )
)

# in mixtures each stage has its own kind of attention
LAMBDA_STAGE = dict(self_attn_layer="lambda", self_attn_kwargs=dict(r=13))
HALO_STAGE = dict(self_attn_layer="halo", self_attn_kwargs=dict(halo_size=3))
BOT_STAGE = dict(self_attn_layer="bottleneck", self_attn_kwargs={})

family = Family(ByobNet, {
    "botnet26t_256": R26 | BOT | FIXED,
    "sebotnet33ts_256": R33 | BOT,
    "botnet50ts_256": R50 | BOT | FIXED,
    "eca_botnext26ts_256": RX26 | BOT | FIXED | dict(self_attn_kwargs=dict(dim_head=16)),

    "halonet_h1": HALO3 | dict(stem_type="7x7", stem_chs=64, blocks=(
        attended(3, 64, 1.0, stride=1), attended(3, 128, 1.0), attended(10, 256, 1.0), attended(3, 512, 1.0))),
    "halonet26t": R26 | HALO2,
    "sehalonet33ts": R33 | HALO3,
    "halonet50ts": R50 | HALO3 | dict(blocks=(
        bottle(3, 256, stride=1, ratio=0.25),
        mixed(4, 512, {3}, self_attn_kwargs=dict(block_size=8, halo_size=3, num_heads=4)),
        mixed(6, 1024, {1, 3, 5}), mixed(3, 2048, {1}))),
    "eca_halonext26ts": RX26 | HALO2 | dict(self_attn_kwargs=dict(block_size=8, halo_size=2, dim_head=16)),

    "lambda_resnet26t": R26 | LAMBDA,
    "lambda_resnet50ts": R50 | LAMBDA,
    "lambda_resnet26rpt_256": R26 | LAMBDA | dict(self_attn_kwargs=dict(r=None)),

    "haloregnetz_b": RZB | dict(
        self_attn_layer="halo", self_attn_kwargs=dict(block_size=7, halo_size=2, qk_ratio=0.33), blocks=(
            *resnet_stages((2, 6), (48, 96), (2, 2), 16, 3), mixed(12, 192, {3, 7, 11}, group_size=16, ratio=3),
            attended(2, 288, 3, group_size=16))),

    "lamhalobotnet50ts_256": R50 | STRIDED | dict(blocks=(
        bottle(3, 256, stride=1, ratio=0.25), mixed(4, 512, {1, 3}, **LAMBDA_STAGE),
        mixed(6, 1024, {1, 3, 5}, **HALO_STAGE), mixed(3, 2048, {1}, **BOT_STAGE))),
    "halo2botnet50ts_256": R50 | STRIDED | dict(blocks=(
        bottle(3, 256, stride=1, ratio=0.25), mixed(4, 512, {1, 3}, **HALO_STAGE),
        mixed(6, 1024, {1, 3, 5}, **HALO_STAGE), mixed(3, 2048, {1}, **BOT_STAGE))),
})  # fmt: skip

__getattr__ = family.entrypoint
