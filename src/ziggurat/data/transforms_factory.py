"""`create_transform`: the whole way from a PIL image to a model's input, for evaluation and for training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import BadArgument
from .constants import DEFAULT_CROP_MODE, DEFAULT_CROP_PCT, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from .transforms import (
    CenterCrop,
    CenterCropOrPad,
    ColorJitter,
    Compose,
    GaussianBlur,
    MaybePILToTensor,
    MaybeToTensor,
    Normalize,
    RandomApply,
    RandomCropOrPad,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCropAndInterpolation,
    RandomVerticalFlip,
    Resize,
    ResizeKeepRatio,
    ToChannels,
    TrimBorder,
    str_to_pil_interp,
)

__all__ = [
    "create_transform",
    "transforms_imagenet_eval",
    "transforms_imagenet_train",
    "transforms_noaug_train",
]

Step = Callable[[Any], Any]


def create_transform(
    input_size: int | Sequence[int] = 224,
    is_training: bool = False,
    no_aug: bool = False,
    train_crop_mode: str | None = None,
    scale: tuple[float, float] | None = None,
    ratio: tuple[float, float] | None = None,
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float | Sequence[float] | None = 0.4,
    color_jitter_prob: float | None = None,
    grayscale_prob: float = 0.0,
    gaussian_blur_prob: float = 0.0,
    auto_augment: str | None = None,
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    re_prob: float = 0.0,
    re_mode: str = "const",
    re_count: int = 1,
    re_num_splits: int = 0,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    crop_border_pixels: int | None = None,
    tf_preprocessing: bool = False,
    use_prefetcher: bool = False,
    normalize: bool = True,
    separate: bool = False,
    **unsupported: Any,
) -> Compose | tuple[Compose, Compose, Compose]:
    """The steps from a PIL image of any mode to a tensor (channels, height, width), as a `Compose`.

    `input_size` is an edge, (height, width) or (channels, height, width); with 1 channel images become grey, with 3 RGB.
    `resolve_model_data_config(model)` gives the arguments that fit a model. Evaluation is described at
    `transforms_imagenet_eval`, training at `transforms_imagenet_train`; `no_aug` trains on a resized central crop.
    With `use_prefetcher`, or without `normalize`, the tensor holds unscaled bytes. `separate` gives the three parts of
    training apart: crop and flip, augmentation, tensor.

    Raises BadArgument for a value that cannot work, and for what this library leaves out: TensorFlow's own
    preprocessing and sequences of patches (NaFlex).
    """
    given = {name for name, value in unsupported.items() if value}
    sequences = {"naflex", "patchify", "patch_size", "max_seq_len", "patchify_channels_last", "patchify_flatten"}
    if unknown := set(unsupported) - sequences:
        raise BadArgument(f"create_transform takes no {', '.join(sorted(unknown))}")
    if given & {"naflex", "patchify"}:
        raise BadArgument("naflex and patchify make sequences of patches; create_transform makes images only")
    if tf_preprocessing and use_prefetcher:  # only together do they mean anything in timm
        raise BadArgument("tf_preprocessing runs TensorFlow; leave it out for Pillow's resampling")

    stated = tuple(input_size) if isinstance(input_size, Sequence) else ()
    channels = ToChannels(stated[0] if len(stated) == 3 else 3)
    size: int | Sequence[int] = stated[-2:] or input_size
    tensor: dict[str, Any] = {"mean": mean, "std": std, "use_prefetcher": use_prefetcher, "normalize": normalize}
    parts: Compose | tuple[Compose, Compose, Compose]
    if is_training and not no_aug:
        parts = transforms_imagenet_train(
            size,
            scale=scale,
            ratio=ratio,
            train_crop_mode=train_crop_mode,
            hflip=hflip,
            vflip=vflip,
            color_jitter=color_jitter,
            color_jitter_prob=color_jitter_prob,
            grayscale_prob=grayscale_prob,
            gaussian_blur_prob=gaussian_blur_prob,
            auto_augment=auto_augment,
            interpolation=interpolation,
            re_prob=re_prob,
            re_mode=re_mode,
            re_count=re_count,
            re_num_splits=re_num_splits,
            separate=separate,
            **tensor,
        )
    elif separate:
        raise BadArgument("separate=True divides the augmentation of training; there is none here")
    elif is_training:
        parts = transforms_noaug_train(size, interpolation, **tensor)
    else:
        parts = transforms_imagenet_eval(
            size,
            crop_pct=crop_pct,
            crop_mode=crop_mode,
            crop_border_pixels=crop_border_pixels,
            interpolation=interpolation,
            **tensor,
        )
    first = parts[0] if isinstance(parts, tuple) else parts
    first.prepare = channels
    return parts


def transforms_imagenet_eval(
    img_size: int | Sequence[int] = 224,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    crop_border_pixels: int | None = None,
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    use_prefetcher: bool = False,
    normalize: bool = True,
) -> Compose:
    """The steps of evaluation: resize to `img_size` / `crop_pct`, crop the middle, make a tensor.

    `crop_mode`: "center" (the default) fits the short edge, and what sticks out is lost; "squash" fits both edges and
    changes the shape; "border" fits the long edge and fills the rest with `mean`. `crop_border_pixels` are taken off
    each side of the original first. Raises BadArgument for another mode and for a crop_pct that is not above 0.
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    crop_pct = crop_pct or DEFAULT_CROP_PCT  # 0 means unset, as in timm's tables
    crop_mode = crop_mode or DEFAULT_CROP_MODE
    if not crop_pct > 0:
        raise BadArgument(f"crop_pct={crop_pct}: the crop is a share of the resized image above 0, such as 0.875")
    resized = math.floor(height / crop_pct), math.floor(width / crop_pct)
    if crop_mode == "squash":
        steps: list[Step] = [Resize(resized, interpolation), CenterCrop((height, width))]
    elif crop_mode == "border":
        ground = [round(255 * value) for value in mean]
        steps = [ResizeKeepRatio(resized, 1.0, interpolation), CenterCropOrPad((height, width), fill=ground)]
    elif crop_mode == "center":
        square = resized[0] == resized[1]
        fit: Step = Resize(resized[0], interpolation) if square else ResizeKeepRatio(resized, 0.0, interpolation)
        steps = [fit, CenterCrop((height, width))]
    else:
        raise BadArgument(f"crop_mode={crop_mode!r}: it is one of center, squash, border")
    if crop_border_pixels:
        steps.insert(0, TrimBorder(crop_border_pixels))
    return Compose(steps + _to_tensor(mean, std, use_prefetcher, normalize))


