"""Pyramids in torchvision's feature pyramid network and its detectors: a training step each."""

import pytest
import torch
import torchvision.models
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FeaturePyramidNetwork

import ziggurat
from ziggurat.compat.torchvision import FeatureMaps, WithFPN
from ziggurat.errors import BadArgument

STRIDES = (4, 8, 16, 32)
VIT = dict(features_only=True, out_strides=STRIDES, img_size=64)


def reaches_all(backbone):
    """Whether every parameter of `backbone` has a gradient that is finite, and not all are zero."""
    grads = [p.grad for p in backbone.parameters()]
    return all(g is not None and g.isfinite().all() for g in grads) and any(g.abs().sum() > 0 for g in grads)


def conv():
    return ziggurat.create_model("test_resnet", features_only=True, out_strides=STRIDES)


def plain_vit(pyramid):
    return ziggurat.create_model("test_vit", pyramid=pyramid, **VIT)


def foreign():
    net = torchvision.models.mobilenet_v3_small(num_classes=2)
    return ziggurat.as_backbone(net, ["features.1", "features.3", "features.8", "features.12"], features_only=True)


@pytest.mark.parametrize("make", [conv, lambda: plain_vit("interpolate"), foreign], ids=["conv", "vit", "foreign"])
def test_feature_pyramid_network_trains_a_step(make):
    backbone = make().train()
    maps = FeatureMaps(backbone)
    fpn = FeaturePyramidNetwork(backbone.feature_info.channels(), 16)
    out = fpn(maps(torch.rand(2, 3, 64, 96)))
    assert [tuple(level.shape) for level in out.values()] == [(2, 16, 64 // s, 96 // s) for s in STRIDES]
    sum(level.square().mean() for level in out.values()).backward()
    assert reaches_all(backbone)


@pytest.mark.parametrize("make", [lambda: WithFPN(conv(), 16), lambda: FeatureMaps(plain_vit("simple"))],
                         ids=["conv under FPN", "vit as simple pyramid"])
def test_faster_rcnn_trains_a_step_and_detects(make):
    torch.manual_seed(0)
    backbone = make()
    anchors = torchvision.models.detection.rpn.AnchorGenerator(
        tuple((2 * s,) for s in STRIDES) + ((64,),) * (backbone.__class__ is WithFPN),
        ((1.0,),) * (4 + (backbone.__class__ is WithFPN)))
    detector = FasterRCNN(backbone, num_classes=3, min_size=64, max_size=64, rpn_anchor_generator=anchors,
                          rpn_pre_nms_top_n_train=50, rpn_post_nms_top_n_train=20, rpn_post_nms_top_n_test=20)
    image = torch.rand(3, 64, 64)
    target = dict(boxes=torch.tensor([[4.0, 4.0, 40.0, 50.0]]), labels=torch.tensor([1]))
    losses = detector.train()([image], [target])
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    stem = next(backbone.parameters())
    assert stem.grad.abs().sum() > 0
    with torch.no_grad():
        (found,) = detector.eval()([image])
    assert set(found) == {"boxes", "labels", "scores"}


def test_channels_are_one_number_where_they_are_equal():
    assert FeatureMaps(plain_vit("interpolate")).out_channels == 64
    assert FeatureMaps(conv()).out_channels == [32, 48, 192, 96]


def test_a_classifier_is_refused():
    with pytest.raises(BadArgument, match="features_only=True"):
        WithFPN(ziggurat.create_model("test_resnet"))
