"""What code written for timm relies on beside outputs: where tensors live, what stays frozen, what pruning leaves."""

import copy
import fnmatch

import pytest
import torch

import ziggurat as timm

# one architecture a kind of head: pooling beside the classifier, a module with both, a convolution after pooling,
# channel-pruned, tokens, several classifiers
HEADS = [
    "test_resnet",
    "ecaresnet50d_pruned",
    "test_byobnet",
    "test_efficientnet",
    "mobilenetv3_small_050",
    "test_vit",
    "deit_tiny_distilled_patch16_224",
]
# one a kind of trunk: where levels end, and what lies between the last of them and the head, differ
TRUNKS = [
    "test_resnet",
    "test_byobnet",
    "test_efficientnet",
    "mobilenetv3_small_050",
    "test_vit",
    "regnetz_005",
    "ese_vovnet19b_dw",
    "resnetv2_18",
    "legacy_seresnet18",
    "darknet17",
]


def side(model):
    """The side of an image that `model` takes."""
    cfg = model.pretrained_cfg
    return cfg["input_size"][-1] if cfg["fixed_input_size"] else 64


def classifiers(model):
    found = model.get_classifier()
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("name", HEADS)
def test_new_classifier_lives_where_the_model_does(name):
    with torch.device("meta"):
        model = timm.create_model(name).to(torch.float64).eval()
    for num_classes in (0, 3, 2):
        model.reset_classifier(num_classes)
    made = [p for layer in classifiers(model) for p in layer.parameters()]
    assert made
    assert {(p.device.type, p.dtype) for p in made} == {("meta", torch.float64)}
    assert not any(module.training for module in model.modules())


def test_attention_head_classifies_an_unpooled_map():
    with torch.device("meta"):
        model = timm.create_model("resnet50_clip", num_classes=0, global_pool="").eval()
        model.reset_classifier(2)
        x = torch.zeros(1, 3, 224, 224)
    assert model(x).shape == (1, 2, 7, 7)
    model.reset_classifier(2, "token")
    assert model(x).shape == (1, 2)


@pytest.mark.parametrize("name", HEADS)
def test_frozen_model_stays_frozen_without_its_classifier(name):
    model = timm.create_model(name, device="meta").requires_grad_(False)
    model.reset_classifier(0)
    assert not [n for n, p in model.named_parameters() if p.requires_grad]
    model.reset_classifier(5)
    thawed = {n for n, p in model.named_parameters() if p.requires_grad}
    assert thawed == {f"{n}.{p}" for n in model.classifiers for p in ("weight", "bias")}


@pytest.mark.parametrize("name", HEADS)
def test_factory_places_every_tensor(name):
    model = timm.create_model(name, device="meta", dtype=torch.bfloat16)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert {t.device.type for t in tensors.values()} == {"meta"}
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.bfloat16}


@pytest.mark.parametrize("name", HEADS)
def test_dtype_may_change_between_calls(name):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        x = torch.zeros(1, 3, side(model), side(model))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert model.to(dtype)(x.to(dtype)).dtype is dtype


@pytest.mark.parametrize("name", HEADS)
def test_optimizer_contract(name):
    model = timm.create_model(name, device="meta")
    names = [n for n, _ in model.named_parameters()]
    for pattern in model.no_weight_decay():
        first = pattern.partition(".")[0]
        is_optional = getattr(model, first, None) is None  # a token that this variant does without
        assert is_optional or fnmatch.filter(names, pattern), f"{pattern} names no parameter"
    with pytest.raises(TypeError):
        timm.create_model(name, device="meta", no_such_argument=1)


@pytest.mark.parametrize("name", HEADS)
def test_configuration_names_parameters(name):
    model = timm.create_model(name, device="meta")
    for key in ("classifier", "first_conv"):
        paths = model.pretrained_cfg[key]
        for path in (paths,) if isinstance(paths, str) else paths:
            assert f"{path}.weight" in model.state_dict()


@pytest.mark.parametrize("pool", ["avg", "catavgmax"])
@pytest.mark.parametrize("name", ["test_resnet", "ecaresnet50d_pruned", "test_efficientnet", "test_byobnet"])
def test_embedding_width_follows_pooling(name, pool):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0).eval()
        x = torch.zeros(2, 3, 64, 64)
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(7, pool)
    assert model(x).shape == (2, 7)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize("name", TRUNKS)
def test_pruned_trunk_uses_all_it_holds(name):
    torch.manual_seed(0)
    model = timm.create_model(name, drop_rate=0.5).eval()
    x = torch.randn(2, 3, side(model), side(model))
    with torch.no_grad():
        whole = model.forward_intermediates(x, intermediates_only=True)
    last = len(whole) - 1
    for index in sorted({0, last - 1, last}):
        part = copy.deepcopy(model)
        part.prune_intermediate_layers([index], prune_norm=True)
        with torch.no_grad():
            features = part.forward_features(x)
            assert torch.equal(part(x), part(x))
            if index < last and features.ndim == 4:
                torch.testing.assert_close(features, whole[index], rtol=0, atol=0)
        part.train()
        sum(level.sum() for level in part.forward_intermediates(x, indices=[index], intermediates_only=True)).backward()
        idle = [n for n, p in part.named_parameters() if p.grad is None]
        assert not idle, f"pruned to level {index}, {idle[:3]} do nothing"


@pytest.mark.parametrize("name", TRUNKS)
def test_pruned_trunk_takes_a_classifier(name):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        x = torch.zeros(2, 3, side(model), side(model))
    index = len(model.feature_info) - 2
    model.prune_intermediate_layers([index], prune_norm=True)
    model.reset_classifier(7, "avg")
    assert model(x).shape == (2, 7)
    assert model.head_hidden_size == model.feature_info[index]["num_chs"]


@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet", "test_efficientnet", "test_vit"])
def test_symbolic_trace(name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    x = torch.randn(2, 3, side(model), side(model))
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), model(x))
    traced.train()(x).mean().backward()
    assert all(p.grad is not None for p in model.parameters())
