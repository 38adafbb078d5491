"""Aligned Xception: variants against timm, and levels that lie inside blocks."""

import copy

import pytest
import torch

import ziggurat
from parity.oracle import TOLERANCE, compare

SIZE = 64
ENTRY = [dict(in_chs=64, out_chs=24, stride=2), dict(in_chs=24, out_chs=32, stride=2),
         dict(in_chs=32, out_chs=40, stride=2), dict(in_chs=40, out_chs=40, stride=1),
         dict(in_chs=40, out_chs=(40, 48, 56), stride=2)]  # fmt: skip
LAST = dict(in_chs=56, out_chs=(64, 64, 72), stride=1, no_skip=True)


class Rows(list):
    """Block rows, handed out as copies: timm writes into those that it gets."""

    def __iter__(self):
        return (dict(row) for row in super().__iter__())


SMALL = dict(block_cfg=Rows([*ENTRY, LAST | dict(start_with_relu=False)]))
SMALL_PRE = dict(block_cfg=Rows([*ENTRY, LAST]))


@pytest.fixture(params=["xception41", "xception41p"])
def small(request):
    return ziggurat.create_model(request.param, **(SMALL if request.param == "xception41" else SMALL_PRE)).eval()


@pytest.mark.parametrize("name, kwargs", [
    ("xception41", {}),
    ("xception41", SMALL),
    ("xception41", SMALL | dict(output_stride=8)),
    ("xception41", SMALL | dict(output_stride=16)),
    ("xception41p", SMALL_PRE),
    ("xception41p", SMALL_PRE | dict(output_stride=8, act_layer=torch.nn.SiLU)),
    ("xception65p", SMALL_PRE),
])  # fmt: skip
def test_outputs_are_timms(name, kwargs):
    found = compare(name, SIZE, **kwargs)
    assert max(found.values()) <= TOLERANCE, found


def test_sizes_at_the_published_input():
    with torch.device("meta"):
        model = ziggurat.create_model("xception41").eval()
        x = torch.zeros(2, 3, 299, 299)
        assert model(x).shape == (2, 1000)
        last, levels = model.forward_intermediates(x)
    assert last.shape == (2, 2048, 10, 10)
    assert [tuple(level.shape[1:]) for level in levels] == [
        (128, 150, 150), (256, 75, 75), (728, 38, 38), (1024, 19, 19), (2048, 10, 10)
    ]  # fmt: skip


def test_a_level_is_what_its_module_puts_out(small):
    seen = {}
    for level in small.feature_info:
        small.get_submodule(level["module"]).register_forward_hook(
            lambda module, args, out, path=level["module"]: seen.setdefault(path, out.clone()))
    with torch.no_grad():
        levels = small.forward_intermediates(torch.randn(1, 3, SIZE, SIZE), intermediates_only=True)
    for level, info in zip(levels, small.feature_info):
        torch.testing.assert_close(level, seen[info["module"]], rtol=0, atol=0)


def test_a_block_in_two_parts_is_the_block_in_one(small):
    block = small.blocks[1]
    x = torch.randn(2, 24, 16, 16)
    with torch.no_grad():
        whole = block(x.clone())
        torch.testing.assert_close(block(*block(x.clone(), halt=True)), whole, rtol=0, atol=0)


@pytest.mark.parametrize("index", range(5))
def test_pruning_inside_a_block_leaves_nothing_unused(small, index):
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        level = small.forward_intermediates(x, indices=[index], intermediates_only=True)[0]
    pruned = copy.deepcopy(small)
    pruned.prune_intermediate_layers([index], prune_norm=True)
    with torch.no_grad():
        torch.testing.assert_close(pruned.forward_features(x), level)
    pruned.train()
    pruned.forward_features(x).sum().backward()
    assert not [name for name, p in pruned.named_parameters() if p.grad is None]


def test_checkpointing_keeps_gradients_and_order(small):
    x = torch.randn(2, 3, SIZE, SIZE)
    name = "xception41p" if small.act is not None else "xception41"
    pyramid = ziggurat.create_model(name, features_only=True, **(SMALL if small.act is None else SMALL_PRE)).train()
    grads = []
    for enable in (False, True):
        pyramid.set_grad_checkpointing(enable)
        pyramid.zero_grad()
        levels = pyramid(x)
        assert [level.shape[1] for level in levels] == [24, 32, 40, 48, 72]
        sum(level.square().mean() for level in levels).backward()
        grads.append([p.grad.clone() for p in pyramid.parameters()])
    for plain, checkpointed in zip(*grads):
        torch.testing.assert_close(checkpointed, plain)


def test_the_last_block_is_never_dropped():
    model = ziggurat.create_model("xception41", drop_path_rate=0.9, **SMALL).train()
    out = model.blocks[-1](torch.randn(16, 56, 4, 4))
    assert (out.flatten(1).abs().amax(1) > 0).all()
