"""A network that runs as programs of a backend: called like the network itself, for any view and any size."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..errors import BadArgument
from ..view import View, as_strides, own_view
from .choices import Trial
from .fusing import fold_preprocessing
from .program import Program, Recipe

__all__ = ["Asked", "Optimized", "Prepared", "as_batch", "key_of"]

KEPT = 8  # programs of an object at once: views times image sizes


class Asked(NamedTuple):
    """A view as `View` takes it."""

    view: str
    strides: tuple[int, ...] | None = None
    norm: bool | None = None
    outputs: tuple[str, ...] = ()

    def of(self, model: nn.Module, pixels: bool) -> View:
        """The view of `model`."""
        return View(model, self.view, self.strides, norm=self.norm, outputs=self.outputs, pixels=pixels)

    def by_name(self, model: nn.Module) -> Asked:
        """The same by its one name: what a call gives has a name of its own, but for a features-only model."""
        is_call = self.view == "forward" and isinstance(model, Backbone) and model.out_indices is None
        return self._replace(view=own_view(model)) if is_call else self


class Prepared:
    """A view made ready for images of one size (C H W): it takes any number of them, in batches of what it was made for."""

    def __init__(self, view: View, program: Program, batch: int) -> None:
        self.view, self.program = view, program
        self.batch = batch
        self._lock = threading.Lock()  # a program is called by one thread at a time, and computes in several

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """The view's outputs for images of the size that it was made for; zeros fill what lacks of the last batch."""
        count, part = len(images), self.program.recipe.part
        full = -(-count // part) * part if part and count < self.batch else -(-count // self.batch) * self.batch
        if full > count:
            images = torch.cat([images, images.new_zeros((full - count, *images.shape[1:]))])
        with self._lock:
            found = [self.program(piece) for piece in images.contiguous().split(self.batch)]
        outputs = found[0] if len(found) == 1 else tuple(map(torch.cat, zip(*found)))
        return tuple(output[:count] for output in outputs) if full > count else outputs


class Optimized:
    """A network whose views run in the backend that was found fastest; what `ziggurat.optimize` gives.

    It is called like the network: `fast(images)`, `fast.embed(images)`, `fast.pyramid(images, strides)`, `fast.tokens(images)`,
    and `fast.extract(images, outputs)` for several of these from one pass, with images (B C H W) as the network takes them, or as bytes (uint8, B C H W or B H W C), which are then normalised by
    its mean and standard deviation as part of the program. Any number of images; a view or an image size that is new is
    built when it is first asked for, in the way found for the first one, and checked like it. Outputs are float32 and have
    no gradient. Threads may share it: calls wait for each other.

    `recipe` is what was chosen, `trials` the table of what was tried (`print(fast.table())`), `view` the view that was timed.
    The network's weights are taken as they are when it is made.
    """

    def __init__(
        self, model: nn.Module, view: str, recipe: Recipe, trials: Sequence[Trial],
        prepare: Callable[[View, Tensor, Recipe], Prepared],
    ) -> None:
        self.model, self.recipe, self.trials, self.view = model, recipe, list(trials), view
        self._prepare = prepare
        self._ready: OrderedDict[tuple[Any, ...], Prepared] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, images: Tensor) -> Any:
        """What the network gives when it is called: class scores, the embedding, or a list of levels."""
        return self._run(images, Asked("forward"))

    def embed(self, images: Tensor) -> Tensor:
        """One vector an image (B D); see `Backbone.embed`."""
        vectors: Tensor = self._run(images, Asked("embed"))
        return vectors

    def pyramid(
        self, images: Tensor, strides: int | Sequence[int] | None = None, norm: bool | None = None
    ) -> dict[int, Tensor]:
        """Maps (B C H/s W/s) keyed by stride s; see `Backbone.pyramid`."""
        levels: dict[int, Tensor] = self._run(images, Asked("pyramid", as_strides(strides), norm))
        return levels

    def tokens(self, images: Tensor) -> dict[str, Tensor]:
        """The named tokens of a token network; see `Backbone.tokens`."""
        tokens: dict[str, Tensor] = self._run(images, Asked("tokens"))
        return tokens

    def extract(
        self, images: Tensor, outputs: Sequence[str] = ("embedding", "pyramid"), strides: int | Sequence[int] | None = None,
        norm: bool | None = None,
    ) -> dict[str, Any]:
        """Several views of one forward pass, by name; see `Backbone.extract`."""
        names = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        if not names:
            raise BadArgument("outputs=(): name one at least, as in ('embedding', 'pyramid')")
        found: dict[str, Any] = self._run(images, Asked("extract", as_strides(strides), norm, names))
        return found

    def eval(self) -> Optimized:
        """Itself: it is in evaluation mode always."""
        return self

    @property
    def feature_info(self) -> Any:
        """The levels of the network: `Backbone.feature_info`."""
        return self.model.feature_info

    @property
    def pretrained_cfg(self) -> Any:
        """What is known of the weights and of how images are prepared for them: `Backbone.pretrained_cfg`."""
        return self.model.pretrained_cfg

    def table(self) -> str:
        """What was tried, as text: backend, precision, parts, images/s, ratio to eager, largest error, and what became of it."""
        from .report import as_text

        return as_text(self.trials, self.recipe)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("what optimize gives holds programs of this process and can be neither copied nor pickled: copy or "
                        "pickle the model, and optimize it there; the choice is kept on disk, so that is quick")

    def __repr__(self) -> str:
        network = getattr(self.model, "architecture", "") or type(self.model).__name__
        return f"Optimized({network}, {self.view}: {self.recipe})"

    def _run(self, images: Tensor, asked: Asked) -> Any:
        images = as_batch(self.model, images)
        if not len(images):
            raise BadArgument(f"images of shape {tuple(images.shape)}: give one at least")
        asked = asked.by_name(self.model)
        key = key_of(asked, images)
        with self._lock:
            ready = self._ready.pop(key, None)
            if ready is None:
                view = asked.of(self.model, images.dtype == torch.uint8).describe(images[:1])
                ready = self._prepare(fold_preprocessing(view), images, self.recipe)
            self.keep(key, ready)
        return ready.view.pack(ready(images))

    def keep(self, key: tuple[Any, ...], ready: Prepared) -> None:
        """Has `ready` for what `key` says; the one not used for longest goes."""
        self._ready[key] = ready
        if len(self._ready) > KEPT:
            self._ready.popitem(last=False)


