"""The picture of a pyramid: what its colours mean, and that every level is on it."""

import numpy as np
import pytest
import torch
from PIL import Image

import ziggurat
from ziggurat.errors import BadArgument, UnsupportedStride
from ziggurat.extraction import draw_pyramid, heat_rgb, pca_rgb, pyramid_picture


@pytest.mark.parametrize("channels", [1, 2, 8, 300])
def test_like_features_have_like_colours(channels):
    # two kinds of positions, left and right: one colour each, whichever way the components are computed
    level = torch.zeros(channels, 6, 10)
    level[0, :, 5:] = 3.0
    image = np.asarray(pca_rgb(level))
    assert image.shape == (6, 10, 3)
    assert len(np.unique(image[:, :5].reshape(-1, 3), axis=0)) == 1
    assert len(np.unique(image[:, 5:].reshape(-1, 3), axis=0)) == 1
    assert abs(int(image[0, 0, 0]) - int(image[0, 9, 0])) == 255


def test_both_ways_to_the_components_agree():
    level = torch.randn(40, 5, 7, generator=torch.Generator().manual_seed(1))
    wide = torch.cat([level, torch.zeros(10, 5, 7)])  # more channels than positions, the same content
    tall = level[:30]
    assert np.abs(np.asarray(pca_rgb(level)).astype(int) - np.asarray(pca_rgb(wide))).max() <= 1
    values = tall.reshape(30, -1).T
    _, _, axes = torch.linalg.svd(values - values.mean(0), full_matrices=False)
    red = torch.tensor(np.asarray(pca_rgb(tall))[..., 0].astype(np.float32)).flatten()
    first = (values - values.mean(0)) @ axes[0]
    assert torch.corrcoef(torch.stack([red, first]))[0, 1].abs() > 0.98  # but for the cut at the percentiles


def test_a_constant_level_is_grey():
    assert np.unique(np.asarray(pca_rgb(torch.full((8, 4, 4), 2.5)))).tolist() == [128]


def test_heat_grows_with_the_length():
    level = torch.arange(16.0).reshape(1, 4, 4)
    brightness = np.asarray(heat_rgb(level).convert("L")).astype(int).flatten()
    assert (np.diff(brightness) > 0).all()


@pytest.mark.parametrize("name, count", [("resnet10t", 5), ("vit_tiny_patch16_224", 12)])
def test_every_level_is_drawn(name, count):
    model = ziggurat.create_model(name, num_classes=0).eval()
    photo = Image.effect_noise((300, 200), 60)
    picture = draw_pyramid(model, photo, title=name)
    alone = draw_pyramid(model, photo, strides=[16])
    assert len(model.feature_info) == count
    columns = min(count, 6)
    assert picture.width - alone.width == (columns - 1) * 236
    assert (picture.height > 2 * alone.height) == (count > 6)
    tile = np.asarray(picture)[-24 - 224:-24, -24 - 224:-24]  # the last level's heat map
    assert len(np.unique(tile.reshape(-1, 3), axis=0)) > 10


def test_refusals():
    model = ziggurat.create_model("resnet10t", num_classes=0).eval()
    with pytest.raises(UnsupportedStride, match="no level of stride 7"):
        draw_pyramid(model, Image.new("RGB", (64, 64)), strides=[7])
    with pytest.raises(BadArgument, match="no level to draw"):
        pyramid_picture(Image.new("RGB", (64, 64)), [])
