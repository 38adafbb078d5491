"""Pyramids of a network that has one stride: interpolated ones, and ViTDet's simple feature pyramid."""

import copy
import json
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from torch import nn
from typer.testing import CliRunner

import ziggurat
from ziggurat.backbone import group_parameters
from ziggurat.backbone.neck import InterpolatedPyramid, SimplePyramid, resample_map
from ziggurat.cli import app
from ziggurat.errors import BadArgument, CheckpointMismatch, UnsupportedStride

STRIDES = (4, 8, 16, 32)
NECK = "pyramid_neck."


def vit(pyramid="simple", out_strides=STRIDES, **kwargs):
    torch.manual_seed(0)
    return ziggurat.create_model("test_vit", features_only=True, out_strides=out_strides, pyramid=pyramid, **kwargs).eval()


def grid(size, stride):
    return tuple(math.ceil(side / stride) for side in size)


# ------------------------------------------------------------------ resampling


@pytest.mark.parametrize("new", [1, 2, 4, 8, 16, 32, 64])
def test_resampling_is_a_bilinear_resize_where_strides_divide_the_sides(new):
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    wanted = F.interpolate(x, size=(128 // new, 192 // new), mode="bilinear", antialias=new > 16)
    torch.testing.assert_close(resample_map(x, 16, new, (128, 192)), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("old, new, wobble", [(16, 4, 0), (32, 2, 0), (14, 4, 0), (16, 32, 0), (14, 16, 0.06), (7, 8, 0.06)])
def test_resampling_keeps_every_position_in_its_place(old, new, wobble):
    """A map of its own pixel coordinates comes out as those of the new positions, away from the borders.

    Antialiasing by a factor that is no whole number moves them by a twentieth of a stride.
    """
    size = (133, 150)

    def centres(stride):
        rows, columns = (torch.arange(n, dtype=torch.float64) * stride + stride / 2 for n in grid(size, stride))
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]

    wanted = centres(new)
    got = resample_map(centres(old), old, new, size)
    assert got.shape == wanted.shape
    near, far = max(old, new), 130 - max(old, new)
    inside = ((wanted >= near) & (wanted <= far)).all(dim=1)[0]
    assert inside.sum() >= 4
    assert (got - wanted)[0, :, inside].abs().max() <= wobble * new + 1e-4


# ------------------------------------------------------------------ ViTDet's


def test_simple_pyramid_is_as_the_paper_describes_it():
    """Layer by layer, written out from the paper: section 3 and appendix A.2 of arXiv 2203.16527."""
    torch.manual_seed(0)
    neck = SimplePyramid(48, 16, STRIDES, channels=20).eval()
    for parameter in neck.parameters():
        nn.init.normal_(parameter, std=0.3)
    w = dict(neck.named_parameters())
    x = torch.randn(2, 48, 4, 6)

    def normed(y, name):
        return F.layer_norm(y.movedim(1, -1), y.shape[1:2], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6).movedim(-1, 1)

    def doubled(y, name):
        return F.conv_transpose2d(y, w[f"{name}.weight"], w[f"{name}.bias"], stride=2)

    def closed(y, at):
        y = normed(F.conv2d(y, w[f"{at}.project.weight"]), f"{at}.project_norm")
        return normed(F.conv2d(y, w[f"{at}.smooth.weight"], padding=1), f"{at}.smooth_norm")

    quarter = doubled(F.gelu(normed(doubled(x, "stride4.up1"), "stride4.norm1")), "stride4.up2")
    bases = [quarter, doubled(x, "stride8.up1"), x, F.max_pool2d(x, 2)]
    assert [b.shape[1] for b in bases] == [12, 24, 48, 48]
    for stride, base, level in zip(STRIDES, bases, neck(x, (64, 96), STRIDES)):
        torch.testing.assert_close(level, closed(base, f"stride{stride}"), rtol=1e-5, atol=1e-5)
    assert not any(name.endswith(("project.bias", "smooth.bias")) for name in w)


@pytest.mark.parametrize("make", [InterpolatedPyramid, SimplePyramid])
@pytest.mark.parametrize("reduction", [7, 8, 14, 16, 32])
def test_any_size_and_stride(make, reduction):
    strides = (2, 4, 8, 16, 32, 64)
    neck = make(32, reduction, strides)
    for size in ((32, 32), (33, 87), (150, 64)):
        levels = neck(torch.randn(1, 32, *grid(size, reduction)), size, strides)
        assert [tuple(level.shape) for level in levels] == [(1, neck.channels, *grid(size, s)) for s in strides]
        assert all(level.isfinite().all() for level in levels)


def test_an_odd_image_loses_only_what_lies_beyond_it():
    neck = SimplePyramid(32, 16, (4, 32), channels=8).eval()
    x = torch.randn(1, 32, 5, 5)
    fine, coarse = neck(x, (67, 80), (4, 32))
    whole = neck(x, (80, 80), (4,))[0]
    torch.testing.assert_close(fine, whole[:, :, :17], rtol=0, atol=0)
    assert coarse.shape[2:] == (3, 3)
    with torch.no_grad():
        pooled = F.max_pool2d(x, 2, ceil_mode=True)
        branch = neck.stride32
        torch.testing.assert_close(coarse, branch.smooth_norm(branch.smooth(branch.project_norm(branch.project(pooled)))))


# ------------------------------------------------------------------ the model


@torch.no_grad()
@pytest.mark.parametrize("pyramid, channels", [("interpolate", 64), ("simple", 256)])
def test_levels_are_those_that_feature_info_promises(pyramid, channels):
    order = (8, 32, 4)
    model = vit(pyramid, order)
    info = model.feature_info
    assert info.reduction() == list(order)
    assert info.channels() == [channels] * 3
    for path in info.module_name():
        model.get_submodule(path)
    for size in ((160, 160), (97, 130)):
        x = torch.randn(2, 3, *size)
        levels = model(x)
        assert [tuple(level.shape) for level in levels] == [(2, channels, *grid(size, s)) for s in order]
        assert info.sizes(*size) == [grid(size, s) for s in order]
        by_stride = model.pyramid(x)
        assert list(by_stride) == list(order)
        for level, stride in zip(levels, order):
            torch.testing.assert_close(by_stride[stride], level, rtol=0, atol=0)
            torch.testing.assert_close(model.pyramid(x, stride)[stride], level, rtol=0, atol=0)


def test_the_level_named_is_the_one_that_is_resampled():
    whole = vit("interpolate", (16, 8), out_indices=(2,))
    level = ziggurat.create_model("test_vit", features_only=True, out_indices=(2,)).eval()
    level.load_state_dict(whole.state_dict())
    x = torch.randn(1, 3, 96, 64)
    same, finer = whole(x)
    torch.testing.assert_close(same, level(x)[0], rtol=0, atol=0)
    torch.testing.assert_close(finer, F.interpolate(same, scale_factor=2, mode="bilinear"), rtol=1e-5, atol=1e-5)
    assert whole.feature_info.module_name() == ["blocks.2"] * 2
    assert not any(name.startswith(("blocks.3", "norm", "head", NECK)) for name in whole.state_dict())


def test_patches_of_14_pixels():
    model = vit("simple", patch_size=14, img_size=98)
    assert [tuple(m.shape[2:]) for m in model(torch.randn(1, 3, 70, 99))] == [grid((70, 99), s) for s in STRIDES]


def test_a_stitched_map_is_the_base_of_finer_levels():
    model = vit("simple", output_stride=8)
    native = vit("interpolate", (16,))
    native.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith(NECK)})
    x = torch.randn(1, 3, 64, 96)
    assert model.pyramid_neck.reduction == 8
    assert model.get_submodule("pyramid_neck.stride8.project").in_channels == 64  # no scaling at stride 8
    assert [tuple(m.shape[2:]) for m in model(x)] == [grid((64, 96), s) for s in STRIDES]
    dense = ziggurat.create_model("test_vit", features_only=True, out_strides=(16, 8), pyramid="interpolate",
                                  output_stride=8).eval()
    dense.load_state_dict(native.state_dict())
    torch.testing.assert_close(dense(x)[1][:, :, ::2, ::2], native(x)[0], rtol=1e-4, atol=1e-4)


