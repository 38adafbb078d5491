"""Random erasing (Zhong et al. 2017, arXiv 1708.04896): rectangles of a normalised image overwritten."""

from __future__ import annotations

import math
import random

import torch

from ..errors import BadArgument

__all__ = ["RandomErasing"]


class RandomErasing:
    """Overwrites, in place, random rectangles of an image (C, H, W) or of each image of a batch (N, C, H, W).

    With `probability` an image gets `min_count` to `max_count` rectangles, which share an area of `min_area` to
    `max_area` of the image, each `min_aspect` to `max_aspect` (its inverse by default) high over wide. `mode` is what
    they are filled with: "const" 0, "rand" one normal draw a channel, "pixel" one a value. With `num_splits` above 1
    the first such part of a batch stays whole. `device` is where the filling is drawn: the image's by default.
    """

    def __init__(
        self,
        probability: float = 0.5,
        min_area: float = 0.02,
        max_area: float = 1 / 3,
        min_aspect: float = 0.3,
        max_aspect: float | None = None,
        mode: str = "const",
        min_count: int = 1,
        max_count: int | None = None,
        num_splits: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        self.mode = mode.lower() or "const"
        if self.mode not in ("const", "rand", "pixel"):
            raise BadArgument(f"mode={mode!r}: random erasing fills with const, rand or pixel")
        self.probability = probability
        self.areas = min_area, max_area
        self.log_aspects = math.log(min_aspect), math.log(max_aspect or 1 / min_aspect)
        self.counts = min_count, max_count or min_count
        self.num_splits = num_splits
        self.device = device

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        if input.ndim == 3:
            self._erase(input)
        else:
            spared = len(input) // self.num_splits if self.num_splits > 1 else 0
            for image in input[spared:]:
                self._erase(image)
        return input

    def _erase(self, image: torch.Tensor) -> None:
        if random.random() > self.probability:
            return
        fewest, most = self.counts
        count = fewest if fewest == most else random.randint(fewest, most)
        for _ in range(count):
            self._erase_one(image, count)

    def _erase_one(self, image: torch.Tensor, count: int) -> None:
        channels, height, width = image.shape
        for _ in range(10):  # a shape that does not fit is drawn again
            area = random.uniform(*self.areas) * (height * width) / count
            aspect = math.exp(random.uniform(*self.log_aspects))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = random.randint(0, height - h), random.randint(0, width - w)
                image[:, top : top + h, left : left + w] = self._filling(image, (channels, h, w))
                return

    def _filling(self, image: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor | float:
        if self.mode == "const":
            return 0.0
        drawn = shape if self.mode == "pixel" else (shape[0], 1, 1)
        return torch.empty(drawn, dtype=image.dtype, device=self.device or image.device).normal_()

    def __repr__(self) -> str:
        return f"RandomErasing(p={self.probability:g}, mode={self.mode}, count={self.counts})"
