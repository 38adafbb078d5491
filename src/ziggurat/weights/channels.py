"""Input weights and pixel statistics carried over to images of other channels (bands)."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ziggurat.errors import BadArgument

__all__ = ["Bands", "adapt_input_conv", "band_rows", "is_map", "mixed_statistics", "refit_input"]

Bands = str | Sequence[Any] | None
"""How a model's input channels come from those of its weights; see `band_rows`."""


def is_map(in_chans_from: Bands) -> TypeGuard[Sequence[Any]]:
    """Whether it lists the channels one by one, instead of naming a rule."""
    return isinstance(in_chans_from, Sequence) and not isinstance(in_chans_from, str)


def band_rows(in_chans_from: Bands, in_chans: int, base_chans: int) -> Tensor:
    """What each of a model's `in_chans` channels takes of the `base_chans` that its weights were trained with.

    A float64 matrix (in_chans, base_chans) by which the input weights are multiplied:

    - 'repeat' (the default): the old channels in turn, scaled by `base_chans / in_chans`, so that an image whose
      channels repeat is answered as before; a single channel gets the sum of all.
    - 'mean': every channel the mean of the old ones, with the same scale.
    - 'first': the old channels in place, unscaled; channels beyond them start from zero, so that the model answers the
      first channels exactly as before and learns the rest.
    - a sequence with one entry a channel, taken as it is, unscaled: the index of an old channel, None for a channel
      that starts from zero, or `base_chans` numbers by which the old channels are added up.
    """
    shape = f"the model has {in_chans} channels, its weights have {base_chans}"
    options = (f"give 'repeat', 'mean', 'first', or a list with one entry for each channel of the model: an index (0 to "
               f"{base_chans - 1}), None for a channel that starts from zero, or {base_chans} numbers; {shape}")
    rows = torch.zeros(in_chans, base_chans, dtype=torch.float64)
    if in_chans_from is None or in_chans_from == "repeat":
        if in_chans == 1:
            return rows + 1.0
        turn = torch.arange(in_chans)
        rows[turn, turn % base_chans] = base_chans / in_chans
        return rows
    if in_chans_from == "mean":
        return rows + 1.0 / in_chans
    if in_chans_from == "first":
        return rows.fill_diagonal_(1.0)
    if not is_map(in_chans_from):
        raise BadArgument(f"in_chans_from={in_chans_from!r}: {options}")
    if len(in_chans_from) != in_chans:
        raise BadArgument(f"in_chans_from={list(in_chans_from)} has {len(in_chans_from)} entries: {options}")
    for row, entry in zip(rows, in_chans_from):
        if entry is None:
            continue
        if isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < base_chans:
            row[entry] = 1.0
        elif is_mixture(entry, base_chans):
            row.copy_(torch.tensor(entry, dtype=torch.float64))
        else:
            raise BadArgument(f"in_chans_from={list(in_chans_from)}: {entry!r} names no channel; {options}")
    return rows


def is_mixture(entry: Any, base_chans: int) -> bool:
    is_list = isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == base_chans
    return is_list and all(isinstance(part, Real) for part in entry)


def refit_input(weight: Tensor, rows: Tensor, channels_last: bool = True) -> Tensor:
    """An input weight (O, I, ...) with its channels mixed by `rows` (`band_rows`), in its own dtype.

    Where I is a multiple of the channels (space to depth, a linear patch embedding), each pixel's channels are mixed
    alike; they lie side by side with `channels_last`, otherwise each channel's pixels do. Raises `NotImplementedError`
    where I is no multiple. Half precision is computed in float32.
    """
    in_chans, base_chans = rows.shape
    positions, rest = divmod(weight.shape[1], base_chans)
    if rest:
        raise NotImplementedError(
            f"an input weight of {weight.shape[1]} channels cannot be refitted from {base_chans} to {in_chans}"
        )
    wide = weight if weight.dtype == torch.float64 else weight.float()
    if channels_last:
        old = wide.unflatten(1, (positions, 1, base_chans))
        over = 3
    else:
        old = wide.unflatten(1, (1, base_chans, positions))
        over = 2
    kept = rows.to(device=wide.device, dtype=wide.dtype)
    kept = kept.reshape(kept.shape + (1,) * (old.ndim - over - 1))
    return (old * kept).sum(dim=over).flatten(1, 2).to(weight.dtype)


def adapt_input_conv(in_chans: int, conv_weight: Tensor, base_chans: int = 3) -> Tensor:
    """The weight of an input convolution (O, I, kH, kW) for images of `in_chans` channels, by 'repeat' (`band_rows`).

    I may be a multiple of `base_chans` (space to depth). Raises `NotImplementedError` where it is not, and for a
    weight that is no convolution's. The dtype is kept; half precision is computed in float32.
    """
    if in_chans < 1 or base_chans < 1:
        raise BadArgument(
            f"channel counts {in_chans} and {base_chans} were given; both have to be positive. Pass the numbers of "
            "channels of the images and of the pretraining."
        )
    if conv_weight.ndim != 4:
        raise NotImplementedError(f"an input weight of {conv_weight.ndim} dimensions is no 2D convolution's")
    if in_chans == base_chans:
        return conv_weight
    return refit_input(conv_weight, band_rows("repeat", in_chans, base_chans))


def mixed_statistics(values: Sequence[float], rows: Tensor) -> tuple[float, ...]:
    """The mean (or standard deviation) of each new channel, from those of the old ones and `band_rows`.

    It is the average of the channels that the new one takes from, weighted as it takes them; of all of them for a
    channel that starts from zero.
    """
    shares = rows.abs()
    shares = torch.where(shares.sum(1, keepdim=True) == 0, torch.ones_like(shares), shares)
    mixed = shares @ torch.tensor(values, dtype=torch.float64) / shares.sum(1)
    return tuple(round(value, 6) for value in mixed.tolist())
