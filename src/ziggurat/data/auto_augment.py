"""Augmentation by drawn operations: AutoAugment, RandAugment, AugMix and the three augmentations of DeiT III.

Cubuk et al. 2018 (arXiv 1805.09501) and 2019 (arXiv 1909.13719), Hendrycks et al. 2019 (arXiv 1912.02781), Touvron et
al. 2022 (arXiv 2204.07118). A policy is written as a string, its sections divided by dashes: a name, then letters with
a number, such as "rand-m9-mstd0.5-inc1", "original-mstd0.5", "augmix-m5-w4-d2" (see `rand_augment_transform`,
`auto_augment_transform`, `augment_and_mix_transform`).

Magnitudes run from 0 to 10. What an operation makes of one is its row in `OPERATIONS`; "...Increasing" rows are those
in which a larger magnitude always means a stronger change, which the published ones do not all keep.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from ..errors import BadArgument, nearest

__all__ = [
    "OPERATIONS",
    "AugMixAugment",
    "AugmentOp",
    "AutoAugment",
    "RandAugment",
    "augment_and_mix_transform",
    "augmix_ops",
    "auto_augment_policy",
    "auto_augment_transform",
    "rand_augment_choices",
    "rand_augment_ops",
    "rand_augment_transform",
]

FULL_MAGNITUDE = 10.0
DEFAULTS: Mapping[str, Any] = {"translate_const": 250, "img_mean": (128, 128, 128)}
RESAMPLING = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


class _Look(NamedTuple):
    """What a geometric operation fills uncovered ground with, and the filters of which it draws one."""

    fill: Sequence[int]
    resample: Any

    def options(self, image: Image.Image) -> dict[str, Any]:
        filters = self.resample
        drawn = random.choice(filters) if isinstance(filters, (list, tuple)) else filters
        bands = len(image.getbands())
        fill = tuple(self.fill) * (bands if len(self.fill) == 1 else 1)
        if bands == 1:  # a grey image lies on the grey of the colour
            return {"fillcolor": round(sum(fill) / len(fill)), "resample": drawn}
        return {"fillcolor": fill, "resample": drawn}


Change = Callable[[Image.Image, Any, _Look], Image.Image]
Scale = Callable[[float, Mapping[str, Any]], Any]


class Operation(NamedTuple):
    """One operation: what it does to an image with an amount, and the amount that a magnitude over 10 stands for."""

    change: Change
    amount: Scale | None = None


def _affine(*rows: str) -> Change:
    """An affine map, output to input, whose six coefficients are 0, 1, "v" (the amount), "vw" or "vh" (of a side)."""

    def change(image: Image.Image, value: float, look: _Look) -> Image.Image:
        known = {"0": 0, "1": 1, "v": value, "vw": value * image.width, "vh": value * image.height}
        matrix = tuple(known[name] for name in " ".join(rows).split())
        return image.transform(image.size, Image.Transform.AFFINE, matrix, **look.options(image))

    return change


def _enhanced(enhancer: Callable[[Image.Image], Any]) -> Change:
    return lambda image, factor, _: enhancer(image).enhance(factor)


def _rotate(image: Image.Image, degrees: float, look: _Look) -> Image.Image:
    return image.rotate(degrees, **look.options(image))


def _posterize(image: Image.Image, bits: int, _: _Look) -> Image.Image:
    """The highest bits kept; none leaves black. (Recent versions of Pillow's own refuse to keep none.)"""
    return image if bits >= 8 else image.point([v >> 8 - bits << 8 - bits for v in range(256)] * len(image.getbands()))


def _solarize_add(image: Image.Image, amount: int, _: _Look) -> Image.Image:
    """The dark half of the scale lifted."""
    if image.mode not in ("L", "RGB"):
        return image
    return image.point([min(255, v + amount) if v < 128 else v for v in range(256)] * len(image.getbands()))


def _desaturate(image: Image.Image, share: float, _: _Look) -> Image.Image:
    return ImageEnhance.Color(image).enhance(min(1.0, max(0.0, 1.0 - share)))


def _blur(image: Image.Image, radius: float, _: _Look) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def _blur_at_random(image: Image.Image, share: float, look: _Look) -> Image.Image:
    return _blur(image, random.uniform(0.1, 2.0 * share), look)


def _signed(value: float) -> float:
    return -value if random.random() > 0.5 else value


def _either_way(most: float) -> Scale:
    return lambda share, _: _signed(share * most)


def _between(low: float, high: float) -> Scale:
    return lambda share, _: max(low, min(high, low + (high - low) * share))


def _translation(share: float, hparams: Mapping[str, Any]) -> float:
    return _signed(share * float(hparams["translate_const"]))


def _relative_translation(share: float, hparams: Mapping[str, Any]) -> float:
    return _signed(share * hparams.get("translate_pct", 0.45))


def _factor(share: float, _: Mapping[str, Any]) -> float:
    """0.1 to 1.9, of which 1 changes nothing."""
    return share * 1.8 + 0.1


def _growing_factor(share: float, _: Mapping[str, Any]) -> float:
    """From 1 down to 0.1 or up to 1.9."""
    return max(0.1, 1.0 + _signed(share * 0.9))


_SHEAR = _either_way(0.3)
_color, _contrast = _enhanced(ImageEnhance.Color), _enhanced(ImageEnhance.Contrast)
_brightness, _sharpness = _enhanced(ImageEnhance.Brightness), _enhanced(ImageEnhance.Sharpness)


def _solarize(image: Image.Image, threshold: int, _: _Look) -> Image.Image:
    return ImageOps.solarize(image, threshold)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(lambda image, *_: ImageOps.autocontrast(image)),
    "Equalize": Operation(lambda image, *_: ImageOps.equalize(image)),
    "Invert": Operation(lambda image, *_: ImageOps.invert(image)),
    "Rotate": Operation(_rotate, _either_way(30.0)),
    # bits kept: 0 to 4 as EfficientNet's training on TPUs did, 4 to 0, and 4 to 8 as in the AutoAugment paper
    "Posterize": Operation(_posterize, lambda share, _: int(share * 4)),
    "PosterizeIncreasing": Operation(_posterize, lambda share, _: 4 - int(share * 4)),
    "PosterizeOriginal": Operation(_posterize, lambda share, _: int(share * 4) + 4),
    "Solarize": Operation(_solarize, lambda share, _: min(256, int(share * 256))),
    "SolarizeIncreasing": Operation(_solarize, lambda share, _: 256 - min(256, int(share * 256))),
    "SolarizeAdd": Operation(_solarize_add, lambda share, _: min(128, int(share * 110))),
    "Color": Operation(_color, _factor),
    "ColorIncreasing": Operation(_color, _growing_factor),
    "Contrast": Operation(_contrast, _factor),
    "ContrastIncreasing": Operation(_contrast, _growing_factor),
    "Brightness": Operation(_brightness, _factor),
    "BrightnessIncreasing": Operation(_brightness, _growing_factor),
    "Sharpness": Operation(_sharpness, _factor),
    "SharpnessIncreasing": Operation(_sharpness, _growing_factor),
    "ShearX": Operation(_affine("1 v 0", "0 1 0"), _SHEAR),
    "ShearY": Operation(_affine("1 0 0", "v 1 0"), _SHEAR),
    "TranslateX": Operation(_affine("1 0 v", "0 1 0"), _translation),
    "TranslateY": Operation(_affine("1 0 0", "0 1 v"), _translation),
    "TranslateXRel": Operation(_affine("1 0 vw", "0 1 0"), _relative_translation),
    "TranslateYRel": Operation(_affine("1 0 0", "0 1 vh"), _relative_translation),
    "Desaturate": Operation(_desaturate, _between(0.5, 1.0)),
    "GaussianBlur": Operation(_blur, _between(0.1, 2.0)),
    "GaussianBlurRand": Operation(_blur_at_random, _between(0.0, 1.0)),
}


