"""The same function with fewer operations: what training needed and inference does not is folded into the weights.

A batch norm in evaluation is a factor and a summand a channel, and so is a layer scale: next to a convolution or a linear
layer they become part of its weights. Which stand next to one is seen from the values themselves, during one forward pass
of whatever network it is: who reads a layer's output, and whether anybody else does.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..backbone import Backbone
from ..errors import BadArgument
from ..layers.conv2d_same import Conv2dSame
from ..view import View

__all__ = ["fold_preprocessing", "fused"]


def fused(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """A copy of `model` for inference that computes the same, up to rounding, in fewer operations.

    - Branches that can be one layer become one: what modules do themselves in a method `reparameterize`, `fuse` or
      `switch_to_deploy` (RepVGG, Ding et al. 2021, arXiv 2101.03697; MobileOne, Vasu et al. 2022, arXiv 2206.04040).
    - Weights that are computed from parameters in each pass (weight standardisation) are computed once.
    - Batch norms and layer scales are folded into the convolution or linear layer before them, or behind them where that
      is exact: nowhere beside zeros that pad a batch norm's output.

    What has no place to go stays as it is: a norm whose input somebody else reads too, or is a sum, or a module with hooks.
    The copy is in evaluation mode, its parameters need no gradients and part of its state-dict keys are other ones; it has
    all views of a `Backbone`. The model itself, any `nn.Module` of images, is left as it is.

    `example`, images (B C H W), is for a module that does not run on the images its `pretrained_cfg` speaks of (224 x 224
    pixels where it has none). Raises `BadArgument` where the model does not run on them, or has no values (meta).
    """
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise BadArgument(f"{type(model).__name__} is on the meta device and has no weights to fold: load them first")
    with torch.inference_mode(False), torch.no_grad():
        result = copy.deepcopy(model).eval()
        if isinstance(result, Backbone):
            result.unfreeze()  # nothing trains, and paths of frozen modules are no longer right
            result.set_grad_checkpointing(False)
        _reparameterize(result)
        result.requires_grad_(False)
        images = _images_for(result) if example is None else example[:2]
        watch = _Watch(result, images)
        for layer in watch.layers:
            _fix_weight(layer, watch)
        foldable = {layer for layer in watch.layers if watch.is_own(layer)}
        for layer in foldable:
            _fold_followers(layer, watch)
        for module in list(watch.scalings):
            _fold_forwards(module, watch, foldable)
    return result


def fold_preprocessing(view: View) -> View:
    """A view of bytes whose first convolution divides by the standard deviation, by its weights; the mean stays.

    The new view shares its other weights with the one given. That one itself is the answer where `view` takes no bytes, or
    the normalised images go elsewhere than into one layer: shifted, for an output stride, say.
    """
    if not view.pixels or view.std is None:
        return view
    with torch.inference_mode(False), torch.no_grad():
        shared = {id(tensor): tensor for tensor in (*view.parameters(), *view.buffers())}
        result = copy.deepcopy(view, shared)
        watch = _Watch(result, _images_for(result.model).to(torch.uint8))
        steps = watch.scalings.get(result, [])
        layer = watch.only_reader(steps, padded=True)
        if layer is None or isinstance(layer, _ConvTransposeNd) or not watch.is_own(layer):
            return view
        _scale_inputs(layer, *steps[0].vectors())
        result.std = None
    return result


# -------------------------------------------------------------------------------------------------- seeing what is read


@dataclass(eq=False)
class _Layer:
    """A convolution or linear layer at work: one call."""

    module: nn.Module
    input: Tensor
    output: Tensor
    weight: Tensor
    bias: Tensor | None
    pads: bool
    """Whether zeros are put around its input."""


@dataclass(eq=False)
class _Scaling:
    """One call that multiplies channels by constants, and adds constants: a norm in evaluation, a layer scale."""

    module: nn.Module
    input: Tensor
    output: Tensor
    axis: int
    """The channels' axis of its input."""
    vectors: Callable[[], tuple[Tensor, Tensor | None]]
    """Gives factors and summands, one a channel, in double precision."""


_Step = _Layer | _Scaling


@dataclass
class _Frame:
    """A module's forward pass that is under way."""

    module: nn.Module
    input: Any
    steps: list[_Step] = field(default_factory=list)


_LAYERS: frozenset[Any] = frozenset((F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d,
                                     F.conv_transpose3d))  # fmt: skip
_TIMES = {"mul", "__mul__", "__rmul__"}
_OVER = {"div", "__truediv__", "true_divide"}
_PLUS = {"add", "__add__", "__radd__"}
_READS_NO_VALUE = {"dim", "element_size", "get_device", "is_complex", "is_contiguous", "is_floating_point", "__len__",
                   "ndimension", "nelement", "numel", "size", "storage_offset", "stride", "type_as"}  # fmt: skip


