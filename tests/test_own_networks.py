"""Networks that a user wrote, made pyramids in the three ways of MindCV's tutorial, and what MindCV gets wrong there."""

import copy
import pickle
import sys
import warnings

import pytest
import torch
from torch import nn

import ziggurat
from ziggurat import build_model_with_cfg, create_model, register_model, registry
from ziggurat.errors import BadArgument, CheckpointMismatch, SourceUnavailable, UnsupportedStride

WIDTHS = (8, 12, 16, 24)


def stage(inside, outside, stride=2):
    conv = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU())


class DummyNet1(nn.Module):
    """Each level is a module of its own."""

    def __init__(self, widths=WIDTHS, num_classes=1000, in_channels=3):
        super().__init__()
        self.feature_info = []
        for i, width in enumerate(widths, 1):
            self.add_module(f"layer{i}", stage(in_channels if i == 1 else widths[i - 2], width))
            self.feature_info.append(dict(chs=width, reduction=2**i, name=f"layer{i}"))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def levels(self, x):
        found = []
        for level in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = level(x)
            found.append(x)
        return found

    def forward(self, x):
        return self.classifier(self.pool(self.levels(x)[-1]).flatten(1))


class DummyNet2(nn.Module):
    """All levels are children of one sequence."""

    def __init__(self, widths=WIDTHS, num_classes=1000, in_channels=3):
        super().__init__()
        self.feature_info = []
        self.flatten_sequential = True
        layers = []
        for i, width in enumerate(widths):
            layers.append(stage(in_channels if i == 0 else widths[i - 1], width))
            self.feature_info.append(dict(chs=width, reduction=2 ** (i + 1), name=f"layers.{i}"))
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def levels(self, x):
        found = []
        for level in self.layers:
            x = level(x)
            found.append(x)
        return found

    def forward(self, x):
        return self.classifier(self.pool(self.layers(x)).flatten(1))


class Fuse(nn.Module):
    def forward(self, maps):
        return torch.stack(maps).sum(0)


class DummyNet3(nn.Module):
    """Branches side by side, each stage fed with what all of them give."""

    def __init__(self, num_classes=1000, in_channels=3):
        super().__init__()
        self.layer1 = nn.ModuleList(stage(in_channels, 8) for _ in range(3))
        self.stage1 = Fuse()
        self.layer2 = nn.ModuleList(stage(8, 16) for _ in range(3))
        self.stage2 = Fuse()
        self.classifier = nn.Linear(16, num_classes)

    def levels(self, x):
        x = self.stage1([branch(x) for branch in self.layer1])
        return [x, self.stage2([branch(x) for branch in self.layer2])]

    def forward(self, x):
        return self.classifier(self.levels(x)[-1].mean((2, 3)))


