"""Patch embeddings and position embeddings agree with timm's; tables resize, trace and compile."""

from __future__ import annotations

import importlib

import pytest
import torch
from agreement import assert_agree, assert_sound, find, pair
from torch import nn

from ziggurat.errors import BadArgument
from ziggurat.layers.coord_grid import build_grid
from ziggurat.layers.hybrid_embed import HybridEmbed, HybridEmbedWithSize
from ziggurat.layers.interpolate import RegularGridInterpolator
from ziggurat.layers.patch_embed import PatchEmbed, PatchEmbedInterpolator, resample_patch_embed
from ziggurat.layers.pos_embed_rel import RelPosBias, RelPosBiasTf, gen_relative_position_index
from ziggurat.layers.pos_embed_sincos import (
    RotaryEmbeddingCat,
    RotaryEmbeddingMixed,
    apply_keep_indices_nlc,
    create_rope_embed,
)

pytestmark = [  # timm's interpolation of tables warns
    pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning"),
]

PE, PS, PR = "patch_embed.", "pos_embed_sincos.", "pos_embed_rel."


def both(where: str, *args: object, **kwargs: object) -> tuple:
    return find("ziggurat", where)(*args, **kwargs), find("timm", where)(*args, **kwargs)


def assert_same(found: object, wanted: object) -> None:
    if isinstance(wanted, torch.Tensor):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-5)
    else:
        for a, b in zip(found, wanted, strict=True):  # type: ignore[call-overload]
            assert_same(a, b)


SMALL = dict(patch_size=4, embed_dim=8)


