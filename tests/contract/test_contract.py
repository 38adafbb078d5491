"""The checks that every family gets for nothing, on the smallest architecture of each class of each module."""

import itertools
from typing import Any

import pytest

import ziggurat
from ziggurat.models.hrnet import stages
from ziggurat.models.xception_aligned import ENTRY, MIDDLE, PRE_EXIT
from ziggurat.registry import catalog
from ziggurat.testing import CHECKS


def representatives() -> list[str]:
    """The smallest architecture of each class of each module, by parameters."""
    smallest: dict[tuple[str, str], str] = {}
    rows = sorted(catalog().items(), key=lambda row: row[1]["params"])
    for name, facts in rows:
        smallest.setdefault((facts["module"], facts["class"]), name)
    return sorted(smallest.values())


SIDE = 64  # pixels, whatever the architecture's own size

# what a check cannot hold for an architecture, and why; strict: one that has healed fails
GAPS: dict[tuple[str, str], str] = {}


# checked on a smaller network: capturing nineteen blocks of halo attention for any size takes a minute, say
ELSEWHERE = {
    (name, check): f"tests/models/{file}"
    for name, file in (
        ("halonet_h1", "test_byoanet.py"), ("rexnet_090", "test_rexnet.py"), ("nasnet_a_4x1056", "test_nasnet.py"),
        ("pnasnet", "test_pnasnet.py"), ("pvt_tiny", "test_pvt.py"), ("cmt_tiny", "test_cmt.py"),
    )
    for check in ("compile", "export")
} | dict.fromkeys(itertools.product(["repmlp_t224"], CHECKS), "tests/models/test_repmlp.py")  # images of 224 pixels or more

# one inception block a stage
INCEPTIONS = [[(64, 96, 128, 16, 32, 32)], [(192, 96, 208, 16, 48, 64)], [(256, 160, 320, 32, 128, 128)]]

# with fewer layers, all of which are alike; the catalogue holds them whole to their levels
SHALLOWER: dict[str, dict[str, Any]] = {
    "cs3darknet_focus_s": dict(depths=(1, 1, 2, 1)),
    "deit_tiny_distilled_patch16_224": dict(depth=4),
    "deit_tiny_patch16_224": dict(depth=4),
    "densenet121": dict(block_config=(2, 3, 2, 2)),
    "ese_vovnet19b_slim_dw": dict(layer_per_block=2),
    "googlenet": dict(stages=INCEPTIONS),
    "hrnet_w18_small": stages(16, 1, (1, 1, 1)),
    "regnetx_002": dict(depth=8),
    "res2next50": dict(layers=(1, 2, 1, 1)),
    "shufflenet_v1_g3_05": dict(depths=(2, 2, 2)),
    "shufflenet_v2_x0_5": dict(depths=(2, 2, 2)),
    "skresnet18": dict(layers=(1, 1, 1, 1)),
    "xception41p": dict(block_cfg=(*ENTRY, *MIDDLE, *PRE_EXIT)),
}


@pytest.mark.parametrize(
    "name, check", [case for case in itertools.product(representatives(), CHECKS) if case not in ELSEWHERE]
)
def test_contract(name, check, request):
    reason = GAPS.get((name, check))
    if reason:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    def create(**kwargs):
        return ziggurat.create_model(name, **SHALLOWER.get(name, {}), **kwargs)

    CHECKS[check](create, SIDE)
