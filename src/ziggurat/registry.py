"""Names to architectures: listing, facts, and a user's own; answered from the catalog, without torch."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import importlib
import json
import re
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import UnknownModel, UnknownTag, nearest
from .facts import ModelInfo, measured, published
from .weights.pretrained import DefaultCfg, PretrainedCfg, as_stated, complete, pretrained_cfgs

__all__ = [
    "generate_default_cfgs",
    "get_arch_name",
    "get_arch_pretrained_cfgs",
    "get_deprecated_models",
    "get_pretrained_cfg",
    "get_pretrained_cfg_value",
    "is_model",
    "is_model_in_modules",
    "is_model_pretrained",
    "list_models",
    "list_modules",
    "list_pretrained",
    "model_entrypoint",
    "model_info",
    "register_model",
    "register_model_deprecations",
    "split_model_name_tag",
]

CATALOG = Path(__file__).with_name("catalog")
COMPAT = Path(__file__).with_name("compat")


@dataclasses.dataclass
class _Registered:
    """A function that a user registered, and the weights that its module declares for it."""

    create: Callable[..., Any]
    module: str
    weights: DefaultCfg | None
    deprecated_for: str | None = None


_registered: dict[str, _Registered] = {}  # a user's own, by name; they win over the catalog
_deprecated: dict[str, str | None] = {}  # a user's deprecations: old name -> new name
_deprecated_in: dict[str, str] = {}  # old name -> module
_hidden: set[str] = set()  # names of ours that a user deprecated


@functools.cache
def catalog(module: str | None = None) -> dict[str, dict[str, Any]]:
    """Facts of every shipped architecture by name, each with its `module` (those of one module if it is named)."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(CATALOG.glob(f"{module or '*'}.json")):
        for name, facts in json.loads(path.read_text(encoding="utf-8")).items():
            found[name] = facts | {"module": path.stem}
    return found


@functools.cache
def _shipped_deprecations() -> dict[str, dict[str, str | None]]:
    path = COMPAT / "deprecated.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@functools.cache
def mindcv_names() -> dict[str, dict[str, Any]]:
    """MindCV's names: under `names` by its modules, each with the name here or None; under `absent` why it is None."""
    found: dict[str, dict[str, Any]] = json.loads((COMPAT / "mindcv.json").read_text(encoding="utf-8"))
    return found


@functools.cache
def _from_mindcv() -> dict[str, str | None]:
    """The name here of each of MindCV's, or None."""
    return {theirs: ours for names in mindcv_names()["names"].values() for theirs, ours in names.items()}


def mindcv_counterparts(patterns: Iterable[str]) -> dict[str, str]:
    """MindCV's names that match a glob pattern and are called otherwise here, with what they are called."""
    known = _names()
    return {
        theirs: ours
        for theirs, ours in _from_mindcv().items()
        if ours in known and ours != theirs and any(fnmatch.fnmatch(theirs, pattern) for pattern in patterns)
    }


def split_model_name_tag(model_name: str, no_tag: str = "") -> tuple[str, str]:
    """`architecture.tag` as a pair; `no_tag` stands in where there is no dot."""
    architecture, _, tag = model_name.partition(".")
    return architecture, tag or no_tag


def get_arch_name(model_name: str) -> str:
    """The architecture of `architecture.tag`."""
    return split_model_name_tag(model_name)[0]


def weights_of(architecture: str) -> dict[str, PretrainedCfg]:
    """Tag to configuration, the default first: shared, and without what `complete` fills in.

    The tag '' is an architecture's configuration without weights.
    """
    own = _registered.get(architecture)
    if own is not None:
        return {tag: own.weights.cfgs[tag] for tag in own.weights.tags} if own.weights else {}
    facts = catalog().get(architecture)
    if facts is None or architecture in _hidden:
        return {}
    return pretrained_cfgs(facts["module"]).get(architecture, {})


def _completed(architecture: str, cfg: PretrainedCfg) -> PretrainedCfg:
    facts = catalog().get(architecture)
    if architecture in _registered or facts is None:
        return dataclasses.replace(cfg)
    return complete(cfg, facts)


