"""Backbones as encoders of segmentation-models-pytorch.

    import segmentation_models_pytorch as smp
    from ziggurat.compat.segmentation_models import register

    model = smp.Unet(register("convnext_tiny"), encoder_weights=None, classes=3)
    model = smp.FPN(register("resnet50.a1_in1k", pretrained=True), encoder_weights=None, classes=3)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..errors import BadArgument, MissingExtra
from ..factory import create_model

try:
    from segmentation_models_pytorch.encoders import encoders
except ImportError as error:
    raise MissingExtra("ziggurat.compat.segmentation_models needs segmentation-models-pytorch: "
                       "pip install 'ziggurat[segmentation-models]'") from error

__all__ = ["Encoder", "register"]


def register(model: str | Backbone, name: str | None = None, **arguments: Any) -> str:
    """Puts `model` into the package's table of encoders, and gives the name it has there: 'ziggurat-resnet50', say.

    `model` is an architecture, created with the `arguments` (`pretrained=True`, `img_size`, ...) for each decoder; or a
    backbone (`as_backbone` makes one of any module), of which each decoder gets a copy. Weights are not
    the package's: decoders take `encoder_weights=None` with it.
    """
    if name is None:
        name = f"ziggurat-{model}" if isinstance(model, str) else f"ziggurat-{type(model).__name__.lower()}"
    params = {"model": model, **arguments}
    if isinstance(model, Backbone):
        params["in_channels"] = model.in_chans
    encoders[name] = {"encoder": Encoder, "params": params, "pretrained_settings": {}}
    return name


class Encoder(nn.Module):
    """A backbone as an encoder: the image, then a map for each of the strides 2, 4, ... 2^`depth`.

    Where the architecture has no such level, a map without channels stands in its place, so that decoders have no skip
    there; the coarsest has to exist. With an `output_stride` below that, the levels are the same and the
    coarse ones are held to it. A single-stride network becomes a pyramid from stride 4 by `pyramid='interpolate'`,
    or 'simple' among the arguments. `model` and `arguments` are as for `register`.
    """

    def __init__(
        self,
        model: str | Backbone,
        depth: int = 5,
        output_stride: int = 32,
        in_channels: int = 3,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self._made_by = (model, depth, arguments)
        self.depth = depth
        self.output_stride = min(output_stride, 2**depth)
        self._build(in_channels)

    def _build(self, in_channels: int) -> None:
        model, depth, arguments = self._made_by
        strides = [2**k for k in range(1, depth + 1)]
        if isinstance(model, Backbone):
            self._take(model, in_channels, strides)
        else:
            self._create(model, in_channels, strides, dict(arguments))
        if self.places[-1] is None:
            found = sorted({s for s, place in zip(strides, self.places) if place is not None})
            fits = f"; give encoder_depth={strides.index(found[-1]) + 1}" if found else ""
            raise BadArgument(f"encoder_depth={depth}: {model if isinstance(model, str) else type(model).__name__} has no "
                              f"level of stride {strides[-1]}, of the encoder's strides it has {found}{fits}")
        channels = self.backbone.feature_info.channels()
        self.in_channels = in_channels
        self.out_channels = [in_channels, *(0 if i is None else channels[i] for i in self.places)]

    def _take(self, model: Backbone, in_channels: int, strides: list[int]) -> None:
        """Uses a backbone as it is."""
        if model.in_chans != in_channels:
            raise BadArgument(f"in_channels={in_channels}: the backbone given takes {model.in_chans}")
        reductions = model.feature_info.reduction()
        if max(strides) > self.output_stride:
            raise BadArgument(f"output_stride={self.output_stride}: the backbone given has strides {sorted(set(reductions))}; "
                              "name an architecture instead, or build it with that output_stride")
        if model.out_indices is None:
            deepest = {reduction: i for i, reduction in enumerate(reductions)}
            kept = [s for s in strides if s in deepest]
            if kept:
                model.keep_levels([deepest[s] for s in kept])
            reductions = kept
        self.backbone = model
        deepest = {reduction: i for i, reduction in enumerate(reductions)}
        self.places = [deepest.get(s) for s in strides]

    def _create(self, name: str, in_channels: int, strides: list[int], arguments: dict[str, Any]) -> None:
        """Creates a features-only model of the deepest levels of the strides wanted."""
        shape = {key: value for key, value in arguments.items() if not key.startswith(("pretrained", "pyramid"))}
        with torch.device("meta"):
            native = create_model(name, **shape).feature_info.reduction()
        given = dict(arguments, in_chans=in_channels, features_only=True)
        if len(set(native)) == 1 and strides[-1] >= 4:
            held = [min(s, self.output_stride) for s in strides]
            made = sorted({s for s in held if s >= 4})
            self.backbone = create_model(name, out_strides=made, **{"pyramid": "interpolate", **given})
            self.places = [made.index(s) if s in made else None for s in held]
            return
        deepest = {reduction: i for i, reduction in enumerate(native)}
        kept = [s for s in strides if s in deepest]
        self.places = [kept.index(s) if s in kept else None for s in strides]
        if self.places[-1] is not None and self.output_stride < strides[-1]:
            given["output_stride"] = self.output_stride
        self.backbone = create_model(name, out_indices=[deepest[s] for s in kept] or None, **given)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The image (B C H W) and a map (B C' H/2^k W/2^k) for each k from 1 to `depth`."""
        maps = self.backbone(x)
        features = [x]
        for k, place in enumerate(self.places, start=1):
            height, width = (-(-side // 2**k) for side in x.shape[-2:])
            features.append(x.new_empty(x.shape[0], 0, height, width) if place is None else maps[place])
        return features

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Takes images of `in_channels` from here on; the package calls this while it builds a model."""
        if in_channels != self.in_channels:
            self._build(in_channels)

    def make_dilated(self, output_stride: int) -> None:
        """Nothing: the encoder was made with its output stride. The package calls this while it builds a model."""
