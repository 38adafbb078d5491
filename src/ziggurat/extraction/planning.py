"""A run before its first image: its folder, its model, and the plan that is frozen, compared, extended or taken away."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..backbone import Backbone
from ..errors import BadArgument, ChangedRun
from .commit import committed, lock
from .manifest import ABOUT, Manifest
from .outputs import Outputs
from .plan import Plan
from .sources import Item
from .unit import load_model, weights_sha256

__all__ = ["begin", "check_same", "default_unit_size", "disk_errors_told", "extend_plan", "free_bytes", "held", "model_of",
           "outside", "save_plan", "withdraw"]

DIRECTORIES = ("embedding", "logits", "taps", "pyramid", "tokens")  # of a run, whatever its manifest says


def begin(out: Path, items: Sequence[Item], asked: Manifest) -> None:
    """Freezes the plan. The manifest comes last: with it, there is a run."""
    _clear(out)
    (out / ABOUT / "partial").mkdir(parents=True, exist_ok=True)
    save_plan(out, Plan.make(items))
    dataclasses.replace(asked, segments=((0, len(items)),)).save(out)


def check_same(out: Path, before: Manifest, asked: Manifest, items: Sequence[Item], extend: bool) -> None:
    """Raises `ChangedRun` unless what is asked now is the run that is there, or adds to it if it shall."""
    changes = before.differences(asked)
    if changes:
        raise ChangedRun(f"{str(out)!r} holds a run of other arguments:\n  " + "\n  ".join(changes) +
                         "\ngive what it was begun with to go on, --fresh to start over, or another --out")
    found = _plan_of(out, before).difference(items)
    lost = [f"{len(keys)} {what}, as {keys[0]!r}" for what, keys in (("gone", found.removed), ("changed", found.changed)) if keys]
    if lost or (found.added and not extend):
        lost += [f"{len(found.added)} new, as {found.added[0]!r}"] if found.added else []
        raise ChangedRun(
            f"the inputs are not those that the run in {str(out)!r} was planned with: {'; '.join(lost)}. "
            + ("--fresh starts over" if len(lost) > 1 or not found.added else "--extend adds what is new, --fresh starts over")
            + "; to read failed images again, use 'ziggurat retry'"
        )


def extend_plan(out: Path, before: Manifest, items: Sequence[Item]) -> None:
    """Adds the inputs that are new. Until the manifest says so, they are not in the run, whatever the plan holds."""
    plan = _plan_of(out, before)
    longer = plan.extended(items)
    if len(longer) > len(plan):
        withdraw(out)
        save_plan(out, longer)
        before.extended(len(longer)).save(out)


def _plan_of(out: Path, manifest: Manifest) -> Plan:
    """The plan as far as the manifest goes: an extension that was killed has left more rows behind it."""
    plan = Plan.load(out / ABOUT / "plan.parquet")
    return plan if len(plan) == manifest.images else Plan(plan.table.slice(0, manifest.images))


def save_plan(out: Path, plan: Plan) -> None:
    with committed(out / ABOUT / "plan.parquet", out / ABOUT / "partial") as path:
        plan.save(path)


def _clear(out: Path) -> None:
    """Takes away what a run has written: what proves it, what makes its units done, its data, and last the manifest.

    So whatever is left when this is killed is a run of which less is done, with which the old command would go on.
    """
    withdraw(out)
    names = [f"{ABOUT}/units", f"{ABOUT}/failures", f"{ABOUT}/partial", *DIRECTORIES] if Manifest.path(out).exists() else []
    for name in names:
        if (out / name).exists():
            shutil.rmtree(out / name)
    Manifest.path(out).unlink(missing_ok=True)


def withdraw(out: Path) -> None:
    """A run about to change is not complete any more."""
    (out / "_SUCCESS").unlink(missing_ok=True)
    (out / "failures.parquet").unlink(missing_ok=True)


def outside(items: Sequence[Item], out: Path) -> Sequence[Item]:
    """The inputs that do not lie in the run's own folder."""
    own = (os.path.join(os.path.abspath(out), ""), os.path.join(os.path.realpath(out), ""))
    return [item for item in items if "://" in item.container or not os.path.abspath(item.container).startswith(own)]


def model_of(
    model: str | Backbone, checkpoint: Any, random: bool, classes: int | None, outputs: Outputs
) -> tuple[Backbone, dict[str, Any]]:
    """The model, and what makes it again."""
    if checkpoint is not None and random:
        raise BadArgument("checkpoint and random exclude each other: give one of the two")
    if classes is not None and (checkpoint is None or classes < 1):
        raise BadArgument(f"classes={classes} says how many classes a checkpoint has, 1 or more: give it together with one")
    if isinstance(model, str):
        spec: dict[str, Any] = {"name": model, "checkpoint": None if checkpoint is None else os.path.abspath(checkpoint),
                                "random": random, "classes": classes}
        backbone = load_model(spec, has_head=outputs.logits)
    else:
        if not isinstance(model, Backbone):
            raise BadArgument(f"model is a {type(model).__name__}; give the name of a model, or what ziggurat.create_model makes")
        if model.training:
            raise BadArgument("the model is in training mode, where the images of a batch change each other's features; "
                              "call model.eval() first")
        if checkpoint is not None or random:
            raise BadArgument("checkpoint and random are for a model that is named; this one has its weights")
        name = getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__
        spec, backbone = {"name": name, "given": True}, model
    return backbone, {**spec, "weights_sha256": weights_sha256(backbone)}


def default_unit_size(images: int, bytes_an_image: int, batch_size: int) -> int:
    """Images a unit: some 256 units, of 256 to 4,096 images, whose files stay below 256 MiB; whole batches."""
    wanted = min(4096, max(256, images // 256), max(1, 2**28 // max(1, bytes_an_image)))
    return -(-wanted // batch_size) * batch_size


def free_bytes(out: Path) -> int:
    """Bytes that are free where `out` will be."""
    place = out.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


@contextmanager
def held(out: Path, shared: bool = False) -> Iterator[None]:
    """The folder of a run, made if need be and locked; says so where that cannot be done."""
    with ExitStack() as stack:
        with disk_errors_told(out):
            (out / ABOUT / "partial").mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(out, shared=shared))
        yield


@contextmanager
def disk_errors_told(out: Path) -> Iterator[None]:
    """Where nothing is computed yet, a disk that refuses is an error of the command."""
    try:
        yield
    except OSError as error:
        raise BadArgument(f"out={str(out)!r} cannot be written: {error.strerror or error}; make room or mend it and give the "
                          "same command, or choose another folder") from error
