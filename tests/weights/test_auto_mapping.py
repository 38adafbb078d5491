"""auto_mapping: tensors paired by name, shape and order together, and refused where these do not decide."""

import itertools
import random
import re

import pytest
import torch
from torch import nn

import ziggurat
from ziggurat.errors import CheckpointMismatch
from ziggurat.weights.auto_mapping import pair
from ziggurat.weights.loading import load_weights

A, B, C = (8, 4, 3, 3), (4, 8, 1, 1), (8,)  # shapes
NORM = ("weight", "bias", "running_mean", "running_var")


def shapes(**layers):
    """`a_0="AC"` as the weight of shape A and the bias of shape C of the layer `a.0`; N is a normalisation."""
    found = {}
    for name, kinds in layers.items():
        path = name.replace("_", ".")
        if kinds == "N":
            found |= {f"{path}.{leaf}": C for leaf in NORM}
        else:
            found |= {f"{path}.{leaf}": globals()[kind] for kind, leaf in zip(kinds, ("weight", "bias"))}
    return found


def renamed(own, *steps):
    """Shapes under other names, and which of them is which."""
    truth = {}
    for name in own:
        other = name
        for pattern, instead in steps:
            other = re.sub(pattern, instead, other)
        truth[other] = name
    assert len(truth) == len(own)
    return {other: own[name] for other, name in truth.items()}, truth


@pytest.fixture(scope="module")
def resnet():
    with torch.device("meta"):
        model = ziggurat.create_model("resnet50", layers=(2, 2, 3, 2))
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def vit():
    with torch.device("meta"):
        model = ziggurat.create_model("test_vit")
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


ELSEWHERE = {
    "prefix": [(r"^", "net.backbone.")],
    "no dots": [(r"\.", "_")],
    "flattened": [(r"^layer(\d)\.(\d)\.", r"layer\1_\2.")],
    "mindspore": [(r"(bn\d|downsample\.1)\.weight", r"\1.gamma"), (r"(bn\d|downsample\.1)\.bias", r"\1.beta"),
                  ("running_mean", "moving_mean"), ("running_var", "moving_variance")],
    "systematic": [(r"bn(\d)", r"norm\1"), (r"conv(\d)", r"c\1"), ("downsample", "shortcut"), ("layer", "stages.")],
    "counted from 0": [(r"layer(\d)", lambda m: f"stage{int(m[1]) - 1}")],
    "counted on": [(r"layer(\d)", lambda m: f"layer{int(m[1]) + 1}")],
}  # fmt: skip


@pytest.mark.parametrize("way", ELSEWHERE)
@pytest.mark.parametrize("order", ["of the network", "of the alphabet"])
def test_names_of_other_people(way, order, resnet):
    theirs, truth = renamed(resnet, *ELSEWHERE[way])
    if order == "of the alphabet":
        theirs = dict(sorted(theirs.items()))
    assert pair(resnet, theirs) == truth


def test_attention_under_other_names(vit):
    steps = [("blocks", "encoder.layer"), (r"attn\.qkv\.(weight|bias)", r"attn.qkv_\1"), (r"norm(\d)\.weight", r"ln_\1.scale"),
             (r"norm(\d)", r"ln_\1"), ("cls_token", "class_token")]  # fmt: skip
    theirs, truth = renamed(vit, *steps)
    assert pair(vit, theirs) == truth


def test_names_decide_whatever_the_order():
    own = shapes(conv1="A", conv2="A", conv3="A")
    theirs, truth = renamed(own, ("conv", "layer.c"))
    items = list(theirs.items())
    for other in ([2, 0, 1], [1, 0, 2], [2, 1, 0]):
        assert pair(own, dict(items[i] for i in other)) == truth
    own = shapes(q="A", k="A", v="A")
    assert pair(own, shapes(value="A", query="A", key="A")) == {"query.weight": "q.weight", "key.weight": "k.weight",
                                                                "value.weight": "v.weight"}  # fmt: skip
    own = shapes(stage_left="A", stage_right="A")
    assert pair(own, shapes(x_right="A", x_left="A")) == {"x.right.weight": "stage.right.weight",
                                                          "x.left.weight": "stage.left.weight"}  # fmt: skip