def test_refuses_what_a_features_only_model_lacks():
    model = vit("interpolate")
    x = torch.zeros(1, 3, 160, 160)
    with pytest.raises(BadArgument, match="features-only model has no embedding"):
        model.embed(x)
    with pytest.raises(BadArgument, match="features-only model has no scores"):
        model.extract(x, ("scores", "pyramid"))
    with pytest.raises(UnsupportedStride, match=r"no level of stride 2; .* \[4, 8, 16, 32\]"):
        model.pyramid(x, (4, 2))
    with pytest.raises(BadArgument, match="pyramid of one level already"):
        model.keep_levels((0,))


ASKED = dict(features_only=True, out_strides=STRIDES)


@pytest.mark.parametrize("name, kwargs, sentence", [
    ("test_vit", ASKED, r"has strides \[16\]; .*pyramid='interpolate' or 'simple'"),
    ("test_vit", ASKED | dict(pyramid="fpn"), "pyramid='fpn': give 'interpolate' or 'simple'"),
    ("test_vit", dict(pyramid="simple"), "features_only=True and out_strides"),
    ("test_vit", dict(pyramid="simple", out_strides=STRIDES), "features_only=True and out_strides"),
    ("test_vit", dict(pyramid="simple", features_only=True), "features_only=True and out_strides"),
    ("test_vit", ASKED | dict(pyramid="simple", out_indices=(1, 2)), r"one level; choose it by out_indices=\(k,\)"),
    ("test_vit", ASKED | dict(pyramid="interpolate", pyramid_channels=8), "pyramid_channels=8.*keeps the level's"),
    ("test_vit", ASKED | dict(pyramid_channels=8), "width of pyramid='simple'"),
    ("test_vit", dict(features_only=True, out_strides=(4, 12), pyramid="simple"), "12 is no power of two"),
    ("test_vit", dict(features_only=True, out_strides=(4, 4), pyramid="simple"), "each once"),
    ("test_vit", dict(features_only=True, out_strides=(0,), pyramid="interpolate"), "whole numbers from 1"),
    ("resnet18", ASKED | dict(pyramid="simple"), r"ResNet has levels of strides \[2, 4, 8, 16, 32\].*out_strides alone"),
])  # fmt: skip
def test_errors_say_what_would_work(name, kwargs, sentence):
    with torch.device("meta"), pytest.raises(BadArgument, match=sentence):
        ziggurat.create_model(name, **kwargs)


