"""The hub under timm's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..weights.hub import download, load_config_from_hub, push_to_hf_hub, save_for_hf, split_hub_name
from ..weights.reading import load_state_dict_from_path, read_state_dict

__all__ = ["load_model_config_from_hf", "load_state_dict_from_hf", "load_state_dict_from_path", "push_to_hf_hub",
           "save_for_hf"]


def load_model_config_from_hf(
    model_id: str, cache_dir: str | Path | None = None
) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """What a repository's config.json says: pretrained configuration, architecture, arguments."""
    config = load_config_from_hub(model_id, cache_dir=cache_dir)
    return config.pretrained_cfg.to_dict(), config.architecture, dict(config.model_args)


def load_state_dict_from_hf(
    model_id: str, filename: str | None = None, cache_dir: str | Path | None = None
) -> dict[str, Tensor]:
    """The tensors of a repository (`owner/name[@revision]`), downloaded once."""
    repo_id, revision = split_hub_name(model_id)
    return read_state_dict(download(repo_id, filename, revision, cache_dir))
