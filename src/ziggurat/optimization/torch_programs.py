"""Programs of torch itself: the network as it is, its graph in oneDNN's operators, or what its compiler, Inductor, makes."""

from __future__ import annotations

import copy
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from pathlib import Path
from threading import Barrier
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn

from ..backbone.units import named_units
from ..view import View
from .onednn_graph import with_packed_convolutions
from .program import PartsProgram, Program, Recipe, Unavailable, in_brief, is_of_memory, torch_threads
from .winograd import applies

__all__ = ["build", "recipes"]

Call = Callable[[Tensor], Sequence[Tensor]]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SMALL = 4
"""Images of a part whose maps stay in the cache of a core in most networks."""
VARIANTS = 64
"""Kinds of units, by shape, that one network may have."""


class WholeProgram(Program):
    """A batch computed at once, on a CPU by `threads` threads."""

    def __init__(self, recipe: Recipe, call: Call, threads: int) -> None:
        super().__init__(recipe)
        self.call, self.threads = call, threads

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch_threads(self.threads), torch.inference_mode(False):
            images = _plain(images)
            with torch.inference_mode():
                outputs = self.call(images)
            return tuple(map(_ordinary, outputs))


class ThreadsProgram(PartsProgram):
    """Parts of a batch, each computed by one thread of the CPU; `example` is what a part gives."""

    def __init__(self, recipe: Recipe, call: Call, example: Sequence[Tensor], threads: int) -> None:
        super().__init__(recipe, [tuple(output.shape[1:]) for output in example], threads)
        self.call = call
        self.formats = [torch.channels_last if output.ndim == 4 and output.is_contiguous(memory_format=torch.channels_last)
                        else torch.contiguous_format for output in example]
        barrier = Barrier(threads)
        with torch_threads(1):
            wait([self.pool.submit(_alone, barrier) for _ in range(threads)])

    def empty(self, batch: int) -> tuple[Tensor, ...]:
        return tuple(self.memory.empty((batch, *shape), format) for shape, format in zip(self.shapes, self.formats))

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode(False):
            return super().__call__(_plain(images))

    @torch.inference_mode()
    def write(self, images: Tensor, outputs: Sequence[Tensor]) -> None:
        for output, value in zip(outputs, self.call(images)):
            output.copy_(value)


def _alone(barrier: Barrier) -> int:
    """Has torch compute in this thread alone from now on, where 1 is the number of threads that was set last."""
    barrier.wait()  # until all threads of the pool have started
    return torch.get_num_threads()  # by asking, a thread takes for good the number that holds for the process


def _ordinary(tensor: Tensor) -> Tensor:
    """`tensor` as one that autograd takes, in the same memory, to be called outside of inference mode."""
    return torch.from_dlpack(tensor) if tensor.is_inference() else tensor


def _plain(images: Tensor) -> Tensor:
    """`images` in the one form that compiled code is guarded for: its caller's modes would have it compiled again."""
    return _ordinary(images.detach()).contiguous()


# ---------------------------------------------------------------- what is worth trying


def recipes(backend: str, view: View, images: Tensor, precision: str, threads: int) -> list[Recipe]:
    """What is worth trying with `backend`, of those of `CALLS`, for `images`, the best guess first.

    Raises `Unavailable` where the backend cannot compute in `precision`, or cannot compile here.
    """
    if precision not in DTYPES:
        raise Unavailable(f"backend={backend!r} has no {precision}; take backend='openvino' or 'onnxruntime', which quantise, "
                          "or precision='fp32' or 'bf16'")
    on_cpu = images.device.type == "cpu"
    if backend in ("onednn", "winograd"):
        _need_onednn(backend, view.model, precision, images.device)
    elif (backend != "eager" and on_cpu) or backend == "aoti":
        _need_compiler(backend)
    if backend == "regional":
        _units(view.model)
    layouts = ["channels_last", "contiguous"] if _is_convolutional(view.model) else ["contiguous"]
    parts = _parts(len(images), threads) if on_cpu else []
    if backend != "eager":  # which lay maps out as they like; a compiler takes long
        found = [(part, layouts[0]) for part in (parts or [0])]
        return [Recipe(backend, precision, *one) for one in (found if backend in ("onednn", "winograd") else found[:1])]
    found = [(part, layouts[0]) for part in (*parts, 0)]
    found[1:1] = [(found[0][0], layout) for layout in layouts[1:]]
    return [Recipe(backend, precision, *one) for one in found]


