"""The forward pass of an extraction: every output from one pass, by each backend, to the last bit the same every time."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ziggurat
from ziggurat import packages
from ziggurat.errors import BadArgument, MissingExtra, UnsupportedStride
from ziggurat.extraction import backends, forward
from ziggurat.extraction.decoding import Preprocessing
from ziggurat.extraction.forward import OutOfMemory, Views, make_forward
from ziggurat.extraction.outputs import Outputs

PREPROCESSING = Preprocessing(size=(64, 64), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
EMBEDDING = Outputs(embed=True)
WITH_OPENVINO = pytest.param("openvino", marks=pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"))
BACKENDS = ("torch", "compile", WITH_OPENVINO)


def network(name="resnet10t", **kwargs):
    torch.manual_seed(0)
    return ziggurat.create_model(name, **kwargs).eval()


def vit(**kwargs):
    return network("test_vit", img_size=64, **kwargs)


def pixels(count=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), np.uint8)


def images(values):
    """The input of a network, as the definition of its normalisation has it."""
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (PREPROCESSING.mean, PREPROCESSING.std))
    return (torch.from_numpy(values).permute(0, 3, 1, 2) / 255 - mean) / std


def views_of(model, outputs, values):
    views = Views(model, outputs, PREPROCESSING)
    with torch.no_grad():
        found = views(torch.from_numpy(values))
    assert [tuple(view.shape[1:]) for view in found] == list(views.shapes.values())
    assert {view.dtype for view in found} == {torch.float32}
    return dict(zip(views.names, found))


def made(model, outputs=EMBEDDING, batch_size=4, threads=1, **kwargs):
    return make_forward(model, outputs, PREPROCESSING, batch_size=batch_size, device="cpu", threads=threads, **kwargs)


def only(pass_, values):
    ((_, found),) = pass_.stream([(None, values)])
    return found


def least_cosine(one, other):
    one, other = (torch.as_tensor(vectors).flatten(1).double() for vectors in (one, other))
    return nn.functional.cosine_similarity(one, other).min().item()


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# -------------------------------------------------------------------- views


def test_all_outputs_come_from_one_pass():
    model, values = vit(), pixels(2)
    calls = []
    model.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    outputs = Outputs(embed=True, logits=True, tokens=True, strides=(16,), taps=("blocks.2",))
    with torch.no_grad():
        expected = model.extract(images(values), ("embedding", "scores", "tokens", "pyramid"))
        views = Views(model, outputs, PREPROCESSING)
        calls.clear()
        found = dict(zip(views.names, views(torch.from_numpy(values))))
    assert len(calls) == 1
    assert list(found) == ["embedding", "logits", "taps/blocks.2", "pyramid/stride_16", "tokens/cls", "tokens/patches"]
    flat = {"embedding": expected["embedding"], "logits": expected["scores"], "pyramid/stride_16": expected["pyramid"][16],
            "tokens/cls": expected["tokens"]["cls"], "tokens/patches": expected["tokens"]["patches"]}
    for name, view in flat.items():
        torch.testing.assert_close(found[name], view, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("create, tap, expected", [
    (network, "layer2", lambda seen: seen.mean(dim=(2, 3))),
    (network, "fc", lambda seen: seen),
    (network, "global_pool", lambda seen: seen),
    (vit, "blocks.2", lambda seen: seen[:, 1:].mean(dim=1)),
    (vit, "patch_embed", lambda seen: seen.mean(dim=(1, 2))),
    (vit, "patch_embed.proj", lambda seen: seen.mean(dim=(2, 3))),
    (vit, "fc_norm", lambda seen: seen),
])
@pytest.mark.parametrize("others", [{}, dict(embed=True, logits=True)], ids=["alone", "with both heads"])
def test_a_tap_is_one_vector_an_image(create, tap, expected, others):
    model, values = create(), pixels(3)
    seen = []
    hook = model.get_submodule(tap).register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model(images(values))
    hook.remove()
    found = views_of(model, Outputs(taps=(tap,), **others), values)[f"taps/{tap}"]
    torch.testing.assert_close(found, expected(seen[0]), rtol=1e-4, atol=1e-5)


def test_a_map_that_ends_with_its_channels_is_averaged_over_its_pixels():
    model = network("pvt_tiny", img_size=64)
    assert model.layout == "NHWC"
    found = views_of(model, Outputs(taps=("patch_embed1.proj", "block2.1"), strides=(8,)), pixels(2))
    assert found["taps/patch_embed1.proj"].shape == (2, 64)
    level = found["pyramid/stride_8"]
    assert found["taps/block2.1"].shape == level.shape[:2]


@pytest.mark.parametrize("create, outputs, runs, rests", [
    (network, Outputs(strides=(8,)), "layer2", "layer3"),
    (network, Outputs(taps=("layer2.0.conv1",)), "layer2", "layer3"),
    (network, Outputs(strides=(4,), taps=("layer2",)), "layer2", "layer3"),
    (network, Outputs(strides=(16,), taps=("layer1",)), "layer3", "layer4"),
    (vit, Outputs(taps=("blocks.1",)), "blocks.1", "blocks.2"),
    (network, Outputs(embed=True), "layer4", "fc"),
])
def test_nothing_is_run_that_no_output_needs(create, outputs, runs, rests):
    model, calls = create(), []
    views = Views(model, outputs, PREPROCESSING)
    for name in (runs, rests):
        module = model.get_submodule(name)
        for inner in module.modules():  # a Sequential may be walked and not called
            inner.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        views(torch.from_numpy(pixels(2)))
    assert set(calls) == {runs}


def test_an_output_that_is_not_there_is_refused_with_the_nearest():
    with pytest.raises(BadArgument, match=r"resnet10t has no module 'layer22'; there is 'layer2'"):
        Views(network(), Outputs(taps=("layer22",)), PREPROCESSING)
    with pytest.raises(UnsupportedStride, match=r"no level of stride 12; the nearest is (8|16), of 2, 4, 8, 16, 32"):
        Views(network(), Outputs(strides=(12,)), PREPROCESSING)
    with pytest.raises(BadArgument, match=r"logits: .*without a classifier"):
        Views(network(num_classes=0), Outputs(logits=True), PREPROCESSING)
    with pytest.raises(BadArgument, match="has no tokens"):
        Views(network(), Outputs(tokens=True), PREPROCESSING)


def test_a_tap_that_is_no_vector_an_image_is_refused():
    model = network()
    model.layer2[0].act1 = model.act1  # now called twice
    with pytest.raises(BadArgument, match="'act1' is called more than once"):
        Views(model, Outputs(taps=("act1",)), PREPROCESSING)
    model = network()
    model.layer2.append(nn.Identity())
    unused = nn.Identity()
    model.add_module("unused", unused)
    with pytest.raises(BadArgument, match="does not call the module 'unused'"):
        Views(model, Outputs(embed=True, taps=("unused",)), PREPROCESSING)

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            return self.pair(x)[0]

    model = network()
    model.act1 = First()
    with pytest.raises(BadArgument, match="'act1.pair' puts out a tuple"):
        Views(model, Outputs(taps=("act1.pair",)), PREPROCESSING)
    model = network()
    model.act1 = nn.Sequential(nn.Flatten(0, 1), nn.Unflatten(0, (-1, model.conv1[-1].out_channels)))
    with pytest.raises(BadArgument, match=r"'act1.0' makes \[128, 32, 32\] of 2 images"):
        Views(model, Outputs(taps=("act1.0",)), PREPROCESSING)


# -------------------------------------------------------------------- backends


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_gives_the_numbers_of_the_network_whatever_is_in_other_slots(backend):
    """One backend, one build: agreement, order, tags, and bits that depend on the slot's pixels alone."""
    model, values = vit(), pixels()
    outputs = Outputs(embed=True, tokens=True, strides=(16,), taps=("blocks.1",))
    expected = views_of(vit(), outputs, values)
    pass_ = made(model, outputs, backend=backend, threads=2)
    assert pass_.backend == backend and pass_.precision == "fp32" and pass_.reason.startswith(backend)
    assert pass_.shapes == {name: tuple(view.shape[1:]) for name, view in expected.items()}

    neighbours = values.copy()
    neighbours[[0, 1, 3]] = pixels(3, seed=1)
    alone = np.zeros_like(values)
    alone[2] = values[2]
    read = list(pass_.stream([("all", values), ("others", neighbours), ("alone", alone), ("again", values)]))
    assert [tag for tag, _ in read] == ["all", "others", "alone", "again"]
    found = dict(read)
    assert pass_.seconds > 0
    for name, view in expected.items():
        first = found["all"][name]
        assert first.dtype == np.float32 and first.flags.c_contiguous
        assert least_cosine(first, view) > 0.99999
        np.testing.assert_array_equal(found["again"][name], first)
        np.testing.assert_array_equal(found["others"][name][2], first[2])
        np.testing.assert_array_equal(found["alone"][name][2], first[2])
        assert not np.array_equal(found["others"][name][1], first[1])