@pytest.mark.parametrize(
    "options, size",
    [
        (dict(img_size=16), (16, 16)),
        (dict(img_size=16, norm_layer=nn.LayerNorm, bias=False), (16, 16)),
        (dict(img_size=16, flatten=False), (16, 16)),
        (dict(img_size=16, output_fmt="NHWC", norm_layer=nn.LayerNorm), (16, 16)),
        (dict(img_size=16, output_fmt="NCL"), (16, 16)),
        (dict(img_size=(16, 24), patch_size=(4, 8)), (16, 24)),
        (dict(img_size=16, strict_img_size=False), (8, 20)),
        (dict(img_size=16, strict_img_size=False, dynamic_img_pad=True), (9, 18)),
        (dict(img_size=None), (12, 20)),
    ],
)
def test_patch_embed_agrees(options: dict, size: tuple[int, int]) -> None:
    ours, theirs = pair(PE + "PatchEmbed", **(SMALL | options))
    x = torch.randn(2, 3, *size)
    assert_agree(ours, theirs, x)
    assert_sound(ours, x)
    for name in ("patch_size", "img_size", "grid_size", "num_patches", "flatten", "strict_img_size"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.feat_ratio() == theirs.feat_ratio()
    assert ours.feat_ratio(False) == theirs.feat_ratio(False)
    assert ours.dynamic_feat_size((30, 41)) == theirs.dynamic_feat_size((30, 41))


def test_patch_embed_of_another_size_agrees() -> None:
    for sizes in (dict(img_size=32), dict(patch_size=2), dict(patch_size=(8, 6), img_size=(32, 24))):
        ours, theirs = pair(PE + "PatchEmbed", img_size=16, **SMALL)
        ours.set_input_size(**sizes)
        theirs.set_input_size(**sizes)
        assert (ours.img_size, ours.grid_size, ours.num_patches) == (theirs.img_size, theirs.grid_size, theirs.num_patches)
        assert_agree(ours, theirs, torch.randn(1, 3, *ours.img_size))


def test_patch_embed_with_size_agrees() -> None:
    ours, theirs = pair(PE + "PatchEmbedWithSize", img_size=16, **SMALL)
    x = torch.randn(1, 3, 20, 12)
    assert_agree(ours, theirs, x)
    assert tuple(ours(x)[1]) == tuple(theirs(x)[1]) == (5, 3)


@pytest.mark.parametrize("trace", [False, True])
def test_images_of_a_wrong_size_are_refused(trace: bool) -> None:
    strict, loose = PatchEmbed(16, 4, embed_dim=8), PatchEmbed(16, 4, embed_dim=8, strict_img_size=False)
    for layer, size, message in ((strict, 20, "takes 16 x 16"), (loose, 18, "whole patches of 4 x 4")):
        form = torch.fx.symbolic_trace(layer) if trace else layer
        with pytest.raises(BadArgument, match=message):
            form(torch.randn(1, 3, size, size))


def test_patch_weights_are_resampled_as_timm_does() -> None:
    weight = torch.randn(8, 3, 16, 16)
    for size in ((8, 8), (32, 32), (14, 10), (16, 16)):
        assert_same(*both(PE + "resample_patch_embed", weight, size))
        assert_same(*both(PE + "resample_patch_embed", weight, size, interpolation="bilinear", antialias=False))
    assert resample_patch_embed(weight.half(), (8, 8)).dtype == torch.half
    with pytest.raises(BadArgument, match="height, width"):
        resample_patch_embed(weight, (8,))


@pytest.mark.parametrize("channels_last", [True, False])
def test_patch_interpolator_agrees(channels_last: bool) -> None:
    ours, theirs = both(PE + "PatchEmbedInterpolator", (4, 4), 3, 8, channels_last=channels_last)
    linear, conv, bias = torch.randn(8, 48), torch.randn(8, 3, 4, 4), torch.randn(8)
    patches = torch.randn(2, 5, 6, 6, 3) if channels_last else torch.randn(2, 5, 3, 6, 6)
    assert_same(ours(patches, linear, bias, (6, 6)), theirs(patches, linear, bias, (6, 6)))
    flat = torch.randn(2, 5, 48)
    assert_same(ours(flat, linear), theirs(flat, linear))
    image = torch.randn(2, 3, 12, 12)
    assert_same(ours(image, conv, bias, (6, 6), is_linear=False), theirs(image, conv, bias, (6, 6), is_linear=False))
    assert_same(ours(image, conv, bias, is_linear=False), theirs(image, conv, bias, is_linear=False))
    assert not PatchEmbedInterpolator((4, 4)).state_dict()


def test_hybrid_embed_agrees() -> None:
    def backbone() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8))

    for options in ({}, dict(proj=False, embed_dim=8), dict(flatten=False), dict(output_fmt="NHWC", patch_size=4)):
        ours, theirs = pair("hybrid_embed.HybridEmbed", backbone(), **(dict(img_size=32, patch_size=2, embed_dim=16) | options))
        assert_agree(ours, theirs, torch.randn(1, 3, 32, 32))
        assert ours.feat_ratio() == theirs.feat_ratio()
        assert ours.dynamic_feat_size((64, 40)) == theirs.dynamic_feat_size((64, 40))
    padded = HybridEmbed(backbone(), img_size=32, patch_size=2, embed_dim=16, dynamic_img_pad=True)
    high, wide = padded.dynamic_feat_size((37, 41))
    assert padded(torch.randn(1, 3, 37, 41)).shape == (1, high * wide, 16)
    tokens, grid = HybridEmbedWithSize(backbone(), img_size=32, patch_size=2, embed_dim=16)(torch.randn(1, 3, 32, 40))
    assert (tokens.shape, grid) == ((1, 80, 16), (8, 10))
    with pytest.raises(BadArgument, match="embed_dim=16"):
        HybridEmbed(backbone(), img_size=32, embed_dim=16, proj=False)
    with pytest.raises(BadArgument, match="whole patches"):
        HybridEmbed(backbone(), img_size=32, patch_size=3)


def test_absolute_positions_are_resampled_as_timm_does() -> None:
    table = torch.randn(1, 17, 8)
    for options in (
        dict(new_size=(4, 4)),
        dict(new_size=(7, 5)),
        dict(new_size=(2, 8)),
        dict(new_size=(3, 3), interpolation="bilinear", antialias=False),
        dict(new_size=(6, 6), old_size=(2, 8)),
        dict(new_size=(6, 6), antialias=False, align_corners=True),
    ):
        assert_same(*both("pos_embed.resample_abs_pos_embed", table, **options))
    assert_same(*both("pos_embed.resample_abs_pos_embed", table[:, 1:], (5, 6), num_prefix_tokens=0))
    for size in ((4, 4), (7, 5)):
        assert_same(*both("pos_embed.resample_abs_pos_embed_nhwc", torch.randn(1, 4, 4, 8), size))