def _names() -> dict[str, str]:
    """Every listed architecture and its module."""
    names = {name: facts["module"] for name, facts in catalog().items() if name not in _hidden}
    names.update({name: entry.module for name, entry in _registered.items() if entry.deprecated_for is None})
    return names


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


def as_list(value: str | Iterable[str] | None) -> list[str]:
    """One string, several, or none of them, as a list."""
    if not value:
        return []
    return [value] if isinstance(value, str) else list(value)


def _with_tags(pattern: str) -> list[str]:
    """A pattern without a tag, as one that matches names with any tag too."""
    return [pattern] if split_model_name_tag(pattern)[1] else [f"{pattern}.*", pattern]


def list_models(
    filter: str | Iterable[str] = "",
    module: str | Iterable[str] = "",
    pretrained: bool = False,
    exclude_filters: str | Iterable[str] = "",
    name_matches_cfg: bool = False,
    include_tags: bool | None = None,
) -> list[str]:
    """Names of architectures, in natural order. `search` chooses by size, strides, licence and other facts as well.

    `filter` and `exclude_filters` are glob patterns, one or several; `module` names one module or several.
    `pretrained=True` keeps what has weights and lists each as `architecture.tag` unless `include_tags=False`.
    """
    include_tags = pretrained if include_tags is None else include_tags
    modules = set(as_list(module))
    architectures = {name for name, where in _names().items() if not modules or where in modules}
    rows: dict[str, str] = {}  # listed name -> architecture
    for name in architectures:
        tags = [tag for tag in weights_of(name) if tag] if include_tags else []
        rows.update({f"{name}.{tag}": name for tag in tags} if tags else {name: name})

    include, exclude = as_list(filter), as_list(exclude_filters)
    if include_tags:
        include = [p for pattern in include for p in _with_tags(pattern)]
        exclude = [p for pattern in exclude for p in _with_tags(pattern)]
    chosen = set(rows)
    if include:
        chosen = {name for pattern in include for name in fnmatch.filter(rows, pattern)}
    for pattern in exclude:
        chosen -= set(fnmatch.filter(chosen, pattern))
    if pretrained:
        chosen = {name for name in chosen if is_model_pretrained(name)}
    if name_matches_cfg:
        chosen = {name for name in chosen if weights_of(rows[name])}
    return sorted(chosen, key=_natural)


def list_pretrained(filter: str | Iterable[str] = "", exclude_filters: str | Iterable[str] = "") -> list[str]:
    """Every `architecture.tag` that has published weights."""
    return list_models(filter, pretrained=True, exclude_filters=exclude_filters, include_tags=True)


def list_modules() -> list[str]:
    """The modules that architectures come from."""
    return sorted(set(_names().values()))


def is_model(model_name: str) -> bool:
    """Whether an architecture of that name (a tag is passed over) can be created."""
    name = get_arch_name(model_name)
    return name in _names() or name in _deprecations() or _current(name) is not None


def is_model_in_modules(model_name: str, module_names: str | Iterable[str]) -> bool:
    """Whether the architecture comes from one of the modules."""
    name = get_arch_name(model_name)
    where = _deprecated_in.get(name) or _names().get(name)
    return where in as_list(module_names)


def is_model_pretrained(model_name: str) -> bool:
    """Whether the architecture, or the `architecture.tag`, has published weights."""
    architecture, tag = split_model_name_tag(model_name)
    weights = weights_of(architecture)
    if tag:
        return tag in weights and weights[tag].has_weights
    return any(cfg.has_weights for cfg in weights.values())


def get_pretrained_cfg(model_name: str, allow_unregistered: bool = True) -> PretrainedCfg | None:
    """A copy of what is known of `architecture` (its default tag) or `architecture.tag`.

    None for an architecture without any; raises `UnknownTag` for a tag that it lacks.
    """
    architecture, tag = split_model_name_tag(model_name)
    weights = weights_of(architecture)
    if not weights:
        if tag and is_model(architecture):
            raise UnknownTag(f"Invalid pretrained tag ({tag}) for {architecture}: it has no published weights")
        if not is_model(architecture) and not allow_unregistered:
            raise unknown_model(architecture)
        return None
    if not tag:
        return _completed(architecture, next(iter(weights.values())))
    if tag not in weights:
        raise UnknownTag(f"Invalid pretrained tag ({tag}) for {architecture}; it has {', '.join(t for t in weights if t)}")
    return _completed(architecture, weights[tag])