class _Watch(TorchFunctionMode):
    """One forward pass of a module: its layers and scalings, and who reads what they put out.

    Values noted are held, so that no identity is used twice.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.layers: dict[nn.Module, list[_Layer]] = defaultdict(list)
        self.scalings: dict[nn.Module, list[_Scaling]] = defaultdict(list)
        self.readers: dict[int, list[_Step | None]] = defaultdict(list)
        """By identity of a value: the steps that read it, None for what is no step."""
        self.whole: dict[_Step, bool] = {}
        """Whether the module of a step does this step and nothing else."""
        self.fed: dict[_Step, bool] = {}
        """Whether a step reads its module's input as it is."""
        self.noted: dict[int, Tensor] = {}
        self.constants = {id(t): t for t in (*model.parameters(), *model.buffers())}
        """What depends on parameters and buffers alone."""
        self.frames: list[_Frame] = []
        self.thread = threading.get_ident()
        before = register_module_forward_pre_hook(self._enter)
        after = register_module_forward_hook(self._leave, always_call=True)
        try:
            with self:
                results = _all_views(model, images)
        except Exception as error:  # whatever a network says that does not take these images
            raise BadArgument(f"{type(model).__name__} does not run on images of shape {tuple(images.shape)} "
                              f"({type(error).__name__}: {str(error).partition(chr(10))[0][:200]}); give images that it "
                              "takes as example") from error
        finally:
            before.remove()
            after.remove()
        for value in tree_leaves(results):
            self.readers[id(value)].append(None)

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() != self.thread:  # hooks are of the whole process
            return
        self.frames.append(_Frame(module, args[0] if args else None))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() != self.thread:
            return
        frame = self.frames.pop()
        for step in frame.steps:
            self.fed[step] = step.input is frame.input
            untouched = step.output is output and not self.readers[id(output)]  # by an activation in place, say
            self.whole[step] = self.fed[step] and untouched and len(frame.steps) == 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        versions = [value._version for value in read]
        output = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _READS_NO_VALUE or (name == "__get__" and not isinstance(output, Tensor)):
            return output
        if any(output is value and value._version == version for value, version in zip(read, versions)):
            return output  # handed through: dropout in evaluation
        if read and all(id(value) in self.constants for value in read):
            self.constants |= {id(value): value for value in tree_leaves(output) if isinstance(value, Tensor)}
        if func is F.pad and _pads_zeros(*args, **kwargs) and id(read[0]) in self.noted:
            self.noted[id(output)] = output
            self.readers[id(output)] = self.readers[id(read[0])]  # who reads it reads the values, and zeros
            return output
        step = self._step(func, name, args, kwargs, output) if self.frames else None
        for value in read:
            self.readers[id(value)].append(step)
        if step is not None:
            self.noted[id(output)] = output
            self.readers[id(output)] = []
        return output

    def _step(self, func: Any, name: str, args: Any, kwargs: Any, output: Any) -> _Step | None:
        frame = self.frames[-1]
        if func in _LAYERS:
            layer = _layer(frame.module, output, *args, **kwargs)
            self.layers[frame.module].append(layer)
            frame.steps.append(layer)
            return layer
        scaling = None
        if func is F.batch_norm:
            scaling = _norm(frame.module, output, *args, **kwargs)
        elif len(args) == 2 and all(isinstance(value, Tensor) for value in args):
            x, constant = args
            if id(x) in self.constants and name not in _OVER:
                x, constant = constant, x
            last = frame.steps[-1] if frame.steps else None
            axis = _channels_axis(constant, x.ndim)
            if axis is None or id(constant) not in self.constants or id(x) in self.constants or x.shape != output.shape:
                return None
            if name in _PLUS and isinstance(last, _Scaling) and last.output is x and last.axis == axis:
                last.output, last.vectors = output, _with_summand(last.vectors, constant)
                return last
            if name in _TIMES or name in _OVER:
                scaling = _Scaling(frame.module, x, output, axis, _factors(constant, inverse=name in _OVER))
        if scaling is not None:
            self.scalings[frame.module].append(scaling)
            frame.steps.append(scaling)
        return scaling

    def only_reader(self, steps: Sequence[_Step], padded: bool = False) -> nn.Module | None:
        """The module that reads what `steps` put out, where nobody else does and it reads nothing else."""
        found = [self.readers[id(step.output)] for step in steps]
        if not steps or any(len(readers) != 1 or readers[0] is None for readers in found):
            return None
        readers = [step for (step,) in found if step is not None]
        module = readers[0].module
        if {id(step) for step in self.steps(module)} != {id(step) for step in readers}:
            return None
        if not padded and any(reader.input is not step.output for reader, step in zip(readers, steps)):
            return None
        return module

    def steps(self, module: nn.Module) -> list[_Step]:
        """What `module` did, in all its calls."""
        return [*self.layers.get(module, ()), *self.scalings.get(module, ())]

    def is_own(self, module: nn.Module) -> bool:
        """Whether `module` is a layer whose weights are its own, and read by nothing but its calls."""
        calls = self.layers.get(module, ())
        if not calls or self.scalings.get(module) or not isinstance(module, _ConvNd | nn.Linear):
            return False
        weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
        own = all(call.weight is weight and call.bias is bias for call in calls)
        return own and all(isinstance(reader, _Layer) and reader.module is module
                           for tensor in (weight, bias) if tensor is not None for reader in self.readers[id(tensor)])


