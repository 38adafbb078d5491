"""`optimize`: a network in the backend that is fastest here, of those whose numbers agree."""

from __future__ import annotations

import copy
import importlib
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadArgument, MissingExtra
from ..view import View, as_strides, evaluating, largest_error, own_view
from . import choices
from .choices import Trial
from .fusing import fold_preprocessing, fused
from .optimized import Asked, Optimized, Prepared, as_batch, key_of
from .program import PRECISIONS, Program, Recipe, Unavailable
from .report import as_table
from .timing import interleaved

__all__ = ["BACKENDS", "TOLERANCES", "optimize"]

BACKENDS = {**dict.fromkeys(("eager", "onednn", "winograd", "compile", "regional", "aoti"), "torch_programs"),
            "openvino": "openvino_program", "onnxruntime": "onnxruntime_program"}
"""Backends and the module that has each."""
TRIED = {"cpu": ("eager", "onednn", "winograd", "onnxruntime", "openvino", "compile"), "cuda": ("eager", "compile")}
"""What 'auto' tries, by device. 'regional' and 'aoti' run the code of 'compile': they are for their compile time, or a file."""
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 5e-2, "int8": 4e-1}
"""The error allowed by default in each arithmetic, as a share of an output's largest value."""
GIVEN = Recipe("eager", "fp32", layout="as given")
FINALISTS = 4
NEAR = 0.8  # of the best speed found: what is slower is no finalist
_one_at_a_time = threading.Lock()  # two that time at once would time each other


@dataclass(frozen=True)
class _Asked:
    """The arguments of `optimize` that decide how a program is made."""

    backends: tuple[str, ...]
    precisions: tuple[str, ...]
    tolerance: float
    threads: int
    calibration: Tensor | None
    insists: bool