# ------------------------------------------------------------------ weights


def test_classifier_weights_load_and_the_neck_starts_afresh(tmp_path):
    classifier = ziggurat.create_model("test_vit")
    path = tmp_path / "classifier.pth"
    torch.save(classifier.state_dict(), path)
    model = vit("simple", checkpoint_path=path)
    own = classifier.state_dict()
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith(NECK)}
    assert kept.keys() < own.keys()
    assert all(torch.equal(value, own[name]) for name, value in kept.items())
    for name, parameter in model.pyramid_neck.named_parameters():
        if "norm" in name:
            assert parameter.eq(name.endswith("weight")).all()
        else:
            assert parameter.std() > 1e-3, name
    pretrained = vit("simple", pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    assert torch.equal(pretrained.state_dict()["blocks.0.mlp.fc1.weight"], own["blocks.0.mlp.fc1.weight"])


def test_a_checkpoint_that_has_the_neck_loads_it(tmp_path):
    trained = vit("simple", pyramid_channels=16)
    path = tmp_path / "trained.pth"
    torch.save(trained.state_dict(), path)
    x = torch.randn(1, 3, 64, 64)
    again = vit("simple", (32, 4), pyramid_channels=16, checkpoint_path=path)
    for level, wanted in zip(again(x), (trained(x)[3], trained(x)[0])):
        torch.testing.assert_close(level, wanted, rtol=0, atol=0)
    vit("interpolate", checkpoint_path=path)  # without a neck of its own it takes the trunk
    with pytest.warns(UserWarning, match=r"pyramid_neck.stride64.project.weight.* stay as initialised"):
        vit("simple", (4, 64), pyramid_channels=16, checkpoint_path=path)
    with pytest.raises(CheckpointMismatch, match="shape"):
        vit("simple", (4,), pyramid_channels=8, checkpoint_path=path)


def test_save_and_load(tmp_path):
    model = vit("simple", (32, 4), pyramid_channels=24, norm=True, out_indices=(1,))
    ziggurat.save(model, tmp_path / "saved")
    again = ziggurat.load(tmp_path / "saved").eval()
    x = torch.randn(1, 3, 97, 130)
    assert all(torch.equal(a, b) for a, b in zip(again(x), model(x)))
    assert repr(again.feature_info) == repr(model.feature_info)
    noise(tmp_path)
    asked = ["features", str(tmp_path / "noise.png"), "-m", f"local-dir:{tmp_path / 'saved'}"]
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    levels = json.loads(done.stdout)["levels"]
    assert [(v["level"], v["stride"], v["channels"], v["norm"]) for v in levels] == [(1, 32, 24, True), (1, 4, 24, True)]
    refused = CliRunner().invoke(app, [*asked, "--pyramid"])
    assert refused.exit_code != 0
    assert "saved with levels of strides [32, 4]: leave them out" in (refused.output + str(refused.exception))


def test_device_and_dtype_reach_the_neck():
    model = vit("simple", device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}


# ------------------------------------------------------------------ training, copies, graphs


@pytest.mark.parametrize("pyramid", ["interpolate", "simple"])
def test_gradients_reach_everything_and_checkpointing_changes_none(pyramid):
    found = []
    for enable in (False, True):
        model = vit(pyramid, out_strides=(8, 32), norm=True).train()
        model.set_grad_checkpointing(enable)
        sum(level.square().mean() for level in model(torch.ones(1, 3, 64, 64).cumsum(2))).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert all(grad is not None for grad in found[0].values())
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, msg=name)


