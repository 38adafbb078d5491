"""PVT: scores against MindCV, positions at other sizes, pooling behind a class token, stitched strides."""

from functools import partial

import pytest
import torch

import ziggurat
from parity import mindcv
from ziggurat.errors import BadArgument
from ziggurat.layers import resample_abs_pos_embed
from ziggurat.models.pvt import PyramidVisionTransformer, ReducedAttention
from ziggurat.testing import CHECKS

TINY = dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 2, 2),
            sr_ratios=(8, 4, 2, 1), img_size=64, num_classes=5)  # fmt: skip


def tiny(**kwargs):
    torch.manual_seed(0)
    model = PyramidVisionTransformer(**{**TINY, **kwargs}).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases that matter
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("check", ["compile", "export"])
def test_the_contract_on_a_small_network(check):
    """What takes half a minute with the four stages of pvt_tiny."""
    CHECKS[check](partial(tiny, embed_dims=(8, 16), depths=(1, 1), sr_ratios=(4, 1)), 64)


def test_a_checkpoint_of_mindcvs_gives_its_outputs(tmp_path):
    path = mindcv.checkpoint("pvt_tiny", tmp_path)
    model = ziggurat.create_model("pvt_tiny", checkpoint_path=path).eval()
    assert mindcv.sizes("pvt_tiny") == [224]  # the only one that MindCV takes
    assert mindcv.compare(model, "pvt_tiny", 224)["logits"] <= 1e-5
    part = ziggurat.create_model("pvt_tiny.mindcv_in1k", checkpoint_path=path, features_only=True, out_indices=(1,))
    assert not [name for name in part.state_dict() if name.startswith(("pos_embed3", "cls_token", "block3", "norm"))]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(part.eval()(x)[0], model.pyramid(x)[8])


@torch.no_grad()
def test_a_checkpoint_of_another_image_size_is_resampled_as_images_of_it_are():
    large, small = tiny(img_size=96), tiny()
    state = small.remap_checkpoint(large.state_dict())
    assert state["pos_embed4"].shape == (1, 5, 32)
    assert torch.equal(state["pos_embed4"][:, :1], large.pos_embed4[:, :1])
    small.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64)
    assert torch.allclose(small(x), large(x), atol=1e-6)
    assert torch.equal(state["pos_embed1"], resample_abs_pos_embed(large.pos_embed1, (16, 16), (24, 24), 0, "bilinear", False))


@torch.no_grad()
def test_each_query_reads_all_reduced_keys():
    torch.manual_seed(0)
    attention = ReducedAttention(8, 2, sr_ratio=2, qkv_bias=True, attn_drop=0.0, proj_drop=0.0, norm_eps=1e-5)
    x = torch.randn(1, 4 * 5, 8)
    grid = torch.nn.functional.pad(x.reshape(4, 5, 8), (0, 0, 0, 1))  # a sixth column of zeros
    patches = grid.reshape(2, 2, 3, 2, 8).permute(0, 2, 4, 1, 3).reshape(6, -1)
    source = attention.norm(patches @ attention.sr.weight.reshape(8, -1).T + attention.sr.bias)
    keys, values = attention.kv(source).split(8, dim=1)
    queries = attention.q(x[0])
    read = []
    for head in (slice(0, 4), slice(4, 8)):
        shares = (queries[:, head] @ keys[:, head].T / 4**0.5).softmax(1)
        read.append(shares @ values[:, head])
    assert torch.allclose(attention(x, (4, 5))[0], attention.proj(torch.cat(read, 1)), atol=1e-6)


@torch.no_grad()
def test_pooling():
    model = tiny()
    x = torch.randn(2, 3, 64, 64)
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 1 + 4, 32)
    assert torch.equal(model.embed(x), tokens[:, 0])
    model.reset_classifier(7, "avg")
    assert torch.equal(model.embed(x), tokens[:, 1:].mean(1))
    assert model(x).shape == (2, 7)
    normed = model.pyramid(x, 32, norm=True)[32]
    assert torch.allclose(normed.flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-6)
    model.prune_intermediate_layers([1])
    model.reset_classifier(3, "avg")
    assert torch.allclose(model(x), model.head(model.pyramid(x, 8)[8].mean((2, 3))), atol=1e-6)
    model.set_pool("token")
    with pytest.raises(BadArgument, match="class token was pruned"):
        model(x)


@torch.no_grad()
def test_scores_of_a_stitched_network_are_its_own():
    model, dense = tiny(), tiny(output_stride=8)
    dense.load_state_dict(model.state_dict())
    for x in (torch.randn(2, 3, 64, 64), torch.randn(1, 3, 75, 90)):
        assert torch.allclose(dense(x), model(x), atol=1e-6)


def test_arguments():
    with pytest.raises(BadArgument, match="sr_ratios.*class token"):
        tiny(sr_ratios=(8, 4, 2, 2))
    with pytest.raises(BadArgument, match="does not divide into 3 heads"):
        tiny(num_heads=(3, 1, 1, 1))
    with pytest.raises(BadArgument, match="global_pool='map'"):
        tiny(global_pool="map")
