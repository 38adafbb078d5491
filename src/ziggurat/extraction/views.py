"""A network as one function of pixels: from bytes as decoders leave them to every output asked for, in one pass."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..errors import BadArgument, UnsupportedStride, nearest
from .decoding import Preprocessing
from .outputs import Outputs

__all__ = ["Views"]

TO_THE_END = {"embedding", "scores", "tokens"}  # views that need all of the trunk


class Views(nn.Module):
    """The outputs of a network for pixels (B H W C) of 0..255: a tuple of float32 tensors, called `names`.

    'embedding' (B D), 'logits' (B K), 'taps/PATH' (B C) in the order of `outputs.taps`, 'pyramid/stride_S' (B C H/S W/S),
    'tokens/cls' (B C), 'tokens/patches' (B C H/S W/S) and what else the network has. Normalisation, by mean and standard
    deviation of `preprocessing` in units of 255, is part of it: one multiplication and addition a value.

    A tap is what a submodule puts out, as one vector an image: a map is averaged over its pixels, tokens over the patches
    without the prefix tokens, a vector stays as it is. Which axes of a map are its pixels follows from `model.layout`;
    those of a convolution are the last two always.

    The network is taken over: it is put into evaluation mode, and hooks stay on the submodules tapped, so that it runs
    through this object only. Several threads may do that at once. Nothing is run that no output needs. Raises `BadArgument` for an output that this network does not have, naming the nearest.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Backbone, outputs: Outputs, preprocessing: Preprocessing) -> None:
        super().__init__()
        if outputs.logits and not model.num_classes:
            raise BadArgument("logits: this network was made without a classifier (num_classes=0); "
                              "make it with one, or ask for the embedding")
        self.model = model.eval()
        self.strides, self.taps = outputs.strides, outputs.taps
        self.image_shape = (*preprocessing.size, preprocessing.channels)
        like = next(model.parameters())
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (preprocessing.mean, preprocessing.std))
        self.register_buffer("scale", (1 / (255 * std)).to(like.device, torch.float32), persistent=False)
        self.register_buffer("shift", (-mean / std).to(like.device, torch.float32), persistent=False)

        asked = {"embedding": outputs.embed, "scores": outputs.logits, "pyramid": bool(outputs.strides), "tokens": outputs.tokens}
        self.asked = tuple(name for name, wanted in asked.items() if wanted)
        self.run = self.asked  # views of `Backbone.extract`; more than asked for where a tap lies behind them
        self.levels: tuple[int, ...] | None = None  # instead of them: the levels to run, the deepest of them last
        self._scores_apart = False
        self._check_strides()
        self._caught: dict[int, dict[str, Any]] = {}  # what hooks have caught in the pass that a thread is in
        for tap in self.taps:
            self._module(tap).register_forward_hook(self._catch(tap))
        if self.taps:
            self._reach_taps()
        with torch.no_grad():
            found = self._views(self._probe())
        self.names = tuple(found)
        self.shapes = {name: tuple(view.shape[1:]) for name, view in found.items()}

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(view.float() for view in self._views(pixels).values())

    def _views(self, pixels: Tensor) -> dict[str, Tensor]:
        found, caught = self._pass(pixels)
        taps = {f"taps/{tap}": self._pooled(tap, caught[tap], len(pixels)) for tap in self.taps}
        vectors = {name: found[view] for name, view in (("embedding", "embedding"), ("logits", "scores")) if view in self.asked}
        levels = {f"pyramid/stride_{stride}": level for stride, level in found.get("pyramid", {}).items()}
        tokens = {f"tokens/{name}": part for name, part in found.get("tokens", {}).items()}
        return {**vectors, **taps, **levels, **tokens}

    def _pass(self, pixels: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        """One pass of the network: the views that were run, and the outputs of the modules tapped."""
        images = torch.addcmul(self.shift, pixels.float(), self.scale).permute(0, 3, 1, 2)
        images = images.to(next(self.model.parameters()).dtype)
        caught = self._caught[_thread()] = {}
        if self.levels is not None:
            levels = self.model.forward_intermediates(images, self.levels, intermediates_only=True)
            found: dict[str, Any] = {"pyramid": dict(zip(self.strides, levels))}
        else:
            found = self.model.extract(images, self.run, strides=self.strides or None)
        if self._scores_apart:
            again = self._caught[_thread()] = {}
            found["scores"] = self.model.forward_head(found["features"])
            caught = {**again, **caught}
        del self._caught[_thread()]
        return found, caught

    def _probe(self) -> Tensor:
        """Two black images: enough to see shapes, and what is one vector an image and what is not."""
        return torch.zeros((2, *self.image_shape), dtype=torch.uint8, device=self.scale.device)

    # ---------------------------------------------------------------- taps

    def _module(self, tap: str) -> nn.Module:
        modules = dict(self.model.named_modules())
        if tap not in modules:
            close = nearest(tap, modules) or [name for name, _ in self.model.named_children()]
            raise BadArgument(f"taps: {self.model.architecture or type(self.model).__name__} has no module {tap!r}; "
                              f"there is {', '.join(map(repr, close))}, and model.named_modules() names them all")
        return modules[tap]

    def _catch(self, tap: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            caught = self._caught[_thread()]
            if tap in caught:
                raise BadArgument(f"taps: the module {tap!r} is called more than once in a pass; tap one that holds it, "
                                  "or that comes after it")
            caught[tap] = output

        return hook

    def _reach_taps(self) -> None:
        """Lets as much of the network run as calls every module tapped, and no more."""
        depth = len(self.model.feature_info)
        if not TO_THE_END.intersection(self.asked) and self.model.out_indices is None:
            deepest = {self.model.feature_info[i]["reduction"]: i for i in range(depth)}
            levels = tuple(deepest[stride] for stride in self.strides)

            def reaches(last: int) -> bool:
                self.levels = tuple(dict.fromkeys((*levels, last)))
                return self._reaches()

            last = bisect_left(range(depth), True, lo=max(levels, default=0), key=reaches)
            if last < depth and reaches(last):
                return
            self.levels = None
        more = ((), ("features",), ("scores",)) if self.model.out_indices is None else ((),)
        for views in more:
            run = dict.fromkeys((*self.asked, *views))
            self._scores_apart = "embedding" in run and "scores" in run  # each pools, and what pools may be tapped
            self.run = tuple(run)
            if self._scores_apart:
                self.run = (*(view for view in run if view != "scores"), "features")
            if self.run and self._reaches():
                return
        missed = [tap for tap in self.taps if tap not in self._pass(self._probe())[1]]
        raise BadArgument(f"taps: a forward pass does not call the module {missed[0]!r} itself; tap one inside of it, "
                          "or one that holds it")

    @torch.no_grad()
    def _reaches(self) -> bool:
        return len(self._pass(self._probe())[1]) == len(self.taps)

    def _pooled(self, tap: str, output: Any, batch: int) -> Tensor:
        """The output of a tapped module as one vector an image (B C)."""
        if not isinstance(output, Tensor):
            raise BadArgument(f"taps: the module {tap!r} puts out a {type(output).__name__}, not one tensor; tap one inside of it")
        if output.ndim not in (2, 3, 4) or output.shape[0] != batch:
            raise BadArgument(f"taps: the module {tap!r} makes {list(output.shape)} of {batch} images; give one that puts out "
                              "a map, tokens or a vector for each")
        if output.ndim == 4:
            return output.mean(dim=(1, 2) if self._ends_with_channels(tap, output) else (2, 3))
        if output.ndim == 3:
            height, width = self.model.token_grid(*self.image_shape[:2])
            prefix, count = self.model.num_prefix_tokens, output.shape[1]
            return output[:, 0 if count <= prefix or count == height * width else prefix :].mean(dim=1)
        return output

    def _ends_with_channels(self, tap: str, output: Tensor) -> bool:
        """Whether a map is NHWC: what lies between the convolutions of such a network, and a grid of patches."""
        if isinstance(self.model.get_submodule(tap), nn.Conv2d) or self.model.layout == "NCHW":
            return False
        return self.model.layout == "NHWC" or tuple(output.shape[1:3]) == tuple(self.model.token_grid(*self.image_shape[:2]))

    def _check_strides(self) -> None:
        """Raises `UnsupportedStride` for a stride that this network lacks, naming the nearest."""
        neck = self.model.pyramid_neck
        there = sorted({level["reduction"] for level in self.model.feature_info} if neck is None else neck.strides)
        for stride in self.strides:
            if stride not in there:
                close = min(there, key=lambda one: max(one, stride) / min(one, stride))
                raise UnsupportedStride(f"strides={list(self.strides)}: {self.model.architecture or type(self.model).__name__} "
                                        f"has no level of stride {stride}; the nearest is {close}, of {', '.join(map(str, there))}")


def _thread() -> int:
    """This thread's number; a graph has none."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
