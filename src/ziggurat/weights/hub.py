"""Weights and configurations on the Hugging Face Hub, and files behind plain addresses, each in its client's cache.

What lies in a cache is used without asking the network, so that a second run works offline. To fetch a repository's
newer state, name its revision or remove it from the cache.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from torch import Tensor, nn

from ziggurat.errors import BadArgument, SourceUnavailable
from ziggurat.weights.pretrained import PretrainedCfg, filter_pretrained_cfg

__all__ = [
    "HubConfig",
    "cached",
    "download",
    "fetch_url",
    "load_config_from_hub",
    "load_config_from_path",
    "parse_config",
    "push_to_hf_hub",
    "save_for_hf",
    "split_hub_name",
    "write_folder",
]

SAVED = "ziggurat"  # the entry of a config.json that this library alone reads
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class HubConfig(NamedTuple):
    """What a repository's `config.json` says: which model, of which published weights, built with which arguments."""

    architecture: str
    pretrained_cfg: PretrainedCfg
    model_args: dict[str, Any]
    saved: dict[str, Any]
    """What `ziggurat.save` adds (its entry 'ziggurat'); empty for a configuration that it did not write."""


def split_hub_name(name: str) -> tuple[str, str | None]:
    """`owner/name@revision` as (`owner/name`, revision); the revision is None where none is named."""
    repo_id, *revision = name.split("@")
    if len(revision) > 1 or not repo_id:
        raise BadArgument(f"hub name {name!r}: allowed is owner/name or owner/name@revision.")
    return repo_id, revision[0] if revision else None


def download(
    repo_id: str,
    filename: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """The path of a repository's file in the hub client's cache, downloaded if it is not there.

    Without `filename` it is the file of weights: `model.safetensors`, or `pytorch_model.bin` where there is no such.
    Raises `SourceUnavailable`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    found = cached(repo_id, filename, revision, cache_dir)
    if found is not None:
        return found
    candidates = (filename,) if filename else WEIGHT_FILES
    for name in candidates:
        try:
            return Path(hf_hub_download(repo_id, name, revision=revision, cache_dir=cache_dir, library_name="ziggurat"))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise unavailable(repo_id, revision, error) from error
        except Exception as error:  # clients of other versions raise errors of other HTTP libraries
            raise unavailable(repo_id, revision, error) from error
    raise SourceUnavailable(f"the hub's repository {repo_id} has no file {' or '.join(candidates)}; name one it has.")


def cached(
    repo_id: str, filename: str | None = None, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path | None:
    """The path that `download` returns, if the file is there already; the network is not asked."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import LocalEntryNotFoundError

    place: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "local_files_only": True}
    for name in (filename,) if filename else WEIGHT_FILES:
        try:
            return Path(hf_hub_download(repo_id, name, **place))
        except LocalEntryNotFoundError:
            continue
        except Exception as error:  # a malformed name, for one: every cause is handed on
            raise unavailable(repo_id, revision, error) from error
    return None


def unavailable(repo_id: str, revision: str | None, error: Exception) -> SourceUnavailable:
    """What kept a repository's file from us, and what to do about it."""
    from huggingface_hub import constants
    from huggingface_hub import utils as client

    address = f"{constants.ENDPOINT}/{repo_id}"
    if isinstance(error, client.GatedRepoError):
        return SourceUnavailable(
            f"{address} is gated: accept its terms there, and log in (`hf auth login`, or the variable HF_TOKEN)."
        )
    if isinstance(error, client.RevisionNotFoundError):
        return SourceUnavailable(f"{address} has no revision {revision!r}; leave it out for the newest.")
    if isinstance(error, client.RepositoryNotFoundError):
        return SourceUnavailable(
            f"{address} does not exist, or is private: check the name, or log in (`hf auth login`, or HF_TOKEN)."
        )
    if isinstance(error, client.LocalEntryNotFoundError | client.OfflineModeIsEnabled):
        return SourceUnavailable(
            f"{repo_id} is not in the cache {constants.HF_HUB_CACHE} and {constants.ENDPOINT} cannot be reached. "
            "Connect and run once (is HF_HUB_OFFLINE set?), set HF_ENDPOINT to a mirror, or give the file by "
            "pretrained_cfg_overlay=dict(file=...)."
        )
    cause = str(error).strip().partition("\n")[0].rstrip(".")
    return SourceUnavailable(
        f"{address} could not be read ({type(error).__name__}: {cause}): check the name, or try again later."
    )


