"""ShuffleNet V1: scores against MindCV, the shuffle as the paper draws it, drop path where there is something to drop."""

import pytest
import torch

import ziggurat
from parity import mindcv
from ziggurat.layers.drop import DropPath
from ziggurat.models.shufflenetv1 import ShuffleNetV1, ShuffleUnit
from ziggurat.registry import catalog

TINY = dict(channels=(4, 16, 32, 64), groups=2, depths=(2, 2, 2), num_classes=3)


@pytest.mark.parametrize("name", ["shufflenet_v1_g3_05", "shufflenet_v1_g8_05"])
def test_a_checkpoint_of_mindcvs_gives_its_outputs(name, tmp_path):
    model = ziggurat.create_model(name, checkpoint_path=mindcv.checkpoint(name, tmp_path)).eval()
    mindcv.hold(model, name)


def test_every_group_reads_all_groups_behind_the_shuffle():
    unit = ShuffleUnit(72, 72, 1, 3, 3, torch.nn.Identity, torch.nn.Identity)
    read = []
    unit.branch_main_2.register_forward_hook(lambda module, args, out: read.append(args[0]))
    with torch.no_grad():
        x = torch.randn(1, 72, 4, 4)
        unit(x)
        x[:, :24] += 1  # the first group
        unit(x)
    changed = (read[0] != read[1]).any(dim=3).any(dim=2).view(3, 6)
    assert changed.sum(1).tolist() == [2, 2, 2]


def test_drop_path_where_a_unit_is_added_to_its_input():
    model = ShuffleNetV1(**TINY, drop_path_rate=0.5)
    rates = [[m.drop_prob for m in unit.modules() if isinstance(m, DropPath)] for unit in model.features]
    assert rates == [[], [0.1], [], [pytest.approx(0.3)], [], [0.5]]


def test_work_is_what_the_paper_says():
    """Millions of multiply-adds at 224 pixels of the networks with three groups, Table 5."""
    work = {name: catalog("shufflenetv1")[name]["macs"] // 10**6 for name in ziggurat.list_models("shufflenet_v1_g3*")}
    assert (work["shufflenet_v1_g3_10"], work["shufflenet_v1_g3_15"], work["shufflenet_v1_g3_20"]) == (137, 292, 524)