class AugmentOp:
    """One of `OPERATIONS` at a magnitude, done with probability `prob`.

    `hparams`: img_mean (bytes a band, what uncovered ground becomes), interpolation (a filter, or several to draw from),
    translate_const (pixels) and translate_pct (a share) of the largest translation, magnitude_std (noise on the magnitude;
    infinite: drawn evenly from 0 up to it), magnitude_max (its bound; 10).
    """

    def __init__(
        self,
        name: str,
        prob: float = 0.5,
        magnitude: float = 10,
        hparams: Mapping[str, Any] | None = None,
    ) -> None:
        if name not in OPERATIONS:
            close = nearest(name, OPERATIONS) or list(OPERATIONS)
            raise BadArgument(f"no operation {name!r}: nearest are {', '.join(close)}")
        self.hparams = dict(hparams or DEFAULTS)
        self.name = name
        self.prob = prob
        self.magnitude = magnitude
        self.magnitude_std = self.hparams.get("magnitude_std", 0)
        self.magnitude_max = self.hparams.get("magnitude_max")
        self.look = _Look(
            self.hparams.get("img_mean", DEFAULTS["img_mean"]), self.hparams.get("interpolation", RESAMPLING)
        )

    def __call__(self, img: Image.Image) -> Image.Image:
        if self.prob < 1.0 and random.random() > self.prob:
            return img
        change, amount = OPERATIONS[self.name]
        share = self._magnitude() / FULL_MAGNITUDE
        return change(img, None if amount is None else amount(share, self.hparams), self.look)

    def _magnitude(self) -> float:
        drawn = float(self.magnitude)
        if self.magnitude_std == float("inf"):
            drawn = random.uniform(0, self.magnitude)
        elif self.magnitude_std > 0:
            drawn = random.gauss(self.magnitude, self.magnitude_std)
        return max(0.0, min(drawn, self.magnitude_max or FULL_MAGNITUDE))

    def __repr__(self) -> str:
        limit = "" if self.magnitude_max is None else f", mmax={self.magnitude_max}"
        return f"AugmentOp({self.name}, p={self.prob:g}, m={self.magnitude}, mstd={self.magnitude_std}{limit})"


