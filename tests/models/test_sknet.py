"""SKNet: both blocks, split inputs, groups and dilation, against timm."""

import pytest

import ziggurat
from parity.oracle import TOLERANCE, compare, compare_keys

SIZE = 64


@pytest.mark.parametrize("name, kwargs", [
    ("skresnet18", {}),
    ("skresnet50", dict(layers=(1, 1, 1, 1))),
    ("skresnet50d", dict(layers=(1, 1, 1, 1))),
    ("skresnext50_32x4d", dict(layers=(1, 1, 1, 1))),  # groups, and paths that each read the whole input
    ("skresnet18", dict(output_stride=8)),
    ("skresnet18", dict(output_stride=16)),
    ("skresnet50", dict(layers=(1, 1, 2, 2), output_stride=8)),
])  # fmt: skip
def test_outputs_are_timms(name, kwargs):
    found = compare(name, SIZE, **kwargs)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("name", ["skresnet34", "skresnet50", "skresnet50d", "skresnext50_32x4d"])
def test_keys_of_larger_variants_are_timms(name):
    compare_keys(name)


def test_no_scale_of_a_norm_starts_as_zero():
    model = ziggurat.create_model("skresnet18")
    norms = [p for name, p in model.named_parameters() if p.ndim == 1 and name.endswith("weight")]
    assert norms and all(bool((p == 1).all()) for p in norms)
