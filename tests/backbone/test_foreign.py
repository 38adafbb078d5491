"""`as_backbone`: modules that were not written for ziggurat behind its interface."""

import copy
import pickle

import pytest
import torch
import torchvision.models
from torch import nn

import ziggurat
from ziggurat.backbone import group_parameters
from ziggurat.errors import BadArgument
from ziggurat.testing import check_backbone

RESNET = ["layer1", "layer2", "layer3", "layer4"]
FOURS = ["features.1", "features.3", "features.5", "features.7"]


class Block(nn.Module):
    """A strided convolution and what goes with it."""

    def __init__(self, inside, outside):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, 2, 1)
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, x):
        return self.norm(self.conv(x)).relu()


class Own(nn.Module):
    """A user's network, with children named as methods of a Backbone are."""

    def __init__(self, in_chans=3):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.embed = Block(in_chans, 8)
        self.trunk = nn.Sequential(Block(8, 12), Block(12, 16))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 5)

    def forward(self, x, mask=None):
        if mask is not None:
            x = x * mask
        x = self.trunk(self.embed(x * self.scale))
        return self.head(self.drop(self.pool(x).flatten(1)))


OWN = ["embed", "trunk.0", "trunk.1"]


class Undecided(Own):
    """Control flow that asks for values: torch.fx cannot write it down, and the meta device cannot run it."""

    def forward(self, x, mask=None):
        if x.mean() > 100:
            x = x / 100
        return super().forward(x, mask)


class UNet(nn.Module):
    """Scores a pixel, from the levels of an encoder."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.down3 = Block(3, 8), Block(8, 8), Block(8, 8)
        self.up = nn.Upsample(scale_factor=2.0)
        self.mix = nn.Conv2d(8, 8, 1)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(one)
        three = self.down3(two)
        return self.out(self.up(self.mix(self.up(three) + two)) + one)


class Tokens(nn.Module):
    """A plain ViT with a class token and one image size, or any."""

    def __init__(self, fixed):
        super().__init__()
        self.fixed = fixed
        self.patches = nn.Conv2d(3, 24, 8, 8)
        self.cls = nn.Parameter(torch.randn(1, 1, 24))
        make = nn.TransformerEncoderLayer
        self.blocks = nn.ModuleList(make(24, 2, 48, batch_first=True, dropout=0.0) for _ in range(3))
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        if self.fixed:
            torch._assert(x.shape[2] == 64, "one size only")
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Flattens(nn.Module):
    """A level in NHWC that the next operation overwrites."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.mix = nn.Linear(8, 12)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(12, 3)

    def forward(self, x):
        return self.fc(self.act(self.mix(self.stem(x).permute(0, 2, 3, 1))).mean((1, 2)))


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10).eval()


def caught(module, paths, x):
    """Outputs of the submodules at `paths`, by hooks, and of the module."""
    seen = {}
    handles = [module.get_submodule(p).register_forward_hook(lambda m, a, out, p=p: seen.update({p: out.clone()}))
               for p in paths]
    scores = module(x)
    for handle in handles:
        handle.remove()
    return [seen[p] for p in paths], scores


# -------------------------------------------------------------------- views


@torch.no_grad()
def test_all_views_of_torchvisions_resnet(resnet, x):
    keys = list(resnet.state_dict())
    levels, scores = caught(resnet, RESNET, x)
    model = ziggurat.as_backbone(resnet, RESNET)
    assert model.untraced is None
    assert list(model.state_dict()) == keys
    assert model.feature_info.channels() == [64, 128, 256, 512]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert model.feature_info.module_name() == RESNET
    assert torch.equal(model(x), scores)
    features = model.forward_features(x)
    assert torch.equal(features, levels[-1])
    assert torch.equal(model.forward_head(features), scores)
    assert torch.equal(model.embed(x), levels[-1].mean((2, 3)))
    assert torch.equal(model.forward_head(features, pre_logits=True), model.embed(x))
    assert list(model.pyramid(x)) == [4, 8, 16, 32]
    for got, level in zip(model.pyramid(x).values(), levels):
        assert torch.equal(got, level)
    assert list(model.pyramid(x, strides=(16, 4))) == [16, 4]
    last, chosen = model.forward_intermediates(x, indices=[-1, 0])
    assert torch.equal(last, features)
    assert [tuple(level.shape) for level in chosen] == [(2, 512, 2, 2), (2, 64, 16, 16)]
    views = model.extract(x, ("scores", "embedding", "features", "pyramid"), strides=8)
    assert torch.equal(views["scores"], scores)
    assert torch.equal(views["pyramid"][8], levels[1])
    assert (model.num_classes, model.num_features, model.head_hidden_size, model.in_chans) == (10, 512, 512, 3)
    assert model.get_classifier() is resnet.fc


