"""`export`: a view of a network as a file of another runtime, compared with the network before it is put in its place."""

from __future__ import annotations

import copy
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import BadArgument, ExportFailed, ZigguratError, nearest
from ..facts import exports
from ..optimization.fusing import fold_preprocessing, fused
from ..optimization.onnx_conversion import quiet
from ..optimization.program import in_brief, is_of_memory
from ..packages import require_packages
from ..registry import catalog
from ..view import View, largest_error, own_view
from . import metadata as meta
from .loaded import Loaded

__all__ = ["FORMATS", "SIDE_STEP", "Exported", "Format", "FormatModule", "Prepared", "export", "exported_program",
           "format_module", "prepare"]

# before 2.15 torch's max pooling ties a program to the parity of each map: free sides are multiples of 32 there
SIDE_STEP = 1 if torch.__version__ >= (2, 15) else 32  # type: ignore[operator]
SMALLEST = 65  # pixels: smaller images have maps of one cell, for which torch makes programs of their own
SIDES = ("height", "width")


@dataclass(frozen=True)
class Format:
    """A format: the module of this package that writes and opens it, the suffix of its files, and what it needs."""

    module: str
    suffix: str
    extra: str = ""  # pip install 'ziggurat[EXTRA]' ...
    packages: tuple[str, ...] = ()  # ... brings these; the last is the one that files are run by
    runs_on: str = ""  # sys.platform where its runtime exists; '': everywhere


FORMATS = {
    "onnx": Format("onnx", ".onnx", "onnx", ("onnx", "onnxscript", "onnxruntime")),
    "openvino": Format("openvino", ".xml", "openvino", ("openvino",)),
    "torch": Format("torch", ".pt2"),
    "aoti": Format("aoti", ".pt2"),
    "coreml": Format("coreml", ".mlpackage", "coreml", ("coremltools",), runs_on="darwin"),
}


class FormatModule(Protocol):
    """What the module of a format has: `write` and `open`. It imports the format's packages inside of them."""

    def write(
        self, view: View, example: Tensor, path: Path, dynamic: Sequence[str], metadata: dict[str, str]
    ) -> None:
        """Writes `view`, described, on the CPU, in fp32, without gradients, to `path` and files beside it whose names start
        with its name's stem: nothing else is in the folder, and all that is there afterwards is moved to its place.

        `example` is a batch (B C H W) of the shape to export for, and `dynamic` the axes that are free: all or some of
        'batch', 'height', 'width', () for none. `exported_program(view, example, dynamic)` is the program to start from,
        computed once for all formats: do not change it. The input is called 'images' and the outputs `view.names`, where
        the format has names. `metadata` is stored as it is, where the format has a place for it.
        Raises `ExportFailed` or what its compiler raises, which becomes one.
        """

    def open(self, path: Path) -> Loaded:
        """The file in the format's runtime, on the CPU; output names are read from the file where it holds them."""


@dataclass(frozen=True)
class Exported:
    """A file that was written: its `path`, what it holds, and how far its numbers were from the network's.

    `error` is the largest absolute difference over the largest absolute value of an output, over all outputs and the
    images tried; None where the check was left out. `dynamic` are the free axes, of 'batch', 'height' and 'width'; free
    sides are `min_size` pixels or more, and multiples of `side_step`.
    """

    path: Path
    format: str
    view: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dynamic: tuple[str, ...]
    error: float | None
    min_size: int
    side_step: int = SIDE_STEP


