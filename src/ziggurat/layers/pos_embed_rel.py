"""Relative positions as a bias of the attention within a window, from a table or from a small network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ziggurat.errors import BadArgument

from .coord_grid import build_grid
from .guards import surely_equal, traced_whole
from .interpolate import RegularGridInterpolator
from .mlp import Mlp
from .weight_init import trunc_normal_

__all__ = [
    "RelPosBias",
    "RelPosBiasTf",
    "RelPosMlp",
    "gen_relative_log_coords",
    "gen_relative_position_index",
    "resize_rel_axes",
    "resize_rel_pos_bias_table",
    "resize_rel_pos_bias_table_levit",
    "resize_rel_pos_bias_table_simple",
]

Device = torch.device | str | None


def gen_relative_position_index(
    q_size: tuple[int, int],
    k_size: tuple[int, int] | None = None,
    class_token: bool = False,
    device: Device = None,
) -> torch.Tensor:
    """The row of the table for every pair of cells of a window (H, W): (H * W, H * W), the query first.

    A table has (2H - 1) * (2W - 1) rows, one a displacement. With `class_token` a first token is added, and three
    rows: for the token reading cells, cells reading the token, and the token reading itself. Raises `BadArgument` for
    a `k_size` other than `q_size`.
    """
    if k_size is not None and tuple(k_size) != tuple(q_size):
        raise BadArgument(f"k_size={k_size}: queries and keys must share the window {q_size}")
    high, wide = q_size
    cells = build_grid(q_size, device=device).flatten(0, 1).long()
    apart = cells.unsqueeze(1) - cells.unsqueeze(0)  # query, key, axis
    index = (apart[..., 0] + high - 1) * (2 * wide - 1) + apart[..., 1] + wide - 1
    if not class_token:
        return index
    rows = (2 * high - 1) * (2 * wide - 1)
    index = F.pad(index, (1, 0, 1, 0))
    index[0, :] = rows
    index[:, 0] = rows + 1
    index[0, 0] = rows + 2
    return index


def gen_relative_log_coords(
    win_size: tuple[int, int],
    pretrained_win_size: tuple[int, int] = (0, 0),
    mode: str = "swin",
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Every displacement of a window (H, W) on a logarithmic scale, (2H - 1, 2W - 1, 2).

    'swin' puts the largest displacement, or that of the window pretrained on, at 8 first (Liu et al. 2021, Swin V2,
    arXiv 2111.09883); 'cr' counts cells.
    """
    if mode not in ("swin", "cr"):
        raise BadArgument(f"mode={mode!r}: use 'swin' or 'cr'")
    axes = [torch.arange(1 - size, size, device=device, dtype=torch.float32) for size in win_size]
    apart = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    if mode == "cr":
        return (apart.sign() * (1.0 + apart.abs()).log()).to(dtype)
    trained = pretrained_win_size if pretrained_win_size[0] > 0 else win_size
    reach = torch.tensor([max(size - 1, 1) for size in trained], device=device, dtype=torch.float32)
    apart = apart * 8 / reach
    return (apart.sign() * (1.0 + apart.abs()).log2() / math.log2(8)).to(dtype)


def resize_rel_pos_bias_table_simple(
    rel_pos_bias: torch.Tensor, new_window_size: tuple[int, int], new_bias_shape: tuple[int, ...]
) -> torch.Tensor:
    """A table for another window by bicubic interpolation: (rows, heads), or (heads, 2H - 1, 2W - 1).

    Rows beyond the displacements, those of prefix tokens, stay as they are. The old window is taken to be square.
    """
    size = (2 * new_window_size[0] - 1, 2 * new_window_size[1] - 1)
    if rel_pos_bias.ndim == 3:
        return F.interpolate(rel_pos_bias.unsqueeze(0), size=size, mode="bicubic").squeeze(0)
    extra = new_bias_shape[0] - size[0] * size[1]
    rows = rel_pos_bias.shape[0] - extra
    side = math.isqrt(rows)
    if (side, side) == size:
        return rel_pos_bias
    grid = rel_pos_bias[:rows].t().unflatten(1, (side, side)).unsqueeze(0)
    grid = F.interpolate(grid, size=size, mode="bicubic").squeeze(0).flatten(1).t()
    return torch.cat((grid, rel_pos_bias[rows:]), dim=0)


