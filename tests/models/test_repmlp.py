"""RepMLPNet: scores against MindCV, the contract on a small network, convolutions folded into fully connected layers."""

import pytest
import torch

import ziggurat
from parity import mindcv
from ziggurat.errors import BadArgument
from ziggurat.models.repmlp import RepMLPBlock, RepMLPNet
from ziggurat.testing import CHECKS, settled

TINY = dict(channels=(8, 16, 16, 24), depths=(1, 1, 1, 1), share_sets=(1, 2, 4, 8), partition_size=64)


def tiny(**kwargs):
    torch.manual_seed(0)
    return RepMLPNet(**{**TINY, **kwargs})


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check):
    """All of it here: the published networks bring every image to 224 pixels or more."""
    CHECKS[check](tiny, 64)


def test_a_checkpoint_of_mindcvs_gives_its_outputs_folded_or_not(tmp_path):
    path = mindcv.checkpoint("repmlp_t224", tmp_path)
    model = ziggurat.create_model("repmlp_t224", checkpoint_path=path).eval()
    assert mindcv.compare(model, "repmlp_t224", 224)["logits"] <= 1e-5
    model.reparameterize()
    assert mindcv.compare(model, "repmlp_t224", 224)["logits"] <= 1e-5
    assert sum("repconv" in name or "fc3_bn" in name for name in model.state_dict()) == 0


@torch.no_grad()
def test_folding_keeps_outputs_and_is_what_deploy_makes(tmp_path):
    model = settled(tiny, img_size=(64, 128))
    x = torch.randn(2, 3, 64, 128)
    scores, maps = model(x), model.pyramid(x)
    before = sum(p.numel() for p in model.parameters())
    model.reparameterize()
    assert sum(p.numel() for p in model.parameters()) != before
    assert torch.allclose(model(x), scores, atol=1e-5)
    for stride, level in model.pyramid(x).items():
        assert torch.allclose(level, maps[stride], atol=1e-5)
    again = tiny(img_size=(64, 128), deploy=True).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))
    model.reparameterize()
    assert torch.equal(again(x), model(x))


@torch.no_grad()
def test_a_folded_block_of_any_kernels():
    torch.manual_seed(0)
    block = RepMLPBlock(6, (4, 5), share_sets=3, kernels=(1, 3, 5), reduction=2).double().eval()
    for name, tensor in block.state_dict().items():
        if name.endswith(("running_mean", "running_var", "bn.weight", "bn.bias")):
            tensor.uniform_(0.5, 1.5)
    x = torch.randn(2, 6, 8, 15, dtype=torch.double)
    wanted = block(x)
    block.reparameterize()
    assert torch.allclose(block(x), wanted, atol=1e-12)


@torch.no_grad()
def test_partitions_do_not_see_each_other_but_through_their_mean():
    torch.manual_seed(0)
    block = RepMLPBlock(4, (4, 4), share_sets=2).eval()
    x = torch.randn(1, 4, 8, 8)
    moved = torch.cat((x[..., 4:], x[..., :4]), 3)
    assert torch.allclose(block(moved), torch.cat((block(x)[..., 4:], block(x)[..., :4]), 3), atol=1e-6)


def test_saved_as_it_is(tmp_path):
    with torch.device("meta"):
        whole = ziggurat.create_model("repmlp_t224", img_size=448)
    assert whole.native_size == (448, 448)
    assert whole.stages[0][0].repmlp_block.fc3.weight.shape == (56 * 56, 56 * 56, 1, 1)
    model = ziggurat.create_model("repmlp_t224", num_classes=2, **TINY)
    model.reparameterize()
    model.save(tmp_path / "model")
    loaded = ziggurat.load(tmp_path / "model")
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert "stages.0.0.repmlp_block.fc3.bias" in loaded.state_dict()


def test_arguments():
    with pytest.raises(BadArgument, match="img_size=256: the network's partitions cover 224 x 224 pixels"):
        ziggurat.create_model("repmlp_t224", img_size=256)
    with pytest.raises(BadArgument, match="multiple of 32"):
        tiny(partition_size=56)
    with pytest.raises(BadArgument, match="share_sets=3 does not divide"):
        tiny(share_sets=(3, 1, 1, 1))
