"""The catalog is what the code measures to, for every architecture: building all of them on the meta device."""

import importlib
import importlib.util
from pathlib import Path

import pytest

from ziggurat.backbone.measure import OUTPUT_STRIDES
from ziggurat.models import _families
from ziggurat.registry import CATALOG, catalog

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("catalog_tool", ROOT / "tools" / "catalog.py")
catalog_tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(catalog_tool)


ROWS_A_TEST = 12
CHUNKS = [
    (module, start)
    for module in _families()
    for start in range(0, len(catalog(module)), ROWS_A_TEST)
]  # fmt: skip


@pytest.mark.parametrize(("module", "start"), CHUNKS)
def test_catalog_is_fresh(module, start):
    """And so levels are as declared, at the native size, at one that no grid divides, and dense.

    Of the three output strides each architecture is run at one here; make catalog runs all.
    """
    for number, name in enumerate(list(catalog(module))[start : start + ROWS_A_TEST], start):
        stride = OUTPUT_STRIDES[number % len(OUTPUT_STRIDES)]
        wanted = {key: value for key, value in catalog(module)[name].items() if key != "module"}
        wanted["output_strides"] = {str(stride): wanted["output_strides"][str(stride)]}
        assert catalog_tool.measured(module, [name], [stride]) == {name: wanted}, f"stale: run make catalog F={module}"


@pytest.mark.parametrize("module", _families())
def test_catalog_has_the_familys_rows(module):
    family = importlib.import_module(f"ziggurat.models.{module}").family
    assert list(catalog(module)) == list(family)


def test_every_catalog_has_a_family():
    assert {path.stem for path in CATALOG.glob("*.json")} == set(_families())
    assert len(catalog()) > 300
