"""What a view does without is neither allocated nor read: from a local file, and from a hub by ranges of bytes."""

from __future__ import annotations

import json
import re
import threading
from functools import partial as partial_of
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch

import ziggurat
from local_hub import COMMIT, LocalHub, hub_client
from ziggurat import factory
from ziggurat.backbone import Backbone
from ziggurat.errors import SourceUnavailable
from ziggurat.weights import partial
from ziggurat.weights.adapting import needed
from ziggurat.weights.pretrained import PretrainedCfg
from ziggurat.weights.reading import read_state_dict

RESNET = "timm/test_resnet.r160_in1k"
EFFICIENTNET = "timm/test_efficientnet.r160_in1k"  # of which the classifier is most
SAVED = "me/saved"
FILE = "model.safetensors"
TO_16 = dict(features_only=True, out_strides=(4, 8, 16))
LAST = "layer4."


def weights(name):
    torch.manual_seed(1)
    model = ziggurat.create_model(name)
    return {path: tensor.clone() for path, tensor in model.state_dict().items()}


STATE = weights("test_resnet")
BODY = safetensors.torch.save(STATE, {"format": "pt"})
CONFIG = json.dumps({"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": {"classifier": "fc"}}).encode()


def spans(body):
    """The bytes of each tensor in a safetensors file."""
    begin = 8 + int.from_bytes(body[:8], "little")
    said = json.loads(body[8:begin])
    said.pop("__metadata__", None)
    return {name: tuple(begin + end for end in facts["data_offsets"]) for name, facts in said.items()}


@pytest.fixture(scope="module")
def full():
    """The network that the hub has, and an image."""
    model = ziggurat.create_model("test_resnet").eval()
    model.load_state_dict(STATE)
    return model, torch.rand(1, 3, 64, 64)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    efficientnet = safetensors.torch.save(weights("test_efficientnet"))
    repos = {RESNET: {FILE: BODY}, EFFICIENTNET: {FILE: efficientnet}, SAVED: {FILE: BODY, "config.json": CONFIG}}
    with LocalHub(repos) as running:
        hub_client(monkeypatch, running, tmp_path / "hub")
        yield running


def parts(tmp_path):
    return sorted((tmp_path / "hub" / "assets").rglob(f"*{FILE[5:]}"))


def served(hub, name, body, start):
    """How many bytes of the tensors whose names begin with `start` a hub gave, without counters, which lie together."""
    wanted = [ends for path, ends in spans(body).items() if path.startswith(start) and not path.endswith("_tracked")]
    given = [(a, b) for path, a, b in hub.served if path == f"/{name}/resolve/{COMMIT}/{FILE}" or path.endswith(f"main/{FILE}")]
    return sum(max(0, min(b, d) - max(a, c)) for a, b in given for c, d in wanted)


def same_levels(pyramid, full):
    model, image = full
    for ours, theirs in zip(pyramid.eval()(image), model.pyramid(image, strides=(4, 8, 16)).values(), strict=True):
        assert torch.equal(ours, theirs)


def create(name="test_resnet", **arguments):
    return ziggurat.create_model(name, pretrained=True, **arguments)


# ---------------------------------------------------------------- memory


def test_no_parameter_of_what_is_cut_off_gets_memory(tmp_path, monkeypatch, full):
    path = tmp_path / "w.safetensors"
    path.write_bytes(BODY)
    got = []

    def allocate(model):
        assert all(parameter.is_meta for parameter in model.parameters())
        got.extend(name for name, _ in model.named_parameters())
        real(model)

    real = factory.allocate
    monkeypatch.setattr(factory, "allocate", allocate)
    pyramid = ziggurat.create_model("test_resnet", checkpoint_path=path, **TO_16)
    assert "layer3.0.conv1.weight" in got
    assert not [name for name in got if name.startswith((LAST, "fc."))]
    assert not any(tensor.is_meta for tensor in (*pyramid.parameters(), *pyramid.buffers()))
    same_levels(pyramid, full)


@pytest.mark.parametrize("name", ["test_resnet", "ecaresnet50d_pruned", "resnetblur18"])
def test_buffers_are_computed_while_parameters_have_no_memory(name):
    tiny = {} if "res" in name else dict(depth=2, embed_dim=32, num_heads=2)
    with factory.WithoutWeights():
        bare = ziggurat.create_model(name, **tiny)
    usual = dict(ziggurat.create_model(name, **tiny).named_buffers())
    assert all(parameter.is_meta for parameter in bare.parameters())
    for path, buffer in bare.named_buffers():
        assert torch.equal(buffer, usual.pop(path)), path
    assert not usual
    factory.allocate(bare)
    assert not any(parameter.is_meta for parameter in bare.parameters())