@torch.no_grad()
def test_features_only_holds_and_runs_nothing_past_the_last_level(resnet, x):
    whole = copy.deepcopy(resnet)
    levels, _ = caught(whole, RESNET, x)
    model = ziggurat.as_backbone(resnet, RESNET, features_only=True, out_strides=(16, 4))
    assert set(model) == {"conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"}
    kept = whole.state_dict()
    assert list(model.state_dict()) == [k for k in kept if not k.startswith(("layer4", "fc"))]
    assert model.feature_info.reduction() == [16, 4]
    for got, i in zip(model(x), (2, 0)):
        assert torch.equal(got, levels[i])
    assert list(model.pyramid(x)) == [16, 4]
    with pytest.raises(BadArgument, match="no embedding"):
        model.embed(x)
    by_index = ziggurat.as_backbone(whole, RESNET, features_only=True, out_indices=(0,))
    assert by_index.feature_info.channels() == [64]


def small_swin():
    return torchvision.models.SwinTransformer([4, 4], 24, [2, 1, 1, 1], [1, 2, 2, 4], [7, 7], num_classes=5)


def small_convnext():
    config = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([config(8, 12, 1), config(12, 16, 1), config(16, 24, 1), config(24, None, 1)],
                                       num_classes=5)


def small_vit():
    return torchvision.models.VisionTransformer(64, 16, 3, 2, 32, 64, num_classes=5)


def small_regnet():
    params = torchvision.models.regnet.BlockParams([1, 1, 1, 1], [8, 16, 24, 32], [8] * 4, [1.0] * 4, [2] * 4)
    return torchvision.models.RegNet(params, num_classes=5, stem_width=8)