def _layer(module: nn.Module, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None,
           stride: Any = 1, padding: Any = 0, *rest: Any, **others: Any) -> _Layer:  # fmt: skip
    pads = padding != "valid" and any(tree_leaves(padding))
    return _Layer(module, input, output, weight, bias, pads)


def _norm(
    module: nn.Module, output: Tensor, input: Tensor, mean: Tensor | None = None, var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False, momentum: Any = 0.1,
    eps: float = 1e-5, **stats: Tensor,
) -> _Scaling | None:  # fmt: skip
    mean, var = stats.get("running_mean", mean), stats.get("running_var", var)
    if training or mean is None or var is None:
        return None

    def vectors() -> tuple[Tensor, Tensor]:
        factor = (_exact(var) + eps).rsqrt() * (1.0 if weight is None else _exact(weight))
        return factor, (0.0 if bias is None else _exact(bias)) - _exact(mean) * factor

    return _Scaling(module, input, output, 1, vectors)


def _pads_zeros(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> bool:
    return mode == "constant" and not value


def _channels_axis(constant: Tensor, ndim: int) -> int | None:
    """The only axis, of a value of `ndim` axes, along which `constant` is more than one number."""
    shape = (1,) * (ndim - constant.ndim) + tuple(constant.shape)
    long = [axis for axis, size in enumerate(shape) if size != 1]
    return long[0] if len(long) == 1 and len(shape) == ndim else None


def _factors(constant: Tensor, inverse: bool) -> Callable[[], tuple[Tensor, None]]:
    return lambda: (_exact(constant).flatten().reciprocal() if inverse else _exact(constant).flatten(), None)


def _with_summand(
    vectors: Callable[[], tuple[Tensor, Tensor | None]], constant: Tensor
) -> Callable[[], tuple[Tensor, Tensor | None]]:
    def both() -> tuple[Tensor, Tensor | None]:
        factor, summand = vectors()
        return factor, _exact(constant).flatten() + (0.0 if summand is None else summand)

    return both


def _images_for(model: nn.Module) -> Tensor:
    """Two black images of the size that `model` was made for, of its type and on its device."""
    cfg = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    chans, height, width = cfg.get("input_size") or (3, 224, 224)
    if isinstance(model, Backbone):
        chans = model.in_chans
        height, width = model.native_size or (height, width)
    like = next((t for t in model.parameters() if t.is_floating_point()), torch.empty(()))
    return torch.zeros(2, chans, height, width, dtype=like.dtype, device=like.device)


def _all_views(model: nn.Module, images: Tensor) -> Any:
    """All that `model` gives of `images`, so that nothing counts as inner that some view hands out."""
    if not isinstance(model, Backbone) or model.out_indices is not None:
        return model(images)
    last, levels = model.forward_intermediates(images)
    given = [last, levels, model.forward_head(last)]
    with contextlib.suppress(BadArgument):  # a foreign network may have no embedding
        given.append(model.forward_head(last, pre_logits=True))
    return given


# -------------------------------------------------------------------------------------------------- changing the weights


def _reparameterize(model: nn.Module) -> None:
    """Has every module that knows how make one layer of its branches, outermost first."""
    for name in ("reparameterize", "fuse", "switch_to_deploy"):
        method = getattr(type(model), name, None)  # of the class: a child may have that name
        if callable(method) and not _needs_arguments(method):
            with contextlib.suppress(BadArgument):  # its norms are not batch norms: it stays as it is
                result = getattr(model, name)()
                if isinstance(result, nn.Module) and result is not model:
                    _become(model, result)
            break
    for child in list(model.children()):
        _reparameterize(child)


def _needs_arguments(method: Callable[..., Any]) -> bool:
    parameters = list(inspect.signature(method).parameters.values())[1:]  # without self
    return any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def _fix_weight(layer: nn.Module, watch: _Watch) -> None:
    """Makes a layer that computes its weight from its parameters a plain one that holds it."""
    calls, own = watch.layers[layer], layer._parameters.get("weight")
    same = bool(getattr(layer, "same_pad", False))
    plain = next((kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear) if isinstance(layer, kind)), None)
    if plain is None or own is None or layer._modules:
        return
    for call in calls:
        computed = call.weight is not own and id(call.weight) in watch.constants and call.weight.shape == own.shape
        direct = watch.whole[call] or (same and plain is nn.Conv2d)
        if not computed or not direct or call.bias is not layer._parameters.get("bias"):
            return
    for name in set(layer._parameters) - {"weight", "bias"}:
        del layer._parameters[name]
    layer.__class__ = Conv2dSame if same else plain  # in place: hooks and aliases stay right
    _set(layer, "weight", calls[0].weight.clone(), own)
    for call in calls:
        call.weight = layer._parameters["weight"]  # type: ignore[assignment]
        watch.readers[id(call.weight)] = [call]