def test_grids_and_frequencies_agree() -> None:
    for options in ({}, dict(reverse_coord=True), dict(interleave_sin_cos=True, temperature=100.0)):
        assert_same(*both(PS + "build_sincos2d_pos_embed", [5, 7], 16, **options))
    for options in (dict(num_bands=6), dict(num_bands=6, max_freq=32.0, linear_bands=False)):
        assert_same(*both(PS + "pixel_freq_bands", **options))
    assert_same(*both(PS + "freq_bands", 8, 100.0, 2))
    for options in (dict(include_grid=True), dict(in_pixels=False, grid_offset=0.5, ref_feat_shape=[8, 8], grid_indexing="xy")):
        assert_same(*both(PS + "build_fourier_pos_embed", [5, 7], num_bands=4, **options))
    for half in (False, True):
        assert_same(*both(PS + "build_rotary_pos_embed", [5, 7], dim=16, in_pixels=False, rotate_half=half))
    theirs = importlib.import_module("timm.layers.pos_embed_sincos")
    for kind in ("index", "pixel", "centered"):
        for more in (dict(ref_feat_shape=(8, 9)), dict(normalize_coords="min", grid_indexing="xy", grid_offset=0.3)):
            assert_same(build_grid((5, 7), kind, **more), theirs._build_grid((5, 7), kind, **more))
    x = torch.randn(5, 4)
    assert_same(*both("grid.ndgrid", x[:, 0], x[:3, 1]))
    assert_same(*both("grid.meshgrid", x[:, 0], x[:3, 1]))
    with pytest.raises(BadArgument, match="dim=6"):
        find("ziggurat", PS + "build_sincos2d_pos_embed")([2, 2], 6)
    with pytest.raises(BadArgument, match="grid_type='round'"):
        build_grid((2, 2), "round")


@pytest.mark.parametrize("options", [{}, dict(concat_grid=False), dict(keep_spatial=True, num_bands=4, max_res=32)])
def test_fourier_features_agree(options: dict) -> None:
    ours, theirs = both(PS + "FourierEmbed", **options)
    x = torch.randn(2, 6, 5, 7)
    assert_agree(ours, theirs, x)
    assert_sound(ours, x)


ROPES = [
    ("base", {}),
    ("cat", dict(in_pixels=False, ref_feat_shape=(7, 7))),
    ("cat", dict(rotate_half=True, linear_bands=True)),
    ("cat", dict(grid_type="centered", normalize_coords="max", in_pixels=False, grid_offset=0.1)),
    ("mixed", dict(depth=2)),
    ("mrope", dict(mrope_section=(2, 3, 3))),
    ("dinov3", {}),
    ("dinov3", dict(min_period=0.5, max_period=20.0, rotate_half=False, normalize_coords="min")),
]


@pytest.mark.parametrize("kind, options", ROPES)
@pytest.mark.parametrize("cached", [False, True])
def test_rotary_tables_agree(kind: str, options: dict, cached: bool) -> None:
    if kind == "mrope" and cached:
        pytest.skip("this embedding keeps no table")
    more = options | (dict(feat_shape=(5, 7)) if cached else {})
    pairs = []
    for package in ("ziggurat", "timm"):
        torch.manual_seed(1)
        pairs.append(find(package, PS + "create_rope_embed")(kind, dim=64, num_heads=4, **more).eval())
    ours, theirs = pairs
    assert list(ours.state_dict()) == list(theirs.state_dict())
    shape = None if cached else (5, 7)
    assert_same(*(m.get_embed() if shape is None else m.get_embed(shape) for m in pairs))
    if cached:
        for module in pairs:
            module.update_feat_shape((6, 4))
        assert_same(ours.get_embed(), theirs.get_embed())
    elif hasattr(theirs, "get_batch_embeds"):
        for length in (None, 40):
            assert_same(*(m.get_batch_embeds([(5, 7), (4, 4), (5, 7)], seq_len=length) for m in pairs))


