"""What a foreign module does with an image, found by running a copy of it without data at two or three sizes.

The copy shares nothing with the module: its parameters are on the meta device, so it costs no memory and computes
nothing. Only a module whose control flow asks for values has to be run for real, on a copy that is thrown away.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import BadArgument, nearest

__all__ = ["Form", "Observed", "disorder", "few", "meta_copy", "observe"]

_AXES = {"NCHW": (2, 3), "NHWC": (1, 2), "NLC": (1,)}
"""Positions by layout: the axes that grow with the image."""


@dataclass(frozen=True)
class Form:
    """How a level lies in memory: its layout, and how it becomes an NCHW map."""

    channels: int
    stride: int
    layout: str
    prefix_tokens: int = 0
    rounds_up: bool = False
    """Whether a patch that the image fills in part has a token."""
    is_overwritten: bool = False
    """Whether a later operation of the module changes the level in place."""

    def as_map(self, level: Tensor, height: int, width: int) -> Tensor:
        """A level of an image of `height` x `width` pixels as a map (B C H W)."""
        if self.is_overwritten:
            level = level.clone()
        if self.layout == "NCHW":
            return level
        if self.layout == "NHWC":
            return level.permute(0, 3, 1, 2).contiguous()
        extra = self.stride - 1 if self.rounds_up else 0
        rows, columns = (height + extra) // self.stride, (width + extra) // self.stride
        patches = level[:, self.prefix_tokens :]
        return patches.reshape(level.shape[0], rows, columns, self.channels).permute(0, 3, 1, 2).contiguous()


@dataclass
class Observed:
    """Facts of a module: the form of each level, its classifier, and when each of its modules first runs."""

    in_chans: int
    forms: list[Form]
    classifier: str | None
    """Path of the linear layer whose output is the module's output, or a part of it."""
    projects: bool
    """Whether a convolution or linear layer runs after the last level."""
    starts: dict[str, int]
    """Path of each module that ran, and how many levels were complete when it did first."""
    guarded: set[str]
    """Paths of the modules that ran without gradients or in autocast, because the module says so."""
    calls: list[str]
    """Paths of the modules called until the last level was complete, in order."""
    returned: bool
    """Whether the levels are what the module's own forward returns, in a list."""


@dataclass
class _Run:
    """What one forward pass showed."""

    size: tuple[int, int]
    finished: list[str] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    guarded: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    linear: tuple[str, int, Any] = ("", 0, None)
    result: Any = None


def observe(
    module: nn.Module,
    levels: Sequence[str],
    in_chans: int | None,
    input_size: tuple[int, int],
    layout: str | None,
    returned: bool = False,
    called: str = "levels",
) -> Observed:
    """What `module` does with images of about `input_size`, watched at the submodules `levels`.

    Where they are `returned`, `levels` are names for the maps in the list that the module's forward gives. Raises
    `BadArgument`, which says that they were `called` so, where a level is not a module that runs once, in the order given,
    and puts out a map; or where the list has not as many.
    """
    _check_paths(module, levels, returned, called)
    chans, first, run = _first_run(module, levels, in_chans, input_size, returned)
    height, width = input_size
    if returned:
        _check_returned(module, first, levels, called)
    else:
        _check_calls(first, levels, called)
    for path in levels:
        _check_output(path, first.outputs[path], called)
    grown = [_or_none(run, 2 * height, width), _or_none(run, height, 2 * width)]
    if None in grown:
        grown = [_or_none(run, 2 * height, 2 * width)]
    runs = [r for r in grown if r is not None]
    forms = [_form(path, first, runs, layout, called) for path in levels]
    if any(form.layout == "NLC" for form in forms):
        odd = _or_none(run, height + 1, width + 1)
        forms = [_with_rounding(path, form, odd) for path, form in zip(levels, forms)]
    path, ndim, scores = first.linear
    classifier = path if ndim == 2 and any(leaf is scores for leaf in tree_leaves(first.result)) else None
    projects = any(isinstance(module.get_submodule(name), nn.Linear | nn.Conv2d)
                   for name, start in first.starts.items() if start == len(levels))
    return Observed(chans, forms, classifier, projects, first.starts, first.guarded, first.calls, returned)


