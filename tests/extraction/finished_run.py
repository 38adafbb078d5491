"""A run on disk made of random numbers, as `ziggurat extract` would leave it, without a model or an image."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from ziggurat.extraction.commit import write_json
from ziggurat.extraction.failures import failures_table, write_failures
from ziggurat.extraction.manifest import ABOUT, Manifest
from ziggurat.extraction.outputs import DTYPES, Outputs
from ziggurat.extraction.plan import Plan
from ziggurat.extraction.sources import Item
from ziggurat.extraction.stores import finalise, write_unit

SHAPES = {
    "embedding": (12,), "logits": (5,), "taps/blocks.7": (7,), "pyramid/stride_8": (4, 3, 3), "pyramid/stride_16": (6, 2, 2),
    "tokens/cls": (8,), "tokens/patches": (8, 2, 2),
}
ALL = Outputs(embed=True, logits=True, tokens=True, strides=(8, 16), taps=("blocks.7",))
FAILURE = {"stage": "decode", "cause": "truncated", "message": "the file ends too early", "bytes": 17, "sha256": "ab"}


def finished_run(
    dest: Path,
    outputs: Outputs = ALL,
    images: int = 40,
    unit_size: int = 16,
    failed: tuple[int, ...] = (),
    extension: int = 0,
    done: set[int] | None = None,
    keys: list[str] | None = None,
    shapes: dict[str, tuple[int, ...]] = SHAPES,
) -> dict[str, np.ndarray]:
    """Writes a run, and returns the numbers [images ...] of all outputs; rows `failed` are in its failures instead.

    The last `extension` images were added later (a second segment of the plan). With `done`, only these units are
    committed, and the run is incomplete. Keys, in their order, are 'images/000.jpg', ... unless given.
    """
    kept = (*outputs.directories(), *(f"pyramid/stride_{stride}" for stride in outputs.strides))
    shapes = {name: shape for name, shape in shapes.items() if name in kept or (outputs.tokens and name.startswith("tokens/"))}
    segments = tuple(range_ for range_ in ((0, images - extension), (images - extension, images)) if range_[0] < range_[1])
    manifest = Manifest(
        model={"name": "tiny", "weights_sha256": "00"}, outputs=outputs, shapes=shapes, preprocessing={"id": "abc"},
        backend="torch", precision="fp32", batch_size=4, unit_size=unit_size, threads=1, versions={}, source="images",
        segments=segments,
    )
    keys = keys or [f"images/{row:03d}.jpg" for row in range(images)]
    items = [Item(key, f"/data/{key}", "", -1, 100, "1") for key in keys]
    (dest / ABOUT).mkdir(parents=True)
    plan = Plan.make(items[: images - extension]).extended(items[images - extension :])
    plan.save(dest / ABOUT / "plan.parquet")
    manifest.save(dest)

    random = np.random.default_rng(0)
    values = {name: random.standard_normal((images, *shape)).astype(DTYPES[outputs.dtype]) for name, shape in shapes.items()}
    partial = dest / ABOUT / "partial"
    lines = []
    for unit, (start, stop) in enumerate(manifest.units):
        if done is not None and unit not in done:
            continue
        rows = np.array([row for row in range(start, stop) if row not in failed], np.int64)
        files = write_unit(dest, outputs, unit, rows, [keys[row] for row in rows],
                           {name: value[rows] for name, value in values.items()}, about={"model": "tiny"})
        bad = [{"row": row, "key": keys[row], **FAILURE} for row in range(start, stop) if row in failed]
        if bad:
            write_failures(dest / ABOUT / "failures" / f"{unit:06d}.parquet", failures_table(bad), partial)
            lines += bad
        write_json(dest / ABOUT / "units" / f"{unit:06d}.json", {
            "unit": unit, "start": start, "stop": stop, "rows": len(rows),
            "failures": {"decode/truncated": len(bad)} if bad else {}, "files": [file._asdict() for file in files],
        }, partial)
    if done is None:
        write_failures(dest / "failures.parquet", failures_table(lines), partial)
        finalise(dest, outputs)
        write_json(dest / "_SUCCESS", {"rows": images - len(failed)}, partial)
    return values


def digest(dest: Path) -> str:
    """One hash of the paths and contents of all files of a folder, without a run's log."""
    total = hashlib.sha256()
    for path in sorted(dest.rglob("*")):
        name = path.relative_to(dest).as_posix()
        if path.is_file() and not name.startswith(f"{ABOUT}/log/"):
            total.update(json.dumps([name, hashlib.sha256(path.read_bytes()).hexdigest()]).encode())
    return total.hexdigest()
