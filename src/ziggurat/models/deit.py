"""DeiT: vision transformers trained on ImageNet alone, by distillation (Touvron et al. 2020, arXiv 2012.12877).

DeiT III (Touvron et al. 2022, 2204.07118) needs no teacher: layer scale, and positions for the patches only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Family
from ..errors import BadArgument
from ..layers.weight_init import trunc_normal_
from .vision_transformer import VisionTransformer

__all__ = ["VisionTransformerDistilled"]


class VisionTransformerDistilled(VisionTransformer):
    """A vision transformer with a second token and classifier, which learn from a teacher.

    Scores are the mean of both classifiers', and the embedding the mean of both tokens; after
    `set_distilled_training()` a model in training gives the two scores as a tuple.
    """

    pools = ("", "token")
    special_tokens = {"distillation": 1}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.has_class_token or self.num_reg_tokens:
            raise BadArgument("a distilled model has a class token and no registers: leave class_token and reg_tokens "
                              "out, or create the model without 'distilled' in its name")
        self.dist_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        self.head_dist = self.new_classifier("head_dist")
        self.classifiers = ("head", "head_dist")

    def init_weights(self, mode: str = "") -> None:
        super().init_weights(mode)
        trunc_normal_(self.dist_token, std=0.02)

    def prefix(self) -> list[Tensor]:
        return [*super().prefix(), self.dist_token]

    def pool(self, x: Tensor) -> Any:
        return (self.fc_norm(x[:, 0]), self.fc_norm(x[:, 1])) if self.global_pool else self.fc_norm(x)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether the classifiers' scores are given apart in training, for a loss with the teacher."""
        self.distilled_training = enable


TINY = dict(patch_size=16, embed_dim=192, num_heads=3)
SMALL = dict(patch_size=16, embed_dim=384, num_heads=6)
MEDIUM = dict(patch_size=16, embed_dim=512, num_heads=8)
BASE = dict(patch_size=16, embed_dim=768, num_heads=12)
LARGE = dict(patch_size=16, embed_dim=1024, depth=24, num_heads=16)
HUGE = dict(patch_size=14, embed_dim=1280, depth=32, num_heads=16)
THREE = dict(no_embed_class=True, init_values=1e-6)

family = Family(VisionTransformer, {
    "deit_tiny_patch16_224": TINY,
    "deit_small_patch16_224": SMALL,
    "deit_base_patch16_224": BASE,
    "deit_base_patch16_384": BASE,
    "deit3_small_patch16_224": SMALL | THREE,
    "deit3_small_patch16_384": SMALL | THREE,
    "deit3_medium_patch16_224": MEDIUM | THREE,
    "deit3_base_patch16_224": BASE | THREE,
    "deit3_base_patch16_384": BASE | THREE,
    "deit3_large_patch16_224": LARGE | THREE,
    "deit3_large_patch16_384": LARGE | THREE,
    "deit3_huge_patch14_224": HUGE | THREE,
}) | Family(VisionTransformerDistilled, {
    "deit_tiny_distilled_patch16_224": TINY,
    "deit_small_distilled_patch16_224": SMALL,
    "deit_base_distilled_patch16_224": BASE,
    "deit_base_distilled_patch16_384": BASE,
})  # fmt: skip

__getattr__ = family.entrypoint
