"""State dicts fitted to models: channels, classes, names, and the message where they do not fit."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from timm.models import adapt_input_conv as timm_adapt_input_conv
from torch import nn

from ziggurat.errors import BadArgument, CheckpointMismatch
from ziggurat.weights.adapting import adapt_input_conv, adapt_state_dict, by_order, mismatch
from ziggurat.weights.loading import load_weights
from ziggurat.weights.pretrained import PretrainedCfg


class Toy(nn.Module):
    """A stem, a stage of two blocks with normalisation, and a classifier."""

    def __init__(self, in_chans=3, num_classes=4):
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Conv2d(in_chans, 6, 3)
        self.layer1 = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
        self.fc = nn.Linear(6, num_classes) if num_classes else nn.Identity()


CFG = PretrainedCfg(first_conv="stem", classifier="fc", num_classes=4)


def shapes(model):
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("base, channels", [(3, 3), (3, 12), (13, 13)])
@pytest.mark.parametrize("in_chans", [1, 2, 3, 4, 7, 26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_input_conv_is_timms(base, channels, in_chans, dtype):
    weight = torch.randn(5, channels, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    if channels != base and in_chans not in (1, base):
        # space to depth, which timm refuses: the channels of each of the four pixels as if they were alone
        alone = [adapt_input_conv(in_chans, pixel) for pixel in weight.chunk(channels // base, dim=1)]
        assert torch.equal(adapt_input_conv(in_chans, weight), torch.cat(alone, dim=1))
        return
    got, expected = (f(in_chans, weight, base_chans=base) for f in (adapt_input_conv, timm_adapt_input_conv))
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, rtol=1e-6 if dtype == torch.float32 else 0, atol=0)


def test_input_conv_keeps_double_precision_and_refuses_what_is_no_convolution():
    weight = torch.randn(2, 3, 1, 1, dtype=torch.float64)
    assert torch.equal(adapt_input_conv(1, weight), weight.sum(1, keepdim=True))
    with pytest.raises(NotImplementedError, match="2 dimensions"):
        adapt_input_conv(1, torch.ones(2, 3))
    for pair in [(0, 3), (3, 0), (-1, 3)]:
        with pytest.raises(BadArgument, match="positive"):
            adapt_input_conv(pair[0], weight, base_chans=pair[1])


def test_a_fitting_checkpoint_is_shared_not_copied():
    source = Toy().state_dict()
    fitted = adapt_state_dict(Toy(), source, CFG)
    assert list(fitted) == list(source)
    assert all(fitted[name] is source[name] for name in source)


def test_other_channels_refit_the_stem_and_leave_the_checkpoint_alone():
    source = Toy().state_dict()
    before = source["stem.weight"].clone()
    fitted = adapt_state_dict(Toy(in_chans=5), source, CFG)
    assert torch.equal(fitted["stem.weight"], adapt_input_conv(5, before))
    assert source["stem.weight"].shape == before.shape


def test_input_size_states_the_channels_of_the_pretraining():
    cfg = PretrainedCfg(first_conv="stem", input_size=(13, 8, 8))
    source = Toy(in_chans=13).state_dict()
    expected = adapt_input_conv(2, source["stem.weight"], base_chans=13)
    assert torch.equal(adapt_state_dict(Toy(in_chans=2), source, cfg)["stem.weight"], expected)
    with pytest.raises(CheckpointMismatch, match="input_size"):
        adapt_state_dict(Toy(in_chans=2), source, CFG)
    with pytest.raises(CheckpointMismatch, match="input_size"):
        adapt_state_dict(Toy(in_chans=3), source, CFG)


def test_an_input_that_cannot_be_refitted_is_an_error():
    class Patches(nn.Module):
        def __init__(self, in_chans, pixels=4):
            super().__init__()
            self.in_chans = in_chans
            self.stem = nn.Linear(pixels * in_chans, 2)

    weights = Patches(3).state_dict()
    with pytest.raises(CheckpointMismatch, match="by pixel or by channel is not known; set its attribute channels_last"):
        adapt_state_dict(Patches(4), weights, CFG)
    model = Patches(4)
    for last in (True, False):
        model.stem.channels_last = last
        got = adapt_state_dict(model, weights, CFG)["stem.weight"]
        kernel = weights["stem.weight"].unflatten(1, (4, 3) if last else (3, 4))
        kernel = kernel.movedim(2, 1) if last else kernel
        wanted = kernel[:, [0, 1, 2, 0]] * 0.75
        assert torch.equal(got, (wanted.movedim(1, 2) if last else wanted).flatten(1))
    grouped = nn.Module()
    grouped.in_chans = 6
    grouped.stem = nn.Conv2d(6, 6, 3, groups=6)
    with pytest.raises(CheckpointMismatch, match="1 missing: stem.weight|another shape|not one for 3"):
        load_weights(grouped, nn.ModuleDict({"stem": nn.Conv2d(3, 3, 3, groups=3)}).state_dict(), CFG)


def test_the_classifier_is_left_out_for_other_classes_only():
    source = Toy().state_dict()
    without = [name for name in source if not name.startswith("fc.")]
    assert list(adapt_state_dict(Toy(num_classes=7), source, CFG)) == without
    assert list(adapt_state_dict(Toy(num_classes=0), source, CFG)) == without
    assert list(adapt_state_dict(Toy(), source, CFG)) == list(source)
    # a fine-tuned checkpoint under the configuration that it began with
    tuned = Toy(num_classes=7).state_dict()
    assert list(adapt_state_dict(Toy(num_classes=7), tuned, CFG)) == list(tuned)
    forced = PretrainedCfg(first_conv="stem", classifier="fc", num_classes=-1)
    assert list(adapt_state_dict(Toy(), source, forced)) == without


def test_background_classes_are_cut_off():
    source = Toy(num_classes=5).state_dict()
    cfg = PretrainedCfg(first_conv="stem", classifier="fc", num_classes=4, label_offset=1)
    fitted = adapt_state_dict(Toy(), source, cfg)
    assert torch.equal(fitted["fc.weight"], source["fc.weight"][1:])
    assert torch.equal(fitted["fc.bias"], source["fc.bias"][1:])


def test_the_models_own_renaming_comes_in():
    class Renaming(Toy):
        def remap_checkpoint(self, state_dict):
            return {name.replace("embed", "stem"): tensor for name, tensor in state_dict.items()}

    source = {name.replace("stem", "embed"): tensor for name, tensor in Toy().state_dict().items()}
    assert mismatch(shapes(Renaming()), adapt_state_dict(Renaming(), source, CFG)) is None


@pytest.mark.parametrize("prefix", ["model.", "body."])
def test_an_outer_prefix_is_removed(prefix):
    source = {prefix + name: tensor for name, tensor in Toy().state_dict().items()}
    assert mismatch(shapes(Toy()), adapt_state_dict(Toy(), source, CFG)) is None


@pytest.mark.parametrize(
    "name, wrapper", [("resnet18", {}), ("convnext_atto", {}), ("convnext_atto", {"feature_cls": "getter"})]
)
def test_timms_feature_wrappers_are_understood(name, wrapper):
    with torch.device("meta"):
        whole = timm.create_model(name)
        part = timm.create_model(name, features_only=True, **wrapper)
    fitted = adapt_state_dict(whole, part.state_dict(), PretrainedCfg())
    assert fitted.keys() < whole.state_dict().keys()
    assert len(fitted) == len(part.state_dict())


def test_by_order_checks_every_shape_and_minds_counters():
    own = Toy().state_dict()
    renamed = {f"net{name}": tensor for name, tensor in own.items()}
    assert [t is s for t, s in zip(by_order(own, renamed).values(), own.values(), strict=True)] == [True] * len(own)
    uncounted = {name: t for name, t in own.items() if not name.endswith("num_batches_tracked")}
    assert list(by_order(own, {f"t{i}": t for i, t in enumerate(uncounted.values())})) == list(uncounted)
    swapped = dict(reversed(renamed.items()))
    with pytest.raises(CheckpointMismatch, match="matched by their order"):
        by_order(own, swapped)
    with pytest.raises(CheckpointMismatch, match="8 tensors"):
        by_order(own, dict(list(renamed.items())[:8]))
    more = renamed | {"more.weight": torch.ones(1)}
    with pytest.raises(CheckpointMismatch, match="12 tensors"):
        by_order(own, more)
    assert list(by_order(own, more, part=True)) == list(own)


def test_no_sentence_where_nothing_differs():
    state_dict = Toy().state_dict()
    assert mismatch(shapes(Toy()), state_dict) is None
    del state_dict["layer1.1.num_batches_tracked"]
    assert mismatch(shapes(Toy()), state_dict) is None


def test_the_sentence_shows_ten_names_a_kind_grouped():
    expected = {f"a.{i}.{leaf}": (2, 2) for i in range(9) for leaf in ("weight", "bias")}
    given = {f"b.{i}.weight": torch.ones(1) for i in range(11)}
    sentence = mismatch(expected, given)
    assert "18 missing: a.0.{weight, bias}, a.1.{weight, bias}" in sentence
    assert "a.4.{weight, bias}, and 8 more" in sentence
    assert "a.5." not in sentence
    assert "11 unexpected: b.0.weight" in sentence
    assert "b.9.weight, and 1 more" in sentence
    wrong = mismatch({"fc.weight": (5, 6)}, {"fc.weight": torch.ones(4, 6)})
    assert "1 of another shape: fc.weight (4, 6) where the model has (5, 6)" in wrong


@pytest.mark.parametrize(
    "names, origin",
    [
        (["model", "optimizer", "epoch"], "a DeiT training checkpoint"),
        (["_conv_stem.weight"], "efficientnet_pytorch"),
        (["embeddings.cls_token"], "Hugging Face transformers"),
        (["visual.conv1.weight"], "OpenCLIP"),
        (["student.blocks.0.norm1.weight"], "DINO"),
        (["encoder_q.conv1.weight"], "MoCo"),
        (["backbone.conv1.weight"], "detector's"),
        (["Transformer/encoder_norm/bias"], "JAX"),
        (["bn1.moving_mean", "bn1.moving_variance"], "MindSpore's names: create_model's auto_mapping=True pairs"),
        (["stages_0.blocks.0.weight"], "features_only checkpoint of timm"),
        (["something.else"], "Choose the architecture"),
    ],
)
def test_the_sentence_guesses_the_origin(names, origin):
    given = {name: torch.ones(1) for name in names}
    assert origin in mismatch({"stem.weight": (1,)}, given)


@pytest.mark.parametrize("build", ["vit_b_16", "mobilenet_v2", "regnet_y_400mf"])
def test_torchvisions_checkpoints_are_recognised(build):
    with torch.device("cpu" if build.startswith("regnet") else "meta"):  # regnet computes widths with tensors
        theirs = getattr(torchvision.models, build)().state_dict()
    with torch.device("meta"):
        ours = timm.create_model("resnet18")
    assert "a torchvision checkpoint" in mismatch(shapes(ours), theirs)


def test_other_classes_are_recognised():
    assert "build the model with num_classes=7" in mismatch(shapes(Toy()), Toy(num_classes=7).state_dict())
    assert "sized variant" in mismatch(shapes(Toy()), {**Toy().state_dict(), "stem.weight": torch.ones(6, 4, 3, 3)})


def test_a_pruned_models_checkpoint_is_recognised():
    state_dict = Toy().state_dict()
    part = {name: tensor for name, tensor in state_dict.items() if not name.startswith("fc.")}
    sentence = mismatch(shapes(Toy()), part)
    assert "of a features_only model with fewer levels" in sentence and "or was cut off (fetch it again)" in sentence


@pytest.mark.parametrize("held", [
    ["gamma"], ["weight", "bias", "moving_mean"], ["moving_variance", "weight", "bias"], ["running_mean", "running_var"],
])  # fmt: skip
@pytest.mark.parametrize("is_surplus", [False, True])
def test_half_a_normalisation_is_a_damaged_file(held, is_surplus):
    state_dict = Toy().state_dict()
    given = {name: tensor for name, tensor in state_dict.items() if not name.startswith("layer1.1.")}
    given |= {f"layer1.1.{leaf}": state_dict["layer1.1.bias"] for leaf in held}
    surplus = [name for name in given if name not in state_dict] if is_surplus else []
    given = {name: tensor for name, tensor in given.items() if name not in surplus}
    assert "Of the normalisation layer1.1 the checkpoint has one half: it was cut off or damaged" in mismatch(
        shapes(Toy()), given, surplus)


def test_nothing_in_the_file():
    assert "It fills 0 of the model's 10: 10 missing" in mismatch(shapes(Toy()), {})
    assert mismatch(shapes(Toy()), {}).endswith("It holds no tensor of a network.")


def test_what_a_pyramid_may_lack_is_named_where_little_fits():
    state_dict = Toy().state_dict()
    sentence = mismatch(shapes(Toy()), {}, ["foo"])
    assert "1 unexpected: foo" in sentence and "auto_mapping=True pairs them" in sentence
    most = {name: tensor for name, tensor in state_dict.items() if name != "stem.weight"}
    assert "unexpected" not in mismatch(shapes(Toy()), most, ["foo"])
    assert mismatch(shapes(Toy()), state_dict, ["foo"]) is None
