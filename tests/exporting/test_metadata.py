"""What a file says of itself."""

import json

import pytest
import torch
from torch import nn

import ziggurat
from ziggurat.errors import BadArgument
from ziggurat.exporting import metadata
from ziggurat.view import View

IMAGES = torch.zeros(1, 3, 64, 96)


def facts(model, view, free=(), class_names=None, **how):
    found = metadata.of(View(model, view, **how).describe(IMAGES), IMAGES.shape, free, class_names)
    assert all(isinstance(value, str) for value in found.values())
    assert metadata.parsed(found) == {key: json.loads(value) for key, value in found.items()}
    return metadata.parsed(found)


def test_a_classifier_tells_how_images_are_prepared_and_scores_read():
    model = ziggurat.create_model("test_resnet").eval()
    found = facts(model, "classify", ("batch", "width"))
    names = found.pop("class_names")
    assert (len(names), names[0]) == (1000, "tench, Tinca tinca")
    assert found == dict(
        mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5], interpolation="bilinear", crop_pct=0.95, crop_mode="center", pixels=False,
        input_size=[3, 64, 96], input_shape=[None, 3, 64, None], min_size=1, side_step=1, outputs=["scores"], view="classify", strides=None,
        architecture="test_resnet", tag="r160_in1k", license="apache-2.0", ziggurat_version=ziggurat.__version__,
    )


def test_a_pyramid_tells_its_strides():
    model = ziggurat.create_model("test_resnet").eval()
    found = facts(model, "pyramid", strides=(4, 8), pixels=True)
    assert (found["outputs"], found["strides"], found["pixels"]) == (["stride_4", "stride_8"], [4, 8], True)
    assert found["class_names"] is None


def test_class_names_are_those_given_then_the_models():
    model = ziggurat.create_model("test_resnet", num_classes=2).eval()
    assert facts(model, "classify")["class_names"] is None
    model.class_names = ("Katze", "Hündchen")
    assert facts(model, "forward")["class_names"] == ["Katze", "Hündchen"]
    assert facts(model, "classify", class_names=("cat", "dog"))["class_names"] == ["cat", "dog"]
    for wrong in (["cat"], "ab", ["cat", 1]):
        with pytest.raises(BadArgument, match="give a list of 2 names, one for each class"):
            facts(model, "classify", class_names=wrong)
    assert facts(model, "embed")["class_names"] is None


def test_of_a_network_of_others_no_classes_are_guessed():
    parts = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1000))
    model = ziggurat.as_backbone(parts, ["0"], input_size=64).eval()
    assert model.num_classes == 1000
    assert facts(model, "classify")["class_names"] is None
    assert facts(model, "classify", class_names=(str(i) for i in range(1000)))["class_names"][7] == "7"


def test_of_a_module_of_others_nothing_is_made_up():
    found = facts(nn.Conv2d(3, 4, 3), "forward")
    assert (found["architecture"], found["outputs"]) == ("Conv2d", ["output"])
    assert all(found[key] is None for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode", "tag", "license", "class_names"))
