"""Output strides by shift and stitch: the law, its phases, and everything that a stitched model must still do."""

import copy
import pickle

import pytest
import torch
from torch import nn

import ziggurat
from ziggurat import Backbone
from ziggurat.backbone.stitching import Boundary, boundaries, interleaved, shifted
from ziggurat.errors import BadArgument, UnsupportedStride
from ziggurat.testing import assert_same, settled


def pair(name, output_stride, **kwargs):
    """A native model and the stitched one with its weights."""
    native = settled(lambda: ziggurat.create_model(name, **kwargs))
    dense = ziggurat.create_model(name, output_stride=output_stride, output_stride_mode="stitched", **kwargs).eval()
    dense.load_state_dict(native.state_dict())
    return native, dense


def images(*size, count=2):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(2))


def test_boundaries_hold_levels_to_a_stride():
    assert boundaries([2, 4, 8, 16, 32], 8) == ([2, 4, 8, 8, 8], [Boundary(3, 2, 1), Boundary(4, 2, 1)])
    assert boundaries([4, 8, 16, 32], 32) == ([4, 8, 16, 32], [])
    assert boundaries([4, 8, 16, 32], 2) == (
        [2, 2, 2, 2], [Boundary(0, 2, 2), Boundary(1, 2, 1), Boundary(2, 2, 1), Boundary(3, 2, 1)])  # fmt: skip
    assert boundaries([14, 14], 8) == ([7, 7], [Boundary(0, 2, 7)])
    assert boundaries([16], 4) == ([4], [Boundary(0, 4, 4)])


@pytest.mark.parametrize("channels_last", [False, True])
def test_interleaving_undoes_shifting(channels_last):
    x = torch.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)
    given = x.permute(0, 2, 3, 1) if channels_last else x
    phases = shifted(given, 2, 1, channels_last)
    phases = phases.permute(0, 3, 1, 2) if channels_last else phases
    assert phases.shape == (8, 3, 5, 7)
    assert torch.equal(interleaved(phases[..., ::2, ::2], [2], (5, 7)), x)
    again = shifted(phases[..., ::2, ::2], 3, 1)[..., ::3, ::3]
    assert torch.equal(interleaved(again, [2, 3], (5, 7)), x)


@torch.no_grad()
def test_phases_of_a_convolutional_network_are_those_of_shifted_images():
    native, dense = pair("resnet18", 4)
    x = images(256, 320, count=1)
    stitched = dense.pyramid(x)[4]
    assert stitched.shape == (1, 512, 64, 80)
    level = dense.forward_intermediates(x, indices=[2], intermediates_only=True)[0]
    for down, right in ((0, 1), (1, 0), (1, 1)):
        moved = torch.nn.functional.pad(x[..., 4 * down :, 4 * right :], (0, 4 * right, 0, 4 * down))
        wanted = native.forward_intermediates(moved, indices=[2], intermediates_only=True)[0]
        phase = level[..., down::2, right::2]
        inner = (..., slice(8, -8), slice(8, -8))
        assert_same(phase[inner], wanted[inner], f"phase {down}, {right}")
        assert (phase - wanted).abs().max() > 1e-3, "borders differ: the test looks at something"


@torch.no_grad()
def test_phases_of_a_plain_vit_are_its_maps_of_shifted_images():
    native, dense = pair("test_vit", 4)
    x = images(96, 128)
    scores, features = dense(x), dense.forward_features(x)
    assert_same(scores, native(x), "scores, which read the undisturbed class token", 0)
    assert features.shape == (2, 1 + 24 * 32, 64)
    level = dense.pyramid(x)[4]
    for down, right in ((0, 0), (1, 3), (3, 2)):
        moved = torch.nn.functional.pad(x[..., 4 * down :, 4 * right :], (0, 4 * right, 0, 4 * down))
        assert_same(level[..., down::4, right::4], native.pyramid(moved)[16], f"phase {down}, {right}")


@torch.no_grad()
def test_patches_of_14_pixels_get_the_nearest_stride_that_divides_them():
    _, dense = pair("vit_small_patch14_dinov2", 8, depth=1, embed_dim=24, num_heads=2, img_size=70)
    assert dense.feature_info.reduction() == [7]
    maps = dense.pyramid(images(75, 93))
    assert maps[7].shape[2:] == (11, 14)
    with pytest.raises(BadArgument, match=r"output_stride=5: give one of 1, 2, 7, 14"):
        ziggurat.create_model("vit_small_patch14_dinov2", output_stride=5)


@torch.no_grad()
def test_views_of_a_stitched_model_agree():
    for name in ("ese_vovnet19b_slim", "test_vit"):
        native, dense = pair(name, 8)
        x = images(65, 94)
        together = dense.extract(x, ("scores", "embedding", "features", "pyramid"))
        assert_same(dense(x), together["scores"], "scores")
        assert_same(dense.embed(x), together["embedding"], "embedding")
        assert together["pyramid"][8].shape[2:] == (9, 12)
        last, levels = dense.forward_intermediates(x)
        assert_same(last, together["features"], "features")
        early, _ = dense.forward_intermediates(x, indices=[0], stop_early=True)
        assert early.shape[0] == 2
        tokens = dense.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
        assert_same(tokens[-1], levels[-1].flatten(2).transpose(1, 2), "tokens")
        only = ziggurat.create_model(name, features_only=True, out_indices=(-1, 0), output_stride=8).eval()
        only.load_state_dict({k: v for k, v in native.state_dict().items() if k in only.state_dict()})
        for got, wanted in zip(only(x), (levels[-1], levels[0])):
            assert_same(got, wanted, "features_only")
        assert only.feature_info.sizes(65, 94) == [tuple(m.shape[2:]) for m in only(x)]
    tokens = dense.tokens(x)
    assert_same(tokens["cls"], native.tokens(x)["cls"], "the class token", 0)
    assert tokens["patches"].shape == (2, 64, 9, 12)


