"""Checkpoint files of every kind: read, refused or reported."""

from __future__ import annotations

import argparse
import collections
import os

import numpy as np
import pytest
import safetensors.torch
import timm.models
import torch
from torch import nn

from ziggurat.errors import BadArgument, CheckpointMismatch, SourceUnavailable, UnsafeCheckpoint
from ziggurat.weights.reading import (
    clean_state_dict,
    load_checkpoint,
    load_state_dict,
    load_state_dict_from_path,
    preferred_file,
    read_state_dict,
)

TENSORS = {
    "conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
    "norm.weight": torch.tensor([0.5, -2.0], dtype=torch.bfloat16),
    "norm.num_batches_tracked": torch.tensor(7),
}


class Payload:
    """Stands for code in a checkpoint: reading it calls a function."""

    def __reduce__(self):
        return os.makedirs, ("was-run",)


def write(path, tensors):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=path.suffix != ".tar")
    return path


def assert_same(got, expected):
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name
        assert type(got[name]) is torch.Tensor


@pytest.mark.parametrize("ending", ["safetensors", "pth", "pt", "bin", "ckpt", "tar"])
def test_reads_what_was_written(tmp_path, ending):
    got = read_state_dict(write(tmp_path / f"weights.{ending}", TENSORS))
    assert_same({name: got[name] for name in TENSORS}, TENSORS)
    assert len(got) == len(TENSORS)


def test_reads_numpy_archives(tmp_path):
    tensors = {name: tensor for name, tensor in TENSORS.items() if tensor.dtype != torch.bfloat16}
    assert_same(read_state_dict(write(tmp_path / "weights.npz", tensors)), tensors)


def test_reads_the_bfloat16_that_numpy_does_not_know(tmp_path):
    halves = torch.tensor([1.5, -3.0, 0.0], dtype=torch.bfloat16)
    np.savez(tmp_path / "weights.npz", w=halves.view(torch.int16).numpy().view("V2"))
    assert_same(read_state_dict(tmp_path / "weights.npz"), {"w": halves})


def test_the_kind_of_a_file_is_in_its_bytes_not_its_name(tmp_path):
    safetensors.torch.save_file(TENSORS, tmp_path / "weights.bin")
    assert torch.equal(read_state_dict(tmp_path / "weights.bin")["conv.weight"], TENSORS["conv.weight"])


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_tensors_are_mapped_and_writing_to_them_leaves_the_file_alone(tmp_path, ending):
    path = write(tmp_path / f"weights.{ending}", {"w": torch.zeros(1 << 20)})
    before = path.read_bytes()
    with open("/proc/self/maps") as maps:
        assert str(path) not in maps.read()
    tensor = read_state_dict(path)["w"]
    with open("/proc/self/maps") as maps:
        assert str(path) in maps.read()
    tensor.fill_(1)
    assert path.read_bytes() == before


def test_averaged_weights_are_preferred(tmp_path):
    parts = {"epoch": 3, "args": argparse.Namespace(model="net"), "optimizer": {"state": {}, "lr": 0.1}}
    last, averaged = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    for plain, ema in [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("state_dict", "model_ema")]:
        torch.save({**parts, plain: last, ema: averaged}, tmp_path / "c.pth")
        assert_same(read_state_dict(tmp_path / "c.pth"), averaged)
        assert_same(read_state_dict(tmp_path / "c.pth", use_ema=False), last)
        torch.save({**parts, plain: last, ema: None}, tmp_path / "c.pth")
        assert_same(read_state_dict(tmp_path / "c.pth"), last)


def test_parameters_become_plain_tensors(tmp_path):
    torch.save(collections.OrderedDict(w=nn.Parameter(torch.ones(2))), tmp_path / "c.pth")
    got = read_state_dict(tmp_path / "c.pth")
    assert_same(got, {"w": torch.ones(2)})
    assert not got["w"].requires_grad


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_removed_as_timm_does(prefix):
    wrapped = {prefix + name: name for name in ("conv.weight", "module_list.0.weight", "fc.module.bias")}
    cleaned = clean_state_dict(wrapped)
    assert cleaned == {name: name for name in cleaned}
    assert cleaned == timm.models.clean_state_dict(wrapped)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("make", [lambda: {"w": torch.ones(1), "x": Payload()}, lambda: nn.Linear(1, 1)])