def test_other_numbers_in_the_same_order():
    own = shapes(stages_0_0="A", stages_0_1="B", stages_1_0="A", stages_1_1="B")
    theirs = shapes(net_2="A", net_5="B", net_10="A", net_11="B")
    expected = dict(zip(theirs, own))
    assert pair(own, theirs) == expected
    assert pair(own, dict(sorted(theirs.items()))) == expected, "an alphabetical file, where 10 comes before 2"


def test_words_that_stand_for_others_are_learnt():
    own = shapes(bn1="N", conv="A", blocks_0_bn1="N", blocks_0_fc="B")
    theirs = shapes(norm1="N", conv="A", layers_0_norm1="N", layers_0_fc="B")
    assert pair(own, theirs) == dict(zip(theirs, own))


REFUSED = {
    "equal shapes, names that say nothing": (dict(left="A", right="A"), dict(x="A", y="A"), "which of the checkpoint's x.weight, y"),
    "permuted, names that say nothing": (dict(left="A", right="A"), dict(y="A", x="A"), "which is which|neither names"),
    "a layer missing": (dict(a_0="A", a_1="A", a_2="A"), dict(b_0="A", b_2="A"), "neither names|1 of the model's 3 tensors have no pair"),
    "a bias missing": (dict(a="AC", b="B"), dict(c="A", b="B"), r"2 of the model's 3 tensors have no pair in the checkpoint: a\.weight"),
    "another shape": (dict(a="A"), dict(b="B"), r"1 of the .* a\.weight \(8, 4, 3, 3\)\. Left over in it: b\.weight"),
    "two networks": (dict(a="A", b="B"), dict(x_a="A", x_b="B", y_a="A", y_b="B"), "one network twice, under x and under y"),
    "itself and another": (dict(m_a="A", m_b="B"), dict(a="A", b="B", y_a="A", y_b="B"), "under no prefix and under y"),
    "numbers shifted in part": (dict(a_0="A", a_1="A", a_2="A"), dict(a_0="A", a_1="A", a_3="A"),
                                r"only the model has a\.2\.weight, only the checkpoint has a\.3\.weight"),
    "numbers against the file's order": (dict(a_0="A", a_1="A", a_2="A"), dict(b_3="A", b_9="A", b_5="A"), "neither names"),
    "more of a shape than the model has": (dict(stem="A"), dict(b_0="A", b_1="A"), "neither names"),
    "a stray from another depth": (
        dict(a_0="A", a_1="B", a_2="AC", a_3="N", z="C"), dict(b_0="A", b_1="B", b_2="AC", b_7="N", z="C"), "would be the model's a.3.weight"),
    "counted anew, or an addition": (dict(conv1="A", conv2="A", shortcut="A"), dict(conv1="A", conv2="A", conv3="A"), "by its shape alone"),
    "the same, in a block": (dict(b_conv1="A", b_x="A"), dict(b_conv1="A", b_conv2="A"), "is it b.conv1.weight"),
}  # fmt: skip


def grid(name, *ranges):
    """Layers of one shape: "a{}.b{}" with every number of each range."""
    return {f"{name.format(*numbers)}.weight": A for numbers in itertools.product(*ranges)}


GRIDS = {
    "2 of 3, and 3 of 2": (grid("stages.{}.fcs.{}", range(3), range(2)), grid("w.{}.{}", range(2), range(3))),
    "words that have each other's numbers": (grid("blocks.{}.fcs.{}", range(2), range(2)), grid("fcs.{}.blocks.{}", range(2), range(2))),
    "a word that has the other's number": (grid("blocks.{}.fcs.{}", range(2), range(2)), grid("fcs.{}.{}", range(2), range(2))),
    "no word in common": (grid("blocks.{}.fc{}", range(2), range(1, 3)), grid("fcs.{}.{}", range(2), range(2))),
    "3 of 2 of 3": (grid("a{}.b{}.c{}", range(3), range(2), range(3)), grid("x{}.y{}.z{}", range(3), range(2), range(3))),
    "two words, and the number of each is another's": (
        {f"a.{i}.{word}.{j}.weight": A for word in ("unit", "fcs") for i in range(2) for j in range(2)},
        {f"{word}.{i}.{j}.weight": A for word in ("unit", "fcs") for i in range(2) for j in range(2)}),
    "not every number": ({"s.0.f.1.weight": A, "s.1.f.0.weight": A}, {"w.0.1.weight": A, "w.1.0.weight": A}),
}  # fmt: skip