class DummyFeatureNet3(DummyNet3):
    """The same, rewritten to give its levels."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.is_rewritten = True
        self.feature_info = [dict(chs=8, reduction=2, name="stage1"), dict(chs=16, reduction=4, name="stage2")]

    def forward(self, x):
        return self.levels(x)


default_cfgs = {
    "dummynet18": dict(
        url="", num_classes=1000, first_conv="layer1.0", classifier="classifier",
        dataset_transform=dict(
            transforms_imagenet_train=dict(image_resize=160),
            transforms_imagenet_eval=dict(image_resize=192, crop_pct=0.9, interpolation="bilinear",
                                          mean=[127.5] * 3, std=[51.0] * 3),
        ),
    ),
    "dummynet_flat": dict(url="", num_classes=1000, first_conv="layers.0.0", classifier="classifier"),
    "dummynet_rewritten": dict(url="", num_classes=1000, classifier="classifier"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))

    @register_model
    def dummynet18(pretrained=False, num_classes=1000, in_channels=3, **kwargs):
        arguments = dict(widths=WIDTHS, num_classes=num_classes, in_channels=in_channels, **kwargs)
        return build_model_with_cfg(DummyNet1, pretrained, **dict(default_cfg=default_cfgs["dummynet18"], **arguments))

    @register_model
    def dummynet_flat(pretrained=False, **kwargs):
        return build_model_with_cfg(DummyNet2, pretrained, default_cfgs["dummynet_flat"], **kwargs)

    @register_model
    def dummynet_rewritten(pretrained=False, num_classes=1000, in_channels=3, **kwargs):
        cls = DummyFeatureNet3 if kwargs.get("features_only") else DummyNet3
        return build_model_with_cfg(cls, pretrained=pretrained, default_cfg=default_cfgs["dummynet_rewritten"],
                                    num_classes=num_classes, in_channels=in_channels, **kwargs)


NAMES = ["dummynet18", "dummynet_flat", "dummynet_rewritten"]


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def filled(name, **kwargs):
    """A network with values of its own everywhere."""
    torch.manual_seed(1)
    model = create_model(name, **kwargs).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


def same(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


# ------------------------------------------------------------------- the three ways


@pytest.mark.parametrize("name", NAMES)
def test_the_tutorials_programs(name, x, tmp_path):
    whole = filled(name)
    assert not isinstance(whole, ziggurat.Backbone), "without features_only it is the user's class"
    assert whole(x).shape == (2, 1000)
    torch.save(whole.state_dict(), tmp_path / "dummynet.ckpt")
    expected = whole.levels(x)
    indices = [1, 0] if name == "dummynet_rewritten" else [2, 0, 1]
    backbone = create_model(
        model_name=name, checkpoint_path=str(tmp_path / "dummynet.ckpt"), auto_mapping=True, features_only=True,
        out_indices=indices,
    ).eval()  # fmt: skip
    got = backbone(x)
    assert isinstance(got, list)
    same(got, [expected[i] for i in indices])
    assert backbone.feature_info.channels() == [level.shape[1] for level in got]
    assert backbone.feature_info.reduction() == [64 // level.shape[-1] for level in got]
    held = backbone.state_dict()
    assert held.keys() < whole.state_dict().keys(), "keys never change, and what is not needed is not held"
    assert not any(key.startswith(("classifier", "layer4", "layers.3")) for key in held)
    again = create_model(name)
    again.load_state_dict(whole.state_dict())
    again.load_state_dict(held, strict=False)
    same([again.eval()(x)], [whole(x)])


@pytest.mark.parametrize("name", NAMES)
def test_levels_by_stride_and_from_the_end(name, x):
    levels = filled(name).levels(x)
    by_stride = filled(name, features_only=True, out_strides=(4, 2))
    same(by_stride(x), [levels[1], levels[0]])
    same(by_stride.pyramid(x, strides=4).values(), [levels[1]])
    same(filled(name, features_only=True, out_indices=[-1, 0])(x), [levels[-1], levels[0]])
    same(filled(name, features_only=True)(x), levels)
    count = len(levels)
    with pytest.raises(BadArgument, match=f"there is no level {count}; levels are 0 to {count - 1}"):
        create_model(name, features_only=True, out_indices=[0, count])
    with pytest.raises(BadArgument, match="names a level twice"):
        create_model(name, features_only=True, out_indices=[1, 1])
    with pytest.raises(UnsupportedStride, match="there is no level of stride 3"):
        create_model(name, features_only=True, out_strides=(3,))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("argument", ["in_channels", "in_chans"])
def test_channels_under_both_names(name, argument):
    x = torch.randn(1, 5, 32, 32)
    assert create_model(name, **{argument: 5})(x).shape == (1, 1000)
    model = create_model(name, features_only=True, **{argument: 5})
    assert model.in_chans == 5
    assert model.pretrained_cfg["input_size"][0] == 5
    assert model(x)[0].shape == (1, 8, 16, 16)


def test_channels_of_shipped_networks():
    assert create_model("test_resnet", in_channels=1).in_chans == 1
    assert create_model("test_resnet", in_channels=1, in_chans=1).in_chans == 1
    with pytest.raises(BadArgument, match="in_chans=2 and in_channels=1 are two names of one argument"):
        create_model("test_resnet", in_channels=1, in_chans=2)


@pytest.mark.parametrize("name", NAMES)
def test_what_can_be_done_with_it(name, x, tmp_path):
    model = filled(name, features_only=True, out_indices=[0, 1])
    expected = model(x)
    if name == "dummynet_rewritten":  # the others are what as_backbone's own tests compile
        same(torch.compile(model, fullgraph=True, backend="eager")(x), expected)
        same(torch.export.export(model, (x,)).module()(x), expected)
    same(copy.deepcopy(model)(x), expected)
    same(pickle.loads(pickle.dumps(model))(x), expected)
    model(x)[1].mean().backward()
    plain = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    model(x)[1].mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name])
    model.freeze(0)
    frozen = {name.split(".")[0] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen and {name.split(".")[0] for name, _ in model.named_parameters()} >= frozen
    assert not all(not parameter.requires_grad for parameter in model.parameters())
    model.save(tmp_path / "own")
    same(ziggurat.load(tmp_path / "own").eval()(x), expected)


def test_it_is_listed():
    assert ziggurat.list_models("dummynet*") == sorted(NAMES)
    assert ziggurat.get_pretrained_cfg("dummynet18").input_size == (3, 192, 192)
    assert not ziggurat.is_model_pretrained("dummynet18")


# ------------------------------------------------------------------- what rewritten classes may do


class Returns(nn.Module):
    """Levels as the function `give` makes them of three maps."""

    is_rewritten = True

    def __init__(self, give, names=("one", "two", "three")):
        super().__init__()
        self.feature_info = [dict(name=name) for name in names]
        self.give = give
        self.a, self.b, self.c = stage(3, 4), stage(4, 6), stage(6, 8)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        a = self.a(x)
        b = self.b(a)
        return self.give(self, a, b, self.c(b))


def top_down(net, a, b, c):
    b = b + net.up(c)
    return (a, b, c)


def in_place(net, a, b, c):
    out = [a, b, c]
    a.mul_(2)
    return out


def asks(net, a, b, c):
    return [a, b, c if c.mean() > -1e9 else b]


@pytest.mark.parametrize("give, is_traced", [(top_down, True), (in_place, False), (asks, False)])
def test_levels_as_the_class_returns_them(give, is_traced, x):
    net = Returns(give).eval()
    expected = net(x)
    model = ziggurat.as_backbone(net)
    assert (model.untraced is None) == is_traced
    same(model(x), expected)
    same(model.pyramid(x).values(), expected)
    assert model.feature_info.channels() == [4, 6, 8] and model.feature_info.reduction() == [2, 4, 8]
    held = set(net.state_dict())
    model = ziggurat.as_backbone(net, features_only=True, out_indices=(1, 0))
    same(model(x), [expected[1], expected[0]])
    assert model.state_dict().keys() == ({k for k in held if "unused" not in k} if is_traced else held)


def test_what_a_rewritten_class_must_do():
    with pytest.raises(BadArgument, match="feature_info of Returns names 2 levels .one, two., its forward returns 3"):
        ziggurat.as_backbone(Returns(top_down, ("one", "two")))
    with pytest.raises(BadArgument, match="its forward has to return its levels in a list; it returns a Tensor"):
        ziggurat.as_backbone(Returns(lambda net, a, b, c: c))
    with pytest.raises(BadArgument, match="'two' is named twice"):
        ziggurat.as_backbone(Returns(top_down, ("one", "two", "two")))


# ------------------------------------------------------------------- where MindCV would be wrong


class Shared(nn.Module):
    """One activation called twice, a layer registered before its turn, one never called, one called behind the levels."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 10)
        self.relu = nn.ReLU()
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.spare = nn.Conv2d(3, 8, 1)
        self.layer = nn.Conv2d(8, 8, 3, 2, 1)
        self.feature_info = [dict(chs=8, reduction=2, name="norm"), dict(chs=8, reduction=4, name="layer")]

    def levels(self, x):
        x = self.norm(self.relu(self.conv(x)))
        return [x, self.layer(self.relu(x))]

    def forward(self, x):
        return self.head(self.levels(x)[-1].mean((2, 3)))