def optimize(
    model: nn.Module,
    example: Tensor | Sequence[int],
    backend: str | Sequence[str] = "auto",
    precision: str = "fp32",
    tolerance: float | None = None,
    *,
    view: str | None = None,
    strides: int | Sequence[int] | None = None,
    norm: bool | None = None,
    calibration: Tensor | Sequence[Any] | None = None,
    threads: int | None = None,
    verbose: bool = True,
    cache: bool = True,
) -> Optimized:
    """`model` as an object that is called like it and is as fast as the machine allows; see `Optimized`.

    The network is copied, its branches are re-parameterised and its batch norms folded (`fused`). Then every backend that
    is installed is built, checked on `example` against the network as given, eager in fp32, and timed there; the fastest
    whose outputs stay within `tolerance` is kept. What was tried is printed and stands in `trials`; the choice is kept on
    disk by model, shape, versions and machine (`cache`; the folder is `$ZIGGURAT_CACHE` or ~/.cache/ziggurat), and what is
    built from it is checked again.

    - `example`: images (B C H W) on the device to be used: numbers as the network takes them, or bytes (uint8, also
      B H W C), which are then normalised within the program; or the shape (B, C, H, W) of random ones. B is the
      batch that is timed; the object takes any number of images.
    - `backend`: 'auto'; 'eager' (torch without a compiler, in the memory layout and number of threads an image that are
      fastest), 'onednn' (the same with weights packed and activations computed with the convolution), 'winograd' (the same
      with 3x3 convolutions by Winograd's algorithm, where that is faster), 'compile' (torch.compile; on a CPU with weights
      frozen, on a GPU as a CUDA graph), 'regional' (torch.compile of each of the network's units, which takes a fraction
      of the time to compile), 'aoti' (an AOTInductor package), 'openvino', 'onnxruntime'; or several of them, to try these.
    - `precision`: 'fp32', 'bf16', 'fp16' or 'int8'. It is the coarsest arithmetic allowed: where there is a choice, fp32 is
      tried as well and taken where the machine lacks the instructions to be faster with less. One backend that is named is
      held to it.
    - `tolerance`: the largest difference of an output allowed, as a share of its largest value (`TOLERANCES`: 0.001 in
      fp32, 0.02 in fp16, 0.05 in bf16, 0.4 in int8). What is beyond it is dropped and stays in the table with its figure.
    - `view`: what is timed: 'classify', 'embed', 'pyramid' (of `strides`, `norm`) or 'tokens'; default: what the model
      gives when it is called. Other views are built in the same way when they are first asked for.
    - `calibration`: for int8, the images that the quantiser finds ranges on, some hundreds of the kind that will come: a
      tensor like `example`, or a list of paths or pictures, which are prepared as the model asks. Default: `example`.
    - `threads`: of the CPU (default: torch's own number).

    Raises `BadArgument` for a backend, precision, view or example that cannot be, naming those that can, `MissingExtra` for
    a backend named that is not installed, and `Unavailable`, a `BadArgument`, where one that was named cannot take the
    network, or none is within tolerance.
    """
    if not isinstance(model, nn.Module):
        raise BadArgument(f"model={model!r:.60}: give a module, as ziggurat.create_model makes it")
    images = _example(model, example)
    device = images.device
    if precision not in PRECISIONS:
        raise BadArgument(f"precision={precision!r}: give one of {', '.join(map(repr, PRECISIONS))}")
    if tolerance is None:
        tolerance = TOLERANCES[precision]
    elif isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 < tolerance < float("inf"):
        raise BadArgument(f"tolerance={tolerance!r}: give the largest error allowed, as a share of the largest value; 0.001, say")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise BadArgument(f"threads={threads!r}: give 1 or more")
    is_auto = backend == "auto"
    named = (backend,) if isinstance(backend, str) else tuple(backend) if isinstance(backend, (list, tuple)) else ()
    backends = TRIED.get(device.type, ("eager",)) if is_auto else tuple(dict.fromkeys(named))
    for name in backends or (backend,):
        if name not in BACKENDS:
            raise BadArgument(f"backend={name!r}: give 'auto', or some of {', '.join(map(repr, BACKENDS))}")
    own = own_view(model) if getattr(model, "out_indices", None) is None else "forward"
    wanted = Asked(view or own, as_strides(strides), norm).by_name(model)
    if precision == "int8":
        calibration = _calibration(model, images, calibration)
    elif calibration is not None:
        raise BadArgument(f"calibration: these images are for precision='int8', and precision={precision!r} was asked for")
    asked = _Asked(backends, (precision, "fp32") if len(backends) > 1 and precision != "fp32" else (precision,), tolerance,
                   threads or torch.get_num_threads(), calibration, insists=len(backends) == 1)

    if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in model.parameters()):
        model = copy.deepcopy(model).float()  # the numbers are compared with those of fp32
    with _one_at_a_time, evaluating(model), torch.no_grad():
        given = wanted.of(model, images.dtype == torch.uint8).describe(images)
        less = fused(model)
        light = fold_preprocessing(wanted.of(less, given.pixels).describe(images))
        batch = len(images)

        def prepare(view: View, some: Tensor, recipe: Recipe) -> Prepared:
            return _prepared(view, some, recipe, batch, asked)

        question = _question(model, given, images, asked, precision)
        kept = choices.read(question) if cache else None
        found = _again(given, light, images, asked, kept, question)
        if found is None:
            found = _tuned(given, light, images, asked)
            if cache:
                choices.write(question, *found[1:])
    program, chosen, trials = found
    fast = Optimized(less, given.view, trials[chosen].recipe, trials, prepare)
    fast.keep(key_of(wanted, images), Prepared(light, program, batch))
    if verbose:
        from rich.console import Console

        name = getattr(model, "architecture", "") or type(model).__name__
        title = f"{name}: {given.view} of {' x '.join(map(str, images.shape))} in {precision}, error up to {tolerance:g} allowed"
        Console().print(as_table(trials, fast.recipe, title))
    return fast


# ---------------------------------------------------------------- the arguments


def _example(model: nn.Module, example: Tensor | Sequence[int]) -> Tensor:
    if not isinstance(example, Tensor):
        shape = tuple(example) if isinstance(example, (list, tuple)) else ()
        if len(shape) != 4 or not all(isinstance(side, int) and side > 0 for side in shape):
            raise BadArgument(f"example={example!r:.60}: give images, a tensor (B C H W), or the four numbers of its shape")
        like = next(model.parameters(), torch.empty(()))
        example = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like.device)
    images = as_batch(model, example)
    if not len(images):
        raise BadArgument(f"example of shape {tuple(images.shape)}: give one image at least")
    return images


