"""The programs that a user of timm or MindCV would write first, with the results that they expect."""

import warnings

import pytest
import torch
from PIL import Image

import ziggurat
from ziggurat import create_model


def sides(maps):
    return [(m.shape[1], m.shape[-1]) for m in maps]


def test_resnest26d_pyramid():
    maps = create_model("resnest26d", features_only=True)(torch.randn(2, 3, 224, 224))
    assert [tuple(m.shape) for m in maps] == [
        (2, 64, 112, 112), (2, 256, 56, 56), (2, 512, 28, 28), (2, 1024, 14, 14), (2, 2048, 7, 7)
    ]  # fmt: skip


def test_regnety_032_pyramid():
    model = create_model("regnety_032", features_only=True)
    assert model.feature_info.channels() == [32, 72, 216, 576, 1512]
    assert [m.shape[-1] for m in model(torch.randn(1, 3, 224, 224))] == [112, 56, 28, 14, 7]


def test_ecaresnet101d_output_stride():
    model = create_model("ecaresnet101d", features_only=True, output_stride=8, out_indices=(2, 4))
    assert model.feature_info.channels() == [512, 2048]
    assert model.feature_info.reduction() == [8, 8]
    assert sides(model(torch.randn(1, 3, 320, 320))) == [(512, 40), (2048, 40)]


def test_xception41():
    model = create_model("xception41").eval()
    x = torch.randn(2, 3, 299, 299)
    assert model(x).shape == (2, 1000)
    assert model.forward_features(x).shape == (2, 2048, 10, 10)


def test_resnet50_without_classifier_and_pool():
    x = torch.randn(2, 3, 224, 224)
    assert create_model("resnet50", num_classes=0, global_pool="")(x).shape == (2, 2048, 7, 7)
    assert create_model("resnet50", num_classes=0)(x).shape == (2, 2048)


@pytest.mark.parametrize(
    ("name", "args", "shape"),
    [("densenet121", (0, ""), (2, 1024, 7, 7)), ("ese_vovnet19b_dw", (0,), (2, 1024))],
)
def test_reset_classifier(name, args, shape):
    model = create_model(name)
    before = sum(p.numel() for p in model.parameters())
    classifier = sum(p.numel() for p in model.get_classifier().parameters())
    model.reset_classifier(*args)
    assert sum(p.numel() for p in model.parameters()) == before - classifier
    assert classifier > 1_000_000
    assert model(torch.randn(2, 3, 224, 224)).shape == shape


def test_resnet34_levels_and_what_is_held():
    x = torch.randn(1, 3, 224, 224)
    expected = [(64, 112), (64, 56), (128, 28), (256, 14), (512, 7)]
    assert sides(create_model("resnet34", features_only=True)(x)) == expected
    assert sides(create_model("resnet34", features_only=True, out_indices=[2, 3, 4])(x)) == expected[2:]
    part = create_model("resnet34", features_only=True, out_indices=[3])
    assert len(part) == 7
    assert list(part) == ["conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3"]
    assert not any(key.startswith(("layer4", "fc")) for key in part.state_dict())
    assert sides(part(x)) == expected[3:4]


def test_vit_gives_maps():
    model = create_model("vit_base_patch16_224", features_only=True)
    maps = model(torch.randn(1, 3, 224, 224))
    assert all(tuple(m.shape) == (1, 768, 14, 14) for m in maps)
    assert len(maps) == len(model.feature_info.channels())


def test_halonet50ts():
    model = create_model("halonet50ts").eval()
    x = torch.randn(1, 3, 256, 256)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(22.7, abs=0.05)
    assert ziggurat.model_info("halonet50ts")["macs"] / 1e9 == pytest.approx(5.3, abs=0.05)
    with torch.no_grad():
        maps = create_model("halonet50ts", features_only=True).eval()(x)
        assert sides(maps) == [(64, 128), (256, 64), (512, 32), (1024, 16), (2048, 8)]
        embedding = model.forward_head(model.forward_features(x), pre_logits=True)
        bare = create_model("halonet50ts", num_classes=0).eval()
        bare.load_state_dict(model.state_dict(), strict=False)
        torch.testing.assert_close(bare(x), embedding)