def meta_copy(module: nn.Module) -> nn.Module:
    """A copy of `module` in evaluation whose tensors are on the meta device; nothing is allocated on the way."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
            if isinstance(tensor, nn.Parameter):
                memo[id(tensor)] = nn.Parameter(torch.empty_like(tensor, device="meta"), requires_grad=False)
            elif isinstance(tensor, Tensor):
                memo[id(tensor)] = torch.empty_like(tensor, device="meta", requires_grad=False)
    return copy.deepcopy(module, memo).eval()


def _check_paths(module: nn.Module, levels: Sequence[str], returned: bool, called: str) -> None:
    modules = {path: part for path, part in module.named_modules(remove_duplicate=False) if path}
    paths = list(modules)
    if not levels:
        raise BadArgument(f"{called} is empty; name submodules of {type(module).__name__} in the order that they run, "
                          f"finest map first: {few([p for p in paths if '.' not in p])}")
    for path in levels:
        if path not in paths and not returned:
            close = nearest(path, paths) or [p for p in paths if "." not in p]
            raise BadArgument(f"{called}: {type(module).__name__} has no submodule {path!r}; nearest are {few(close)}")
        if list(levels).count(path) > 1:
            raise BadArgument(f"{called}: {path!r} is named twice; name each once")
    for a, b in () if returned else combinations(levels, 2):
        if modules[a] is modules[b]:
            raise BadArgument(f"{called}: {a!r} and {b!r} are one module, which is called twice; give each level its own")


def few(names: Sequence[str]) -> str:
    """The first eight of `names`, as text."""
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")


def _first_run(
    module: nn.Module, levels: Sequence[str], in_chans: int | None, input_size: tuple[int, int], returned: bool
) -> tuple[int, _Run, Callable[[int, int], _Run]]:
    """How many channels `module` takes, a run at `input_size`, and what runs the same copy at other sizes."""
    if in_chans is not None:
        candidates = [in_chans]
    else:
        convs = (m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d))
        candidates = list(dict.fromkeys((next(convs, 3), 3, 1)))
    failure: Exception | None = None
    for make in (meta_copy, lambda m: copy.deepcopy(m).eval().requires_grad_(False)):
        shell = make(module)
        for chans in candidates:
            run = functools.partial(_forward, shell, levels, returned, chans)
            try:
                return chans, run(*input_size), run
            except Exception as error:  # user code, fed with channels or a size that it may not take
                if failure is None or chans == candidates[0]:
                    failure = error
    said = " or ".join(map(str, candidates))
    raise BadArgument(
        f"{type(module).__name__} does not run on an image of {said} channels and {input_size[0]} x {input_size[1]} "
        f"pixels ({type(failure).__name__}: {str(failure).partition(chr(10))[0][:200]}); give in_chans and input_size "
        "as it needs them (with create_model: in_chans, and input_size=(channels, height, width) in its default_cfg or in "
        "pretrained_cfg_overlay)"
    ) from failure


def _or_none(run: Callable[[int, int], _Run], height: int, width: int) -> _Run | None:
    """A run at another size; None where the module takes no such size."""
    try:
        return run(height, width)
    except Exception:  # whatever a network says that was made for one size
        return None


@torch.enable_grad()  # so that a no_grad of the module's own shows
def _forward(shell: nn.Module, levels: Sequence[str], returned: bool, chans: int, height: int, width: int) -> _Run:
    run = _Run((height, width))
    tensors = [*shell.parameters(), *shell.buffers()]
    place = tensors[0].device if tensors else torch.device("cpu")
    kind = next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())
    outside = _modes()
    hooks = []
    level_of = {} if returned else {id(shell.get_submodule(path)): path for path in levels}
    made: list[tuple[Any, int]] = []  # what modules put out, and its version then

    def before(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any) -> None:
            run.starts.setdefault(path, len(run.finished))
            if len(run.finished) < len(levels):
                run.calls.append(path)
            if _modes() != outside:
                run.guarded.add(path)
        return note

    def after(path: str, is_linear: bool) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            if id(module) in level_of:
                level = level_of[id(module)]
                run.finished.append(level)
                run.outputs[level] = output
                run.versions[level] = getattr(output, "_version", 0)
            elif returned:
                made.append((output, getattr(output, "_version", 0)))
            if is_linear:
                run.linear = (path, args[0].ndim, output)
        return note

    for path, module in shell.named_modules():
        hooks.append(module.register_forward_pre_hook(before(path)))
        hooks.append(module.register_forward_hook(after(path, isinstance(module, nn.Linear))))
    try:
        with torch.device(place):
            run.result = shell(torch.zeros(2, chans, height, width, dtype=kind))
    finally:
        for hook in hooks:
            hook.remove()
    if returned and isinstance(run.result, list | tuple):
        run.outputs = dict(zip(levels, run.result))
        for path, level in run.outputs.items():
            run.versions[path] = next((v for output, v in made if output is level), getattr(level, "_version", 0))
    return run


def _modes() -> tuple[bool, ...]:
    """Whether gradients are recorded, and autocast is on."""
    return torch.is_grad_enabled(), *(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))


def _check_calls(run: _Run, levels: Sequence[str], called: str) -> None:
    for path in levels:
        calls = run.finished.count(path)
        if calls != 1:
            what = "never called" if not calls else f"called {calls} times"
            raise BadArgument(f"{called}: {path!r} is {what} in a forward pass; name a module that is called once")
    if run.finished != list(levels):
        raise BadArgument(f"{called}: {list(levels)} are not in the order that they run; give {run.finished}")


def _check_returned(module: nn.Module, run: _Run, levels: Sequence[str], called: str) -> None:
    name, result = type(module).__name__, run.result
    if not isinstance(result, list | tuple):
        raise BadArgument(f"{name} is_rewritten, so its forward has to return its levels in a list; it returns a "
                          f"{type(result).__name__}")
    if len(result) != len(levels):
        raise BadArgument(f"{called} of {name} names {len(levels)} levels ({few(levels)}), its forward returns "
                          f"{len(result)}; name each, in that order")


def disorder(module: nn.Module, flatten: bool, last: str, calls: Sequence[str]) -> list[str]:
    """How the calls of a module's parts, up to the level `last`, are not each of them once and in order of registration.

    Parts are its children; with `flatten`, those of a sequence among them instead of it. `calls` are the paths of the
    modules called. One clause for each part that it is about.
    """
    parts: list[str] = []
    for name, child in module.named_children():
        inside = [f"{name}.{n}" for n, _ in child.named_children()]
        parts += inside if flatten and isinstance(child, nn.Sequential) else [name]
    part_of = {path: max((p for p in parts if (path + ".").startswith(p + ".")), default="", key=len)
               for path in (*calls, last)}
    as_itself = set(calls) & set(parts)
    events: list[str] = []
    for path in calls:
        part = part_of[path]
        if part and (path == part if part in as_itself else events[-1:] != [part]):
            events.append(part)
    order = list(dict.fromkeys(events))
    place = {part: i for i, part in enumerate(parts)}
    found = [f"{part} is called {events.count(part)} times" for part in order if events.count(part) > 1]
    found += [f"{b} is registered before {a} and called after it" for a, b in pairwise(order) if place[b] < place[a]]
    before = parts[: place[part_of[last]] + 1]
    return found + [f"{part} is not called before {last} is complete" for part in before if part not in order]


def _check_output(path: str, output: Any, called: str) -> None:
    if not isinstance(output, Tensor):
        raise BadArgument(f"{called}: {path!r} puts out a {type(output).__name__}, not a map; "
                          "name a module that puts out one tensor")
    if output.ndim not in (3, 4) or output.shape[0] != 2:
        raise BadArgument(f"{called}: {path!r} puts out {tuple(output.shape)} for 2 images, which is no map "
                          "(B C H W or B H W C) and no sequence of tokens (B N C); name another module")


def _form(path: str, first: _Run, grown: Sequence[_Run], layout: str | None, called: str) -> Form:
    shape = tuple(first.outputs[path].shape)
    fits = [name for name in ([layout] if layout else _AXES) if len(name) == len(shape)]
    if not fits:
        raise BadArgument(f"layout={layout!r}: level {path!r} puts out {shape}, {len(shape)} axes")
    if grown:
        changed = {axis for run in grown for axis, (a, b) in enumerate(zip(shape, run.outputs[path].shape)) if a != b}
        if not changed:
            raise BadArgument(f"{called}: {path!r} puts out {shape} whatever the size of the image, so it is no map; "
                              "name a module that runs before pooling")
        fits = [name for name in fits if changed == set(_AXES[name])]
    fits = [name for name in fits if _stride(name, path, first, grown)]
    if len(fits) > 1:
        raise BadArgument(f"level {path!r} puts out {shape}, which may be {' or '.join(fits)}: give layout=")
    if not fits:
        sizes = ", ".join(f"{tuple(run.outputs[path].shape)} for {run.size[0]} x {run.size[1]}"
                          for run in (first, *grown))
        raise BadArgument(f"{called}: {path!r} is no map of a whole stride: it puts out {sizes}; name another module, "
                          "or give the input_size that this network was made for")
    stride = _stride(fits[0], path, first, grown)
    channels = shape[1] if fits[0] == "NCHW" else shape[-1]
    prefix = 0
    if fits[0] == "NLC":
        prefix = shape[1] - (first.size[0] // stride) * (first.size[1] // stride)
    overwritten = first.versions[path] != first.outputs[path]._version
    return Form(channels, stride, fits[0], prefix, is_overwritten=overwritten)


def _stride(layout: str, path: str, first: _Run, grown: Sequence[_Run]) -> int:
    """How many pixels of growth make a level one row or column larger; 0 where that is no whole number."""
    if layout == "NLC":
        return _token_stride(path, first, grown)
    shape = first.outputs[path].shape
    strides = set()
    for place, axis in enumerate(_AXES[layout]):
        if not grown:
            strides.add(_whole(first.size[place], shape[axis]))
        for run in grown:
            pixels = run.size[place] - first.size[place]
            if pixels:
                strides.add(_whole(pixels, run.outputs[path].shape[axis] - shape[axis]))
    stride = strides.pop()
    sides = {shape[axis] for axis in _AXES[layout]}
    return 0 if strides or (first.size[0] == first.size[1] and len(sides) > 1) else stride


def _whole(pixels: int, rows: int) -> int:
    """The stride by which `pixels` give `rows`, one more or less where rounding came in; 0 where none stands out.

    A power of two where one fits (224 pixels at stride 64 give 3 or 4 rows, not 3.5), the exact one, or the only one.
    """
    if rows < 1 or pixels < rows:
        return 0
    exact = pixels // rows if pixels % rows == 0 else 0
    fits = [s for s in range(pixels // (rows + 1) + 1, pixels + 1) if s * (rows - 1) < pixels]
    powers = sorted((s for s in fits if s & (s - 1) == 0), key=lambda s: abs(s * rows - pixels))
    return powers[0] if powers else exact or (fits[0] if len(fits) == 1 else 0)


def _token_stride(path: str, first: _Run, grown: Sequence[_Run]) -> int:
    height, width = first.size
    count = first.outputs[path].shape[1]
    if not grown:  # a square grid, and a few tokens before it
        whole = [s for s in range(1, min(height, width) + 1) if height % s == width % s == 0]
        found = [s for s in whole if 0 <= count - (height // s) * (width // s) <= 8]
        return found[0] if len(found) == 1 else 0
    strides = set()
    for run in grown:
        pixels = run.size[0] * run.size[1] - height * width
        tokens = run.outputs[path].shape[1] - count
        strides.add(math.isqrt(pixels // tokens) if tokens and pixels % tokens == 0 else 0)
    stride = strides.pop()
    fits = not strides and stride and height % stride == width % stride == 0
    return stride if fits and count >= (height // stride) * (width // stride) else 0


def _with_rounding(path: str, form: Form, odd: _Run | None) -> Form:
    if form.layout != "NLC" or odd is None:
        return form
    rows, columns = (-(-side // form.stride) for side in odd.size)
    rounds_up = odd.outputs[path].shape[1] - form.prefix_tokens == rows * columns
    return Form(form.channels, form.stride, form.layout, form.prefix_tokens, rounds_up, form.is_overwritten)
