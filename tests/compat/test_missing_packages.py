"""A library that is not installed is named, with the command that installs it."""

import importlib
import sys

import pytest

from ziggurat.errors import MissingExtra


@pytest.mark.parametrize("module, package, extra", [
    ("torchvision", "torchvision.ops.feature_pyramid_network", "torchvision"),
    ("segmentation_models", "segmentation_models_pytorch.encoders", "segmentation-models"),
    ("transformers", "transformers", "transformers"),
])
def test_a_missing_package_is_named(module, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"ziggurat.compat.{module}", raising=False)
    with pytest.raises(MissingExtra, match=rf"pip install 'ziggurat\[{extra}\]'"):
        importlib.import_module(f"ziggurat.compat.{module}")