def resize_rel_pos_bias_table_levit(
    position_bias_table: torch.Tensor,
    new_size: Sequence[int],
    interpolation: str = "bicubic",
    antialias: bool = True,
) -> torch.Tensor:
    """A table (rows, heads) of a square grid for another square grid, of shape (new rows, heads), by interpolation."""
    rows, heads = position_bias_table.shape
    if rows == new_size[0]:
        return position_bias_table
    old, new = math.isqrt(rows), math.isqrt(new_size[0])
    grid = position_bias_table.t().reshape(1, heads, old, old).float()
    grid = F.interpolate(grid, size=(new, new), mode=interpolation, antialias=antialias)
    return grid.reshape(heads, new * new).t().to(position_bias_table.dtype)


def geometric_positions(old: int, new: int) -> torch.Tensor:
    """Where the `old` displacements of an axis lie among `new` ones: dense in the middle, sparse outside.

    Distances grow by a constant ratio, such that the outermost lies at the edge of the new axis (Bao et al. 2021, BEiT,
    arXiv 2106.08254).
    """
    steps, reach = old // 2, new // 2
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1.0 - ratio**steps) / (1.0 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    ratio = (low + high) / 2
    distance = torch.cumsum(ratio ** torch.arange(steps, dtype=torch.float64), dim=0)
    return torch.cat((-distance.flip(0), torch.zeros(1, dtype=torch.float64), distance))


def spread_table(table: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A table (high, wide, heads) at another size, linear between displacements in geometric steps."""
    if tuple(table.shape[:2]) == tuple(size):
        return table
    known = [geometric_positions(old, new).float() for old, new in zip(table.shape, size)]
    places = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) - n // 2 for n in size], indexing="ij")
    heads = [RegularGridInterpolator(known, head)(places) for head in table.float().cpu().unbind(-1)]
    return torch.stack(heads, dim=-1).to(table)


def resize_rel_pos_bias_table(
    rel_pos_bias: torch.Tensor,
    new_window_size: tuple[int, int],
    new_bias_shape: tuple[int, ...],
    old_window_size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """A table for another window, its old displacements spread in geometric steps and read linearly.

    It is (rows, heads), or (heads, 2H - 1, 2W - 1). Rows beyond the displacements, those of prefix tokens, stay as they are. Without `old_window_size` the old window is
    taken to be square.
    """
    if rel_pos_bias.ndim == 3:
        return spread_table(rel_pos_bias.permute(1, 2, 0), new_bias_shape[1:]).permute(2, 0, 1).contiguous()
    size = (2 * new_window_size[0] - 1, 2 * new_window_size[1] - 1)
    extra = new_bias_shape[0] - size[0] * size[1]
    rows = rel_pos_bias.shape[0] - extra
    if old_window_size is None:
        old = (math.isqrt(rows), math.isqrt(rows))
    else:
        old = (2 * old_window_size[0] - 1, 2 * old_window_size[1] - 1)
    if old == size:
        return rel_pos_bias
    resized = spread_table(rel_pos_bias[:rows].reshape(*old, -1), size).flatten(0, 1)
    return torch.cat((resized, rel_pos_bias[rows:]), dim=0)


class WindowBias(nn.Module):
    """What the biases share: scores (N, heads, L, L) plus the bias.

    A bias shared between blocks may be handed in, as to other kinds of bias; these have their own and leave it alone.
    """

    def get_bias(self) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, attn: torch.Tensor, shared_rel_pos: torch.Tensor | None = None) -> torch.Tensor:
        return attn + self.get_bias()


class RelPosBias(WindowBias):
    """A learned bias for each displacement within a window and each head (Liu et al. 2021, Swin, arXiv 2103.14030).

    `prefix_tokens` is 0, or more where the window is preceded by a token that has biases of its own.
    """

    relative_position_index: torch.Tensor

    def __init__(self, window_size: tuple[int, int], num_heads: int, prefix_tokens: int = 0) -> None:
        super().__init__()
        if prefix_tokens not in (0, 1):
            raise BadArgument(f"prefix_tokens={prefix_tokens}: a window is preceded by no token or by one")
        self.prefix_tokens = prefix_tokens
        self.num_heads = num_heads
        self.take_window(window_size)
        self.relative_position_bias_table = nn.Parameter(torch.empty(self.rows(), num_heads))
        self.register_buffer("relative_position_index", self.index(None), persistent=False)
        self.reset_parameters()

    def take_window(self, window_size: tuple[int, int]) -> None:
        self.window_size = tuple(window_size)
        self.window_area = window_size[0] * window_size[1]
        side = self.window_area + self.prefix_tokens
        self.bias_shape = (side, side, self.num_heads)

    def rows(self) -> int:
        return (2 * self.window_size[0] - 1) * (2 * self.window_size[1] - 1) + 3 * self.prefix_tokens

    def index(self, device: Device) -> torch.Tensor:
        window = (self.window_size[0], self.window_size[1])
        return gen_relative_position_index(window, class_token=self.prefix_tokens > 0, device=device).flatten()

    def reset_parameters(self) -> None:
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute the index anew, as after materialising a model that was built without memory."""
        self.relative_position_index = self.index(self.relative_position_index.device)

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Take another window from now on; the table is resized."""
        if tuple(window_size) == self.window_size:
            return
        old = (self.window_size[0], self.window_size[1])
        self.take_window(window_size)
        table = self.relative_position_bias_table
        with torch.no_grad():
            resized = resize_rel_pos_bias_table(table, window_size, (self.rows(), self.num_heads), old)
        self.relative_position_bias_table = nn.Parameter(resized, requires_grad=table.requires_grad)
        self.init_non_persistent_buffers()

    def get_bias(self) -> torch.Tensor:
        """The bias, (1, heads, L, L)."""
        bias = self.relative_position_bias_table[self.relative_position_index].view(self.bias_shape)
        return bias.permute(2, 0, 1).unsqueeze(0).contiguous()


class RelPosMlp(WindowBias):
    """A bias made by a network from the displacement, and so for any window (Liu et al. 2021, Swin V2, arXiv 2111.09883).

    `mode` 'swin' bounds the bias to 16; 'cr' does not. Prefix tokens have a bias of 0.
    """

    relative_position_index: torch.Tensor
    rel_coords_log: torch.Tensor

    def __init__(
        self,
        window_size: tuple[int, int],
        num_heads: int = 8,
        hidden_dim: int = 128,
        prefix_tokens: int = 0,
        mode: str = "cr",
        pretrained_window_size: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.window_size = tuple(window_size)
        self.window_area = window_size[0] * window_size[1]
        self.prefix_tokens = prefix_tokens
        self.num_heads = num_heads
        self.mode = mode
        self.pretrained_window_size = pretrained_window_size
        bounded = mode == "swin"
        self.bias_gain = 16 if bounded else None
        self.bias_act = nn.Sigmoid() if bounded else nn.Identity()
        self.mlp = Mlp(2, hidden_dim, num_heads, act_layer=nn.ReLU, bias=(True, not bounded), drop=(0.125, 0.0))
        self.register_buffer("relative_position_index", self.index(None), persistent=False)
        self.register_buffer("rel_coords_log", self.coords(None), persistent=False)
        self.reset_parameters()

    def index(self, device: Device) -> torch.Tensor:
        return gen_relative_position_index((self.window_size[0], self.window_size[1]), device=device).flatten()

    def coords(self, device: Device) -> torch.Tensor:
        window = (self.window_size[0], self.window_size[1])
        dtype = torch.get_default_dtype()
        return gen_relative_log_coords(window, self.pretrained_window_size, mode=self.mode, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        trunc_normal_(self.mlp.fc1.weight, std=0.02)
        trunc_normal_(self.mlp.fc2.weight, std=0.02)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute index and coordinates anew, as after materialising a model that was built without memory."""
        self.relative_position_index = self.index(self.relative_position_index.device)
        self.rel_coords_log = self.coords(self.rel_coords_log.device).to(self.rel_coords_log.dtype)

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Take another window from now on."""
        if tuple(window_size) != self.window_size:
            self.window_size = tuple(window_size)
            self.window_area = window_size[0] * window_size[1]
            self.init_non_persistent_buffers()

    def get_bias(self) -> torch.Tensor:
        """The bias, (1, heads, L, L)."""
        by_displacement = self.mlp(self.rel_coords_log).flatten(0, 1)
        bias = by_displacement[self.relative_position_index].view(self.window_area, self.window_area, self.num_heads)
        bias = self.bias_act(bias.permute(2, 0, 1))
        if self.bias_gain is not None:
            bias = self.bias_gain * bias
        if self.prefix_tokens:
            bias = F.pad(bias, (self.prefix_tokens, 0, self.prefix_tokens, 0))
        return bias.unsqueeze(0).contiguous()


class RelPosBiasTf(WindowBias):
    """The learned bias with its table laid out as in TensorFlow's models, (heads, 2H - 1, 2W - 1)."""

    height_lookup: torch.Tensor
    width_lookup: torch.Tensor

    def __init__(self, window_size: tuple[int, int], num_heads: int, prefix_tokens: int = 0) -> None:
        super().__init__()
        if prefix_tokens:
            raise BadArgument(f"prefix_tokens={prefix_tokens}: this table has no biases for prefix tokens; use RelPosBias")
        self.num_heads = num_heads
        self.take_window(window_size)
        self.relative_position_bias_table = nn.Parameter(torch.empty(num_heads, *self.bias_shape[1:]))
        for axis, name in enumerate(("height_lookup", "width_lookup")):
            self.register_buffer(name, self.lookup(axis, None), persistent=False)
        self.reset_parameters()

    def take_window(self, window_size: tuple[int, int]) -> None:
        self.window_size = tuple(window_size)
        self.window_area = window_size[0] * window_size[1]
        self.bias_shape = (self.num_heads, 2 * window_size[0] - 1, 2 * window_size[1] - 1)

    def lookup(self, axis: int, device: Device) -> torch.Tensor:
        """One-hot rows of the table's axis for each query and key: (size, size, 2 * size - 1)."""
        cells = torch.arange(self.window_size[axis], device=device)
        apart = cells - cells.unsqueeze(1) + self.window_size[axis] - 1
        return F.one_hot(apart, self.bias_shape[axis + 1]).to(torch.get_default_dtype())

    def reset_parameters(self) -> None:
        nn.init.normal_(self.relative_position_bias_table, std=0.02)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute the lookups anew, as after materialising a model that was built without memory."""
        dtype = self.height_lookup.dtype
        self.height_lookup = self.lookup(0, self.height_lookup.device).to(dtype)
        self.width_lookup = self.lookup(1, self.width_lookup.device).to(dtype)

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Take another window from now on; the table is resized."""
        if tuple(window_size) == self.window_size:
            return
        self.take_window(window_size)
        table = self.relative_position_bias_table
        with torch.no_grad():
            resized = resize_rel_pos_bias_table(table, window_size, self.bias_shape)
        self.relative_position_bias_table = nn.Parameter(resized, requires_grad=table.requires_grad)
        self.init_non_persistent_buffers()

    def get_bias(self) -> torch.Tensor:
        """The bias, (heads, L, L)."""
        bias = torch.einsum(
            "nhw,ixh,jyw->nijxy", self.relative_position_bias_table, self.height_lookup, self.width_lookup
        )
        return bias.reshape(-1, self.window_area, self.window_area)


@traced_whole
def resize_rel_axes(table: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Embeddings of displacements, (length, C) of one axis or (high, wide, C) of two, at other lengths, linearly.

    Displacement 0 stays in the middle, and the outermost ones stay outermost.
    """
    if surely_equal(table.shape, lengths):
        return table
    mode = "linear" if table.ndim == 2 else "bilinear"
    channels_first = table.movedim(-1, 0)[None].float()
    resized = F.interpolate(channels_first, size=tuple(lengths), mode=mode, align_corners=True)
    return resized[0].movedim(0, -1).to(table.dtype)