@pytest.mark.parametrize("case", GRIDS)
@pytest.mark.parametrize("head", ["a", "z"])
def test_numbers_that_could_be_transposed(case, head):
    own, theirs = GRIDS[case]
    for extra in ({}, {f"{head}.bias": C, f"{head}.weight": B}):  # a file in the order of the alphabet, and one that is not
        with pytest.raises(CheckpointMismatch, match="^auto_mapping: which of"):
            pair(own | extra, theirs | extra)


def test_numbers_that_nest_alike():
    own = grid("stages.{}.fcs.{}", range(3), range(2))
    others = [grid("w.{}.{}", range(3), range(2)), grid("w.{}.{}", range(1, 4), range(4, 6)), grid("stages.{}.f{}", range(3), (3, 5)),
              {f"stages.{i}.{2 * i + j}.weight": A for i in range(3) for j in range(2)}, grid("w.{}", range(6))]  # fmt: skip
    for theirs in others:
        assert pair(own, theirs) == dict(zip(theirs, own))
        assert pair(theirs, own) == dict(zip(own, theirs))
    own, theirs = grid("blocks.{}.fcs.{}", range(2), range(2)), grid("x.blocks.{}.l{}", range(2), range(2))
    assert pair(own, theirs) == dict(zip(theirs, own)), "a word says which number is which"
    own, theirs = ({name.format(i, j): shape for i in range(2) for j in range(2) for name, shape in layers.items()}
                   for layers in ({"s.{}.f.{}.weight": A, "s.{}.n.{}.bias": C}, {"u.{}.{}.weight": A, "v.{}.{}.bias": C}))  # fmt: skip
    assert pair(own, theirs) == dict(zip(theirs, own)), "other layers come between"
    with pytest.raises(CheckpointMismatch, match="which of"):
        pair(own, dict(sorted(theirs.items())))


def test_leaves_under_other_names():
    own = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (5, 4), "b.bias": (5,)}
    for theirs in (["p0", "p1", "p2", "p3"], ["linear_0.w_0", "linear_0.b_0", "linear_1.w_0", "linear_1.b_0"]):
        assert pair(own, dict(zip(theirs, own.values()))) == dict(zip(theirs, own))
    with pytest.raises(CheckpointMismatch, match="4 of the model's 4 tensors have no pair"):
        pair(own, {"p0": (4, 3, 1), "p1": (4, 1), "p2": (5, 4, 1), "p3": (5, 1)})
    with pytest.raises(CheckpointMismatch, match="have no pair"):
        pair({"a.weight": C}, {"b.bias": C})
    with pytest.raises(CheckpointMismatch, match=r"2 of the model's 2 tensors have no pair.* Left over in it: p0 \(8"):
        pair({"a.weight": A, "b.weight": A}, {"p0": A, "p1": A})


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    own, theirs, said = REFUSED[case]
    with pytest.raises(CheckpointMismatch, match=rf"^auto_mapping: .*({said})"):
        pair(shapes(**own), shapes(**theirs))


def test_never_wrong(resnet):
    """Names and order changed at random, and damage done: right or refused; refused where something is missing."""
    chance = random.Random(0)
    words = ["layer", "conv", "bn", "downsample", "fc"]
    outcomes = []
    for trial in range(40):
        other = chance.sample(["block", "unit", "c", "left", "net", "mix", "s", "z"], 5)
        steps = [(rf"\b{word}", new) for word, new in zip(words, other) if chance.random() < 0.5]
        theirs, truth = renamed(resnet, *steps, (r"^", chance.choice(["", "module.", "a.b."])))
        items = list(theirs.items())
        damage = ("none", "shuffled", "missing", "two", "extra")[trial % 5]
        if damage == "shuffled":
            chance.shuffle(items)
        elif damage == "missing":
            items.pop(chance.randrange(len(items)))
        elif damage == "two":
            items += [(f"copy.{name}", shape) for name, shape in items]
        elif damage == "extra":
            items += [(f"aux.{name}", shape) for name, shape in chance.sample(items, 3)]
        try:
            found = pair(resnet, dict(items))
        except CheckpointMismatch:
            outcomes.append((damage, False))
        else:
            assert found == truth, (trial, damage)
            outcomes.append((damage, True))
    assert ("missing", True) not in outcomes
    assert outcomes.count(("none", True)) == 8
    assert outcomes.count(("extra", True)) > 4 and outcomes.count(("shuffled", True)) > 2


