"""The levels that a trunk yields: draining it, choosing among them, handing them out, cutting off what is not needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ..errors import BadArgument
from .plan import FeatureInfo, Plan, take_indices, take_strides

__all__ = ["Levels"]


class Levels(nn.Module):
    """A network as the generator of its levels; the half of `Backbone` that knows of levels and of no classifier."""

    layout: ClassVar[str] = "NCHW"
    """How the trunk's levels lie in memory: NCHW, NHWC, or NLC (tokens). Views always give NCHW."""
    final_norm: ClassVar[str | None] = None
    """Path of the norm that closes the trunk, where `norm=True` may apply it to levels."""
    isotropic: ClassVar[bool] = False
    """All levels have the width and the grid of the last, so the final norm fits each of them (a plain ViT)."""

    plan: Plan
    feature_info: FeatureInfo
    prefix_tokens: dict[str, int]
    """Name and count of the tokens before the patches, in order."""
    out_indices: tuple[int, ...] | None
    """The levels that a features-only model gives."""
    num_features: int
    _depth: int  # levels that pruning has left
    _stops_at: int | None  # index of the level that a pruned trunk ends with

    # ---------------------------------------------------------------- what a family says

    def trunk(self, x: Tensor, *args: Any, **inputs: Any) -> Iterator[Tensor]:
        """Yields each level of the image batch `x` (B C H W) as it is made, and last what the head reads.

        Where the last level itself is what the head reads, it is not yielded again.
        """
        raise NotImplementedError

    def runs_after(self, level: str) -> list[str]:
        """Paths of modules that run after the level of the module at `level` though they are registered before it."""
        return []

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patch grid that an image of `height` x `width` pixels becomes (NLC layout)."""
        stride = self.plan.levels[-1]["reduction"]
        return -(-height // stride), -(-width // stride)

    def drop_head(self) -> None:
        """Removes the classifier and everything else that only it needs."""
        raise NotImplementedError

    def _head_modules(self) -> set[str]:
        """Top-level names of the modules that classify or serve that."""
        raise NotImplementedError

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens stand before the patches."""
        return sum(self.prefix_tokens.values())

    # ---------------------------------------------------------------- draining the trunk

    def _run(
        self, x: Tensor, take: Sequence[int], to_end: bool, **inputs: Any
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Levels `take` as the trunk yields them, and the last thing yielded.

        Nothing past the last level taken is run unless `to_end`. The generator lives and dies in this method.
        """
        wanted = max(take, default=0)
        if wanted >= self._depth:
            raise BadArgument(f"level {wanted} was pruned; levels 0 to {self._depth - 1} are left")
        stop = self._stops_at if to_end else wanted
        levels: dict[int, Tensor] = {}
        last = x
        for index, level in enumerate(self.trunk(x, **inputs)):
            last = level
            if index in take:
                levels[index] = level
            if index == stop:
                break
        return levels, last

    def _as_map(self, level: Tensor, x: Tensor) -> Tensor:
        """A level in the trunk's layout as an NCHW map; `x` is the image batch that it came from."""
        if self.layout == "NHWC":
            return level.permute(0, 3, 1, 2).contiguous()
        if self.layout == "NLC":
            rows, columns = self.token_grid(x.shape[-2], x.shape[-1])
            patches = level[:, self.num_prefix_tokens :]
            return patches.reshape(x.shape[0], rows, columns, -1).permute(0, 3, 1, 2).contiguous()
        return level

    def _normed(self, level: Tensor, index: int) -> Tensor:
        if self.final_norm is None or not (self.isotropic or index == len(self.feature_info) - 1):
            return level
        return self.get_submodule(self.final_norm)(level)

    def _named_tokens(self, last: Tensor, x: Tensor) -> dict[str, Tensor]:
        named, start = {}, 0
        for name, count in self.prefix_tokens.items():
            tokens = last[:, start : start + count]
            named[name] = tokens[:, 0] if count == 1 and name != "registers" else tokens
            start += count
        named["patches"] = self._as_map(last, x)
        return named

    def _levels_of_strides(self, strides: int | Sequence[int] | None) -> tuple[int, ...]:
        held = self.out_indices
        if held is None:
            held = tuple(range(self._depth))
        reductions = [self.feature_info[i]["reduction"] for i in held]
        if strides is None:
            strides = list(dict.fromkeys(reductions))
        return tuple(held[i] for i in take_strides(reductions, strides))

    # ---------------------------------------------------------------- pruning

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] | None = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> tuple[int, ...]:
        """Removes what no level in `indices` needs, and returns those levels as non-negative indices.

        The final norm goes with `prune_norm`, the classifier with `prune_head`, and either where it does not fit the
        level that is now last; other layers between the last level and the classifier go with either, and always
        where a level is cut off.
        """
        take = take_indices(len(self.feature_info), indices)
        last = max(take)
        is_cut = last < self._depth - 1
        loses_norm = prune_norm or (is_cut and not self.isotropic)
        for path in self._registered_after(self.feature_info[last]["module"]):
            if path == self.final_norm:
                if loses_norm:
                    self._drop(path, nn.Identity())
            elif path.split(".")[0] in self._head_modules():
                continue
            elif is_cut or prune_norm or prune_head:
                self._drop(path)
                if not self.isotropic:
                    self._stops_at = last
        self._depth = last + 1
        if is_cut or self._stops_at is not None:
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or (is_cut and not self.isotropic):
            self.drop_head()
        return take

    def keep_levels(self, out_indices: int | Sequence[int]) -> None:
        """Makes this a features-only model: `forward` gives these levels, and nothing that they do not need is held."""
        take = self.prune_intermediate_layers(out_indices, prune_norm=True, prune_head=True)
        for path in self._registered_after(self.feature_info[max(take)]["module"]):
            self._drop(path)
        self.out_indices = take
        self.feature_info = self.feature_info.from_other(take)

    def _registered_after(self, path: str) -> list[str]:
        """Paths of the modules registered after the one at `path`, on its own level and on those above."""
        later: list[str] = []
        owner: nn.Module = self
        prefix = ""
        for name in path.split("."):
            names = list(owner._modules)
            later += [prefix + n for n in names[names.index(name) + 1 :] if owner._modules[n] is not None]
            prefix += name + "."
            owner = owner.get_submodule(name)
        return later + self.runs_after(path)

    def _drop(self, path: str, instead: nn.Module | None = None) -> None:
        owner_path, _, name = path.rpartition(".")
        owner = self.get_submodule(owner_path)
        if instead is None and isinstance(owner, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            del owner._modules[name]
        else:
            owner._modules[name] = instead