def _calibration(model: nn.Module, example: Tensor, given: Tensor | Sequence[Any] | None) -> Tensor:
    """Calibration images (N C H W) of the example's size and type."""
    if given is None:
        if len(example) < 32:
            warnings.warn(f"calibration: the {len(example)} images of the example are all that int8 is fitted to; give some "
                          "hundreds of the kind that will come", stacklevel=3)
        return example
    if not isinstance(given, Tensor):
        if not isinstance(given, (list, tuple)) or not given:
            raise BadArgument(f"calibration={given!r:.60}: give a tensor of images (N C H W), or a list of paths or pictures")
        from ..data import create_transform, resolve_model_data_config
        from ..data.image import open_image

        if example.dtype == torch.uint8:
            raise BadArgument("calibration: for an example of bytes give bytes too, a uint8 tensor (N C H W)")
        prepare = create_transform(**{**resolve_model_data_config(model), "input_size": tuple(example.shape[1:])})
        pictures = (open_image(one) if isinstance(one, (str, Path)) else one for one in given)
        ready = [one if isinstance(one, Tensor) else prepare(one) for one in pictures]
        for one in ready:
            if one.shape != example.shape[1:]:
                raise BadArgument(f"calibration has an image of shape {tuple(one.shape)}: give images like the example, "
                                  f"{tuple(example.shape[1:])}")
        given = torch.stack(ready)
    images = as_batch(model, given)
    if images.shape[1:] != example.shape[1:] or (images.dtype == torch.uint8) != (example.dtype == torch.uint8) or not len(images):
        raise BadArgument(f"calibration of shape {tuple(images.shape)} and {images.dtype}: give images like the example, "
                          f"(N {' '.join(map(str, example.shape[1:]))}) of {example.dtype}")
    return images