def test_an_image_to_an_input():
    model = create_model("halonet50ts")
    config = ziggurat.data.resolve_model_data_config(model)
    transform = ziggurat.data.create_transform(**config, is_training=False)
    image = transform(Image.new("RGB", (400, 300), (200, 30, 60)))
    assert tuple(image.shape) == (3, 256, 256)
    assert model.eval()(image[None]).shape == (1, 1000)


def test_listing():
    every = ziggurat.list_models()
    assert len(every) >= 600
    resnets = ziggurat.list_models("*resnet*")
    assert resnets and all("resnet" in name for name in resnets)
    assert set(resnets) < set(every)
    with_weights = ziggurat.list_models(pretrained=True)
    assert "resnet50.a1_in1k" in with_weights
    assert all("." in name for name in with_weights)
    regnets = ziggurat.list_models(module="regnet")
    assert len(regnets) == 36 and all(n.startswith("regnet") for n in regnets)
    assert "regnetz_b16" not in regnets  # a row of byobnet
    assert not any("gn" in n for n in ziggurat.list_models("resnet50*", exclude_filters="*gn*"))
    assert ziggurat.is_model("resnet50") and ziggurat.is_model("resnet50.a1_in1k") and not ziggurat.is_model("resnet5O")
    assert "resnet" in ziggurat.list_modules()
    assert ziggurat.model_entrypoint("resnet18")().num_features == 512


def test_function_of_a_name():
    from ziggurat.models.resnet import resnet34

    model = resnet34(num_classes=3)
    assert resnet34.__name__ == "resnet34"
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    with pytest.raises(ImportError):
        from ziggurat.models.resnet import resnet35  # noqa: F401


def test_default_configuration_of_resnet34():
    cfg = create_model("resnet34").pretrained_cfg
    assert cfg["hf_hub_id"] == "timm/resnet34.a1_in1k"
    assert cfg["num_classes"] == 1000
    assert cfg["input_size"] == (3, 224, 224)
    assert cfg["pool_size"] == (7, 7)
    assert (cfg["first_conv"], cfg["classifier"]) == ("conv1", "fc")
    assert cfg["interpolation"] == "bicubic" and 0.8 < cfg["crop_pct"] <= 1.0
    assert len(cfg["mean"]) == len(cfg["std"]) == 3


@pytest.mark.parametrize("name", ["ecaresnet50d_pruned", "ecaresnet101d_pruned", "efficientnet_b1_pruned",
                                  "efficientnet_b2_pruned", "efficientnet_b3_pruned"])
def test_pruned_variants_build(name):
    with torch.device("meta"):
        model = create_model(name)
        assert model(torch.randn(1, 3, 224, 224)).shape == (1, 1000)
        assert sum(p.numel() for p in model.parameters()) == ziggurat.model_info(name)["params"]


@pytest.fixture
def registry_restored():
    from ziggurat import registry

    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)


def test_a_users_own_function(registry_restored):
    @ziggurat.register_model
    def my_little_net(pretrained=False, **kwargs):
        from ziggurat.models.resnet import BasicBlock, ResNet

        return ziggurat.models.build_model_with_cfg(
            ResNet, "my_little_net", pretrained, block=BasicBlock, layers=(1, 1, 1, 1), **kwargs
        )

    assert "my_little_net" in ziggurat.list_models("my_*")
    assert ziggurat.is_model("my_little_net")
    x = torch.randn(1, 3, 64, 64)
    assert create_model("my_little_net", num_classes=5)(x).shape == (1, 5)
    assert len(create_model("my_little_net", features_only=True, out_strides=(4, 8))(x)) == 2

    first = my_little_net

    with pytest.warns(UserWarning, match="Overwriting my_little_net"):
        @ziggurat.register_model
        def my_little_net(pretrained=False, **kwargs):
            return first(pretrained, num_classes=2)

    assert create_model("my_little_net")(x).shape == (1, 2)


