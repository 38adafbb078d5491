"""Checkpoints of networks that a user wrote: the file's own names count, whatever the class or a parameter is called."""

import pytest
import torch
from torch import nn

import ziggurat
from mindspore_writer import value_of
from ziggurat import build_model_with_cfg, create_model, register_model, registry
from ziggurat.errors import BadArgument, CheckpointMismatch
from ziggurat.weights.converting import convert_checkpoint

MINDSPORE = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


class Affine(nn.Module):
    """A layer whose parameters are called as MindSpore calls those of a norm."""

    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(1, width, 1, 1))
        self.beta = nn.Parameter(torch.randn(1, width, 1, 1))

    def forward(self, x):
        return x * self.gamma + self.beta


class ResNet(nn.Module):
    """A user's own, which has nothing to do with the family of that name."""

    def __init__(self, num_classes=5, in_channels=3, **unknown):
        super().__init__()
        self.feature_info = [dict(chs=8, reduction=2, name="layer1")]
        self.layer1 = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 2, 1), nn.BatchNorm2d(8), Affine(8))
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.classifier(self.layer1(x).mean((2, 3)))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))

    @register_model
    def own_net(pretrained=False, **kwargs):
        return build_model_with_cfg(ResNet, pretrained, default_cfg=dict(num_classes=5), **kwargs)

    @register_model
    def whole_net(pretrained=False, **kwargs):
        return ResNet(**kwargs)


@pytest.fixture
def weights():
    return {name: tensor for name, tensor in create_model("own_net").state_dict().items() if tensor.is_floating_point()}


def mindspores(name):
    path, _, leaf = name.rpartition(".")
    return f"{path}.{MINDSPORE[leaf]}" if path == "layer1.1" else name


def assert_has(model, weights):
    for name, tensor in weights.items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("features_only", [False, True])
def test_a_mindspore_file_of_a_class_called_as_a_family(weights, features_only, tmp_path):
    path = tmp_path / "own.ckpt"
    path.write_bytes(b"".join(value_of(mindspores(name), tensor.numpy()) for name, tensor in weights.items()))
    kept = {name: tensor for name, tensor in weights.items() if not features_only or name.startswith("layer1")}
    assert_has(create_model("own_net", checkpoint_path=path, features_only=features_only), kept)
    convert_checkpoint(path, tmp_path / "own.safetensors")
    assert_has(create_model("own_net", checkpoint_path=tmp_path / "own.safetensors", features_only=features_only), kept)


@pytest.mark.parametrize("other", [lambda name: name.replace("layer1.", "layer1_"), lambda name: f"module.{name}"])
def test_the_exact_name_counts_and_another_that_looks_like_it_is_told(weights, other, tmp_path):
    path = tmp_path / "twice.pth"
    torch.save({**weights, **{other(name): tensor + 1 for name, tensor in weights.items()}}, path)
    with pytest.raises(CheckpointMismatch, match="unexpected: (layer1_0|module.layer1)"):
        create_model("own_net", checkpoint_path=path)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.complex64])
def test_numbers_of_another_kind_are_refused(weights, dtype, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({name: tensor.to(dtype) for name, tensor in weights.items()}, path)
    with pytest.raises(CheckpointMismatch, match=str(dtype).removeprefix("torch.")):
        create_model("own_net", checkpoint_path=path)


def test_averaged_weights_behind_an_address(weights, tmp_path):
    path = tmp_path / "run.pth"
    averaged = {name: tensor + 1 for name, tensor in weights.items()}
    torch.save({"state_dict": weights, "state_dict_ema": averaged}, path)
    where = dict(pretrained=True, pretrained_cfg=dict(file=str(path), num_classes=5))
    assert_has(create_model("own_net", ema=True, **where), averaged)
    torch.save(weights, path)
    with pytest.raises(CheckpointMismatch, match="no averaged"):
        create_model("own_net", ema=True, **where)
    torch.save(ziggurat.create_model("test_resnet").state_dict(), path)
    with pytest.raises(CheckpointMismatch, match="no averaged"):
        create_model("test_resnet", pretrained=True, ema=True, pretrained_cfg_overlay=dict(file=str(path)))


def test_a_function_that_does_not_know_features_only():
    with pytest.raises(BadArgument, match="whole_net gives the whole ResNet; let it return build_model_with_cfg"):
        create_model("whole_net", features_only=True, out_indices=[0])
