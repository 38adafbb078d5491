"""Pre-activation ResNets: variants against timm, stems, the closing norm, Big Transfer's arrays."""

import copy

import numpy as np
import pytest
import timm
import torch

import ziggurat
from parity.oracle import TOLERANCE, compare
from ziggurat.errors import BadArgument
from ziggurat.models.resnetv2 import PreActBasic

SIZE = 64
SMALL = dict(layers=(1, 2, 1, 1), channels=(64, 96, 128, 160))
GROUPED = SMALL | dict(channels=(128, 128, 256, 256))  # widths that 32 groups divide


@pytest.mark.parametrize("name, kwargs", [
    ("resnetv2_18", {}),
    ("resnetv2_18d", dict(output_stride=8)),
    ("resnetv2_50x1_bit", {}),
    ("resnetv2_50", SMALL),
    ("resnetv2_50t", SMALL),
    ("resnetv2_50d_gn", GROUPED),
    ("resnetv2_50d_evos", GROUPED),
    ("resnetv2_50d_frn", SMALL),
    ("resnetv2_50", SMALL | dict(preact=False)),
    ("resnetv2_50", SMALL | dict(preact=False, stem_type="deep", avg_down=True, output_stride=16)),
    ("resnetv2_50", SMALL | dict(stem_type="same")),
    ("resnetv2_50", SMALL | dict(stem_type="deep_fixed", width_factor=2)),
])  # fmt: skip
def test_outputs_are_timms(name, kwargs):
    found = compare(name, SIZE, **kwargs)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("kwargs", [{}, dict(stem_type="fixed"), dict(stem_type="same"), dict(stem_type="deep")])
def test_the_stems_level_comes_from_its_module_at_odd_sizes(kwargs):
    model = ziggurat.create_model("resnetv2_18", **kwargs).eval()
    seen = []
    model.get_submodule(model.feature_info[0]["module"]).register_forward_hook(lambda m, args, out: seen.append(out))
    with torch.no_grad():
        last, levels = model.forward_intermediates(torch.randn(1, 3, 65, 67))
    assert levels[0].shape[-2:] == (33, 34)
    assert levels[0] is seen[0]
    assert last.shape[-2:] == (3, 3)


@pytest.mark.parametrize("preact", [True, False])
def test_pruning_to_the_stem_leaves_its_level(preact):
    model = ziggurat.create_model("resnetv2_50", preact=preact, **SMALL).eval()
    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        level = model.forward_intermediates(x, indices=[0], intermediates_only=True)[0]
        pruned = copy.deepcopy(model)
        pruned.prune_intermediate_layers([0])
        torch.testing.assert_close(pruned.forward_features(x), level, rtol=0, atol=0)
    assert [name for name, module in pruned.stem.named_children()] == (["conv"] if preact else ["conv", "norm"])
    assert not any(name.startswith(("stages", "norm")) for name, _ in pruned.named_parameters())


def test_the_closing_norm_is_no_part_of_the_last_level():
    model = ziggurat.create_model("resnetv2_50", **SMALL).eval()
    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        last, levels = model.forward_intermediates(x)
        torch.testing.assert_close(model.norm(levels[-1]), last)
        normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
        torch.testing.assert_close(normed[-1], last)
        torch.testing.assert_close(normed[-2], levels[-2], rtol=0, atol=0)
    assert levels[-1].min() < 0 <= last.min()


@pytest.mark.parametrize("name", ["resnetv2_18", "resnetv2_50"])
@pytest.mark.parametrize("zero_init_last", [True, False])
def test_residual_branches_start_as_zero_where_asked(name, zero_init_last):
    model = ziggurat.create_model(name, zero_init_last=zero_init_last)
    block = model.stages[0].blocks[1]
    x = torch.randn(2, 64 if isinstance(block, PreActBasic) else 256, 8, 8)
    with torch.no_grad():
        assert torch.equal(block(x), x) == zero_init_last
    assert model.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_basic_blocks_without_preactivation_are_refused():
    with pytest.raises(BadArgument, match="preact"):
        ziggurat.create_model("resnetv2_18", preact=False)


def big_transfer(model):
    """Random arrays under the names of Big Transfer's .npz, for a network as `model`."""
    draw = np.random.default_rng(0)
    arrays = {"opt/step": np.zeros((), np.int64)}

    def conv(name, module, kind="standardized_conv2d"):
        out_chs, in_chs, height, width = module.weight.shape
        arrays[f"resnet/{name}/{kind}/kernel"] = draw.standard_normal((height, width, in_chs, out_chs), np.float32)

    def norm(name, module):
        for kind in ("gamma", "beta"):
            arrays[f"resnet/{name}group_norm/{kind}"] = draw.standard_normal(module.weight.shape[0], np.float32)

    conv("root_block", model.stem.conv)
    norm("", model.norm)
    conv("head", model.head.fc, "conv2d")
    arrays["resnet/head/conv2d/bias"] = draw.standard_normal(model.num_classes, np.float32)
    for i, stage in enumerate(model.stages):
        for j, block in enumerate(stage.blocks):
            path = f"block{i + 1}/unit{j + 1:02d}"
            for k, letter in enumerate("abc"):
                conv(f"{path}/{letter}", getattr(block, f"conv{k + 1}"))
                norm(f"{path}/{letter}/", getattr(block, f"norm{k + 1}"))
            if block.downsample is not None:
                conv(f"{path}/a/proj", block.downsample.conv)
    return arrays


def test_big_transfers_arrays_become_what_timm_makes_of_them(tmp_path):
    theirs = timm.create_model("resnetv2_50x1_bit", num_classes=11)
    ours = ziggurat.create_model("resnetv2_50x1_bit", num_classes=11)
    arrays = big_transfer(ours)
    np.savez(tmp_path / "bit.npz", **arrays)
    theirs.load_pretrained(str(tmp_path / "bit.npz"))
    wanted = theirs.state_dict()
    for found in (ours.convert_npz(arrays), ours.remap_checkpoint({k: torch.as_tensor(v) for k, v in arrays.items()})):
        assert found.keys() == wanted.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=0)
    assert list(ours.remap_checkpoint(wanted)) == list(wanted)
