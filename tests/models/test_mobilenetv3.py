"""MobileNetV3, FBNetV3, LCNet and MobileNetV4: outputs are timm's, and the head pools before its convolution."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch

import ziggurat
from parity.oracle import TOLERANCE, compare, difference, redraw
from ziggurat.errors import BadArgument, UnsupportedPooling
from ziggurat.models.efficientnet_blocks import MobileAttention, UniversalInvertedResidual
from ziggurat.models.mobilenetv3 import MobileNetV3

SMALL = {
    "lcnet_035": "depthwise separable throughout",
    "mobilenetv3_small_050": "gates measured from the expansion",
    "tf_mobilenetv3_small_minimal_100": "padded as TensorFlow",
    "mobilenetv3_rw": "no bias in the head",
    "fbnetv3_b": "gates measured from the input",
    "mobilenetv4_conv_small_035": "a norm in the head",
    "mobilenetv4_conv_aa_medium": "anti-aliased strides",
    "mobilenetv4_hybrid_medium": "attention",
}


@pytest.fixture
def model() -> MobileNetV3:
    return ziggurat.create_model("mobilenetv3_small_050").eval()


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_timms(name: str) -> None:
    found = compare(name, 64)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride_is_that_of_timms_pyramid(output_stride: int) -> None:
    kwargs = dict(output_stride=output_stride, features_only=True)
    theirs = timm.create_model("mobilenetv3_small_050", **kwargs).eval()
    redraw(theirs)
    ours = ziggurat.create_model("mobilenetv3_small_050", **kwargs).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours_map, their_map in zip(ours(x), theirs(x)):
            assert difference(ours_map, their_map) <= TOLERANCE
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()


@pytest.mark.parametrize("pool", ["max", "catavgmax", ""])
def test_pooling_is_timms(pool: str) -> None:
    kwargs = dict(global_pool=pool, num_classes=0 if not pool else 10)
    theirs = timm.create_model("lcnet_035", **kwargs).eval()
    redraw(theirs)
    ours = ziggurat.create_model("lcnet_035", **kwargs).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) <= TOLERANCE


def test_embedding_is_what_the_classifier_reads(model: MobileNetV3) -> None:
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        embedding = model.embed(x)
        assert embedding.shape == (2, model.head_hidden_size) == (2, 1024)
        assert torch.equal(model.classifier(embedding), model(x))
        assert model.forward_features(x).shape == (2, model.num_features, 2, 2)


def test_a_pooling_of_another_width_is_refused_while_there_is_a_head(model: MobileNetV3) -> None:
    with pytest.raises(UnsupportedPooling, match="catavgmax"):
        model.reset_classifier(7, "catavgmax")
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 1000)
    model.prune_intermediate_layers([2])
    model.reset_classifier(7, "catavgmax")
    assert model.head_hidden_size == 2 * model.num_features
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 7)


def test_pruning_the_head_leaves_the_last_level(model: MobileNetV3) -> None:
    x = torch.randn(1, 3, 64, 64)
    last = len(model.feature_info) - 1
    with torch.no_grad():
        wanted, level = model(x), model.forward_features(x)
        kept = copy.deepcopy(model)
        kept.prune_intermediate_layers([last], prune_head=False)
        assert torch.equal(kept(x), wanted)
        model.prune_intermediate_layers([last])
        assert torch.equal(model(x), level)
        assert not [key for key in model.state_dict() if key.startswith(("conv_head", "classifier"))]
        model.reset_classifier(0, "avg")
        torch.testing.assert_close(model(x), level.mean((2, 3)))


def test_a_stride_needs_a_depthwise_convolution() -> None:
    with pytest.raises(BadArgument, match="stride=2"):
        UniversalInvertedResidual(8, 16, 0, 0, 0, stride=2)


@pytest.mark.parametrize("places", [(3, 0, 0), (0, 5, 0), (0, 0, 3), (3, 3, 3)])
def test_the_stride_finds_a_depthwise_convolution(places: tuple[int, int, int]) -> None:
    block = UniversalInvertedResidual(8, 16, *places, stride=2)
    assert block(torch.randn(1, 8, 16, 16)).shape == (1, 16, 8, 8)


@pytest.mark.parametrize("use_multi_query", [True, False])
def test_attention_keeps_the_map(use_multi_query: bool) -> None:
    block = MobileAttention(32, 32, num_heads=4, key_dim=8, value_dim=8, use_multi_query=use_multi_query)
    x = torch.randn(2, 32, 6, 5)
    assert block(x).shape == x.shape
    assert not torch.equal(block(x), x)


def test_compiles_exports_traces_and_copies() -> None:
    stages = ["er_r1_k3_s2_e2_c16", "uir_r1_a3_k5_s2_e2_c24 mqa_r1_k3_h2_s1_v2_d8_c24", "ir_r1_k3_s2_e2_c32_se0.25_nhs"]
    net = MobileNetV3(stages, num_classes=5, num_features=40, stem_size=8, head_norm=True, aa_layer="blurpc").eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = net(x)
        torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), wanted)
        torch.testing.assert_close(torch.fx.symbolic_trace(net)(x), wanted)
        for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert torch.equal(copied(x), wanted)
        sizes = {0: torch.export.Dim("n", min=1, max=8), 2: 32 * torch.export.Dim("h", min=1, max=8),
                 3: 32 * torch.export.Dim("w", min=1, max=8)}
        exported = torch.export.export(net, (x,), dynamic_shapes=(sizes,)).module()
        other = torch.randn(3, 3, 96, 64)
        torch.testing.assert_close(exported(other), net(other), rtol=1e-4, atol=1e-4)


def test_checkpointing_changes_no_gradient(model: MobileNetV3) -> None:
    model.train()
    x = torch.randn(2, 3, 64, 64)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(x).sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.set_grad_checkpointing(True)
    for a, b in zip(gradients(), plain):
        torch.testing.assert_close(a, b)
