"""The pages under docs/ say what is true."""

import importlib.util
from pathlib import Path

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
