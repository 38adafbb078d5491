"""The hub's client against a hub of the loopback interface, and the directories that go to and come from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch
from timm.models._hub import load_model_config_from_path as timm_config_from_path
from torch import nn

from local_hub import COMMIT, LocalHub, hub_client
from ziggurat.errors import BadArgument, SourceUnavailable
from ziggurat.weights.hub import (
    download,
    fetch_url,
    load_config_from_hub,
    load_config_from_path,
    parse_config,
    save_for_hf,
    split_hub_name,
)
from ziggurat.weights.reading import read_state_dict

SAFE = safetensors.torch.save({"w": torch.ones(3)})
CONFIG = {
    "architecture": "resnet18",
    "num_classes": 10,
    "label_names": ["a", "b"],
    "pretrained_cfg": {"tag": "x", "input_size": [3, 96, 96], "num_classes": 1000, "first_conv": "conv1", "novel": 1},
    "model_args": {"in_chans": 5},
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    repos = {
        "me/safe": {
            "model.safetensors": SAFE,
            "pytorch_model.bin": b"not read",
            "config.json": json.dumps(CONFIG).encode(),
        },
        "me/bin": {"pytorch_model.bin": b"pickle"},
        "me/empty": {"README.md": b""},
    }
    with LocalHub(repos, gated=("me/gated",), files={"w.pth": b"weights"}) as running:
        hub_client(monkeypatch, running, tmp_path / "hub")
        yield running


def test_downloads_once_and_then_works_without_a_network(hub):
    path = download("me/safe")
    assert (path.name, path.read_bytes()) == ("model.safetensors", SAFE)
    assert ("GET", "/me/safe/resolve/main/model.safetensors") in hub.requests
    hub.requests.clear()
    assert download("me/safe") == path
    assert hub.requests == []
    hub.stop()
    assert torch.equal(read_state_dict(download("me/safe"))["w"], torch.ones(3))


def test_the_pickle_is_taken_where_there_is_no_safetensors(hub):
    assert download("me/bin").read_bytes() == b"pickle"
    hub.stop()
    assert download("me/bin").read_bytes() == b"pickle"


def test_a_revision_and_a_cache_of_ones_own(hub, tmp_path):
    path = download("me/safe", revision=COMMIT, cache_dir=tmp_path / "mine")
    assert path.is_relative_to(tmp_path / "mine")
    assert COMMIT in path.parts


@pytest.mark.parametrize(
    "repo, filename, revision, cause",
    [
        ("me/none", None, None, "does not exist, or is private"),
        ("me/gated", None, None, "is gated: accept its terms"),
        ("me/empty", None, None, "no file model.safetensors or pytorch_model.bin"),
        ("me/safe", "other.bin", None, "no file other.bin"),
        ("me/safe", None, "v9", "no revision 'v9'"),
        ("not a name", None, None, "check the name"),
    ],
)
def test_what_cannot_be_had_is_told(hub, repo, filename, revision, cause):
    with pytest.raises(SourceUnavailable, match=cause):
        download(repo, filename, revision)


def test_offline_and_not_cached_is_told(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceUnavailable, match=r"is not in the cache .* HF_ENDPOINT"):
        download("me/safe")
    assert hub.requests == []


def test_the_environment_sets_the_endpoint(hub, tmp_path):
    code = "from ziggurat.weights.hub import download; print(download('me/safe'))"
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip())
    assert path.is_relative_to(tmp_path / "home")
    assert path.read_bytes() == SAFE


def test_names_of_the_hub():
    assert split_hub_name("me/net") == ("me/net", None)
    assert split_hub_name("me/net@v1") == ("me/net", "v1")
    for wrong in ("me/net@a@b", "@v1"):
        with pytest.raises(BadArgument, match="owner/name@revision"):
            split_hub_name(wrong)


def test_a_repositorys_configuration(hub):
    architecture, cfg, args, saved = load_config_from_hub("me/safe")
    assert (architecture, args, saved) == ("resnet18", {"in_chans": 5}, {})
    assert (cfg.hf_hub_id, cfg.source, cfg.architecture, cfg.tag) == ("me/safe", "hf-hub", "resnet18", "x")
    assert (cfg.num_classes, cfg.label_names, cfg.input_size) == (10, ("a", "b"), (5, 96, 96))


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        {"architecture": "a", "num_classes": 3, "input_size": [3, 8, 8], "labels": ["x"], "num_features": 4},
        {
            "architecture": "a",
            "pretrained_cfg": {"fixed_input_size": True, "input_size": [3, 8, 8]},
            "model_args": {"img_size": 16},
        },
        {"architecture": "a", "pretrained_cfg": {"fixed_input_size": True}, "model_args": {"dynamic_img_size": True}},
        {"architecture": "a", "pretrained_cfg": {"min_input_size": [3, 8, 8]}, "model_args": {"in_chans": 1}},
        {"architecture": "a", "pretrained_cfg": {}, "num_classes": 2, "label_descriptions": {"x": "y"}},
    ],
)
def test_configurations_mean_what_they_mean_to_timm(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs, architecture, args = timm_config_from_path(tmp_path)
    ours = load_config_from_path(tmp_path)
    assert (ours.architecture, ours.model_args) == (architecture, args)
    for name, value in theirs.items():
        if name != "novel" and name in ours.pretrained_cfg.__dataclass_fields__:
            expected = tuple(value) if isinstance(value, list) else value
            assert getattr(ours.pretrained_cfg, name) == expected, name


def test_a_directory_without_a_usable_configuration_is_told(tmp_path):
    with pytest.raises(SourceUnavailable, match=r"config\.json"):
        load_config_from_path(tmp_path)
    for content, cause in [("{", "no JSON"), ('{"model_type": "bert"}', "names no 'architecture'")]:
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(SourceUnavailable, match=cause):
            load_config_from_path(tmp_path)


def test_an_address_is_fetched_once(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    path = fetch_url(f"{hub.url}/files/w.pth")
    assert path == tmp_path / "torch" / "checkpoints" / "w.pth"
    assert path.read_bytes() == b"weights"
    with pytest.raises(SourceUnavailable, match=r"gone\.pth could not be fetched .*404"):
        fetch_url(f"{hub.url}/files/gone.pth")
    hub.stop()
    assert fetch_url(f"{hub.url}/files/w.pth") == path
    assert fetch_url((f"{hub.url}/files/other", "w.pth"), tmp_path / "torch" / "checkpoints") == path


@pytest.mark.parametrize(
    "safe, files",
    [
        (True, ["model.safetensors"]),
        (False, ["pytorch_model.bin"]),
        ("both", ["model.safetensors", "pytorch_model.bin"]),
    ],
)
def test_what_is_saved_loads_in_timm(tmp_path, safe, files):
    model = timm.create_model("test_resnet", num_classes=3)
    save_for_hf(model, tmp_path, model_config={"label_names": ["a", "b", "c"]}, safe_serialization=safe)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*files, "config.json"])
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    ours = read_state_dict(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor)
        assert torch.equal(ours[name], tensor)
    config = load_config_from_path(tmp_path)
    assert (config.architecture, config.pretrained_cfg.num_classes) == ("test_resnet", 3)
    assert config.pretrained_cfg.label_names == ("a", "b", "c")
    assert theirs.num_classes == 3


def test_saving_copes_with_shared_tensors_and_records_arguments(tmp_path):
    model = nn.Module()
    model.a, model.b, model.num_classes = nn.Linear(2, 2), nn.Linear(2, 2), 2
    model.b.weight = model.a.weight
    with pytest.raises(BadArgument, match="architecture"):
        save_for_hf(model, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    save_for_hf(model, tmp_path, {"architecture": "toy"}, model_args={"in_chans": 4})
    assert parse_config(json.loads((tmp_path / "config.json").read_text())).pretrained_cfg.input_size[0] == 4
    assert torch.equal(read_state_dict(tmp_path)["b.weight"], model.a.weight)