def test_a_stitched_model_trains_and_copies():
    for name in ("legacy_seresnet18", "test_vit"):
        dense = ziggurat.create_model(name, output_stride=8, features_only=True, out_indices=(-1,))
        x = images(64, 64)
        gradients = []
        for enable in (False, True):
            dense.set_grad_checkpointing(enable)
            dense.zero_grad()
            torch.manual_seed(0)
            dense(x)[0].square().mean().backward()
            gradients.append([p.grad.clone() for p in dense.parameters()])
        for plain, recomputed in zip(*gradients):
            assert (plain - recomputed).abs().max() <= 1e-4 * plain.abs().max() + 1e-9
        dense.eval()
        with torch.no_grad():
            for other in (copy.deepcopy(dense), pickle.loads(pickle.dumps(dense))):
                assert_same(other(x)[0], dense(x)[0], "a copy", 0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
def test_a_stitched_model_compiles_and_exports(name):
    dense = settled(lambda: ziggurat.create_model(name, output_stride=8, output_stride_mode="stitched",
                                                  features_only=True, out_indices=(0, -1)))
    x = images(96, 64)
    torch._dynamo.reset()
    for got, wanted in zip(torch.compile(dense, fullgraph=True, backend="eager")(x), dense(x)):
        assert_same(got, wanted, "compiled")
    torch._dynamo.reset()
    dims = {0: torch.export.Dim("batch", min=1, max=8)}
    dims |= {i: torch.export.Dim(side, min=64, max=512) for i, side in ((2, "height"), (3, "width"))}
    program = torch.export.export(dense, (x,), dynamic_shapes=(dims,))
    other = images(70, 131, count=1)
    for got, wanted in zip(program.module()(other), dense(other)):
        assert_same(got, wanted, "exported")


class Branched(Backbone):
    """Two maps between levels, so that only the image can be shifted."""

    units = r"convs\.(\d+)"
    stitches_image = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, 2, 1) for i in range(4))
        for i in range(4):
            self.plan.spend(2)
            self.plan.mark(8, f"convs.{i}")
        self.make_head("fc")

    def trunk(self, x):
        skip = 0.0
        for conv in self.convs:
            x = conv(x) + skip
            yield x
            skip = nn.functional.avg_pool2d(x, 2)


@torch.no_grad()
def test_a_network_of_branches_shifts_the_image():
    torch.manual_seed(0)
    native, dense = Branched().eval(), Branched(output_stride=4).eval()
    dense.load_state_dict(native.state_dict())
    x = images(64, 96)
    assert dense.feature_info.reduction() == [2, 4, 4, 4]
    levels = dense.forward_intermediates(x, intermediates_only=True)
    for level, wanted, step in zip(levels, native.forward_intermediates(x, intermediates_only=True), (1, 1, 2, 4)):
        assert level.shape[2:] == ((32, 48) if level is levels[0] else (16, 24))
        assert_same(level[..., ::step, ::step], wanted, "the native positions")


def test_modes_and_their_errors():
    assert not ziggurat.create_model("resnet18", output_stride=8).is_stitched
    assert ziggurat.create_model("resnet18", output_stride=8, output_stride_mode="stitched").is_stitched
    both = ziggurat.create_model("resnetv2_18", output_stride=2)  # dilation reaches 4, stitching does the rest
    assert both.is_stitched
    assert both.feature_info.reduction() == [2, 2, 2, 2, 2]
    with pytest.raises(UnsupportedStride, match=r"VovNet cannot be dilated.*strides \[2, 4, 8, 16, 32\]"):
        ziggurat.create_model("ese_vovnet19b_slim", output_stride=8, output_stride_mode="dilated")
    with pytest.raises(BadArgument, match=r"output_stride_mode='atrous'"):
        ziggurat.create_model("resnet18", output_stride=8, output_stride_mode="atrous")
    for wrong in (0, 12):
        with pytest.raises(BadArgument, match=f"output_stride={wrong}"):
            ziggurat.create_model("resnet18", output_stride=wrong)
    with pytest.raises(UnsupportedStride, match="not square"):
        ziggurat.create_model("test_vit", patch_size=(16, 8), output_stride=8)


def test_another_patch_size_keeps_the_output_stride():
    dense = ziggurat.create_model("test_vit", output_stride=8, features_only=True).eval()
    dense.set_input_size(img_size=96, patch_size=32)
    assert set(dense.feature_info.reduction()) == {8}
    with torch.no_grad():
        assert dense(images(96, 96))[0].shape[2:] == (12, 12)
