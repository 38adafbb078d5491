"""Mixup (Zhang et al. 2017, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899) of a batch.

Sample i is always mixed with sample n - 1 - i. What differs between the modes is only how many mixtures are drawn: one for
the batch, one a sample, or one a pair. Draws come from numpy's global generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import default_collate

from ..errors import BadArgument

__all__ = [
    "FastCollateMixup",
    "Mixup",
    "cutmix_bbox_and_lam",
    "mixup_target",
    "one_hot",
    "rand_bbox",
    "rand_bbox_minmax",
]

Box = tuple[Any, Any, Any, Any]  # top, bottom, left, right, in pixels


def one_hot(x: torch.Tensor, num_classes: int, on_value: float = 1.0, off_value: float = 0.0) -> torch.Tensor:
    """Class indices (N,) as rows (N, num_classes) of `off_value`, `on_value` at the class."""
    rows = torch.full((x.numel(), num_classes), off_value, device=x.device)
    return rows.scatter_(1, x.long().reshape(-1, 1), on_value)


def mixup_target(
    target: torch.Tensor,
    num_classes: int,
    lam: float | torch.Tensor = 1.0,
    smoothing: float = 0.0,
    multi_label: bool = False,
) -> torch.Tensor:
    """The targets (N, num_classes) of a mixed batch: `lam` of each sample's own, the rest of its partner's.

    Class indices are smoothed towards the even distribution, dense labels (`multi_label`) towards 0.5. Raises
    BadArgument for dense labels of another shape.
    """
    if not multi_label:
        floor = smoothing / num_classes
        own = one_hot(target, num_classes, on_value=1.0 - smoothing + floor, off_value=floor)
    elif target.ndim == 2 and target.shape[1] == num_classes:
        own = target.float() * (1.0 - smoothing) + 0.5 * smoothing
    else:
        raise BadArgument(f"targets of shape {tuple(target.shape)}: multi-label mixing takes (batch, {num_classes})")
    return own * lam + own.flip(0) * (1.0 - lam)


def rand_bbox(img_shape: Sequence[int], lam: float, margin: float = 0.0, count: int | None = None) -> Box:
    """A box of about 1 - `lam` of the image in its shape, its centre anywhere; what sticks out is cut off.

    `margin`, a share of the box, keeps the centre that far from the edges.
    """
    share = np.sqrt(1 - lam)
    sides = [int(edge * share) for edge in img_shape[-2:]]
    keep = [int(margin * side) for side in sides]
    centres = [np.random.randint(m, edge - m, size=count) for edge, m in zip(img_shape[-2:], keep)]
    (top, bottom), (left, right) = (
        (np.clip(centre - side // 2, 0, edge), np.clip(centre + (side + 1) // 2, 0, edge))
        for centre, side, edge in zip(centres, sides, img_shape[-2:])
    )
    return top, bottom, left, right


def rand_bbox_minmax(img_shape: Sequence[int], minmax: Sequence[float], count: int | None = None) -> Box:
    """A box whose sides are drawn, each for itself, between two shares of the image's, anywhere inside the image."""
    low, high = minmax
    height, width = img_shape[-2:]
    h = np.random.randint(int(height * low), int(height * high), size=count)
    w = np.random.randint(int(width * low), int(width * high), size=count)
    top = np.random.randint(0, height - h + 1, size=count)
    left = np.random.randint(0, width - w + 1, size=count)
    return top, top + h, left, left + w


def cutmix_bbox_and_lam(
    img_shape: Sequence[int],
    lam: float,
    ratio_minmax: Sequence[float] | None = None,
    correct_lam: bool = True,
    count: int | None = None,
) -> tuple[Box, Any]:
    """A box and the share that the image keeps: `lam` as drawn, or what is really left outside the box."""
    if ratio_minmax is None:
        box = rand_bbox(img_shape, lam, count=count)
    else:
        box = rand_bbox_minmax(img_shape, ratio_minmax, count=count)
    if not correct_lam and ratio_minmax is None:
        return box, lam
    top, bottom, left, right = box
    return box, 1.0 - (bottom - top) * (right - left) / float(img_shape[-2] * img_shape[-1])


class _Mix(NamedTuple):
    """What one sample keeps of itself, and the box in which it becomes its partner; mixed all over without one."""

    lam: Any
    box: Box | None = None

    def of(self, own: torch.Tensor, partner: torch.Tensor) -> torch.Tensor:
        if self.box is not None:
            top, bottom, left, right = self.box
            mixed = own.clone()
            mixed[..., top:bottom, left:right] = partner[..., top:bottom, left:right]
            return mixed
        return own if self.lam == 1.0 else own * self.lam + partner * (1 - self.lam)


