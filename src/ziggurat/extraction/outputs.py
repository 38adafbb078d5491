"""What an extraction keeps of each image, in which type and in which kind of file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import BadArgument
from ..packages import require_packages

__all__ = ["DTYPES", "MAP_FORMATS", "VECTOR_FORMATS", "Outputs", "bytes_per_image", "check_installed", "group"]

DTYPES = {"f16": "float16", "f32": "float32"}  # as NumPy names them
VECTOR_FORMATS = ("parquet", "npy", "lance")
MAP_FORMATS = ("safetensors", "zarr")
MAP_GROUPS = ("pyramid", "tokens")


@dataclass(frozen=True)
class Outputs:
    """The outputs of one run, all from one forward pass; at least one of them.

    Vectors are the embedding (`embed`), the class scores before softmax (`logits`) and the pooled outputs of the modules
    named in `taps`; they are written as `vectors`: 'parquet', 'npy' or 'lance'. Maps are the levels of the pyramid at
    `strides` (pixels, ascending) and the `tokens` of a transformer; they are written as `maps`: 'safetensors' or 'zarr'.
    `dtype` is 'f16' or 'f32'. Raises `BadArgument` for values that cannot work.
    """

    embed: bool = False
    logits: bool = False
    tokens: bool = False
    strides: tuple[int, ...] = ()
    taps: tuple[str, ...] = ()
    dtype: str = "f16"
    vectors: str = "parquet"
    maps: str = "safetensors"

    def __post_init__(self) -> None:
        if not (self.has_vectors or self.has_maps):
            raise BadArgument("no output is asked for; give one or more of embed, strides, tokens, logits, taps")
        for stride in self.strides:
            if not isinstance(stride, int) or isinstance(stride, bool) or stride < 1:
                raise BadArgument(f"strides={self.strides!r}: {stride!r} is no stride; give positive whole numbers of pixels, "
                                  "such as 8,16,32")
        for tap in self.taps:
            if not isinstance(tap, str) or not all(tap.split(".")) or "/" in tap or "\\" in tap:
                raise BadArgument(f"taps={self.taps!r}: {tap!r} is no name of a module; give names such as 'blocks.7', "
                                  "as model.named_modules() has them")
        for name in ("strides", "taps"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise BadArgument(f"{name}={values!r} names one more than once; name each once")
        for name, known in (("dtype", tuple(DTYPES)), ("vectors", VECTOR_FORMATS), ("maps", MAP_FORMATS)):
            if getattr(self, name) not in known:
                raise BadArgument(f"{name}={getattr(self, name)!r} is not known; give {_listed(known)}")

    @classmethod
    def make(
        cls,
        embed: bool = False,
        strides: int | Iterable[int] = (),
        tokens: bool = False,
        logits: bool = False,
        taps: str | Iterable[str] = (),
        dtype: str = "f16",
        format: str = "",
    ) -> Outputs:
        """Outputs as the command line names them: the embedding if nothing else is asked for.

        `format` names a file format for the vectors, one for the maps, or one for each with a comma between them
        ('npy', 'zarr', 'npy,zarr'); where it names none it is 'parquet' and 'safetensors'.
        """
        strides = (strides,) if isinstance(strides, int) else tuple(strides)
        taps = (taps,) if isinstance(taps, str) else tuple(taps)
        if all(isinstance(stride, int) for stride in strides):
            strides = tuple(sorted(strides))
        embed = embed or not (strides or tokens or logits or taps)
        vectors, maps = _formats(format)
        return cls(embed, logits, tokens, strides, taps, dtype, vectors, maps)

    @property
    def has_vectors(self) -> bool:
        return bool(self.embed or self.logits or self.taps)

    @property
    def has_maps(self) -> bool:
        return bool(self.strides or self.tokens)

    def directories(self) -> tuple[str, ...]:
        """The folders of a run that hold data: 'embedding', 'logits', 'taps/NAME', 'pyramid', 'tokens', as far as asked for."""
        asked = {"embedding": self.embed, "logits": self.logits, **{f"taps/{tap}": True for tap in self.taps},
                 "pyramid": bool(self.strides), "tokens": self.tokens}
        return tuple(name for name, wanted in asked.items() if wanted)

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outputs:
        """The outputs that `to_json` gave; raises `BadArgument` for entries that this version does not know."""
        known = {one.name for one in fields(cls)}
        if unknown := sorted(set(value) - known):
            raise BadArgument(f"outputs with {', '.join(unknown)}: written by another version of ziggurat, which knows more")
        facts: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in value.items()}
        return cls(**facts)


def group(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The names of a forward pass by the directory where they are kept: levels together, tokens together, others alone."""
    groups: dict[str, tuple[str, ...]] = {}
    for name in names:
        first = name.split("/")[0]
        directory = first if first in MAP_GROUPS else name
        groups[directory] = (*groups.get(directory, ()), name)
    return groups


def bytes_per_image(shapes: Mapping[str, Sequence[int]], dtype: str) -> int:
    """Bytes on disk for one image's outputs, whose `shapes` are without the batch; keys and headers come on top."""
    width = {"f16": 2, "f32": 4}[dtype]
    return width * sum(math.prod(shape) for shape in shapes.values())


def check_installed(outputs: Outputs) -> None:
    """Raises `MissingExtra`, with what to install, if a package is missing that writing these outputs takes."""
    needed = {"pyarrow": "extract"}  # the plan and the tables of keys and failures are Parquet, whatever the outputs are
    if outputs.has_vectors and outputs.vectors == "lance":
        needed["lance"] = "lance"
    if outputs.has_maps and outputs.maps == "zarr":
        needed["zarr"] = "zarr"
    for module, extra in needed.items():
        require_packages(f"writing {_listed(outputs.directories(), 'and')}", [module], extra)


def _formats(format: str) -> tuple[str, str]:
    """The formats of vectors and of maps."""
    chosen: dict[str, str] = {}
    for name in filter(None, (part.strip() for part in format.split(","))):
        kind = "vectors" if name in VECTOR_FORMATS else "maps" if name in MAP_FORMATS else None
        if kind is None:
            raise BadArgument(f"format={format!r}: {name!r} is not known; give {_listed(VECTOR_FORMATS)} for vectors, "
                              f"{_listed(MAP_FORMATS)} for maps, or one of each with a comma between")
        if kind in chosen:
            raise BadArgument(f"format={format!r} names two formats for {kind}; give one of {_listed(VECTOR_FORMATS)} "
                              f"and one of {_listed(MAP_FORMATS)}")
        chosen[kind] = name
    return chosen.get("vectors", VECTOR_FORMATS[0]), chosen.get("maps", MAP_FORMATS[0])


def _listed(names: Sequence[str], last: str = "or") -> str:
    return f"{', '.join(names[:-1])} {last} {names[-1]}" if len(names) > 1 else names[0]
