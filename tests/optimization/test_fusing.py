"""Folding: the same outputs with fewer layers, for every class of the registry and for networks of anybody's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

import ziggurat
from ziggurat.backbone import Backbone
from ziggurat.errors import BadArgument
from ziggurat.layers.layer_scale import LayerScale, LayerScale2d
from ziggurat.layers.norm_act import BatchNormAct2d, freeze_batch_norm_2d
from ziggurat.layers.std_conv import ScaledStdConv2d, StdConv2d, StdConv2dSame
from ziggurat.optimization.fusing import fold_preprocessing, fused
from ziggurat.registry import catalog
from ziggurat.view import View

LEFT = {
    "cmt_tiny": 19,  # behind activations
    "densenet121": 62,  # behind concatenations
    "halonet_h1": 19,  # behind attention
    "nasnet_a_4x1056": 4,  # behind concatenations
    "pnasnet": 4,
    "repmlp_t224": 13,  # behind sums, read by more than one
    "resnetv2_18": 9,  # behind sums: pre-activation
    "xception41p": 16,
}
"""Batch norms that have no place to go; all others fold."""
SMALLER = {"repmlp_t224": {"partition_size": 32}, "deit_tiny_patch16_224": {"img_size": 64},
           "deit_tiny_distilled_patch16_224": {"img_size": 64}}  # fmt: skip


def representatives() -> list[str]:
    smallest: dict[tuple[str, str], str] = {}
    for name, facts in sorted(catalog().items(), key=lambda item: item[1]["params"]):
        smallest.setdefault((facts["module"], facts["class"]), name)
    return sorted(smallest.values())


def norms(model: nn.Module) -> int:
    return sum(hasattr(module, "running_mean") for module in model.modules())


def drawn(model: nn.Module) -> nn.Module:
    """The model in evaluation with statistics, affine and layer scales that an error in folding cannot hide behind."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
            if hasattr(module, "running_mean") and module.weight is not None:
                module.weight.uniform_(0.4, 0.8)
                module.bias.normal_(0, 0.1)
            for name, parameter in module.named_parameters(recurse=False):
                if name == "gamma":
                    parameter.uniform_(0.5, 1.5)
    return model.eval()


def created(name: str, **arguments: object) -> Backbone:
    return drawn(ziggurat.create_model(name, **{"num_classes": 8} | SMALLER.get(name, {}) | arguments))


def images_of(model: Backbone) -> Tensor:
    fixed = model.architecture == "test_vit"
    return torch.randn(2, 3, *(model.pretrained_cfg["input_size"][1:] if fixed else model.native_size or (64, 64)))


@torch.no_grad()
def assert_same(model: nn.Module, other: nn.Module, images: Tensor, tolerance: float = 1e-5) -> None:
    def outputs(net: nn.Module) -> list[Tensor]:
        if not isinstance(net, Backbone) or net.out_indices is not None:
            return tree_leaves(net(images))
        views = ("scores", "embedding", "pyramid", *(("tokens",) if net.layout == "NLC" else ()))
        return tree_leaves(net.extract(images, views))

    expected, found = outputs(model), outputs(other)
    assert len(expected) == len(found)
    for a, b in zip(expected, found):
        assert (a - b).abs().max() <= tolerance * a.abs().max()


def chain(*layers: nn.Module) -> nn.Module:
    return drawn(nn.Sequential(*layers))


class Net(nn.Module):
    """Parts called as `how` says: (parts, images) to outputs."""

    def __init__(self, how: Callable[..., object], **parts: nn.Module) -> None:
        super().__init__()
        self.how = how
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> object:
        return self.how(self, x)


@pytest.mark.parametrize("name", representatives())
def test_fused_gives_the_same_in_all_views_and_only_norms_without_a_place_are_left(name: str) -> None:
    model = created(name)
    images = images_of(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = fused(model, images)
    assert isinstance(result, type(model)) and not result.training
    assert not any(parameter.requires_grad for parameter in result.parameters())
    assert norms(result) == LEFT.get(name, 0)
    assert_same(model, result, images)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)


# ------------------------------------------------------------------------------------------- layers and norms

