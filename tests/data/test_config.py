"""resolve_data_config gives timm's answer for every published configuration."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import timm
import timm.data as oracle

from ziggurat import data
from ziggurat.errors import BadArgument


def published() -> dict[str, dict]:
    return {name: timm.get_pretrained_cfg(name).to_dict() for name in timm.list_models(pretrained=True)}


def test_every_published_configuration_resolves_as_in_timm() -> None:
    configs = published()
    assert len(configs) > 1000
    for name, cfg in configs.items():
        for use_test_size in (False, True):
            for args in (None, {"img_size": 97, "crop_pct": 0.8}):
                ours = data.resolve_data_config(args, cfg, use_test_size=use_test_size)
                assert ours == oracle.resolve_data_config(args, cfg, use_test_size=use_test_size), name
                assert list(ours) == list(oracle.resolve_data_config(args, cfg, use_test_size=use_test_size))


@pytest.mark.parametrize("args", [
    {"in_chans": 1, "mean": [0.5], "std": [0.2]},
    {"chans": 2, "mean": [0.5]},
    {"chans": 2, "in_chans": 4, "std": [0.1, 0.2, 0.3, 0.4]},
    {"in_chans": 5},
    {"in_chans": 5, "img_size": 96},
    {"input_size": [3, 192, 160], "crop_mode": "squash", "interpolation": "bilinear"},
    {"input_size": (1, 28, 28), "in_chans": 3, "mean": [0.5]},
    {"mean": (0.1, 0.2, 0.3), "crop_pct": 0, "interpolation": "", "crop_mode": None},
])  # fmt: skip
@pytest.mark.parametrize("cfg", [
    None,
    {"input_size": (3, 260, 260), "test_input_size": (3, 288, 288), "test_crop_pct": 0.95, "crop_pct": 0.89},
    {"mean": (0.5,) * 3, "std": (0.4,) * 3, "crop_mode": "border", "interpolation": "bilinear"},
])  # fmt: skip
def test_arguments_come_first_as_in_timm(args: dict, cfg: dict | None) -> None:
    for use_test_size in (False, True):
        assert data.resolve_data_config(args, cfg, use_test_size=use_test_size) == oracle.resolve_data_config(
            args, cfg, use_test_size=use_test_size
        )


def test_model_carries_its_configuration() -> None:
    model = SimpleNamespace(pretrained_cfg={"input_size": (3, 224, 224), "mean": (0.5,) * 3, "std": (0.5,) * 3})
    config = data.resolve_model_data_config(model)
    assert config == oracle.resolve_model_data_config(model)
    assert config["mean"] == (0.5, 0.5, 0.5)
    assert data.resolve_model_data_config(model, pretrained_cfg={"crop_pct": 0.9})["crop_pct"] == 0.9
    assert data.resolve_model_data_config(None, {"img_size": 64})["input_size"] == (3, 64, 64)
    assert data.resolve_model_data_config(SimpleNamespace())["mean"] == data.IMAGENET_DEFAULT_MEAN


def test_efficientnet_lite0() -> None:
    config = data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg("tf_efficientnet_lite0").to_dict())
    half = (0.5, 0.5, 0.5)
    assert config == {
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "mean": half,
        "std": half,
        "crop_pct": 0.875,
        "crop_mode": "center",
    }


@pytest.mark.parametrize("args, words", [
    (None, "nothing to resolve"),
    ({"input_size": 224}, "channels, height, width"),
    ({"img_size": (224, 224)}, "one edge"),
    ({"mean": (0.1, 0.2)}, "2 values for 3 channels"),
    ({"input_size": (1, 8, 8), "std": (0.1, 0.2, 0.3)}, "3 values for 1 channels"),
])  # fmt: skip
def test_bad_arguments_are_named(args: dict | None, words: str) -> None:
    with pytest.raises(BadArgument, match=words):
        data.resolve_data_config(args)


def test_verbose_tells_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ziggurat"):
        data.resolve_data_config({"img_size": 64}, verbose=True)
    assert "input_size=(3, 64, 64)" in caplog.text


def test_constants_are_timms() -> None:
    from timm.data import constants

    from ziggurat.data import constants as ours

    assert ours.__all__ == sorted(name for name in vars(constants) if name.isupper())
    for name in ours.__all__:
        assert getattr(ours, name) == getattr(constants, name) == getattr(data, name)
