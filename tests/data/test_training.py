"""Augmentation: the same seed gives timm's very image, target and box."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm.data as oracle
import timm.data.auto_augment as oracle_aa
import timm.data.mixup as oracle_mixup
import timm.data.random_erasing as oracle_erasing
import torch
import torchvision.transforms as tv
from PIL import Image, ImageOps

from ziggurat import data
from ziggurat.data import auto_augment, mixup
from ziggurat.errors import BadArgument


@pytest.fixture(autouse=True)
def posterize_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recent Pillow refuses to keep no bit at all, which timm's policies ask for; let it give black as it used to."""
    refusing = ImageOps.posterize
    black = [0] * 256 * 3
    monkeypatch.setattr(ImageOps, "posterize", lambda image, bits: refusing(image, bits) if bits > 0 else image.point(black))


def seeded(seed: int, call: Callable, *arguments: Any) -> Any:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return call(*arguments)


def picture(width: int = 61, height: int = 47, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width)
    small = Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def assert_same(ours: Callable, theirs: Callable, make: Callable[[], Any] = picture, seeds: int = 25) -> None:
    changed = False
    for seed in range(seeds):
        a, b = seeded(seed, ours, make()), seeded(seed, theirs, make())
        assert np.array_equal(np.asarray(a), np.asarray(b)), seed
        changed |= not np.array_equal(np.asarray(a), np.asarray(make()))
    assert changed  # or nothing was compared


@pytest.mark.parametrize("name", list(auto_augment.OPERATIONS))
@pytest.mark.parametrize("hparams", [
    None,
    {"img_mean": (120, 110, 100), "translate_const": 20, "interpolation": Image.Resampling.BILINEAR, "magnitude_std": 0.5},
    {"img_mean": (1, 2, 3), "translate_const": 20, "magnitude_std": float("inf"), "translate_pct": 0.3},
    {"img_mean": (1, 2, 3), "translate_const": 20, "magnitude_std": 2.0, "magnitude_max": 30},
])  # fmt: skip
def test_every_operation(name: str, hparams: dict | None) -> None:
    for magnitude in (0, 3, 10, 25):
        ours = auto_augment.AugmentOp(name, 0.8, magnitude, hparams)
        theirs = oracle_aa.AugmentOp(name, 0.8, magnitude, hparams)
        for seed in range(4):
            a, b = seeded(seed, ours, picture()), seeded(seed, theirs, picture())
            assert np.array_equal(np.asarray(a), np.asarray(b)), (magnitude, seed)


def test_operations_are_timms() -> None:
    assert set(auto_augment.OPERATIONS) == set(oracle_aa.NAME_TO_OP)


RAND = "rand-m9-mstd0.5-inc1 rand-m9-n3-mstd0.5 rand rand-m15-mmax20-mstd101-p0.9 rand-n1-t3a rand-m6-n2-t3aw rand-mstd1-tweights"


@pytest.mark.parametrize("spec", RAND.split())
def test_rand_augment(spec: str) -> None:
    assert_same(data.rand_augment_transform(spec), oracle_aa.rand_augment_transform(spec, dict(oracle_aa._HPARAMS_DEFAULT)))


@pytest.mark.parametrize("spec", ["original", "originalr-mstd0.5", "v0", "v0r-mstd1", "3a"])
def test_auto_augment(spec: str) -> None:
    theirs = oracle.auto_augment_transform(spec, dict(oracle_aa._HPARAMS_DEFAULT))
    ours = data.auto_augment_transform(spec)
    rows = [[[(op.name, op.prob, op.magnitude) for op in row] for row in one.policy] for one in (ours, theirs)]
    assert rows[0] == rows[1]
    assert_same(ours, theirs)


@pytest.mark.parametrize("spec", ["augmix-m5-w4-d2", "augmix", "augmix-m3-w2-a0.5-mstd1", "augmix-m7-w4-d2-b1", "augmix-b1"])
def test_augmix(spec: str) -> None:
    theirs = oracle_aa.augment_and_mix_transform(spec, dict(oracle_aa._HPARAMS_DEFAULT))
    assert_same(data.augment_and_mix_transform(spec), theirs, seeds=12)


