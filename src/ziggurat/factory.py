"""A name and arguments to a backbone, weights included."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from . import registry
from .backbone import Backbone, as_backbone, take_strides
from .backbone.base import draws_weights
from .backbone.plan import check_choice
from .backbone.pruned import fit_channels
from .errors import BadArgument, SourceUnavailable, UnknownArgument, nearest
from .weights.pretrained import MINDCV_TAG, PretrainedCfg, as_stated

if TYPE_CHECKING:
    from .weights.hub import HubConfig

__all__ = ["build_model_with_cfg", "create_model", "parse_model_name", "resolve_pretrained_cfg", "safe_model_name"]

SCHEMES = ("hf-hub", "local-dir")
VIEW = ("out_indices", "out_strides", "norm", "pyramid", "pyramid_channels")  # arguments that are about one view
LOADING = ("pretrained_strict", "pretrained_filter_fn")  # and about weights, not about the model
OF_ALL = ("features_only", *VIEW, *LOADING, "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "in_chans_from",
          "cache_dir", "ema", "auto_mapping")  # arguments that go with every architecture

_declared: weakref.WeakKeyDictionary[nn.Module, PretrainedCfg] = weakref.WeakKeyDictionary()
"""What is known of the weights that each model takes, before it is fitted to the model's channels and size."""