class Tiny(Backbone):
    """A network of one's own whose constructor reads or keeps what it has drawn."""

    def __init__(self, way="item", **kwargs):
        super().__init__(**kwargs)
        self.stem = torch.nn.Conv2d(self.in_chans, 4, 2, stride=2)
        self.plan.spend(2)
        self.plan.mark(4, "stem")
        if way == "item":
            self.start = torch.nn.Parameter(torch.full((1,), self.stem.weight.abs().max().item()))
        elif way == "data":
            self.stem.weight.data = torch.ones(4, self.in_chans, 2, 2)
        else:
            self.register_buffer("drawn", self.stem.bias.detach() * 0 + 1, persistent=False)
        self.make_head("fc")

    def trunk(self, x):
        x = self.stem(x)
        yield x
        yield x


@pytest.mark.parametrize("way", ["item", "data", "buffer"])
def test_a_constructor_that_computes_with_parameters_has_them(tmp_path, way):
    build = partial_of(factory.build_model_with_cfg, Tiny, way=way, num_classes=2)
    drawn = build()
    safetensors.torch.save_file(drawn.state_dict(), tmp_path / "w.safetensors")
    model = build(checkpoint_path=tmp_path / "w.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, drawn.state_dict()[name])
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(model.eval()(image), drawn.eval()(image))


def test_models_of_other_threads_have_weights():
    made = []
    with factory.WithoutWeights():
        other = threading.Thread(target=lambda: made.append(torch.nn.Linear(2, 2)))
        other.start()
        other.join()
        assert torch.nn.Linear(2, 2).weight.is_meta
    assert not made[0].weight.is_meta
    assert not torch.nn.Linear(2, 2).weight.is_meta


def test_shared_parameters_and_those_that_need_no_gradient_stay_so():
    with factory.WithoutWeights():
        model = torch.nn.Module()
        model.a = torch.nn.Linear(2, 2, bias=False)
        model.b = torch.nn.Linear(2, 2, bias=False)
        model.b.weight = model.a.weight
        model.c = torch.nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)
    factory.allocate(model)
    assert model.a.weight is model.b.weight
    assert (model.c.dtype, model.c.shape, model.c.requires_grad) == (torch.float64, (3,), False)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is resident")
def test_what_is_cut_off_is_not_read_from_a_local_file(tmp_path):
    path = tmp_path / "w.safetensors"
    state = {name: torch.zeros_like(t, device="cpu") for name, t in ziggurat.create_model("resnet10t", device="meta").state_dict().items()}
    safetensors.torch.save_file(state, path)
    pyramid = ziggurat.create_model("resnet10t", checkpoint_path=path, **TO_16)
    assert not any(parameter.any() for parameter in pyramid.parameters())  # all are read
    mapped = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    resident = sum(int(re.search(r"^Rss: +(\d+) kB", text, re.M)[1]) for text in mapped) * 1024
    kept, last = (sum(t.nbytes for name, t in state.items() if name.startswith(LAST) is is_last) for is_last in (False, True))
    assert 0 < resident < kept + 2**21  # a page that is read brings its neighbourhood along
    assert last > 2**23


# ---------------------------------------------------------------- the hub


def test_a_pyramid_fetches_its_part_and_only_once(hub, full, tmp_path):
    same_levels(create(**TO_16), full)
    assert served(hub, RESNET, BODY, "layer3.") > 0
    assert served(hub, RESNET, BODY, LAST) == 0
    (part,) = parts(tmp_path)
    assert part.stat().st_size < len(BODY) / 2
    hub.requests.clear()
    same_levels(create(**TO_16), full)
    assert create(features_only=True, out_strides=(4, 8)).feature_info.reduction() == [4, 8]  # which needs less
    assert hub.requests == []
    assert parts(tmp_path) == [part]


def test_a_classifier_takes_all_and_then_a_pyramid_fetches_nothing(hub, full, tmp_path):
    model = create().eval()
    assert torch.equal(model(full[1]), full[0](full[1]))
    assert hub.served == [(f"/{RESNET}/resolve/main/{FILE}", 0, len(BODY))]
    hub.stop()
    same_levels(create(**TO_16), full)
    assert parts(tmp_path) == []


def test_a_classifier_after_a_pyramid_is_whole(hub, full):
    create(**TO_16)
    assert torch.equal(create().eval()(full[1]), full[0](full[1]))