CASES = {  # a network, its levels, channels, strides
    "convnext": (small_convnext, FOURS, [8, 12, 16, 24], [4, 8, 16, 32]),
    "swin": (small_swin, FOURS, [24, 48, 96, 192], [4, 8, 16, 32]),
    "vit": (small_vit, [f"encoder.layers.encoder_layer_{i}" for i in (0, 2)], [32, 32], [16, 16]),
    "efficientnet": (lambda: torchvision.models.efficientnet_b0(num_classes=5),
                     ["features.2", "features.3", "features.5", "features.8"], [24, 40, 112, 1280], [4, 8, 16, 32]),
    "regnet": (small_regnet, ["stem", *(f"trunk_output.block{i}" for i in (1, 2, 3, 4))],
               [8, 8, 16, 24, 32], [2, 4, 8, 16, 32]),
    "densenet": (lambda: torchvision.models.DenseNet(4, (1, 1, 1, 1), 8, num_classes=5),
                 [*(f"features.denseblock{i}" for i in (1, 2, 3)), "features.norm5"], [12, 10, 9, 8], [4, 8, 16, 32]),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_torchvision_families(name, x):
    make, paths, channels, strides = CASES[name]
    module = make().eval()
    keys = list(module.state_dict())
    levels, scores = caught(module, paths, x)
    model = ziggurat.as_backbone(module, paths, input_size=64)
    assert model.untraced is None
    assert (model.feature_info.channels(), model.feature_info.reduction()) == (channels, strides)
    views = model.extract(x, ("scores", "embedding", "pyramid"))
    assert torch.equal(views["scores"], scores)
    assert views["embedding"].shape == (2, model.head_hidden_size)
    assert torch.equal(model.get_classifier()(views["embedding"]), scores)
    for got, level, c, s in zip(model.forward_intermediates(x, intermediates_only=True), levels, channels, strides):
        assert got.shape == (2, c, 64 // s, 64 // s)
        if level.ndim == 3:
            level = level[:, 1:].unflatten(1, (4, 4))
        assert torch.equal(got, level if level.shape == got.shape else level.permute(0, 3, 1, 2))
    assert list(model.state_dict()) == keys


@torch.no_grad()
def test_a_network_with_other_outputs_in_training(x):
    net = torchvision.models.googlenet(num_classes=5, aux_logits=True, init_weights=False)
    model = ziggurat.as_backbone(net, ["inception3b", "inception4e", "inception5b"]).train()
    assert model.untraced is None
    assert model.feature_info.channels() == [480, 832, 1024]
    assert model(x)._fields == ("logits", "aux_logits2", "aux_logits1")
    assert model.eval()(x).shape == (2, 5)


@torch.no_grad()
def test_timms_models_say_their_levels_themselves(x):
    import timm

    net = timm.create_model("test_resnet", num_classes=7).eval()
    scores, levels = net(x), net.forward_intermediates(x, intermediates_only=True)
    vit = timm.create_model("test_vit", img_size=64).eval()
    wanted = vit.forward_intermediates(x, indices=[3], intermediates_only=True, norm=False)[0]
    model = ziggurat.as_backbone(net)
    assert model.feature_info.module_name() == [level["module"] for level in net.feature_info]
    assert torch.equal(model(x), scores)
    for got, level in zip(model.forward_intermediates(x, intermediates_only=True), levels):
        assert torch.equal(got, level)
    tokens = ziggurat.as_backbone(vit, ["blocks.1", "blocks.3"], input_size=64)
    assert torch.equal(tokens.pyramid(x)[16], wanted)


@torch.no_grad()
@pytest.mark.parametrize("fixed", [False, True])
def test_tokens_become_maps(fixed, x):
    net = Tokens(fixed).eval()
    levels, scores = caught(net, ["blocks.0", "blocks.2"], x)
    model = ziggurat.as_backbone(net, ["blocks.0", "blocks.2"], input_size=64)
    assert model.feature_info.reduction() == [8, 8]
    assert torch.equal(model(x), scores)
    maps = model.forward_intermediates(x, intermediates_only=True)
    for got, level in zip(maps, levels):
        assert torch.equal(got, level[:, 1:].transpose(1, 2).unflatten(2, (8, 8)))
    if not fixed:
        assert model.pyramid(torch.zeros(1, 3, 48, 80))[8].shape == (1, 24, 6, 10)


@torch.no_grad()
def test_a_level_in_nhwc_that_is_overwritten_is_given_as_it_was(x):
    net = Flattens().eval()
    levels, _ = caught(net, ["stem", "mix"], x)
    views = ziggurat.as_backbone(net, ["stem", "mix"]).extract(x, ("scores", "features", "pyramid"))
    assert torch.equal(views["pyramid"][4], levels[1].permute(0, 3, 1, 2))
    assert views["pyramid"][4].min() < 0
    assert views["pyramid"][4].is_contiguous()


@torch.no_grad()
def test_a_network_whose_end_reads_several_levels(x):
    net = UNet().eval()
    scores = net(x)
    model = ziggurat.as_backbone(net, ["down1", "down2", "down3"])
    assert torch.equal(model(x), scores)
    features = model.forward_features(x)
    assert [f.shape[-1] for f in features] == [32, 16, 8]
    assert torch.equal(model.forward_head(features), scores)
    assert list(model.pyramid(x)) == [2, 4, 8]
    decoded = ziggurat.as_backbone(net, ["down1", "down2", "down3", "mix"])
    assert decoded.feature_info.reduction() == [2, 4, 8, 4]
    assert torch.equal(decoded.pyramid(x)[4], caught(net, ["mix"], x)[0][0])
    with pytest.raises(BadArgument, match="UNet does not end in a linear layer"):
        model.embed(x)
    with pytest.raises(BadArgument, match="no classifier"):
        model.reset_classifier(3)


@torch.no_grad()
def test_pooled_output_is_the_embedding_and_scores_never_are(x):
    net = Own().eval()
    net.head = nn.Identity()
    assert torch.equal(ziggurat.as_backbone(net, OWN, input_size=64).embed(x), net(x))
    squeezenet = torchvision.models.squeezenet1_1(num_classes=4).eval()
    model = ziggurat.as_backbone(squeezenet, ["features.2", "features.12"])
    assert model(x).shape == (2, 4)
    with pytest.raises(BadArgument, match="no embedding"):
        model.embed(x)


@torch.no_grad()
def test_scores_inside_a_larger_output(x):
    class Named(Own):
        def forward(self, x, mask=None):
            return {"logits": super().forward(x, mask), "side": x.mean()}

    net = Named().eval()
    model = ziggurat.as_backbone(net, OWN, input_size=64)
    assert torch.equal(model(x)["logits"], net(x)["logits"])
    assert torch.equal(net.head(model.embed(x)), net(x)["logits"])


class Halving(nn.Module):
    """Strided convolutions, padded or not; of one image size, or any."""

    def __init__(self, padding, size):
        super().__init__()
        self.size = size
        self.stages = nn.ModuleList(nn.Conv2d(inside, 4, 3, 2, padding) for inside in (3, 4, 4, 4))

    def forward(self, x):
        if self.size is not None:
            torch._assert(x.shape[2] == self.size, "one size only")
        for stage in self.stages:
            x = stage(x)
        return x


@pytest.mark.parametrize("side", [75, 96, 224, 299])
@pytest.mark.parametrize("padding, fixed", [(0, False), (1, False), (1, True)])
def test_strides_of_convolutions_whose_maps_do_not_divide_the_image(side, padding, fixed):
    net = Halving(padding, side if fixed else None).to("meta")
    model = ziggurat.as_backbone(net, [f"stages.{i}" for i in range(4)], input_size=side)
    assert model.feature_info.reduction() == [2, 4, 8, 16]


@pytest.mark.parametrize("patch", [6, 7, 12, 14, 28])
def test_strides_of_patches(patch):
    net = nn.Sequential(nn.Conv2d(3, 4, patch, patch), nn.Conv2d(4, 4, 1)).to("meta")
    assert ziggurat.as_backbone(net, ["0"]).feature_info.reduction() == [patch]


# -------------------------------------------------------------------- what happens to the module


@pytest.mark.parametrize("kind", [Own, Undecided])
def test_making_a_backbone_leaves_the_module_as_it_was(kind):
    net = kind().train()
    before = copy.deepcopy(net.state_dict())
    attributes = {name: set(vars(part)) for name, part in net.named_modules()}
    model = ziggurat.as_backbone(net, OWN, input_size=32)
    assert all(part.training for part in net.modules())
    assert model.training
    assert {name: set(vars(part)) for name, part in net.named_modules()} == attributes
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values()))
    assert list(model.state_dict()) == list(before)


