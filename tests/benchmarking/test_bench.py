"""Benchmarking: what contenders compute, how they take turns, what becomes of those that fail, and the figures."""

import json
import math
import os
import signal

import pytest
import torch
from torch.nn import functional as F

import ziggurat
from ziggurat import packages
from ziggurat.benchmarking import comparison, machine, report
from ziggurat.benchmarking.comparison import Comparison, Machine, Result, compare, percentile
from ziggurat.benchmarking.contenders import Case, assembled, check_backend, network_of, normalised, peers_of
from ziggurat.benchmarking.costs import Layer, layers_of, least_seconds
from ziggurat.benchmarking.references import prepare
from ziggurat.benchmarking.worker import ContenderFailed, Worker, finite
from ziggurat.errors import BadArgument, MissingExtra, UnknownModel

MACHINE = dict(device="a machine", threads=2, load=0.5, system="a system", versions={"torch": "2"}, bandwidth=1e9,
               peaks={"fp32": 1e9, "bf16": 4e9, "int8": None})


# ---------------------------------------------------------------- the machine, and what it must do at least


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "lambda_resnet26rpt_256"])
def test_the_layers_have_the_multiply_adds_of_the_catalog(name):
    info = ziggurat.model_info(name)
    model = ziggurat.create_model(name, device="meta").eval()
    layers = layers_of(model, torch.zeros(1, *info.input_size, device="meta"))
    assert sum(layer.flops for layer in layers) == 2 * info.macs


def test_a_layer_moves_its_inputs_weights_and_outputs_once():
    images = torch.zeros(2, 3, 8, 8, device="meta")
    kernel = torch.zeros(5, 3, 3, 3, device="meta")
    assert layers_of(lambda x: F.relu(F.conv2d(x, kernel)), images) == [Layer(2 * 2 * 5 * 36 * 27, 2 * 3 * 64 + 5 * 27 + 2 * 5 * 36)]


def test_an_attention_is_one_layer_without_its_table():
    q, k, v = (torch.zeros(2, 3, tokens, width, device="meta") for tokens, width in ((7, 4), (9, 4), (9, 5)))
    found = layers_of(lambda x: F.scaled_dot_product_attention(x, k, v), q)
    assert found == [Layer(2 * 2 * 3 * 7 * 9 * (4 + 5), 2 * 3 * (7 * 4 + 9 * 4 + 9 * 5 + 7 * 5))]
    assert layers_of(lambda x: F.scaled_dot_product_attention(query=x, key=k, value=v), q) == found


def test_a_layer_takes_the_slower_of_computing_and_moving():
    computes, moves = Layer(1000, 1), Layer(1, 1000)
    assert least_seconds([computes, moves], "fp32", peak=100.0, bandwidth=200.0) == 10 + 20
    assert least_seconds([moves], "bf16", peak=100.0, bandwidth=200.0) == 10


def test_the_peak_is_of_every_precision_that_torch_multiplies_in(monkeypatch):
    monkeypatch.setattr(machine, "SIDES", (64,))
    threads = torch.get_num_threads()
    assert machine.machine_peak("fp32", threads=1) > 1e6
    assert machine.machine_peak("bf16") > 1e3
    assert machine.machine_peak("int8") is None
    assert machine.copy_bandwidth(size=2**16) > 1e6
    assert torch.get_num_threads() == threads
    assert machine.describe(threads=3)["threads"] == 3


def test_a_further_measurement_can_only_find_more():
    joined = Machine(**MACHINE)
    joined.join(Machine(**MACHINE | {"bandwidth": 2e9, "peaks": {"fp32": 5e8, "bf16": 5e9, "int8": None}}))
    assert joined.bandwidth == 2e9
    assert joined.peaks == {"fp32": 1e9, "bf16": 5e9, "int8": None}


# ---------------------------------------------------------------- contenders


@pytest.mark.parametrize("values, said", [
    (dict(view="forward"), "view='forward': what is timed are classify, embed, pyramid"),
    (dict(precision="fp8"), "precision='fp8': there are fp32, bf16"),
    (dict(batch=0), "batch=0"),
], ids=str)
def test_a_case_that_cannot_be(values, said):
    with pytest.raises(BadArgument, match=said):
        Case("resnet18", **values)


def test_names_of_contenders(monkeypatch):
    check_backend("optimize@int8")
    with pytest.raises(BadArgument, match="no backend 'tensorrt': ours are eager, optimize, .*peers are timm-eager"):
        check_backend("tensorrt")
    with pytest.raises(BadArgument, match="optimize@fp8: behind the @ stands one of fp32"):
        check_backend("optimize@fp8")
    assert "timm-openvino" in peers_of("timm") and "timm-autotune" not in peers_of("timm")
    assert peers_of("timm-eager") == ["timm-eager"]
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install timm"):
        check_backend("timm-eager")
    check_backend("openvino")


