"""How an architecture's stride grows, and the levels it makes on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any, NamedTuple, overload

from ..errors import BadArgument, UnsupportedStride
from ..layers.guards import blocks, surely_equal

__all__ = ["FeatureInfo", "Plan", "Step", "check_choice", "take_indices", "take_strides"]


class Step(NamedTuple):
    """What one stage does with its stride: how far it steps, and how far its kernels are spread."""

    stride: int
    dilation: int
    first_dilation: int
    """Dilation of the stage's first block, whose input is still spread as the stage before left it."""


class Cut(NamedTuple):
    """An image size that is not of whole patches, and whose rest the published network leaves out."""

    size: tuple[int, int]
    patch: int


def level_size(height: Any, width: Any, stride: int, cut: Cut | None = None) -> tuple[Any, Any]:
    """Rows and columns of a level of `stride` for an image of `height` x `width` pixels: the sides over it, rounded up.

    Rounded down, to whole patches, at the one size of a `cut`.
    """
    if cut is not None and surely_equal((height, width), cut.size):
        height, width = (side // cut.patch * cut.patch for side in cut.size)
    return blocks(height, stride), blocks(width, stride)


class Plan:
    """The stride spent so far and the levels marked, written by a family's constructor in execution order.

    `step` spends stride until `output_stride` is reached and turns what is left over into dilation, `mark` records
    a level. The list of levels is the architecture's `feature_info`; nobody types it by hand.
    """

    def __init__(self, output_stride: int | None = None) -> None:
        self.output_stride = output_stride
        self.reduction = 1
        self.dilation = 1
        self.levels: list[dict[str, Any]] = []
        self.cut: Cut | None = None

    def spend(self, stride: int) -> int:
        """A stride that cannot be traded for dilation (a stem, a pool); returns it."""
        self.reduction *= stride
        return stride

    def step(self, stride: int) -> Step:
        """The stride and dilation of the next stage, for the stride that it has by itself."""
        before = self.dilation
        if self.output_stride is not None and stride > 1 and self.reduction * stride > self.output_stride:
            self.dilation *= stride
            stride = 1
        self.reduction *= stride
        return Step(stride, self.dilation, before)

    def mark(self, channels: int, module: str, reduction: int | None = None) -> None:
        """A level of `channels`, put out by the submodule at path `module`, at the stride reached."""
        self.levels.append(dict(num_chs=channels, reduction=reduction or self.reduction, module=module, norm=False))


class FeatureInfo(Sequence):
    """The levels of a backbone, finest first, and which of them are given out.

    Each level is a dict of `num_chs` (channels), `reduction` (stride in input pixels), `module` (the path of the
    submodule that makes it) and `norm` (whether it is given out behind the trunk's final norm). The accessors speak of
    the levels in `out_indices` (all, unless chosen), in that order; an index or a list of indices as their argument
    asks for those positions of the whole list instead.
    """

    def __init__(
        self, levels: Iterable[dict[str, Any]], out_indices: int | Sequence[int] | None = None, cut: Cut | None = None
    ) -> None:
        self.info = [dict(level) for level in levels]
        self.cut = cut
        self.out_indices = take_indices(len(self.info), out_indices)

    def from_other(self, out_indices: int | Sequence[int] | None) -> FeatureInfo:
        """The same levels with another choice of them."""
        return FeatureInfo(self.info, out_indices, self.cut)

    def __len__(self) -> int:
        return len(self.info)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self.info[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.info)

    def __repr__(self) -> str:
        rows = (f"{i}: stride {self.info[i]['reduction']}, {self.info[i]['num_chs']} channels, {self.info[i]['module']}"
                f"{', normed' if self.info[i].get('norm') else ''}"
                for i in self.out_indices)
        return f"FeatureInfo({'; '.join(rows)})"

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """One fact of the levels given out, of one level, or of the levels listed."""
        if isinstance(idx, int):
            return self.info[idx][key]
        return [self.info[i][key] for i in (self.out_indices if idx is None else idx)]

    def get_dicts(self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None) -> Any:
        """The levels as dicts, with all facts or those named in `keys`."""

        def pick(level: dict[str, Any]) -> dict[str, Any]:
            return dict(level) if keys is None else {key: level[key] for key in keys}

        if isinstance(idx, int):
            return pick(self.info[idx])
        return [pick(self.info[i]) for i in (self.out_indices if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Channels of the levels given out."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Strides of the levels given out, in input pixels."""
        return self.get("reduction", idx)

    @overload
    def sizes(self, height: int, width: int, idx: int) -> tuple[int, int]: ...
    @overload
    def sizes(self, height: int, width: int, idx: Sequence[int] | None = None) -> list[tuple[int, int]]: ...
    def sizes(self, height: int, width: int, idx: int | Sequence[int] | None = None) -> Any:
        """Rows and columns of the levels given out for an image of `height` x `width` pixels, before it is run."""
        strides = self.reduction(idx)
        sizes = [level_size(height, width, s, self.cut) for s in ([strides] if isinstance(idx, int) else strides)]
        return sizes[0] if isinstance(idx, int) else sizes

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Paths of the submodules that make the levels given out."""
        return self.get("module", idx)


def check_choice(features_only: bool, out_indices: object, out_strides: object) -> None:
    """Raises `BadArgument` unless at most one of two ways to choose levels is given, and to a features-only model."""
    if not features_only and (out_indices is not None or out_strides is not None):
        raise BadArgument("out_indices and out_strides choose the levels of features_only=True; "
                          "without it, call model.pyramid(x, strides=...) or model.forward_intermediates(x, indices=...)")
    if out_indices is not None and out_strides is not None:
        raise BadArgument("give out_indices or out_strides, not both")


def take_indices(
    count: int, indices: int | Sequence[int] | None, called: str = "out_indices"
) -> tuple[int, ...]:
    """Levels chosen by index, in the order asked for: None is all, an integer the last so many, negatives from the end.

    Raises `BadArgument` for an index that does not exist or comes twice; `called` is the argument's name in it.
    """
    if indices is None:
        return tuple(range(count))
    if isinstance(indices, (int, Integral)):
        if not 0 < indices <= count:
            raise BadArgument(f"{called}={indices} asks for the last {indices} of {count} levels; give 1 to {count}")
        return tuple(range(count - int(indices), count))
    indices = _whole_numbers(indices, called, f"a level's index is a whole number, 0 to {count - 1}")
    if not indices:
        raise BadArgument(f"{called} is empty; give some of 0 to {count - 1}")
    for i in indices:
        if not -count <= i < count:
            raise BadArgument(f"{called}={list(indices)}: there is no level {i}; levels are 0 to {count - 1} "
                              f"(or -{count} to -1 from the end)")
    chosen = tuple(i % count for i in indices)
    if len(set(chosen)) < len(chosen):
        raise BadArgument(f"{called}={list(indices)} names a level twice; name each once")
    return chosen


def take_strides(
    reductions: Sequence[int], strides: int | Sequence[int], called: str = "out_strides"
) -> tuple[int, ...]:
    """Levels chosen by stride, in the order asked for: the deepest level of each stride.

    Raises `UnsupportedStride` for a stride that no level has, listing those there are; `called` is the argument's name.
    """
    strides = (strides,) if isinstance(strides, (int, Integral)) else strides
    deepest = {reduction: index for index, reduction in enumerate(reductions)}
    strides = _whole_numbers(strides, called, f"strides are whole numbers, here {sorted(deepest)}")
    missing = [s for s in strides if s not in deepest]
    if missing:
        single = "; features_only=True with pyramid='interpolate' or 'simple' makes others of it" * (len(deepest) == 1)
        raise UnsupportedStride(f"{called}={list(strides)}: there is no level of stride {missing[0]}; "
                                f"this architecture has strides {sorted(deepest)}{single}")
    if not strides:
        raise BadArgument(f"{called} is empty; give some of {sorted(deepest)}")
    if len(set(strides)) < len(strides):
        raise BadArgument(f"{called}={list(strides)} names a stride twice; name each once")
    return tuple(deepest[s] for s in strides)


def _whole_numbers(values: Iterable[Any], called: str, rule: str) -> tuple[int, ...]:
    wrong = [value for value in values if not isinstance(value, Integral)]
    if wrong:
        raise BadArgument(f"{called}={values!r}: {wrong[0]!r} will not do; {rule}")
    return tuple(int(value) for value in values)
