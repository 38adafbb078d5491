"""The pages under docs/ say what is true."""

import importlib.util
import re
from pathlib import Path

import ziggurat

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
