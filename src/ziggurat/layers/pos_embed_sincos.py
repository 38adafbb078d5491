"""Positions as sines and cosines: fixed embeddings, Fourier features and the rotary embeddings of attention.

A rotary table has, for each cell of a grid, a sine and a cosine for every channel of a head. Pairs of channels share
an angle: neighbours (0 and 1, 2 and 3, ...), or with `rotate_half` a channel of the first half and one of the second.
Tables are computed in float32 whatever the model's dtype, and rounded once, at the end.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ziggurat.errors import BadArgument

from .coord_grid import augment_coords, build_grid, checked_distortion, swap_shape_xy
from .guards import traced_whole
from .trace_utils import _assert

__all__ = [
    "FourierEmbed",
    "RotaryEmbedding",
    "RotaryEmbeddingCat",
    "RotaryEmbeddingDinoV3",
    "RotaryEmbeddingMRope",
    "RotaryEmbeddingMixed",
    "apply_keep_indices_nlc",
    "apply_rot_embed",
    "apply_rot_embed_cat",
    "apply_rot_embed_list",
    "build_fourier_pos_embed",
    "build_rotary_pos_embed",
    "build_sincos2d_pos_embed",
    "create_rope_embed",
    "freq_bands",
    "get_mixed_freqs",
    "get_mixed_grid",
    "init_random_2d_freqs",
    "make_coords_dinov3",
    "pixel_freq_bands",
    "rope_rotate_half",
    "rot",
    "swap_shape_xy",
]

Device = torch.device | str | None

_build_grid = build_grid


class TableIsFixed(BadArgument, RuntimeError):
    """A request for tables of several shapes to a module that was built for one."""


# -- frequencies --


def pixel_freq_bands(
    num_bands: int, max_freq: float = 224.0, linear_bands: bool = True, device: Device = None
) -> torch.Tensor:
    """`num_bands` angular frequencies from 1 to the Nyquist rate of `max_freq` pixels, spaced evenly or by octaves."""
    top = max_freq / 2
    if linear_bands:
        return torch.linspace(1.0, top, num_bands, dtype=torch.float32, device=device) * torch.pi
    return 2 ** torch.linspace(0, math.log2(top), num_bands, dtype=torch.float32, device=device) * torch.pi


def freq_bands(
    num_bands: int, temperature: float = 10000.0, step: int = 2, device: Device = None
) -> torch.Tensor:
    """Angular frequencies that fall geometrically from 1 to 1 / `temperature`, every `step`-th of `num_bands`."""
    exponents = torch.arange(0, num_bands, step, dtype=torch.int64, device=device).to(torch.float32) / num_bands
    return 1.0 / temperature**exponents


def bands_of(
    num_bands: int, in_pixels: bool, max_res: float, temperature: float, linear_bands: bool, device: Device
) -> torch.Tensor:
    """Frequencies for pixel coordinates, or those for cell indices."""
    if in_pixels:
        return pixel_freq_bands(num_bands, float(max_res), linear_bands=linear_bands, device=device)
    return freq_bands(num_bands, temperature=temperature, step=1, device=device)


@traced_whole
def frequency_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype that frequencies are kept in: float32, or float64 where that is asked for."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# -- fixed embeddings --


def build_sincos2d_pos_embed(
    feat_shape: Sequence[int],
    dim: int = 64,
    temperature: float = 10000.0,
    reverse_coord: bool = False,
    interleave_sin_cos: bool = False,
    device: Device = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The fixed 2D embedding of ViTs (Chen et al. 2021, MoCo v3, arXiv 2104.02057), (H * W, dim).

    A quarter of the channels each for sine and cosine of row and column. `reverse_coord` takes the column first;
    `interleave_sin_cos` keeps sine and cosine of a coordinate
    together. Raises `BadArgument` where `dim` is no multiple of 4.
    """
    if dim % 4:
        raise BadArgument(f"dim={dim}: sine and cosine of two coordinates need a multiple of 4")
    order = list(feat_shape)[::-1] if reverse_coord else list(feat_shape)
    cells = build_grid(order, device=device).flatten(0, -2)
    angles = cells.unsqueeze(-1) * freq_bands(dim // 4, temperature=temperature, step=1, device=device)
    waves = torch.stack((angles.sin(), angles.cos()), dim=2 if interleave_sin_cos else 1)
    return waves.flatten(1).to(dtype)


@traced_whole
def build_fourier_pos_embed(
    feat_shape: Sequence[int],
    bands: torch.Tensor | None = None,
    num_bands: int = 64,
    max_res: int = 224,
    temperature: float = 10000.0,
    linear_bands: bool = False,
    include_grid: bool = False,
    in_pixels: bool = True,
    ref_feat_shape: Sequence[int] | None = None,
    grid_offset: float = 0.0,
    grid_indexing: str = "ij",
    device: Device = None,
    dtype: torch.dtype | None = torch.float32,
    grid_type: str | None = None,
    normalize_coords: str = "separate",
    shift_coords: float | None = None,
    jitter_coords: float | None = None,
    rescale_coords: float | None = None,
) -> list[torch.Tensor]:
    """Sine and cosine of every coordinate at every frequency, each (*feat_shape, axes, bands).

    With `include_grid` the coordinates come first, (*feat_shape, axes, 1). The frequencies are `bands`, or made for
    pixel coordinates (`max_res`, `linear_bands`) or cell indices (`temperature`). For the grid see
    `coord_grid.build_grid`, for the distortion `coord_grid.augment_coords`.
    """
    distortion = checked_distortion(shift_coords, jitter_coords, rescale_coords)
    if bands is None:
        bands = bands_of(num_bands, in_pixels, max_res, temperature, linear_bands, device)
    grid = build_grid(
        feat_shape,
        grid_type=grid_type or ("pixel" if in_pixels else "index"),
        ref_feat_shape=ref_feat_shape,
        grid_offset=grid_offset,
        grid_indexing=grid_indexing,
        normalize_coords=normalize_coords,
        device=bands.device if device is None else device,
    )
    if any(setting is not None for setting in distortion):
        grid = augment_coords(grid.flatten(0, -2), *distortion).reshape(grid.shape)
    grid = grid.unsqueeze(-1)
    angles = grid * bands
    kind = bands.dtype if dtype is None else dtype
    waves = [angles.sin().to(kind), angles.cos().to(kind)]
    return [grid, *waves] if include_grid else waves


class FourierEmbed(nn.Module):
    """Fourier features of the positions, put beside the channels (Jaegle et al. 2021, Perceiver, arXiv 2103.03206).

    (N, C, H, W) to (N, H * W, C + features), or with `keep_spatial` to (N, C + features, H, W). `concat_grid` adds the
    coordinates themselves.
    """

    bands: torch.Tensor

    def __init__(
        self,
        max_res: int = 224,
        num_bands: int = 64,
        concat_grid: bool = True,
        keep_spatial: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.max_res = max_res
        self.num_bands = num_bands
        self.concat_grid = concat_grid
        self.keep_spatial = keep_spatial
        self.register_buffer("bands", torch.empty(num_bands, device=device, dtype=dtype), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute the frequencies anew, as after materialising a model that was built without memory."""
        self.bands.copy_(pixel_freq_bands(self.num_bands, float(self.max_res), device=self.bands.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (x.shape[2], x.shape[3])
        parts = build_fourier_pos_embed(
            shape, bands=self.bands, include_grid=self.concat_grid, device=x.device, dtype=x.dtype
        )
        waves = torch.cat([parts[i] for i in range(3 if self.concat_grid else 2)], dim=-1)
        features = waves.transpose(-1, -2).flatten(2).unsqueeze(0).expand(x.shape[0], -1, -1, -1)
        if self.keep_spatial:
            return torch.cat((x, features.permute(0, 3, 1, 2).type_as(x)), dim=1)
        return torch.cat((x.permute(0, 2, 3, 1), features.type_as(x)), dim=-1).flatten(1, 2)


# -- rotating --


def rot(x: torch.Tensor) -> torch.Tensor:
    """A quarter turn of neighbouring channels: (a, b, c, d) to (-b, a, -d, c)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((-odd, even), dim=-1).flatten(-2)


def rope_rotate_half(x: torch.Tensor) -> torch.Tensor:
    """A quarter turn of paired halves: (a, b, c, d) to (-c, -d, a, b)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rot_embed(x: torch.Tensor, sin_emb: torch.Tensor, cos_emb: torch.Tensor, half: bool = False) -> torch.Tensor:
    """Features (N, heads, L, dim) turned by the angles of a table (L, dim), or of one that broadcasts, in x's dtype.

    `half` says how the channels are paired.
    """
    turned = rope_rotate_half(x) if half else rot(x)
    return (x * cos_emb + turned * sin_emb).to(x.dtype)


def apply_rot_embed_list(
    x: list[torch.Tensor] | torch.Tensor, sin_emb: torch.Tensor, cos_emb: torch.Tensor, half: bool = False
) -> list[torch.Tensor]:
    """Each of several features turned by the same table, each in its own dtype; a single one makes a list of one."""
    features = [x] if isinstance(x, torch.Tensor) else x
    return [apply_rot_embed(t, sin_emb, cos_emb, half) for t in features]


def apply_rot_embed_cat(x: torch.Tensor, emb: torch.Tensor, half: bool = False) -> torch.Tensor:
    """Features turned by a table whose last axis holds the sines and then the cosines."""
    sin_emb, cos_emb = emb.chunk(2, dim=-1)
    return apply_rot_embed(x, sin_emb, cos_emb, half)


def apply_keep_indices_nlc(
    x: torch.Tensor, pos_embed: torch.Tensor, keep_indices: torch.Tensor, pos_embed_has_batch: bool = False
) -> torch.Tensor:
    """The rows of a table (..., L, dim) for the tokens kept in each image of `x`, (N, ..., kept, dim).

    `keep_indices` is (N, kept). With `pos_embed_has_batch` the table begins with an axis for the images.
    """
    table = pos_embed if pos_embed_has_batch else pos_embed.unsqueeze(0).expand(x.shape[0], *pos_embed.shape)
    between = (1,) * (table.ndim - 3)
    index = keep_indices.view(keep_indices.shape[0], *between, keep_indices.shape[1], 1)
    return table.gather(-2, index.expand(*table.shape[:-2], -1, table.shape[-1]))


def paired(angles: torch.Tensor, rotate_half: bool) -> torch.Tensor:
    """Each of (..., dim / 2) values given to both channels of its pair, (..., dim)."""
    return torch.cat((angles, angles), dim=-1) if rotate_half else angles.repeat_interleave(2, dim=-1)


@traced_whole
def build_rotary_pos_embed(
    feat_shape: Sequence[int],
    bands: torch.Tensor | None = None,
    dim: int = 64,
    max_res: int = 224,
    temperature: float = 10000.0,
    linear_bands: bool = False,
    in_pixels: bool = True,
    ref_feat_shape: Sequence[int] | None = None,
    grid_offset: float = 0.0,
    grid_indexing: str = "ij",
    rotate_half: bool = False,
    device: Device = None,
    dtype: torch.dtype | None = torch.float32,
    grid_type: str | None = None,
    normalize_coords: str = "separate",
    shift_coords: float | None = None,
    jitter_coords: float | None = None,
    rescale_coords: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sines and the cosines of an axial rotary embedding, each (cells, dim): a share of the channels an axis.

    The arguments are those of `build_fourier_pos_embed`, with `dim // 4` frequencies where no `bands` are given.
    """
    waves = build_fourier_pos_embed(
        feat_shape,
        bands=bands,
        num_bands=dim // 4,
        max_res=max_res,
        temperature=temperature,
        linear_bands=linear_bands,
        in_pixels=in_pixels,
        ref_feat_shape=ref_feat_shape,
        grid_offset=grid_offset,
        grid_indexing=grid_indexing,
        device=device,
        dtype=dtype,
        grid_type=grid_type,
        normalize_coords=normalize_coords,
        shift_coords=shift_coords,
        jitter_coords=jitter_coords,
        rescale_coords=rescale_coords,
    )
    sine, cosine = (paired(wave.flatten(-2).flatten(0, -2), rotate_half) for wave in waves)
    return sine, cosine


# -- modules --


class RotaryBase(nn.Module):
    """What the rotary modules share: frequencies that stay float32, distortion in training, batches of shapes."""

    exact: tuple[str, ...] = ()  # buffers that a cast to a 16-bit dtype leaves in float32

    def set_distortion(self, shift_coords: Any, jitter_coords: Any, rescale_coords: Any) -> None:
        checked = checked_distortion(shift_coords, jitter_coords, rescale_coords)
        self.shift_coords, self.jitter_coords, self.rescale_coords = checked
        self.aug_active = any(setting is not None for setting in checked)

    @property
    def distorts(self) -> bool:
        return self.training and self.aug_active

    def distortion(self) -> dict[str, float | None]:
        """The settings in force: none outside training."""
        if not self.distorts:
            return {}
        return dict(
            shift_coords=self.shift_coords, jitter_coords=self.jitter_coords, rescale_coords=self.rescale_coords
        )

    def distorted(self, coords: torch.Tensor) -> torch.Tensor:
        """Coordinates (cells, axes), in training randomly moved and stretched."""
        return augment_coords(coords, **self.distortion()) if self.distorts else coords

    def _apply(self, fn: Callable[..., torch.Tensor], recurse: bool = True) -> RotaryBase:
        before = {name: self._buffers.get(name) for name in self.exact}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers.get(name)
            if old is not None and new is not None and torch.finfo(new.dtype).bits < 32:
                self._buffers[name] = old.to(device=new.device, dtype=torch.float32)
        return self

    def reset_parameters(self) -> None:
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute the buffers anew, as after materialising a model that was built without memory."""
        raise NotImplementedError

    def get_embed(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Any:
        raise NotImplementedError

    def batch_of_tables(
        self, shapes: Sequence[Sequence[int]], seq_len: int | None, dtype: torch.dtype | None
    ) -> list[torch.Tensor] | torch.Tensor:
        """A table for each shape; with `seq_len` in one tensor, each filled up with zeros to that many cells."""
        if not len(shapes):
            return []
        if self.distorts:
            tables = [self.get_embed(shape, dtype=dtype) for shape in shapes]
        else:
            by_shape = {key: self.get_embed(key, dtype=dtype) for key in {tuple(shape): None for shape in shapes}}
            tables = [by_shape[tuple(shape)] for shape in shapes]
        if seq_len is None:
            return tables
        longest = max(table.shape[-2] for table in tables)
        if longest > seq_len:
            raise BadArgument(f"seq_len={seq_len}: the largest of the grids has {longest} cells; pass at least that")
        out = tables[0].new_zeros(len(tables), *tables[0].shape[:-2], seq_len, tables[0].shape[-1])
        for i, table in enumerate(tables):
            out[i, ..., : table.shape[-2], :] = table
        return out


class AxialRotary(RotaryBase):
    """The axial rotary embedding, whatever form its table is handed out in.

    With `feat_shape` the table of that grid is kept, and other shapes asked for are ignored; without it only the
    frequencies are, and each grid's table is computed when it is asked for.
    """

    exact = ("bands",)
    tables: tuple[str, ...]  # the buffers that hold the kept table
    bands: torch.Tensor

    def __init__(
        self,
        dim: int,
        max_res: float,
        temperature: float,
        in_pixels: bool,
        linear_bands: bool,
        feat_shape: Sequence[int] | None,
        ref_feat_shape: Sequence[int] | None,
        grid_offset: float,
        grid_indexing: str,
        rotate_half: bool,
        grid_type: str | None,
        normalize_coords: str,
        device: Device,
        dtype: torch.dtype | None,
        distortion: tuple[Any, Any, Any],
    ) -> None:
        super().__init__()
        self.set_distortion(*distortion)
        self.dim = dim
        self.max_res = max_res
        self.temperature = temperature
        self.in_pixels = in_pixels
        self.linear_bands = linear_bands
        self.feat_shape = None if feat_shape is None else list(feat_shape)
        self.ref_feat_shape = ref_feat_shape
        self.grid_offset = grid_offset
        self.grid_indexing = grid_indexing
        self.rotate_half = rotate_half
        self.grid_type = grid_type or ("pixel" if in_pixels else "index")
        self.normalize_coords = normalize_coords
        self._use_cached_embed = feat_shape is not None
        bands = self._compute_bands(device=device).to(frequency_dtype(dtype))
        self.register_buffer("bands", bands, persistent=False)
        if self._use_cached_embed:
            kind = torch.get_default_dtype() if dtype is None else dtype
            for name, table in zip(self.tables, self.plain_table(kind)):
                self.register_buffer(name, table, persistent=False)

    def _compute_bands(self, device: Device = None) -> torch.Tensor:
        return bands_of(self.dim // 4, self.in_pixels, self.max_res, self.temperature, self.linear_bands, device)

    def build(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        shift_coords: float | None = None,
        jitter_coords: float | None = None,
        rescale_coords: float | None = None,
    ) -> tuple[torch.Tensor, ...]:
        sine, cosine = build_rotary_pos_embed(
            shape,
            bands=self.bands,
            in_pixels=self.in_pixels,
            ref_feat_shape=self.ref_feat_shape,
            grid_offset=self.grid_offset,
            grid_indexing=self.grid_indexing,
            rotate_half=self.rotate_half,
            grid_type=self.grid_type,
            normalize_coords=self.normalize_coords,
            dtype=dtype,
            shift_coords=shift_coords,
            jitter_coords=jitter_coords,
            rescale_coords=rescale_coords,
        )
        return self.form(sine, cosine)

    def form(self, sine: torch.Tensor, cosine: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise NotImplementedError

    def plain_table(self, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        assert self.feat_shape is not None
        return self.build(self.feat_shape, dtype)

    def init_non_persistent_buffers(self) -> None:
        self.bands.copy_(self._compute_bands(device=self.bands.device))
        if self._use_cached_embed:
            kept = self.get_buffer(self.tables[0])
            for name, table in zip(self.tables, self.plain_table(kept.dtype)):
                self._buffers[name] = table

    def update_feat_shape(self, feat_shape: Sequence[int]) -> None:
        """Keep the table of another grid from now on; nothing happens where none is kept."""
        if self._use_cached_embed:
            self.feat_shape = list(feat_shape)
            self.init_non_persistent_buffers()

    def table(self, shape: Sequence[int] | None, dtype: torch.dtype | None) -> tuple[torch.Tensor, ...]:
        if self._use_cached_embed and not self.distorts:
            kept = tuple(self.get_buffer(name) for name in self.tables)
            return kept if dtype is None else tuple(table.to(dtype) for table in kept)
        wanted = self.feat_shape if self._use_cached_embed else shape
        if wanted is None:
            raise BadArgument("no table is kept: pass the shape of the grid, or build the module with feat_shape")
        return self.build(wanted, self.bands.dtype if dtype is None else dtype, **self.distortion())


class RotaryEmbedding(AxialRotary):
    """An axial rotary embedding handed out as two tensors, the sines and the cosines, each (cells, dim).

    Called with a map (N, dim, H, W) it turns that. `shift_coords`, `jitter_coords` and `rescale_coords` distort the
    coordinates in training. (Su et al. 2021, arXiv 2104.09864; over two axes, Heo et al. 2024, arXiv 2403.13298.)
    """

    tables = ("pos_embed_sin", "pos_embed_cos")

    def __init__(
        self,
        dim: int,
        max_res: float = 224,
        temperature: float = 10000,
        in_pixels: bool = True,
        linear_bands: bool = False,
        feat_shape: Sequence[int] | None = None,
        ref_feat_shape: Sequence[int] | None = None,
        grid_offset: float = 0.0,
        grid_indexing: str = "ij",
        grid_type: str | None = None,
        normalize_coords: str = "separate",
        device: Device = None,
        dtype: torch.dtype | None = None,
        shift_coords: float | None = None,
        jitter_coords: float | None = None,
        rescale_coords: float | None = None,
        rotate_half: bool = False,
    ) -> None:
        super().__init__(
            dim,
            max_res,
            temperature,
            in_pixels,
            linear_bands,
            feat_shape,
            ref_feat_shape,
            grid_offset,
            grid_indexing,
            rotate_half,
            grid_type,
            normalize_coords,
            device,
            dtype,
            (shift_coords, jitter_coords, rescale_coords),
        )

    def form(self, sine: torch.Tensor, cosine: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return sine, cosine

    def get_embed(
        self, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sines and the cosines for a grid of that shape, or for the grid whose table is kept."""
        sine, cosine = self.table(shape, dtype)
        return sine, cosine

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sine, cosine = self.get_embed([x.shape[2], x.shape[3]])
        turned = apply_rot_embed(x.flatten(2).transpose(1, 2), sine, cosine, half=self.rotate_half)
        return turned.transpose(1, 2).reshape(x.shape)


class RotaryEmbeddingCat(AxialRotary):
    """An axial rotary embedding handed out as one tensor, sines and cosines side by side, (cells, 2 * dim).

    Otherwise as `RotaryEmbedding`.
    """

    tables = ("pos_embed",)

    def __init__(
        self,
        dim: int,
        max_res: float = 224,
        temperature: float = 10000,
        in_pixels: bool = True,
        linear_bands: bool = False,
        feat_shape: Sequence[int] | None = None,
        ref_feat_shape: Sequence[int] | None = None,
        grid_offset: float = 0.0,
        grid_indexing: str = "ij",
        rotate_half: bool = False,
        grid_type: str | None = None,
        normalize_coords: str = "separate",
        device: Device = None,
        dtype: torch.dtype | None = None,
        shift_coords: float | None = None,
        jitter_coords: float | None = None,
        rescale_coords: float | None = None,
    ) -> None:
        super().__init__(
            dim,
            max_res,
            temperature,
            in_pixels,
            linear_bands,
            feat_shape,
            ref_feat_shape,
            grid_offset,
            grid_indexing,
            rotate_half,
            grid_type,
            normalize_coords,
            device,
            dtype,
            (shift_coords, jitter_coords, rescale_coords),
        )

    def form(self, sine: torch.Tensor, cosine: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.cat((sine, cosine), dim=-1),)

    def get_embed(self, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The table for a grid of that shape, or the table that is kept."""
        return self.table(shape, dtype)[0]

    def get_batch_embeds(
        self, shapes: Sequence[Sequence[int]], seq_len: int | None = None, dtype: torch.dtype | None = None
    ) -> list[torch.Tensor] | torch.Tensor:
        """A table for each shape; with `seq_len` one tensor, filled up with zeros to (shapes, seq_len, 2 * dim)."""
        if self._use_cached_embed:
            raise TableIsFixed(f"the table of {self.feat_shape} is kept: build the module without feat_shape for others")
        return self.batch_of_tables(shapes, seq_len, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = self.get_embed([x.shape[2], x.shape[3]])
        turned = apply_rot_embed_cat(x.flatten(2).transpose(1, 2), table, half=self.rotate_half)
        return turned.transpose(1, 2).reshape(x.shape)


def init_random_2d_freqs(
    head_dim: int,
    depth: int,
    num_heads: int,
    temperature: float = 10.0,
    rotate: bool = True,
    *,
    device: Device = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Start values of a mixed rotary embedding, (2, depth, heads, head_dim / 2): geometric lengths, random directions.

    `rotate=False` lets all heads look along the axes.
    """
    exponents = torch.arange(0, head_dim, 4, device=device, dtype=dtype) / head_dim
    lengths = 1.0 / temperature**exponents
    direction = torch.zeros(depth, num_heads, 1, device=device, dtype=dtype)
    if rotate:
        direction = torch.rand(depth, num_heads, 1, device=device, dtype=dtype) * (2 * math.pi)
    across = direction + math.pi / 2
    x = torch.cat((lengths * direction.cos(), lengths * across.cos()), dim=-1)
    y = torch.cat((lengths * direction.sin(), lengths * across.sin()), dim=-1)
    return torch.stack((x, y), dim=0)


@traced_whole
def get_mixed_grid(
    shape: Sequence[int], grid_indexing: str = "ij", device: Device = None, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two coordinates of all cells, each (cells,): row and column, or with 'xy' column and row.

    Each has its own memory. Raises `BadArgument` for a shape that is not (height, width).
    """
    cells = build_grid(shape, grid_indexing=grid_indexing, device=device, ndim=2).flatten(0, 1).to(dtype)
    return cells[:, 0].clone(), cells[:, 1].clone()


@traced_whole
def get_mixed_freqs(
    freqs: torch.Tensor, t_x: torch.Tensor, t_y: torch.Tensor, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The table of a mixed rotary embedding, (..., cells, 2 * head_dim), from frequencies (2, ..., head_dim / 2).

    It is computed in float32, or in float64 for frequencies of that dtype, and returned in theirs unless another is named.
    """
    exact = freqs.to(frequency_dtype(freqs.dtype)).unsqueeze(-2)
    angles = t_x.to(exact.dtype).unsqueeze(-1) * exact[0] + t_y.to(exact.dtype).unsqueeze(-1) * exact[1]
    table = torch.cat((paired(angles.sin(), False), paired(angles.cos(), False)), dim=-1)
    return table.to(freqs.dtype if dtype is None else dtype)


class RotaryEmbeddingMixed(RotaryBase):
    """A rotary embedding of learned directions, other for every block and head (Heo et al. 2024, arXiv 2403.13298).

    The table is (depth, heads, cells, 2 * head_dim), where `dim` is the width of all heads. Called with a map
    (N, dim, H, W) and the index of a block it turns that. Other arguments as in `RotaryEmbedding`.
    """

    exact = ("t_x", "t_y")
    t_x: torch.Tensor | None
    t_y: torch.Tensor | None

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        temperature: float = 10.0,
        feat_shape: Sequence[int] | None = None,
        grid_indexing: str = "xy",
        device: Device = None,
        dtype: torch.dtype | None = None,
        shift_coords: float | None = None,
        jitter_coords: float | None = None,
        rescale_coords: float | None = None,
    ) -> None:
        super().__init__()
        self.set_distortion(shift_coords, jitter_coords, rescale_coords)
        self.dim = dim
        self.depth = depth
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.temperature = temperature
        self.grid_indexing = grid_indexing
        self.feat_shape = None if feat_shape is None else list(feat_shape)
        grid = None if feat_shape is None else get_mixed_grid(feat_shape, grid_indexing, device=device)
        self.freqs = nn.Parameter(torch.empty(2, depth, num_heads, self.head_dim // 2, device=device, dtype=dtype))
        self.register_buffer("t_x", grid[0] if grid else None, persistent=False)
        self.register_buffer("t_y", grid[1] if grid else None, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            start = init_random_2d_freqs(
                self.head_dim, self.depth, self.num_heads, self.temperature, device=self.freqs.device
            )
            self.freqs.copy_(start)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        if self.feat_shape is not None and self.t_x is not None:
            self.t_x, self.t_y = get_mixed_grid(self.feat_shape, self.grid_indexing, device=self.t_x.device)

    def update_feat_shape(self, feat_shape: Sequence[int]) -> None:
        """Keep the coordinates of another grid from now on; nothing happens where none are kept."""
        if self.feat_shape is not None:
            self.feat_shape = list(feat_shape)
            self.init_non_persistent_buffers()

    def no_weight_decay(self) -> set[str]:
        """The parameters that weight decay should leave alone."""
        return {"freqs"}

    def get_embed(self, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The table for a grid of that shape, or for the grid whose coordinates are kept."""
        if shape is not None:
            t_x, t_y = get_mixed_grid(shape, self.grid_indexing, device=self.freqs.device)
        elif self.t_x is not None and self.t_y is not None:
            t_x, t_y = self.t_x, self.t_y
        else:
            raise BadArgument("no grid is kept: pass its shape, or build the module with feat_shape")
        if self.distorts:
            t_x, t_y = self.distorted(torch.stack((t_x, t_y), dim=-1)).unbind(-1)
            dtype = frequency_dtype(self.freqs.dtype) if dtype is None else dtype
        return get_mixed_freqs(self.freqs, t_x, t_y, dtype=dtype)

    def get_batch_embeds(
        self, shapes: Sequence[Sequence[int]], seq_len: int | None = None, dtype: torch.dtype | None = None
    ) -> list[torch.Tensor] | torch.Tensor:
        """A table for each shape; with `seq_len` one tensor, filled up with zeros along the cells."""
        return self.batch_of_tables(shapes, seq_len, dtype)

    def forward(self, x: torch.Tensor, block_index: int = 0) -> torch.Tensor:
        _assert(
            (block_index >= 0) & (block_index < self.depth),
            f"block_index must be at least 0 and below the depth, {self.depth}",
        )
        table = self.get_embed([x.shape[2], x.shape[3]])[block_index]
        heads = x.flatten(2).unflatten(1, (self.num_heads, self.head_dim)).transpose(2, 3)
        return apply_rot_embed_cat(heads, table).transpose(2, 3).reshape(x.shape)


class RotaryEmbeddingMRope(RotaryBase):
    """The interleaved multimodal rotary embedding of an image (Qwen3-VL, 2025): time, row and column take turns.

    The table is (cells, 2 * dim), with channels paired by halves. `mrope_section` is the number of frequencies for
    time, which stands still in an image, row and column.
    """

    exact = ("inv_freq",)
    rotate_half = True
    inv_freq: torch.Tensor
    axis: torch.Tensor

    def __init__(
        self,
        dim: int,
        mrope_section: Sequence[int] | None = (8, 12, 12),
        temperature: float = 10000.0,
        grid_indexing: str = "ij",
        device: Device = None,
        dtype: torch.dtype | None = None,
        shift_coords: float | None = None,
        jitter_coords: float | None = None,
        rescale_coords: float | None = None,
    ) -> None:
        super().__init__()
        self.set_distortion(shift_coords, jitter_coords, rescale_coords)
        if grid_indexing != "ij":
            raise BadArgument(f"grid_indexing={grid_indexing!r}: this embedding takes the row first, 'ij'")
        self.dim = dim
        self.mrope_section = tuple(mrope_section or (8, 12, 12))
        self.temperature = temperature
        self.grid_indexing = grid_indexing
        kind = frequency_dtype(dtype)
        self.register_buffer("inv_freq", torch.empty(dim // 2, device=device, dtype=kind), persistent=False)
        self.register_buffer("axis", torch.empty(dim // 2, device=device, dtype=torch.long), persistent=False)
        self.reset_parameters()

    def init_non_persistent_buffers(self) -> None:
        exponents = torch.arange(0, self.dim, 2, device=self.inv_freq.device, dtype=torch.float32) / self.dim
        self.inv_freq.copy_(1.0 / self.temperature**exponents)
        self.axis.zero_()
        for axis in (1, 2):
            self.axis[axis : self.mrope_section[axis] * 3 : 3] = axis

    def get_embed(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """The table for a grid of that shape."""
        cells = build_grid(shape, device=self.inv_freq.device, ndim=2).flatten(0, 1)
        cells = self.distorted(cells).to(self.inv_freq.dtype)
        row, column = cells[:, :1], cells[:, 1:]
        position = row * (self.axis == 1) + column * (self.axis == 2)
        angles = paired(position * self.inv_freq, rotate_half=True)
        return torch.cat((angles.sin(), angles.cos()), dim=-1).to(self.inv_freq.dtype if dtype is None else dtype)


def make_coords_dinov3(
    height: int,
    width: int,
    normalize_coords: str = "separate",
    grid_indexing: str = "ij",
    grid_offset: float = 0.0,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The centres of all cells between -1 and 1, (cells, 2)."""
    grid = build_grid(
        (height, width),
        grid_type="centered",
        normalize_coords=normalize_coords,
        grid_indexing=grid_indexing,
        grid_offset=grid_offset,
        device=device,
        dtype=dtype,
    )
    return grid.flatten(0, 1)


class RotaryEmbeddingDinoV3(RotaryBase):
    """The rotary embedding of DINOv3 (Siméoni et al. 2025, arXiv 2508.10104), a table (cells, 2 * dim).

    Coordinates run from -1 to 1 whatever the image's size. The periods follow from `temperature`, or lie between
    `min_period` and `max_period` where both are given. With `feat_shape` the table of that grid is kept.
    """

    exact = ("periods",)
    periods: torch.Tensor
    pos_embed_cached: torch.Tensor

    def __init__(
        self,
        dim: int,
        temperature: float | None = 100.0,
        min_period: float | None = None,
        max_period: float | None = None,
        feat_shape: Sequence[int] | None = None,
        normalize_coords: str = "separate",
        grid_offset: float = 0.0,
        grid_indexing: str = "ij",
        rotate_half: bool = True,
        shift_coords: float | None = None,
        jitter_coords: float | None = None,
        rescale_coords: float | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.set_distortion(shift_coords, jitter_coords, rescale_coords)
        if temperature is None and (min_period is None or max_period is None):
            raise BadArgument("periods follow from temperature, or from min_period and max_period together: pass either")
        self.dim = dim
        self.temperature = temperature
        self.min_period = min_period
        self.max_period = max_period
        self.normalize_coords = normalize_coords
        self.grid_offset = grid_offset
        self.grid_indexing = grid_indexing
        self.rotate_half = rotate_half
        self.feat_shape = None if feat_shape is None else list(feat_shape)
        periods = self.compute_periods(device).to(frequency_dtype(dtype))
        self.register_buffer("periods", periods, persistent=False)
        if self.feat_shape is not None:
            kind = torch.get_default_dtype() if dtype is None else dtype
            self.register_buffer("pos_embed_cached", self.build(self.feat_shape, kind), persistent=False)

    def compute_periods(self, device: Device) -> torch.Tensor:
        count = self.dim // 4
        if self.min_period is not None and self.max_period is not None:
            ratio = self.max_period / self.min_period
            exponents = torch.linspace(0, 1, count, device=device, dtype=torch.float32)
            return self.max_period / ratio * ratio**exponents
        assert self.temperature is not None
        exponents = torch.arange(count, device=device, dtype=torch.float32) * 2 / (self.dim // 2)
        return self.temperature**exponents

    def build(self, shape: Sequence[int], dtype: torch.dtype | None, distort: bool = False) -> torch.Tensor:
        # The grid and its distortion are made on the CPU, so that a seed gives one result on every device.
        grid = build_grid(
            shape,
            grid_type="centered",
            normalize_coords=self.normalize_coords,
            grid_indexing=self.grid_indexing,
            grid_offset=self.grid_offset,
            device="cpu",
            ndim=2,
        )
        coords = grid.flatten(0, 1)
        if distort:
            coords = self.distorted(coords)
        coords = coords.to(device=self.periods.device, dtype=self.periods.dtype)
        angles = (2 * math.pi * coords.unsqueeze(-1) / self.periods).flatten(1)
        angles = paired(angles, self.rotate_half)
        return torch.cat((angles.sin(), angles.cos()), dim=-1).to(self.periods.dtype if dtype is None else dtype)

    def init_non_persistent_buffers(self) -> None:
        self.periods.copy_(self.compute_periods(self.periods.device))
        if self.feat_shape is not None:
            self.pos_embed_cached = self.build(self.feat_shape, self.pos_embed_cached.dtype)

    def update_feat_shape(self, feat_shape: Sequence[int]) -> None:
        """Keep the table of another grid from now on; nothing happens where none is kept."""
        if self.feat_shape is not None:
            self.feat_shape = list(feat_shape)
            self.init_non_persistent_buffers()

    def get_embed(self, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The table for a grid of that shape, or the table that is kept."""
        if shape is not None:
            return self.build(shape, dtype, distort=self.distorts)
        if self.feat_shape is None:
            raise BadArgument("no table is kept: pass the shape of the grid, or build the module with feat_shape")
        if self.distorts:
            return self.build(self.feat_shape, dtype, distort=True)
        return self.pos_embed_cached if dtype is None else self.pos_embed_cached.to(dtype)

    def get_batch_embeds(
        self, shapes: Sequence[Sequence[int]], seq_len: int | None = None, dtype: torch.dtype | None = None
    ) -> list[torch.Tensor] | torch.Tensor:
        """A table for each shape; with `seq_len` one tensor, filled up with zeros to (shapes, seq_len, 2 * dim)."""
        return self.batch_of_tables(shapes, seq_len, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = self.get_embed([x.shape[2], x.shape[3]] if self.feat_shape is None else None)
        turned = apply_rot_embed_cat(x.flatten(2).transpose(1, 2), table, half=self.rotate_half)
        return turned.transpose(1, 2).reshape(x.shape)


ROPE_TYPES: dict[str, type[RotaryBase]] = {
    "base": RotaryEmbedding,
    "cat": RotaryEmbeddingCat,
    "mixed": RotaryEmbeddingMixed,
    "mrope": RotaryEmbeddingMRope,
    "dinov3": RotaryEmbeddingDinoV3,
}
FIXED_LAYOUT = {"mixed": False, "mrope": True}  # the pairing of channels where there is no choice


def create_rope_embed(rope_type: str = "cat", dim: int = 768, num_heads: int = 12, **kwargs: Any) -> nn.Module:
    """A rotary embedding by its type: 'base', 'cat', 'mixed', 'mrope' or 'dinov3', for heads that are `dim` wide together.

    One call serves all types: an argument that only another type has is passed over. Raises `BadArgument` for an
    unknown type, or a `rotate_half` that the type does not have.
    """
    if rope_type not in ROPE_TYPES:
        raise BadArgument(f"no rotary embedding {rope_type!r}: use one of {', '.join(ROPE_TYPES)}")
    if rope_type in FIXED_LAYOUT:
        wanted = kwargs.pop("rotate_half", FIXED_LAYOUT[rope_type])
        if bool(wanted) != FIXED_LAYOUT[rope_type]:
            raise BadArgument(f"rope_type={rope_type!r} requires rotate_half={FIXED_LAYOUT[rope_type]}, not {wanted}")
    accepts = {name: set(inspect.signature(cls).parameters) for name, cls in ROPE_TYPES.items()}
    foreign = set().union(*accepts.values()) - accepts[rope_type]
    kwargs = {name: value for name, value in kwargs.items() if name not in foreign}
    if rope_type == "mixed":
        return RotaryEmbeddingMixed(dim=dim, num_heads=num_heads, **kwargs)
    return ROPE_TYPES[rope_type](dim=dim // num_heads, **kwargs)