@pytest.mark.parametrize("kind", [Own, Undecided])
def test_children_may_be_named_as_our_methods_are(kind, x):
    torch.manual_seed(0)
    net = kind(3).eval()
    levels, scores = caught(net, OWN, x)
    model = ziggurat.as_backbone(net, OWN, input_size=64)
    assert (model.untraced is None) is (kind is Own)
    with torch.no_grad():
        assert torch.equal(model(x), scores)
        assert torch.equal(model.embed(x), levels[-1].mean((2, 3)))
        views = model.extract(x, ("scores", "embedding", "pyramid"))
        assert torch.equal(views["scores"], scores)
        for got, level in zip(views["pyramid"].values(), levels):
            assert torch.equal(got, level)
        part = copy.deepcopy(model)
        part.keep_levels((1,))
        assert set(part.state_dict()) == {k for k in net.state_dict() if k.startswith(("scale", "embed", "trunk.0"))}
        assert torch.equal(part(x)[0], levels[1])
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(x), scores)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert torch.equal(model.eval()(x), model.embed(x))
    model.double()
    assert model(x.double()).dtype == torch.float64


class Plain(nn.Module):
    """A user's network whose channels and classes are arguments."""

    def __init__(self, in_chans, num_classes):
        super().__init__()
        self.stem = Block(in_chans, 8)
        self.stages = nn.Sequential(nn.Sequential(Block(8, 12), Block(12, 12)), Block(12, 16))
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, num_classes) if num_classes else nn.Identity()

    def forward(self, x):
        return self.head(self.gap(self.stages(self.stem(x))).flatten(1))


