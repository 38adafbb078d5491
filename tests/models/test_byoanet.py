"""Networks with self-attention on ByobNet's blocks: each kind of attention against timm, and image sizes."""

from __future__ import annotations

import pytest
import timm
import torch

import ziggurat
from parity.oracle import TOLERANCE, difference, redraw
from ziggurat.errors import BadArgument
from ziggurat.models.byoanet import attended, family
from ziggurat.testing import check_compile, check_export


@pytest.mark.parametrize("name, kwargs", [
    ("eca_halonext26ts", {}),
    ("haloregnetz_b", {}),  # blocks of 7
    ("eca_botnext26ts_256", dict(img_size=128)),
    ("lambda_resnet26t", {}),
    ("lambda_resnet26rpt_256", dict(img_size=128)),
])  # fmt: skip
def test_scores_are_timms(name, kwargs):
    size = kwargs.get("img_size", {"haloregnetz_b": 224, "eca_halonext26ts": 256}.get(name, 128))
    theirs, ours = timm.create_model(name, **kwargs).eval(), ziggurat.create_model(name, **kwargs).eval()
    redraw(theirs)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) <= TOLERANCE


def test_halonet50ts_as_the_issue_describes_it():
    model = ziggurat.create_model("halonet50ts").eval()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(22.7e6, rel=0.01)
    x = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        last, levels = model.forward_intermediates(x)
        pooled = model.forward_head(last, pre_logits=True)
    assert [(m.shape[1], m.shape[2]) for m in levels] == [(64, 128), (256, 64), (512, 32), (1024, 16), (2048, 8)]
    assert ziggurat.model_info("halonet50ts")["macs"] == pytest.approx(5.3e9, rel=0.01)
    model.reset_classifier(0)
    with torch.no_grad():
        torch.testing.assert_close(model(x), pooled)


def test_positions_are_learned_for_one_image_size():
    with torch.device("meta"):
        small = ziggurat.create_model("botnet26t_256", img_size=128)
        native = ziggurat.create_model("botnet26t_256")
    key = "stages.3.1.self_attn.pos_embed.height_rel"
    assert small.state_dict()[key].shape[0] == 2 * 4 - 1
    assert native.state_dict()[key].shape[0] == 2 * 8 - 1
    cls, row = family["botnet26t_256"]
    with pytest.raises(BadArgument, match="img_size"):
        cls(**row)


def test_a_self_attention_block_needs_a_layer():
    with pytest.raises(BadArgument, match="self_attn_layer"), torch.device("meta"):
        ziggurat.create_model("halonet26t", self_attn_layer="")


@pytest.mark.parametrize("name", ["botnet26t_256", "lambda_resnet26rpt_256", "resnet50_clip"])
def test_position_tables_are_resampled_to_another_image_size(name, tmp_path):
    """Weights of one image size load at another; at their own size they are untouched."""
    small = ziggurat.create_model(name, img_size=128).eval()
    path = tmp_path / "weights.pth"
    torch.save(small.state_dict(), path)
    same = ziggurat.create_model(name, img_size=128, checkpoint_path=path).eval()
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), same.state_dict().values()))
    large = ziggurat.create_model(name, img_size=192, checkpoint_path=path).eval()
    grown = [key for key, value in large.state_dict().items() if value.shape != small.state_dict()[key].shape]
    assert grown and all("rel" in key or "pos" in key for key in grown)
    for key in grown:
        before, after = small.state_dict()[key].float(), large.state_dict()[key].float()
        assert before.min() - 0.1 <= after.min() and after.max() <= before.max() + 0.1
    with torch.no_grad():
        assert torch.isfinite(large(torch.randn(1, 3, 192, 192))).all()


def test_halo_attention_in_a_compiled_and_an_exported_network():
    """The contract's checks, on one block of attention."""

    def create(**kwargs):
        return ziggurat.create_model("halonet_h1", blocks=(attended(1, 32, 1.0),), stem_chs=16, num_classes=10, **kwargs)

    check_compile(create, 64)
    check_export(create, 64)