# Each policy is drawn as a whole: its operations follow one another. A row is name probability magnitude, twice.
_ORIGINAL = """
    Posterize 0.4 8    Rotate 0.6 9
    Solarize 0.6 5     AutoContrast 0.6 5
    Equalize 0.8 8     Equalize 0.6 3
    Posterize 0.6 7    Posterize 0.6 6
    Equalize 0.4 7     Solarize 0.2 4
    Equalize 0.4 4     Rotate 0.8 8
    Solarize 0.6 3     Equalize 0.6 7
    Posterize 0.8 5    Equalize 1.0 2
    Rotate 0.2 3       Solarize 0.6 8
    Equalize 0.6 8     Posterize 0.4 6
    Rotate 0.8 8       Color 0.4 0
    Rotate 0.4 9       Equalize 0.6 2
    Equalize 0.0 7     Equalize 0.8 8
    Invert 0.6 4       Equalize 1.0 8
    Color 0.6 4        Contrast 1.0 8
    Rotate 0.8 8       Color 1.0 2
    Color 0.8 8        Solarize 0.8 7
    Sharpness 0.4 7    Invert 0.6 8
    ShearX 0.6 5       Equalize 1.0 9
    Color 0.4 0        Equalize 0.6 3
    Equalize 0.4 7     Solarize 0.2 4
    Solarize 0.6 5     AutoContrast 0.6 5
    Invert 0.6 4       Equalize 1.0 8
    Color 0.6 4        Contrast 1.0 8
    Equalize 0.8 8     Equalize 0.6 3
"""
# EfficientNet's, as trained on TPUs
_V0 = """
    Equalize 0.8 1     ShearY 0.8 4
    Color 0.4 9        Equalize 0.6 3
    Color 0.4 1        Rotate 0.6 8
    Solarize 0.8 3     Equalize 0.4 7
    Solarize 0.4 2     Solarize 0.6 2
    Color 0.2 0        Equalize 0.8 8
    Equalize 0.4 8     SolarizeAdd 0.8 3
    ShearX 0.2 9       Rotate 0.6 8
    Color 0.6 1        Equalize 1.0 2
    Invert 0.4 9       Rotate 0.6 0
    Equalize 1.0 9     ShearY 0.6 3
    Color 0.4 7        Equalize 0.6 0
    Posterize 0.4 6    AutoContrast 0.4 7
    Solarize 0.6 8     Color 0.6 9
    Solarize 0.2 4     Rotate 0.8 9
    Rotate 1.0 7       TranslateYRel 0.8 9
    ShearX 0.0 0       Solarize 0.8 4
    ShearY 0.8 0       Color 0.6 4
    Color 1.0 0        Rotate 0.6 2
    Equalize 0.8 4     Equalize 0.0 8
    Equalize 1.0 4     AutoContrast 0.6 2
    ShearY 0.4 7       SolarizeAdd 0.6 7
    Posterize 0.8 2    Solarize 0.6 10
    Solarize 0.6 8     Equalize 0.6 1
    Color 0.8 6        Rotate 0.4 5
"""
_THREE = """
    Solarize 1.0 5
    Desaturate 1.0 10
    GaussianBlurRand 1.0 10
"""
# the table, and which posterize its "Posterize" means
_POLICIES = {
    "original": (_ORIGINAL, "PosterizeOriginal"),
    "originalr": (_ORIGINAL, "PosterizeIncreasing"),
    "v0": (_V0, "Posterize"),
    "v0r": (_V0, "PosterizeIncreasing"),
    "3a": (_THREE, "Posterize"),
}