def create_model(
    model_name: str,
    pretrained: bool = False,
    pretrained_cfg: str | Mapping[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    checkpoint_path: str | Path | None = None,
    in_chans_from: str | Sequence[Any] | None = None,
    cache_dir: str | Path | None = None,
    scriptable: bool | None = None,
    exportable: bool | None = None,
    no_jit: bool | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    ema: bool | None = None,
    auto_mapping: bool = False,
    **kwargs: Any,
) -> Any:
    """The backbone called `model_name`.

    - `model_name`: `architecture` or `architecture.tag`; `hf-hub:owner/name[@revision]` and `local-dir:PATH` create
      what the `config.json` found there says, with its weights if `pretrained`.
    - `pretrained`: load the published weights of the tag (the default tag where none is named). They are downloaded
      once, into the hub client's own cache, or into `cache_dir`. Of safetensors on the hub, a pyramid or an embedder
      that takes less than nine tenths fetches what it takes, into the client's cache of assets (`weights.partial`).
    - `pretrained_cfg`: another tag, or a configuration of one's own; `pretrained_cfg_overlay` changes fields of it
      (`dict(file="weights.safetensors")`, say).
    - `checkpoint_path`: load this file instead (.safetensors, .pth, .npz, MindSpore's .ckpt: the last of these with the
      arguments of the tag `mindcv_in1k`, unless a tag is named, since MindCV pads and rounds in its own way).
      Classifiers, embedders and pyramids name their tensors alike, so the file of one serves the others; layers behind
      the last level that it lacks altogether stay as initialised, with a warning that names them.
    - `ema`: of a training checkpoint at `checkpoint_path`, take the averaged weights (True: it must have them), the last
      (False), or PyTorch's averaged and MindSpore's last (None).
    - `auto_mapping`: where names in that checkpoint are not the model's, pair tensors by name, shape and order together,
      print the pairs, and refuse what is ambiguous (`weights.auto_mapping`).
    - `in_chans_from`: how weights come to other `in_chans`: 'repeat' (the default: the old channels in turn, rescaled),
      'mean' (each the rescaled mean of the old), 'first' (the old in place, further ones from zero), or a list with an
      entry for each new channel: the index of an old one, None for zero, or numbers to weight the old ones with. Mean
      and std of the preprocessing (`model.pretrained_cfg`) follow. See `weights.channels.band_rows`.
    - `features_only`: the pyramid: `forward` gives a list of maps, and what they do not need is not held.
      `out_indices` chooses levels by index, `out_strides` by stride (the deepest level of each), in the order given.
      `norm` gives them behind the trunk's final norm where it fits (False; see `Backbone.pyramid`).
    - `pyramid`: with `features_only`, what makes `out_strides` where all levels have one stride (a plain ViT):
      'interpolate', without parameters, or 'simple', ViTDet's, of `pyramid_channels` (256), which is to be trained:
      it starts afresh unless the checkpoint has it. The last level is used, or the one that `out_indices=(k,)` names.
    - `num_classes`, `in_chans`, `global_pool`, `output_stride`, `drop_rate`, `drop_path_rate` and the architecture's
      own arguments go to its class; see `Backbone`. None stands for the default; `in_channels` is `in_chans`. Weights
      are adapted to another `in_chans`, `num_classes` or image size.
    - `device`, `dtype`: where, and as what, parameters are made.
    - `scriptable`, `exportable`, `no_jit`: accepted for timm's sake and without effect. All models export and
      compile as they are; `torch.jit.script` is not supported.

    Raises `UnknownModel`, `UnknownTag`, `UnknownArgument`, `BadArgument`, `UnsupportedStride`, `SourceUnavailable`,
    `UnsafeCheckpoint` or `CheckpointMismatch`.
    """
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    source, name = parse_model_name(model_name)
    if source is not None:
        config = _from_source(source, name, cache_dir)
        architecture, pretrained_cfg, saved = config.architecture, pretrained_cfg or config.pretrained_cfg, config.saved
        kwargs = _with_overrides(config.model_args, kwargs)
    else:
        saved = {}
        architecture, tag = registry.split_model_name_tag(registry.resolve_name(name))
        if tag and not pretrained_cfg:
            pretrained_cfg = tag
    if not registry.is_model(architecture):
        raise registry.unknown_model(architecture)
    if pretrained and checkpoint_path:
        pretrained = False  # the file given wins, so that nothing is downloaded for it
    file = checkpoint_path or (dict(pretrained_cfg_overlay or {}).get("file") if pretrained else None)
    if file and not pretrained_cfg and _is_mindcvs(file, architecture):
        pretrained_cfg = MINDCV_TAG

    is_own = registry.is_own(architecture)
    kwargs = _channels_named(registry.model_entrypoint(architecture) if is_own else Backbone, kwargs)
    if is_own and isinstance(pretrained_cfg, str):  # its function need not know its own name
        pretrained_cfg = resolve_pretrained_cfg(architecture, pretrained_cfg)
    arguments = {name: value for name, value in kwargs.items() if name not in LOADING}
    with _place(device, dtype, direct=not (pretrained or checkpoint_path)):
        if is_own:
            if saved:  # by us, so that the function need not know of weights
                model = registry.model_entrypoint(architecture)(pretrained=False, **kwargs)
            else:
                given = dict(pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=pretrained_cfg_overlay,
                             cache_dir=cache_dir, in_chans_from=in_chans_from, ema=(pretrained and ema) or None)
                given = {name: value for name, value in given.items() if value is not None}
                model = registry.model_entrypoint(architecture)(pretrained=pretrained, **given, **kwargs)
            if kwargs.get("features_only"):
                _check_is_pyramid(model, architecture)
            known = None if pretrained_cfg else _declared.get(model)
            cfg = known or resolve_pretrained_cfg(architecture, pretrained_cfg, pretrained_cfg_overlay)
            if checkpoint_path or (saved and pretrained):
                state_dict = (_read(checkpoint_path, ema) if checkpoint_path
                              else _fetch(cfg, cache_dir, ema, model, kwargs.get("features_only", False)))
                _load(model, state_dict, cfg, is_part=kwargs.get("features_only", False), in_chans_from=in_chans_from,
                      auto_mapping=auto_mapping and bool(checkpoint_path))
            if saved or not getattr(model, "pretrained_cfg", None):
                model.pretrained_cfg = _as_built(cfg, model, in_chans_from, kwargs.get("img_size"))
        else:
            cls, row = registry.family_of(architecture)[architecture]
            cfg = resolve_pretrained_cfg(architecture, pretrained_cfg, pretrained_cfg_overlay)
            trained_with = _trained_with(row, cfg, pretrained, pretrained_cfg)
            if saved:  # its arguments say all
                trained_with = {}
            model = build_model_with_cfg(cls, architecture, pretrained, cfg, checkpoint_path=checkpoint_path, ema=ema,
                                         auto_mapping=auto_mapping, cache_dir=cache_dir, in_chans_from=in_chans_from,
                                         **{**row, **trained_with, **kwargs})
            arguments = {**trained_with, **arguments}
    if device is not None or dtype is not None:
        model.to(device=device, dtype=dtype)
    if isinstance(model, Backbone):
        model.architecture, model.arguments = architecture, arguments
        if "frozen" in saved:
            upto = saved["frozen"]
            model.freeze(None if upto is None else min(upto, model._depth - 1))
    return model


def build_model_with_cfg(
    model_cls: Callable[..., Any],
    variant: str | bool = "",
    pretrained: bool | Mapping[str, Any] = False,
    pretrained_cfg: str | Mapping[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    model_cfg: Any = None,
    feature_cfg: Mapping[str, Any] | None = None,
    pretrained_strict: bool = True,
    pretrained_filter_fn: Callable[..., dict[str, Any]] | None = None,
    cache_dir: str | Path | None = None,
    kwargs_filter: Sequence[str] | None = None,
    checkpoint_path: str | Path | None = None,
    in_chans_from: str | Sequence[Any] | None = None,
    ema: bool | None = None,
    auto_mapping: bool = False,
    default_cfg: Mapping[str, Any] | PretrainedCfg | None = None,
    **kwargs: Any,
) -> Any:
    """An instance of `model_cls` with the configuration of `variant`, its weights, and the view asked for.

    For functions under `register_model`; `create_model` comes through here too. `pretrained_filter_fn(state_dict,
    model)` puts a foreign checkpoint under the model's names, `kwargs_filter` names arguments to drop.

    MindCV's order works as well, `build_model_with_cfg(model_cls, pretrained, default_cfg=...)`: `default_cfg` says what is
    known of the weights where `pretrained_cfg` does not, in MindCV's words or timm's. `model_cls` may be any nn.Module
    with a `feature_info`: `features_only` then makes it what `as_backbone` makes, without it is left as it is. It takes
    the number of input channels as `in_chans` or `in_channels`.
    """
    if isinstance(variant, bool):  # MindCV's order
        if isinstance(pretrained, Mapping):
            default_cfg = pretrained
        pretrained = variant
        variant = ""
    pretrained = bool(pretrained)
    stated: Mapping[str, Any] | None = None  # all that is said of the weights, where it is the caller who says it
    if pretrained_cfg is None and (default_cfg is not None or not variant):
        pretrained_cfg = default_cfg if default_cfg is not None else {}
        stated = pretrained_cfg if isinstance(pretrained_cfg, Mapping) else None
    variant = variant or model_cls.__name__
    features_only = kwargs.pop("features_only", False)
    out_indices = kwargs.pop("out_indices", None)
    out_strides = kwargs.pop("out_strides", None)
    norm = kwargs.pop("norm", False)
    pyramid = kwargs.pop("pyramid", None)
    pyramid_channels = kwargs.pop("pyramid_channels", None)
    kwargs.pop("feature_cls", None)  # timm's choice among wrappers; there is one way here
    if pyramid is not None and not (features_only and out_strides is not None):
        raise BadArgument(f"pyramid={pyramid!r} makes levels: give it with features_only=True and "
                          "out_strides=(4, 8, 16, 32), say")
    # of a pyramid, out_indices names the level that it is made from
    check_choice(features_only, out_indices if pyramid is None else None, out_strides)
    if not features_only and norm:
        raise BadArgument("norm=True is about the levels of features_only=True; without it, pass norm=True to "
                          "model.pyramid, model.extract or model.forward_intermediates")
    if pyramid is None and pyramid_channels is not None:
        raise BadArgument(f"pyramid_channels={pyramid_channels} is the width of pyramid='simple': give both")

    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, pretrained_cfg_overlay)
    if pretrained and not cfg.has_weights and cfg.state_dict is None:
        why = "" if stated is None else ": its default_cfg has no url"
        raise SourceUnavailable(f"No pretrained weights exist for {variant}{why}; use pretrained=False or checkpoint_path=")
    for unwanted in kwargs_filter or ():
        kwargs.pop(unwanted, None)
    kwargs = _channels_named(model_cls, kwargs)
    kwargs = {**_defaults(model_cls, cfg, stated), **kwargs}
    is_pruned = kwargs.pop("pruned", False)  # a variant with channels of its own; see backbone/pruned.py
    _check_arguments(model_cls, variant, kwargs)
    args = () if model_cfg is None else (model_cfg,)

    def build(**changed: Any) -> Any:
        model = model_cls(*args, **{**kwargs, **changed})
        if is_pruned:
            fit_channels(model, variant)
        return model

    loads = bool(pretrained or checkpoint_path)
    is_family = isinstance(model_cls, type) and issubclass(model_cls, Backbone)
    fills_all = loads and pretrained_strict and is_family  # so that nothing needs to be drawn
    model = _without_weights(build) if fills_all else build()
    channels = kwargs.get("in_channels", kwargs.get("in_chans"))
    if features_only and not isinstance(model, Backbone):
        size = _pair(kwargs.get("img_size") or cfg.input_size[-2:])
        model = as_backbone(model, in_chans=channels, input_size=size)
    model.pretrained_cfg = cfg.to_dict()  # of the weights, which loading them reads
    if features_only:
        if pyramid is None:
            _keep_levels(model, out_indices, out_strides, feature_cfg, norm)
        else:
            _keep_levels(model, 1 if out_indices is None else out_indices, None, None, norm)
    if fills_all:
        allocate(model)
    if pyramid is not None:
        model.add_pyramid(pyramid, out_strides, pyramid_channels)
    if loads:
        if checkpoint_path:
            state_dict: Mapping[str, Any] = _read(checkpoint_path, ema)
        else:
            state_dict = _fetch(cfg, cache_dir, ema, None if pretrained_filter_fn else model, features_only)
        if pretrained_filter_fn is not None:
            state_dict = pretrained_filter_fn(state_dict, model)
        found_in = cfg
        if in_chans_from is not None and not isinstance(in_chans_from, str):
            name = "in_channels" if "in_channels" in kwargs else "in_chans"
            found_in = dataclasses.replace(cfg, first_conv=_input_layers(build, kwargs[name], name))
        fresh = _load(model, state_dict, found_in, pretrained_strict, features_only, in_chans_from,
                      auto_mapping and bool(checkpoint_path))
        if fresh and fills_all:
            drawn = build()
            with torch.no_grad():
                for path, parameter in model.named_parameters():
                    if path in fresh:
                        parameter.copy_(drawn.get_parameter(path))
    model.pretrained_cfg = _as_built(cfg, model, in_chans_from, kwargs.get("img_size"), channels)
    _declared[model] = cfg
    return model


def parse_model_name(model_name: str) -> tuple[str | None, str]:
    """`scheme:rest` as a pair; scheme is None for a plain architecture name.

    Schemes are `hf-hub` and `local-dir`. Raises `BadArgument` for another one, and for a bare path or `owner/name`,
    which must say which of the two it is.
    """
    if not isinstance(model_name, str):
        raise BadArgument(f"model_name={model_name!r}: give the name of an architecture; ziggurat.list_models() has them")
    scheme, colon, rest = model_name.partition(":")
    known = scheme.lower().replace("_", "-")
    if colon and known in SCHEMES:
        if not rest:
            raise BadArgument(f"{model_name!r} names nothing after the colon; give {known}:NAME")
        return known, rest
    if re.search(r"[/\\]", model_name) or re.match(r"^[A-Za-z]:", model_name):
        raise BadArgument(f"{model_name!r} is a path or a repository, not an architecture: "
                          f"write 'hf-hub:{model_name}' or 'local-dir:{model_name}'")
    if colon:
        raise BadArgument(f"{model_name!r} has an unknown source {scheme!r}; known are {', '.join(SCHEMES)}")
    return None, model_name


def safe_model_name(model_name: str, remove_source: bool = True) -> str:
    """`model_name` as a file name: everything but letters and digits becomes an underscore."""
    if remove_source:
        model_name = parse_model_name(model_name)[1]
    return re.sub(r"[^0-9A-Za-z]", "_", model_name).rstrip("_")


def resolve_pretrained_cfg(
    variant: str,
    pretrained_cfg: str | Mapping[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
) -> PretrainedCfg:
    """The configuration of `variant`: of the tag named, as given, or the default tag's, with the overlay applied."""
    if isinstance(pretrained_cfg, PretrainedCfg):
        cfg = dataclasses.replace(pretrained_cfg)
    elif isinstance(pretrained_cfg, Mapping):
        cfg = as_stated(pretrained_cfg)
    else:
        found = registry.get_pretrained_cfg(f"{variant}.{pretrained_cfg}" if pretrained_cfg else variant)
        cfg = found if found is not None else PretrainedCfg()
    overlay = dict(pretrained_cfg_overlay or {})
    fields = {field.name for field in dataclasses.fields(PretrainedCfg)}
    wrong = [name for name in overlay if name not in fields]
    if wrong:
        raise BadArgument(f"pretrained_cfg_overlay: no field {wrong[0]!r}; "
                          f"nearest are {', '.join(nearest(wrong[0], sorted(fields))) or ', '.join(sorted(fields))}")
    cfg = dataclasses.replace(cfg, **overlay)
    if not cfg.architecture:
        cfg.architecture = variant
    return cfg


# -------------------------------------------------------------------- steps of the above


def _from_source(source: str, name: str, cache_dir: str | Path | None) -> HubConfig:
    """What the config.json of a hub repository or of a folder states."""
    from .weights.hub import load_config_from_hub, load_config_from_path

    return load_config_from_hub(name, cache_dir=cache_dir) if source == "hf-hub" else load_config_from_path(name)


def _with_overrides(model_args: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's arguments, lists as the tuples that they were, with what is asked for instead.

    Where a view is asked for, nothing is left of the one that the configuration describes.
    """
    stated = {name: _tuples(value) for name, value in model_args.items()}
    if any(name in asked for name in ("features_only", *VIEW)):
        stated = {name: value for name, value in stated.items() if name not in VIEW}
    return {**stated, **asked}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _defaults(
    model_cls: Callable[..., Any], cfg: PretrainedCfg, stated: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Arguments that the weights decide: classes, input channels, and the image size where it is fixed.

    Where somebody `stated` fields of `cfg`, the others decide nothing.
    """
    defaults: dict[str, Any] = {}
    if stated is None or "num_classes" in stated:
        defaults["num_classes"] = cfg.num_classes
    if stated is None or "input_size" in stated:
        defaults["in_chans"] = cfg.input_size[0]
    if cfg.fixed_input_size:
        height, width = cfg.input_size[-2:]
        defaults["img_size"] = height if height == width else (height, width)
    accepted, open_ended = _accepted_arguments(model_cls)
    defaults = _channels_named(model_cls, defaults)
    return {name: value for name, value in defaults.items() if open_ended or name in accepted}


def _channels_named(takes: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments with the number of input channels under the name that `takes` has for it, in_chans or in_channels."""
    accepted, _ = _accepted_arguments(takes)
    for ours, other in (("in_chans", "in_channels"), ("in_channels", "in_chans")):
        if other in kwargs and ours in accepted and other not in accepted:
            value = kwargs[other]
            if kwargs.get(ours, value) != value:
                raise BadArgument(f"in_chans={kwargs['in_chans']} and in_channels={kwargs['in_channels']} are two names of "
                                  "one argument; give one")
            return {name: v for name, v in kwargs.items() if name != other} | {ours: value}
    return kwargs


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _trained_with(row: dict[str, Any], cfg: PretrainedCfg, pretrained: bool, named: object) -> dict[str, Any]:
    """What weights were trained with, where that is not what the architecture starts from; `row` is rid of it.

    A row states it of its published weights altogether, a configuration of its own: those that are loaded, or named.
    """
    of_row = row.pop("trained_with", {})
    return {**(of_row if pretrained else {}), **((cfg.trained_with or {}) if pretrained or named else {})}


def _accepted_arguments(model_cls: Callable[..., Any]) -> tuple[set[str], bool]:
    """Names that the constructor takes, its bases' included where it passes keywords on; and whether it takes any."""
    accepted: set[str] = set()
    constructors = [model_cls]
    if isinstance(model_cls, type):
        constructors = [c.__init__ for c in model_cls.__mro__ if "__init__" in c.__dict__]  # type: ignore[misc]
    for constructor in constructors:
        parameters = inspect.signature(constructor).parameters.values()
        accepted |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return accepted - {"self"}, False
    return accepted - {"self"}, True


def _check_arguments(model_cls: Callable[..., Any], variant: str, kwargs: Mapping[str, Any]) -> None:
    accepted, open_ended = _accepted_arguments(model_cls)
    wrong = [name for name in kwargs if name not in accepted]
    if open_ended or not wrong:
        return
    close = nearest(wrong[0], sorted({*accepted, *OF_ALL}))
    known = f"nearest are {', '.join(close)}" if close else f"it takes {', '.join(sorted(accepted))}"
    raise UnknownArgument(f"{variant} takes no argument {wrong[0]!r}; {known}")


def _keep_levels(
    model: Any, out_indices: Any, out_strides: Any, feature_cfg: Mapping[str, Any] | None, norm: bool
) -> None:
    if out_strides is not None:
        out_indices = take_strides(model.feature_info.reduction(), out_strides)
    elif out_indices is None:
        out_indices = (feature_cfg or {}).get("out_indices", model.default_out_indices)
    if out_indices is None:
        out_indices = tuple(range(len(model.feature_info)))
    model.keep_levels(out_indices, norm)


def _check_is_pyramid(model: Any, architecture: str) -> None:
    """Raises `BadArgument` for what a function of one's own made of features_only=True, if that is no pyramid."""
    made = model.out_indices is not None if isinstance(model, Backbone) else not isinstance(
        getattr(model, "feature_info", None), (list, tuple))
    if not made:
        raise BadArgument(f"features_only=True: the function {architecture} gives the whole {type(model).__name__}; let it "
                          f"return build_model_with_cfg({type(model).__name__}, pretrained, **kwargs), which makes the pyramid")


def _read(checkpoint_path: str | Path, ema: bool | None = None) -> dict[str, Any]:
    from .weights.reading import read_state_dict

    return read_state_dict(checkpoint_path, use_ema=ema, need_ema=ema is True)


def _is_mindcvs(checkpoint_path: str | Path, architecture: str) -> bool:
    """Whether a file comes from MindSpore, where MindCV computes the architecture in a way of its own."""
    from .weights.reading import made_by_mindspore

    return MINDCV_TAG in registry.weights_of(architecture) and made_by_mindspore(checkpoint_path)


def _fetch(
    cfg: PretrainedCfg, cache_dir: str | Path | None, ema: bool | None, model: nn.Module | None, is_part: bool
) -> Mapping[str, Any]:
    """The published weights: of a file on the hub what the `model` takes, where it is given and that can be told."""
    from .weights.adapting import needed
    from .weights.loading import fetch_state_dict

    needs = None
    if model is not None and not ema and (is_part or not getattr(model, "num_classes", True)):  # others take all
        needs = functools.partial(needed, model, cfg, is_part)
    return fetch_state_dict(cfg, cache_dir=cache_dir, ema=ema, needs=needs)


def _load(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    cfg: PretrainedCfg,
    strict: bool = True,
    is_part: bool = False,
    in_chans_from: str | Sequence[Any] | None = None,
    auto_mapping: bool = False,
) -> list[str]:
    """Loads a state dict; returns the names that it lacks, without those of the classifier and the neck."""
    from .weights.adapting import NECK
    from .weights.loading import load_weights

    missing = load_weights(model, state_dict, cfg, strict=strict, assign=True, allow_extra=is_part,
                           in_chans_from=in_chans_from, auto_mapping=auto_mapping)
    if not isinstance(model, Backbone):
        return missing
    heads = tuple(f"{path}." for path in model.classifiers)
    if any(name.startswith(heads) for name in missing):
        model.reset_classifier(model.num_classes)  # other classes than the checkpoint's: a fresh one
    return [name for name in missing if not name.startswith((*heads, NECK))]


def _input_layers(build: Callable[..., Any], in_chans: int, argument: str = "in_chans") -> tuple[str, ...]:
    """Paths of the layers that read the image: those whose weights change with the number of channels."""
    with torch.device("meta"):
        built = (build(**{argument: n}) for n in (in_chans, in_chans + 1))
        shapes = [{name: p.shape for name, p in model.named_parameters()} for model in built]
    return tuple(name.removesuffix(".weight") for name in shapes[0] if shapes[0][name] != shapes[1][name])


def _as_built(
    cfg: PretrainedCfg,
    model: Any,
    in_chans_from: str | Sequence[Any] | None,
    img_size: int | Sequence[int] | None,
    in_chans: int | None = None,
) -> dict[str, Any]:
    """The configuration as `model.pretrained_cfg` holds it: with the channels and the size that the model is built for."""
    stated = cfg.to_dict()
    base_chans = cfg.input_size[0]
    if in_chans is None:
        in_chans = int(getattr(model, "in_chans", base_chans))
    if in_chans != base_chans or in_chans_from is not None:
        from .weights.channels import band_rows, is_map, mixed_statistics

        with torch.device("cpu"):  # values are needed, also of a model that is built on the meta device
            rows = band_rows(in_chans_from, in_chans, base_chans)
            for name in ("mean", "std"):
                if len(stated[name]) == base_chans and (in_chans != base_chans or is_map(in_chans_from)):
                    stated[name] = mixed_statistics(stated[name], rows)
        for name in ("input_size", "test_input_size", "min_input_size"):
            if stated.get(name):
                stated[name] = (in_chans, *stated[name][1:])
    if img_size is not None:
        sides = _pair(img_size)
        if sides != stated["input_size"][1:]:
            stated.pop("test_input_size", None)  # which goes with the size of the weights
        stated["input_size"] = (in_chans, *sides)
    return stated


@contextmanager
def _place(device: torch.device | str | None, dtype: torch.dtype | None, direct: bool) -> Iterator[None]:
    """Makes parameters where and as they are wanted at once; weights that are loaded are moved afterwards."""
    with ExitStack() as stack:
        if direct and device is not None:
            stack.enter_context(torch.device(device))
        if dtype is not None and (direct or dtype == torch.float64):  # loading would round to the default type first
            if not dtype.is_floating_point:
                raise BadArgument(f"dtype={dtype}: parameters need a floating-point type")
            before = torch.get_default_dtype()
            stack.callback(torch.set_default_dtype, before)
            torch.set_default_dtype(dtype)
        yield


class WithoutWeights:
    """Models built within have parameters on the meta device, which have a shape and no memory.

    For parameters that a checkpoint's are about to replace: those of parts that the view does without are never
    allocated, and those that are kept get memory from `allocate`. Buffers are computed as always, which a build that is
    on the meta device altogether would have to make up for. Other threads' models are their own.
    """

    def __enter__(self) -> WithoutWeights:
        _watch_registrations()
        self._token = draws_weights.set(False)
        return self

    def __exit__(self, *raised: Any) -> None:
        draws_weights.reset(self._token)


def _without_weights(build: Callable[[], Any]) -> Any:
    """What `build` makes `WithoutWeights`; with them, if its constructor computes with the values of parameters."""
    try:
        with WithoutWeights():
            model = build()
    except (RuntimeError, TypeError):  # which meta tensors raise; what has another cause is raised again
        return build()
    return build() if any(buffer.is_meta for buffer in model.buffers()) else model


@functools.cache
def _watch_registrations() -> None:
    """Lets `_without_memory` see each parameter that a module gets, from now on.

    It stays, since a hook that comes or goes while another thread builds a module breaks that thread's loop over hooks.
    """
    register_module_parameter_registration_hook(_without_memory)  # type: ignore[arg-type]  # torch says: gives nothing


def _without_memory(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
    if draws_weights.get() or type(parameter) is not nn.Parameter or parameter.is_meta:
        return None
    return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)


def allocate(model: nn.Module) -> None:
    """Gives the parameters of a model that was built `WithoutWeights` memory, which nothing is written to.

    It is not resident until something is: assigning a checkpoint's tensors takes their place without that.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                if parameter not in made:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    made[parameter] = nn.Parameter(empty, parameter.requires_grad)
                module._parameters[name] = made[parameter]
