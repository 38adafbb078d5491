"""One view of a network as a function from images to named tensors: what compilers and formats can take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .backbone import Backbone
from .errors import BadArgument

__all__ = ["View", "as_strides", "evaluating", "largest_error", "own_view"]


class View(nn.Module):
    """A view of `model` as a function from images (B C H W) to a tuple of tensors, called `names`.

    - 'classify': 'scores' (B D); 'embed': 'embedding' (B D); 'tokens': 'patches' (B C H/S W/S), 'cls' (B C) and what else
      there is; 'pyramid': 'stride_4' (B C H/4 W/4) and so on, the deepest level of each of `strides` (None: of all).
    - 'extract': several of these from one pass, named in `outputs` as `Backbone.extract` names them: 'scores', 'embedding',
      'tokens', 'features' and 'pyramid'.
    - 'forward': what `model(images)` gives. It is the only view of a module that is no backbone ('output', or 'output_0',
      'output_1' ...), and gives the levels of a features-only model in their order: 'stride_4' and so on, with
      '_level_I' behind it where several have one stride.

    With `pixels`, images are bytes of 0..255, uint8 (B C H W), and normalising them by the mean and standard deviation of
    `model.pretrained_cfg` is part of the function. `pack` gives the tuple the form in which the model itself gives the view.

    The network is put into evaluation mode. Outputs are float32, whatever it computes in. Raises `BadArgument` for a view
    that this network does not have, and `UnsupportedStride`.
    """

    mean: Tensor
    std: Tensor | None
    """Of bytes (C 1 1); None where the first layer's weights divide by it (`optimization.fusing.fold_preprocessing`)."""

    def __init__(
        self, model: nn.Module, view: str, strides: int | Sequence[int] | None = None, *, norm: bool | None = None,
        outputs: Sequence[str] = (), pixels: bool = False,
    ) -> None:
        super().__init__()
        allowed = ("extract",) if outputs and isinstance(model, Backbone) else _views_of(model)
        if view not in allowed:
            raise BadArgument(f"view={view!r}: {_name(model)} gives {', '.join(map(repr, allowed))}")
        for argument, value in (("strides", strides), ("norm", norm)):
            if value is not None and view not in ("pyramid", "extract"):
                raise BadArgument(f"{argument}={value!r} is for view='pyramid', and view={view!r} was asked for")
        self.model = model.eval()
        self.view, self.norm, self.outputs, self.pixels = view, norm, tuple(outputs), pixels
        self.strides = as_strides(strides)
        cfg = getattr(model, "pretrained_cfg", None) or {}
        if pixels and not (cfg.get("mean") and cfg.get("std")):
            raise BadArgument(f"images of bytes: {_name(model)} states no mean and std to normalise them by; give normalised "
                              "numbers, or set model.pretrained_cfg = dict(mean=..., std=...)")
        like = next(model.parameters(), torch.empty(()))
        for name, default in (("mean", 0.0), ("std", 1.0)):
            values = torch.tensor(cfg.get(name, default), dtype=torch.float32, device=like.device)
            self.register_buffer(name, 255 * values.reshape(-1, 1, 1), persistent=False)
        self._form: Any = None
        self.names: tuple[str, ...] = ()
        self.shapes: tuple[tuple[int, ...], ...] = ()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.float() for output in self._leaves(images)[0])

    def _leaves(self, images: Tensor) -> tuple[list[Tensor], Any]:
        if self.pixels:
            images = images.float() - self.mean
            images = images if self.std is None else images / self.std
        dtype = next((p.dtype for p in self.model.parameters()), images.dtype)
        return pytree.tree_flatten(self._given(images.to(dtype)))

    def _given(self, images: Tensor) -> Any:
        model: Any = self.model
        if self.view == "forward" or (self.view == "pyramid" and model.out_indices is not None and not self.strides):
            found = model(images)
            return found if self.view == "forward" else dict(zip(_strides_of(model), found))
        if self.view == "classify":
            return model(images)
        if self.view == "embed":
            return model.embed(images)
        if self.view == "extract":
            return model.extract(images, self.outputs, self.strides, norm=self.norm)
        return model.tokens(images) if self.view == "tokens" else model.pyramid(images, self.strides, norm=self.norm)

    @torch.no_grad()
    def describe(self, images: Tensor) -> View:
        """Runs on `images` to find `names`, `shapes` (without the batch) and the form for `pack`; returns itself."""
        leaves, self._form = self._leaves(images)
        self.names = _names_of(self.model, self.view, self._form, leaves)
        self.shapes = tuple(tuple(leaf.shape[1:]) for leaf in leaves)
        return self

    def pack(self, outputs: Sequence[Tensor]) -> Any:
        """What the model itself gives for the view, made of the tuple that `forward` gives; after `describe`."""
        assert self._form is not None, "describe comes first"
        return pytree.tree_unflatten(list(outputs), self._form)