def auto_augment_policy(name: str = "v0", hparams: Mapping[str, Any] | None = None) -> list[list[AugmentOp]]:
    """The operations of a published policy: original, originalr, v0, v0r or 3a. Raises BadArgument for another."""
    if name not in _POLICIES:
        raise BadArgument(f"no augmentation policy {name!r}: it is one of {', '.join(_POLICIES)}, or rand-..., augmix-...")
    table, posterize = _POLICIES[name]
    rows = [row.replace("Posterize", posterize).split() for row in table.strip().splitlines()]
    return [
        [AugmentOp(*_typed(row[place : place + 3]), hparams=hparams) for place in range(0, len(row), 3)] for row in rows
    ]


def _typed(cell: Sequence[str]) -> tuple[str, float, int]:
    return cell[0], float(cell[1]), int(cell[2])


class AutoAugment:
    """One row of a policy, drawn anew at each image."""

    def __init__(self, policy: Sequence[Sequence[AugmentOp]]) -> None:
        self.policy = policy

    def __call__(self, img: Image.Image) -> Image.Image:
        for op in random.choice(self.policy):
            img = op(img)
        return img

    def __repr__(self) -> str:
        return "AutoAugment(\n" + "".join(f"    {', '.join(map(repr, row))}\n" for row in self.policy) + ")"


class RandAugment:
    """`num_layers` operations drawn at each image; by `choice_weights` without repetition, else evenly with it."""

    def __init__(
        self, ops: Sequence[AugmentOp], num_layers: int = 2, choice_weights: Sequence[float] | np.ndarray | None = None
    ) -> None:
        self.ops = ops
        self.num_layers = num_layers
        self.choice_weights = choice_weights

    def __call__(self, img: Image.Image) -> Image.Image:
        weights = self.choice_weights
        for place in np.random.choice(len(self.ops), self.num_layers, replace=weights is None, p=weights):
            img = self.ops[place](img)
        return img

    def __repr__(self) -> str:
        return f"RandAugment(n={self.num_layers},\n" + "".join(f"    {op!r}\n" for op in self.ops) + ")"


class AugMixAugment:
    """The image mixed with `width` chains of `depth` operations each (1 to 3, drawn, where `depth` is not above 0).

    The chains' weights are drawn from a Dirichlet, the image's from a Beta distribution of parameter `alpha`. `blended`
    blends chain by chain in bytes, which is faster and rounds more.
    """

    def __init__(
        self, ops: Sequence[AugmentOp], alpha: float = 1.0, width: int = 3, depth: int = -1, blended: bool = False
    ) -> None:
        self.ops = ops
        self.alpha = alpha
        self.width = width
        self.depth = depth
        self.blended = blended

    def __call__(self, img: Image.Image) -> Image.Image:
        weights = np.float32(np.random.dirichlet([self.alpha] * self.width))
        share = np.float32(np.random.beta(self.alpha, self.alpha))
        if self.blended:
            mixed = img
            for weight in _successive(weights * share):
                mixed = Image.blend(mixed, self._chain(img), weight)
            return mixed
        total = np.zeros(np.asarray(img).shape, np.float32)
        for weight in weights:
            total += weight * np.asarray(self._chain(img), np.float32)
        return Image.blend(img, Image.fromarray(total.clip(0, 255).astype(np.uint8)), share)

    def _chain(self, img: Image.Image) -> Image.Image:
        depth = self.depth if self.depth > 0 else np.random.randint(1, 4)
        for place in np.random.choice(len(self.ops), depth, replace=True):
            img = self.ops[place](img)
        return img

    def __repr__(self) -> str:
        head = f"AugMixAugment(alpha={self.alpha:g}, width={self.width}, depth={self.depth},\n"
        return head + "".join(f"    {op!r}\n" for op in self.ops) + ")"