class Turn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rope = RotaryEmbeddingCat(16, in_pixels=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rope(x)


def test_rotary_tables_compile_with_dynamic_shapes() -> None:
    module = Turn()
    high, wide = torch.export.Dim("high", min=2, max=64), torch.export.Dim("wide", min=2, max=64)
    program = torch.export.export(module, (torch.randn(1, 16, 6, 8),), dynamic_shapes=({2: high, 3: wide},))
    x = torch.randn(1, 16, 9, 5)
    torch.testing.assert_close(program.module()(x), module(x))
    assert_sound(module, x)


def test_rotary_modules_refuse_what_cannot_be() -> None:
    with pytest.raises(BadArgument, match="feat_shape"):
        RotaryEmbeddingCat(16).get_embed()
    with pytest.raises(BadArgument, match="feat_shape"):
        RotaryEmbeddingMixed(16, 1, 2).get_embed()
    with pytest.raises(BadArgument, match="no rotary embedding"):
        create_rope_embed("spiral")
    with pytest.raises(TypeError, match="spiral"):
        create_rope_embed("cat", spiral=1)


def test_kept_rows_of_tables() -> None:
    x, indices = torch.randn(3, 5, 8), torch.randint(0, 9, (3, 5))
    assert_same(*both(PS + "apply_keep_indices_nlc", x, torch.randn(9, 6), indices))
    assert_same(*both(PS + "apply_keep_indices_nlc", x, torch.randn(3, 9, 6), indices, pos_embed_has_batch=True))
    heads = torch.randn(2, 9, 6)
    kept = apply_keep_indices_nlc(x, heads, indices)
    assert torch.equal(kept[1, 0], heads[0, indices[1]])


BIASES = [
    ("RelPosBias", {}),
    ("RelPosBias", dict(prefix_tokens=1)),
    ("RelPosMlp", dict(num_heads=2)),
    ("RelPosMlp", dict(num_heads=2, mode="swin", pretrained_window_size=(5, 5), hidden_dim=16)),
    ("RelPosMlp", dict(num_heads=2, prefix_tokens=1)),
    ("RelPosBiasTf", {}),
]


@pytest.mark.parametrize("name, options", BIASES)
def test_relative_biases_agree(name: str, options: dict) -> None:
    ours, theirs = pair(PR + name, (3, 4), **(dict(num_heads=2) | options))
    side = 12 + options.get("prefix_tokens", 0)
    attn, shared = torch.randn(2, 2, side, side), torch.randn(2, side, side)
    assert_agree(ours, theirs, attn)
    assert_agree(ours, theirs, attn, shared_rel_pos=shared)
    assert ours.get_bias().shape == theirs.get_bias().shape
    assert_sound(ours, attn)
    ours.set_window_size((5, 4))
    theirs.set_window_size((5, 4))
    assert ours.get_bias().shape == theirs.get_bias().shape
    torch.testing.assert_close(ours.get_bias(), theirs.get_bias(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", [RelPosBias, RelPosBiasTf])
def test_relative_bias_comes_back_from_the_meta_device(kind: type) -> None:
    with torch.device("meta"):
        module = kind((3, 4), 2)
    module = module.to_empty(device="cpu")
    module.reset_parameters()
    for a, b in zip(module.buffers(), kind((3, 4), 2).buffers()):
        assert torch.equal(a, b)


def test_relative_tables_are_made_and_resized_as_timm_does() -> None:
    for options in ({}, dict(class_token=True)):
        assert_same(*both(PR + "gen_relative_position_index", (3, 4), **options))
    for options in ({}, dict(mode="cr"), dict(pretrained_win_size=(6, 6))):
        assert_same(*both(PR + "gen_relative_log_coords", (3, 4), **options))
    for extra in (0, 3):
        table = torch.randn(49 + extra, 2)
        for window in ((6, 6), (4, 4), (5, 7)):
            rows = (2 * window[0] - 1) * (2 * window[1] - 1) + extra
            assert_same(*both(PR + "resize_rel_pos_bias_table_simple", table, window, (rows, 2)))
            found, wanted = both(PR + "resize_rel_pos_bias_table", table, window, (rows, 2))
            torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    assert_same(*both(PR + "resize_rel_pos_bias_table_levit", torch.randn(49, 3), (64, 3)))
    with pytest.raises(BadArgument, match="k_size"):
        gen_relative_position_index((3, 3), (4, 4))
    with pytest.raises(BadArgument, match="prefix_tokens=2"):
        RelPosBias((3, 3), 2, prefix_tokens=2)


def test_interpolation_is_linear_between_points_and_constant_beyond() -> None:
    f = RegularGridInterpolator([torch.tensor([0.0, 1.0, 4.0]), torch.tensor([0.0, 2.0])], torch.tensor([[0.0, 2], [1, 3], [4, 6]]))
    x, y = torch.tensor([0.5, 2.5, 4.0, 9.0, -1.0]), torch.tensor([1.0, 0.0, 2.0, 2.0, 0.0])
    torch.testing.assert_close(f((x, y)), torch.tensor([1.5, 2.5, 6.0, 6.0, 0.0]))
    with pytest.raises(BadArgument, match="one value"):
        RegularGridInterpolator([torch.zeros(3)], torch.zeros(4))