def own_view(model: nn.Module) -> str:
    """The view that `model(images)` is: 'classify', 'embed' or 'pyramid'.

    'forward' of a module that is no backbone, and of one without classes or pooling.
    """
    if not isinstance(model, Backbone):
        return "forward"
    if model.out_indices is not None:
        return "pyramid"
    return "classify" if model.num_classes else "embed" if model.has_embedding else "forward"


def as_strides(strides: object) -> tuple[int, ...] | None:
    """One stride, several or None (all), as it was given to a view. Raises `BadArgument` for what is no stride."""
    if strides is None or isinstance(strides, int):
        return None if strides is None else (strides,)
    found = tuple(strides) if isinstance(strides, Iterable) else (strides,)
    if not all(isinstance(stride, int) for stride in found):
        raise BadArgument(f"strides={strides!r}: give a stride, or a list of them")
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Has `model` in evaluation mode for as long as the block lasts; every module is then in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def largest_error(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest absolute difference of an output, as a share of its reference's largest absolute value.

    Infinite where an output has another shape, or is not finite where the reference is.
    """
    worst = 0.0
    for output, expected in zip(outputs, reference, strict=True):
        if output.shape != expected.shape:
            return float("inf")
        output, expected = output.to(expected.device, torch.float64), expected.double()
        scale = expected.abs().max().item() if expected.numel() else 0.0
        difference = (output - expected).abs().max().item() if expected.numel() else 0.0
        error = difference / scale if scale else difference
        worst = max(worst, error) if error == error else float("inf")
    return worst


def _views_of(model: nn.Module) -> tuple[str, ...]:
    if not isinstance(model, Backbone):
        return ("forward",)
    if model.out_indices is not None:
        return ("pyramid", "forward")
    return (*(("classify",) if model.num_classes else ()), "embed", "pyramid",
            *(("tokens",) if model.layout == "NLC" else ()), "forward")


def _strides_of(model: Backbone) -> list[int]:
    neck = model.pyramid_neck
    return list(neck.strides) if neck is not None else model.feature_info.reduction()


def _names_of(model: nn.Module, view: str, form: Any, leaves: Sequence[Tensor]) -> tuple[str, ...]:
    if view in ("pyramid", "tokens"):
        return _names_in(view, pytree.tree_unflatten(leaves, form))
    if view == "extract":
        found = pytree.tree_unflatten(leaves, form)
        return tuple(name for output, value in found.items() for name in _names_in(output, value))
    if view == "forward" and isinstance(model, Backbone):
        if model.out_indices is not None:
            strides = _strides_of(model)
            if model.pyramid_neck is not None:
                return tuple(f"stride_{stride}" for stride in strides)
            return tuple(f"stride_{stride}" + (f"_level_{index}" if strides.count(stride) > 1 else "")
                         for index, stride in zip(model.out_indices, strides))
        view = own_view(model)
    if view in ("classify", "embed"):
        return ("scores" if view == "classify" else "embedding",)
    return ("output",) if len(leaves) == 1 else tuple(f"output_{i}" for i in range(len(leaves)))


def _names_in(output: str, value: Any) -> tuple[str, ...]:
    """The names of the tensors that one output of `Backbone.extract` consists of."""
    if output == "pyramid":
        return tuple(f"stride_{stride}" for stride in value)
    return tuple(value) if output == "tokens" else (output,)


def _name(model: nn.Module) -> str:
    return getattr(model, "architecture", "") or type(model).__name__