def test_code_in_a_file_is_never_run(tmp_path, monkeypatch, zipped, make):
    monkeypatch.chdir(tmp_path)
    torch.save(make(), "c.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeCheckpoint, match=r"c\.pth holds more than plain tensors .*save_file"):
        read_state_dict("c.pth")
    assert not os.path.exists("was-run")


def test_numpy_objects_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "c.npz", w=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UnsafeCheckpoint, match=r"c.npz"):
        read_state_dict(tmp_path / "c.npz")


@pytest.mark.parametrize("ending", ["safetensors", "pth", "tar", "npz"])
@pytest.mark.parametrize("kept", [0.9, 0.5])
def test_a_truncated_file_is_unavailable(tmp_path, ending, kept):
    path = write(tmp_path / f"weights.{ending}", {"w": torch.randn(50, 50), "b": torch.randn(9)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(SourceUnavailable, match=rf"weights\.{ending}.* damaged "):
        read_state_dict(path)


@pytest.mark.parametrize("ending", ["safetensors", "pth", "tar", "npz"])
@pytest.mark.parametrize("kept", [1, 9, 60, 200])
def test_the_beginning_of_a_file_is_refused(tmp_path, ending, kept):
    path = write(tmp_path / f"weights.{ending}", {"w": torch.randn(50, 50), "b": torch.randn(9)})
    path.write_bytes(path.read_bytes()[:kept])
    # cut within a name, a pickle asks for a name that is none of torch's
    with pytest.raises((SourceUnavailable, UnsafeCheckpoint), match=rf"weights\.{ending}"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "it is empty"),
        (b"<!doctype html><title>404</title>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"some text that is nothing", "begins with b'some text'"),
    ],
)
def test_what_is_no_checkpoint_is_told(tmp_path, content, cause):
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(SourceUnavailable, match=cause):
        read_state_dict(tmp_path / "c.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SourceUnavailable, match=r"no-such.pth"):
        read_state_dict(tmp_path / "no-such.pth")


@pytest.mark.parametrize(
    "content, cause",
    [
        ([torch.ones(1)], "type list"),
        ({"w": torch.ones(1), "depth": 12}, "'depth', which is no tensor but of type int"),
        ({"student": {"w": torch.ones(1)}, "teacher": {}}, r"several parts \(student, teacher\)"),
    ],
)
def test_what_holds_no_state_dict_is_told(tmp_path, content, cause):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(CheckpointMismatch, match=cause):
        read_state_dict(tmp_path / "c.pth")


def test_weights_only_cannot_be_switched_off(tmp_path):
    path = write(tmp_path / "c.pth", TENSORS)
    assert_same(load_state_dict(path), TENSORS)
    with pytest.raises(BadArgument, match="weights_only"):
        load_state_dict(path, weights_only=False)
    with pytest.raises(BadArgument, match="weights_only"):
        load_state_dict_from_path(tmp_path, weights_only=False)


def test_a_directory_gives_its_preferred_file(tmp_path, caplog):
    with pytest.raises(SourceUnavailable, match="No suitable checkpoints"):
        preferred_file(tmp_path)
    for name in ("b.bin", "z.pth", "y.pth", "a.safetensors", "pytorch_model.bin", "model.safetensors"):
        write(tmp_path / name, {"w": torch.ones(1)})
        expected = "y.pth" if name == "y.pth" else name
        assert preferred_file(tmp_path).name == expected
    assert "y.pth, z.pth" in caplog.text
    assert_same(read_state_dict(tmp_path), {"w": torch.ones(1)})
    assert_same(load_state_dict_from_path(str(tmp_path)), {"w": torch.ones(1)})


def test_load_checkpoint_is_strict_by_name_and_can_go_by_order(tmp_path):
    source, target = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    renamed = {f"net.{i}": tensor for i, tensor in enumerate(source.state_dict().values())}
    path = write(tmp_path / "c.pth", renamed)
    with pytest.raises(CheckpointMismatch, match=r"c\.pth: .*4 missing.*4 unexpected"):
        load_checkpoint(target, path)
    result = load_checkpoint(target, path, strict=False)
    assert (len(result.missing_keys), len(result.unexpected_keys)) == (4, 4)
    load_checkpoint(target, path, remap=True)
    assert_same(target.state_dict(), source.state_dict())
    with torch.no_grad():
        target[0].weight.zero_()
    load_checkpoint(target, path, filter_fn=lambda sd, model: dict(zip(model.state_dict(), sd.values(), strict=True)))
    assert_same(target.state_dict(), source.state_dict())