@dataclass
class Prepared:
    """A view of a network, ready to be written in any format: folded, with its program, metadata, and what it gives.

    `checks` are images and what the network itself, before anything was folded, gives for them. `fixed` says which axes
    could not be free, and why.
    """

    view: View
    example: Tensor
    dynamic: tuple[str, ...]
    metadata: dict[str, str]
    checks: list[tuple[Tensor, tuple[Tensor, ...]]] = field(repr=False)
    fixed: str = ""

    def write(self, path: str | Path, format: str, tolerance: float = 1e-4, check: bool = True) -> Exported:
        """Writes a file, reads it back in the format's runtime, and puts it in its place where the numbers are right."""
        check_tolerance(tolerance)
        path = place(path, format, check)
        module = format_module(format)
        with TemporaryDirectory(prefix=".ziggurat-export-", dir=path.parent) as folder:
            made = Path(folder, path.name)
            try:
                module.write(self.view, self.example, made, self.dynamic, dict(self.metadata))
                error = self._error(module.open(made), format, tolerance) if check else None
            except Exception as cause:  # compilers and runtimes raise what they like; nothing is lost of it
                if isinstance(cause, ZigguratError) or is_of_memory(cause):
                    raise
                raise ExportFailed(f"format={format!r}: {self._name()} cannot be written and run ({in_brief(cause)}); "
                                   f"{self._advice(format)}") from cause
            _put_in_place(made, path)
        return Exported(path, format, self.view.view, self.view.names, tuple(self.example.shape), self.dynamic, error,
                        min_size(self.view, self.example))

    def _error(self, loaded: Loaded, format: str, tolerance: float) -> float:
        if loaded.names != self.view.names:
            raise ExportFailed(f"format={format!r}: the file names its outputs {', '.join(loaded.names)}, and not "
                               f"{', '.join(self.view.names)}; {self._advice(format)}")
        worst = 0.0
        for images, wanted in self.checks:
            found = loaded(images)
            for (name, got), value in zip(found.items(), wanted):
                size = " x ".join(map(str, images.shape))
                if got.shape != value.shape:
                    raise ExportFailed(f"format={format!r}: {name} is of shape {tuple(got.shape)} in the file and of "
                                       f"{tuple(value.shape)} in the network, for images {size}; {self._advice(format)}")
                error = largest_error([got], [value])
                if not error <= tolerance:
                    raise ExportFailed(f"format={format!r}: {name} differs by {error:.1e} of its largest value for images "
                                       f"{size}, and tolerance={tolerance:g}; {self._advice(format)}")
                worst = max(worst, error)
        return worst

    def _advice(self, format: str) -> str:
        mode = "dynamic" if set(self.dynamic) & set(SIDES) else "static"
        known = catalog().get(getattr(self.view.model, "architecture", ""))
        certified = exports(known["module"], known["class"]).get("exports", {}) if known else {}
        errors = {name: certified.get(name, {}).get(self.view.view, {}).get(mode) for name in FORMATS if name != format}
        good = [repr(name) for name, error in errors.items() if isinstance(error, float)]
        others = f"{', '.join(good)} hold its like" if good else ", ".join(map(repr, errors))
        return f"try {'dynamic=False, or ' if mode == 'dynamic' else ''}another format ({others})"

    def _name(self) -> str:
        return f"{self.view.view!r} of {getattr(self.view.model, 'architecture', '') or type(self.view.model).__name__}"