LAYERS = {
    "conv": lambda: (nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)),
    "without bias": lambda: (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
    "grouped": lambda: (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
    "reflecting": lambda: (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6)),
    "transposed": lambda: (nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6)),
    "transposed, grouped": lambda: (nn.ConvTranspose2d(4, 6, 3, 2, groups=2, bias=False), nn.BatchNorm2d(6)),
    "without affine": lambda: (nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, affine=False)),
    "frozen": lambda: (nn.Conv2d(4, 6, 1), FrozenBatchNorm2d(6)),
    "frozen with activation": lambda: (nn.Conv2d(4, 6, 1), freeze_batch_norm_2d(BatchNormAct2d(6))),
    "with activation": lambda: (nn.Conv2d(4, 6, 1), BatchNormAct2d(6, act_layer="silu")),
    "with activation and drop": lambda: (nn.Conv2d(4, 6, 1), BatchNormAct2d(6, drop_layer=nn.Dropout)),
    "identity between": lambda: (nn.Conv2d(4, 6, 1), nn.Identity(), nn.Dropout(0.5), nn.BatchNorm2d(6)),
    "two norms": lambda: (nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.BatchNorm2d(6)),
    "layer scale": lambda: (nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), LayerScale2d(6)),
    "before, unpadded": lambda: (nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 2, groups=2, stride=2)),
    "before, without bias": lambda: (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, bias=False)),
    "before and after": lambda: (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)),
    "standardised": lambda: (StdConv2d(4, 6, 3), nn.BatchNorm2d(6)),
    "standardised, padded by size": lambda: (StdConv2dSame(4, 6, 3, stride=2), nn.BatchNorm2d(6)),
    "standardised and scaled": lambda: (ScaledStdConv2d(4, 6, 3, groups=2), nn.ReLU()),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYERS)
def test_a_norm_beside_a_convolution_becomes_part_of_it(case: str) -> None:
    model = chain(*LAYERS[case]())
    images = torch.randn(2, 4, 9, 9)
    result = fused(model, images)
    assert norms(result) == 0
    assert {type(m).__name__ for m in result.modules()} <= {
        "Sequential", "Conv2d", "Conv2dSame", "ConvTranspose2d", "Identity", "Dropout", "ReLU", "SiLU"}  # fmt: skip
    assert_same(model, result, images, 2e-6)
    assert_same(model, result, torch.randn(2, 4, 12, 11), 2e-6)


def test_a_norm_beside_a_linear_layer_becomes_part_of_it() -> None:
    model = chain(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 5, bias=False), LayerScale(5))
    result = fused(model, torch.randn(2, 4))
    assert norms(result) == 0 and isinstance(result[5], nn.Identity)
    assert_same(model, result, torch.randn(3, 4), 2e-6)


STAYS: dict[str, Callable[[], nn.Module]] = {
    "zeros beside a norm": lambda: chain(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)),
    "an activation between": lambda: chain(nn.Conv2d(4, 6, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(6)),
    "channels of tokens are not those of a norm": lambda: drawn(Net(
        lambda net, x: net.bn(net.fc(x.flatten(2).transpose(1, 2))), fc=nn.Linear(4, 49), bn=nn.BatchNorm1d(49))),
    "read by another": lambda: drawn(Net(
        lambda net, x: net.bn(y := net.conv(x)) + y, conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4))),
    "given out": lambda: drawn(Net(
        lambda net, x: (y := net.conv(x), net.bn(y)), conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4))),
    "a weight that is read elsewhere": lambda: drawn(Net(
        lambda net, x: net.bn(net.conv(x)) + net.conv.weight.sum(), conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4))),
    "one norm behind two layers": lambda: drawn(Net(
        lambda net, x: net.bn(net.a(x)) + net.bn(net.b(x)), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4))),
    "a batch's own statistics": lambda: chain(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, track_running_stats=False)),
}  # fmt: skip


@pytest.mark.parametrize("case", STAYS)
def test_a_norm_that_cannot_fold_exactly_stays(case: str) -> None:
    model = STAYS[case]()
    images = torch.randn(2, 4, 7, 7)
    result = fused(model, images)
    assert norms(result) == 1
    assert_same(model, result, images, 0.0)


