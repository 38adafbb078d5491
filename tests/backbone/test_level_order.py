"""Choosing levels by index and by stride, in every place that takes them: order, negatives, duplicates, errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ziggurat import as_backbone, create_model
from ziggurat.errors import BadArgument, UnsupportedStride

NETS = {"test_resnet": {}, "test_vit": dict(img_size=32)}


@pytest.fixture(scope="module", params=NETS)
def model(request):
    torch.manual_seed(0)
    return create_model(request.param, **NETS[request.param]).eval()


@pytest.fixture(scope="module")
def x():
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def created(model, indices):
    part = create_model(model.architecture, **NETS[model.architecture], features_only=True, out_indices=indices)
    part.load_state_dict(model.state_dict(), strict=False)
    return part.eval()


def kept(model, indices):
    part = create_model(model.architecture, **NETS[model.architecture]).eval()
    part.load_state_dict(model.state_dict())
    part.keep_levels(indices)
    return part


BY_INDEX = {
    "features_only": lambda model, x, indices: created(model, indices)(x),
    "keep_levels": lambda model, x, indices: kept(model, indices)(x),
    "forward_intermediates": lambda model, x, indices: model.forward_intermediates(x, indices, intermediates_only=True),
    "stop_early": lambda model, x, indices: model.forward_intermediates(x, indices, stop_early=True)[1],
    "prune": lambda model, x, indices: pruned(model, x, indices),
}


def pruned(model, x, indices):
    part = kept(model, model_range(model))
    part.out_indices = None
    take = part.prune_intermediate_layers(indices)
    return part.forward_intermediates(x, take, intermediates_only=True)


def model_range(model):
    return tuple(range(len(model.feature_info)))


@torch.no_grad()
@pytest.mark.parametrize("entry", BY_INDEX)
def test_indices_keep_their_order_and_count_from_the_end(model, x, entry):
    levels = model.forward_intermediates(x, intermediates_only=True)
    count = len(levels)
    for indices, wanted in [((2, 0, -1), (2, 0, count - 1)), ([-count], [0]), (2, (count - 2, count - 1)),
                            ((-1, -2), (count - 1, count - 2))]:  # fmt: skip
        got = BY_INDEX[entry](model, x, indices)
        assert len(got) == len(wanted)
        for level, i in zip(got, wanted, strict=True):
            assert torch.equal(level, levels[i]), (indices, i)


@pytest.mark.parametrize("entry", BY_INDEX)
def test_wrong_indices_are_one_sentence(model, x, entry):
    count = len(model.feature_info)
    called = "out_indices" if entry in ("features_only", "keep_levels") else "indices"
    for indices, why in [
        ((1, 1), "names a level twice; name each once"),
        ((0, -count), "names a level twice"),
        ((0, count), f"there is no level {count}; levels are 0 to {count - 1} \\(or -{count} to -1 from the end\\)"),
        ((-count - 1,), f"there is no level -{count + 1}"),
        ((), f"is empty; give some of 0 to {count - 1}"),
        (count + 1, f"asks for the last {count + 1} of {count} levels"),
        (0, f"give 1 to {count}"),
        ((1.5,), "1.5 will not do; a level's index is a whole number"),
        ("12", "'1' will not do"),
    ]:  # fmt: skip
        with pytest.raises(BadArgument, match=f"^{called}[= ].*{why}"):
            BY_INDEX[entry](model, x, indices)


def strided(model, x, strides):
    part = create_model("test_resnet", features_only=True, out_strides=strides)
    part.load_state_dict(model.state_dict(), strict=False)
    return dict(zip(part.feature_info.reduction(), part.eval()(x), strict=True))


BY_STRIDE = {
    "out_strides": strided,
    "pyramid": lambda model, x, strides: model.pyramid(x, strides),
    "extract": lambda model, x, strides: model.extract(x, ("embedding", "pyramid"), strides=strides)["pyramid"],
}


@torch.no_grad()
@pytest.mark.parametrize("entry", BY_STRIDE)
def test_strides_keep_their_order(x, entry):
    torch.manual_seed(0)
    model = create_model("test_resnet").eval()
    levels = model.forward_intermediates(x, intermediates_only=True)
    reductions = model.feature_info.reduction()
    for strides in ((16, 4), (32,), 8):
        got = BY_STRIDE[entry](model, x, strides)
        assert list(got) == ([strides] if isinstance(strides, int) else list(strides))
        for stride, level in got.items():
            deepest = max(i for i, reduction in enumerate(reductions) if reduction == stride)
            assert torch.equal(level, levels[deepest])
    called = "out_strides" if entry == "out_strides" else "strides"
    for strides, why in [((4, 4), "names a stride twice"), ((), "is empty; give some of"), (("8",), "'8' will not do")]:
        with pytest.raises(BadArgument, match=f"^{called}[= ].*{why}"):
            BY_STRIDE[entry](model, x, strides)
    with pytest.raises(UnsupportedStride, match=rf"^{called}=\[7\]: there is no level of stride 7; .* \[2, 4, 8"):
        BY_STRIDE[entry](model, x, 7)


@torch.no_grad()
def test_the_deepest_level_of_a_stride_whatever_the_order(x):
    part = create_model("test_vit", img_size=32, features_only=True, out_indices=(3, 1)).eval()
    deep, shallow = part(x)
    (got,) = part.pyramid(x).values()
    assert torch.equal(got, deep)
    assert not torch.equal(got, shallow)


def test_indices_and_strides_exclude_each_other():
    for arguments, why in [
        (dict(features_only=True, out_indices=(0,), out_strides=(4,)), "give out_indices or out_strides, not both"),
        (dict(out_indices=(0,)), "choose the levels of features_only=True"),
        (dict(out_strides=(4,)), "choose the levels of features_only=True"),
    ]:
        with pytest.raises(BadArgument, match=why):
            create_model("test_resnet", **arguments)


@torch.no_grad()
def test_foreign_networks_choose_alike(x):
    def convolutions():
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Conv2d(4 if i else 3, 4, 3, stride=2, padding=1) for i in range(4)))

    paths = ["0", "1", "2", "3"]
    levels = as_backbone(convolutions(), paths).eval().forward_intermediates(x, intermediates_only=True)
    part = as_backbone(convolutions(), paths, features_only=True, out_indices=(2, -4)).eval()
    for got, wanted in zip(part(x), (levels[2], levels[0]), strict=True):
        assert torch.equal(got, wanted)
    with pytest.raises(BadArgument, match="names a level twice"):
        as_backbone(convolutions(), paths, features_only=True, out_indices=(1, -3))
    with pytest.raises(UnsupportedStride, match="no level of stride 3"):
        as_backbone(convolutions(), paths, features_only=True, out_strides=(3,))


@pytest.mark.parametrize("name", ["resnet10t", "test_convnext", "rexnet_090", "squeezenet1_1", "test_vit"])
def test_a_features_only_model_is_cut_again(name):
    model = create_model(name, features_only=True).eval()
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        wanted = model.forward_intermediates(x, indices=[1, 0], intermediates_only=True)
        assert model.prune_intermediate_layers([1, 0]) == (1, 0)
        assert all(map(torch.equal, model(x), wanted))
    assert len(model.feature_info.channels()) == 2
    with pytest.raises(BadArgument, match="features-only model gives maps and has no classifier"):
        model.reset_classifier(5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_levels_that_were_removed_cannot_be_kept(name):
    model = create_model(name, features_only=True, out_indices=(1,), device="meta")
    with pytest.raises(BadArgument, match=r"out_indices=\(2,\): level 2 was pruned; levels 0 to 1 are left"):
        model.keep_levels((2,))