def export(
    model: nn.Module, path: str | Path, format: str = "onnx", dynamic: bool | str = True, *, view: str | None = None,
    strides: int | Sequence[int] | None = None, size: int | tuple[int, int] | None = None, batch: int = 1,
    pixels: bool = False, class_names: Sequence[str] | None = None, tolerance: float = 1e-4, check: bool = True,
) -> Exported:
    """Writes a view of `model` to a file of `format`, after comparing it with the model in the format's own runtime.

    `format` and the suffix of `path`: 'onnx' (.onnx), 'openvino' (.xml, weights in .bin beside it), 'torch' (.pt2 of
    torch.export), 'aoti' (.pt2, compiled by AOTInductor for this machine), 'coreml' (.mlpackage).
    `view` is one of the model's (`ziggurat.view`): 'classify', 'embed', 'pyramid' (of `strides`), 'tokens', 'forward';
    None: what `model(images)` gives. The input is called 'images', the outputs 'scores', 'embedding', 'stride_4' and so
    on. With `pixels` the file takes bytes (uint8) and normalises them itself. What else is needed to prepare images, and
    the class names (`class_names`, or what the model knows) are in the file's metadata: `ziggurat.exporting.metadata.of`.

    With `dynamic`, batch, height and width are free, with 'batch' the batch alone; False fixes the shape to `batch`
    images of `size` (pixels, or (height, width); None: the model's own). Where a network's size cannot be free, a
    warning says so, and the batch alone is. The file is fp32, of a copy of the model on the CPU, its branches merged and
    its batch norms folded; the model is not changed.

    `check` compares random images of `size`, and with `dynamic` another number of another size. The file is written
    aside, and an older one replaced only when each output is within `tolerance` of the largest value that the model
    gives. Raises `ExportFailed` where it is not, or where the format cannot hold the network, `BadArgument` for what this
    model or format does not have, `UnsupportedStride`, and `MissingExtra`.
    """
    check_tolerance(tolerance)  # before the work
    place(path, format, check)
    prepared = _prepared(model, dynamic, view, strides, size, batch, pixels, class_names)
    if prepared.fixed:
        warnings.warn(prepared.fixed, stacklevel=2)
    return prepared.write(path, format, tolerance, check)


def prepare(
    model: nn.Module, dynamic: bool | str = True, *, view: str | None = None, strides: int | Sequence[int] | None = None,
    size: int | tuple[int, int] | None = None, batch: int = 1, pixels: bool = False,
    class_names: Sequence[str] | None = None,
) -> Prepared:
    """The arguments of `export` as what all formats have in common, to be written in several."""
    prepared = _prepared(model, dynamic, view, strides, size, batch, pixels, class_names)
    if prepared.fixed:
        warnings.warn(prepared.fixed, stacklevel=2)
    return prepared


def _prepared(
    model: nn.Module, dynamic: bool | str, view: str | None, strides: int | Sequence[int] | None,
    size: int | tuple[int, int] | None, batch: int, pixels: bool, class_names: Sequence[str] | None,
) -> Prepared:
    if not isinstance(model, nn.Module):
        raise BadArgument(f"model={model!r:.60}: give a network, as ziggurat.create_model makes them")
    free = _free(dynamic)
    height, width = _size(model, size)
    if not (type(batch) is int and batch >= 1):
        raise BadArgument(f"batch={batch!r}: give the number of images that a file of fixed shape takes, 1 or more")
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise BadArgument("this model is on the meta device and has no weights to export")
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    whole = View(model, own_view(model) if view is None else view, strides, pixels=pixels)
    example = _random_images((batch, _channels(model), height, width), pixels)
    try:
        whole.describe(example)
    except Exception as error:  # a module of others raises what it likes
        if isinstance(error, ZigguratError) or is_of_memory(error):
            raise
        raise BadArgument(f"size={size!r}: images {' x '.join(map(str, example.shape))} were tried, and this "
                          f"{type(model).__name__} does not give tensors for them ({in_brief(error)})") from error
    class_names = meta.names_of_classes(whole, class_names)  # what is wrong with them is told before the work
    outputs = _given(whole, example)
    part = _folded(whole, example).describe(example)
    free, reason = _capturable(part, example, free)
    fixed = f"height and width stay {height} x {width}" if free else f"the shape stays {tuple(example.shape)}"
    metadata = meta.of(whole, example.shape, free, class_names, min_size(part, example), SIDE_STEP)
    others = [_another(example, free, pixels)] if free else []
    checks = [(example, outputs), *((images, _given(whole, images)) for images in others)]
    return Prepared(part, example, free, metadata, checks, f"{fixed}: {reason}" if reason else "")


_programs: WeakKeyDictionary[View, dict[tuple[tuple[int, ...], tuple[str, ...]], ExportedProgram]] = WeakKeyDictionary()


