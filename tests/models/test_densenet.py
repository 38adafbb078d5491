"""DenseNet: variants against timm, dense joints under checkpointing, torchvision's checkpoints."""

import pytest
import torch

import ziggurat
from parity.oracle import TOLERANCE, compare
from ziggurat.backbone.units import group_parameters
from ziggurat.layers.blur_pool import BlurPool2d

SIZE = 64
SMALL = dict(growth_rate=8, block_config=(2, 3, 2, 2))


@pytest.mark.parametrize("name, kwargs", [
    ("densenet121", {}),
    ("densenetblur121d", SMALL),
    ("densenet121", SMALL | dict(stem_type="deep_tiered")),
    ("densenet121", SMALL | dict(stem_type="deep_tiered_narrow")),
    ("densenet121", SMALL | dict(norm_layer="groupnorm1", act_layer="silu", bn_size=2)),
])  # fmt: skip
def test_outputs_are_timms(name, kwargs):
    found = compare(name, SIZE, **kwargs)
    assert max(found.values()) <= TOLERANCE, found


def test_transitions_blur_where_asked():
    def blurs(**kwargs):
        model = ziggurat.create_model("densenetblur121d", **SMALL, **kwargs)
        return model, sum(isinstance(module, BlurPool2d) for module in model.modules())

    assert blurs()[1] == 1
    model, count = blurs(aa_stem_only=False)
    assert count == 4
    levels = model.eval().forward_intermediates(torch.randn(1, 3, SIZE, SIZE), intermediates_only=True)
    assert [level.shape[-1] for level in levels] == [32, 16, 8, 4, 2]


def test_the_last_level_is_what_the_head_reads():
    model = ziggurat.create_model("densenet121", **SMALL).eval()
    with torch.no_grad():
        last, levels = model.forward_intermediates(torch.randn(1, 3, SIZE, SIZE))
    assert levels[-1] is last
    assert last.min() >= 0  # after the activation


@pytest.mark.parametrize("memory_efficient", [True, False])
def test_checkpointing_gives_the_same_gradients(memory_efficient):
    model = ziggurat.create_model("densenet121", memory_efficient=memory_efficient, **SMALL).train()
    assert model.grad_checkpointing == memory_efficient
    x = torch.randn(2, 3, SIZE, SIZE)
    grads = []
    for enable in (memory_efficient, not memory_efficient):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for first, second in zip(*grads):
        torch.testing.assert_close(first, second)


def test_what_layers_add_can_be_dropped():
    model = ziggurat.create_model("densenet121", proj_drop_rate=0.5, **SMALL)
    layer = model.features.denseblock1.denselayer1
    x = torch.randn(4, 16, 8, 8)
    assert (layer.train()([x]) == 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert not (layer.eval()([x]) == 0).any()


def test_torchvisions_checkpoints_load():
    models = pytest.importorskip("torchvision.models")
    theirs = models.densenet121().eval()
    ours = ziggurat.create_model("densenet121").eval()
    # what is published has names from before torchvision changed its own
    old = {
        name.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.").replace("conv1.", "conv.1.")
        .replace("conv2.", "conv.2.") if ".denselayer" in name else name: tensor
        for name, tensor in theirs.state_dict().items()
    }  # fmt: skip
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    ours.load_state_dict(ours.remap_checkpoint(old))
    assert list(ours.remap_checkpoint(ours.state_dict())) == list(ours.state_dict())
    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_depth_groups_keep_transitions_with_their_blocks():
    model = ziggurat.create_model("densenet121", **SMALL)
    groups = group_parameters(model, model.group_matcher(coarse=True))
    tops = [sorted({".".join(name.split(".")[:2]) for name in group}) for group in groups.values()]
    assert tops == [
        ["features.conv0", "features.norm0"],
        ["features.denseblock1", "features.transition1"],
        ["features.denseblock2", "features.transition2"],
        ["features.denseblock3", "features.transition3"],
        ["features.denseblock4", "features.norm5"],
        ["classifier.bias", "classifier.weight"],
    ]
    assert len(group_parameters(model, model.group_matcher())) == 1 + 9 + 1
