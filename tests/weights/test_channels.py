"""Weights of M input channels in models of N: which channel comes from which, in every kind of stem."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from ziggurat import create_model
from ziggurat.backbone import Backbone
from ziggurat.data import resolve_model_data_config
from ziggurat.errors import BadArgument, CheckpointMismatch
from ziggurat.layers import SpaceToDepth
from ziggurat.weights.channels import band_rows, mixed_statistics, refit_input
from ziggurat.weights.loading import load_weights


@pytest.mark.parametrize(
    "bands, in_chans, rows",
    [
        ("repeat", 1, [[1, 1, 1]]),
        (None, 4, [[0.75, 0, 0], [0, 0.75, 0], [0, 0, 0.75], [0.75, 0, 0]]),
        ("repeat", 2, [[1.5, 0, 0], [0, 1.5, 0]]),
        ("mean", 2, [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]),
        ("first", 4, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]),
        ("first", 1, [[1, 0, 0]]),
        ((2, 1, 0), 3, [[0, 0, 1], [0, 1, 0], [1, 0, 0]]),
        ([0, None, (0.5, 0.25, 0.25)], 3, [[1, 0, 0], [0, 0, 0], [0.5, 0.25, 0.25]]),
    ],
)
def test_what_each_channel_takes(bands, in_chans, rows):
    assert torch.equal(band_rows(bands, in_chans, 3), torch.tensor(rows, dtype=torch.float64))


@pytest.mark.parametrize("bands", ["repeat", "mean"])
@pytest.mark.parametrize("in_chans", [1, 3, 6])
def test_equal_channels_are_answered_as_before(bands, in_chans):
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    image = torch.randn(1, 1, 9, 9, dtype=torch.float64)
    wide = refit_input(weight, band_rows(bands, in_chans, 3))
    before = nn.functional.conv2d(image.expand(-1, 3, -1, -1), weight)
    after = nn.functional.conv2d(image.expand(-1, in_chans, -1, -1), wide)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("wrong, why", [
    ("average", "in_chans_from='average': give 'repeat', 'mean', 'first', or a list"),
    (3, "in_chans_from=3: give 'repeat'"),
    ([0, 1], "has 2 entries: .* the model has 4 channels, its weights have 3"),
    ([0, 1, 2, 3], "3 names no channel; .* an index \\(0 to 2\\)"),
    ([0, 1, 2, True], "True names no channel"),
    ([0, 1, 2, (1, 2)], "\\(1, 2\\) names no channel; .* or 3 numbers"),
])  # fmt: skip
def test_a_wrong_rule_lists_the_options(wrong, why):
    with pytest.raises(BadArgument, match=why):
        create_model("test_byobnet", in_chans=4, in_chans_from=wrong)


def test_means_follow_the_channels():
    means = (0.5, 0.4, 0.3)
    assert mixed_statistics(means, band_rows("repeat", 5, 3)) == (0.5, 0.4, 0.3, 0.5, 0.4)
    assert mixed_statistics(means, band_rows("repeat", 1, 3)) == (0.4,)
    assert mixed_statistics(means, band_rows("first", 4, 3)) == (0.5, 0.4, 0.3, 0.4)
    assert mixed_statistics(means, band_rows([2, None, (0, -1, 1)], 3, 3)) == (0.3, 0.4, 0.35)


def saved(model, tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    return path


STEMS = {  # a convolution, patches, two branches, several convolutions of one branch
    "test_resnet": {}, "test_vit": {"img_size": 32}, "repvgg_a0": {"num_classes": 3}, "mobileone_s1": {"num_classes": 3},
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", STEMS)
def test_every_stem_answers_the_first_channels_as_before(name, tmp_path):
    torch.manual_seed(0)
    before = create_model(name, **STEMS[name]).eval()
    path = saved(before, tmp_path)
    image = torch.randn(1, 5, 32, 32)
    after = create_model(name, checkpoint_path=path, in_chans=5, in_chans_from="first", **STEMS[name]).eval()
    torch.testing.assert_close(after(image), before(image[:, :3]), rtol=1e-4, atol=1e-5)
    turned = create_model(name, checkpoint_path=path, in_chans_from=(2, 1, 0), **STEMS[name]).eval()
    torch.testing.assert_close(turned(image[:, :3]), before(image[:, [2, 1, 0]]), rtol=1e-4, atol=1e-5)
    grey = create_model(name, checkpoint_path=path, in_chans=1, **STEMS[name]).eval()
    torch.testing.assert_close(grey(image[:, :1]), before(image[:, :1].expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_preprocessing_and_gradients_of_a_model_of_five_channels(tmp_path):
    path = saved(create_model("test_resnet"), tmp_path)
    model = create_model("test_resnet", checkpoint_path=path, in_chans=5, in_chans_from="first")
    config = resolve_model_data_config(model)
    assert config["input_size"][0] == len(config["mean"]) == len(config["std"]) == 5
    three = resolve_model_data_config(create_model("test_resnet"))
    assert config["mean"][:3] == three["mean"]
    assert config["input_size"][1:] == three["input_size"][1:]
    assert resolve_model_data_config(model, {"mean": (0.1,) * 5})["mean"] == (0.1,) * 5
    model(torch.randn(2, 5, 64, 64)).sum().backward()
    stem = model.get_submodule(model.pretrained_cfg["first_conv"]).weight
    assert torch.count_nonzero(stem[:, 3:]) == 0
    assert torch.count_nonzero(stem.grad[:, 3:]) > 0


def test_weights_of_five_channels_come_to_three(tmp_path):
    path = saved(create_model("test_resnet", in_chans=5), tmp_path)
    model = create_model("test_resnet", in_chans=5, checkpoint_path=path)  # its own channels: nothing to refit
    with pytest.raises(CheckpointMismatch, match=r"not one for 3 channels, .* Correct input_size"):
        create_model("test_resnet", checkpoint_path=path)
    five = dict(input_size=(5, 160, 160), mean=(0.1, 0.2, 0.3, 0.4, 0.5), std=(0.2,) * 5)
    part = create_model("test_resnet", checkpoint_path=path, in_chans=3, in_chans_from=[4, 3, None],
                        pretrained_cfg_overlay=five)
    stem = model.pretrained_cfg["first_conv"]
    old, new = (m.get_submodule(stem).weight for m in (model, part))
    assert torch.equal(new[:, :2], old[:, [4, 3]])
    assert torch.count_nonzero(new[:, 2]) == 0
    assert resolve_model_data_config(part)["mean"] == (0.5, 0.4, 0.3)


@pytest.mark.parametrize("kind", ["npz", "linear"])
def test_patches_of_other_formats(kind, tmp_path):
    torch.manual_seed(0)
    options = dict(img_size=32, num_classes=0, depth=1, embed_dim=8, num_heads=2, class_token=True, global_pool="token",
                   init_values=None)
    model = create_model("test_vit", **options).eval()
    own = model.state_dict()
    if kind == "linear":  # a patch embedding that was saved as a linear layer's
        kernel = own["patch_embed.proj.weight"]
        path = saved(nn.Module(), tmp_path)
        safetensors.torch.save_file(own | {"patch_embed.proj.weight": kernel.flatten(1).clone()}, path)
    else:
        path = tmp_path / "weights.npz"
        np.savez(path, **as_flax(own, heads=2))
    image = torch.randn(1, 4, 32, 32)
    after = create_model("test_vit", checkpoint_path=path, in_chans=4, in_chans_from=[2, 1, 0, None], **options).eval()
    with torch.no_grad():
        torch.testing.assert_close(after(image), model(image[:, [2, 1, 0]]), rtol=1e-4, atol=1e-5)


def as_flax(own, heads):
    """A ViT's state dict in the layout of the original JAX code."""
    cell, attn = "Transformer/encoderblock_0", "Transformer/encoderblock_0/MultiHeadDotProductAttention_1"
    width = own["blocks.0.attn.qkv.weight"].shape[1]
    arrays = {
        "embedding/kernel": own["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": own["patch_embed.proj.bias"],
        "cls": own["cls_token"],
        "Transformer/posembed_input/pos_embedding": own["pos_embed"],
        f"{attn}/out/kernel": own["blocks.0.attn.proj.weight"].T.reshape(heads, -1, width),
        f"{attn}/out/bias": own["blocks.0.attn.proj.bias"],
    }
    for name, weight, bias in zip(("query", "key", "value"), own["blocks.0.attn.qkv.weight"].chunk(3),
                                  own["blocks.0.attn.qkv.bias"].chunk(3)):
        arrays[f"{attn}/{name}/kernel"] = weight.T.reshape(width, heads, -1)
        arrays[f"{attn}/{name}/bias"] = bias.reshape(heads, -1)
    for theirs, ours in (("Transformer/encoder_norm", "norm"), (f"{cell}/LayerNorm_0", "blocks.0.norm1"),
                         (f"{cell}/LayerNorm_2", "blocks.0.norm2")):
        arrays |= {f"{theirs}/scale": own[f"{ours}.weight"], f"{theirs}/bias": own[f"{ours}.bias"]}
    for i in (1, 2):
        arrays[f"{cell}/MlpBlock_3/Dense_{i - 1}/kernel"] = own[f"blocks.0.mlp.fc{i}.weight"].T
        arrays[f"{cell}/MlpBlock_3/Dense_{i - 1}/bias"] = own[f"blocks.0.mlp.fc{i}.bias"]
    return {name: tensor.numpy() for name, tensor in arrays.items()}


class Folded(Backbone):
    """A stem that reads the pixels of a square side by side: space to depth, or a linear layer over patches."""

    units = r"blocks\.(\d+)"

    def __init__(self, groups=1, is_linear=False, channels_last=None, width=8, num_classes=2, in_chans=3,
                 **kwargs):
        super().__init__(num_classes, in_chans, **kwargs)
        self.is_linear = is_linear
        self.fold = SpaceToDepth(2)
        if is_linear:
            self.stem = nn.Linear(4 * in_chans, width)
            if channels_last is not None:
                self.stem.channels_last = channels_last
        else:
            self.stem = nn.Conv2d(4 * in_chans, width, 1, groups=groups)
        self.plan.spend(2)
        self.blocks = nn.Sequential(nn.Conv2d(width, 8, 1))
        self.plan.mark(8, "blocks")
        self.make_head("fc")

    def trunk(self, x):
        if not self.is_linear:
            x = self.stem(self.fold(x))
        else:
            folded = self.fold(x) if self.stem.channels_last else nn.functional.pixel_unshuffle(x, 2)
            x = self.stem(folded.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        yield self.blocks(x)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, dict(groups=2), dict(groups=4), dict(is_linear=True, channels_last=True),
                                     dict(is_linear=True, channels_last=False)])  # fmt: skip