def get_pretrained_cfg_value(model_name: str, cfg_key: str) -> Any:
    """One field of `get_pretrained_cfg`; None where there is none."""
    return getattr(get_pretrained_cfg(model_name, allow_unregistered=False), cfg_key, None)


def get_arch_pretrained_cfgs(model_name: str) -> dict[str, PretrainedCfg]:
    """Copies of all that is known of an architecture's weights, by `architecture.tag`."""
    architecture = get_arch_name(model_name)
    return {
        f"{architecture}.{tag}" if tag else architecture: _completed(architecture, cfg)
        for tag, cfg in weights_of(architecture).items()
    }


def unknown_model(name: str, names: Iterable[str] | None = None) -> UnknownModel:
    """The error for a name that nothing has: what will have it, of MindCV's names, else the nearest of `names` (of all)."""
    theirs = _from_mindcv()
    architecture = get_arch_name(name)
    if architecture in theirs:
        ours = theirs[architecture]
        why = mindcv_names()["absent"].get(architecture, "its family is not here yet")
        called = "" if ours in (None, architecture) else f"it is MindCV's name of {ours}, and "
        return UnknownModel(f"no model {name!r}: {called}{why}")
    close = nearest(architecture, _names() if names is None else names)
    said = f"nearest are {', '.join(close)}; " if close else ""
    return UnknownModel(f"no model {name!r}: {said}see ziggurat list '*{architecture[:4]}*'")


# -------------------------------------------------------------------- entry points


def model_entrypoint(model_name: str, module_filter: str | None = None) -> Callable[..., Any]:
    """The function that creates an architecture; raises `UnknownModel`."""
    name = get_arch_name(model_name)
    if module_filter and not is_model_in_modules(name, module_filter):
        raise UnknownModel(f"no model {name!r} in module {module_filter!r}")
    if name in _registered:
        return _registered[name].create
    if name in _names():
        return family_of(name).entrypoint(name)
    new = _current(name)
    if new is not None:
        return _former_entry(name, new)
    raise unknown_model(name)


def family_of(name: str) -> Any:
    """The `Family` that an architecture of ours is a row of; imports that one model file."""
    module = catalog()[name]["module"]
    return importlib.import_module(f"{__package__}.models.{module}").family


def is_own(name: str) -> bool:
    """Whether `name` is a function that a user registered (and not a row of a family)."""
    return name in _registered


def model_info(model_name: str) -> ModelInfo:
    """What is known of an architecture before it is built: size, cost, levels, limits, weights.

    With `architecture.tag` its `pretrained` holds those weights only. Raises `UnknownModel`, or `UnknownTag` for a tag
    that the architecture lacks.
    """
    architecture, tag = split_model_name_tag(model_name)
    new = _current(model_name)
    if new is not None:
        return model_info(new)
    if architecture not in _names():
        raise unknown_model(architecture)
    if tag:
        get_pretrained_cfg(model_name)
    facts = {} if is_own(architecture) else measured(catalog()[architecture])
    weights = [
        published(name, cfg)
        for name, cfg in get_arch_pretrained_cfgs(architecture).items()
        if cfg.has_weights and (not tag or name == model_name)
    ]
    return ModelInfo({
        **facts,
        "name": architecture,
        "module": _names()[architecture],
        "pretrained": {info.tag: info for info in weights},
    })


# -------------------------------------------------------------------- a user's own


def generate_default_cfgs(cfgs: Mapping[str, Mapping[str, Any] | PretrainedCfg]) -> dict[str, DefaultCfg]:
    """`{"name.tag": dict(...)}` as a module declares it, by architecture; the first tag, or one marked `*`, leads."""
    found: dict[str, DefaultCfg] = {}
    starred: set[str] = set()
    for key, value in cfgs.items():
        cfg = as_stated(value)
        architecture, tag = split_model_name_tag(key)
        leads = tag.endswith("*") or (architecture not in starred and not found.get(architecture, DefaultCfg()).tags)
        if tag.endswith("*"):
            starred.add(architecture)
        tag = tag.strip("*")
        cfg.architecture, cfg.tag = architecture, tag or None
        if cfg.hf_hub_id and cfg.hf_hub_id.endswith("/"):
            cfg.hf_hub_id += f"{architecture}.{tag}" if tag else architecture
        entry = found.setdefault(architecture, DefaultCfg(tags=deque()))
        entry.is_pretrained |= cfg.has_weights
        entry.cfgs[tag] = cfg
        entry.tags.appendleft(tag) if leads else entry.tags.append(tag)
    return found


