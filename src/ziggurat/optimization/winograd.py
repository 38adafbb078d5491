"""3x3 convolutions of stride 1 by Winograd's minimal filtering, as matrix products: 2.25 multiplications an output, not 9.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016: F(4x4, 3x3). A map is cut into tiles of 4 x 4
outputs, each of which reads 6 x 6 inputs; 36 linear combinations of these, times the same combinations of the filters,
summed over channels, are combined to the 16 outputs.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["WinogradConvolution", "applies"]

SIDE = 4  # outputs of a tile, along each side
INPUTS = SIDE + 2
PRODUCTS = INPUTS**2
GROUPS = 4  # at most: they are computed one after the other
CACHE = 2**20  # bytes of a strip's inputs, which stay in a core's cache until they are multiplied

# along one side, for the points 0, 1, -1, 2, -2 and infinity: of the inputs, the filter, the products
OF_INPUTS = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
             [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
OF_FILTER: list[list[float]] = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
             [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
OF_PRODUCTS = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def _both_sides(matrix: Sequence[Sequence[float]]) -> Tensor:
    """The map of a square that applies `matrix` along each of its sides."""
    one = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one, one)


TO_PRODUCTS = _both_sides(OF_INPUTS).float()
TO_OUTPUTS = _both_sides(OF_PRODUCTS).float()


def applies(
    kernel: Sequence[int], stride: Sequence[int], padding: object, dilation: Sequence[int], groups: int,
) -> bool:
    """Whether `WinogradConvolution` computes such a convolution: 3x3, of stride 1, padded by one, with few groups."""
    return tuple(kernel) == (3, 3) and groups <= GROUPS and all(
        sides in ((1, 1), [1, 1]) for sides in (stride, padding, dilation))


class WinogradConvolution(nn.Module):
    """A 3x3 convolution of stride 1, padded by one, with the sum and the activation that follow it.

    It takes maps (N C H W), best in channels_last memory, and maps (N K H W) to add, if any; it gives (N K H W) in
    channels_last memory. Its filters (K C/groups 3 3) take four times the memory that they took. `activation` is of single
    elements, and may write to what it is given.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, groups: int = 1,
        activation: Callable[[Tensor], Tensor] = lambda maps: maps,
    ) -> None:
        super().__init__()
        self.activation = activation
        matrices = weight.detach().double().flatten(2) @ _both_sides(OF_FILTER).mT  # K C/groups 36
        matrices = matrices.unflatten(0, (groups, -1)).permute(0, 3, 2, 1)
        self.register_buffer("weight", matrices.float().contiguous(), persistent=False)  # groups 36 C/groups K/groups
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def forward(self, images: Tensor, other: Tensor | None = None) -> Tensor:
        count, _, height, width = images.shape
        groups, _, channels, filters = self.weight.shape
        rows, columns = -(-height // SIDE), -(-width // SIDE)
        tiles = _tiles(images, rows, columns)
        maps = images.new_empty(count, SIDE * rows, SIDE * columns, groups * filters)
        pieces = maps.view(count, rows, SIDE, columns, SIDE, -1).permute(2, 4, 0, 1, 3, 5)
        size = 4 * PRODUCTS * columns * groups * max(channels, filters)  # bytes of one row of tiles
        for part, strip in _strips(count, rows, max(CACHE, self.weight.nbytes // 4) // size):
            piece = tiles[:, :, part, strip]
            number = piece[0, 0, ..., 0].numel()  # of tiles
            inputs = SCRATCH.take("inputs", piece.shape).copy_(piece)
            products = SCRATCH.take("products", (PRODUCTS, number, groups, channels))
            torch.mm(TO_PRODUCTS, inputs.view(PRODUCTS, -1), out=products.view(PRODUCTS, -1))
            sums = SCRATCH.take("sums", (PRODUCTS, number, groups, filters))
            for group in range(groups):
                torch.bmm(products[:, :, group], self.weight[group], out=sums[:, :, group])
            outputs = SCRATCH.take("inputs", (SIDE**2, number * groups * filters))
            torch.mm(TO_OUTPUTS, sums.view(PRODUCTS, -1), out=outputs)
            outputs = outputs.view(SIDE, SIDE, *piece.shape[2:5], -1)
            if self.bias is not None:
                outputs += self.bias
            pieces[:, :, part, strip] = self.activation(outputs) if other is None else outputs
        maps = maps[:, :height, :width].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        return maps if other is None else self.activation(maps.add_(other))


class _Scratch(threading.local):
    """Memory of each thread for what lies between, kept: pages that are new to the process cost as much as the products."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """Memory of that `shape`, whatever it holds; it is the same as was given for `name` before."""
        numbers = math.prod(shape)
        if name not in self.kept or self.kept[name].numel() < numbers:
            with torch.inference_mode(False):  # to be written to within that mode and outside of it
                self.kept[name] = torch.empty(numbers)
        return self.kept[name][:numbers].view(shape)


SCRATCH = _Scratch()


def _tiles(images: Tensor, rows: int, columns: int) -> Tensor:
    """The inputs of each tile (6 6 N rows columns C) of maps (N C H W), with zeros around them."""
    count, channels, height, width = images.shape
    padded = SCRATCH.take("padded", (count, SIDE * rows + 2, SIDE * columns + 2, channels))
    padded[:, 1 : height + 1, 1 : width + 1] = images.permute(0, 2, 3, 1)
    padded[:, 0] = padded[:, height + 1 :] = padded[:, :, 0] = padded[:, :, width + 1 :] = 0
    image, row, column, channel = padded.stride()
    return padded.as_strided((INPUTS, INPUTS, count, rows, columns, channels),
                             (row, column, image, SIDE * row, SIDE * column, channel))


def _strips(images: int, rows: int, fitting: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of tiles to compute at once, some `fitting` rows each: whole images, or strips of one."""
    if fitting >= rows:
        step = fitting // rows
        yield from ((slice(first, first + step), slice(None)) for first in range(0, images, step))
        return
    pieces = -(-rows // max(fitting, 1))
    bounds = [rows * i // pieces for i in range(pieces + 1)]
    for first in range(images):
        yield from ((slice(first, first + 1), slice(*ends)) for ends in pairwise(bounds))