def test_the_contract():
    def create(in_chans=3, num_classes=5, **_):
        return ziggurat.as_backbone(Plain(in_chans, num_classes), ["stem", "stages.0", "stages.1"], input_size=64)

    check_backbone(create, 64, skip={"output_stride", "compile", "export"})


def test_what_cannot_be_traced_says_so(x):
    model = ziggurat.as_backbone(Undecided(), OWN, input_size=64)
    assert "control flow" in model.untraced
    for call in (model.forward_features, model.forward_head, lambda x: model.extract(x, ["features"])):
        with pytest.raises(BadArgument, match="cannot be divided"):
            call(x)
    finished, _ = model.eval().forward_intermediates(x)
    assert torch.equal(model.forward_head(finished), model(x))


def test_a_part_under_no_grad_stays_without_gradients(x):
    class Held(Own):
        def forward(self, x, mask=None):
            with torch.no_grad():
                x = self.embed(x)
            return self.head(self.pool(self.trunk(x)).flatten(1))

    model = ziggurat.as_backbone(Held(), OWN, input_size=64)
    assert "without gradients" in model.untraced
    model(x).sum().backward()
    assert model.get_submodule("embed.conv").weight.grad is None
    assert model.get_submodule("trunk.0.conv").weight.grad is not None


def test_dropout_in_forward_follows_the_mode(x):
    class Drops(Own):
        def forward(self, x, mask=None):
            x = self.pool(self.trunk(self.embed(x * self.scale))).flatten(1)
            return self.head(nn.functional.dropout(x, 0.5, training=self.training))

    model = ziggurat.as_backbone(Drops(), OWN, input_size=64)
    assert model.untraced is None
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_training_checkpointing_freezing_and_groups(x):
    torch.manual_seed(0)
    model = ziggurat.as_backbone(Own(), OWN, input_size=64).train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    assert other.grad_checkpointing
    for net in (model, other):
        torch.manual_seed(1)
        net(x).square().mean().backward()
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters()):
        assert a.grad is not None
        assert torch.allclose(a.grad, b.grad, atol=1e-6), name
    with pytest.raises(BadArgument, match="single layers"):
        ziggurat.as_backbone(Flattens(), ["stem", "mix"], input_size=64).set_grad_checkpointing()
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert groups.keys() == {name for name, _ in model.named_parameters()}
    assert (groups["scale"], groups["embed.conv.weight"], groups["trunk.0.norm.bias"], groups["trunk.1.conv.bias"],
            groups["head.weight"]) == (0, 0, 1, 2, 3)
    model.freeze(upto=1)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == \
        {n for n, _ in model.named_parameters() if n.startswith(("trunk.1", "head"))}
    statistics = model.state_dict()["trunk.0.norm.running_mean"].clone()
    model.train()(x + 5)
    assert torch.equal(model.state_dict()["trunk.0.norm.running_mean"], statistics)


