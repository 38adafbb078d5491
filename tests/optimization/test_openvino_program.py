"""Programs of OpenVINO: the numbers of torch, in parts and whole, from several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from ziggurat import packages
from ziggurat.errors import MissingExtra
from ziggurat.optimization import openvino_conversion, openvino_program
from ziggurat.optimization.program import Recipe, Unavailable
from ziggurat.view import View, largest_error

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def made(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))
    return View(model.eval(), "forward").describe(images)


def test_parts_and_whole_batches(images):
    view = made(images)
    with torch.no_grad():
        expected = view(images)
    recipes = openvino_program.recipes("openvino", view, images, "fp32", 2)
    assert [recipe.part for recipe in recipes] == [1, 2, 0]
    for recipe in recipes:
        program = openvino_program.build(view, images, recipe, 2)
        kept = program(images)
        program(images + 1)
        assert largest_error(kept, expected) < 1e-5  # the caller's to keep
        if recipe.part:
            assert largest_error(program(images[:2]), [output[:2] for output in expected]) < 1e-5


def test_threads_may_call_one_program(images):
    view = made(images)
    program = openvino_program.build(view, images, Recipe("openvino", part=1), 2)
    others = [images + shift for shift in range(6)]
    with torch.no_grad(), ThreadPoolExecutor(3) as pool:
        for found, other in zip(pool.map(program, others), others):
            assert largest_error(found, view(other)) < 1e-5


def test_parts_are_whole_divisors():
    assert openvino_program.parts(8, 2) == [1, 4, 0]
    assert openvino_program.parts(7, 2) == [1, 0]
    assert openvino_program.parts(2, 2) == [1, 0]
    assert openvino_program.parts(1, 2) == [0]


class Branching(nn.Module):
    def forward(self, x):
        return x if x.mean().item() > 0 else x + 0


def test_what_cannot_be_is_said(images, monkeypatch):
    broken = View(Branching(), "forward").describe(images)
    with pytest.raises(Unavailable, match="OpenVINO cannot take this network"):
        openvino_program.build(broken, images, Recipe("openvino"), 2)
    with pytest.raises(Unavailable, match="runs on the CPU"):
        openvino_program.recipes("openvino", broken, images.to("meta"), "fp32", 2)
    core = openvino_conversion.import_openvino().Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(Unavailable, match="no bf16 on this CPU"):
            openvino_program.recipes("openvino", broken, images, "bf16", 2)
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'ziggurat\[openvino\]'"):
        openvino_program.recipes("openvino", broken, images, "fp32", 2)
