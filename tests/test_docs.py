"""The pages under docs/ say what is true."""

import importlib.util
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

import ziggurat
from commanding import ziggurat_
from parity import mindcv as oracle
from ziggurat import registry

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("docs_tool", ROOT / "tools" / "docs.py")
docs_tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs_tool)


def test_architectures_are_those_of_the_catalog():
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == docs_tool.models_page(), "run make docs"


def test_every_public_thing_is_on_the_page():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for _, things in docs_tool.SECTIONS:
        for thing in things:
            assert f"### `{thing.__name__}`" in page
            assert thing.__doc__
            assert thing.__doc__.splitlines()[0] in page, f"{thing.__name__} has another docstring: run make docs"


def test_the_table_of_output_strides_is_the_catalogs():
    page = (ROOT / "docs" / "pyramid.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+), (\d+) px \| ([\d.]+) \| (.*) \|$", page, re.M)
    assert len(rows) == 6
    for name, side, native, cells in rows:
        info = ziggurat.model_info(name)
        assert (int(side), native) == (info.input_size[-1], f"{info.macs / 1e9:.1f}")
        for stride, cell in zip((16, 8, 4), cells.split(" | ")):
            way = info.output_strides[stride]
            assert cell.startswith(f"{way['macs'] / 1e9:.1f} {way['how']}")
            assert ("stride" not in cell) == (way["stride"] == stride)


MINDCV = (ROOT / "docs" / "mindcv.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:.* is MindCV's name:UserWarning")
def test_programs_for_mindcvs_users(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", {})
    oracle.checkpoint("mobilenet_v3_small_100", tmp_path)
    names: dict[str, object] = {"__name__": "docs"}  # one session from the top of the page to its end
    for program in re.findall(r"```python\n(.*?)```", MINDCV, re.S):
        exec(compile(program, "docs/mindcv.md", "exec"), names)
        printed = capsys.readouterr().out.strip().splitlines()
        assert printed == [line.removeprefix("# ") for line in program.splitlines() if line.startswith("# ")]


def test_command_for_mindcvs_users():
    ((command, shown),) = re.findall(r"\$ ziggurat list '(.*)'\n(.*)\n", MINDCV)
    assert ziggurat_("list", command, status=1) == ("", shown + "\n")


def rows_of(section: str) -> list[list[list[str]]]:
    """What stands in backticks in each cell of the table of a section on MindCV."""
    (text,) = [part for part in MINDCV.split("\n## ") if part.startswith(section)]
    return [[re.findall(r"`([^`]*)`", cell) for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]


def test_names_for_mindcvs_users():
    called = {theirs: ours for names in registry.mindcv_names()["names"].values() for theirs, ours in names.items()}
    rows = rows_of("Names")
    assert len(rows) == 11
    for theirs, ours, _ in rows:
        assert [called[name] for name in theirs] == (ours or theirs)


def test_arguments_for_mindcvs_users():
    rows = [(names, {argument.split("=")[0] for argument in arguments}) for names, _, arguments in rows_of("Numbers")]
    used = set()
    for name in ziggurat.list_models():
        cfg = registry.weights_of(name).get("mindcv_in1k")
        found = [i for i, (patterns, _) in enumerate(rows) if any(fnmatch(name, f"{pattern}*") for pattern in patterns)]
        if cfg is not None and found:
            assert set().union(*(rows[i][1] for i in found)) == set(cfg.trained_with or ()), name
            used.update(found)
    assert used == set(range(len(rows)))


SPEED = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")


def test_programs_about_speed(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setenv("ZIGGURAT_CACHE", str(tmp_path / "cache"))
    for program in re.findall(r"```python\n(.*?)```", SPEED, re.S):
        exec(compile(program, "docs/speed.md", "exec"), {"__name__": "docs"})
        printed = capsys.readouterr().out.strip().splitlines()
        assert printed == [line.removeprefix("# ") for line in program.splitlines() if line.startswith("# ")]
