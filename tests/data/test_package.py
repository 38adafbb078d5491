"""`ziggurat.data` is a list of names until one is used."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from ziggurat import data


def test_importing_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'torchvision', 'PIL', 'numpy', 'timm'} & set(sys.modules)"
    code = f"import sys, ziggurat.data as d; assert not {heavy}; assert 'create_transform' in dir(d)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_preprocessing_needs_no_torchvision() -> None:
    code = """
import sys
sys.modules["torchvision"] = None  # importing it now fails
from PIL import Image
from ziggurat import data
assert data.create_transform(32)(Image.new("RGB", (50, 40))).shape == (3, 32, 32)
assert data.create_transform(32, is_training=True, auto_augment="rand-m9", re_prob=1.0)(Image.new("L", (50, 40))).ndim == 3
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_every_name_is_at_home() -> None:
    for name in data.__all__:
        home = importlib.import_module(f"ziggurat.data.{data._HOME[name]}")
        assert name in home.__all__
        assert getattr(data, name) is getattr(home, name)
    assert set(data.__all__) <= set(dir(data))
    assert data.auto_augment.AugmentOp is data.AugmentOp


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'create_loader'"):
        _ = data.create_loader
