"""The levels that a trunk yields: draining it, choosing among them, handing them out, cutting off what is not needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import BadArgument, UnsupportedStride
from ..layers.guards import blocks
from ..layers.padding import extend
from .images import check_images, resized
from .neck import PYRAMIDS, PyramidNeck
from .plan import FeatureInfo, Plan, level_size, take_indices, take_strides
from .stitching import Boundary, ShiftsInput, boundaries, interleaved, shifted

__all__ = ["Levels"]


class Levels(nn.Module):
    """A network as the generator of its levels; the half of `Backbone` that knows of levels and of no classifier."""

    layout: ClassVar[str] = "NCHW"
    """How the trunk's levels lie in memory: NCHW, NHWC, or NLC (tokens). Views always give NCHW."""
    final_norm: ClassVar[str | None] = None
    """Path of the norm that closes the trunk, where `norm=True` may apply it to levels."""
    isotropic: ClassVar[bool] = False
    """All levels have the width and the grid of the last, so the final norm fits each of them (a plain ViT)."""
    ends_in_tokens: ClassVar[bool] = False
    """Levels are maps, and what the trunk yields behind the last are tokens (B N C) that the head reads."""

    min_size: int = 32
    """The least height and width of an image; set it lower on a model at your own risk of maps without pixels."""
    native_size: tuple[int, int] | None = None
    """The only image size that the trunk takes (an MLP over positions): images are resized to it, and maps back."""
    margin: int | None = None
    """Cells that the levels of an unpadded network lack above and to the left, where they lack some: each is given on the
    full grid of its stride, its outermost cells repeated. What the head reads is the network's own, unless stitched."""
    stitches_image: ClassVar[bool] = False
    """Stitched output strides shift the image: between levels the network's state is more than one map."""

    plan: Plan
    feature_info: FeatureInfo
    prefix_tokens: dict[str, int]
    """Name and count of the tokens before the patches, in order."""
    out_indices: tuple[int, ...] | None
    """The levels that a features-only model gives."""
    num_features: int
    in_chans: int
    architecture: str
    """The name that `create_model` made this by; empty for an object made otherwise."""
    arguments: dict[str, Any]
    """What `create_model` takes to make this object again."""
    output_stride: int | None
    """The coarsest stride allowed, as it was asked for."""
    pyramid_neck: PyramidNeck | None
    """What makes the levels of a features-only model with `pyramid=` from the only one that its trunk gives."""
    _has_norm: bool  # the trunk ends with a norm
    _lost_norm: bool  # pruning took it
    _norm: bool  # what norm=None stands for
    _depth: int  # levels that pruning has left
    _stops_at: int | None  # index of the level that a pruned trunk ends with
    _strides: tuple[int, ...]  # of the trunk's levels
    _boundaries: tuple[Boundary, ...]  # where output_stride is reached by shifting and stitching

    # ---------------------------------------------------------------- what a family says

    def trunk(self, x: Tensor, *args: Any, **inputs: Any) -> Iterator[Tensor]:
        """Yields each level of the image batch `x` (B C H W) as it is made, and last what the head reads.

        Where the last level itself is what the head reads, it is not yielded again.
        """
        raise NotImplementedError

    def runs_after(self, level: str) -> list[str]:
        """Paths of what is used after the level of the module at `level` though it is registered before it.

        Modules in the order in which they run, or parameters.
        """
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

    @property
    def is_stitched(self) -> bool:
        """Whether `output_stride` is reached by shifting and stitching, all of it or what dilation leaves."""
        return bool(self._boundaries)

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
        check_images(x, self.in_chans, self.min_size)
        stop = self._stops_at if to_end else wanted
        x = resized(x, self.native_size)
        first = self._boundaries[0] if self._boundaries else None
        images = shifted(x, first.phases, first.step) if first is not None and first.level == 0 else x
        levels: dict[int, Tensor] = {}
        level, index = x, 0
        for index, level in enumerate(self.trunk(images, **inputs)):
            if index in take:
                levels[index] = self._stitched(self._extended(level, index, x), index, x)
            if index == stop:
                break
        if self.margin is not None and not self._boundaries:
            return levels, level
        return levels, levels[index] if index in levels else self._stitched(self._extended(level, index, x), index, x)

    def _extended(self, level: Tensor, index: int, x: Tensor) -> Tensor:
        """What the trunk yielded at `index`, on the full grid of its stride where the network made less of it."""
        if self.margin is None:
            return level
        return extend(level, *level_size(x.shape[2], x.shape[3], self.plan.levels[index]["reduction"]), self.margin)

    def _as_map(self, level: Tensor, index: int, x: Tensor) -> Tensor:
        """Level `index` in the trunk's layout as an NCHW map; `x` is the image batch that it came from."""
        if self.layout == "NHWC":
            level = level.permute(0, 3, 1, 2).contiguous()
        if self.layout == "NLC":
            patches = level[:, self.num_prefix_tokens :]
            grid = self._patch_grid(self.native_size or x.shape[-2:])
            level = patches.reshape(x.shape[0], *grid, -1).permute(0, 3, 1, 2).contiguous()
        if self.native_size is None:
            return level
        return resized(level, (blocks(x.shape[-2], self._strides[index]), blocks(x.shape[-1], self._strides[index])))

    def _part(self, path: str) -> Any:
        """The submodule at `path`, looked up in a way that every supported torch.compile follows."""
        part: Any = self
        for name in path.split("."):
            part = getattr(part, name)
        return part

    def _fits_norm(self, index: int) -> bool:
        """Whether the norm that closes the trunk, where one does, fits level `index`."""
        return self._has_norm and (self.isotropic or index == len(self.plan.levels) - 1)

    def _normed(self, level: Tensor, index: int, norm: bool | None) -> Tensor:
        if not (self._norm if norm is None else norm) or not self._fits_norm(index):
            return level
        if self._lost_norm:
            raise BadArgument("norm=True: this model was pruned without its final norm; create it with "
                              "features_only=True, norm=True, or prune it with prune_norm=False")
        assert self.final_norm is not None
        return self._part(self.final_norm)(level)

    def _maps(self, levels: Mapping[int, Tensor], x: Tensor, take: Sequence[int], norm: bool | None = None) -> list[Tensor]:
        """Levels `take` as NCHW maps, behind the final norm where `norm` asks for it and it fits."""
        return [self._as_map(self._normed(levels[i], i, norm), i, x) for i in take]

    def _named_tokens(self, last: Tensor, x: Tensor) -> dict[str, Tensor]:
        named, start = {}, 0
        for name, count in self.prefix_tokens.items():
            tokens = last[:, start : start + count]
            named[name] = tokens[:, 0] if count == 1 and name != "registers" else tokens
            start += count
        named["patches"] = self._as_map(last, -1, x)
        return named

    def _levels_of_strides(self, strides: int | Sequence[int] | None) -> tuple[int, ...]:
        held = tuple(range(self._depth)) if self.out_indices is None else self.out_indices
        if strides is None:
            strides = list(dict.fromkeys(self.feature_info[i]["reduction"] for i in held))
        held = tuple(sorted(held))  # given out in any order, and the deepest is the deepest
        reductions = [self.feature_info[i]["reduction"] for i in held]
        return tuple(held[i] for i in take_strides(reductions, strides, "strides"))

    # ---------------------------------------------------------------- output strides beyond dilation

    def _hold_stride(self) -> None:
        """Sets up what shifts inputs where a level would go coarser than `output_stride`, and `feature_info`."""
        output_stride = self.output_stride
        native = [level["reduction"] for level in self.plan.levels]
        coarsest = max(native) * self.plan.dilation
        if output_stride is not None and coarsest % output_stride and output_stride & (output_stride - 1):
            divisors = [s for s in range(1, coarsest + 1) if coarsest % s == 0]
            raise BadArgument(f"output_stride={output_stride}: give one of {', '.join(map(str, divisors))}, or leave it out")
        held, found = boundaries(native, output_stride or max(native))
        if found and (self.stitches_image or self.layout == "NLC"):
            found = [Boundary(0, max(native) // held[-1], held[-1])]
        if found and self.layout == "NLC" and self.token_grid(4 * native[-1], 4 * native[-1]) != (4, 4):
            raise UnsupportedStride(f"output_stride={output_stride}: patches that are not square cannot be stitched; "
                                    "leave output_stride out")
        self._strides, self._boundaries = tuple(held), tuple(found)
        for boundary in found:
            if boundary.level:
                modules = dict(self.named_modules())
                later = self._registered_after(self.plan.levels[boundary.level - 1]["module"])
                module = modules[max(filter(modules.get, later), key=lambda path: path.count("."))]  # the nearest
                while isinstance(module, (nn.Sequential, nn.ModuleList)):
                    module = module[0]  # which is called, whether the container is or its children are
                module.register_forward_pre_hook(ShiftsInput(boundary, self.layout == "NHWC"))
        levels = (level | {"reduction": stride} for level, stride in zip(self.plan.levels, held))
        self.feature_info = FeatureInfo(levels, self.out_indices, self.plan.cut)

    def _stitched(self, level: Tensor, index: int, x: Tensor) -> Tensor:
        """What the trunk yielded at `index` as one dense map an image of the batch `x`, in the same layout.

        Tokens before the patches are those of the undisturbed network, and so is what is no map.
        """
        behind = index >= len(self.plan.levels)
        index = min(index, len(self.plan.levels) - 1)
        phases = [boundary.phases for boundary in self._boundaries if boundary.level <= index]
        if not phases:
            return level
        if behind and self.ends_in_tokens:
            return level[:: math.prod(phases) ** 2]
        batch, _, height, width = x.shape
        native, held = self.plan.levels[index]["reduction"], self._strides[index]
        size = level_size(height, width, held, self.plan.cut)
        if self._boundaries[0].level == 0 and native // held < phases[0]:  # phases that finer levels do not need
            k = native // held
            level = level.unflatten(0, (batch, phases[0], phases[0]))[:, :k, :k].flatten(0, 2)
            phases = [k]
        if self.layout == "NHWC":
            return interleaved(level.permute(0, 3, 1, 2), phases, size).permute(0, 2, 3, 1)
        if self.layout == "NLC":
            count = self.num_prefix_tokens
            maps = level[:, count:].unflatten(1, self.token_grid(height, width)).permute(0, 3, 1, 2)
            patches = interleaved(maps, phases, size).flatten(2).transpose(1, 2)
            return torch.cat((level[:: phases[0] ** 2, :count], patches), dim=1)
        return interleaved(level, phases, size)

    def _patch_grid(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the patches among the tokens handed out for an image of `size`."""
        if not self._boundaries:
            return self.token_grid(size[0], size[1])
        return level_size(size[0], size[1], self._strides[-1], self.plan.cut)

    # ---------------------------------------------------------------- made again

    def remember(self, **arguments: Any) -> None:
        """Notes what `create_model` has to be given besides, from now on, to make this object again (None: no longer).

        For every method that changes the object as an argument would.
        """
        self.arguments |= arguments
        self.arguments = {name: value for name, value in self.arguments.items() if value is not None}

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
        where a level is cut off. A features-only model gives these levels from then on.
        """
        take = take_indices(len(self.feature_info), indices, "indices")
        if self.out_indices is None:
            self._prune(max(take), prune_norm, prune_head)
        else:
            self.keep_levels(take, self._norm)
        return take

    def _prune(self, last: int, prune_norm: bool, prune_head: bool) -> None:
        """Removes what level `last` does not need; see `prune_intermediate_layers`."""
        if self.pyramid_neck is not None:
            raise BadArgument("this model makes a pyramid of one level already; create another one to choose levels")
        is_cut = last < self._depth - 1
        loses_norm = prune_norm or (is_cut and not self.isotropic)
        for path in self._registered_after(self.feature_info[last]["module"]):
            if path == self.final_norm:
                if loses_norm:
                    self._drop(path, nn.Identity())
                    self._lost_norm = True
            elif path.split(".")[0] in self._head_modules():
                continue
            elif is_cut or prune_norm or prune_head:
                self._drop(path)
                if not self.isotropic:
                    self._stops_at = last
        self._depth = last + 1
        if is_cut or self._stops_at is not None:
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or (is_cut and not self.isotropic and self.out_indices is None):
            self.drop_head()

    def keep_levels(self, out_indices: int | Sequence[int], norm: bool = False) -> None:
        """Makes this a features-only model: `forward` gives these levels, and nothing that they do not need is held.

        `norm` gives levels behind the trunk's final norm where that fits: all of a plain ViT, the last of a network
        that grows coarser. Others stay as they are, and all do where the norm lies behind the pooling or nowhere.
        `feature_info` says which are normed. Raises `BadArgument` for a level that was removed before.
        """
        made_with = dict(self.arguments)
        take = take_indices(len(self.feature_info), out_indices)
        if max(take) >= self._depth:
            raise BadArgument(f"out_indices={out_indices}: level {max(take)} was pruned; levels 0 to {self._depth - 1} are left")
        self._prune(max(take), prune_norm=not norm, prune_head=self.out_indices is None)
        self.arguments = made_with
        self.remember(features_only=True, out_indices=take, out_strides=None, norm=norm or None)
        normed = [i for i in take if norm and self._fits_norm(i)]
        for path in self._registered_after(self.feature_info[max(take)]["module"]):
            if not (normed and path == self.final_norm):
                self._drop(path)
        self.out_indices = take
        self._norm = norm
        self._stops_at = max(take)
        self.feature_info = self.feature_info.from_other(take)
        for i in normed:
            self.plan.levels[i]["norm"] = self.feature_info[i]["norm"] = True

    def add_pyramid(self, pyramid: str, strides: int | Sequence[int], channels: int | None = None) -> None:
        """Gives this features-only model of one level, all of whose network has one stride, levels of other `strides`.

        'interpolate' resamples the level, without parameters (`InterpolatedPyramid`); 'simple' is ViTDet's simple
        feature pyramid, levels of `channels` (256), to be trained (`SimplePyramid`). Its parameters are added under
        `pyramid_neck`. `feature_info` lists the new levels behind the trunk's, and gives them out.
        """
        strides = (strides,) if isinstance(strides, int) else tuple(strides)
        if pyramid not in PYRAMIDS:
            raise BadArgument(f"pyramid={pyramid!r}: give 'interpolate' or 'simple'")
        if self.pyramid_neck is not None:
            raise BadArgument("this model makes a pyramid of one level already; create another one")
        own = sorted(set(self._strides))
        if len(own) > 1:
            raise BadArgument(f"pyramid={pyramid!r}: {type(self).__name__} has levels of strides {own} by itself; "
                              "give out_strides alone")
        if self.out_indices is None or len(self.out_indices) != 1:
            raise BadArgument(f"pyramid={pyramid!r} is made from one level; choose it by out_indices=(k,)")
        if channels is not None and pyramid != "simple":
            raise BadArgument(f"pyramid_channels={channels}: pyramid={pyramid!r} keeps the level's channels; "
                              "leave it out or give pyramid='simple'")
        if not strides or min(strides) < 1 or len(set(strides)) < len(strides):
            raise BadArgument(f"out_strides={list(strides)}: give whole numbers from 1, each once, as in (4, 8, 16, 32)")
        base = self.feature_info[self.out_indices[0]]
        like = next(self.parameters())
        with like.device:
            width = {} if channels is None else {"channels": channels}
            neck = PYRAMIDS[pyramid](base["num_chs"], base["reduction"], strides, **width)
        self.pyramid_neck = neck.to(dtype=like.dtype).train(self.training)
        self.remember(pyramid=pyramid, out_strides=strides, pyramid_channels=channels)
        branches = dict(neck.named_children())
        made = [base | dict(num_chs=neck.channels, reduction=s)
                | (dict(module=f"pyramid_neck.stride{s}") if f"stride{s}" in branches else {}) for s in strides]
        count = len(self.feature_info)
        self.feature_info = FeatureInfo([*self.feature_info, *made], range(count, count + len(made)))

    def behind_levels(self) -> list[str]:
        """Paths of the modules behind the last level: norm and classifier, which a pyramid does without."""
        return self._registered_after(self.feature_info[self._depth - 1]["module"])

    def _registered_after(self, path: str) -> list[str]:
        """Paths of what is used after the module at `path`: first what is not registered in that order, then modules.

        Those are the ones registered after it, on its own level and on those above.
        """
        later: list[str] = []
        owner: nn.Module = self
        prefix = ""
        for name in path.split("."):
            names = list(owner._modules)
            later += [prefix + n for n in names[names.index(name) + 1 :] if owner._modules[n] is not None]
            prefix += name + "."
            owner = owner.get_submodule(name)
        return [name for name in self.runs_after(path) if self._holds(name)] + later

    def _holds(self, path: str) -> bool:
        """Whether the module or parameter at `path` is still there."""
        owner_path, _, name = path.rpartition(".")
        owner = self.get_submodule(owner_path)
        return any(held.get(name) is not None for held in (owner._modules, owner._parameters))

    def _drop(self, path: str, instead: nn.Module | None = None) -> None:
        owner_path, _, name = path.rpartition(".")
        owner = self.get_submodule(owner_path)
        if name in owner._parameters:
            owner._parameters[name] = None
        elif instead is None and isinstance(owner, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            del owner._modules[name]
        else:
            owner._modules[name] = instead
