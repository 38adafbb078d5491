"""Backbones as encoders of segmentation-models-pytorch: a training step under its decoders."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

import ziggurat
from ziggurat.compat.segmentation_models import Encoder, register
from ziggurat.errors import BadArgument

CLASSES = 3
VIT = dict(img_size=64)


def step(model, channels=3, size=64):
    """One training step on random images; the scores' shape."""
    scores = model.train()(torch.rand(2, channels, size, size))
    loss = nn.functional.cross_entropy(scores, torch.randint(0, CLASSES, (2, size, size)))
    assert torch.isfinite(loss)
    loss.backward()
    assert next(model.encoder.parameters()).grad.abs().sum() > 0
    return tuple(scores.shape)


@pytest.mark.parametrize("decoder, depth", [("Unet", 5), ("UnetPlusPlus", 5), ("FPN", 5), ("UPerNet", 5), ("Linknet", 5),
                                            ("MAnet", 5), ("Segformer", 5), ("DeepLabV3Plus", 5), ("PSPNet", 3)])
@pytest.mark.parametrize("name, arguments", [("test_resnet", {}), ("test_vit", VIT)])
def test_decoders_train_a_step(decoder, depth, name, arguments):
    slim = {"Unet": dict(decoder_channels=(32, 16, 16, 8, 8)), "UnetPlusPlus": dict(decoder_channels=(32, 16, 16, 8, 8)),
            "FPN": dict(decoder_pyramid_channels=32, decoder_segmentation_channels=32),
            "UPerNet": dict(decoder_channels=16), "MAnet": dict(decoder_channels=(32, 16, 16, 8, 8)),
            "Segformer": dict(decoder_segmentation_channels=16), "DeepLabV3Plus": dict(decoder_channels=16),
            "PSPNet": dict(psp_out_channels=16), "Linknet": {}}[decoder]
    encoder = register(name, **arguments)
    model = getattr(smp, decoder)(encoder, encoder_weights=None, encoder_depth=depth, classes=CLASSES, **slim)
    assert isinstance(model.encoder, Encoder)
    assert step(model) == (2, CLASSES, 64, 64)


def test_other_channels_and_sizes():
    model = smp.Unet(register("test_resnet"), encoder_weights=None, in_channels=5, classes=CLASSES)
    assert model.encoder.out_channels == [5, 32, 32, 48, 192, 96]
    assert step(model, channels=5, size=96) == (2, CLASSES, 96, 96)


@torch.no_grad()
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_features_of_an_encoder(output_stride):
    encoder = Encoder("test_resnet", output_stride=output_stride).eval()
    whole = ziggurat.create_model("test_resnet", output_stride=output_stride).eval()
    whole.load_state_dict(encoder.backbone.state_dict(), strict=False)
    x = torch.rand(1, 3, 64, 64)
    features = encoder(x)
    assert features[0] is x
    assert encoder.output_stride == output_stride
    assert [f.shape[1] for f in features] == encoder.out_channels == [3, 32, 32, 48, 192, 96]
    strides = [64 // f.shape[2] for f in features]
    assert strides == [min(2**k, output_stride) for k in range(6)]
    for got, wanted in zip(features[1:], whole.forward_intermediates(x, intermediates_only=True)):
        assert torch.allclose(got, wanted, atol=1e-5)


@torch.no_grad()
def test_a_stride_that_is_not_there_is_a_map_without_channels():
    encoder = Encoder("test_vit", pyramid="simple", pyramid_channels=16, **VIT)
    assert encoder.out_channels == [3, 0, 16, 16, 16, 16]
    assert [tuple(f.shape[1:]) for f in encoder(torch.rand(1, 3, 64, 64))] == \
        [(3, 64, 64), (0, 32, 32), (16, 16, 16), (16, 8, 8), (16, 4, 4), (16, 2, 2)]


def test_a_module_of_ones_own():
    net = nn.Sequential(*(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((4, 8), (8, 8), (8, 12), (12, 12), (12, 16))))
    backbone = ziggurat.as_backbone(net, ["0", "1", "2", "3", "4"], input_size=64)
    name = register(backbone, name="own")
    model = smp.Unet(name, encoder_weights=None, in_channels=4, classes=CLASSES, decoder_channels=(16, 8, 8, 8, 8))
    assert model.encoder.out_channels == [4, 8, 8, 12, 12, 16]
    assert model.encoder.backbone is not backbone
    step(model, channels=4)
    with pytest.raises(BadArgument, match="in_channels=3: the backbone given takes 4"):
        smp.Unet(name, encoder_weights=None)
    with pytest.raises(BadArgument, match="output_stride=8"):
        Encoder(backbone, output_stride=8, in_channels=4)


def test_a_depth_that_is_not_there():
    body = ziggurat.create_model("test_resnet", features_only=True, out_strides=(2, 4, 8))
    with pytest.raises(BadArgument, match=r"no level of stride 32, .* \[2, 4, 8\]; give encoder_depth=3"):
        Encoder(body)