def _parts(batch: int, threads: int) -> list[int]:
    """Sizes of parts for which each thread has as many images to compute: its share at once, and some at a time."""
    if threads == 1 or batch < threads:
        return []
    shares = [part for part in range(1, -(-batch // threads) + 1) if batch % part == 0]
    least = min(map(functools.partial(_steps, batch, threads), shares))
    shares = [part for part in shares if _steps(batch, threads, part) == least]
    largest = shares[-1]
    return [largest, *[part for part in shares if part <= SMALL and part < largest][-1:]]


def _steps(batch: int, threads: int, part: int) -> int:
    """Images that the busiest thread computes."""
    return -(-batch // part // threads) * part


def _is_convolutional(model: nn.Module) -> bool:
    """Whether the model has maps to lay out, beyond an embedding of patches."""
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1


def _has_winograd(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and applies(
        module.kernel_size, module.stride, module.padding, module.dilation, module.groups)


def _units(model: nn.Module) -> list[nn.Module]:
    units = [module for _, module in named_units(model, getattr(model, "units", "") or "(?!)")]
    if not units:
        raise Unavailable(f"backend='regional' compiles the repeated units of a network, and {type(model).__name__} names none; "
                          "take backend='compile'")
    return units


def _need_onednn(backend: str, model: nn.Module, precision: str, device: torch.device) -> None:
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        raise Unavailable(f"backend={backend!r} runs on a CPU, where torch is built with oneDNN, and the images are on {device}; "
                          "take backend='eager' or 'compile'")
    if backend == "winograd" and precision != "fp32":
        raise Unavailable(f"backend='winograd' has no {precision}, in which its sums would lose digits; take backend='onednn'")
    if backend == "winograd" and not any(map(_has_winograd, model.modules())):
        raise Unavailable(f"backend='winograd' is for 3x3 convolutions of stride 1, which {type(model).__name__} has none of; "
                          "take backend='onednn'")
    ops: Any = torch.ops.mkldnn
    if not {"fp32": lambda: True, "bf16": ops._is_mkldnn_bf16_supported, "fp16": ops._is_mkldnn_fp16_supported}[precision]():
        raise Unavailable(f"backend={backend!r} has no {precision} on this CPU, which lacks the instructions; take precision='fp32'")
    if not _is_convolutional(model):
        raise Unavailable(f"backend={backend!r} is for convolutions, which {type(model).__name__} does not repeat; take backend='eager'")


def _need_compiler(backend: str) -> None:
    named = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(named) is None:
        raise Unavailable(f"backend={backend!r} needs a C++ compiler, and there is no {named!r} on the path: install one or name "
                          "it in the environment variable CXX, or take backend='eager'")


# ---------------------------------------------------------------- programs


def build(view: View, images: Tensor, recipe: Recipe, threads: int, calibration: Tensor | None = None) -> Program:
    """`recipe` of one of the backends of `CALLS`, made for batches like `images`.

    Raises `Unavailable` where torch cannot compile the network, or has no kernel for it in that precision.
    """
    computing = 1 if recipe.part else threads
    example = _plain(images[: recipe.part or len(images)])
    try:
        with torch_threads(computing):
            call = CALLS[recipe.backend](_copied(view, recipe), example, threads if recipe.part else 1)
            with torch.inference_mode():
                outputs = call(example)
    except Exception as error:  # compilers raise what they like; nothing is lost of it
        if isinstance(error, Unavailable) or is_of_memory(error):
            raise
        instead = "precision='fp32'" if recipe.backend == "eager" else "backend='eager'"
        raise Unavailable(f"backend={recipe.backend!r}, precision={recipe.precision!r}: torch cannot do it here "
                          f"({in_brief(error)}); take {instead}") from error
    return ThreadsProgram(recipe, call, outputs, threads) if recipe.part else WholeProgram(recipe, call, threads)


def _eager(view: View, example: Tensor, callers: int) -> Call:
    return view


def _packed(view: View, example: Tensor, callers: int) -> Call:
    return with_packed_convolutions(view, example)


def _winograd(view: View, example: Tensor, callers: int) -> Call:
    return with_packed_convolutions(view, example, winograd=True)


def _compiled(view: View, example: Tensor, callers: int) -> Call:
    """The view through torch.compile: on a CPU with weights as constants, on a GPU as a captured CUDA graph."""

    def forward(images: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = view(images)
        return outputs

    if example.device.type == "cpu":
        return torch.compile(_of_its_own(forward), dynamic=False, options={"freezing": True})
    graph = torch.compile(_of_its_own(forward), dynamic=False, mode="reduce-overhead")

    def replayed(images: Tensor) -> list[Tensor]:
        torch.compiler.cudagraph_mark_step_begin()
        return [output.clone() for output in graph(images)]  # the next replay writes to the memory of these

    return replayed


def _regional(view: View, example: Tensor, callers: int) -> Call:
    """The view with each of its units through torch.compile, those of one kind through the same code."""
    view = _copy(view)

    def forward(unit: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return type(unit).forward(unit, *args, **kwargs)

    compiled = torch.compile(_of_its_own(forward), dynamic=False)
    for unit in _units(view.model):
        unit.forward = functools.partial(compiled, unit)
    with torch._dynamo.config.patch(recompile_limit=VARIANTS), torch.inference_mode():
        view(example)
    return view


def _packaged(view: View, example: Tensor, callers: int) -> Call:
    """The view as a loaded package of AOTInductor, for `callers` threads at a time."""
    from torch._inductor.package import load_package

    with torch.no_grad(), tempfile.TemporaryDirectory(prefix="ziggurat-") as folder:
        exported = torch.export.export(view, (example,), strict=False)
        package = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(Path(folder, "view.pt2")), inductor_configs={"freezing": True})
        loaded: Call = load_package(package, num_runners=callers)  # aoti_load_package has no such number in torch 2.11
    return loaded


CALLS: dict[str, Callable[[View, Tensor, int], Call]] = {
    "eager": _eager, "onednn": _packed, "winograd": _winograd, "compile": _compiled, "regional": _regional, "aoti": _packaged}
"""What computes a batch, or a part of one, by backend: of a view, an example, and how many threads call it at once."""


def _of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with a copy of its code: torch.compile keeps what it compiles by code, and gives up at the eighth variant."""
    function.__code__ = function.__code__.replace()
    return function


_COPIES: WeakKeyDictionary[View, WeakValueDictionary[tuple[str, str], View]] = WeakKeyDictionary()


def _copied(view: View, recipe: Recipe) -> View:
    """The view with weights in the precision and layout of `recipe`, one for all programs that are alive; itself if they are."""
    dtype, layout = DTYPES[recipe.precision], FORMATS[recipe.layout]
    if all(p.dtype == dtype and p.is_contiguous(memory_format=layout if p.ndim == 4 else torch.contiguous_format)
           for p in view.model.parameters()):
        return view
    copies = _COPIES.setdefault(view, WeakValueDictionary())
    key = (recipe.precision, recipe.layout)
    if key not in copies:
        copied = _copy(view)
        copied.model.to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
        copies[key] = copied
        return copied
    return copies[key]


def _copy(view: View) -> View:
    return copy.deepcopy(view, {id(view._form): view._form})  # the form is shared: copying one, torch 2.11 warns of itself
