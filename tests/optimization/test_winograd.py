"""Winograd's algorithm: the numbers of a convolution, what follows it, and where it is taken."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ziggurat
from ziggurat.optimization import onednn_graph
from ziggurat.optimization.program import Recipe, Unavailable
from ziggurat.optimization.torch_programs import build, recipes
from ziggurat.optimization.winograd import WinogradConvolution
from ziggurat.view import View, largest_error


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(onednn_graph._Convolution, "_is_faster_by_winograd", lambda *_: True)


@torch.no_grad()
@pytest.mark.parametrize("channels, filters, height, width, groups, count", [
    (64, 64, 56, 56, 1, 3),  # in strips of one image
    (128, 96, 28, 28, 1, 5),  # in some images at once, and a last one
    (32, 64, 13, 29, 1, 2), (8, 16, 3, 7, 2, 4), (16, 8, 5, 1, 4, 1),  # sides that are no multiples of a tile's
])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_convolution(channels, filters, height, width, groups, count, format):
    images = torch.randn(count, channels, height, width).contiguous(memory_format=format)
    weight, bias = torch.randn(filters, channels // groups, 3, 3), torch.randn(filters)
    expected = F.conv2d(images.double(), weight.double(), bias.double(), padding=1, groups=groups)
    other = torch.randn(expected.shape)
    for activation in (torch.relu_, F.silu):
        layer = WinogradConvolution(weight, bias, groups, activation)
        assert largest_error([layer(images)], [activation(expected.clone())]) < 2e-5
        assert largest_error([layer(images, other)], [activation(expected + other)]) < 2e-5
    found = WinogradConvolution(weight, None, groups)(images)
    assert largest_error([found + bias.reshape(-1, 1, 1)], [expected]) < 2e-5
    assert found.is_contiguous(memory_format=torch.channels_last)


class Varied(nn.Module):
    """3x3 convolutions, those that Winograd's algorithm has, first those that it has not."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 16, 3, stride=2), nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.depthwise, self.bare = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 3)
        self.one, self.two = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.Conv2d(16, 16, 3, padding=1, groups=2)

    def forward(self, images):
        x = self.depthwise(self.wide(self.stem(images)))
        outputs = [self.bare(x), self.one(x), F.relu(self.two(x)), F.leaky_relu(self.one(x), 0.3)]
        outputs += [x + self.two(x), F.relu(self.one(x) + x), F.silu(x + self.two(x)), torch.add(self.one(x), x, alpha=2)]
        twice = self.two(x)
        return (*outputs, twice.relu() + twice, F.elu(self.one(x)))


def test_what_follows_is_computed_with_it(always):
    images = torch.randn(4, 3, 30, 26)
    torch.manual_seed(0)
    view = View(Varied(), "forward").describe(images)
    program = build(view, images, Recipe("winograd", "fp32", 2, "channels_last"), 2)
    with torch.no_grad():
        expected = view(images)
    for _ in range(2):
        outputs = program(images)
        for index, (output, reference) in enumerate(zip(outputs, expected, strict=True)):
            assert largest_error([output], [reference]) < 1e-5, index
    counts = Counter(str(node.target) for node in program.call.graph.nodes)
    assert sum(isinstance(module, WinogradConvolution) for module in program.call.children()) == 9
    assert counts["mkldnn._convolution_pointwise.default"] == 4
    assert not set(counts) & {"aten.leaky_relu.default", "aten.silu.default"}
    assert counts["aten.relu.default"] == 1 and counts["aten.add.Tensor"] == 2
    program.close()


def test_optimize_takes_it_by_name(always, tmp_path, monkeypatch):
    monkeypatch.setenv("ZIGGURAT_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model = ziggurat.create_model("test_resnet").eval()
    images = torch.randn(3, 3, 96, 70)
    fast = ziggurat.optimize(model, images, backend="winograd", view="pyramid", verbose=False)
    assert fast.recipe.backend == "winograd" and 0 < fast.trials[-1].error < 1e-4
    with torch.no_grad():
        for some in (images, torch.randn(1, 3, 50, 64)):
            found, expected = fast.pyramid(some), model.pyramid(some)
            assert largest_error(found.values(), expected.values()) < 1e-4
            assert largest_error([fast(some)], [model(some)]) < 1e-4


def test_where_it_is_slower_or_has_nothing_to_do_it_says_so(monkeypatch):
    images = torch.randn(2, 3, 32, 32)
    view = View(Varied(), "forward").describe(images)
    (recipe,) = recipes("winograd", view, images, "fp32", 2)
    assert recipe == Recipe("winograd", "fp32", 1, "channels_last")
    monkeypatch.setattr(onednn_graph, "MARGIN", float("inf"))
    with pytest.raises(Unavailable, match="faster for none of its convolutions; take backend='onednn'"):
        build(view, images, recipe, 2)
    monkeypatch.setattr(onednn_graph, "MARGIN", 0.0)
    build(view, images, recipe, 2).close()
    with pytest.raises(Unavailable, match="has no bf16"):
        recipes("winograd", view, images, "bf16", 2)
    other = View(nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 1)), "forward")
    with pytest.raises(Unavailable, match="'winograd' is for 3x3 convolutions of stride 1, which Sequential has none of"):
        recipes("winograd", other, images, "fp32", 2)
