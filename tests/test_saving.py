"""Models as folders: what is kept, what is refused, and one checkpoint for every view."""

from __future__ import annotations

import json
import re
import warnings

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import ziggurat
from ziggurat import create_model
from ziggurat.backbone import Backbone
from ziggurat.cli import app
from ziggurat.data import resolve_model_data_config
from ziggurat.errors import BadArgument, CheckpointMismatch, SourceUnavailable, UnknownModel

VIT = dict(img_size=32)


def images(channels=3, size=32):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def assert_same(one, other, channels=3):
    one, other = one.eval(), other.eval()
    assert list(one.state_dict()) == list(other.state_dict())
    dtype = next(one.parameters()).dtype
    assert next(other.parameters()).dtype == dtype
    assert all(map(torch.equal, other.state_dict().values(), one.state_dict().values()))
    for got, wanted in zip(*(m(images(channels).to(dtype)) for m in (other, one)), strict=True):
        torch.testing.assert_close(got, wanted)  # mapped weights lie elsewhere, where kernels add up otherwise
    assert repr(other.feature_info) == repr(one.feature_info)
    assert resolve_model_data_config(other) == resolve_model_data_config(one)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("test_resnet", {}),
        ("test_resnet", dict(num_classes=0, in_chans=5, global_pool="max")),
        ("test_resnet", dict(output_stride=8, dtype=torch.bfloat16)),
        ("test_resnet", dict(features_only=True, out_indices=(3, -4))),
        ("test_resnet", dict(features_only=True, out_strides=(16, 4), dtype=torch.float64)),
        ("test_vit", dict(img_size=48, num_classes=3, act_layer="relu")),
        ("test_vit", VIT | dict(features_only=True, out_indices=(2,), norm=True)),
        ("test_vit", VIT | dict(features_only=True, out_strides=(8, 4), pyramid="simple", pyramid_channels=6)),
        ("test_vit", VIT | dict(features_only=True, out_strides=(16, 8), pyramid="interpolate")),
    ],
)
def test_what_was_created_is_made_again(name, arguments, tmp_path):
    model = create_model(name, **arguments)
    if arguments.get("dtype") == torch.float64:  # values that no narrower type holds
        model.conv1[0].weight.data.add_(1e-12)
    model.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = ziggurat.load(tmp_path)
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    if not arguments.get("img_size"):
        assert_same(model, again, arguments.get("in_chans", 3))
    assert again.out_indices == model.out_indices
    assert again.num_classes == model.num_classes
    again.save(tmp_path)  # and once more
    assert ziggurat.load(tmp_path).arguments == again.arguments


def changed_classifier(model):
    model.reset_classifier(3, "max")


def resized(model):
    model.set_input_size(48, 8)


def kept(model):
    model.reset_classifier(3)
    model.keep_levels([2, 0])


def without_head(model):
    model.prune_intermediate_layers([-1], prune_head=True)


@pytest.mark.parametrize("name, change", [
    ("test_resnet", changed_classifier), ("test_vit", changed_classifier), ("test_vit", resized), ("test_resnet", kept),
    ("test_vit", kept), ("test_resnet", without_head),
])  # fmt: skip
def test_changes_of_the_object_survive(name, change, tmp_path):
    torch.manual_seed(0)
    model = create_model(name, **({} if change is resized or name != "test_vit" else VIT))
    change(model)
    model.save(tmp_path)
    again = ziggurat.load(tmp_path)
    if change is resized:
        assert resolve_model_data_config(again)["input_size"] == (3, 48, 48)
        torch.testing.assert_close(again.eval()(images(size=48)), model.eval()(images(size=48)))
    else:
        assert_same(model, again)