def test_a_name_of_ours_taken_over(registry_restored):
    def resnet18(pretrained=False, **kwargs):
        return torch.nn.Identity()

    with pytest.warns(UserWarning, match="Overwriting resnet18"):
        ziggurat.register_model(resnet18)
    assert isinstance(create_model("resnet18"), torch.nn.Identity)


def test_strides_are_addresses():
    x = torch.randn(2, 3, 64, 64)
    model = create_model("regnety_002").eval()
    with torch.no_grad():
        pyramid = model.pyramid(x)
        assert {stride: m.shape[-1] for stride, m in pyramid.items()} == {2: 32, 4: 16, 8: 8, 16: 4, 32: 2}
        part = create_model("regnety_002", features_only=True, out_strides=(32, 8)).eval()
        assert part.state_dict().keys() < model.state_dict().keys()
        part.load_state_dict({key: model.state_dict()[key] for key in part.state_dict()})
        for stride, level in zip((32, 8), part(x)):
            torch.testing.assert_close(level, pyramid[stride])
        assert model.embed(x).shape == (2, 368)
        views = model.extract(x, ("scores", "embedding", "pyramid"), strides=(8, 16))
        assert list(views["pyramid"]) == [8, 16]
        torch.testing.assert_close(views["scores"], model(x))
    with pytest.raises(ziggurat.errors.UnsupportedStride, match=r"no level of stride 64.*\[2, 4, 8, 16, 32\]"):
        create_model("regnety_002", features_only=True, out_strides=(4, 64))


def test_tokens_are_named():
    model = create_model("vit_tiny_patch16_224", img_size=64, reg_tokens=4).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = model.tokens(x)
        assert {name: tuple(t.shape) for name, t in tokens.items()} == {
            "cls": (2, 192), "registers": (2, 4, 192), "patches": (2, 192, 4, 4)
        }  # fmt: skip
        torch.testing.assert_close(tokens["cls"], model.forward_features(x)[:, 0])
        assert list(model.pyramid(x)) == [16]
    with pytest.raises(ziggurat.errors.BadArgument, match="has no tokens"):
        create_model("resnet18").tokens(x)


@pytest.mark.parametrize(
    ("kwargs", "error", "said"),
    [
        (dict(model_name="resnet5O"), ziggurat.errors.UnknownModel, "nearest are resnet50"),
        (dict(model_name="resnet18.nope"), ziggurat.errors.UnknownTag, "it has a1_in1k"),
        (dict(model_name="resnet18", layer=3), ziggurat.errors.UnknownArgument, "nearest are layers"),
        (dict(model_name="resnet18", feature_only=True), ziggurat.errors.UnknownArgument, "nearest are features_only"),
        (dict(model_name="resnet18", strict=False), ziggurat.errors.UnknownArgument, "nearest are pretrained_strict"),
        (dict(model_name="resnet18", features_only=True, out_indices=(7,)), ziggurat.errors.BadArgument, "0 to 4"),
        (dict(model_name="resnet18", features_only=True, out_indices=(1, 1)), ziggurat.errors.BadArgument, "twice"),
        (dict(model_name="resnet18", out_indices=(1,)), ziggurat.errors.BadArgument, "features_only"),
        (dict(model_name="some/where"), ziggurat.errors.BadArgument, "hf-hub:some/where"),
        (dict(model_name="resnet18", output_stride=3), ziggurat.errors.BadArgument, "8, 16"),
    ],
)
def test_errors_say_what_would_work(kwargs, error, said):
    with pytest.raises(error, match=said):
        create_model(**kwargs)


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_model("resnet18", pretrained=False, scriptable=True, exportable=True, no_jit=True)
