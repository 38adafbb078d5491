"""Programs of ONNX Runtime: the numbers of torch, in parts and whole, from rewritten graphs."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import ziggurat
from ziggurat import packages
from ziggurat.errors import MissingExtra
from ziggurat.optimization import onnxruntime_program
from ziggurat.optimization.program import Recipe, Unavailable
from ziggurat.view import View, largest_error

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Gated(nn.Module):
    """Squeeze and excitation, and a sum of two halves: what the rewrites are about."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.last = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 16, 1), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        x = self.conv(x).relu()
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.last(x.unflatten(1, (2, 8)).sum(1))


def made(model, images, view="forward"):
    torch.manual_seed(0)
    return View(model.eval(), view).describe(images)


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_parts_and_whole_batches_from_files_that_go_away(images):
    view = made(Gated(), images)
    with torch.no_grad():
        expected = view(images)
    recipes = onnxruntime_program.recipes("onnxruntime", view, images, "fp32", 2)
    assert [recipe.part for recipe in recipes] == [1, 2, 0]
    paths = set()
    for recipe in recipes:
        program = onnxruntime_program.build(view, images, recipe, 2)
        kept = program(images)
        program(images + 1)
        assert largest_error(kept, expected) < 1e-5  # the caller's to keep
        assert all(output.data_ptr() != other.data_ptr() for output, other in zip(kept, program(images)))
        if recipe.part:
            assert largest_error(program(images[:2]), [output[:2] for output in expected]) < 1e-5
        paths.add(program.session.graph.path)
        program.close()
    assert len(paths) == 2  # rewritten for parts, as exported for whole batches
    assert all(path.exists() for path in paths)
    del view, program
    gc.collect()
    assert not any(path.parent.exists() for path in paths)


def test_rewrites_take_the_place_of_what_is_slow(images):
    import onnx

    view = made(Gated(), images)
    program = onnxruntime_program.build(view, images, Recipe("onnxruntime", part=2), 1)
    kinds = [node.op_type for node in onnx.load(program.session.graph.path).graph.node]
    assert {"GlobalAveragePool", "Resize", "Split"} <= set(kinds) and not {"ReduceMean", "ReduceSum"} & set(kinds)
    program.close()


def test_attention_is_one_operator():
    import onnx

    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    view = made(ziggurat.create_model("test_vit", img_size=64), images, "classify")
    program = onnxruntime_program.build(view, images, Recipe("onnxruntime", part=1), 2)
    with torch.no_grad():
        assert largest_error(program(images), view(images)) < 1e-5
    kinds = [node.op_type for node in onnx.load(program.session.graph.path).graph.node]
    assert "MultiHeadAttention" in kinds and "Softmax" not in kinds
    program.close()


class Branching(nn.Module):
    def forward(self, x):
        return x if x.mean().item() > 0 else x + 0


def test_what_cannot_be_is_said(images, monkeypatch):
    with pytest.raises(Unavailable, match="cannot export this network"):
        onnxruntime_program.build(made(Branching(), images), images, Recipe("onnxruntime"), 2)
    view = made(nn.Conv2d(3, 4, 1), images)
    with pytest.raises(Unavailable, match="no bf16 on cpu"):
        onnxruntime_program.recipes("onnxruntime", view, images, "bf16", 2)
    with pytest.raises(Unavailable, match="does not run on meta"):
        onnxruntime_program.recipes("onnxruntime", view, images.to("meta"), "fp32", 2)
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'ziggurat\[onnx\]'"):
        onnxruntime_program.recipes("onnxruntime", view, images, "fp32", 2)