def test_the_networks_own_forward_counts_and_the_order_is_named(x):
    net = Shared().eval()
    expected = net.levels(x)
    with pytest.warns(UserWarning, match="Its own forward is what runs here") as caught:
        model = ziggurat.as_backbone(net, features_only=True)
    said = str(caught[0].message)
    assert len(caught) == 1
    for clause in ("relu is called 2 times", "relu is registered before conv and called after it",
                   "head is not called before layer is complete", "spare is not called before layer is complete"):
        assert clause in said
    same(model(x), expected)
    assert list(model) == ["relu", "norm", "conv", "layer"]


class Nested(DummyNet2):
    def forward(self, x):
        for i in (0, 1, 1, 2, 3):
            if i != 2:
                x = self.layers[i](x)
        return self.classifier(x.mean((2, 3)))


def test_members_of_a_flattened_sequence_too():
    net = Nested((3, 3, 3, 3))
    net.feature_info = [dict(chs=3, reduction=2, name="layers.0"), dict(chs=3, reduction=16, name="layers.3")]
    said = r"layers\.1 is called 2 times; layers\.2 is not called before layers\.3 is complete\. Its own forward"
    with pytest.warns(UserWarning, match=said):
        ziggurat.as_backbone(net)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_said_of_networks_in_order(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_model(name, features_only=True)


def changed(**facts):
    net = DummyNet1()
    net.feature_info[1] |= facts
    return net


def turned():
    net = DummyNet1()
    net.feature_info = net.feature_info[::-1]
    return net


def nameless():
    net = DummyNet1()
    net.feature_info = None
    return net


def twice():
    net = DummyNet1((3, 3, 3, 3))
    net.layer2 = net.layer1
    return net


class Again(DummyNet1):
    def forward(self, x):
        return super().forward(self.layer1(x).repeat(1, 3, 1, 1)[:, :3])


def again():
    return Again()


@pytest.mark.parametrize("make, said", [
    (lambda: changed(name="layer9"), "feature_info: DummyNet1 has no submodule 'layer9'; nearest are layer4"),
    (lambda: changed(name="layer1"), "feature_info: 'layer1' is named twice"),
    (lambda: changed(name="classifier"), "not in the order that they run"),
    (lambda: changed(chs=13), "'layer2' is said to have 13 channels at stride 4; it puts out 12 at stride 4"),
    (lambda: changed(reduction=8), "'layer2' is said to have 12 channels at stride 8; it puts out 12 at stride 4"),
    (turned, r"\['layer4', .* are not in the order that they run; give \['layer1'"),
    (twice, "'layer1' and 'layer2' are one module, which is called twice"),
    (again, "'layer1' is called 2 times in a forward pass; name a module that is called once"),
    (nameless, r"DummyNet1 has no feature_info that names its levels, a list of dict\(chs=, reduction=, name=\)"),
])  # fmt: skip
def test_statements_that_are_not_so(make, said):
    with pytest.raises(BadArgument, match=said):
        build_model_with_cfg(make, False, features_only=True)


# ------------------------------------------------------------------- weights


def test_weights_from_an_address(tmp_path, x):
    whole = filled("dummynet18")
    torch.save(whole.state_dict(), tmp_path / "there.pth")
    cfg = default_cfgs["dummynet18"] | dict(url=(tmp_path / "there.pth").as_uri())

    @register_model
    def dummynet34(pretrained=False, **kwargs):
        return build_model_with_cfg(DummyNet1, pretrained, default_cfg=cfg, **kwargs)

    def load(**kwargs):
        return create_model("dummynet34", pretrained=True, cache_dir=tmp_path / "cache", **kwargs).eval()

    same([load()(x)], [whole(x)])
    assert (tmp_path / "cache" / "there.pth").is_file()
    same(load(features_only=True, out_indices=[3])(x), whole.levels(x)[-1:])
    assert load(num_classes=7)(x).shape == (2, 7)
    grey = load(in_channels=1, num_classes=7)
    torch.testing.assert_close(grey.layer1[0].weight, whole.layer1[0].weight.sum(1, keepdim=True))
    wide = load(in_chans=4, features_only=True, in_chans_from="first", out_strides=8)
    assert torch.equal(wide.layer1[0].weight[:, :3], whole.layer1[0].weight)
    assert wide.pretrained_cfg["input_size"] == (4, 192, 192)
    mapped = load(in_channels=3, in_chans_from=[2, 1, 0])
    assert torch.equal(mapped.layer1[0].weight, whole.layer1[0].weight.flip(1))
    with pytest.raises(SourceUnavailable, match="for DummyNet1: its default_cfg has no url; use pretrained=False"):
        create_model("dummynet18", pretrained=True)


def test_what_a_configuration_says():
    cfg = create_model("dummynet18").pretrained_cfg
    assert cfg["input_size"] == (3, 192, 192) and cfg["crop_pct"] == 0.9 and cfg["interpolation"] == "bilinear"
    assert cfg["mean"] == (0.5, 0.5, 0.5) and cfg["std"] == (0.2, 0.2, 0.2)
    data = ziggurat.data.resolve_model_data_config(create_model("dummynet18", features_only=True))
    assert data["input_size"] == (3, 192, 192) and data["mean"] == (0.5, 0.5, 0.5)
    for pixels, mean in ((dict(mean=[127.5] * 3, std=[51.0] * 3), (0.5,) * 3), (dict(mean=[0.5] * 3, std=(0.2,) * 3), (0.5,) * 3),
                         (dict(mean=[0.0] * 3, std=[51.0] * 3), (0.0,) * 3), (dict(std=[51] * 3), (0.485, 0.456, 0.406))):
        cfg = build_model_with_cfg(DummyNet1, False, default_cfg=pixels).pretrained_cfg
        assert cfg["mean"] == mean and cfg["std"] == (0.2, 0.2, 0.2)
    with pytest.raises(BadArgument, match="no field 'num_class'; nearest are num_classes"):
        build_model_with_cfg(DummyNet1, False, default_cfg=dict(num_class=10))
    assert build_model_with_cfg(lambda num_classes=3: nn.Linear(4, num_classes), False).out_features == 3
    stated = build_model_with_cfg(lambda num_classes=3: nn.Linear(4, num_classes), False, dict(num_classes=5))
    assert stated.out_features == 5


def test_configurations_that_a_module_declares(monkeypatch):
    monkeypatch.setitem(default_cfgs, "declared_net", default_cfgs["dummynet18"] | dict(url="https://example.org/x.ckpt"))
    assert sys.modules[__name__].default_cfgs is default_cfgs

    @register_model
    def declared_net(pretrained=False, **kwargs):
        return DummyNet1(**kwargs)

    assert ziggurat.is_model_pretrained("declared_net")
    assert ziggurat.get_pretrained_cfg("declared_net").url == "https://example.org/x.ckpt"
    assert create_model("declared_net", in_channels=2).layer1[0].in_channels == 2


@pytest.mark.parametrize("features_only", [False, True])
def test_checkpoints_that_do_not_fill_the_network(features_only, tmp_path):
    path = tmp_path / "x.pth"
    create = lambda: create_model("dummynet18", features_only=features_only, checkpoint_path=path)
    with pytest.raises(SourceUnavailable, match=r"there is no file .*x\.pth"):
        create()
    whole = create_model("dummynet18").state_dict()
    count = 22 if not features_only else 20
    torch.save({f"other.{key}": value for key, value in whole.items()}, path)
    with pytest.raises(CheckpointMismatch, match=rf"It fills 0 of the model's {count}: "):
        create()
    torch.save({key: value for key, value in whole.items() if not key.startswith("layer2.0")}, path)
    with pytest.raises(CheckpointMismatch, match=rf"It fills {count - 1} of the model's {count}: 1 missing: layer2\.0\.weight"):
        create()


def test_averaged_weights(tmp_path):
    path = tmp_path / "x.pth"
    last = create_model("dummynet18").state_dict()
    averaged = {key: value + 1 for key, value in last.items()}
    torch.save({"state_dict": last, "state_dict_ema": averaged}, path)
    for ema, expected in ((None, averaged), (True, averaged), (False, last)):
        got = create_model("dummynet18", checkpoint_path=path, ema=ema)
        assert torch.equal(got.layer1[0].weight, expected["layer1.0.weight"])
    torch.save(last, path)
    with pytest.raises(CheckpointMismatch, match=r"holds no averaged \(EMA\) weights"):
        create_model("dummynet18", checkpoint_path=path, ema=True)
    with pytest.raises(CheckpointMismatch, match=r"holds no averaged \(EMA\) weights"):
        create_model("test_resnet", checkpoint_path=path, ema=True)
    assert create_model("test_resnet", ema=True).num_classes == 1000, "of nothing, nothing is asked"


class OfOneSize(DummyNet1):
    def forward(self, x):
        return self.classifier(self.levels(x)[-1].flatten(1).unflatten(1, (24, 4)).mean(2))


def test_a_network_of_one_size(x):
    @register_model
    def of_one_size(pretrained=False, **kwargs):
        return build_model_with_cfg(OfOneSize, pretrained, default_cfg={}, **kwargs)

    with pytest.raises(BadArgument, match="224 x 224 pixels .*, and input_size=.* in its default_cfg or in "):
        create_model("of_one_size", features_only=True)
    model = create_model("of_one_size", features_only=True, pretrained_cfg_overlay=dict(input_size=(3, 32, 32)))
    assert model(x)[0].shape == (2, 8, 32, 32)
    stated = build_model_with_cfg(OfOneSize, False, default_cfg=dict(input_size=(3, 32, 32)), features_only=True)
    assert stated.out_channels == list(WIDTHS)


@pytest.mark.parametrize("first_conv", [None, "layer1.0", "conv1", "layer2.0"])
@pytest.mark.parametrize("features_only", [False, True])
def test_other_channels_than_the_checkpoints(first_conv, features_only, tmp_path):
    @register_model
    def dummynet50(pretrained=False, **kwargs):
        return build_model_with_cfg(DummyNet1, pretrained, default_cfg=dict(first_conv=first_conv), **kwargs)

    whole = filled("dummynet18")
    torch.save(whole.state_dict(), tmp_path / "rgb.pth")
    grey = create_model("dummynet50", checkpoint_path=tmp_path / "rgb.pth", in_channels=1, features_only=features_only)
    torch.testing.assert_close(grey.layer1[0].weight, whole.layer1[0].weight.sum(1, keepdim=True))
    assert torch.equal(grey.layer2[0].weight, whole.layer2[0].weight)


@pytest.mark.parametrize("features_only", [False, True])
def test_channels_in_another_order(features_only, tmp_path):
    whole = filled("dummynet_rewritten")  # without first_conv
    torch.save(whole.state_dict(), tmp_path / "rgb.pth")

    def load(**kwargs):
        return create_model("dummynet_rewritten", checkpoint_path=tmp_path / "rgb.pth", in_chans_from=[2, 1, 0],
                            features_only=features_only, **kwargs)

    with pytest.raises(CheckpointMismatch, match="which layer reads the image is not known; state its path as first_conv"):
        load()
    paths = tuple(f"layer1.{i}.0" for i in range(3))
    turned = load(pretrained_cfg_overlay=dict(first_conv=paths))
    for path in paths:
        assert torch.equal(turned.get_submodule(path).weight, whole.get_submodule(path).weight.flip(1))


def test_another_networks_checkpoint_is_judged_by_what_it_holds(tmp_path):
    torch.save({"foo": torch.zeros(3)}, tmp_path / "foo.pth")
    for features_only in (False, True):
        with pytest.raises(CheckpointMismatch, match="It fills 0 of .* 1 unexpected: foo. .*auto_mapping=True pairs them"):
            create_model("dummynet18", checkpoint_path=tmp_path / "foo.pth", features_only=features_only)