@torch.no_grad()
def test_compile_and_export_with_dynamic_sizes(resnet, x):
    model = ziggurat.as_backbone(resnet, RESNET)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))
    part = model
    part.keep_levels((0, 2))
    for got, wanted in zip(torch.compile(part, fullgraph=True, backend="eager")(x), part(x)):
        assert torch.equal(got, wanted)
    torch._dynamo.reset()
    sides = {0: torch.export.Dim("batch", max=8), 2: torch.export.Dim("height", min=33, max=512),
             3: torch.export.Dim("width", min=33, max=512)}
    program = torch.export.export(part, (x,), dynamic_shapes=(sides,))
    more = torch.randn(3, 3, 96, 70)
    for got, wanted in zip(program.module()(more), part(more)):
        assert torch.allclose(got, wanted, atol=1e-5)


@torch.no_grad()
def test_compile_tokens(x):
    model = ziggurat.as_backbone(Tokens(False).eval(), ["blocks.0", "blocks.2"], input_size=64, features_only=True)
    torch._dynamo.reset()
    for got, wanted in zip(torch.compile(model, fullgraph=True, backend="eager")(x), model(x)):
        assert torch.allclose(got, wanted, atol=1e-6)


# -------------------------------------------------------------------- arguments that cannot work


class Twice(Own):
    def forward(self, x, mask=None):
        return super().forward(x) + super().forward(x)


class Wide(nn.Module):
    """Sees the image through a linear layer over pixels."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(5, 8)

    def forward(self, x):
        return self.mix(x.permute(0, 2, 3, 1))


@pytest.mark.parametrize("net, arguments, said", [
    (Own, dict(levels=["trunk.2"]), "no submodule 'trunk.2'; nearest are trunk.1"),
    (Own, dict(levels=[]), "levels is empty"),
    (Own, dict(levels=["embed", "embed"]), "named twice"),
    (Own, dict(levels=["trunk.0", "embed"]), r"not in the order that they run; give \['embed', 'trunk.0'\]"),
    (Own, dict(levels=["pool"]), "'pool' puts out .* whatever the size"),
    (Own, dict(levels=["head"]), "'head' puts out .* no map"),
    (Own, dict(levels=None), "Own has no feature_info that names its levels, a list of dict"),
    (Own, dict(levels=OWN, layout="NHCW"), "layout='NHCW'"),
    (Own, dict(levels=OWN, layout="NLC"), "layout='NLC': level 'embed' puts out"),
    (Own, dict(levels=OWN, layout="NHWC"), "'embed' is no map of a whole stride"),
    (Own, dict(levels=OWN, out_strides=(4,)), "features_only=True"),
    (Own, dict(levels=OWN, features_only=True, out_strides=(4,), out_indices=(1,)), "not both"),
    (Own, dict(levels=OWN, features_only=True, out_strides=(3,)), r"no level of stride 3; .* strides \[2, 4, 8\]"),
    (Own, dict(levels=OWN, in_chans=4), "does not run on an image of 4 channels"),
    (Twice, dict(levels=OWN), "'embed' is called 2 times"),
    (Wide, dict(levels=["mix"]), "image of 3 or 1 channels and 32 x 32 pixels .* give in_chans"),
    (lambda: Tokens(True), dict(levels=["blocks.0"], input_size=32), "one size only"),
])
def test_arguments_that_cannot_work(net, arguments, said):
    with pytest.raises(BadArgument, match=said):
        ziggurat.as_backbone(net(), **{"input_size": 32, **arguments})


def test_a_level_that_is_never_called():
    net = Own()
    net.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(BadArgument, match="'spare' is never called"):
        ziggurat.as_backbone(net, ["embed", "spare"], input_size=32)


def test_channels_that_no_convolution_tells():
    model = ziggurat.as_backbone(Wide(), ["mix"], in_chans=5, input_size=32)
    assert (model.in_chans, model.feature_info.channels(), model.feature_info.reduction()) == (5, [8], [1])


def test_a_modules_own_list_of_levels_in_mindcvs_words():
    net = Own(1)
    net.feature_info = [dict(chs=12, reduction=4, name="trunk.0"), dict(chs=16, reduction=8, name="trunk.1")]
    model = ziggurat.as_backbone(net, features_only=True, input_size=32)
    assert (model.in_chans, model.feature_info.channels(), model.feature_info.reduction()) == (1, [12, 16], [4, 8])
