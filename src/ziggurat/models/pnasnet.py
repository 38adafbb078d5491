"""PNASNet-5: cells found by a search that goes from simple to complex ones (Liu et al. 2017, arXiv 1712.00559).

Built as NASNet is (`nasnet.py`), of one cell for all purposes: at stride 2 it reduces, and a convolution then takes
the place of its skip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backbone import Family
from .nasnet import PREV, SUM0, SUM1, SUM2, SUM3, SUM4, CellBackbone, CellPlan, Genotype, X

__all__ = ["PNASNet", "PNASNet5Large"]

CELL = Genotype(
    sums=(
        (("sep5", PREV), ("max", PREV)),
        (("sep7", X), ("max", X)),
        (("sep5", X), ("sep3", X)),
        (("sep3", SUM2), ("max", X)),
        (("sep3", PREV), ("skip", X)),
    ),
    joined=(SUM0, SUM1, SUM2, SUM3, SUM4),
)


class PNASNet(CellBackbone):
    """PNASNet-5.

    - `stem_size`: channels of the stem; `num_features`: of the last map.
    - `num_cells`: cells in each of the three stacks.
    - `pad_type`, `pool_pad_type`: as in `NASNet`.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        stem_size: int = 96,
        num_features: int = 4320,
        num_cells: int = 4,
        global_pool: str = "avg",
        output_stride: int | None = None,
        pad_type: str | Sequence[str] = "same",
        pool_pad_type: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, output_stride, **kwargs)
        last = num_features // len(CELL.joined)
        cells = [CellPlan(f"cell_stem_{i}", CELL, last // width, 2) for i, width in enumerate((16, 8))]
        for i in range(3 * num_cells):
            stack, place = divmod(i, num_cells)
            cells.append(CellPlan(f"cell_{i}", CELL, last // (4, 2, 1)[stack], 2 if stack and not place else 1))
        self.add_cells("conv_0", stem_size, cells, pad_type, pool_pad_type)
        self.make_head("last_linear")


PNASNet5Large = PNASNet  # compat: timm's name of the class

family = Family(PNASNet, {
    "pnasnet": dict(stem_size=32, num_features=1080, num_cells=3),
    "pnasnet5large": dict(),
})  # fmt: skip

__getattr__ = family.entrypoint
