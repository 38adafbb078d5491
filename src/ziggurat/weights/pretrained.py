"""What is known of each published set of weights: its source, its input, its classes and its licence.

The facts lie in `tables/<module>.toml`, one file a model module. `[default]` holds what most of the module's weights
share, and a table `[architecture.tag]` holds what differs. Four conventions keep the tables short:

- a hub id that ends in a slash is the start of `<owner>/<architecture>.<tag>`;
- `pixels = "half"` stands for a pair of `mean` and `std` of that name (`PIXELS`);
- `none = ["field", ...]` in a row empties fields that the default (or the model) would fill;
- `first_conv`, `classifier` and `pool_size` are the model's to know: `complete` fills them in from the catalog, and
  a row states them only where the publisher's value is another one.

The first tag of an architecture is the default one. MindCV's weights come last: `tables/mindcv/<module>.toml` holds them,
in tables `[architecture]`. Licences are those of timm's configurations; where a publisher states another one, and which
data the weights were trained on, `provenance` knows. Reading a table needs no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from ziggurat.errors import BadArgument, nearest

__all__ = ["DefaultCfg", "PretrainedCfg", "as_stated", "complete", "filter_pretrained_cfg", "pretrained_cfgs", "table_modules"]

TABLES = Path(__file__).with_name("tables")
MINDCV_TAG = "mindcv_in1k"
SOURCE_FIELDS = frozenset({"url", "file", "hf_hub_id", "hf_hub_filename", "source", "package", "package_file"})
PIXELS = {  # name: mean and standard deviation of each channel, pixel values being in [0, 1]
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "raw": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
MODEL_FIELDS = frozenset({"pool_size", "first_conv", "classifier"})  # these stay in a dict even when empty


@dataclass
class PretrainedCfg:
    """One published set of weights. Field names are those of timm and of the hub's `config.json`.

    Sizes are (channels, height, width) in pixels, `pool_size` is the (height, width) of the last map, crop fractions
    are of the shorter side, `mean` and `std` are for pixel values in [0, 1].
    """

    # where the weights are; `ziggurat.weights.loading` says in which order the sources are tried
    url: str | tuple[str, str] | None = None  # an address, or (address, file name in the cache)
    file: str | None = None
    state_dict: Mapping[str, Any] | None = None
    hf_hub_id: str | None = None  # owner/name, with an optional @revision
    hf_hub_filename: str | None = None
    package: str | None = None  # an installed Python package that ships the weights ...
    package_file: str | None = None  # ... and the file inside it

    source: str | None = None  # "hf-hub" or "local-dir" when a name with that scheme was asked for
    architecture: str | None = None
    tag: str | None = None
    custom_load: bool | str = False  # a foreign layout (JAX .npz) that the model itself translates
    trained_with: dict[str, Any] | None = None  # arguments of the architecture that the weights need, where not its own

    # what the weights expect to see
    input_size: tuple[int, ...] = (3, 224, 224)
    test_input_size: tuple[int, ...] | None = None
    min_input_size: tuple[int, ...] | None = None
    fixed_input_size: bool = False
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    test_crop_pct: float | None = None
    crop_mode: str = "center"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    # what the weights say
    num_classes: int = 1000
    label_offset: int | None = None  # leading classes of the checkpoint that are background; negative: the last ones
    label_names: tuple[str, ...] | None = None
    label_descriptions: dict[str, str] | None = None

    # where in the model they touch the input and the classes
    pool_size: tuple[int, ...] | None = None
    test_pool_size: tuple[int, ...] | None = None
    first_conv: str | tuple[str, ...] | None = None
    classifier: str | tuple[str, ...] | None = None

    license: str | None = None
    description: str | None = None
    origin_url: str | None = None
    paper_name: str | None = None
    paper_ids: str | tuple[str, ...] | None = None
    notes: tuple[str, ...] | None = None

    @property
    def has_weights(self) -> bool:
        """Whether a place to get the weights from is known."""
        return bool(self.url or self.file or self.hf_hub_id or self.package)

    def to_dict(self, remove_source: bool = False, remove_null: bool = True) -> dict[str, Any]:
        """The fields as a new dict; the tensors of `state_dict` are shared, not copied."""
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return filter_pretrained_cfg(named, remove_source=remove_source, remove_null=remove_null)


def filter_pretrained_cfg(
    cfg: Mapping[str, Any], remove_source: bool = False, remove_null: bool = True
) -> dict[str, Any]:
    """A configuration without its sources (as it is written beside the weights) and without its empty fields.

    `pool_size`, `first_conv` and `classifier` are kept when empty: that they are empty is a statement.
    """
    dropped = SOURCE_FIELDS if remove_source else frozenset()
    return {
        name: value
        for name, value in cfg.items()
        if name not in dropped and not (remove_null and value is None and name not in MODEL_FIELDS)
    }


def as_stated(cfg: Mapping[str, Any] | PretrainedCfg) -> PretrainedCfg:
    """A configuration that somebody wrote as a dict, in our words (timm's) or in MindCV's.

    Of MindCV's `dataset_transform`, what its evaluation does with images is taken; mean and std there are for pixel
    values up to 255, and so are others of which any exceeds 1. Raises `BadArgument` for a field that there is not.
    """
    if isinstance(cfg, PretrainedCfg):
        return dataclasses.replace(cfg)
    stated = {name: tuple(value) if isinstance(value, list) else value for name, value in cfg.items()}
    transform: Mapping[str, Any] = dict(stated.pop("dataset_transform", None) or {}).get("transforms_imagenet_eval", {})
    taken = {name: transform[name] for name in ("crop_pct", "interpolation") if name in transform}
    if "image_resize" in transform:
        taken["input_size"] = (3, transform["image_resize"], transform["image_resize"])
    for name in ("mean", "std"):
        if name in transform:
            taken[name] = tuple(value / 255 for value in transform[name])
    pixels = {name: stated[name] for name in ("mean", "std") if stated.get(name) is not None}
    if any(value > 1 for values in pixels.values() for value in values):
        stated |= {name: tuple(value / 255 for value in values) for name, values in pixels.items()}
    fields = [field.name for field in dataclasses.fields(PretrainedCfg)]
    for name in stated:
        if name not in fields:
            raise BadArgument(f"a configuration of weights has no field {name!r}; "
                              f"nearest are {', '.join(nearest(name, fields)) or ', '.join(fields)}")
    return PretrainedCfg(**{**taken, **stated})


@dataclass
class DefaultCfg:
    """The published weights of one architecture, the default tag first."""

    tags: deque[str] = field(default_factory=deque)
    cfgs: dict[str, PretrainedCfg] = field(default_factory=dict)
    is_pretrained: bool = False

    @property
    def default(self) -> PretrainedCfg:
        """The configuration of the default tag."""
        return self.cfgs[self.tags[0]]

    @property
    def default_with_tag(self) -> tuple[str, PretrainedCfg]:
        """The default tag and its configuration."""
        return self.tags[0], self.default


def table_modules() -> list[str]:
    """The modules that have a table, sorted."""
    return sorted(path.stem for path in TABLES.glob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


@functools.cache
def pretrained_cfgs(module: str) -> dict[str, dict[str, PretrainedCfg]]:
    """The published weights of a module: architecture -> tag -> configuration, the default tag first.

    A module without a table has none but MindCV's. What comes back is shared by all callers: change a copy
    (`dataclasses.replace`). `first_conv`, `classifier` and `pool_size` are None until `complete` has filled them;
    an empty tuple there says that they stay None.
    """
    default, table = table_at(TABLES / f"{module}.toml")
    found = {
        architecture: {tag: row_cfg(architecture, tag, {**default, **row}) for tag, row in rows.items()}
        for architecture, rows in table.items()
    }
    default, table = table_at(TABLES / "mindcv" / f"{module}.toml")
    for architecture, row in table.items():
        found.setdefault(architecture, {})[MINDCV_TAG] = row_cfg(architecture, MINDCV_TAG, {**default, **row})
    return found


def table_at(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the rows of a table share, and the rows; both empty where there is no file."""
    table = read_toml(path) if path.is_file() else {}
    return table.pop("default", {}), table


def row_cfg(architecture: str, tag: str, row: dict[str, Any]) -> PretrainedCfg:
    """The configuration that a row of a table, default included, stands for."""
    if "pixels" in row:
        row["mean"], row["std"] = PIXELS[row.pop("pixels")]
    for name in row.pop("none", ()):
        row[name] = () if name in MODEL_FIELDS else None
    for name, value in row.items():
        if value.__class__ is list:
            row[name] = tuple(value)
    hub_id = row.get("hf_hub_id")
    if hub_id and hub_id.endswith("/"):
        row["hf_hub_id"] = f"{hub_id}{architecture}.{tag}" if tag else hub_id + architecture
    return PretrainedCfg(architecture=architecture, tag=tag or None, **row)


def complete(cfg: PretrainedCfg, entry: Mapping[str, Any]) -> PretrainedCfg:
    """A copy of `cfg` with what the model knows: `first_conv`, `classifier` and `pool_size`.

    `entry` is the architecture's in the catalog. Of it are read `first_conv` and `classifier` (a module path or
    several) and `reduction`, the stride of the last map, by which the input's height and width are divided, rounded
    up, for `pool_size`.
    """
    known: dict[str, Any] = {}
    for name in ("first_conv", "classifier"):
        value = entry.get(name)
        known[name] = tuple(value) if isinstance(value, list) else value
    reduction = entry.get("reduction")
    if reduction:
        known["pool_size"] = tuple(-(-side // reduction) for side in cfg.input_size[1:])
    filled: dict[str, Any] = {
        name: None if getattr(cfg, name) == () else known.get(name)
        for name in MODEL_FIELDS
        if getattr(cfg, name) in (None, ())
    }
    return dataclasses.replace(cfg, **filled)