def test_a_layer_called_twice_folds_where_all_its_calls_agree() -> None:
    conv, a, b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    apart = drawn(Net(lambda net, x: net.a(net.conv(x)) + net.b(net.conv(2 * x)), conv=conv, a=a, b=b))
    together = drawn(Net(lambda net, x: net.a(net.conv(x)) + net.a(net.conv(2 * x)), conv=conv, a=a))
    images = torch.randn(2, 4, 7, 7)
    for model, left in ((apart, 2), (together, 0)):
        result = fused(model, images)
        assert norms(result) == left
        assert_same(model, result, images, 2e-6)


def test_two_layers_of_one_weight_stay() -> None:
    model = drawn(Net(lambda net, x: net.bn(net.a(x)) + net.b(x), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1),
                      bn=nn.BatchNorm2d(4)))  # fmt: skip
    model.b.weight = model.a.weight
    result = fused(model, torch.randn(2, 4, 7, 7))
    assert norms(result) == 1 and result.a.weight is result.b.weight
    assert_same(model, result, torch.randn(2, 4, 7, 7), 0.0)


def test_a_norm_or_layer_with_a_hook_stays() -> None:
    seen: list[Tensor] = []
    for place in (0, 1):
        model = chain(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        model[place].register_forward_hook(lambda module, args, output: seen.append(output))
        assert norms(fused(model, torch.randn(2, 4, 7, 7))) == 1
    assert seen


def test_a_forward_that_branches_on_training_folds_as_it_runs_in_evaluation() -> None:
    model = drawn(Net(lambda net, x: net.conv(x) if net.training else net.bn(net.conv(x)),
                      conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4)))  # fmt: skip
    result = fused(model.train(), torch.randn(2, 4, 7, 7))
    assert model.training and norms(result) == 0
    assert_same(model.eval(), result, torch.randn(2, 4, 7, 7), 2e-6)


def test_low_precision_folds_within_its_rounding() -> None:
    model = created("test_resnet").bfloat16()
    result = fused(model)
    assert norms(result) == 0 and next(result.parameters()).dtype == torch.bfloat16
    assert_same(model, result, torch.randn(2, 3, 64, 64, dtype=torch.bfloat16), 5e-2)


# ------------------------------------------------------------------------------------------- branches


