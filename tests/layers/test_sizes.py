"""Layers at sizes that they were not made for: rounded up, padded and masked, resampled."""

import pytest
import timm
import torch
from torch import nn

import ziggurat
from ziggurat.layers.guards import blocks, surely
from ziggurat.layers.halo_attn import HaloAttn
from ziggurat.layers.non_local_attn import BilinearAttnTransform
from ziggurat.layers.padding import crop, extend, pad_to_multiple
from ziggurat.layers.pool2d_ceil import AvgPool2dCeil, MaxPool2dCeil, MaxPool2dOverhang

SIZES = ((6, 8), (7, 9), (1, 2), (5, 6))


@pytest.mark.parametrize("size", SIZES)
def test_pools_round_up(size):
    x = torch.randn(2, 3, *size)
    half = (blocks(size[0], 2), blocks(size[1], 2))
    average = AvgPool2dCeil()(x)
    assert average.shape[2:] == half
    torch.testing.assert_close(average[..., -1, -1], x[..., 2 * half[0] - 2 :, 2 * half[1] - 2 :].mean((2, 3)))
    for kernel_size in (2, 3):
        highest = MaxPool2dCeil(kernel_size)(x)
        assert highest.shape[2:] == half
        for row in range(half[0]):
            window = x[..., 2 * row : 2 * row + kernel_size, :kernel_size]
            assert torch.equal(highest[..., row, 0], window.amax((2, 3)))


def test_pools_of_even_sides_are_those_of_pytorch():
    x = torch.randn(2, 3, 6, 8)
    assert torch.equal(AvgPool2dCeil()(x), nn.AvgPool2d(2)(x))
    assert torch.equal(MaxPool2dCeil()(x), nn.MaxPool2d(3, 2, ceil_mode=True)(x))
    assert torch.equal(MaxPool2dCeil(2)(x), nn.MaxPool2d(2)(x))


@pytest.mark.parametrize("pool", [AvgPool2dCeil(), MaxPool2dCeil(2), MaxPool2dCeil(3)])
def test_exported_pools_give_the_same(pool):
    class Doubled(nn.Module):
        """The pool, of a map whose sides depend on the image's as a strided convolution's do."""

        def __init__(self):
            super().__init__()
            self.pool = pool
            self.conv = nn.Conv2d(1, 1, 3, stride=2, padding=1)

        def forward(self, x):
            return self.conv(x) + self.pool(x)

    model = Doubled().eval()
    sides = {2: torch.export.Dim("height", min=3, max=99), 3: torch.export.Dim("width", min=3, max=99)}
    program = torch.export.export(model, (torch.randn(2, 1, 8, 9),), dynamic_shapes=({0: torch.export.Dim.AUTO, **sides},))
    for size in ((7, 9), (10, 12), (3, 4)):
        x = torch.randn(3, 1, *size)
        torch.testing.assert_close(program.module()(x), model(x))


def test_an_exported_pool_that_hangs_over_is_pytorchs():
    sides = {2: torch.export.Dim("height", min=4, max=99), 3: torch.export.Dim("width", min=4, max=99)}
    program = torch.export.export(MaxPool2dOverhang(), (torch.randn(2, 1, 8, 9),), dynamic_shapes=(sides,))
    for size in ((7, 9), (10, 12), (4, 5)):
        x = -torch.rand(2, 1, *size)
        assert torch.equal(program.module()(x), nn.MaxPool2d(3, 2, ceil_mode=True)(x))


def test_a_map_extended_by_its_edges():
    x = torch.arange(4.0).view(1, 1, 2, 2)
    wanted = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [2, 2, 3, 3, 3], [2, 2, 3, 3, 3.0]])
    assert torch.equal(extend(x, 4, 5, before=1)[0, 0], wanted)
    assert extend(x, 2, 2) is x


def test_padding_and_cropping():
    x = torch.randn(2, 3, 5, 8)
    padded = pad_to_multiple(x, (4, 4))
    assert padded.shape == (2, 3, 8, 8)
    assert not padded[:, :, 5:].any()
    assert torch.equal(crop(padded, 5, 8), x)
    assert pad_to_multiple(x, (5, 4)) is x
    assert crop(x, 5, 8) is x
    assert torch.equal(pad_to_multiple(x, 4, mode="replicate")[:, :, 7], x[:, :, 4])