def test_an_embedder_does_without_a_classifier_that_is_much(hub):
    embedder = create("test_efficientnet", num_classes=0)
    body = hub.repos[EFFICIENTNET][FILE]
    assert served(hub, EFFICIENTNET, body, "conv_head.") > 0
    assert served(hub, EFFICIENTNET, body, "classifier.") == 0
    state = safetensors.torch.load(body)
    for name, tensor in embedder.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_configuration_need_not_state_the_classifier(hub):
    hub.repos[SAVED] = {FILE: BODY, "config.json": b'{"architecture": "test_resnet", "num_classes": 1000}'}
    embedder = create(f"hf-hub:{SAVED}", num_classes=0)
    assert embedder.state_dict().keys() == {name for name in STATE if not name.startswith("fc.")}
    for name, tensor in embedder.state_dict().items():
        assert torch.equal(tensor, STATE[name])


def test_files_may_lie_elsewhere(hub, full, tmp_path):
    hub.redirects = True
    same_levels(create(**TO_16), full)
    assert len(parts(tmp_path)) == 1
    assert {path.split("/")[1] for path, start, stop in hub.served if stop > start} == {"files"}
    assert sum(stop - start for _, start, stop in hub.served) < len(BODY) / 2


def test_where_most_is_needed_all_is_fetched(hub, full, tmp_path, monkeypatch):
    monkeypatch.setattr(partial, "WORTHWHILE", 0.2)
    same_levels(create(**TO_16), full)
    assert parts(tmp_path) == []
    assert hub.served[-1][1:] == (0, len(BODY))


def test_a_model_of_the_hub_a_revision_and_a_cache_of_ones_own(hub, full, tmp_path):
    same_levels(create(f"hf-hub:{SAVED}@{COMMIT}", cache_dir=tmp_path / "mine", **TO_16), full)
    assert served(hub, SAVED, BODY, LAST) == 0
    assert parts(tmp_path) == []
    (part,) = (tmp_path / "mine" / "ziggurat").rglob("*.safetensors")
    assert part.parent.name == COMMIT
    hub.stop()
    same_levels(create(f"hf-hub:{SAVED}@{COMMIT}", cache_dir=tmp_path / "mine", **TO_16), full)


def test_one_revision_is_one_commit_from_its_newest_part_on(hub, tmp_path):
    to_4, to_8 = dict(features_only=True, out_strides=(4,)), dict(features_only=True, out_strides=(4, 8))
    first = "conv1.0.weight"
    create(**to_4)
    newer = STATE | {first: STATE[first] + 1}
    hub.repos[RESNET] = {FILE: safetensors.torch.save(newer)}
    hub.commit = COMMIT[::-1]
    assert torch.equal(create(**to_4).state_dict()[first], STATE[first])  # as with whole files, the cache is not refreshed
    for strides in (to_8, to_4, to_8):
        assert torch.equal(create(**strides).state_dict()[first], newer[first])
    assert [part.parent.name for part in parts(tmp_path)] == sorted([COMMIT, hub.commit])
    hub.requests.clear()
    pinned = create(pretrained_cfg=dict(hf_hub_id=f"{RESNET}@{COMMIT}"), **to_4)
    assert torch.equal(pinned.state_dict()[first], STATE[first])
    assert hub.requests == []


def test_a_file_whose_name_begins_alike_is_another(hub):
    first = "conv1.0.weight"
    other = STATE | {first: STATE[first] + 1}
    hub.repos[RESNET] = {FILE: BODY, "model-ema.safetensors": safetensors.torch.save(other)}
    averaged = create(pretrained_cfg=dict(hf_hub_id=RESNET, hf_hub_filename="model-ema.safetensors"), **TO_16)
    assert torch.equal(averaged.state_dict()[first], other[first])
    assert torch.equal(create(**TO_16).state_dict()[first], STATE[first])


def test_a_part_serves_offline_where_it_suffices(hub, full, monkeypatch):
    create(**TO_16)
    hub.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    same_levels(create(**TO_16), full)
    for more in ({}, dict(features_only=True)):
        with pytest.raises(SourceUnavailable, match=r"is not in the cache .* HF_HUB_OFFLINE"):
            create(**more)
    assert hub.requests == []