def transforms_noaug_train(
    img_size: int | Sequence[int] = 224,
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    use_prefetcher: bool = False,
    normalize: bool = True,
) -> Compose:
    """The steps of training without augmentation: resize, crop the middle, make a tensor. "random" means bilinear."""
    chosen = "bilinear" if interpolation == "random" else interpolation
    resize = Resize(img_size if isinstance(img_size, int) else tuple(img_size), chosen)
    return Compose([resize, CenterCrop(img_size), *_to_tensor(mean, std, use_prefetcher, normalize)])


def transforms_imagenet_train(
    img_size: int | Sequence[int] = 224,
    scale: tuple[float, float] | None = None,
    ratio: tuple[float, float] | None = None,
    train_crop_mode: str | None = None,
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float | Sequence[float] | None = 0.4,
    color_jitter_prob: float | None = None,
    force_color_jitter: bool = False,
    grayscale_prob: float = 0.0,
    gaussian_blur_prob: float = 0.0,
    auto_augment: str | None = None,
    interpolation: str = "random",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    re_prob: float = 0.0,
    re_mode: str = "const",
    re_count: int = 1,
    re_num_splits: int = 0,
    use_prefetcher: bool = False,
    normalize: bool = True,
    separate: bool = False,
) -> Compose | tuple[Compose, Compose, Compose]:
    """The steps of training: a random crop and flips, then augmentation, then a tensor with random erasing.

    `train_crop_mode`: "rrc" (the default) a random resized crop, "rkrc" and "rkrr" a resize that about keeps the shape
    followed by a central or a random crop. `auto_augment` is a string as read by `ziggurat.data.auto_augment` and
    replaces the colour jitter, unless `force_color_jitter` or a policy of three augmentations ("3a"). `color_jitter` is
    one strength for brightness, contrast and saturation, or three, or four with hue. Random erasing works on the
    normalised tensor only.
    """
    crop = _random_crop(img_size, train_crop_mode or "rrc", scale, ratio, interpolation)
    flips: list[Step] = []
    if hflip > 0:
        flips.append(RandomHorizontalFlip(hflip))
    if vflip > 0:
        flips.append(RandomVerticalFlip(vflip))

    augment: list[Step] = []
    if auto_augment:
        augment.append(_policy(auto_augment, img_size, interpolation, mean))
    jittered = not auto_augment or force_color_jitter or "3a" in auto_augment
    if color_jitter is not None and jittered:
        strengths = (color_jitter,) * 3 if isinstance(color_jitter, (int, float)) else tuple(color_jitter)
        if len(strengths) not in (3, 4):
            raise BadArgument(f"color_jitter={color_jitter}: it takes one number, three, or four with hue")
        jitter = ColorJitter(*strengths)
        augment.append(jitter if color_jitter_prob is None else RandomApply([jitter], color_jitter_prob))
    if grayscale_prob:
        augment.append(RandomGrayscale(grayscale_prob))
    if gaussian_blur_prob:
        augment.append(RandomApply([GaussianBlur(kernel_size=23)], gaussian_blur_prob))

    final = _to_tensor(mean, std, use_prefetcher, normalize)
    if re_prob > 0 and normalize and not use_prefetcher:
        from .random_erasing import RandomErasing

        final.append(RandomErasing(re_prob, mode=re_mode, max_count=re_count, num_splits=re_num_splits, device="cpu"))
    if separate:
        return Compose(crop + flips), Compose(augment), Compose(final)
    return Compose(crop + flips + augment + final)


