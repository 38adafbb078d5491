"""NASNet-A: timm's outputs and MindCV's, the stem's last row, operations dropped, units, refusals."""

import pytest
import timm
import torch

import ziggurat
from parity import mindcv
from parity.oracle import TOLERANCE, compare_keys, difference, outputs, redraw
from ziggurat.backbone.units import named_units
from ziggurat.errors import BadArgument
from ziggurat.models import nasnet
from ziggurat.models.nasnet import PREV, REDUCTION, SUM0, Cell, Genotype, NASNetCell, Stem, X
from ziggurat.testing import ScoresAndPyramid

SMALL = dict(stem_size=8, num_features=96)


def test_keys_and_levels_are_timms():
    compare_keys("nasnetalarge")


@pytest.mark.parametrize("size, kwargs", [(75, {}), (80, dict(pad_type="", in_chans=1))])
@torch.no_grad()
def test_outputs_are_timms(size, kwargs):
    theirs = timm.models.nasnet.NASNetALarge(**SMALL, **kwargs).eval()
    redraw(theirs)
    ours = ziggurat.create_model("nasnetalarge", **SMALL, **kwargs).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, ours.in_chans, size, size)
    found, wanted = outputs(ours, x), outputs(theirs, x)
    assert found["level 0"].shape[2:] == (-(-size // 2), -(-size // 2))
    found["level 0"] = found["level 0"][:, :, :-1, :-1]
    worst = {key: difference(found[key], wanted[key]) for key in wanted}
    assert max(worst.values()) <= TOLERANCE, worst


@torch.no_grad()
def test_a_checkpoint_of_mindcvs_gives_its_outputs(tmp_path):
    name = "nasnet_a_4x1056"
    path = mindcv.checkpoint(name, tmp_path)
    model = ziggurat.create_model(name, checkpoint_path=path).eval()
    mindcv.hold(model, name)
    part = ziggurat.create_model(name, checkpoint_path=path, features_only=True, out_strides=(8,)).eval()
    x = mindcv.images(64)
    assert torch.equal(part(x)[0], model.pyramid(x)[8])
    needed = ziggurat.get_pretrained_cfg(f"{name}.mindcv_in1k").trained_with
    assert list(needed) == ["pad_type", "pool_pad_type", "count_include_pad"]
    for without in needed:
        arguments = {key: value for key, value in needed.items() if key != without}
        other = ziggurat.create_model(name, **arguments).eval()
        other.load_state_dict(model.state_dict())
        assert mindcv.compare(other, name, 64)["logits"] > 1e-3, f"{without} makes no difference"


@torch.no_grad()
def test_the_stem_goes_one_row_and_column_beyond_an_unpadded_convolution():
    stem = Stem(3, 4).eval()
    for size in (64, 65, 66, 67):
        x = torch.randn(1, 3, size, size)
        whole, published = stem(x), stem.bn(stem.conv(x))
        assert whole.shape[2:] == (-(-size // 2),) * 2
        assert published.shape[2:] == tuple(side - 1 for side in whole.shape[2:])
        torch.testing.assert_close(whole[:, :, :-1, :-1], published)


@torch.no_grad()
def test_levels_round_up_where_the_published_stem_is_a_row_short():
    model = ziggurat.create_model("nasnetalarge", num_cells=1, **SMALL).eval()
    for size, sides in ((64, (32, 16, 8, 4, 2)), (65, (33, 17, 9, 5, 3)), (66, (33, 17, 9, 5, 3))):
        levels = model.forward_intermediates(torch.randn(1, 3, size, 64), intermediates_only=True)
        assert tuple(level.shape[2] for level in levels) == sides
        assert tuple(level.shape[3] for level in levels) == (32, 16, 8, 4, 2)


@torch.no_grad()
def test_dropped_operations_leave_what_is_skipped():
    cell = Cell(nasnet.NORMAL, 8, 6, width=4).train()
    cell.drop_path.drop_prob = 1.0
    x, prev = torch.randn(2, 8, 5, 5), torch.randn(2, 6, 5, 5)
    own, other = cell.conv_1x1(x), cell.conv_prev_1x1(prev)
    nothing = torch.zeros_like(own)
    assert torch.equal(cell(x, prev), torch.cat([other, nothing, nothing, other, nothing, own], 1))


@torch.no_grad()
def test_a_factorized_reduction_reads_even_and_odd_positions():
    cell = NASNetCell(REDUCTION, 8, 6, width=5, stride=2, prev="halved").eval()
    for size in (7, 8):
        prev = torch.zeros(size * size, 6, size, size)
        prev.flatten(2)[range(size * size), :, range(size * size)] = 1  # a map for each position
        halved = cell.squeezed(prev)
        assert halved.shape[1:] == (5, (size + 1) // 2, (size + 1) // 2)
        read = (halved != cell.squeezed(torch.zeros(1, 6, size, size))).flatten(1).any(1).reshape(size, size)
        # those even in both directions, and those odd in both
        rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        assert torch.equal(read, (rows - columns) % 2 == 0)


def test_all_cells_are_units():
    with torch.device("meta"):
        model = ziggurat.create_model("nasnetalarge", drop_path_rate=0.3, num_cells=2, **SMALL)
    units = named_units(model, model.units)
    assert [name for name, _ in units] == [name for name, _ in model.named_children() if "cell" in name]
    assert [name for name, _ in units][4:] == ["reduction_cell_0", "cell_6", "cell_7", "reduction_cell_1", "cell_12", "cell_13"]
    assert units[-1][1].drop_path.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize("arguments", [dict(pad_type="valid"), dict(pad_type=("", "same")), dict(pool_pad_type="full")])
def test_padding_unheard_of_is_refused(arguments):
    with pytest.raises(BadArgument, match="one for each cell that strides"):
        ziggurat.create_model("nasnet_a_4x1056", **SMALL, **arguments)


@torch.no_grad()
def test_compiles_for_any_size(monkeypatch):
    # few operations in each of the cells: capturing all 700 layers of the smallest one takes a minute
    monkeypatch.setattr(nasnet, "NORMAL", Genotype(((("sep3", X), ("skip", PREV)),), (PREV, SUM0)))
    monkeypatch.setattr(nasnet, "REDUCTION", Genotype(((("max", X), ("avg", PREV)),), (SUM0,)))
    views = ScoresAndPyramid(ziggurat.create_model("nasnetalarge", num_cells=1, **SMALL).eval())
    torch._dynamo.reset()
    compiled = torch.compile(views, fullgraph=True, dynamic=True, backend="eager")
    for size in ((73, 90), (101, 66)):
        x = torch.randn(2, 3, *size)
        wanted = views(x)
        for name, got in compiled(x).items():
            torch.testing.assert_close(got, wanted[name], msg=f"{name} at {size}")
    torch._dynamo.reset()
