"""int8: close to the network in floats, weights and sums that are bytes, calibration images that are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ziggurat import packages
from ziggurat.errors import BadArgument, MissingExtra
from ziggurat.optimization import onnxruntime_program, openvino_program, quantizing
from ziggurat.optimization.program import Recipe
from ziggurat.view import View, largest_error


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("module, needed", ((openvino_program, "nncf"), (onnxruntime_program, "onnxruntime")))
def test_int8_is_close_and_is_int8(module, needed, images, capfd):
    pytest.importorskip(needed)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(16, 8))
    view = View(model.eval(), "forward").describe(images)
    backend = module.__name__.rpartition(".")[2].removesuffix("_program")
    program = module.build(view, images, Recipe(backend, "int8", 2), 2, images)
    with torch.no_grad():
        error = largest_error(program(images), view(images))
    assert 1e-5 < error < 0.1
    assert "Applying" not in capfd.readouterr().out
    program.close()


def test_calibration_images_fill_whole_batches(images):
    first, second = quantizing.batches(images[:3], images[:2])
    assert torch.equal(first, images[:2]) and torch.equal(second, torch.stack([images[2], images[0]]))


@pytest.mark.parametrize("wrong, sentence", (
    (None, r"needs calibration images: .*\(N, 3, 32, 32\), float32, of 100 to 300"),
    (torch.zeros(4, 3, 16, 16), r"\(4, 3, 16, 16\), float32, and the network's images are \(N, 3, 32, 32\)"),
    (torch.zeros(4, 3, 32, 32, dtype=torch.uint8), "uint8, and the network's"), (torch.zeros(0, 3, 32, 32), "give these")))
def test_what_is_no_calibration(wrong, sentence, images):
    with pytest.raises(BadArgument, match=sentence):
        quantizing.batches(wrong, images)


def test_nncf_that_is_missing(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'ziggurat\[int8\]'"):
        quantizing.require_nncf()