def _resized(images: Tensor, size: Sequence[int]) -> Tensor:
    """Images of another size, of the same type."""
    resized = nn.functional.interpolate(images.float(), tuple(size), mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(images.dtype) if images.dtype == torch.uint8 else resized.to(images.dtype)


def _question(model: nn.Module, view: View, images: Tensor, asked: _Asked, precision: str) -> dict[str, Any]:
    """What a choice depends on: the key of the cache."""
    return {"format": 1, "model": choices.structure(model), "view": [view.view, view.strides, view.norm],
            "images": [list(images.shape), str(images.dtype)], "backends": list(asked.backends), "precision": precision,
            "tolerance": asked.tolerance, "threads": asked.threads, "versions": choices.versions(),
            "machine": choices.machine(images.device)}


# ---------------------------------------------------------------- one recipe


def _build(view: View, images: Tensor, recipe: Recipe, asked: _Asked) -> Program:
    module = importlib.import_module(f"{__package__}.{BACKENDS[recipe.backend]}")
    program: Program = module.build(view, images, recipe, asked.threads, asked.calibration)
    return program


def _recipes(backend: str, view: View, images: Tensor, precision: str, threads: int) -> list[Recipe]:
    module = importlib.import_module(f"{__package__}.{BACKENDS[backend]}")
    recipes: list[Recipe] = module.recipes(backend, view, images, precision, threads)
    return recipes


def _prepared(view: View, images: Tensor, recipe: Recipe, batch: int, asked: _Asked) -> Prepared:
    """A view that was not timed, in the way that was chosen for the one that was; eager, with a warning, where that fails."""
    images = torch.cat([images] * -(-batch // len(images)))[:batch].contiguous()
    with torch.inference_mode():
        reference = view(images)
    if asked.calibration is not None and asked.calibration.shape[1:] != images.shape[1:]:
        asked = replace(asked, calibration=_resized(asked.calibration, images.shape[2:]))
    try:
        ready = Prepared(view, _build(view, images, recipe, asked), batch)
        error = largest_error(ready(images), reference)
        if error <= asked.tolerance:
            return ready
        what = f"its largest error is {error:.2g}, and {asked.tolerance:g} is allowed"
    except Unavailable as unavailable:
        what = str(unavailable)
    warnings.warn(f"view={view.view!r} of images {tuple(images.shape[1:])}: {recipe} cannot be used ({what}); it is computed "
                  "by backend 'eager' in fp32", stacklevel=5)
    simple = _recipes("eager", view, images, "fp32", asked.threads)[0]
    return Prepared(view, _build(view, images, simple, asked), batch)


def _again(
    given: View, light: View, images: Tensor, asked: _Asked, kept: tuple[int, list[Trial]] | None, question: dict[str, Any]
) -> tuple[Program, int, list[Trial]] | None:
    """What was chosen before, built again; None, and forgotten, where it is no longer within tolerance."""
    if kept is None:
        return None
    chosen, trials = kept
    try:
        program = _build(light, images, trials[chosen].recipe, asked)
        with torch.inference_mode():
            reference = given(images)
        if largest_error(program(images), reference) <= asked.tolerance:
            return program, chosen, trials
    except (Unavailable, MissingExtra):  # it was available when it was chosen; what is so now is found out anew
        pass
    choices.forget(question)
    return None


# ---------------------------------------------------------------- all of them


def _tuned(given: View, light: View, images: Tensor, asked: _Asked) -> tuple[Program, int, list[Trial]]:
    """The fastest program within tolerance, its place in the table, and the table."""

    def as_given() -> Any:
        with torch.inference_mode():
            return _waited(given(images), images.device)

    reference = as_given()
    trials = [Trial(GIVEN, ratio=1.0, error=0.0, seconds=0.0)]
    running: dict[int, Program] = {}  # the fastest so far, by their place in the table
    eager = statistics.median(interleaved({"eager": as_given}, 2)["eager"])
    failed: set[tuple[str, str]] = set()  # backends, and the arithmetic in which they cannot do it
    for recipe, why in _offers(light, images, asked):
        arithmetic = recipe.backend, recipe.precision
        if why:
            trials.append(Trial(recipe, dropped=why))
        if why or arithmetic in failed:
            continue
        start = time.perf_counter()
        try:
            program = _build(light, images, recipe, asked)
            error = largest_error(program(images), reference)
        except Unavailable as unavailable:
            if asked.insists:
                raise
            trials.append(Trial(recipe, dropped=str(unavailable)))
            failed.add(arithmetic)
            continue
        seconds = time.perf_counter() - start
        if not error <= asked.tolerance:
            trials.append(Trial(recipe, error=error, seconds=seconds,
                                dropped=f"its largest error is {error:.2g}, and {asked.tolerance:g} is allowed"))
            failed.add(arithmetic)
            program.close()
            continue
        best = max(running, key=lambda place: trials[place].ratio or 0.0, default=0)
        rival = _timed(running[best], images) if best else as_given
        ratio = (trials[best].ratio or 1.0) * _ratio(rival, _timed(program, images), eager)
        trials.append(Trial(recipe, ratio=ratio, error=error, seconds=seconds))
        running[len(trials) - 1] = program
        if len(running) > FINALISTS:
            running.pop(min(running, key=lambda place: trials[place].ratio or 0.0)).close()
    if not running:
        failures = "; ".join(f"{trial.recipe}: {trial.dropped}" for trial in trials if trial.dropped)
        raise Unavailable(f"backend={' or '.join(map(repr, asked.backends))}: none can be used. {failures}. "
                          "Give another backend, precision or tolerance")
    return _final(as_given, eager, running, trials, images)


def _final(
    as_given: Callable[[], Any], eager: float, running: dict[int, Program], trials: list[Trial], images: Tensor
) -> tuple[Program, int, list[Trial]]:
    """The finalists against each other and against the network as given, all in one series."""
    best = max(trials[place].ratio or 0.0 for place in running)
    for place in [place for place in running if (trials[place].ratio or 0.0) < NEAR * best]:
        running.pop(place).close()
    rounds = _rounds(eager * sum(1 / (trials[place].ratio or 1.0) for place in (0, *running)), 3, 15, of=6)
    calls = {"0": as_given} | {str(place): _timed(program, images) for place, program in running.items()}
    medians = {int(name): statistics.median(seconds) for name, seconds in interleaved(calls, rounds).items()}
    trials = [replace(trial, ratio=medians[0] / medians[i]) if i in medians else trial for i, trial in enumerate(trials)]
    trials = [replace(trial, images_per_second=trial.ratio * len(images) / medians[0]) if trial.ratio else trial for trial in trials]
    chosen = min(running, key=lambda place: medians[place])
    for place, program in running.items():
        if place != chosen:
            program.close()
    return running[chosen], chosen, trials


def _offers(view: View, images: Tensor, asked: _Asked) -> Iterator[tuple[Recipe, str]]:
    """Recipes worth trying; with a reason, one for a backend that has none."""
    for precision in asked.precisions:
        for backend in asked.backends:
            try:
                recipes = _recipes(backend, view, images, precision, asked.threads)
            except (Unavailable, MissingExtra) as error:
                if asked.insists:
                    raise
                yield Recipe(backend, precision), str(error)
                continue
            for recipe in recipes:
                yield recipe, ""


def _ratio(rival: Callable[[], Any], call: Callable[[], Any], longest: float) -> float:
    """How many times faster `call` is than `rival`, neither of which takes longer than some `longest` seconds."""
    seconds = interleaved({"rival": rival, "it": call}, _rounds(longest, 2, 11))
    return statistics.median(seconds["rival"]) / statistics.median(seconds["it"])


def _rounds(seconds: float, least: int, most: int, of: float = 1.0) -> int:
    """Rounds of `seconds` each, as many as `of` timed seconds have room for; the untimed calls take as long again."""
    return max(least, min(most, int(of / seconds)))


def _timed(program: Program, images: Tensor) -> Callable[[], Any]:
    return lambda: _waited(program(images), images.device)


def _waited(outputs: Any, device: torch.device) -> Any:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return outputs