def _successive(shares: np.ndarray) -> np.ndarray:
    """The factors of blends one after another that leave each layer its share of the end result."""
    factors: list[Any] = []
    below: Any = 1.0
    for share in shares[::-1]:
        factors.insert(0, share / below)
        below *= 1 - factors[0]
    return np.array(factors, np.float32)


def _sections(spec: str, known: Mapping[str, Callable[[str], Any]]) -> tuple[str, dict[str, Any]]:
    """A policy string's name, and its sections' values by their letters."""
    name, *sections = spec.split("-")
    values: dict[str, Any] = {}
    for section in sections:
        letters, number = re.fullmatch(r"(\D*)(.*)", section).groups()  # type: ignore[union-attr]  # it matches anything
        if letters.startswith("t") and "t" in known:
            letters, number = "t", section[1:]
        try:
            values[letters] = known[letters](number)
        except (KeyError, ValueError):
            wanted = ", ".join(f"{key}<{kind.__name__.strip('_')}>" for key, kind in known.items())
            raise BadArgument(f"section {section!r} of {spec!r}: after the name it takes {wanted}") from None
    return name, values


def _switch(number: str) -> bool:
    return bool(int(number))


def _deviation(number: str) -> float:
    return float("inf") if float(number) > 100 else float(number)


def _given_first(hparams: Mapping[str, Any] | None, **values: Any) -> dict[str, Any]:
    """The hyper-parameters of a caller, and those of a string where the caller is silent."""
    return {key: value for key, value in values.items() if value is not None} | dict(hparams or DEFAULTS)


def auto_augment_transform(config_str: str, hparams: Mapping[str, Any] | None = None) -> AutoAugment:
    """AutoAugment by a string: original, originalr, v0, v0r or 3a, and mstd<std> for noise on the magnitudes.

    Raises BadArgument for another policy or section.
    """
    name, given = _sections(config_str, {"mstd": float})
    return AutoAugment(auto_augment_policy(name, _given_first(hparams, magnitude_std=given.get("mstd"))))


_COLOURS = ["Color", "Contrast", "Brightness", "Sharpness"]
_MOVES = ["ShearX", "ShearY", "TranslateXRel", "TranslateYRel"]
_EVEN = ["AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", *_COLOURS, *_MOVES]
_INCREASING = [f"{name}Increasing" if f"{name}Increasing" in OPERATIONS else name for name in _EVEN]
_CHOICES: dict[str, Mapping[str, float] | Sequence[str]] = {
    "3a": ["SolarizeIncreasing", "Desaturate", "GaussianBlur"],
    "3aw": {
        "SolarizeIncreasing": 6, "Desaturate": 6, "GaussianBlur": 6, "Rotate": 3, "ShearX": 2, "ShearY": 2,
        "PosterizeIncreasing": 1, "AutoContrast": 1, "ColorIncreasing": 1, "SharpnessIncreasing": 1,
        "ContrastIncreasing": 1, "BrightnessIncreasing": 1, "Equalize": 1, "Invert": 1,
    },
    "weights": {
        "Rotate": 3, "ShearX": 2, "ShearY": 2, "TranslateXRel": 1, "TranslateYRel": 1, "ColorIncreasing": 0.25,
        "SharpnessIncreasing": 0.25, "AutoContrast": 0.25, "SolarizeIncreasing": 0.05, "SolarizeAdd": 0.05,
        "ContrastIncreasing": 0.05, "BrightnessIncreasing": 0.05, "Equalize": 0.05, "PosterizeIncreasing": 0.05,
        "Invert": 0.05,
    },
}  # fmt: skip
_AUGMIX = ["AutoContrast", *(f"{name}Increasing" for name in _COLOURS), "Equalize", "Rotate"]
_AUGMIX += ["PosterizeIncreasing", "SolarizeIncreasing", *_MOVES]