def _fold_followers(layer: nn.Module, watch: _Watch) -> None:
    """Takes into `layer` the scalings that alone read its output, one after the other."""
    steps: list[Any] = list(watch.layers[layer])
    axis = 1 if isinstance(layer, _ConvNd) else steps[0].output.ndim - 1
    while True:
        module = watch.only_reader(steps)
        if module is None or not watch.scalings.get(module) or layer._forward_hooks:
            return
        scalings = watch.scalings[module]
        if any(scaling.axis != axis or scaling.input.ndim != steps[0].output.ndim for scaling in scalings):
            return
        kept = _dissolved(module, watch)
        if kept is None:
            return
        _scale_outputs(layer, *scalings[0].vectors())
        del watch.scalings[module]
        _become(module, kept)
        if not isinstance(kept, nn.Identity):
            return
        steps = list(scalings)


def _fold_forwards(module: nn.Module, watch: _Watch, foldable: Collection[nn.Module]) -> None:
    """Puts a norm into the layer that alone reads it, where no zeros come between."""
    scalings = watch.scalings[module]
    layer = watch.only_reader(scalings)
    if layer is None or layer not in foldable or isinstance(layer, _ConvTransposeNd):
        return
    calls = watch.layers[layer]
    if any(call.pads for call in calls) or any(s.axis != (1 if isinstance(layer, _ConvNd) else s.output.ndim - 1)
                                               for s in scalings):  # fmt: skip
        return
    kept = _dissolved(module, watch)
    if isinstance(kept, nn.Identity):
        _scale_inputs(layer, *scalings[0].vectors())
        _become(module, kept)


def _dissolved(module: nn.Module, watch: _Watch) -> nn.Module | None:
    """What is left of `module` without its scaling; None where that cannot be told."""
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    calls = watch.scalings[module]
    if all(watch.whole[call] for call in calls):
        return nn.Identity()
    if list(module._modules) == ["drop", "act"] and all(watch.fed[call] for call in calls):
        return nn.Sequential(*(part for part in module.children() if not isinstance(part, nn.Identity)))
    return None


def _become(module: nn.Module, other: nn.Module) -> None:
    """Makes `module` what `other` is, in place: it may be held in more than one way."""
    module.__class__ = other.__class__
    hooks = {name: value for name, value in module.__dict__.items() if name.endswith(("_hooks", "_hooks_with_kwargs"))}
    module.__dict__.clear()
    module.__dict__.update({**other.__dict__, **hooks})
    module.eval()


def _scale_outputs(layer: Any, factor: Tensor, summand: Tensor | None) -> None:
    weight = _exact(layer.weight)
    if isinstance(layer, _ConvTransposeNd):  # in, out / groups, ...
        by_group = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
        scaled = by_group * factor.reshape(-1, *[1] * (weight.ndim - 1))
        scaled = scaled.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    else:
        scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    bias = (0.0 if layer.bias is None else _exact(layer.bias) * factor) + (0.0 if summand is None else summand)
    _set(layer, "weight", scaled, layer.weight)
    if isinstance(bias, Tensor):
        _set(layer, "bias", bias, layer.weight)


def _scale_inputs(layer: Any, factor: Tensor, summand: Tensor | None) -> None:
    groups = getattr(layer, "groups", 1)
    weight = _exact(layer.weight).unflatten(0, (groups, -1))  # groups, out / groups, in / groups, ...
    shape = (groups, 1, -1, *[1] * (weight.ndim - 3))
    scaled = (weight * factor.reshape(shape)).flatten(0, 1)
    if summand is not None:
        bias = (weight * summand.reshape(shape)).flatten(0, 1).flatten(1).sum(1)
        _set(layer, "bias", bias if layer.bias is None else bias + _exact(layer.bias), layer.weight)
    _set(layer, "weight", scaled, layer.weight)


def _exact(tensor: Tensor) -> Tensor:
    """In double precision, which not every device has."""
    return tensor.detach().cpu().double()


def _set(layer: nn.Module, name: str, value: Tensor, like: Tensor) -> None:
    layer._parameters[name] = nn.Parameter(value.to(like), requires_grad=False)
