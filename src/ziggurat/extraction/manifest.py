"""What a run was asked for, frozen in DEST/_ziggurat/manifest.json before the first image is read."""

from __future__ import annotations

import bisect
import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadArgument
from .commit import write_json
from .outputs import Outputs

__all__ = ["ABOUT", "Manifest"]

ABOUT = "_ziggurat"  # the folder of a run that holds what is no output
FORMAT = 1

# what users know the entries by: the options, with the arguments of Python behind them where these are called otherwise
OPTIONS = {
    "outputs.embed": "--embed", "outputs.logits": "--logits", "outputs.tokens": "--tokens", "outputs.strides": "--strides",
    "outputs.taps": "--taps", "outputs.dtype": "--dtype", "outputs.vectors": "--format (of vectors)",
    "outputs.maps": "--format (of maps)", "preprocessing.size": "--size", "preprocessing.decode": "--decode",
    "preprocessing.exif": "--exif", "model.name": "--model", "model.random": "--random", "model.classes": "--classes",
    "model.weights_sha256": "the weights' SHA-256", "backend": "--backend", "precision": "--precision",
    "batch_size": "--batch (batch_size)", "unit_size": "--unit (unit_size)", "threads": "--threads",
}


@dataclass(frozen=True)
class Manifest:
    """A run's fingerprint: all that decides its numbers and files, and nothing that does not.

    Not in it, because the output is the same whatever they are: the engine, the number of workers, the host, the time.
    `segments` are ranges of the plan's rows [start, stop): the first run's, and one for each extension. Each is cut into
    units of `unit_size` rows, so that an extension leaves all earlier units as they are.
    """

    model: dict[str, Any]  # name, checkpoint, random, classes, weights_sha256
    outputs: Outputs
    shapes: dict[str, tuple[int, ...]]  # of one image, by the names of the tensors
    preprocessing: dict[str, Any]  # Preprocessing.stamp(): its fields, the libraries' versions, and the id of all that
    backend: str
    precision: str
    batch_size: int
    unit_size: int
    threads: int
    versions: dict[str, str]
    source: str
    segments: tuple[tuple[int, int], ...] = ()

    @property
    def images(self) -> int:
        """Rows of the plan that have a unit."""
        return self.segments[-1][1] if self.segments else 0

    @property
    def units(self) -> _Units:
        """The range [start, stop) of rows of every unit, by its number."""
        return _Units(self.segments, self.unit_size)

    @staticmethod
    def path(dest: str | Path) -> Path:
        """Where a run keeps its manifest."""
        return Path(dest) / ABOUT / "manifest.json"

    @classmethod
    def load(cls, dest: str | Path) -> Manifest:
        """The manifest of a run. Raises `BadArgument` where there is none, or one of a newer format."""
        path = cls.path(dest)
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadArgument(f"{str(path)!r} is damaged ({error}); start over with --fresh") from error
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BadArgument(f"{str(dest)!r} holds no extraction ({ABOUT}/manifest.json is missing); give the folder that "
                              "was the --out of 'ziggurat extract'") from error
        if facts.pop("format") != FORMAT:
            raise BadArgument(f"{str(path)!r} was written by another version of ziggurat; read it with that version")
        facts["outputs"] = Outputs.from_json(facts["outputs"])
        facts["shapes"] = {name: tuple(shape) for name, shape in facts["shapes"].items()}
        facts["segments"] = tuple((start, stop) for start, stop in facts["segments"])
        return cls(**facts)

    def save(self, dest: str | Path) -> None:
        """Writes the manifest, whole or not at all."""
        facts = {"format": FORMAT, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)}}
        facts["outputs"] = self.outputs.to_json()
        write_json(self.path(dest), facts, Path(dest) / ABOUT / "partial")

    def extended(self, rows: int) -> Manifest:
        """With one more segment, up to a plan of `rows` rows."""
        return dataclasses.replace(self, segments=(*self.segments, (self.images, rows)))

    def differences(self, asked: Manifest) -> list[str]:
        """What `asked` has otherwise, a line each: '--dtype: f16 in this run, f32 now'."""
        return list(_differences(self._compared(), asked._compared()))

    def _compared(self) -> dict[str, Any]:
        facts = dataclasses.asdict(self)
        del facts["segments"], facts["source"], facts["shapes"]  # the plan is compared by itself; shapes follow
        facts["model"].pop("checkpoint", None)  # wherever it lies: its weights are compared
        facts["preprocessing"].pop("id", None)  # it follows from the rest
        return facts


class _Units:
    """Units as a sequence that costs nothing, however many there are."""

    def __init__(self, segments: tuple[tuple[int, int], ...], size: int) -> None:
        self.segments, self.size = segments, size
        self.first = [0]  # the number of each segment's first unit
        for start, stop in segments:
            self.first.append(self.first[-1] + -(-(stop - start) // size))

    def __len__(self) -> int:
        return self.first[-1]

    def __getitem__(self, unit: int) -> tuple[int, int]:
        if not 0 <= unit < len(self):
            raise IndexError(f"unit {unit}: this run has {len(self)}")
        segment = bisect.bisect_right(self.first, unit) - 1
        start, stop = self.segments[segment]
        first = start + (unit - self.first[segment]) * self.size
        return first, min(first + self.size, stop)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return (self[unit] for unit in range(len(self)))

    def of_row(self, row: int) -> int:
        """The unit that holds a row of the plan."""
        segment = bisect.bisect_right([start for start, _ in self.segments], row) - 1
        if segment < 0 or row >= self.segments[segment][1]:
            raise IndexError(f"row {row}: this run has {self.segments[-1][1] if self.segments else 0}")
        return self.first[segment] + (row - self.segments[segment][0]) // self.size


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], under: str = "") -> Iterator[str]:
    for name in sorted(theirs.keys() | ours.keys()):
        before, now = theirs.get(name), ours.get(name)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _differences(before, now, f"{under}{name}.")
        elif _plain(before) != _plain(now):
            what = OPTIONS.get(under + name) or (under + name).replace("versions.", "version of ").replace(
                "preprocessing.libraries.", "version of ").replace(".", " ")
            yield f"{what}: {_said(before)} in this run, {_said(now)} now"


def _said(value: Any) -> str:
    """A value as it is given on the command line."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _plain(value: Any) -> Any:
    """As it is after a round through JSON."""
    return json.loads(json.dumps(value))