@pytest.mark.parametrize(
    "damaged",
    [
        lambda part: b"",
        lambda part: b"\x00" * 40,
        lambda part: BODY,
        lambda part: part[:-100],
        lambda part: part.replace(b'"F32"', b'"F3X"'),
    ],
    ids=["empty", "zeros", "no part", "cut off", "no type"],
)
def test_a_damaged_part_is_fetched_anew(hub, full, tmp_path, damaged):
    create(**TO_16)
    (part,) = parts(tmp_path)
    whole = part.read_bytes()
    part.write_bytes(damaged(whole))
    same_levels(create(**TO_16), full)
    assert parts(tmp_path) == [part]
    assert part.read_bytes() == whole
    assert part.parent.name == COMMIT
    assert sorted(part.parent.iterdir()) == [part]


def test_where_no_part_can_be_put_the_whole_is_fetched(hub, full, tmp_path):
    create(**TO_16)
    (part,) = parts(tmp_path)
    part.unlink()
    part.mkdir()
    same_levels(create(**TO_16), full)
    assert hub.served[-1][1:] == (0, len(BODY))
    assert list(part.parent.iterdir()) == [part]


def test_a_server_without_ranges_gives_the_whole_once(hub, full, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    hub.whole_only = True
    hub.breaks = 1000  # which only who reads the answer to a request for a range would notice
    same_levels(create(**TO_16), full)
    assert parts(tmp_path) == []
    hub.stop()
    same_levels(create(**TO_16), full)


def test_a_server_that_breaks_off_before_it_answers_is_told_of(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    remote = partial.located(RESNET, FILE, None)
    hub.stop()
    with pytest.raises(SourceUnavailable, match=rf"{RESNET} could not be read .*try again later"):
        remote.gives_ranges()


def test_what_is_no_safetensors_is_fetched_whole(hub, full, tmp_path):
    torch.save(STATE, tmp_path / "w.pth")
    hub.repos[RESNET] = {FILE: (tmp_path / "w.pth").read_bytes()}
    same_levels(create(**TO_16), full)
    assert parts(tmp_path) == []


def doctored(change):
    """The published file with its header changed: the facts of one tensor that every level takes, or of the file."""
    begin = 8 + int.from_bytes(BODY[:8], "little")
    said = json.loads(BODY[8:begin])
    change(said)
    text = json.dumps(said).encode()
    return len(text).to_bytes(8, "little") + text + BODY[begin:]


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said["conv1.0.weight"].update(dtype="F3X"),
        lambda said: said["conv1.0.weight"]["shape"].append(7),
        lambda said: said["conv1.0.weight"]["data_offsets"].reverse(),
        lambda said: said["conv1.0.weight"].update(data_offsets=["a", "b"]),
        lambda said: said["conv1.0.weight"].update(data_offsets=[-864, 0], shape=[8, 3, 3, 3]),
        lambda said: said["conv1.0.weight"].update(data_offsets=[0]),
        lambda said: said["conv1.0.weight"].update(shape="abc"),
        lambda said: said["fc.bias"].update(data_offsets=[len(BODY), len(BODY) + 4000]),
        lambda said: said.update({"conv1.0.weight": 7}),
        lambda said: said.update(__metadata__=["a"]),
        lambda said: said.update(__metadata__={"a": 1}),
    ],
    ids=["type", "shape", "reversed", "letters", "negative", "one end", "no shape", "beyond", "number", "list", "metadata"],
)
def test_a_damaged_file_of_the_hubs_leaves_no_part(hub, tmp_path, change):
    hub.repos[RESNET] = {FILE: doctored(change)}
    with pytest.raises(SourceUnavailable, match="/snapshots/.* damaged"):  # the whole file's
        create(**TO_16)
    assert parts(tmp_path) == []


def test_a_repository_of_pickles_alone(hub, full, tmp_path):
    torch.save(STATE, tmp_path / "w.pth")
    hub.repos[RESNET] = {"pytorch_model.bin": (tmp_path / "w.pth").read_bytes()}
    same_levels(create(**TO_16), full)


def test_names_that_are_not_the_models_are_read_whole(hub, full):
    hub.repos[RESNET] = {FILE: safetensors.torch.save({f"module.{name}": tensor for name, tensor in STATE.items()})}
    same_levels(create(**TO_16), full)
    assert hub.served[-1][1:] == (0, len(hub.repos[RESNET][FILE]))