def key_of(asked: Asked, images: Tensor) -> tuple[Any, ...]:
    """What one program is for: a view, of numbers or bytes, of one size."""
    return asked, images.dtype == torch.uint8, tuple(images.shape[1:])


def as_batch(model: nn.Module, images: Tensor) -> Tensor:
    """Images as programs take them, (B C H W), bytes or float32: bytes may come as (B H W C), numbers in any precision.

    Raises `BadArgument` for what is no batch, or not where the network is.
    """
    channels = getattr(model, "in_chans", None)
    if not isinstance(images, Tensor) or images.ndim != 4:
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise BadArgument(f"images: give a tensor (B C H W), not {what}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise BadArgument(f"images of {images.dtype}: give floating-point numbers as the network takes them, or bytes (uint8)")
    if images.dtype == torch.uint8 and channels is not None and images.shape[1] != channels == images.shape[3]:
        images = images.permute(0, 3, 1, 2)
    if channels is not None and images.shape[1] != channels:
        raise BadArgument(f"images of shape {tuple(images.shape)}: this network takes {channels} channels (B {channels} H W)")
    device = next(model.parameters(), images).device
    if images.device != device:
        raise BadArgument(f"images are on {images.device} and the network on {device}: bring both to one device")
    return images.detach() if images.dtype == torch.uint8 else images.detach().float()
