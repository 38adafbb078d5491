"""The catalog is what the code measures to, for every architecture: building all of them on the meta device."""

import importlib.util
from pathlib import Path

import pytest

from ziggurat.models import _families
from ziggurat.registry import CATALOG, catalog

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("catalog_tool", ROOT / "tools" / "catalog.py")
catalog_tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(catalog_tool)


@pytest.mark.parametrize("module", _families())
def test_catalog_is_fresh(module):
    text = (CATALOG / f"{module}.json").read_text(encoding="utf-8")
    assert text == catalog_tool.measured(module), f"stale: run make catalog F={module}"


def test_every_catalog_has_a_family():
    assert {path.stem for path in CATALOG.glob("*.json")} == set(_families())
    assert len(catalog()) > 300