def test_broken_connections_are_tried_again_and_told_of(hub, full, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.breaks = 2
    same_levels(create(**TO_16), full)
    hub.breaks = 1000
    monkeypatch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", str(tmp_path / "other"))
    with pytest.raises(SourceUnavailable, match=rf"{RESNET} could not be read .*try again later"):
        create(**TO_16)
    assert not [path for path in (tmp_path / "other").rglob("*") if path.is_file()]


def test_a_change_in_between_is_told_of(hub):
    remote = partial.located(RESNET, FILE, None)
    hub.repos[RESNET] = {FILE: BODY[:5000]}
    with pytest.raises(SourceUnavailable, match=r"gave 100 bytes as 'bytes 0-99/5000'"):
        remote.read(0, 100)


def test_errors_are_those_of_the_whole_file(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    for name, cause in (("me/none", "does not exist"), ("not a name", "check the name")):
        with pytest.raises(SourceUnavailable, match=cause):
            create(pretrained_cfg=dict(hf_hub_id=name), **TO_16)
    hub.stop()
    with pytest.raises(SourceUnavailable, match=r"is not in the cache .* cannot be reached"):
        create(**TO_16)


def test_several_at_once(hub, full, tmp_path):
    made = []
    strides = [(4, 8, 16), (4, 8)] * 3

    def one(strides):
        made.append(create(features_only=True, out_strides=strides))

    threads = [threading.Thread(target=one, args=(taken,)) for taken in strides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(strides)
    for model in made:
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, STATE[name])
    assert 1 <= len(parts(tmp_path)) <= 2


# ---------------------------------------------------------------- what is needed, what is asked for


def test_what_may_be_needed():
    cfg = PretrainedCfg(classifier="fc")
    embedder = ziggurat.create_model("test_resnet", num_classes=0, device="meta")
    pyramid = ziggurat.create_model("test_resnet", device="meta", **TO_16)
    everything = set(STATE)
    assert needed(embedder, cfg, False, everything) == {name for name in everything if not name.startswith("fc.")}
    assert needed(embedder, PretrainedCfg(), False, everything) == needed(embedder, cfg, False, everything)
    assert needed(pyramid, cfg, True, everything) == set(pyramid.state_dict())
    counted = {name for name in everything if not name.endswith("num_batches_tracked")}
    assert needed(pyramid, cfg, True, counted) == counted & set(pyramid.state_dict())
    assert needed(embedder, cfg, False, everything | {"more"}) is None  # which loading refuses
    assert needed(pyramid, cfg, True, everything | {"more"}) is not None
    assert needed(pyramid, cfg, True, everything - {"conv1.0.weight"}) is None

    class Own(type(pyramid)):
        def remap_checkpoint(self, state_dict):
            return state_dict

    pyramid.__class__ = Own
    assert needed(pyramid, cfg, True, everything) is None


def test_a_filter_of_ones_own_sees_the_whole(hub):
    seen = []

    def look(state_dict, model):
        seen.extend(state_dict)
        return state_dict

    create(pretrained_filter_fn=look, **TO_16)
    assert sorted(seen) == sorted(STATE)


def test_ranges_are_joined_over_small_gaps_and_cut_into_pieces(monkeypatch):
    monkeypatch.setattr(partial, "GAP", 10)
    monkeypatch.setattr(partial, "PIECE", 50)
    ends = {"a": (0, 20), "b": (29, 40), "empty": (45, 45), "c": (50, 151)}
    found = partial.pieces({name: partial.Span("U8", (stop - start,), start, stop) for name, (start, stop) in ends.items()})
    assert list(found) == [(0, 40), (50, 100), (100, 150), (150, 151)]


def test_a_part_holds_what_the_file_holds_of_any_type_and_layout(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(partial, "GAP", 1)
    monkeypatch.setattr(partial, "PIECE", 1000)
    monkeypatch.setattr(partial, "FIRST", 100)
    monkeypatch.setattr(partial, "WORTHWHILE", 1.0)
    state = {
        "byte": torch.arange(3, dtype=torch.uint8),
        "half": torch.rand(301).bfloat16(),
        "long": torch.arange(5),
        "none": torch.empty(0, 4),
        "one": torch.tensor(2.5),
        "real": torch.rand(40, 40),
        "rest": torch.rand(7, 300),
    }
    hub.repos["me/mixed"] = {FILE: safetensors.torch.save(state, {"format": "pt", "said": "so"})}
    path = partial.fetch_part("me/mixed", None, None, tmp_path, lambda names: [name for name in names if name != "rest"])
    found = read_state_dict(path)
    del state["rest"]
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name])
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["said"]) == ("pt", "so")
    note = json.loads(metadata[partial.NOTE])
    assert (note["commit"], note["size"], "rest" in note["whole"]) == (COMMIT, len(hub.repos["me/mixed"][FILE]), True)