@pytest.mark.parametrize("make, spec, words", [
    (data.rand_augment_transform, "rand-x3", "section 'x3'"),
    (data.rand_augment_transform, "rand-mabc", "section 'mabc'"),
    (data.rand_augment_transform, "rand-tall", "3a, 3aw, weights"),
    (data.rand_augment_transform, "random-m9", "begins with rand"),
    (data.auto_augment_transform, "originall", "original, originalr, v0"),
    (data.auto_augment_transform, "v0-m9", "mstd"),
    (data.augment_and_mix_transform, "augmix-m", "section 'm'"),
    (data.augment_and_mix_transform, "augment", "begins with augmix"),
    (data.AugmentOp, "Rotat", "Rotate"),
])  # fmt: skip
def test_bad_policies_are_named(make: Callable, spec: str, words: str) -> None:
    with pytest.raises(BadArgument, match=words):
        make(spec)


def test_hparams_given_are_left_alone_and_win() -> None:
    hparams = {"img_mean": (1, 2, 3), "translate_const": 9, "magnitude_std": 2.0}
    policy = data.rand_augment_transform("rand-m9-mstd0.5", hparams)
    assert len(hparams) == 3
    assert {op.magnitude_std for op in policy.ops} == {2.0}


def test_grey_images_are_augmented_too() -> None:
    config = {"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,), "is_training": True}
    for spec in ("rand-m9-n6", "original", "augmix-m5"):
        transform = data.create_transform(**config, auto_augment=spec)
        for seed in range(8):
            assert seeded(seed, transform, picture(mode="L")).shape == (1, 28, 28)


@pytest.mark.parametrize("config", [
    {},
    {"interpolation": "random", "scale": (0.3, 0.9), "ratio": (0.5, 2.0), "hflip": 0.9, "vflip": 0.4},
    {"color_jitter": (0.4, 0.3, 0.2, 0.1)},
    {"color_jitter": 0.3, "color_jitter_prob": 0.5, "grayscale_prob": 0.4},
    {"color_jitter": None, "train_crop_mode": "rkrc"},
    {"train_crop_mode": "rkrr", "interpolation": "random", "scale": (0.5, 1.5)},
    {"auto_augment": "rand-m9-mstd0.5-inc1", "interpolation": "bicubic", "re_prob": 0.6, "re_mode": "pixel"},
    {"auto_augment": "original-mstd0.5", "interpolation": "random", "re_prob": 0.6, "re_mode": "rand", "re_count": 3},
    {"auto_augment": "augmix-m5-w4-d2", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "re_prob": 1.0},
    {"auto_augment": "3a", "color_jitter": 0.3},
    {"use_prefetcher": True, "re_prob": 1.0},
    {"normalize": False},
])  # fmt: skip
@pytest.mark.parametrize("input_size", [32, (3, 24, 36)])
def test_training_transform_equals_timms(config: dict, input_size: Any) -> None:
    config = config | {"input_size": input_size, "is_training": True}
    ours, theirs = data.create_transform(**config), oracle.create_transform(**config)
    for seed in range(12):
        for shape in ((61, 47), (40, 90), (300, 12)):
            if shape == (300, 12) and "train_crop_mode" in config:
                continue  # no reflection is that wide in timm
            a, b = seeded(seed, ours, picture(*shape)), seeded(seed, theirs, picture(*shape))
            assert a.dtype == b.dtype
            assert torch.equal(a, b), (seed, shape)


def test_separate_gives_three_parts() -> None:
    config = {"input_size": 32, "is_training": True, "separate": True, "auto_augment": "augmix-m5", "re_prob": 1.0}
    ours, theirs = data.create_transform(**config), oracle.create_transform(**config)
    assert isinstance(ours, tuple)
    assert len(ours) == 3

    def run(parts: Any) -> torch.Tensor:
        image = picture()
        for part in parts:
            image = part(image)
        return image

    assert torch.equal(seeded(3, run, ours), seeded(3, run, theirs))


def test_blur_equals_torchvision() -> None:
    for mode in ("RGB", "L"):
        for seed in range(6):
            ours = seeded(seed, data.GaussianBlur(23), picture(mode=mode))
            theirs = seeded(seed, tv.GaussianBlur(23), picture(mode=mode))
            difference = np.subtract(np.asarray(ours, dtype=int), np.asarray(theirs, dtype=int))
            assert np.abs(difference).max() <= 1  # a sum that ends on a half may round either way
            assert (difference != 0).mean() < 1e-3
    with pytest.raises(BadArgument, match="odd"):
        data.GaussianBlur(4)
    transform = data.create_transform(32, is_training=True, gaussian_blur_prob=1.0)
    assert transform(picture()).shape == (3, 32, 32)


def test_jitter_of_one_quality() -> None:
    for index, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        for value in ((0.5, 1.8) if name != "hue" else (-0.4, 0.5), 0.4):
            arguments = [0] * 4
            arguments[index] = value
            assert_same(data.ColorJitter(*arguments), tv.ColorJitter(*arguments), seeds=6)
    with pytest.raises(BadArgument, match=r"hue=0\.7"):
        data.ColorJitter(hue=0.7)
    with pytest.raises(BadArgument, match="brightness=-1"):
        data.ColorJitter(brightness=-1)


def test_random_steps_equal_timms() -> None:
    assert_same(data.RandomCropOrPad((30, 70), fill=7), oracle.RandomCropOrPad((30, 70), fill=7))
    assert_same(data.RandomPad((60, 70), fill=3), oracle.RandomPad((60, 70), fill=3))
    assert_same(data.RandomGrayscale(0.5), tv.RandomGrayscale(0.5))
    random_scale = {"random_scale_prob": 0.7, "random_aspect_prob": 0.7}
    assert_same(data.ResizeKeepRatio(32, 0.4, **random_scale), oracle.ResizeKeepRatio(32, 0.4, **random_scale))
    with pytest.warns(UserWarning, match="smallest, largest"):
        data.RandomResizedCropAndInterpolation(32, scale=(1.0, 0.1))


@pytest.mark.parametrize("arguments", [
    {"probability": 1.0},
    {"probability": 0.5, "mode": "rand", "max_count": 4},
    {"probability": 1.0, "mode": "pixel", "min_area": 0.2, "max_area": 0.9, "min_aspect": 0.2, "max_aspect": 3.0},
    {"probability": 0.9, "mode": "pixel", "num_splits": 2},
])  # fmt: skip
def test_random_erasing_equals_timms(arguments: dict) -> None:
    ours = data.RandomErasing(**arguments)
    theirs = oracle_erasing.RandomErasing(**arguments, device="cpu")
    assert_same(ours, theirs, lambda: torch.ones(3, 20, 30))
    assert_same(ours, theirs, lambda: torch.ones(6, 3, 20, 30), seeds=8)


def test_random_erasing_by_its_law() -> None:
    whole = torch.ones(4, 1, 64, 64)
    out = seeded(0, data.RandomErasing(1.0, min_area=0.25, max_area=0.25, num_splits=2), whole)
    assert out is whole  # in place
    assert bool((out[:2] == 1).all())
    assert ((out[2:] == 0).float().mean((1, 2, 3)) - 0.25).abs().max() < 0.02
    with pytest.raises(BadArgument, match="const, rand or pixel"):
        data.RandomErasing(mode="noise")


MIXES = [
    {},
    {"cutmix_alpha": 1.0},
    {"mixup_alpha": 0.0, "cutmix_alpha": 0.7, "correct_lam": False},
    {"cutmix_minmax": (0.2, 0.8), "prob": 0.7, "switch_prob": 0.6},
    {"mixup_alpha": 0.2, "prob": 0.5, "label_smoothing": 0.0},
]


@pytest.mark.parametrize("arguments", MIXES)
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixup_equals_timms(arguments: dict, mode: str) -> None:
    arguments = arguments | {"num_classes": 7, "mode": mode}
    ours, theirs = data.Mixup(**arguments), oracle.Mixup(**arguments)
    target = torch.tensor([0, 1, 2, 3, 6, 6])
    for seed in range(15):
        images = torch.rand(6, 3, 12, 16, generator=torch.Generator().manual_seed(seed))
        a, b = (seeded(seed, m, images.clone(), target) for m in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        assert a[1].dtype == b[1].dtype


@pytest.mark.parametrize("arguments", MIXES)
@pytest.mark.parametrize("mode", ["batch", "pair", "elem", "half"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_fast_collate_equals_timms(arguments: dict, mode: str, kind: str) -> None:
    arguments = arguments | {"num_classes": 7, "mode": mode}
    ours, theirs = data.FastCollateMixup(**arguments), oracle.FastCollateMixup(**arguments)
    for seed in range(10):

        def batch(seed: int = seed) -> list:
            images = np.random.default_rng(seed).integers(0, 256, (6, 3, 12, 16), np.uint8)
            return [(torch.tensor(one) if kind == "torch" else one, label) for label, one in enumerate(images)]

        a, b = (seeded(seed, m, batch()) for m in (ours, theirs))
        assert a[0].dtype == torch.uint8
        assert torch.equal(a[0], b[0])
        torch.testing.assert_close(a[1], b[1], rtol=0, atol=1e-6)


def test_mixup_by_its_law() -> None:
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 1, 8, 8).clone()
    mix = data.Mixup(num_classes=4, label_smoothing=0.0)
    mixed, target = seeded(0, mix, images.clone(), torch.arange(4))
    lam = target[0, 0].item()
    assert 0 < lam < 1
    torch.testing.assert_close(mixed[:, 0, 0, 0], lam * torch.arange(4.0) + (1 - lam) * torch.arange(4.0).flip(0))
    torch.testing.assert_close(target.sum(1), torch.ones(4))
    mix.mixup_enabled = False
    mixed, target = mix(images.clone(), torch.arange(4))
    assert torch.equal(mixed, images)
    assert torch.equal(target, torch.eye(4))


def test_mixup_names_what_is_wrong() -> None:
    with pytest.raises(BadArgument, match="batch of 3"):
        data.Mixup()(torch.zeros(3, 3, 4, 4), torch.zeros(3))
    with pytest.raises(BadArgument, match="mixup_enabled"):
        data.Mixup(mixup_alpha=0.0)(torch.zeros(2, 3, 4, 4), torch.zeros(2))
    with pytest.raises(BadArgument, match="batch, pair, elem"):
        data.Mixup(mode="half")
    with pytest.raises(BadArgument, match="smallest and the largest"):
        data.Mixup(cutmix_minmax=(0.1,))
    with pytest.raises(BadArgument, match="multi-label"):
        mixup.mixup_target(torch.zeros(3), 5, multi_label=True)


@pytest.mark.parametrize("multi_label", [False, True])
def test_targets_equal_timms(multi_label: bool) -> None:
    target = torch.eye(5)[:4] if multi_label else torch.tensor([0, 4, 2, 2])
    a = mixup.mixup_target(target, 5, 0.3, 0.1, multi_label)
    assert torch.equal(a, oracle_mixup.mixup_target(target, 5, 0.3, 0.1, multi_label))


@pytest.mark.parametrize("count", [None, 5])
def test_boxes_equal_timms(count: int | None) -> None:
    for seed in range(20):
        for arguments in ({"margin": 0.2, "lam": 0.4}, {"lam": 0.9}):
            call = partial(seeded, seed)
            a, b = (call(partial(m.rand_bbox, count=count, **arguments), (3, 20, 34)) for m in (mixup, oracle_mixup))
            assert np.array_equal(np.array(a), np.array(b))
        a, b = (seeded(seed, m.rand_bbox_minmax, (20, 34), (0.2, 0.9), count) for m in (mixup, oracle_mixup))
        assert np.array_equal(np.array(a), np.array(b))


def test_transforms_go_to_worker_processes() -> None:
    config = {"input_size": 32, "is_training": True, "color_jitter": (0.1, 0.1, 0.1, 0.1), "grayscale_prob": 0.1, "re_prob": 0.2}
    for more in ({}, {"auto_augment": "rand-m9-inc1"}, {"auto_augment": "v0"}, {"auto_augment": "augmix"}):
        transform = data.create_transform(**config, **more)
        again = pickle.loads(pickle.dumps(transform))
        assert repr(again) == repr(transform)
        assert torch.equal(seeded(1, again, picture()), seeded(1, transform, picture()))


def test_repr_names_every_step() -> None:
    text = repr(data.create_transform(32, is_training=True, auto_augment="rand-m9-mstd0.5", re_prob=0.25, vflip=0.1))
    for step in ("RandomResizedCropAndInterpolation", "RandomHorizontalFlip(p=0.5)", "RandomVerticalFlip(p=0.1)",
                 "RandAugment(n=2", "AugmentOp(Rotate, p=0.5, m=9, mstd=0.5)", "RandomErasing(p=0.25"):  # fmt: skip
        assert step in text