def rand_augment_choices(name: str = "", increasing: bool = True) -> Mapping[str, float] | Sequence[str]:
    """The operations that RandAugment draws from: "3a", "3aw" or "weights" (with weights), or the usual fifteen for "".

    Raises BadArgument for another name.
    """
    if not name:
        return _INCREASING if increasing else _EVEN
    if name not in _CHOICES:
        raise BadArgument(f"no set of operations {name!r}: it is one of {', '.join(_CHOICES)}")
    return _CHOICES[name]


def rand_augment_ops(
    magnitude: float = 10,
    prob: float = 0.5,
    hparams: Mapping[str, Any] | None = None,
    transforms: Mapping[str, float] | Sequence[str] | None = None,
) -> list[AugmentOp]:
    """RandAugment's operations at one magnitude."""
    return [AugmentOp(name, prob=prob, magnitude=magnitude, hparams=hparams) for name in transforms or _EVEN]


def rand_augment_transform(
    config_str: str,
    hparams: Mapping[str, Any] | None = None,
    transforms: str | Mapping[str, float] | Sequence[str] | None = None,
) -> RandAugment:
    """RandAugment by a string: "rand", then in any order m<magnitude> (10), n<layers> (2), p<probability of each> (0.5),
    mstd<std of the magnitude; above 100: even from 0>, mmax<its bound> (10), inc<0 or 1> (increasing operations),
    t<set of operations> (see `rand_augment_choices`).

    `transforms` names the operations itself. Raises BadArgument for another section.
    """
    kinds: dict[str, Callable[[str], Any]] = {"m": int, "n": int, "p": float, "mstd": _deviation, "mmax": int, "inc": _switch}
    kinds["t"] = str
    name, given = _sections(config_str, kinds)
    if name != "rand":
        raise BadArgument(f"{config_str!r} is no RandAugment: its string begins with rand")
    if transforms is None or isinstance(transforms, str):
        transforms = rand_augment_choices(transforms or given.get("t", ""), given.get("inc", False))
    hparams = _given_first(hparams, magnitude_std=given.get("mstd"), magnitude_max=given.get("mmax"))
    ops = rand_augment_ops(given.get("m", int(FULL_MAGNITUDE)), given.get("p", 0.5), hparams, transforms)
    weights = np.array(list(transforms.values())) if isinstance(transforms, Mapping) else None
    return RandAugment(ops, given.get("n", 2), None if weights is None else weights / weights.sum())


def augmix_ops(
    magnitude: float = 10,
    hparams: Mapping[str, Any] | None = None,
    transforms: Sequence[str] | None = None,
) -> list[AugmentOp]:
    """AugMix's operations at one magnitude; to the paper's are added colour, contrast, brightness and sharpness."""
    return rand_augment_ops(magnitude, 1.0, hparams, transforms or _AUGMIX)


def augment_and_mix_transform(config_str: str, hparams: Mapping[str, Any] | None = None) -> AugMixAugment:
    """AugMix by a string: "augmix", then m<magnitude> (3), w<chains> (3), d<operations of each> (1 to 3, drawn),
    a<alpha> (1), b<0 or 1> (blended), mstd<std of the magnitude> (drawn evenly from 0 where it is not given).

    Raises BadArgument for another section.
    """
    name, given = _sections(config_str, {"m": int, "w": int, "d": int, "a": float, "b": _switch, "mstd": float})
    if name != "augmix":
        raise BadArgument(f"{config_str!r} is no AugMix: its string begins with augmix")
    ops = augmix_ops(given.get("m", 3), _given_first(hparams, magnitude_std=given.get("mstd", float("inf"))))
    return AugMixAugment(ops, given.get("a", 1.0), given.get("w", 3), given.get("d", -1), given.get("b", False))
