"""An image to a model's input: reading, preprocessing, augmentation, and what the classes are called.

    config = ziggurat.data.resolve_model_data_config(model)
    transform = ziggurat.data.create_transform(**config, is_training=False)
    scores = model(transform(ziggurat.data.open_image("cat.jpg"))[None])

Names are loaded when they are first used; importing this package imports neither torch nor Pillow.
"""

from __future__ import annotations

from typing import Any

from ..lazy import LazyNames

_HOME = LazyNames(__name__, {
    "auto_augment": """AugMixAugment AugmentOp AutoAugment RandAugment augment_and_mix_transform auto_augment_policy
        auto_augment_transform rand_augment_ops rand_augment_transform""",
    "config": "resolve_data_config resolve_model_data_config",
    "constants": """DEFAULT_CROP_MODE DEFAULT_CROP_PCT IMAGENET_DEFAULT_MEAN IMAGENET_DEFAULT_STD IMAGENET_DPN_MEAN
        IMAGENET_DPN_STD IMAGENET_INCEPTION_MEAN IMAGENET_INCEPTION_STD OPENAI_CLIP_MEAN OPENAI_CLIP_STD""",
    "dataset_info": "CustomDatasetInfo DatasetInfo DatasetInfoLabelMapper LabelMappingCoverage",
    "image": "IMAGE_EXTENSIONS find_images open_image read_images to_grey to_rgb",
    "imagenet_info": "ImageNetInfo infer_imagenet_subset",
    "mixup": "FastCollateMixup Mixup",
    "random_erasing": "RandomErasing",
    "transforms": """CenterCrop CenterCropOrPad ColorJitter Compose GaussianBlur MaybePILToTensor MaybeToTensor Normalize
        RandomApply RandomCropOrPad RandomGrayscale RandomHorizontalFlip RandomPad RandomResizedCropAndInterpolation
        RandomVerticalFlip Resize ResizeKeepRatio ToChannels ToNumpy ToTensor TrimBorder center_crop_or_pad crop_or_pad
        interp_mode_to_str str_to_interp_mode str_to_pil_interp""",
    "transforms_factory": "create_transform transforms_imagenet_eval transforms_imagenet_train transforms_noaug_train",
})

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    return _HOME.imported(name)


def __dir__() -> list[str]:
    return _HOME.listed()