@pytest.mark.parametrize("upto", [None, 1, -1])
def test_frozen_parts_stay_frozen(upto, tmp_path):
    model = create_model("test_resnet")
    model.freeze(upto)
    model.save(tmp_path)
    again = ziggurat.load(tmp_path).train()
    assert again.frozen.modules == model.frozen.modules
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]
    part = ziggurat.load(tmp_path, features_only=True, out_indices=(0, 1))
    assert not any(p.requires_grad for p in part.parameters())


def test_what_cannot_be_made_again_is_refused(tmp_path):
    cut = create_model("test_resnet")
    cut.prune_intermediate_layers([1])
    rebuilt = create_model("test_resnet", num_classes=4)
    rebuilt.fc = nn.Linear(rebuilt.num_features, 5)
    halved = create_model("test_resnet")
    halved.fc.to(torch.bfloat16)
    with torch.device("meta"):
        empty = create_model("test_resnet")
    for model, why in [
        (cut, r"no longer what create_model\('test_resnet', num_classes=0, global_pool=''\) makes: it lacks layer2"),
        (rebuilt, r"no longer what create_model\('test_resnet', num_classes=4\) makes: of another shape are fc"),
        (create_model("test_resnet", act_layer=nn.SiLU), "act_layer=.* is no plain value.* create the model with a name"),
        (halved, "weights of several types"),
        (empty, "meta device"),
        (Tiny(), r"Tiny was not made by create_model.* ziggurat\.register_model"),
        (nn.Linear(1, 1), "Linear was not made by create_model"),
    ]:
        with pytest.raises(BadArgument, match=why):
            ziggurat.save(model, tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_changes_without_weights_are_warned_of(tmp_path):
    model = create_model("test_resnet")
    model.layer1[0].act1 = nn.GELU()
    with pytest.warns(UserWarning, match=r"layer1\.0\.act1 is GELU.*, and ReLU.* not saved \(1 modules\)"):
        model.save(tmp_path)


def test_class_names_and_preprocessing(tmp_path):
    overlay = dict(input_size=(3, 64, 96), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_pct=0.7,
                   interpolation="bilinear", crop_mode="border")
    model = create_model("test_resnet", pretrained_cfg_overlay=overlay)
    assert model.class_names is None
    model.reset_classifier(3)
    with pytest.raises(BadArgument, match="give a list of 3 names"):
        model.save(tmp_path, class_names=["cat", "dog"])
    with pytest.raises(BadArgument, match="give a list of 3 names"):
        model.class_names = "cat"
    assert not list(tmp_path.iterdir())
    model.save(tmp_path, class_names=["cat", "dog", "newt"])
    again = ziggurat.load(tmp_path)
    assert again.class_names == model.class_names == ("cat", "dog", "newt")
    assert resolve_model_data_config(again) == resolve_model_data_config(model)
    assert {key: resolve_model_data_config(again)[key] for key in overlay} == overlay
    assert ziggurat.load(tmp_path, num_classes=7).class_names is None
    model.reset_classifier(4)
    assert model.class_names is None
    model.save(tmp_path)
    assert ziggurat.load(tmp_path).class_names is None


@pytest.mark.parametrize("scheme", ["local-dir:", ""])
def test_the_command_names_the_classes(scheme, tmp_path):
    model = create_model("test_resnet", num_classes=2)
    model.save(tmp_path / "pets", class_names=["cat", "newt"])
    Image.new("RGB", (64, 64), "green").save(tmp_path / "one.png")
    options = ["classify", str(tmp_path / "one.png"), "--model", f"{scheme}{tmp_path / 'pets'}", "--device", "cpu"]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    assert sorted(line.split()[-1] for line in done.stdout.splitlines()[1:]) == ["cat", "newt"]


@pytest.mark.parametrize("name, size", [("test_resnet", None), ("test_vit", 48)])
def test_timm_reads_the_folder(name, size, tmp_path):
    torch.manual_seed(0)
    model = create_model(name, in_chans=2, img_size=size).eval()
    model.reset_classifier(3)
    model.save(tmp_path, class_names=["cat", "dog", "newt"])
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    ours = create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        wanted = model(images(2, size or 32))
        torch.testing.assert_close(theirs(images(2, size or 32)), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours(images(2, size or 32)), wanted)
    assert tuple(theirs.pretrained_cfg["label_names"]) == ("cat", "dog", "newt")
    config, known = resolve_model_data_config(ours), timm.data.resolve_model_data_config(theirs)
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in known.items()} == config
    fresh = create_model(f"local-dir:{tmp_path}")
    assert not torch.equal(fresh.get_classifier().weight, model.get_classifier().weight)
    assert (fresh.in_chans, fresh.num_classes) == (2, 3)


