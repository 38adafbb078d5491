"""The certificate of exports covers the registry, and the page and the facts say what it says."""

import importlib.util
import json
from pathlib import Path

import pytest

import ziggurat
from ziggurat.cli.info import described
from ziggurat.exporting.export import FORMATS
from ziggurat.facts import CERTIFIED, MODES
from ziggurat.registry import catalog

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("certify_tool", ROOT / "tools" / "certify.py")
certify = importlib.util.module_from_spec(spec)
spec.loader.exec_module(certify)

TABLE = json.loads(CERTIFIED.read_text(encoding="utf-8"))


def test_every_class_is_certified_by_its_smallest_architecture():
    found = {one: (row["architecture"], row["size"]) for one, row in TABLE["classes"].items()}
    assert found == certify.representatives(), "run make certify"
    assert found.keys() == {f"{facts['module']}.{facts['class']}" for facts in catalog().values()}
    for one, (architecture, _) in found.items():
        same = [facts["params"] for facts in catalog().values() if f"{facts['module']}.{facts['class']}" == one]
        assert catalog()[architecture]["params"] == min(same)


def test_every_view_format_and_mode_is_an_error_a_sentence_or_not_run():
    for row in TABLE["classes"].values():
        assert list(row["exports"]) == list(FORMATS)
        for views in row["exports"].values():
            assert list(views) == list(certify.VIEWS)
            for modes in views.values():
                assert list(modes) == list(MODES)
                for result in modes.values():
                    assert result is None or (isinstance(result, str) and len(result) > 15) or 0 <= result <= TABLE["tolerance"]


def test_the_page_is_the_certificates():
    assert (ROOT / "docs" / "exports.md").read_text(encoding="utf-8") == certify.page(TABLE), "run make certify"


def test_facts_are_the_certificates_of_the_class():
    info = ziggurat.model_info("resnet50")
    row = TABLE["classes"]["resnet.ResNet"]
    assert (info.exports, info.exports_of) == (row["exports"], row["architecture"])
    assert ziggurat.model_info("sknet50" if "sknet50" in catalog() else "skresnet50").exports_of == "skresnet18"
    info.exports["onnx"].clear()
    assert ziggurat.model_info("resnet50").exports["onnx"]


def test_the_command_shows_them():
    text = described(ziggurat.model_info("resnet50"))
    assert "measured on test_resnet" in text
    for format in FORMATS:
        assert f"\n  {format} " in text


def line(one, view, mode, format, result):
    return json.dumps({"class": one, "view": view, "mode": mode, "format": format, "result": result, "versions": {"torch": "9.9"}})


def test_lines_become_a_table_with_what_failed_and_what_was_not_run(tmp_path):
    file = tmp_path / "lines.jsonl"
    one = "resnet.ResNet"
    file.write_text("\n".join([
        line(one, "embed", "static", "onnx", "once"), line(one, "embed", "static", "onnx", 2e-7),
        line(one, "embed", "dynamic", "onnx", "no | operator"), line(one, "embed", "static", "coreml", certify.UNCHECKED.get("coreml", 0.0)),
    ]))
    table = certify.certified(certify.known([file]))
    assert table["versions"] == {"torch": "9.9"}
    assert table["classes"][one]["exports"]["onnx"]["embed"] == {"static": 2e-7, "dynamic": "no | operator"}
    assert table["classes"][one]["exports"]["torch"]["embed"] == {"static": None, "dynamic": None}
    page = certify.page(table)
    assert "| 2e-07 / [1] |" in page
    assert "| not run / not run |" in page
    assert "\n1. no / operator\n" in page


def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    file = tmp_path / "lines.jsonl"
    classes = {one: row for one, row in certify.representatives().items() if one in ("resnet.ResNet", "convnext.ConvNeXt")}
    tried = []

    def measure(architecture, side, view, mode, formats):
        for format in formats:
            if len(tried) == 5:
                raise KeyboardInterrupt
            tried.append((architecture, view, mode, format))
            yield format, {"result": 1e-7, "seconds": 1.0}

    monkeypatch.setattr(certify, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        certify.run(file, classes, ["torch", "aoti"])
    stopped, tried[:] = list(tried), []
    monkeypatch.setattr(certify, "measure", lambda *job: (tried.append((*job[:1], *job[2:4], format)) or
                                                          (format, {"result": 1e-7, "seconds": 1.0}) for format in job[4]))
    certify.run(file, classes, ["torch", "aoti"])
    assert len(stopped) == 5
    assert len({*stopped, *tried}) == len(stopped) + len(tried) == 2 * len(certify.VIEWS) * len(MODES) * 2
    assert [format for *_, format in [*stopped, *tried]] == ["torch"] * 12 + ["aoti"] * 12


def test_a_failure_is_the_message_of_what_raised_first():
    error = ziggurat.errors.ExportFailed("format='onnx': cannot; try another format")
    assert certify.cause(error) == "format='onnx': cannot"
    error.__cause__ = TypeError("no operator\nand more")
    assert certify.cause(error) == "TypeError: no operator"