@pytest.mark.parametrize("bands", ["first", [2, 0, None, 1]])
def test_stems_that_read_several_pixels(options, bands):
    before, after = Folded(**options).eval(), Folded(in_chans=4, **options).eval()
    load_weights(after, before.state_dict(), in_chans_from=bands)
    image = torch.randn(1, 4, 32, 32)
    seen = image[:, :3] if bands == "first" else image[:, [1, 3, 0]]
    torch.testing.assert_close(after(image), before(seen))


def test_a_stem_that_cannot_be_refitted_is_an_error():
    with pytest.raises(CheckpointMismatch, match="set its attribute channels_last to True or False"):
        load_weights(Folded(in_chans=4, is_linear=True), Folded(is_linear=True).state_dict())
    split = dict(groups=6, width=12)  # two of a pixel's channels go to one group and one to the next
    with pytest.raises(CheckpointMismatch, match="cannot be refitted from 3 to 6"):
        load_weights(Folded(in_chans=6, **split), Folded(**split).state_dict())


@torch.no_grad()
def test_published_weights_take_images_in_another_order():
    name = "tf_efficientnet_lite0.pip_in1k"
    image = torch.randn(1, 3, 64, 64)
    scores = create_model(name, pretrained=True).eval()(image)
    turned = create_model(name, pretrained=True, in_chans_from=[2, 1, 0]).eval()
    torch.testing.assert_close(turned(image.flip(1)), scores, rtol=1e-4, atol=1e-4)