# ---------------------------------------------------------------- one checkpoint, all views


@torch.no_grad()
def test_other_views_of_a_saved_classifier(tmp_path):
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=3).eval()
    model.save(tmp_path)
    x = images()
    embedder = ziggurat.load(tmp_path, num_classes=0).eval()
    torch.testing.assert_close(embedder(x), model.embed(x))
    part = ziggurat.load(tmp_path, features_only=True, out_strides=(16, 4)).eval()
    for got, wanted in zip(part(x), model.pyramid(x, strides=(16, 4)).values(), strict=True):
        torch.testing.assert_close(got, wanted)
    wide = ziggurat.load(tmp_path, in_chans=4, in_chans_from="first", dtype=torch.float64).eval()
    torch.testing.assert_close(wide(images(4).double()).float(), model(images(4)[:, :3]), rtol=1e-4, atol=1e-5)
    part.save(tmp_path / "part")
    last = ziggurat.load(tmp_path / "part", out_indices=(1,)).eval()
    assert len(last(x)) == 1
    torch.testing.assert_close(last(x)[0], part(x)[1])
    with pytest.raises(BadArgument, match="out_indices and out_strides choose"):
        ziggurat.load(tmp_path, out_strides=(4,))


VIEWS = {"classifier": {}, "embedder": dict(num_classes=0), "pyramid": dict(features_only=True)}
LACKING = {  # what one view's checkpoint does not have for another
    "test_resnet": {("embedder", "classifier"): "fc", ("pyramid", "classifier"): "fc"},
    "test_vit": {("embedder", "classifier"): "head", ("pyramid", "classifier"): "fc_norm|norm.*head",
                 ("pyramid", "embedder"): "norm"},
    "test_efficientnet": {("embedder", "classifier"): "classifier", ("pyramid", "classifier"): "conv_head.*classifier",
                          ("pyramid", "embedder"): "conv_head"},
}  # fmt: skip


@pytest.mark.parametrize("name", LACKING)
def test_a_checkpoint_of_one_view_serves_the_others(name, tmp_path):
    size = VIT if name == "test_vit" else {}
    torch.manual_seed(0)
    models = {view: create_model(name, **size, **arguments) for view, arguments in VIEWS.items()}
    keys = set(models["classifier"].state_dict())
    for source, model in models.items():
        path = tmp_path / f"{source}.safetensors"
        safetensors.torch.save_file(model.state_dict(), path)
        assert set(model.state_dict()) <= keys
        for view, arguments in VIEWS.items():
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                loaded = create_model(name, checkpoint_path=path, **size, **arguments)
            held = loaded.state_dict()
            for key in held.keys() & model.state_dict().keys():
                assert torch.equal(held[key], model.state_dict()[key]), (source, view, key)
            lacking = LACKING[name].get((source, view))
            assert len(told) == (lacking is not None), (source, view)
            if lacking is not None:
                assert re.search(lacking, str(told[0].message))
                for key in held.keys() - model.state_dict().keys():  # drawn, not what memory held
                    assert held[key].abs().max() <= 1.5, key
                    assert held[key].count_nonzero() or not key.endswith("weight"), key