def register_model(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator that lists a function of one's own under its name, creatable like any other architecture.

    Weights that its module declares in `default_cfgs` (see `generate_default_cfgs`) come with it. A name that is
    taken already is taken over, with a warning.
    """
    name = fn.__name__
    module = fn.__module__.rpartition(".")[2]
    if name in _names() or name in _registered:
        warnings.warn(f"Overwriting {name} in registry with {fn.__module__}.{name}: the new one wins.", stacklevel=2)
    declared = getattr(sys.modules.get(fn.__module__), "default_cfgs", {}) or {}
    weights = declared.get(name)
    if weights is not None and not isinstance(weights, DefaultCfg):
        weights = generate_default_cfgs({name: weights})[name]
    _forget(name)
    _registered[name] = _Registered(fn, module, weights)
    return fn


def _forget(name: str) -> None:
    _registered.pop(name, None)
    _deprecated.pop(name, None)
    _deprecated_in.pop(name, None)
    _hidden.discard(name)


def register_model_deprecations(module_name: str, deprecation_map: Mapping[str, str | None]) -> None:
    """Old names of a module's architectures: created under the new name with a warning, and no longer listed."""
    for old, new in deprecation_map.items():
        _forget(old)
        if old in catalog():
            _hidden.add(old)
        _deprecated[old] = new
        _deprecated_in[old] = module_name.rpartition(".")[2]


def _deprecations() -> dict[str, str | None]:
    shipped = {old: new for names in _shipped_deprecations().values() for old, new in names.items()}
    return {old: new for old, new in shipped.items() if old not in _registered} | _deprecated


def get_deprecated_models(module: str = "") -> dict[str, str | None]:
    """Old names and the names that replaced them, of one module or of all."""
    if not module:
        return _deprecations()
    shipped = {o: n for o, n in _shipped_deprecations().get(module, {}).items() if o not in _registered}
    return shipped | {old: new for old, new in _deprecated.items() if _deprecated_in[old] == module}


def _current(model_name: str) -> str | None:
    """The name that a deprecated name or one of MindCV's stands for, where there is such an architecture.

    MindCV's names keep their tag; a deprecated name is a tag by itself.
    """
    architecture, tag = split_model_name_tag(model_name)
    if architecture in _names():
        return None
    if architecture in _deprecations():
        return _deprecations()[architecture]
    new = _from_mindcv().get(architecture)
    if new not in _names():
        return None
    return f"{new}.{tag}" if tag else new


def resolve_name(model_name: str) -> str:
    """What a deprecated name or one of MindCV's stands for, with a warning; any other name as it is."""
    architecture = get_arch_name(model_name)
    new = _current(model_name)
    if new is None:
        if architecture in _deprecations() and architecture not in _names():
            raise UnknownModel(f"{architecture} was withdrawn and has no successor")
        return model_name
    if architecture in _deprecations():
        warnings.warn(f"Mapping deprecated model name {architecture} to current {new}.", stacklevel=3)
    else:
        warnings.warn(f"{architecture} is MindCV's name; it is called {get_arch_name(new)} here.", stacklevel=3)
    return new


def _former_entry(old: str, new: str) -> Callable[..., Any]:
    def create(pretrained: bool = False, **kwargs: Any) -> Any:
        architecture, tag = split_model_name_tag(resolve_name(old))
        if tag:
            kwargs["pretrained_cfg"] = kwargs.get("pretrained_cfg") or tag
        return model_entrypoint(architecture)(pretrained=pretrained, **kwargs)

    create.__name__ = old
    create.__doc__ = f"Another name of {new}."
    return create
