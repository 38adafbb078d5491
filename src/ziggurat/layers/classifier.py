"""Heads: from a map to scores."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ziggurat.errors import BadArgument, UnsupportedPooling

from .adaptive_avgmax_pool import SelectAdaptivePool2d
from .create_act import create_act_layer
from .create_norm import create_norm_layer
from .format import FormatT, get_spatial_dim
from .placement import get_device_dtype
from .typing import LayerType

__all__ = ["ClNormMlpClassifierHead", "ClassifierHead", "NormMlpClassifierHead", "create_classifier"]


def _projection(features: int, outputs: int, use_conv: bool, **place: Any) -> nn.Module:
    """A dense layer, or the same as a 1 x 1 convolution; an identity for no outputs."""
    if outputs <= 0:
        return nn.Identity()
    return nn.Conv2d(features, outputs, 1, **place) if use_conv else nn.Linear(features, outputs, **place)


def _check_pooled(num_classes: int, pool_type: str, use_conv: bool) -> None:
    if num_classes > 0 and not pool_type and not use_conv:
        raise BadArgument(
            f"{num_classes} classes of an unpooled map need a convolution: pass a pool_type, use_conv=True, "
            "or num_classes=0"
        )


def _pool_and_width(
    features: int, num_classes: int, pool_type: str, use_conv: bool, input_fmt: FormatT | None
) -> tuple[SelectAdaptivePool2d, int]:
    _check_pooled(num_classes, pool_type, use_conv)
    pool = SelectAdaptivePool2d(
        pool_type=pool_type, flatten=bool(pool_type) and not use_conv, input_fmt=input_fmt or "NCHW"
    )
    return pool, features * pool.feat_mult()


def create_classifier(
    num_features: int,
    num_classes: int,
    pool_type: str = "avg",
    use_conv: bool = False,
    input_fmt: FormatT = "NCHW",
    drop_rate: float | None = None,
    **place: Any,
) -> tuple[nn.Module, ...]:
    """(pool, classifier), or (pool, dropout, classifier) where `drop_rate` is not None.

    No classes give an identity for a classifier; `use_conv` a 1 x 1 convolution. `place` is the classifier's device and
    dtype. Raises BadArgument where a map that is not pooled would meet a dense layer.
    """
    pool, width = _pool_and_width(num_features, num_classes, pool_type, use_conv, input_fmt)
    fc = _projection(width, num_classes, use_conv, **place)
    return (pool, fc) if drop_rate is None else (pool, nn.Dropout(drop_rate), fc)


class _Head(nn.Module):
    """What the heads share: a classifier `fc` on `num_features`, made anew by `reset`."""

    in_features: int
    num_features: int
    use_conv: bool = False
    fc: nn.Module

    def join(self, new: nn.Module) -> nn.Module:
        """`new` in this head's mode, for it to become a part."""
        return new.train(self.training)

    def strip(self) -> None:
        """Leaves nothing but pooling and classifier."""

    def change_width(self, in_features: int) -> None:
        """Sets the width of the input, as where layers before the head were cut off."""
        self.in_features = in_features

    def change_pool(self, pool_type: str, place: dict[str, Any]) -> None:
        """Makes the pooling anew."""
        raise NotImplementedError

    def reset(
        self,
        num_classes: int,
        pool_type: str | None = None,
        reset_other: bool = False,
        in_features: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Makes the classifier anew for this many classes, 0 for none, and the pooling where one is named.

        `reset_other` takes away everything but pooling and classifier; `in_features` is a new width of the input.
        New parts are where the old are, in their precision and mode, unless `device` and `dtype` say otherwise.
        Raises BadArgument where the new width does not fit a norm that stays, or the pooling does not fit the head.
        """
        place: dict[str, Any] = dict(get_device_dtype(self, device, dtype))
        if reset_other:
            self.strip()
        if in_features is not None and in_features != self.in_features:
            self.change_width(in_features)
        if pool_type is not None:
            self.change_pool(pool_type, place)
        self.fc = self.join(self.make_classifier(num_classes, place))

    def make_classifier(self, num_classes: int, place: dict[str, Any]) -> nn.Module:
        """A classifier for the features as they are now."""
        return _projection(self.num_features, num_classes, self.use_conv, **place)


class ClassifierHead(_Head):
    """Pooling `global_pool`, dropout `drop`, classifier `fc`.

    `use_conv` classifies by a 1 x 1 convolution, position by position where nothing is pooled. Without classes the
    pooled features come out. Inputs are in `input_fmt`.
    """

    takes_width = True  # `reset` may be given other `in_features`

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        use_conv: bool = False,
        input_fmt: FormatT = "NCHW",
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.use_conv = use_conv
        self.input_fmt = input_fmt
        self.global_pool, self.num_features = _pool_and_width(in_features, num_classes, pool_type, use_conv, input_fmt)
        self.drop = nn.Dropout(drop_rate)
        self.fc = _projection(self.num_features, num_classes, use_conv)
        self.flatten: nn.Module = nn.Flatten(1) if use_conv and pool_type else nn.Identity()

    def change_width(self, in_features: int) -> None:
        self.in_features = in_features
        self.num_features = in_features * self.global_pool.feat_mult()

    def change_pool(self, pool_type: str, place: dict[str, Any]) -> None:
        # the number of classes is checked where the classifier is made
        pool, self.num_features = _pool_and_width(self.in_features, 0, pool_type, self.use_conv, self.input_fmt)
        self.global_pool = pool.train(self.training)
        self.flatten = self.join(nn.Flatten(1) if self.use_conv and pool_type else nn.Identity())

    def make_classifier(self, num_classes: int, place: dict[str, Any]) -> nn.Module:
        _check_pooled(num_classes, self.global_pool.pool_type, self.use_conv)
        return super().make_classifier(num_classes, place)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Scores, or the pooled features with `pre_logits`."""
        x = self.drop(self.global_pool(x))
        return self.flatten(x if pre_logits else self.fc(x))


class _MlpHead(_Head):
    """A head with a `norm` and, where `hidden_size` is given, a hidden layer `pre_logits` of `fc` and `act`."""

    norm: nn.Module
    pre_logits: nn.Module
    hidden_size: int | None

    def make_layers(
        self, num_classes: int, hidden_size: int | None, drop_rate: float, norm: LayerType, act: LayerType
    ) -> None:
        """The layers after pooling, in the order of the state dict."""
        self.hidden_size = hidden_size
        self.num_features = hidden_size or self.in_features
        self.norm = create_norm_layer(norm, self.in_features)
        self.flatten: nn.Module = nn.Identity()
        self.pre_logits = nn.Identity()
        if hidden_size:
            layers = {"fc": _projection(self.in_features, hidden_size, self.use_conv), "act": create_act_layer(act)}
            self.pre_logits = nn.Sequential(OrderedDict((k, m) for k, m in layers.items() if m is not None))
        self.drop = nn.Dropout(drop_rate)
        self.fc = _projection(self.num_features, num_classes, self.use_conv)

    def strip(self) -> None:
        self.norm = self.join(nn.Identity())
        self.pre_logits = self.join(nn.Identity())
        self.hidden_size = None
        self.num_features = self.in_features

    def change_width(self, in_features: int) -> None:
        if not isinstance(self.norm, nn.Identity):
            raise BadArgument(
                f"this head's norm has {self.in_features} channels, the input would have {in_features}: "
                "pass reset_other=True to take the norm away"
            )
        self.in_features = in_features
        self.num_features = self.hidden_size or in_features


class NormMlpClassifierHead(_MlpHead):
    """Pooling, norm, an optional hidden layer with activation, dropout, classifier, for (N, C, H, W).

    Where nothing is pooled the dense layers are 1 x 1 convolutions. `num_features` is the width before the classifier.
    Raises BadArgument for a pooling that changes the number of channels.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden_size: int | None = None,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        norm_layer: LayerType = "layernorm2d",
        act_layer: LayerType = "tanh",
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.use_conv = not pool_type
        self.global_pool = self._pool(pool_type)
        self.make_layers(num_classes, hidden_size, drop_rate, norm_layer, act_layer)
        self.flatten = nn.Flatten(1) if pool_type else nn.Identity()

    def _pool(self, pool_type: str) -> SelectAdaptivePool2d:
        pool = SelectAdaptivePool2d(pool_type=pool_type)
        if pool.feat_mult() != 1:
            raise UnsupportedPooling(
                f"pooling {pool_type!r} changes the width that the norm expects: use avg, max or avgmax"
            )
        return pool

    def change_pool(self, pool_type: str, place: dict[str, Any]) -> None:
        self.global_pool = self._pool(pool_type).train(self.training)
        self.flatten = self.join(nn.Flatten(1) if pool_type else nn.Identity())
        self.use_conv = not pool_type
        if not self.hidden_size:
            return
        assert isinstance(self.pre_logits, nn.Sequential)
        old = self.pre_logits[0]
        if isinstance(old, nn.Conv2d) == self.use_conv:
            return
        # the same weights in the other shape, trained or frozen as they were
        new = _projection(self.in_features, self.hidden_size, self.use_conv, **place)
        with torch.no_grad():
            for mine, theirs in zip(new.parameters(), old.parameters()):
                mine.copy_(theirs.view_as(mine)).requires_grad_(theirs.requires_grad)
        self.pre_logits.fc = new.train(old.training)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Scores, or the features before the classifier with `pre_logits`."""
        x = self.flatten(self.norm(self.global_pool(x)))
        x = self.drop(self.pre_logits(x))
        return x if pre_logits else self.fc(x)


class ClNormMlpClassifierHead(_MlpHead):
    """`NormMlpClassifierHead` for maps and tokens whose channels come last, (N, H, W, C) or (N, L, C).

    `pool_type` is '', avg, max or avgmax; where nothing is pooled every position is classified.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden_size: int | None = None,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        norm_layer: LayerType = "layernorm",
        act_layer: LayerType = "gelu",
        input_fmt: FormatT = "NHWC",
    ) -> None:
        super().__init__()
        if input_fmt not in ("NHWC", "NLC"):
            raise BadArgument(f"this head takes NHWC or NLC, not {input_fmt}: for NCHW there is NormMlpClassifierHead")
        self.in_features = in_features
        self.positions = get_spatial_dim(input_fmt)
        self.change_pool(pool_type, {})
        self.make_layers(num_classes, hidden_size, drop_rate, norm_layer, act_layer)

    def change_pool(self, pool_type: str, place: dict[str, Any]) -> None:
        if pool_type not in ("", "avg", "max", "avgmax"):
            raise UnsupportedPooling(
                f"no pooling {pool_type!r} of maps with channels last: use '' or one of avg, max, avgmax"
            )
        self.pool_type = pool_type

    def pool(self, x: Tensor) -> Tensor:
        """(N, C), or the input where nothing is pooled."""
        if not self.pool_type:
            return x
        if self.pool_type == "avg":
            return x.mean(self.positions)
        top = x.amax(self.positions)
        return top if self.pool_type == "max" else 0.5 * (top + x.mean(self.positions))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Scores, or the features before the classifier with `pre_logits`."""
        x = self.drop(self.pre_logits(self.norm(self.pool(x))))
        return x if pre_logits else self.fc(x)