# ------------------------------------------------------------------- from a file into a model


def saved(model, path, *steps):
    state_dict = model.state_dict()
    theirs, truth = renamed({name: tuple(t.shape) for name, t in state_dict.items()}, *steps)
    torch.save({name: state_dict[truth[name]] for name in theirs}, path)


def test_a_checkpoint_under_other_names(tmp_path, capsys):
    model = ziggurat.create_model("test_resnet")
    nn.init.constant_(model.layer1[0].bn1.num_batches_tracked, 7)
    steps = [("layer", "stages."), (r"\bbn(\d)", r"norm\1"), (r"^", "net.")]
    saved(model, tmp_path / "x.pth", *steps)
    with pytest.raises(CheckpointMismatch, match=r"It fills 0 of the model's \d+"):
        ziggurat.create_model("test_resnet", checkpoint_path=tmp_path / "x.pth")
    capsys.readouterr()
    got = ziggurat.create_model("test_resnet", checkpoint_path=tmp_path / "x.pth", auto_mapping=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(got.state_dict()[name], tensor), name
    lines = capsys.readouterr().out.splitlines()
    assert "auto_mapping: net.fc.* -> fc.* (2 tensors)" in lines
    assert len(lines) < len(model.state_dict())
    flat = {name.replace(".", "_"): tensor for name, tensor in model.state_dict().items()}
    again = ziggurat.create_model("test_resnet")
    load_weights(again, flat, auto_mapping=True)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    part = ziggurat.create_model("test_resnet", features_only=True, out_strides=(4, 8), in_chans=1, in_chans_from="mean",
                                 checkpoint_path=tmp_path / "x.pth", auto_mapping=True)  # fmt: skip
    assert torch.equal(part.layer2[0].conv1.weight, model.layer2[0].conv1.weight)
    other = ziggurat.create_model("test_resnet", num_classes=3, checkpoint_path=tmp_path / "x.pth", auto_mapping=True)
    assert other.fc.weight.shape[0] == 3 and torch.equal(other.layer1[0].bn1.weight, model.layer1[0].bn1.weight)
    torch.save({**torch.load(tmp_path / "x.pth", weights_only=True), "aux.z": torch.ones(3)}, tmp_path / "more.pth")
    with pytest.raises(CheckpointMismatch, match="unexpected: aux"):
        ziggurat.create_model("test_resnet", checkpoint_path=tmp_path / "more.pth", auto_mapping=True)


def test_names_that_are_the_models_are_left_alone(tmp_path, capsys):
    model = ziggurat.create_model("test_resnet")
    torch.save(model.state_dict(), tmp_path / "x.pth")
    got = ziggurat.create_model("test_resnet", checkpoint_path=tmp_path / "x.pth", auto_mapping=True)
    assert torch.equal(got.conv1[0].weight, model.conv1[0].weight)
    assert capsys.readouterr().out == ""


def test_flattened_as_mindcv_saves_it(capsys):
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))))
    flat = {name.replace(".", "_", 1): torch.rand(tensor.shape) for name, tensor in model.state_dict().items() if tensor.ndim}
    load_weights(model, flat, dict(classifier=None), auto_mapping=True)
    assert all(torch.equal(model.state_dict()[name.replace("_", ".", 1)], tensor) for name, tensor in flat.items())
    assert "auto_mapping: features_1.* -> features.1.* (6 tensors)\n" in capsys.readouterr().out
    state_dict = {
        "features_0.weight": torch.ones(4, 3, 1, 1), "features_0.bias": torch.ones(4),
        "features_1.0.weight": torch.ones(4, 4, 1, 1), "features_1.0.bias": torch.ones(4),
        "features_1.1.gamma": torch.full((4,), 2.0), "features_1.1.beta": torch.full((4,), 3.0),
        "features_1.1.moving_mean": torch.full((4,), 4.0), "features_1.1.moving_variance": torch.full((4,), 5.0),
    }  # fmt: skip
    load_weights(model, state_dict, dict(classifier=None), auto_mapping=True)
    values = [model.features[1][1].state_dict()[leaf].unique().tolist() for leaf in NORM]
    assert values == [[2], [3], [4], [5]]
    assert "auto_mapping: features_1.1.gamma -> features.1.1.weight\n" in capsys.readouterr().out
