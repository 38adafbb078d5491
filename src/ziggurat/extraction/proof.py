"""The proof of a run: every unit read back and held against what was committed and planned."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .commit import sha256_of, write_json
from .failures import failures_table, read_failures, write_failures
from .manifest import ABOUT, Manifest
from .plan import Plan, PlanFile
from .planning import withdraw
from .progress import Cause, Event, Verified
from .stores import finalise, read_unit
from .unit import available_cores, failed_rows, failures_path, sidecar, sidecar_path

__all__ = ["causes", "damage_sentence", "prove", "set_aside"]


def prove(out: Path, emit: Callable[[Event], None]) -> dict[int, str]:
    """Checks all units of a run that has them all; then failures.parquet and _SUCCESS are written.

    Damaged units are set aside instead, and given back, each with what is wrong with it.
    """
    manifest, plan = Manifest.load(out), PlanFile(out / ABOUT / "plan.parquet")
    damaged = set_aside(out, manifest, plan, range(len(manifest.units)))
    if damaged:
        return damaged
    import pyarrow as pa

    tables = [read_failures(failures_path(out, unit)) for unit in range(len(manifest.units)) if (sidecar(out, unit) or {})["failures"]]
    write_failures(out / "failures.parquet", pa.concat_tables([failures_table(), *tables]), out / ABOUT / "partial")
    finalise(out, manifest.outputs)
    digest = hashlib.sha256()
    rows = failed = files = size = 0
    for unit in range(len(manifest.units)):
        digest.update(sidecar_path(out, unit).read_bytes())
        facts = sidecar(out, unit) or {}
        rows, failed = rows + facts["rows"], failed + sum(facts["failures"].values())
        files, size = files + len(facts["files"]), size + sum(file["bytes"] for file in facts["files"])
    emit(Verified(rows, failed, files, size))
    write_json(out / "_SUCCESS", {
        "images": manifest.images, "rows": rows, "failures": failed, "units": len(manifest.units), "files": files, "bytes": size,
        "sha256": digest.hexdigest(),
    }, out / ABOUT / "partial")
    return {}


def set_aside(out: Path, manifest: Manifest, plan: Plan | PlanFile, units: Sequence[int]) -> dict[int, str]:
    """Takes the sidecars of units that are not as they were written, so that they are computed anew; what each has."""
    damaged = {}
    with ThreadPoolExecutor(min(4, available_cores())) as pool:
        for unit, problem in zip(units, pool.map(lambda unit: _problem(out, manifest, plan, unit), units)):
            if problem is not None:
                withdraw(out)
                sidecar_path(out, unit).unlink(missing_ok=True)
                damaged[unit] = problem
    return damaged


def damage_sentence(damaged: Mapping[int, str]) -> str:
    unit, problem = next(iter(damaged.items()))
    more = f" (and {len(damaged) - 1} more units)" if len(damaged) > 1 else ""
    return f"unit {unit}: {problem}{more}; the same extract command computes what is damaged anew"


def _problem(out: Path, manifest: Manifest, plan: Plan | PlanFile, unit: int) -> str | None:
    """What is wrong with a committed unit."""
    facts = sidecar(out, unit)
    if facts is None:
        return "it is not done"
    start, stop = manifest.units[unit]
    if [facts["unit"], facts["start"], facts["stop"]] != [unit, start, stop]:
        return "its sidecar is of another unit"
    for file in facts["files"]:
        path = out / file["path"]
        if not path.exists():
            return f"{file['path']} is missing"
        if sha256_of(path) != file["sha256"]:
            return f"{file['path']} is not what was written (its hash differs)"
    failed = failed_rows(out, unit)
    rows, keys, values = read_unit(out, manifest.outputs, unit)
    if len(rows) != facts["rows"] or len(failed) != sum(facts["failures"].values()):
        return "rows or failures are not as many as its sidecar says"
    if sorted([*rows.tolist(), *failed]) != list(range(start, stop)):
        return "an image of the plan has neither a row nor a failure, or has both"
    planned = plan.keys(start, stop)
    if list(keys) != [planned[row - start] for row in rows]:
        return "its keys are not the plan's"
    if values.keys() != manifest.shapes.keys():
        return f"it holds {', '.join(values)}, and should hold {', '.join(manifest.shapes)}"
    for name, value in values.items():
        if tuple(value.shape) != (len(rows), *manifest.shapes[name]):
            return f"{name} has the shape {tuple(value.shape)}"
        if not np.isfinite(value).all():
            return f"{name} has values that are not finite"
    return None


def causes(out: Path) -> tuple[Cause, ...]:
    """How many images failed of each cause, with the first of each."""
    import pyarrow as pa

    counts, first = Counter[str](), dict[str, str]()
    for unit in range(len(Manifest.load(out).units)):
        here = (sidecar(out, unit) or {}).get("failures", {})
        counts.update(here)
        if here.keys() - first.keys():
            try:
                lines = read_failures(failures_path(out, unit)).select(["stage", "cause", "key"]).to_pylist()
            except (pa.ArrowInvalid, OSError):
                continue  # damaged: the proof says so
            for line in lines:
                first.setdefault(f"{line['stage']}/{line['cause']}", line["key"])
    return tuple(Cause(name.partition("/")[0], name.partition("/")[2], count, first.get(name, "")) for name, count in counts.items())
