"""CMT: scores against MindCV, relative positions at other sizes; compiled and exported on a small network."""

from functools import partial

import pytest
import torch
from torch.nn.functional import interpolate

import ziggurat
from parity import mindcv
from ziggurat.errors import BadArgument
from ziggurat.models.cmt import CMT, ReducedAttention, resample_relative_pos
from ziggurat.testing import CHECKS

TINY = dict(embed_dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2), stem_channel=4, num_heads=(1, 2, 2, 4),
            img_size=64, fc_dim=24)  # fmt: skip


def tiny(**kwargs):
    torch.manual_seed(0)
    return CMT(**{**TINY, **kwargs})


@pytest.mark.parametrize("check", ["compile", "export"])
def test_the_contract_on_a_small_network(check):
    """What takes a minute with the four stages and sixteen blocks of cmt_tiny."""
    CHECKS[check](partial(tiny, embed_dims=(8,), sr_ratios=(4,)), 64)


@torch.no_grad()
def test_a_checkpoint_of_mindcvs_gives_its_outputs(tmp_path):
    path = mindcv.checkpoint("cmt_tiny", tmp_path)
    model = ziggurat.create_model("cmt_tiny", checkpoint_path=path).eval()
    assert mindcv.sizes("cmt_tiny") == [160]  # the only one that MindCV takes
    assert mindcv.compare(model, "cmt_tiny", 160)["logits"] <= 1e-5
    assert not any(model.get_parameter(f"relative_pos_{stage}").any() for stage in "abcd")
    part = ziggurat.create_model("cmt_tiny.mindcv_in1k", checkpoint_path=path, features_only=True, out_indices=(2,)).eval()
    assert {name for name, _ in part.named_parameters(recurse=False)} == {"relative_pos_a", "relative_pos_b"}
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(part(x)[0], model.pyramid(x)[8])


def test_relative_positions_are_resampled_over_the_queries_and_over_the_keys():
    torch.manual_seed(0)
    of_query, of_key = torch.randn(1, 1, 6, 8), torch.randn(1, 1, 3, 4)
    positions = of_query.reshape(1, 48, 1) * of_key.reshape(1, 1, 12)
    there, to = (interpolate(grid, size=size, mode="bicubic").reshape(-1)
                 for grid, size in ((of_query, (5, 10)), (of_key, (3, 5))))
    found = resample_relative_pos(positions, (6, 8), (5, 10), 2)
    assert torch.allclose(found[0], there[:, None] * to, atol=1e-5)
    assert resample_relative_pos(positions, (6, 8), (6, 8), 2) is positions


@torch.no_grad()
def test_a_checkpoint_of_another_image_size_is_resampled_as_images_of_it_are():
    large, small = tiny(img_size=96).eval(), tiny().eval()
    state = small.remap_checkpoint(large.state_dict())
    assert state["relative_pos_c"].shape == (2, 16, 4)
    small.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64)
    assert torch.allclose(small(x), large(x), atol=1e-5)


@torch.no_grad()
def test_positions_are_added_to_the_scores_of_attention():
    torch.manual_seed(0)
    attention = ReducedAttention(8, 2, sr_ratio=2, qkv_bias=True, attn_drop=0.0, proj_drop=0.0).eval()
    positions = torch.randn(2, 16, 4)
    x = torch.randn(1, 4, 4, 8)
    source = attention.sr(x.permute(0, 3, 1, 2)).flatten(2)[0].T
    queries, keys, values = attention.q(x[0].flatten(0, 1)), attention.k(source), attention.v(source)
    read = []
    for i, head in enumerate((slice(0, 4), slice(4, 8))):
        shares = (queries[:, head] @ keys[:, head].T / 4**0.5 + positions[i]).softmax(1)
        read.append(shares @ values[:, head])
    wanted = attention.proj(torch.cat(read, 1)).reshape(1, 4, 4, 8)
    assert torch.allclose(attention(x, positions), wanted, atol=1e-6)


def test_parameters_are_grouped_by_stage():
    groups = ziggurat.backbone.group_parameters(tiny(), tiny().group_matcher(), reverse=True)
    depth = [groups[f"blocks_{stage}.0.proj.weight"] for stage in "abcd"]
    assert depth == [1, 2, 3, 4]
    assert groups["patch_embed_b.proj.weight"] == 1
    assert groups["_fc.weight"] == 4
    assert groups["head.weight"] == 5


def test_arguments():
    with pytest.raises(BadArgument, match="does not divide into 3 heads"):
        tiny(num_heads=(3, 1, 1, 1))
