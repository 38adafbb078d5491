"""`ziggurat bench`: one small run in processes as it is, and what is refused."""

import json

import pytest

from commanding import ziggurat_
from ziggurat.cli import bench


def test_a_run(tmp_path):
    out, err = ziggurat_("bench", "test_resnet", "--views", "pyramid", "--backends", "eager", "--batch", "1",
                         "--size", "32", "--rounds", "2", "--threads", "1", "--device", "cpu", "--json", tmp_path / "figures.json")
    assert err == ""
    machine, _, title, _headings, row = [line.strip() for line in out.splitlines()]
    assert "measured peak: fp32 " in machine
    assert title == "test_resnet, pyramid, batch 1 at 32 px, fp32"
    assert row.split()[0] == "eager" and "1.00x*" in row and " 0.0e+00 " in row
    found = json.loads((tmp_path / "figures.json").read_text())
    [eager] = found["results"]
    assert [len(calls) for calls in eager["rounds"]] == [len(eager["rounds"][0])] * 2
    assert eager["error"] == 0 and eager["images_per_second"] > 0 and eager["of_peak"] > 0
    assert found["settings"] == {"backends": ["eager"], "rounds": 2, "threads": 1, "device": "cpu"}


@pytest.fixture
def asked(monkeypatch):
    """The arguments of `compare`, which is not run."""
    from ziggurat.benchmarking import comparison

    given = {}

    def compare(cases, backends, **options):
        given.update(options, cases=cases, backends=backends)
        machine = comparison.Machine("m", 1, None, "s", {}, 1.0, {})
        rows = [comparison.Result(case, backend, failure="it will not" if backend == "compile" else "", rounds=[[0.5]],
                                  ratio=1.0, paired=1.0) for case in cases for backend in backends]
        return comparison.Comparison(machine, {"rounds": 1}, rows)

    monkeypatch.setattr(comparison, "compare", compare)
    return given


def test_every_combination_is_a_case(asked):
    ziggurat_("bench", "resnet18", "vit_tiny_patch16_224", "--views", "classify,pyramid", "--batch", "1,8,32", "--precision",
              "fp32,bf16", "--against", "timm-eager,timm", "--backends", "optimize,openvino", "--pixels", "--device", "cpu")
    assert len(asked["cases"]) == len(set(asked["cases"])) == 2 * 2 * 3 * 2
    assert all(case.pixels for case in asked["cases"])
    assert list(dict.fromkeys(asked["backends"])) == ["optimize", "openvino", "timm-eager", "timm-channels_last", "timm-compile",
                                                      "timm-onnxruntime", "timm-openvino"]


@pytest.mark.parametrize("arguments, cases", [(["--json"], 1), (["--json", "--batch", "4"], 1), (["resnet34", "--json"], 2)], ids=str)
def test_json_without_a_file_is_printed(asked, arguments, cases):
    out, _ = ziggurat_("bench", "resnet18", "--backends", "eager", *arguments)
    assert len(json.loads(out)["results"]) == cases


@pytest.mark.parametrize("backends, status", [("eager", 0), ("eager,compile", 1), ("compile", 2)])
def test_the_status_says_whether_all_have_figures(asked, backends, status):
    ziggurat_("bench", "resnet18", "--backends", backends, status=status)


def test_json_takes_names_that_follow_it_for_names(asked):
    assert len(json.loads(ziggurat_("bench", "--json", "resnet18")[0])["results"]) == 2  # eager, optimize


@pytest.mark.parametrize("arguments, said", [
    (["--batch", "1,x"], "--batch 1,x: give whole numbers"), (["--batch", "0"], "--batch 0: give whole numbers"),
    (["--views", "tokens"], "view='tokens': what is timed are classify, embed, pyramid"),
    (["--views", "classify,"], "--views classify,: give values with commas between them"),
    (["--precision", "fp8"], "precision='fp8'"), (["--backends", "tensorrt"], "no backend 'tensorrt'"),
    (["--backends", ""], "--backends: name one at least"), (["--against", "torchvision"], "no backend 'torchvision'"),
    (["--json", "nowhere/x.json"], "--json nowhere/x.json: give the name of a file"), (["--json", "./"], "--json .: give the name of a file"), (["--plot", "x.bmp"], "--plot x.bmp: give a file name that ends in"),
], ids=str)
def test_refused(arguments, said):
    out, err = ziggurat_("bench", "resnet18", *arguments, status=2)
    assert out == "" and said in err


def test_help_shows_that_the_file_may_be_left_out():
    assert "[FILE.json]" in ziggurat_("bench", "--help")[0]
    assert bench.several("--x", "a, b,a") == ["a", "b"]
