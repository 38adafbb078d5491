"""PNASNet-5: timm's outputs and MindCV's, one cell for all purposes."""

from functools import partial
from unittest import mock

import timm.models.pnasnet as theirs
import torch

import ziggurat
from parity import mindcv
from parity.oracle import TOLERANCE, compare_keys, difference, outputs, redraw
from ziggurat.models import pnasnet
from ziggurat.models.nasnet import PREV, SUM0, SUM1, ActConvBn, Genotype, X
from ziggurat.testing import CHECKS

SMALL = dict(stem_size=16, num_features=720)


def narrowed(make, *widths, **kwargs):
    """What `make` makes, of a sixth of the channels."""
    chs = {name: width // 6 if name.endswith(("_left", "_right")) else width for name, width in kwargs.items()}
    return make(*widths, **chs)


def narrow_timms(**kwargs):
    """timm's network at a sixth of its width, for which it has no argument."""
    stem = theirs.ConvNormAct
    with mock.patch.multiple(
        theirs,
        ConvNormAct=lambda in_chs, out_chs, **options: stem(in_chs, out_chs // 6, **options),
        CellStem0=partial(narrowed, theirs.CellStem0),
        Cell=partial(narrowed, theirs.Cell),
    ):
        return theirs.PNASNet5Large(num_classes=0, **kwargs).eval()


def test_keys_and_levels_are_timms():
    compare_keys("pnasnet5large")


@torch.no_grad()
def test_outputs_are_timms():
    reference = narrow_timms(pad_type="same")
    redraw(reference)
    ours = ziggurat.create_model("pnasnet5large", num_classes=0, **SMALL).eval()
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(2, 3, 75, 75)
    found, wanted = outputs(ours, x), outputs(reference, x)
    found["level 0"] = found["level 0"][:, :, :-1, :-1]  # timm's stem leaves the last row and column out
    worst = {key: difference(found[key], wanted[key]) for key in wanted}
    assert max(worst.values()) <= TOLERANCE, worst


@torch.no_grad()
def test_a_checkpoint_of_mindcvs_gives_its_outputs(tmp_path):
    path = mindcv.checkpoint("pnasnet", tmp_path)
    model = ziggurat.create_model("pnasnet", checkpoint_path=path).eval()
    mindcv.hold(model, "pnasnet")
    for arguments in (dict(pad_type="same"), dict(pad_type=("", "", "same", ""))):
        other = ziggurat.create_model("pnasnet", **arguments).eval()
        other.load_state_dict(model.state_dict())
        assert mindcv.compare(other, "pnasnet", 64)["logits"] > 1e-3, arguments


def test_a_convolution_strides_in_place_of_the_skip():
    with torch.device("meta"):
        model = ziggurat.create_model("pnasnet")
    strided = [name for name, cell in model.named_children() if isinstance(getattr(cell, "comb_iter_4_right", None), ActConvBn)]
    assert strided == ["cell_stem_0", "cell_stem_1", "cell_3", "cell_6"]


def test_exports_any_size(monkeypatch):
    # few operations in each of the cells: capturing all of the smallest one's takes a quarter of a minute
    sums = ((("sep3", PREV), ("max", PREV)), (("avg", X), ("skip", X)))
    monkeypatch.setattr(pnasnet, "CELL", Genotype(sums, (SUM0, SUM1)))
    CHECKS["export"](lambda **kwargs: ziggurat.create_model("pnasnet", stem_size=4, num_features=32, num_cells=1), 64)
