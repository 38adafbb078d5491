"""Backbones under transformers' interface: its heads, its saving and loading."""

import pytest
import torch
from transformers import AutoBackbone, AutoConfig, UperNetConfig, UperNetForSemanticSegmentation

import ziggurat
from ziggurat.compat.transformers import ZigguratBackbone, ZigguratBackboneConfig
from ziggurat.errors import BadArgument

STRIDES = [4, 8, 16, 32]
VIT = dict(backbone="test_vit", arguments=dict(img_size=64, pyramid="interpolate"))


def upernet(config, channels):
    return UperNetForSemanticSegmentation(UperNetConfig(
        backbone_config=config, num_labels=5, hidden_size=16, pool_scales=[1, 2], auxiliary_in_channels=channels,
        auxiliary_channels=8))


def test_the_interface():
    backbone = AutoBackbone.from_config(ZigguratBackboneConfig(backbone="test_resnet", out_strides=STRIDES))
    assert isinstance(backbone, ZigguratBackbone)
    assert backbone.channels == [32, 48, 192, 96]
    assert backbone.stage_names == ["stage0", "stage1", "stage2", "stage3", "stage4"]
    assert backbone.out_features == ["stage1", "stage2", "stage3", "stage4"]
    assert backbone.out_indices == [1, 2, 3, 4]
    x = torch.rand(2, 3, 64, 64)
    output = backbone.eval()(x)
    for got, wanted in zip(output.feature_maps, backbone.network(x)):
        assert torch.equal(got, wanted)
    assert [tuple(m.shape) for m in output.feature_maps] == [(2, c, 64 // s, 64 // s)
                                                             for c, s in zip(backbone.channels, STRIDES)]
    assert torch.equal(backbone(x, return_dict=False)[0][0], output.feature_maps[0])


def test_levels_are_chosen_as_transformers_chooses_them():
    last = ZigguratBackbone(ZigguratBackboneConfig(backbone="test_resnet"))
    assert last.out_features == ["stage4"]
    named = ZigguratBackbone(ZigguratBackboneConfig(backbone="test_resnet", out_features=["stage1", "stage3"]))
    placed = ZigguratBackbone(ZigguratBackboneConfig(backbone="test_resnet", out_indices=[1, -2], num_channels=4))
    assert named.out_indices == placed.out_indices == [1, 3]
    assert [tuple(m.shape) for m in placed(torch.rand(1, 4, 64, 64)).feature_maps] == [(1, 32, 16, 16), (1, 192, 4, 4)]


@pytest.mark.parametrize("config, channels", [(dict(backbone="test_resnet"), 192), (VIT, 64)], ids=["conv", "vit"])
def test_upernet_trains_a_step_and_comes_back_from_disk(config, channels, tmp_path):
    model = upernet(ZigguratBackboneConfig(out_strides=STRIDES, **config), channels).train()
    x = torch.rand(2, 3, 64, 64)
    output = model(x, labels=torch.randint(0, 5, (2, 64, 64)))
    assert output.logits.shape == (2, 5, 64, 64)
    assert torch.isfinite(output.loss)
    output.loss.backward()
    assert next(model.backbone.network.parameters()).grad.abs().sum() > 0
    model.save_pretrained(tmp_path)
    other = UperNetForSemanticSegmentation.from_pretrained(tmp_path)
    assert other.state_dict().keys() == model.state_dict().keys()
    assert torch.allclose(other.eval()(x).logits, model.eval()(x).logits, atol=1e-6)


def test_weights_are_drawn_by_ziggurat():
    torch.manual_seed(3)
    ours = ziggurat.create_model("test_resnet", features_only=True, out_indices=(-1,)).state_dict()
    torch.manual_seed(3)
    theirs = ZigguratBackbone(ZigguratBackboneConfig(backbone="test_resnet")).network.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_configuration_comes_back_from_disk(tmp_path):
    config = ZigguratBackboneConfig(out_strides=STRIDES, **VIT)
    ZigguratBackbone(config).save_pretrained(tmp_path)
    other = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(other, ZigguratBackboneConfig)
    assert (other.backbone, list(other.out_strides), other.arguments) == ("test_vit", STRIDES, VIT["arguments"])
    loaded = ZigguratBackbone.from_pretrained(tmp_path)
    assert loaded.channels == [64] * 4
    assert not any(p.is_meta for p in (*loaded.parameters(), *loaded.buffers()))


def test_what_it_does_not_give():
    backbone = ZigguratBackbone(ZigguratBackboneConfig(backbone="test_resnet"))
    with pytest.raises(BadArgument, match="no hidden states or attentions"):
        backbone(torch.rand(1, 3, 64, 64), output_hidden_states=True)
    with pytest.raises(BadArgument, match="not both"):
        ZigguratBackboneConfig(backbone="test_resnet", out_indices=[1], out_strides=[4])