class Branches(nn.Module):
    """Two convolutions side by side, which `fuse` gives as one, as timm's modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)

    def fuse(self) -> nn.Module:
        one = nn.Conv2d(4, 4, 1)
        one.weight.copy_(self.a.weight + self.b.weight)
        one.bias.copy_(self.a.bias + self.b.bias)
        return one


class Untouched(nn.Module):
    """Methods and children that have the names and another meaning."""

    def __init__(self) -> None:
        super().__init__()
        self.reparameterize = nn.Conv2d(4, 4, 1)

    def fuse(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(x, self.reparameterize(x))


def test_modules_fuse_their_branches_and_the_norm_behind_folds_too() -> None:
    model = chain(Branches(), nn.BatchNorm2d(4), Untouched())
    result = fused(model, torch.randn(2, 4, 7, 7))
    assert type(result[0]) is nn.Conv2d and norms(result) == 0
    assert_same(model, result, torch.randn(2, 4, 7, 7), 2e-6)


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "test_convnext"])
def test_families_merge_what_training_kept_apart(name: str) -> None:
    model = created(name)
    result = fused(model, torch.randn(2, 3, 64, 64))
    names = {key.rpartition(".")[2] for key in result.state_dict()}
    assert norms(result) == 0 and names <= {"weight", "bias"}
    assert_same(model, result, torch.randn(2, 3, 64, 64))


def test_branches_with_other_norms_stay() -> None:
    model = created("repvgg_a0", norm_layer="groupnorm1")
    assert_same(model, fused(model, torch.randn(2, 3, 64, 64)), torch.randn(2, 3, 64, 64))


# ------------------------------------------------------------------------------------------- all sorts of backbones

SORTS: dict[str, Callable[[], Backbone]] = {
    "features only": lambda: created("test_resnet", features_only=True, out_strides=(4, 8)),
    "pyramid of one level": lambda: created("test_vit", features_only=True, out_strides=(8, 16), pyramid="simple"),
    "dilated": lambda: created("test_resnet", output_stride=8),
    "stitched": lambda: created("test_efficientnet", output_stride=8, output_stride_mode="stitched"),
    "embedder": lambda: created("test_resnet", num_classes=0),
    "foreign": lambda: ziggurat.as_backbone(drawn(Traced()), ["a", "b"], input_size=64),
    "foreign, not traced": lambda: ziggurat.as_backbone(drawn(Traced(asks=True)), ["a", "b"], input_size=64),
}  # fmt: skip


class Traced(nn.Module):
    """A network of two levels and a classifier; one that `asks` for values cannot be traced."""

    def __init__(self, asks: bool = False) -> None:
        super().__init__()
        self.asks = asks
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.b = nn.Conv2d(8, 16, 3, 2, 1)
        self.bn, self.conv, self.bn2 = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.asks and x.min() < -1:
            x = x - 1
        return self.fc(self.bn2(self.conv(F.relu(self.bn(self.b(x))))).mean((2, 3)))


@pytest.mark.parametrize("case", SORTS)
def test_every_sort_of_backbone_keeps_its_views(case: str) -> None:
    model = SORTS[case]()
    size = 160 if model.architecture == "test_vit" else 64
    result = fused(model, torch.randn(2, 3, size, size))
    assert norms(result) == (1 if "foreign" in case else 0)  # a level, the convolution before a norm, is given out
    assert_same(model, result, torch.randn(2, 3, size, size))


def test_pruned_frozen_and_checkpointed_networks_fold() -> None:
    model = created("test_resnet")
    model.freeze(1)
    model.set_grad_checkpointing()
    result = fused(model, torch.randn(2, 3, 64, 64))
    assert norms(result) == 0 and result.frozen is None and model.frozen is not None
    assert_same(model, result, torch.randn(2, 3, 64, 64))
    model.prune_intermediate_layers((1,))
    result = fused(model, torch.randn(2, 3, 64, 64))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        (a,), (b,) = (net.forward_intermediates(images, (1,), intermediates_only=True) for net in (model, result))
    assert norms(result) == 0 and torch.allclose(a, b, atol=1e-5)


def test_the_copy_is_copied_exported_and_compiled_whole() -> None:
    model, images = created("test_efficientnet"), torch.randn(2, 3, 64, 64)
    result = fused(model, images)
    assert_same(model, copy.deepcopy(result), images)
    exported = torch.export.export(result, (images,)).module()
    compiled = torch.compile(result, fullgraph=True, backend="eager")
    with torch.no_grad():
        for net in (exported, compiled):
            assert torch.allclose(net(images), model(images), atol=1e-5)


def test_what_cannot_be_folded_is_refused_in_a_sentence() -> None:
    with torch.device("meta"):
        nowhere = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(BadArgument, match="meta device and has no weights"):
        fused(nowhere)
    with pytest.raises(BadArgument, match=r"shape \(2, 3, 224, 224\).*give images that it takes as example"):
        fused(nn.Conv2d(5, 4, 1))


# ------------------------------------------------------------------------------------------- preprocessing


@pytest.fixture
def pixels() -> Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "arguments"), [("test_efficientnet", {}), ("tf_efficientnet_lite0", {}), ("deit_tiny_patch16_224", {})]
)
def test_the_first_convolution_divides_by_the_standard_deviation(name: str, arguments: dict, pixels: Tensor) -> None:
    view = View(fused(created(name, **arguments)), "embed", pixels=True)
    result = fold_preprocessing(view)
    assert result is not view and result.std is None and view.std is not None
    changed = [a is not b for a, b in zip(view.parameters(), result.parameters())]
    assert sum(changed) == 1, "one weight changes, the others are shared"
    with torch.no_grad():
        (a,), (b,) = view(pixels), result(pixels)
    assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_preprocessing_that_goes_elsewhere_than_into_a_convolution_stays() -> None:
    shifted = View(created("deit_tiny_patch16_224", output_stride=8), "pyramid", pixels=True)
    floating = View(created("test_resnet"), "embed")
    assert fold_preprocessing(shifted) is shifted and fold_preprocessing(floating) is floating
