"""GoogLeNet: scores against torchvision and MindCV, auxiliary classifiers left out, blocks named by letters in groups."""

import pytest
import torch

import ziggurat
from parity import mindcv
from parity.torchvision_models import TOLERANCE, difference, facts_disagree, redrawn
from ziggurat.backbone.units import group_parameters
from ziggurat.data import resolve_data_config
from ziggurat.errors import BadArgument


@pytest.fixture(scope="module")
def theirs():
    return redrawn("googlenet", aux_logits=True, init_weights=False)


def test_outputs_and_keys_are_torchvisions_without_its_auxiliary_classifiers(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    ours = ziggurat.create_model("googlenet", checkpoint_path=tmp_path / "googlenet.pth")
    assert list(ours.state_dict()) == [key for key in theirs.state_dict() if not key.startswith("aux")]
    for size in (64, 96):
        assert difference(ours, theirs, size) <= TOLERANCE, size


def test_the_published_weights_want_pixels_about_zero(theirs):
    """torchvision's network turns ImageNet's normalisation into another one by itself, with its published weights."""
    assert facts_disagree("googlenet.tv_in1k") == []
    with torch.device("meta"):
        config = resolve_data_config(model=ziggurat.create_model("googlenet.tv_in1k"))
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    x = torch.rand(1, 3, 8, 8)
    imagenet = (x - torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)) / torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    theirs.transform_input = True
    torch.testing.assert_close((x - mean) / std, theirs._transform_input(imagenet))
    theirs.transform_input = False


def test_a_checkpoint_of_mindcvs_gives_its_outputs(tmp_path):
    path = mindcv.checkpoint("googlenet", tmp_path)
    model = ziggurat.create_model("googlenet", checkpoint_path=path).eval()
    mindcv.hold(model, "googlenet")


def test_a_pyramid_takes_a_checkpoint_with_auxiliary_classifiers(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    part = ziggurat.create_model("googlenet", features_only=True, out_strides=(4, 8), num_classes=3,
                                 checkpoint_path=tmp_path / "googlenet.pth").eval()
    whole = ziggurat.create_model("googlenet", checkpoint_path=tmp_path / "googlenet.pth")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        levels = whole.eval().pyramid(x, strides=(4, 8))
        assert all(torch.equal(level, levels[stride]) for level, stride in zip(part(x), (4, 8)))


def test_odd_sides_are_rounded_up():
    for name in ("googlenet", "googlenet.mindcv_in1k"):
        with torch.device("meta"):
            model = ziggurat.create_model(name).eval()
            levels = model.pyramid(torch.zeros(1, 3, 75, 97))
        assert {stride: tuple(level.shape[2:]) for stride, level in levels.items()} == {
            2: (38, 49), 4: (19, 25), 8: (10, 13), 16: (5, 7), 32: (3, 4)
        }  # fmt: skip
    with pytest.raises(BadArgument, match="pad_type='valid'"):
        ziggurat.create_model("googlenet", pad_type="valid")


def test_it_gives_scores_alone_while_training():
    with torch.device("meta"):
        model = ziggurat.create_model("googlenet", num_classes=3).train()
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


def test_blocks_are_groups_of_their_own():
    with torch.device("meta"):
        model = ziggurat.create_model("googlenet")
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    blocks = {name.split(".")[0]: group for name, group in groups.items() if name.startswith("inception")}
    assert len(set(blocks.values())) == 9
    assert sorted(blocks, key=lambda name: blocks[name]) == sorted(blocks)