def test_a_missing_classifier_is_named_and_a_missing_stage_refused(tmp_path):
    part = create_model("test_resnet", features_only=True, out_indices=(0, 1, 2))
    path = tmp_path / "part.safetensors"
    safetensors.torch.save_file(part.state_dict(), path)
    with pytest.raises(CheckpointMismatch, match=r"missing: layer3\.0"):
        create_model("test_resnet", checkpoint_path=path)
    whole = create_model("test_resnet", features_only=True)
    safetensors.torch.save_file(whole.state_dict(), path)
    with pytest.warns(UserWarning, match=r"ends with the last level.*: fc\.\{weight, bias\} stay as initialised"):
        create_model("test_resnet", checkpoint_path=path)


# ---------------------------------------------------------------- folders and files


def test_folders_of_others_are_left_alone(tmp_path):
    model = create_model("test_resnet")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadArgument, match=r"holds notes\.txt, which ziggurat\.save did not write.* overwrite=True"):
        model.save(tmp_path)
    model.save(tmp_path, overwrite=True)
    model.save(tmp_path)  # it is ours now
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(BadArgument, match=r"notes\.txt is a file"):
        model.save(tmp_path / "notes.txt")


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    model = create_model("test_resnet")
    model.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def torn(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", torn)
    model.reset_classifier(3)
    with pytest.raises(OSError, match="no space"):
        model.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def altered(text, **entries):
    return json.dumps(json.loads(text) | entries)


def test_missing_and_damaged_files_are_named(tmp_path):
    create_model("test_resnet").save(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    good = config.read_text(), weights.read_bytes()
    for text, why in [("{", "is no JSON"), ("[]", "names no 'architecture'"),
                      (altered(good[0], model_args=[1]), "is damaged: its 'model_args'"),
                      (altered(good[0], architecture=3), "names no 'architecture'"),
                      (altered(good[0], ziggurat={"dtype": "load"}), "is damaged: there is no type 'load'"),
                      (altered(good[0], ziggurat={"frozen": "x"}), "is damaged: 'frozen' is 'x'")]:  # fmt: skip
        config.write_text(text)
        with pytest.raises(SourceUnavailable, match=rf"config\.json {why}"):
            ziggurat.load(tmp_path)
    config.write_text(good[0])
    for content in (good[1][:1000], b"", b"<html>"):
        weights.write_bytes(content)
        with pytest.raises(SourceUnavailable, match=r"model\.safetensors"):
            ziggurat.load(tmp_path)
    for path in (weights, config):
        path.unlink()
        with pytest.raises(SourceUnavailable, match=f"there is no .*{path.name}"):
            ziggurat.load(tmp_path)


# ---------------------------------------------------------------- a user's own


class Tiny(Backbone):
    units = r"blocks\.(\d+)"

    def __init__(self, width=8, **kwargs):
        super().__init__(**kwargs)
        self.stem = nn.Conv2d(self.in_chans, width, 3, stride=self.plan.spend(2), padding=1)
        self.blocks = nn.Sequential(nn.Conv2d(width, width, 1))
        self.plan.mark(width, "blocks")
        self.make_head("fc")

    def trunk(self, x):
        yield self.blocks(self.stem(x))


def test_a_registered_function_is_called_again(tmp_path):
    def tiny_of_mine(pretrained=False, **kwargs):
        return Tiny(**kwargs)

    ziggurat.register_model(tiny_of_mine)
    try:
        model = create_model("tiny_of_mine", width=12, num_classes=5, in_chans=2)
        model.reset_classifier(3)
        model.save(tmp_path, class_names=["a", "b", "c"])
        again = ziggurat.load(tmp_path)
        assert_same(model, again, channels=2)
        assert again.class_names == ("a", "b", "c")
        with pytest.warns(UserWarning, match="Overwriting"):
            ziggurat.register_model(tiny_of_mine)
    finally:
        ziggurat.registry._forget("tiny_of_mine")
    with pytest.raises(UnknownModel, match="tiny_of_mine"):
        ziggurat.load(tmp_path)