def load_config_from_hub(name: str, cache_dir: str | Path | None = None) -> HubConfig:
    """The configuration of a repository `owner/name[@revision]`."""
    repo_id, revision = split_hub_name(name)
    path = download(repo_id, "config.json", revision, cache_dir)
    return parse_config(read_json(path), hf_hub_id=name, source="hf-hub")


def load_config_from_path(directory: str | Path) -> HubConfig:
    """The configuration of a directory laid out like a repository."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise SourceUnavailable(f"there is no {path}; give a directory with a config.json and a file of weights.")
    return parse_config(read_json(path), file=str(directory), source="local-dir")


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceUnavailable(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("architecture"), str):
        raise SourceUnavailable(f"{path} names no 'architecture', so it is not the configuration of an image model.")
    for name in ("pretrained_cfg", "model_args", SAVED):
        if not isinstance(content.get(name) or {}, dict):
            raise SourceUnavailable(f"{path} is damaged: its {name!r} is no object but {content[name]!r:.40}.")
    frozen = (content.get(SAVED) or {}).get("frozen")
    if not isinstance(frozen, (int, type(None))):
        raise SourceUnavailable(f"{path} is damaged: 'frozen' is {frozen!r:.40}, neither a level nor null.")
    return content


def parse_config(config: Mapping[str, Any], **source: str) -> HubConfig:
    """What a `config.json` means, in the present layout and in the flat one of before 2023.

    What stands at its top level (classes, labels) and the arguments that the model was built with are about the
    weights as they are, so they overrule the configuration of the weights that these were made from.
    """
    fields = PretrainedCfg.__dataclass_fields__
    stated = dict(config.get("pretrained_cfg") or config)
    if "labels" in stated:
        stated["label_names"] = stated["labels"]
    stated |= {name: config[name] for name in ("num_classes", "label_names", "label_descriptions") if name in config}
    stated |= {"architecture": config["architecture"], **source}
    facts: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stated.items()
        if name in fields and not (value is None and name not in ("first_conv", "classifier", "pool_size"))
    }
    args = dict(config.get("model_args") or {})
    if args.get("dynamic_img_size") or args.get("strict_img_size") is False:
        facts["fixed_input_size"] = False
    if args.get("in_chans") is not None:
        for name in ("input_size", "test_input_size", "min_input_size"):
            if name in facts or name == "input_size":
                facts[name] = (args["in_chans"], *facts.get(name, (3, 224, 224))[1:])
    if args.get("img_size") is not None and facts.get("fixed_input_size"):
        size = args["img_size"]
        sides = (size, size) if isinstance(size, int) else tuple(size)
        facts["input_size"] = (facts.get("input_size", (3,))[0], *sides)
    return HubConfig(config["architecture"], PretrainedCfg(**facts), args, dict(config.get(SAVED) or {}))


def fetch_url(url: str | tuple[str, str], cache_dir: str | Path | None = None) -> Path:
    """The path of a file behind an address, or (address, file name), in torch hub's cache of checkpoints.

    A file that is there is not fetched again. Raises `SourceUnavailable`.
    """
    import torch.hub

    address, name = url if isinstance(url, (tuple, list)) else (url, os.path.basename(urlsplit(url).path))
    directory = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / "checkpoints"
    path = directory / name
    if not path.exists():
        try:
            directory.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(address, str(path), progress=False)
        except (OSError, ValueError) as error:
            raise SourceUnavailable(
                f"{address} could not be fetched ({error}). Connect, or download it yourself and put it at {path}."
            ) from error
    return path


def save_for_hf(
    model: nn.Module,
    save_directory: str | Path,
    model_config: Mapping[str, Any] | None = None,
    model_args: Mapping[str, Any] | None = None,
    safe_serialization: bool | str = True,
) -> None:
    """Write a model as a hub repository holds it: `config.json` and `model.safetensors`.

    `model_config` adds to or replaces what the top level of `config.json` says (label names, for one, and fields of
    `pretrained_cfg`), `model_args` is what the model has to be built with. `safe_serialization` False writes
    `pytorch_model.bin` instead, "both" writes both.
    """
    config = describe(model, model_config or {}, model_args or {})
    write_folder(save_directory, config, model.state_dict(), safe_serialization)


def write_folder(
    directory: str | Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    safe_serialization: bool | str = True,
) -> None:
    """Write `config.json` and the weights into a directory, each file aside first: none is ever half written."""
    import safetensors.torch
    import torch

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2)
    if safe_serialization:
        # copies, because the format does not know tensors that share memory
        copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        with aside(directory / WEIGHT_FILES[0]) as path:
            safetensors.torch.save_file(copies, path, metadata={"format": "pt"})
    if safe_serialization in (False, "both"):
        with aside(directory / WEIGHT_FILES[1]) as path:
            torch.save(dict(tensors), path)
    with aside(directory / "config.json") as path:
        path.write_text(text + "\n", encoding="utf-8")


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Another path beside `path`, whose file takes its place once it is written and on the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def describe(model: nn.Module, model_config: Mapping[str, Any], model_args: Mapping[str, Any]) -> dict[str, Any]:
    """What `config.json` says of a model: its own facts, then what the caller adds."""
    extra = dict(model_config)
    known = getattr(model, "pretrained_cfg", None) or {}
    known = known.to_dict() if isinstance(known, PretrainedCfg) else dict(known)
    known.pop("state_dict", None)
    facts = filter_pretrained_cfg(known, remove_source=True) | dict(extra.pop("pretrained_cfg", {}))
    num_classes = getattr(model, "num_classes", facts.get("num_classes"))
    if facts.get("num_classes") != num_classes:
        for name in ("label_names", "label_descriptions"):
            facts.pop(name, None)
    facts.pop("label_offset", None)  # it was applied when the weights were loaded
    facts |= {"num_classes": num_classes, "custom_load": False}
    if "in_chans" in model_args and "input_size" in facts:
        facts["input_size"] = (model_args["in_chans"], *facts["input_size"][1:])
    architecture = facts.pop("architecture", None) or extra.pop("architecture", None)
    if not architecture:
        raise BadArgument("the model names no architecture: pass model_config=dict(architecture=...).")
    config: dict[str, Any] = {"architecture": architecture, "num_classes": num_classes}
    for name in ("num_features", "global_pool"):
        value = getattr(model, name, None)
        if isinstance(value, (int, str)) and value != "":
            config[name] = value
    if "labels" in extra:
        extra["label_names"] = extra.pop("labels")
    if "label_names" in extra:
        facts.pop("label_names", None)
    if model_args:
        config["model_args"] = dict(model_args)
    return config | extra | {"pretrained_cfg": facts}


def push_to_hf_hub(
    model: nn.Module,
    repo_id: str,
    commit_message: str = "Add model",
    token: str | None = None,
    revision: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    **save: Any,
) -> Any:
    """Upload what `save_for_hf` writes (`save` are its arguments) to a repository of the hub, made if need be."""
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="ziggurat")
    repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with TemporaryDirectory() as directory:
        save_for_hf(model, directory, **save)
        return api.upload_folder(
            repo_id=repo, folder_path=directory, revision=revision, create_pr=create_pr, commit_message=commit_message
        )