def _random_crop(
    img_size: int | Sequence[int],
    mode: str,
    scale: tuple[float, float] | None,
    ratio: tuple[float, float] | None,
    interpolation: str,
) -> list[Step]:
    if mode == "rrc":
        return [RandomResizedCropAndInterpolation(img_size, scale or (0.08, 1.0), ratio or (3 / 4, 4 / 3), interpolation)]
    if mode not in ("rkrc", "rkrr"):
        raise BadArgument(f"train_crop_mode={mode!r}: it is one of rrc, rkrc, rkrr")
    resize = ResizeKeepRatio(
        img_size,
        interpolation=interpolation,
        random_scale_prob=0.5,
        random_scale_range=scale or (0.8, 1.0),
        random_scale_area=True,
        random_aspect_prob=0.5,
        random_aspect_range=ratio or (0.9, 1 / 0.9),
    )
    window = CenterCropOrPad if mode == "rkrc" else RandomCropOrPad
    return [resize, window(img_size, padding_mode="reflect")]


def _policy(spec: str, img_size: int | Sequence[int], interpolation: str, mean: Sequence[float]) -> Step:
    from .auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

    edge = img_size if isinstance(img_size, int) else min(img_size)
    hparams: dict[str, Any] = {
        "translate_const": int(edge * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
    }
    if interpolation and interpolation != "random":
        hparams["interpolation"] = str_to_pil_interp(interpolation)
    if spec.startswith("rand"):
        return rand_augment_transform(spec, hparams)
    if spec.startswith("augmix"):
        return augment_and_mix_transform(spec, hparams | {"translate_pct": 0.3})
    return auto_augment_transform(spec, hparams)


def _to_tensor(mean: Sequence[float], std: Sequence[float], use_prefetcher: bool, normalize: bool) -> list[Step]:
    """The last steps; a prefetcher scales and normalises on its device, so bytes go to it."""
    if use_prefetcher or not normalize:
        return [MaybePILToTensor()]
    return [MaybeToTensor(), Normalize(mean, std)]