class Mixup:
    """Mixes a batch of images (N, C, H, W) and its targets; N is even.

    `mixup_alpha` and `cutmix_alpha` are the Beta distributions' parameters (0: off); where both are on, `switch_prob` is
    the share of CutMix. `cutmix_minmax` draws its boxes' sides between two shares instead. `prob` is the probability of
    mixing at all. `mode`: "batch" one mixture for all, "pair" one for each sample and its partner, "elem" one a sample.
    `correct_lam` weighs the targets by the box that was really cut. Set `mixup_enabled` to False to stop mixing.
    """

    modes: tuple[str, ...] = ("batch", "pair", "elem")

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: Sequence[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
    ) -> None:
        if cutmix_minmax is not None and len(cutmix_minmax) != 2:
            raise BadArgument(f"cutmix_minmax={cutmix_minmax}: it takes the smallest and the largest share of a side")
        if mode not in self.modes:
            raise BadArgument(f"mode={mode!r}: {type(self).__name__} mixes by {', '.join(self.modes)}")
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha if cutmix_minmax is None else 1.0
        self.cutmix_minmax = cutmix_minmax
        self.mix_prob = prob
        self.switch_prob = switch_prob
        self.mode = mode
        self.correct_lam = correct_lam
        self.label_smoothing = label_smoothing
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.mixup_enabled = True

    def __call__(self, x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The mixed batch, which is `x` itself changed in place, and targets (N, num_classes)."""
        mixes, lam = self._plan(len(x), x.shape)
        originals = x.clone()
        for own, partner, image, mix in zip(originals, originals.flip(0), x, mixes):
            image.copy_(mix.of(own, partner))
        if isinstance(lam, np.ndarray):
            lam = torch.tensor(lam, device=x.device, dtype=x.dtype).unsqueeze(1)
        return x, mixup_target(target, self.num_classes, lam, self.label_smoothing, self.multi_label)

    def _plan(self, size: int, shape: Sequence[int]) -> tuple[list[_Mix], Any]:
        """A mixture for each sample of a batch, and the shares for the targets: a number or an array (N,)."""
        if size % 2:
            raise BadArgument(f"a batch of {size}: mixing pairs samples, so their number is even")
        if self.mode == "batch":
            mix = self._draw_one(shape)
            return [mix] * size, mix.lam
        mixes, lams = self._draw_many(size if self.mode == "elem" else size // 2, shape)
        if self.mode == "pair":
            return mixes + mixes[::-1], np.concatenate([lams, lams[::-1]])
        if self.mode == "half":
            return mixes, np.concatenate([lams, np.ones_like(lams)])
        return mixes, lams

    def _draw_one(self, shape: Sequence[int]) -> _Mix:
        if not (self.mixup_enabled and np.random.rand() < self.mix_prob):
            return _Mix(1.0)
        mixup, cutmix = self._active()
        cut = bool(np.random.rand() < self.switch_prob) if mixup and cutmix else cutmix
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        return self._mix(float(np.random.beta(alpha, alpha)), cut, shape)

    def _draw_many(self, count: int, shape: Sequence[int]) -> tuple[list[_Mix], np.ndarray]:
        if not self.mixup_enabled:
            return [_Mix(1.0)] * count, np.ones(count, np.float32)
        mixup, cutmix = self._active()
        cut = np.random.rand(count) < self.switch_prob if mixup and cutmix else np.full(count, cutmix)
        drawn = {
            which: np.random.beta(alpha, alpha, size=count).astype(np.float32)
            for which, active, alpha in ((True, cutmix, self.cutmix_alpha), (False, mixup, self.mixup_alpha))
            if active
        }
        lams = [drawn[which][place] for place, which in enumerate(cut.tolist())]
        mixing = np.random.rand(count) < self.mix_prob
        mixes = [
            self._mix(lam, which, shape) if mixed else _Mix(1.0)
            for lam, which, mixed in zip(lams, cut.tolist(), mixing.tolist())
        ]
        return mixes, np.array([mix.lam for mix in mixes], np.float32)

    def _active(self) -> tuple[bool, bool]:
        mixup, cutmix = self.mixup_alpha > 0, self.cutmix_alpha > 0
        if not (mixup or cutmix):
            raise BadArgument("mixup_alpha and cutmix_alpha are 0: raise one, or set mixup_enabled to False")
        return mixup, cutmix

    def _mix(self, lam: Any, cut: bool, shape: Sequence[int]) -> _Mix:
        if not cut or lam == 1.0:
            return _Mix(lam)
        box, lam = cutmix_bbox_and_lam(shape, lam, self.cutmix_minmax, self.correct_lam)
        return _Mix(lam, box)


class FastCollateMixup(Mixup):
    """A collate function that mixes as it stacks: samples of (bytes (C, H, W), target) to a batch of mixed bytes.

    It takes `Mixup`'s arguments. A further mode, "half", returns the first half of the samples, each mixed with its
    partner in the second.
    """

    modes = ("batch", "pair", "elem", "half")

    def __call__(  # type: ignore[override]  # a collate function takes samples where Mixup takes a batch
        self, batch: Sequence[tuple[Any, Any]], _: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mixed bytes (N, C, H, W) and targets (N, num_classes)."""
        images = [one if isinstance(one, torch.Tensor) else torch.tensor(one) for one, _ in batch]
        mixes, lam = self._plan(len(batch), images[0].shape)
        mixed = torch.empty((len(mixes), *images[0].shape), dtype=torch.uint8)
        for out, own, partner, mix in zip(mixed, images, reversed(images), mixes):
            blends = mix.box is None and mix.lam != 1.0
            out.copy_(mix.of(own.float(), partner.float()).round() if blends else mix.of(own, partner))
        if isinstance(lam, np.ndarray):
            lam = torch.tensor(lam).unsqueeze(1)
        target = default_collate([sample[1] for sample in batch])
        target = mixup_target(target, self.num_classes, lam, self.label_smoothing, self.multi_label)
        return mixed, target[: len(mixes)]
