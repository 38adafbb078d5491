"""Classifier heads: made, remade, and refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from twin import agree, close, ours, randomise, theirs, twin

from ziggurat.errors import BadArgument

IMG = (2, 8, 5, 4)
HEADS = [
    ("ClassifierHead", (8, 5), {}, IMG),
    ("ClassifierHead", (8, 5), {"use_conv": True, "pool_type": "catavgmax"}, IMG),
    ("NormMlpClassifierHead", (8, 5), {"hidden_size": 6}, IMG),
    ("NormMlpClassifierHead", (8, 5), {"pool_type": ""}, IMG),
    ("ClNormMlpClassifierHead", (8, 5), {"hidden_size": 6}, (2, 5, 4, 8)),
]
RESETS = [
    ((3,), {}),
    ((0,), {}),
    ((3, "max"), {}),
    ((0, ""), {}),
    ((3, "avgmax", True), {}),
    ((4,), {"reset_other": True, "in_features": 8}),
    ((2,), {"dtype": torch.float32}),
]


@pytest.mark.parametrize("reset,options", RESETS)
@pytest.mark.parametrize("name,args,kwargs,shape", HEADS)
def test_reset_as_timm(name, args, kwargs, shape, reset, options):
    a, b = twin(name, *args, **kwargs)
    a.eval().reset(*reset, **options)
    b.eval().reset(*reset, **options)
    assert {k: v.shape for k, v in a.state_dict().items()} == {k: v.shape for k, v in b.state_dict().items()}
    assert a.num_features == b.num_features
    assert not any(m.training for m in a.modules())
    a.load_state_dict(randomise(b).state_dict(), strict=True)
    x = torch.randn(shape)
    close(a(x, pre_logits=True), b(x, pre_logits=True))
    agree(a, b, x)


def test_reset_to_another_width():
    head = ours.ClassifierHead(8, 5)
    head.reset(3, in_features=4)
    assert head(torch.randn(2, 4, 3, 3)).shape == (2, 3)
    head = ours.NormMlpClassifierHead(8, 5, hidden_size=6)
    with pytest.raises(BadArgument, match="reset_other"):
        head.reset(3, in_features=4)
    head.reset(3, reset_other=True, in_features=4)
    assert head(torch.randn(2, 4, 3, 3)).shape == (2, 3)


def test_reset_keeps_place_and_precision():
    head = ours.NormMlpClassifierHead(8, 5, hidden_size=6).double()
    head.reset(3, "")
    assert {p.dtype for p in head.parameters()} == {torch.float64}
    assert isinstance(head.pre_logits.fc, nn.Conv2d)
    meta = ours.ClassifierHead(8, 5).to("meta")
    meta.reset(2)
    assert meta.fc.weight.is_meta


@pytest.mark.parametrize("pool", ["avg", "catavgmax", "", "fast"])
@pytest.mark.parametrize("use_conv", [True, False])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("drop", [None, 0.0])
def test_create_classifier(pool, use_conv, classes, drop):
    if not pool and classes and not use_conv:
        with pytest.raises(BadArgument, match="pass a pool_type"):
            ours.create_classifier(8, classes, pool, use_conv)
        return
    parts = [p.create_classifier(8, classes, pool, use_conv, drop_rate=drop) for p in (ours, theirs)]
    assert [type(m).__name__ for m in parts[0]] == [type(m).__name__ for m in parts[1]]
    a, b = (nn.Sequential(*p) for p in parts)
    a.load_state_dict(b.state_dict())
    agree(a, b, torch.randn(IMG))


@pytest.mark.parametrize(
    "call",
    [
        lambda: ours.ClassifierHead(8, 5).reset(5, ""),
        lambda: ours.ClassifierHead(8, 5, pool_type=""),
        lambda: ours.NormMlpClassifierHead(8, 5, pool_type="catavgmax"),
        lambda: ours.ClNormMlpClassifierHead(8, 5, pool_type="catavgmax"),
        lambda: ours.ClNormMlpClassifierHead(8, 5, input_fmt="NCHW"),
        lambda: ours.NormMlpClassifierHead(8, 5, norm_layer=""),
    ],
)
def test_refused(call):
    with pytest.raises(BadArgument):
        call()


class Net(nn.Module):
    default_cfg = {"input_size": (3, 8, 8), "pool_size": (3, 3), "test_input_size": (3, 12, 12)}
    num_features, num_classes = 4, 5

    def __init__(self, bias=True):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(4, 5, bias=bias)

    def get_classifier(self):
        return self.fc

    def reset_classifier(self, num_classes):
        self.fc = nn.Identity()

    def forward_features(self, x):
        return self.body(x)


def test_test_time_pooling():
    from timm.layers import apply_test_time_pool

    a = Net().eval()
    b = Net().eval()
    b.load_state_dict(a.state_dict())
    larger = {"input_size": (3, 12, 12)}
    assert ours.apply_test_time_pool(a, larger, use_test_size=True) == (a, False)
    assert ours.apply_test_time_pool(nn.ReLU(), larger)[1] is False
    (mine, used), (his, _) = ours.apply_test_time_pool(a, larger), apply_test_time_pool(b, larger)
    assert used
    x = torch.randn(2, 3, 12, 12)
    close(mine(x), his(x))
    assert mine.state_dict().keys() == his.state_dict().keys()
    assert ours.TestTimePoolHead(Net(bias=False), 3)(x).shape == (2, 5)