def test_copies_and_parameter_groups():
    model = vit("simple")
    x = torch.randn(1, 3, 64, 64)
    wanted = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(a, b) for a, b in zip(other(x), wanted))
        assert other.feature_info.reduction() == list(STRIDES)
    other = vit("simple")
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(other(x), wanted))
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    necks = {group for name, group in groups.items() if name.startswith(NECK)}
    assert necks == {max(groups.values())}
    assert max(group for name, group in groups.items() if not name.startswith(NECK)) == min(necks) - 1


@torch.no_grad()
@pytest.mark.parametrize("pyramid", ["interpolate", "simple"])
def test_compiles_and_exports_with_any_size(pyramid):
    model = vit(pyramid, (8, 32), norm=True, out_indices=(0,))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(2, 3, 96, 128)
    for got, wanted in zip(compiled(x), model(x)):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()
    batch, height, width = (torch.export.Dim(n, min=lo, max=512) for n, lo in (("b", 1), ("h", 33), ("w", 33)))
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch, 2: height, 3: width},)).module()
    other = torch.randn(1, 3, 75, 131)
    for got, wanted in zip(exported(other), model(other)):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("pyramid", ["interpolate", "simple"])
def test_symbolic_trace_holds_for_any_size(pyramid):
    model = vit(pyramid, (4, 32), out_indices=(0,))
    x = torch.randn(1, 3, 97, 130)
    assert all(torch.equal(a, b) for a, b in zip(torch.fx.symbolic_trace(model)(x), model(x)))


# ------------------------------------------------------------------ the command


def noise(folder):
    Image.effect_noise((90, 80), 60).convert("RGB").save(folder / "noise.png")


def test_command(tmp_path):
    noise(tmp_path)
    done = CliRunner().invoke(app, ["features", str(tmp_path / "noise.png"), "-m", "test_vit", "--random", "--pyramid",
                                    "--norm", "--strides", "8,16", "--out", str(tmp_path / "maps"), "--json"])  # fmt: skip
    assert done.exit_code == 0, done.output
    levels = json.loads(done.stdout)["levels"]
    assert [(v["level"], v["stride"], v["height"], v["norm"]) for v in levels] == [(5, 8, 20, True), (5, 16, 10, True)]
    with safe_open(tmp_path / "maps" / "noise.png.safetensors", "pt") as file:
        assert json.loads(file.metadata()["norm"]) == {"stride8": True, "stride16": True}
        assert file.get_slice("stride8").get_shape() == [64, 20, 20]