def test_a_condition_holds_surely():
    assert surely(3 == 3)
    assert not surely(3 == 4)
    traced = torch.fx.symbolic_trace(lambda x: x + 1 if surely(x.shape[0] == 3) else x)
    assert torch.equal(traced(torch.ones(3)), torch.ones(3))


# ---------------------------------------------------------------- halo attention


def halo_by_hand(layer, x):
    """Every query on its own: it reads its window, zeros in the halo beyond the border, and nothing beyond that."""
    _, _, height, width = x.shape
    side, halo, reach = layer.block_size, layer.halo_size, layer.win_size
    q = layer.q(x)
    k, v = nn.functional.pad(layer.kv(x), (halo,) * 4).unflatten(1, (layer.num_heads, -1)).split(
        (layer.dim_qk, layer.dim_v), dim=2)  # fmt: skip
    out = x.new_zeros(x.shape[0], layer.num_heads, layer.dim_v, height, width)
    for row in range(height):
        for column in range(width):
            top, left = row // side * side, column // side * side
            bottom, right = min(top + reach, height + 2 * halo), min(left + reach, width + 2 * halo)
            query = q[:, :, row, column].unflatten(1, (layer.num_heads, -1))
            keys, values = k[..., top:bottom, left:right], v[..., top:bottom, left:right]
            down = torch.arange(bottom - top) - (row - top) + reach - 1
            across = torch.arange(right - left) - (column - left) + reach - 1
            by_row = query @ layer.pos_embed.height_rel[down].t()
            by_column = query @ layer.pos_embed.width_rel[across].t()
            logits = torch.einsum("nhd,nhdyx->nhyx", query, keys) * layer.scale
            logits = logits + by_row.unsqueeze(-1) + by_column.unsqueeze(-2)
            shares = logits.flatten(2).softmax(-1).unflatten(2, logits.shape[2:])
            out[..., row, column] = torch.einsum("nhyx,nhdyx->nhd", shares, values)
    return out.flatten(1, 2)


@pytest.mark.parametrize("size", [(8, 4), (7, 9), (5, 2), (1, 4)])
@torch.no_grad()
def test_halo_attention_masks_what_was_filled_up(size):
    torch.manual_seed(0)
    layer = HaloAttn(8, num_heads=2, block_size=4, halo_size=1, qkv_bias=True).eval()
    x = torch.randn(2, 8, *size)
    torch.testing.assert_close(layer(x), halo_by_hand(layer, x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_halo_attention_reads_nothing_of_the_filling(monkeypatch):
    layer = HaloAttn(8, num_heads=2, block_size=4, halo_size=1, stride=2).eval()
    x = torch.randn(2, 8, 7, 9)
    wanted = layer(x)

    def filled(t, side):
        return pad_to_multiple(t, side, value=1e4 if t is x else 0.0)

    monkeypatch.setattr("ziggurat.layers.halo_attn.pad_to_multiple", filled)
    assert torch.equal(layer(x), wanted)


# ---------------------------------------------------------------- the other attentions


@torch.no_grad()
def test_bilinear_transform_leaves_constant_maps_alone():
    """Its matrices have rows and columns of sum 1, so a constant map stays what it is, at any size."""
    layer = BilinearAttnTransform(4, block_size=3, groups=2).eval()
    for size in ((6, 9), (7, 4), (1, 2)):
        constant = torch.randn(1, 4, 1, 1).expand(1, 4, *size)
        out = layer(constant)
        assert out.shape == constant.shape
        torch.testing.assert_close(out, layer.conv2(constant))


@pytest.mark.parametrize("name", ["botnet26t_256", "lambda_resnet26rpt_256"])
@torch.no_grad()
def test_relative_positions_are_resampled_as_when_weights_are_loaded(name):
    torch.manual_seed(0)
    made_for_96 = ziggurat.create_model(name, img_size=96).eval()
    made_for_64 = ziggurat.create_model(name, img_size=64).eval()
    made_for_96.load_state_dict(made_for_96.remap_checkpoint(made_for_64.state_dict()))
    x = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(made_for_64(x), made_for_96(x))


def same_weights(name, **kwargs):
    theirs = timm.create_model(name, **kwargs).eval()
    ours = ziggurat.create_model(name, **kwargs).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", ["test_resnet", "cs3darknet_s"])
@torch.no_grad()
def test_where_timm_rounds_up_the_numbers_are_timms(name):
    ours, theirs = same_weights(name)
    x = torch.randn(1, 3, 75, 53)
    torch.testing.assert_close(ours.forward_features(x), theirs.forward_features(x))
