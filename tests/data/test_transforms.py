"""Preprocessing for evaluation: equal to timm's (on torchvision) in every pixel."""

from __future__ import annotations

import numpy as np
import pytest
import timm.data as oracle
import torch
from PIL import Image

from ziggurat import data
from ziggurat.errors import BadArgument


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth shapes under noise, so that resampling and rounding both show."""
    rng = np.random.default_rng([seed, width, height])
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / (3 + c)) + np.cos(y / (5 + c)) for c in range(3)], -1) * 60 + 128
    return Image.fromarray((waves + rng.normal(0, 20, waves.shape)).clip(0, 255).astype(np.uint8)).convert(mode)


# (crop_pct 1.25 resizes to less than the crop, which is then padded)
# landscape, portrait, square; odd edges; offsets that end in .5 both ways; smaller than the crop; strips; the exact size
SIZES = [(640, 480), (333, 500), (257, 257), (255, 301), (226, 227), (229, 224), (100, 50), (31, 64), (1, 1), (300, 7)]
SIZES += [(224, 224), (256, 256), (513, 384)]


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0, 1.25])
def test_eval_equals_timm_on_every_size(crop_mode: str, interpolation: str, crop_pct: float) -> None:
    config = {"input_size": (3, 75, 75), "crop_mode": crop_mode, "interpolation": interpolation, "crop_pct": crop_pct}
    ours, theirs = data.create_transform(**config), oracle.create_transform(**config)
    for size in SIZES:
        image = picture(*size)
        a, b = ours(image), theirs(image)
        assert a.dtype == b.dtype == torch.float32
        assert a.shape == (3, 75, 75)
        assert torch.equal(a, b), size


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"])
def test_eval_equals_timm_in_every_interpolation(interpolation: str) -> None:
    for crop_mode in ("center", "squash", "border"):
        config = {"input_size": (3, 64, 64), "crop_mode": crop_mode, "interpolation": interpolation}
        image = picture(201, 118)
        assert torch.equal(data.create_transform(**config)(image), oracle.create_transform(**config)(image))


@pytest.mark.parametrize("size", [(60, 91), (91, 60), (33, 32)])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_eval_equals_timm_where_the_input_is_not_square(size: tuple[int, int], crop_mode: str) -> None:
    config = {"input_size": (3, *size), "crop_mode": crop_mode, "crop_pct": 0.9}
    for shape in ((201, 118), (118, 201), (40, 40), (77, 301)):
        image = picture(*shape)
        assert torch.equal(data.create_transform(**config)(image), oracle.create_transform(**config)(image)), shape


def test_crop_offsets_round_half_to_even() -> None:
    # spare edges of 1, 3, 5, 7: half of them rounds to 0, 2, 2, 4
    image = picture(40, 40)
    for edge, offset in ((39, 0), (37, 2), (35, 2), (33, 4)):
        ours = data.center_crop_or_pad(image, edge)
        assert np.array_equal(np.asarray(ours), np.asarray(image)[offset : offset + edge, offset : offset + edge])


@pytest.mark.parametrize("flags", [{"use_prefetcher": True}, {"normalize": False}])
def test_unnormalised_output_is_bytes_as_timms(flags: dict[str, bool]) -> None:
    image = picture(100, 80)
    ours, theirs = data.create_transform(48, **flags)(image), oracle.create_transform(48, **flags)(image)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("config", [
    {"input_size": 64},
    {"input_size": (48, 64)},
    {"input_size": (3, 64, 64), "crop_border_pixels": 5},
    {"input_size": (3, 64, 64), "mean": (0.5,), "std": (0.25,)},
    {"input_size": (3, 64, 64), "mean": data.OPENAI_CLIP_MEAN, "std": data.OPENAI_CLIP_STD, "crop_mode": "border"},
    {"input_size": 64, "is_training": True, "no_aug": True, "interpolation": "random"},
])  # fmt: skip
def test_eval_equals_timm_with_other_arguments(config: dict) -> None:
    image = picture(131, 97)
    assert torch.equal(data.create_transform(**config)(image), oracle.create_transform(**config)(image))


def test_one_channel_takes_grey() -> None:
    config = {"input_size": (1, 40, 40), "mean": (0.4,), "std": (0.2,)}
    grey = picture(70, 55, "L")
    ours = data.create_transform(**config)
    assert torch.equal(ours(grey), oracle.create_transform(**config)(grey))
    assert torch.equal(ours(picture(70, 55)), ours(picture(70, 55).convert("L")))


def test_four_channels_need_four_bands() -> None:
    config = {"input_size": (4, 40, 40), "mean": (0.4,) * 4, "std": (0.2,) * 4}
    image = picture(70, 55, "RGBA")
    assert torch.equal(data.create_transform(**config)(image), oracle.create_transform(**config)(image))
    with pytest.raises(BadArgument, match="3 bands for a model of 4 channels"):
        data.create_transform(**config)(picture(70, 55))


def test_random_interpolation_is_one_of_two() -> None:
    image = picture(90, 90)
    step = data.ResizeKeepRatio(30, interpolation="random")
    both = [np.asarray(image.resize((30, 30), mode)) for mode in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)]
    seen = set()
    for out in (np.asarray(step(image)) for _ in range(40)):
        seen.add([np.array_equal(out, one) for one in both].index(True))
    assert seen == {0, 1}


def test_any_mode_goes_in() -> None:
    transform = data.create_transform((3, 32, 32))
    plain = transform(picture(50, 40))
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "RGBX", "RGBa", "PA", "La"):
        between = {"I;16": "L", "La": "LA", "RGBa": "RGBA"}.get(mode, "RGB")
        out = transform(picture(50, 40, between).convert(mode))
        assert out.shape == plain.shape, mode
        assert out.isfinite().all()
    assert torch.equal(transform(picture(50, 40).convert("RGBA")), plain)


def test_repr_reads_step_by_step() -> None:
    text = repr(data.create_transform((3, 224, 224), interpolation="bicubic"))
    assert text.splitlines() == [
        "Compose(",
        "    ToChannels(3)",
        "    Resize(size=256, interpolation=bicubic)",
        "    CenterCrop(size=(224, 224))",
        "    MaybeToTensor()",
        "    Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))",
        ")",
    ]


def test_steps_stand_where_timms_do() -> None:
    for config in ({"input_size": 64}, {"input_size": (3, 48, 64), "interpolation": "bicubic"}, {"crop_mode": "border"}):
        ours, theirs = data.create_transform(**config).transforms, oracle.create_transform(**config).transforms
        assert [type(step).__name__ for step in ours] == [type(step).__name__ for step in theirs]
        assert data.interp_mode_to_str(ours[0].interpolation) == oracle.transforms.interp_mode_to_str(theirs[0].interpolation)
        assert torch.equal(torch.tensor(ours[-1].mean), theirs[-1].mean)


@pytest.mark.parametrize("arguments, words", [
    ({"crop_mode": "middle"}, "center, squash, border"),
    ({"crop_pct": -1.0}, "crop_pct=-1.0"),
    ({"interpolation": "bicubik"}, "bicubic"),
    ({"separate": True}, "separate"),
    ({"naflex": True}, "patches"),
    ({"crop": 3}, "no crop"),
    ({"tf_preprocessing": True, "use_prefetcher": True}, "TensorFlow"),
    ({"is_training": True, "train_crop_mode": "x"}, "rrc, rkrc, rkrr"),
])  # fmt: skip
def test_bad_arguments_are_named(arguments: dict, words: str) -> None:
    with pytest.raises(BadArgument, match=words):
        data.create_transform(**arguments)


def test_what_is_no_image_is_named() -> None:
    with pytest.raises(BadArgument, match="ndarray"):
        data.create_transform()(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(BadArgument, match="leaves nothing"):
        data.TrimBorder(3)(picture(6, 9))


def test_tensor_and_array_steps_equal_timms() -> None:
    image, grey = picture(20, 10), picture(20, 10, "L")
    for one in (image, grey):
        assert torch.equal(data.ToTensor()(one), oracle.ToTensor()(one))
        assert torch.equal(data.MaybeToTensor()(one), oracle.MaybeToTensor()(one))
        assert torch.equal(data.MaybeToTensor()(np.asarray(one)), oracle.MaybeToTensor()(np.array(one)))
        assert torch.equal(data.MaybePILToTensor()(one), oracle.MaybePILToTensor()(one))
        assert np.array_equal(data.ToNumpy()(one), oracle.ToNumpy()(one))
    tensor = torch.rand(3, 4, 4)
    assert data.MaybeToTensor()(tensor) is data.MaybePILToTensor()(tensor) is tensor
    with pytest.raises(BadArgument, match="uint8"):
        data.Normalize((0.5,), (0.5,))(torch.zeros(3, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize("window", [(0, 0, 20, 30), (-4, -7, 40, 40), (5, -3, 30, 20), (10, 12, 40, 40)])
@pytest.mark.parametrize("padding_mode", ["constant", "edge", "reflect", "symmetric"])
def test_crop_or_pad_equals_timm(window: tuple[int, int, int, int], padding_mode: str) -> None:
    image = picture(33, 35)
    ours = data.crop_or_pad(image, *window, fill=9, padding_mode=padding_mode)
    theirs = oracle.crop_or_pad(image, *window, fill=9, padding_mode=padding_mode)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_interpolation_names_go_both_ways() -> None:
    for name in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"):
        assert data.interp_mode_to_str(data.str_to_interp_mode(name)) == name
        assert data.str_to_pil_interp(name) == oracle.str_to_pil_interp(name)