OTHER_PROCESS = """
import hashlib, json, logging, os, socket, sys
reached = []
sys.addaudithook(lambda event, args: reached.append(str(args)) if event in ("socket.connect", "socket.getaddrinfo") else None)
sys.path.insert(0, sys.argv[1])
from test_forward import made, network, only, pixels
digests = {}
for backend in sys.argv[2:]:
    values = only(made(network(), backend=backend), pixels())["embedding"]
    digests[backend] = hashlib.sha256(values.tobytes()).hexdigest()
print(json.dumps(dict(digests=digests, reached=reached, reporter="openvino_telemetry" in sys.modules,
                      handlers=len(logging.getLogger().handlers))))
"""


def test_another_process_gives_the_same_bits_and_reports_to_nobody(tmp_path):
    """OpenVINO's telemetry neither reaches the network nor writes to the home folder, and its converter says nothing."""
    import hashlib

    names = ["torch", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-W", "error", "-c", OTHER_PROCESS, str(Path(__file__).parent), *names],
                          env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["reached"] == [] and not told["reporter"] and told["handlers"] == 0
    assert list(home.iterdir()) == []
    for backend in names:
        here = only(made(network(), backend=backend), pixels())["embedding"]
        assert hashlib.sha256(here.tobytes()).hexdigest() == told["digests"][backend]


@pytest.mark.parametrize("backend", ["torch", WITH_OPENVINO])
def test_the_bits_are_the_same_with_any_number_of_threads(backend):
    outputs = Outputs(embed=True, strides=(8,), taps=("layer1", "global_pool"), logits=True)
    one, three = (made(network(), outputs, 8, threads, backend=backend) for threads in (1, 3))
    before = torch.get_num_threads()
    batches = [(seed, pixels(8, seed)) for seed in range(5)]
    for (_, slow), (_, fast) in zip(one.stream(batches), three.stream(batches)):
        for name in slow:
            np.testing.assert_array_equal(slow[name], fast[name])
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("backend", ["torch", WITH_OPENVINO])
def test_a_reader_that_stops_early_leaves_nothing_running(backend):
    pass_ = made(network(), threads=2, backend=backend)
    before = torch.get_num_threads()
    stream = pass_.stream((seed, pixels(seed=seed)) for seed in range(9))
    first = next(stream)[1]["embedding"].copy()
    stream.close()
    assert torch.get_num_threads() == before
    np.testing.assert_array_equal(only(pass_, pixels())["embedding"], first)


def test_the_choice_is_the_same_every_time_and_says_why():
    has_openvino = importlib.util.find_spec("openvino") is not None
    reasons = set()
    for _ in range(2):
        pass_ = made(network())
        reasons.add(pass_.reason)
        assert pass_.backend == ("openvino" if has_openvino else "torch")
    assert len(reasons) == 1
    (reason,) = reasons
    assert "cosine to torch in float32 1.0000" in reason if has_openvino else "pip install 'ziggurat[openvino]'" in reason


def test_without_openvino_torch_is_chosen_and_openvino_itself_refused(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    pass_ = made(network())
    assert pass_.backend == "torch" and "pip install 'ziggurat[openvino]'" in pass_.reason
    with pytest.raises(MissingExtra, match=r"pip install 'ziggurat\[openvino\]'"):
        made(network(), backend="openvino")


class Branching(nn.Module):
    """What no graph can hold: what is computed depends on the numbers."""

    def forward(self, x):
        return x if x.mean().item() > 0 else x + 0


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_a_network_that_openvino_cannot_take_is_run_by_torch():
    model = network()
    model.act1 = Branching()
    with pytest.raises(BadArgument, match=r"OpenVINO cannot take this network \(.*take backend='torch'"):
        made(model, backend="openvino")
    pass_ = made(model)
    assert pass_.backend == "torch" and "cannot take this network" in pass_.reason
    assert only(pass_, pixels())["embedding"].shape == (4, 512)


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_a_backend_that_computes_something_else_is_not_taken(monkeypatch):
    """A conversion that went wrong, imitated: the converted network lacks its last activation."""
    convert = backends.converted

    def wrong(views, *arguments):
        block = views.model.layer4[-1]
        kept, block.act2 = block.act2, nn.Identity()
        try:
            return convert(views, *arguments)
        finally:
            block.act2 = kept

    monkeypatch.setattr(backends, "converted", wrong)
    with pytest.raises(BadArgument, match=r"differs from torch .*0\.9999 is required"):
        made(network(), backend="openvino")
    pass_ = made(network())
    assert pass_.backend == "torch" and "differs from torch" in pass_.reason


def test_agreement_is_judged_by_the_worst_image_of_the_worst_output():
    zero, one = np.zeros(3), np.array([1.0, 2.0, 3.0])
    assert forward._cosine(zero, zero) == 1 and forward._cosine(zero, one) == 0
    assert forward._cosine(one, -one) == pytest.approx(-1)
    assert not forward._cosine(one, np.full(3, np.nan)) >= 0.9


def test_bf16_is_close_or_refused():
    values = pixels()
    exact = only(made(network(), backend="torch"), values)["embedding"]
    pass_ = made(network(), backend="torch", precision="bf16")
    found = only(pass_, values)["embedding"]
    assert pass_.precision == "bf16" and found.dtype == np.float32
    assert not np.array_equal(found, exact) and least_cosine(found, exact) > 0.999
    if importlib.util.find_spec("openvino"):
        core = backends.import_openvino().Core()
        if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            assert least_cosine(only(made(network(), backend="openvino", precision="bf16"), values)["embedding"], exact) > 0.99
        else:
            with pytest.raises(BadArgument, match="no bf16 on this CPU"):
                made(network(), backend="openvino", precision="bf16")
            assert made(network(), precision="bf16").backend == "torch"


def test_arguments_that_cannot_work_are_refused():
    for wrong, sentence in ((dict(backend="tensorrt"), "auto, torch, compile, openvino"), (dict(precision="fp8"), "fp32 or bf16"),
                            (dict(batch_size=0), "batch_size=0"), (dict(threads=0), "threads=0")):
        with pytest.raises(BadArgument, match=sentence):
            made(network(), **wrong)
    with pytest.raises(BadArgument, match="device='tpu'"):
        make_forward(network(), EMBEDDING, PREPROCESSING, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(BadArgument, match="no GPU here"):
            make_forward(network(), EMBEDDING, PREPROCESSING, device="cuda")
    pass_ = made(network(), backend="torch")
    with pytest.raises(BadArgument, match=r"a batch of uint8 \(3, 64, 64, 3\): give uint8 \(4, 64, 64, 3\)"):
        only(pass_, pixels(3))


# -------------------------------------------------------------------- memory


class Small(nn.Module):
    """A device on which no more than `most` images fit."""

    def __init__(self, most, error):
        super().__init__()
        self.most, self.error, self.sizes = most, error, []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise self.error
        return x


MEMORY = (torch.OutOfMemoryError("CUDA out of memory."), MemoryError(),
          RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."))


@pytest.mark.parametrize("error", MEMORY, ids=["cuda", "host", "allocator"])
def test_a_batch_that_is_too_large_is_computed_in_halves_from_then_on(error):
    batches = [(seed, pixels(8, seed)) for seed in range(3)]
    expected = {seed: only(made(network(), batch_size=8, backend="torch"), batch)["embedding"] for seed, batch in batches}
    model = network()
    pass_ = made(model, batch_size=8, backend="torch")
    model.maxpool = nn.Sequential(model.maxpool, small := Small(2, error))
    found = dict(pass_.stream(batches))
    assert Counter(small.sizes) == {4: 2 * 2, 2: 3 * 4}, "the first two batches were in flight together"
    for seed, numbers in expected.items():
        np.testing.assert_allclose(found[seed]["embedding"], numbers, rtol=1e-4, atol=1e-5)


def test_a_single_image_that_is_too_large_ends_with_a_sentence():
    model = network()
    pass_ = made(model, batch_size=6, backend="torch")
    model.act1 = Small(0, MEMORY[0])
    with pytest.raises(OutOfMemory, match="a single image of 64 x 64 pixels; take smaller images"):
        only(pass_, pixels(6))
    assert Counter(model.act1.sizes) == {3: 2, 1: 6}
    assert issubclass(OutOfMemory, MemoryError)


def test_an_error_that_is_not_of_memory_is_passed_on():
    model = network()
    pass_ = made(model, backend="torch")
    model.act1 = Small(0, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        only(pass_, pixels())
    assert model.act1.sizes == [4]


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_out_of_memory_in_flight_is_begun_again_in_halves(monkeypatch):
    """Two batches are in flight when the first fails: both are computed, once the network is smaller."""
    pass_ = made(network(), threads=2, backend="openvino")
    expected = [only(pass_, pixels(seed=seed))["embedding"] for seed in range(4)]
    whole = pass_._engine
    assert whole.part == 4 and whole.ahead == 2

    def fail(begun):
        raise MemoryError

    monkeypatch.setattr(whole, "finish", fail)
    found = [values["embedding"] for _, values in pass_.stream((seed, pixels(seed=seed)) for seed in range(4))]
    assert pass_._engine.part == 2
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
