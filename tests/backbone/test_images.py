"""What is said of images that a model cannot take, and networks of one size only."""

import pytest
import torch
from torch import fx, nn
from torch.nn.functional import interpolate

import ziggurat
from ziggurat import Backbone
from ziggurat.backbone.measure import measure
from ziggurat.errors import BadArgument
from ziggurat.testing import assert_same


@pytest.mark.parametrize("shape, message", [
    ((3, 64, 64), r"shape \(3, 64, 64\): give a batch of four axes, \(B, 3, H, W\)"),
    ((1, 4, 64, 64), r"4 channels: this model takes in_chans=3; or create it with in_chans=4"),
    ((1, 64, 64, 3), r"64 channels.*permute\(0, 3, 1, 2\)"),
    ((1, 3, 31, 64), "31 x 64 pixels: this model takes 32 x 32 or more"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_images_that_cannot_be_taken(name, shape, message):
    model = ziggurat.create_model(name, device="meta")
    for view in (model, model.pyramid, model.embed, model.forward_intermediates):
        with pytest.raises(BadArgument, match=message):
            view(torch.zeros(shape, device="meta"))


def test_the_least_size_can_be_lowered():
    model = ziggurat.create_model("resnet18", num_classes=10).eval()
    model.min_size = 28
    assert model(torch.randn(1, 3, 28, 28)).shape == (1, 10)
    assert ziggurat.create_model("test_vit", img_size=28, patch_size=4).eval()(torch.randn(1, 3, 28, 28)).shape[0] == 1


def test_the_check_is_one_call_in_a_traced_graph():
    graph = fx.symbolic_trace(ziggurat.create_model("resnet18").eval())
    assert graph(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


class OneSize(Backbone):
    """A map whose positions are mixed by a matrix: it takes 64 x 64 pixels and nothing else."""

    units = r"mixers\.(\d+)"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.native_size = (64, 64)
        self.stem = nn.Conv2d(self.in_chans, 8, 8, stride=self.plan.spend(8))
        self.mixers = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))
        for i in range(2):
            self.plan.mark(8, f"mixers.{i}")
        self.make_head("fc")

    def trunk(self, x):
        x = self.stem(x)
        for mixer in self.mixers:
            x = mixer(x.flatten(2)).unflatten(2, (8, 8))
            yield x


@torch.no_grad()
def test_a_network_of_one_size_takes_any():
    torch.manual_seed(0)
    model = OneSize().eval()
    native, other = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 100, 60)
    shrunk = interpolate(other, (64, 64), mode="bilinear", antialias=True)
    assert_same(model(other), model(shrunk), "scores", 0)
    level = model.pyramid(other)[8]
    assert level.shape == (2, 8, 13, 8)
    assert_same(level, interpolate(model.pyramid(shrunk)[8], (13, 8), mode="bilinear", antialias=True), "its map", 0)
    assert_same(model.pyramid(native)[8], list(model.trunk(native))[-1], "the native map", 0)
    dense = OneSize(output_stride=4).eval()
    dense.load_state_dict(model.state_dict())
    assert dense.is_stitched
    assert_same(dense.pyramid(native)[4][..., ::2, ::2], model.pyramid(native)[8], "the native positions")
    assert dense.pyramid(other)[4].shape[2:] == (25, 15)
    dims = {2: torch.export.Dim("height", min=64, max=512), 3: torch.export.Dim("width", min=64, max=512)}
    program = torch.export.export(model, (torch.randn(2, 3, 96, 80),), dynamic_shapes=(dims,))
    assert_same(program.module()(native), model(native), "exported")


def test_the_catalog_says_so():
    def create(**kwargs):
        with torch.device("meta"):
            return OneSize(**kwargs)

    facts = measure(create, (3, 64, 64))
    assert facts["native_size_only"] is True
    assert facts["output_strides"]["16"]["how"] == "native"
    assert facts["output_strides"]["4"]["how"] == "stitched"