def exported_program(view: View, example: Tensor, dynamic: Sequence[str] = ()) -> ExportedProgram:
    """`view` captured by torch.export for images (B C H W) of `example`'s shape, but for the axes of `dynamic`.

    It is captured once: all formats start from it. Raises what torch.export raises where an axis cannot be free.
    """
    programs = _programs.setdefault(view, {})
    key = (tuple(example.shape), tuple(dynamic))
    if key not in programs:
        batch, channels, *sides = example.shape
        axes: dict[int, Any] = {0: Dim("batch", min=1)} if "batch" in dynamic else {}
        least = min_size(view, example)
        for axis, name in enumerate(SIDES, 2):
            if name in dynamic:
                axes[axis] = Dim(name, min=least) if SIDE_STEP == 1 else SIDE_STEP * Dim(name, min=least // SIDE_STEP)
        if 0 in axes:
            batch = max(batch, 2)  # torch takes a 1 for a constant
        if 2 in axes and sides[0] == sides[1]:
            sides[1] += 32  # and two equal sides for one
        traced = example.new_zeros((batch, channels, *sides))
        with torch.no_grad(), quiet():
            programs[key] = torch.export.export(view, (traced,), dynamic_shapes=(axes,) if axes else None, strict=False)
    return programs[key]


def min_size(view: View, example: Tensor) -> int:
    """The smallest free side, in pixels, of a program that is captured for images of `example`'s shape."""
    least = max(min(*example.shape[2:], SMALLEST), getattr(view.model, "min_size", 1))
    return -(-least // SIDE_STEP) * SIDE_STEP


def check_tolerance(tolerance: float) -> None:
    """Raises `BadArgument` for what no error can be compared with."""
    if not (isinstance(tolerance, (int, float)) and tolerance >= 0):
        raise BadArgument(f"tolerance={tolerance!r}: give a part of the largest value of an output, as in 1e-4")


def place(path: str | Path, format: str, check: bool = True) -> Path:
    """`path`, if a file of `format` can be written there and run here; raises `BadArgument` and `MissingExtra`."""
    if not isinstance(format, str) or format not in FORMATS:
        close = nearest(format, FORMATS) if isinstance(format, str) else []
        raise BadArgument(f"format={format!r}: formats are {', '.join(map(repr, FORMATS))}"
                          + (f"; nearest is {close[0]!r}" if close else ""))
    if not isinstance(path, (str, os.PathLike)):
        raise BadArgument(f"path={path!r}: give the path of the file to write")
    entry, path = FORMATS[format], Path(path).expanduser()
    if path.suffix != entry.suffix:
        raise BadArgument(f"path={str(path)!r}: files of format={format!r} end in {entry.suffix}")
    if path.is_dir() and not (format == "coreml" and Path(path, "Manifest.json").is_file()):
        raise BadArgument(f"path={str(path)!r} is a folder; move it away, or give another path")
    if not path.parent.is_dir():
        raise BadArgument(f"path={str(path)!r}: there is no folder {path.parent}; create it first")
    require_packages(f"format={format!r}", entry.packages, entry.extra)
    if check and entry.runs_on and sys.platform != entry.runs_on:
        raise BadArgument(f"format={format!r}: its runtime exists on {entry.runs_on} only, so the file could not be checked "
                          "here; leave the check out (check=False, --no-check) to write it unchecked")
    return path


def format_module(format: str) -> Any:
    """The module that writes and opens files of `format`, a `FormatModule`."""
    return importlib.import_module(f"{__package__}.{FORMATS[format].module}")


def _free(dynamic: bool | str) -> tuple[str, ...]:
    if dynamic not in (True, False, "batch"):
        raise BadArgument(f"dynamic={dynamic!r}: give True (batch, height and width are free), 'batch', or False")
    return () if not dynamic else ("batch",) if dynamic == "batch" else ("batch", *SIDES)


def _size(model: nn.Module, size: int | tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        stated = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
        if stated is None:
            raise BadArgument(f"size=None: this {type(model).__name__} states no size; give size=224, say")
        return stated[1], stated[2]
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise BadArgument(f"size={size!r}: give pixels, or (height, width)")
    return sides[0], sides[1]


def _channels(model: nn.Module) -> int:
    """Channels of the images: what the network states, else what its first convolution takes."""
    stated = getattr(model, "in_chans", None) or (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (None,))[0]
    convolutions = (part for part in model.modules() if isinstance(part, nn.Conv2d))
    channels: int = stated or next((part.in_channels for part in convolutions), 3)
    return channels


def _folded(view: View, example: Tensor) -> View:
    """The same view of the network with its branches merged, its norms and the normalisation of bytes folded."""
    images = _random_images(example.shape, pixels=False)
    return fold_preprocessing(View(fused(view.model, images), view.view, view.strides, pixels=view.pixels))


def _capturable(view: View, example: Tensor, free: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """The axes of `free` that torch.export can leave free, and why the others stay fixed."""
    reason = ""
    for axes in dict.fromkeys((free, tuple(axis for axis in free if axis == "batch"), ())):
        if SIDE_STEP > 1 and set(axes) & set(SIDES) and any(side % SIDE_STEP for side in example.shape[2:]):
            reason = f"free sides are multiples of {SIDE_STEP} before torch 2.15"
            continue
        try:
            exported_program(view, example, axes)
            return axes, reason
        except Exception as error:  # torch.export raises what it likes; the reason is told
            if is_of_memory(error):
                raise
            reason = f"torch.export cannot leave {', '.join(axes) or 'nothing'} free here ({_brief(error)})"
            cause = error
    raise ExportFailed(f"torch.export cannot capture {view.view!r} of this {type(view.model).__name__} "
                       f"({_brief(cause)})") from cause


def _brief(error: Exception) -> str:
    return in_brief(error).partition("! For more information")[0]


def _another(example: Tensor, free: Sequence[str], pixels: bool) -> Tensor:
    """Images of another shape than the example, on the free axes."""
    batch, channels, height, width = example.shape
    if "batch" in free:
        batch += 2
    if set(free) & set(SIDES):
        height, width = (height + 41, width + 23) if SIDE_STEP == 1 else (height + 64, width + SIDE_STEP)
    return _random_images((batch, channels, height, width), pixels, seed=1)


def _random_images(shape: Sequence[int], pixels: bool, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if pixels:
        return torch.randint(0, 256, tuple(shape), dtype=torch.uint8, generator=generator)
    return torch.randn(tuple(shape), generator=generator)


@torch.no_grad()
def _given(view: View, images: Tensor) -> tuple[Tensor, ...]:
    outputs: tuple[Tensor, ...] = view(images)
    if not all(torch.isfinite(output).all() for output in outputs):
        raise BadArgument("this network gives values that are not finite for random images, so no file can be checked "
                          "against it: mend its weights")
    return outputs


def _put_in_place(made: Path, path: Path) -> None:
    """Moves `made` and the files beside it to `path`; where that is interrupted, what was there before is put back.

    Of several files `path` goes first and comes last: it never stands beside weights that are another file's.
    """
    files = sorted(made.parent.iterdir(), key=lambda file: file.name == path.name)
    targets = [path.with_name(file.name) for file in files]
    for file, target in zip(files, targets):
        if target.is_dir() and not file.is_dir():
            raise BadArgument(f"path={str(path)!r}: {target} is a folder; move it away, or give another path")
    with TemporaryDirectory(prefix=".ziggurat-export-", dir=path.parent) as older:
        at_once = len(files) == 1 and not path.is_dir()
        aside = [] if at_once else [(old, Path(older, old.name)) for old in reversed(targets) if os.path.lexists(old)]
        moves = [*aside, *zip(files, targets)]
        try:
            for source, target in moves:
                os.replace(source, target)
        except BaseException:
            for source, target in reversed(moves):
                if not os.path.lexists(source):
                    os.replace(target, source)
            raise