@pytest.mark.parametrize("network, view", [("test_resnet", "pyramid"), ("test_vit", "pyramid"), ("test_convnext", "pyramid"),
                                           ("test_vit", "embed"), ("mobilenetv3_small_050", "classify")])
def test_the_peer_computes_what_we_do(network, view, tmp_path):
    case = Case(network, view, batch=2, size=64)
    [kit] = prepare([case], tmp_path)
    files = safetensors_of(kit.images)
    ours, theirs = (assembled(name, case, kit, files["images"], "cpu", None, tmp_path).outputs() for name in ("eager", "timm-eager"))
    expected = [files[f"output_{i}"] for i in range(len(files) - 1)]
    assert len(ours) == len(theirs) == len(expected)
    for one, other, wanted in zip(ours, theirs, expected):
        assert torch.equal(one, wanted)
        torch.testing.assert_close(other, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
        assert wanted.std() > 0  # random weights that matter


def safetensors_of(path):
    from safetensors.torch import load_file

    return load_file(path)


def test_bytes_give_what_their_normalised_numbers_give(tmp_path):
    case = Case("test_resnet", batch=2, size=64, pixels=True)
    [kit] = prepare([case], tmp_path)
    files = safetensors_of(kit.images)
    assert files["images"].dtype == torch.uint8
    wanted = network_of(case, kit)(normalised(files["images"], kit))
    for backend in ("eager", "optimize-eager", "timm-channels_last"):
        [found] = assembled(backend, case, kit, files["images"], "cpu", None, tmp_path).outputs()
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


def test_the_smaller_types_take_the_faster_way(tmp_path):
    case = Case("test_resnet", batch=1, size=32, precision="bf16")
    [kit] = prepare([case], tmp_path)
    files = safetensors_of(kit.images)
    built = assembled("timm-eager", case, kit, files["images"], "cpu", None, tmp_path)
    assert built.note in ("autocast", "bf16 weights")
    assert 0 < (built.outputs()[0] - files["output_0"]).abs().max() < 0.1 * files["output_0"].abs().max()
    [exact] = assembled("timm-eager@fp32", case, kit, files["images"], "cpu", None, tmp_path).outputs()
    torch.testing.assert_close(exact, files["output_0"], rtol=0, atol=1e-5 * exact.abs().max().item())


@pytest.mark.parametrize("backend, precision, said", [
    ("timm-eager", "int8", "timm has no int8"), ("eager", "int8", "torch has no int8"), ("timm-autotune", "fp32", "for GPUs"),
    ("timm-onnxruntime", "bf16", "no bf16"),
])
def test_what_cannot_be_says_so(backend, precision, said, tmp_path):
    case = Case("test_resnet", batch=1, size=32, precision=precision)
    [kit] = prepare([case], tmp_path)
    with pytest.raises(BadArgument, match=said):
        assembled(backend, case, kit, safetensors_of(kit.images)["images"], "cpu", None, tmp_path)


def test_a_network_of_one_size_gets_it(tmp_path):
    [kit] = prepare([Case("test_vit", batch=1, size=96)], tmp_path)
    assert (kit.size, kit.arguments) == (96, {"img_size": 96})
    [kit] = prepare([Case("test_vit", batch=1)], tmp_path)
    assert (kit.size, kit.arguments) == (160, {})
    assert kit.flops == 2 * ziggurat.model_info("test_vit").macs


# ---------------------------------------------------------------- taking turns


class FakeWorker:
    """Takes the place of a process: notes the orders of all, dies or fails where it is told to."""

    orders = []
    fails = {}
    open = 0

    def __init__(self, threads=None):
        self.backend = ""
        FakeWorker.open += 1

    def __enter__(self):
        return self

    def __exit__(self, *of):
        FakeWorker.open -= self.backend != "ended"
        self.backend = "ended"

    def ask(self, order, **arguments):
        if order == "machine":
            return MACHINE
        if order == "prepare":
            return {"kits": [{"flops": 10**6, "layers": [[10**6, 10]]} for _ in arguments["cases"]]}
        self.backend = arguments.get("backend", self.backend)
        FakeWorker.orders.append((order, self.backend, arguments.get("calls"), arguments.get("first")))
        if self.fails.get(self.backend) == order:
            raise ContenderFailed("it will not")
        if order == "build":
            seconds = {"optimize": 0.001, "eager": 0.1}.get(self.backend, 1.0)
            return {"build_seconds": 1.0, "build_memory": 1, "error": 0.0, "note": "", "once": seconds}
        rounds = sum(given[:2] == (order, self.backend) for given in FakeWorker.orders)
        return {"seconds": [{"optimize": 0.001, "eager": 0.1}.get(self.backend, 1.0) * rounds] * arguments["calls"], "memory": 5}


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(comparison, "Worker", FakeWorker)
    monkeypatch.setattr(comparison, "PAUSE", 0)
    monkeypatch.setattr(FakeWorker, "orders", [])
    monkeypatch.setattr(FakeWorker, "fails", {})
    monkeypatch.setattr(FakeWorker, "open", 0)
    return FakeWorker


def test_rounds_are_in_turn_and_begin_with_another(fake):
    compare([Case("resnet18")], ["eager", "timm-eager", "optimize"], rounds=4)
    backends = [backend for order, backend, *_ in fake.orders if order == "run"]
    assert [backends[i : i + 3] for i in (0, 3, 6, 9)] == [
        ["eager", "timm-eager", "optimize"], ["timm-eager", "optimize", "eager"], ["optimize", "eager", "timm-eager"],
        ["eager", "timm-eager", "optimize"]]
    assert [order for order, *_ in fake.orders[:4]] == ["build", "build", "build", "run"]  # all are made before the first runs
    calls = {backend: (calls, first) for order, backend, calls, first in fake.orders if order == "run"}
    assert calls == {"eager": (3, 1), "timm-eager": (1, 0), "optimize": (50, 1)}
    assert fake.open == 0


def test_ratios_and_shares(fake):
    done = compare([Case("resnet18")], ["eager", "timm-eager", "optimize", "optimize@int8"], rounds=3)
    found = done.of(Case("resnet18"))
    assert {name: one.is_baseline for name, one in found.items()} == {
        "eager": False, "timm-eager": True, "optimize": False, "optimize@int8": False}
    assert found["timm-eager"].ratio == 1 and found["eager"].ratio == pytest.approx(10)
    assert found["eager"].paired == pytest.approx(10)
    assert found["eager"].of_peak == pytest.approx(1e6 / 0.2 / 1e9)  # the median of 0.1, 0.2 and 0.3 seconds
    assert found["eager"].of_roofline == pytest.approx(1e-3 / 0.2)
    assert found["optimize@int8"].of_peak is None
    assert found["eager"].images_per_second == pytest.approx(8 / 0.2)
    named = compare([Case("resnet18")], ["eager", "optimize"], rounds=1, baseline="optimize").of(Case("resnet18"))
    assert named["eager"].ratio == pytest.approx(0.01) and named["optimize"].is_baseline


def test_one_that_fails_is_a_row_and_the_others_go_on(fake):
    fake.fails.update({"timm-eager": "build", "optimize": "run"})
    shown = []
    done = compare([Case("resnet18"), Case("resnet18", "embed")], ["timm-eager", "eager", "optimize"], rounds=2,
                   on_case=lambda machine, results: shown.append(results))
    assert [one.failure for one in done.results] == ["it will not", "", "while it ran: it will not"] * 2
    assert [len(results) for results in shown] == [3, 3]
    assert done.of(Case("resnet18"))["eager"].is_baseline
    assert sum(order == "run" and backend == "optimize" for order, backend, *_ in fake.orders) == 2  # once a case
    assert fake.open == 0


def test_without_references_every_row_says_why(fake, monkeypatch):
    ask = FakeWorker.ask
    failing = lambda self, order, **arguments: self.no() if order == "prepare" else ask(self, order, **arguments)
    monkeypatch.setattr(FakeWorker, "ask", failing)
    monkeypatch.setattr(FakeWorker, "no", lambda self: (_ for _ in ()).throw(ContenderFailed("no such size")), raising=False)
    done = compare([Case("resnet18")], ["eager"])
    assert [one.failure for one in done.results] == ["no references: no such size"]


def test_an_interrupt_leaves_nothing_running(fake):
    def say(sentence):
        if "round 2" in sentence:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare([Case("resnet18")], ["eager", "optimize"], say=say)
    assert fake.open == 0


@pytest.mark.parametrize("values, error, said", [
    (dict(backends=["nothing"]), BadArgument, "no backend"), (dict(backends=[]), BadArgument, "0 backends"),
    (dict(rounds=0), BadArgument, "rounds=0"), (dict(device="mps"), BadArgument, "runs on cpu or cuda"),
    (dict(cases=[Case("resnet1000")]), UnknownModel, "resnet1000"),
], ids=str)
def test_refused_before_anything_starts(values, error, said, fake):
    values = dict(cases=[Case("resnet18")], backends=["eager"]) | values
    with pytest.raises(error, match=said):
        compare(**values)
    assert fake.orders == []


# ---------------------------------------------------------------- processes


def test_a_process_that_dies_is_a_sentence_and_leaves_no_process():
    with Worker() as worker:
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(ContenderFailed, match=r"ended by SIGKILL.*memory is short"):
            worker.ask("run", calls=1)
    with pytest.raises(KeyboardInterrupt), Worker() as worker:
        raise KeyboardInterrupt
    assert worker.process.poll() == -signal.SIGKILL


def test_an_order_that_fails_is_a_sentence_and_the_process_goes_on():
    with Worker() as worker:
        with pytest.raises(ContenderFailed, match="TypeError.*calls"):
            worker.ask("run")
        assert len(worker.ask("run", calls=3, first=1)["seconds"]) == 3
    assert worker.process.poll() is not None


# ---------------------------------------------------------------- figures


def result(backend="eager", rounds=((0.1, 0.2, 0.3), (0.4, 0.4, 0.4), (0.2, 0.2, 0.2)), **values):
    return Result(Case("resnet18", batch=4), backend, rounds=[list(calls) for calls in rounds], **values)


def test_percentiles_are_between_the_nearest():
    assert [percentile([4.0, 1.0, 3.0, 2.0], share) for share in (0, 50, 75, 100)] == [1.0, 2.5, 3.25, 4.0]
    assert percentile([7.0], 99) == 7.0


def test_figures_of_a_result():
    one = result()
    assert one.medians == [0.2, 0.4, 0.2] and one.seconds == 0.2 and one.images_per_second == 20
    assert one.spread == (pytest.approx(4 / 0.3), 20)
    assert one.latency(50) == 0.2 and one.latency(100) == 0.4


@pytest.fixture
def done():
    rows = [result(ratio=1.0, paired=1.0, is_baseline=True, error=0.0, build_seconds=1.25, memory=2**21, build_memory=2**22, of_peak=0.5,
                   of_roofline=0.75), result("optimize", ((0.1,),) * 3, ratio=2.0, paired=2.5, build_seconds=2.0, note="openvino[x]"),
            Result(Case("resnet18", batch=4), "timm-openvino", failure="it is [not] installed")]
    return Comparison(Machine(**MACHINE), {"backends": ["eager"], "rounds": 3, "threads": None, "device": "cpu"}, rows)


def test_the_table(done, capsys):
    out = report.console()
    report.show_machine(done.machine, out)
    report.show_case(done.results, out)
    report.show_case(done.results[2:], out)
    first, _, title, headings, eager, optimize, failed, *rest = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert first == ("a machine, 2 threads, load 0.5; measured peak: fp32 1 Gflop/s, bf16 4 Gflop/s; a copy moves 1.0 GB/s; torch 2")
    assert title == "resnet18, classify, batch 4, fp32"
    assert headings.split()[:3] == ["backend", "images/s", "quartiles"]
    assert eager.split() == ["eager", "20", "13.33-20", "1.00x*", "1.00x", "200", "400", "400", "2", "4", "1.2", "0.0e+00", "50%", "75%"]
    assert optimize.split()[:5] == ["optimize", "40", "40-40", "2.00x", "2.50x"] and optimize.endswith("openvino[x]")
    assert failed == "timm-openvino: it is [not] installed"
    assert rest == ["", title, failed]


def test_json_holds_all_that_the_docstring_names(done, tmp_path):
    done.write(tmp_path / "figures.json")
    read = json.loads((tmp_path / "figures.json").read_text())
    assert read["machine"] == MACHINE and set(read) == {"machine", "settings", "results"}
    row, _, failed = read["results"]
    assert failed["failure"] == "it is [not] installed" and "images_per_second" not in failed
    for name in [*row, *row["latency"], *read["machine"], *read["settings"]]:
        assert f"`{name}`" in report.__doc__, name
    assert row["latency"]["p50"] == 0.2 and row["quartiles"][1] == 20 and row["baseline"] is True


def test_an_error_beyond_numbers_is_null_in_json():
    assert [finite(math.inf), finite(0.5), finite(None)] == [None, 0.5, None]


def test_the_plot(done, tmp_path, monkeypatch):
    for name in ("bars.png", "bars.svg"):
        report.check_plot(tmp_path / name)
        report.plot(done, tmp_path / name)
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "bars.svg").read_text()
    with pytest.raises(BadArgument, match=r"ends in \.png"):
        report.check_plot(tmp_path / "bars.txt")
    with pytest.raises(BadArgument, match="a folder that is there"):
        report.check_plot(tmp_path / "nowhere" / "bars.png")
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'ziggurat\[plot\]'"):
        report.check_plot(tmp_path / "bars.png")
