"""EvoNorm: normalisation and activation found together by search (Liu et al. 2020, arXiv 2004.02967).

The B layers use statistics of the batch, with a running variance for inference; the S layers those of each sample's
groups of channels. The layers named a are as in the S layers, but normalise without activation too, and have a larger
epsilon. Inputs are (N, C, H, W). Arguments that only other norms have (`inplace` and the like) are passed over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .create_act import create_act_layer
from .trace_utils import _assert
from .typing import LayerType

__all__ = [
    "EvoNorm2dB0",
    "EvoNorm2dB1",
    "EvoNorm2dB2",
    "EvoNorm2dS0",
    "EvoNorm2dS0a",
    "EvoNorm2dS1",
    "EvoNorm2dS1a",
    "EvoNorm2dS2",
    "EvoNorm2dS2a",
    "group_rms",
    "group_std",
    "instance_rms",
    "instance_std",
]


def instance_std(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The standard deviation of each channel of each sample, (N, C, 1, 1)."""
    return x.float().var(dim=(2, 3), unbiased=False, keepdim=True).add(eps).sqrt().to(x.dtype)


def instance_rms(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The root mean square of each channel of each sample, (N, C, 1, 1)."""
    return x.float().square().mean(dim=(2, 3), keepdim=True).add(eps).sqrt().to(x.dtype)


def _per_group(x: Tensor, groups: int, root: Any) -> Tensor:
    """`root` of each group's values (N, groups, C / groups * H * W), spread over the group's channels: (N, C, 1, 1)."""
    values = root(x.float().unflatten(1, (groups, -1)).flatten(2).unsqueeze(-1))
    return values.expand(-1, -1, x.shape[1] // groups, -1).flatten(1, 2).unsqueeze(-1).to(x.dtype)


def group_std(x: Tensor, groups: int = 32, eps: float = 1e-5) -> Tensor:
    """The standard deviation of each group of channels of each sample, (N, C, 1, 1)."""
    return _per_group(x, groups, lambda v: v.var(dim=2, unbiased=False, keepdim=True).add(eps).sqrt())


def group_rms(x: Tensor, groups: int = 32, eps: float = 1e-5) -> Tensor:
    """The root mean square of each group of channels of each sample, (N, C, 1, 1)."""
    return _per_group(x, groups, lambda v: v.square().mean(dim=2, keepdim=True).add(eps).sqrt())


class _EvoNorm(nn.Module):
    """What all have: an affine map at the end, and `num_features`, `apply_act`, `eps`."""

    def __init__(self, num_features: int, apply_act: bool, eps: float) -> None:
        super().__init__()
        self.num_features = num_features
        self.apply_act = apply_act
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def over_channels(self, values: Tensor, like: Tensor) -> Tensor:
        """One value a channel, shaped and typed to go with (N, C, H, W)."""
        return values.to(like.dtype).view(1, -1, 1, 1)

    def nonlinear(self, x: Tensor) -> Tensor:
        """What the search found, before the affine map."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        _assert(x.ndim == 4, "EvoNorm takes (N, C, H, W)")
        y = self.nonlinear(x)
        return y * self.over_channels(self.weight, x) + self.over_channels(self.bias, x)

    def extra_repr(self) -> str:
        return f"{self.num_features}, apply_act={self.apply_act}, eps={self.eps}"


class _EvoNormBatch(_EvoNorm):
    """A layer that divides by the larger of the batch's standard deviation and something of the sample's own."""

    running_var: Tensor

    def __init__(self, num_features: int, apply_act: bool, momentum: float, eps: float) -> None:
        super().__init__(num_features, apply_act, eps)
        self.momentum = momentum
        self.register_buffer("running_var", torch.ones(num_features))

    def batch_std(self, x: Tensor) -> Tensor:
        """The batch's standard deviation in training, which also moves the running variance; else the running one."""
        var = self.running_var
        if self.training:
            var = x.float().var(dim=(0, 2, 3), unbiased=False)
            count = x.shape[0] * x.shape[2] * x.shape[3]
            unbiased = var.detach() * (count / (count - 1))
            self.running_var.copy_(self.running_var.lerp(unbiased.to(self.running_var.dtype), self.momentum))
        return self.over_channels(var.add(self.eps).sqrt(), x)

    def own(self, x: Tensor) -> Tensor:
        """The other side of the maximum."""
        raise NotImplementedError

    def nonlinear(self, x: Tensor) -> Tensor:
        return x / torch.maximum(self.batch_std(x), self.own(x)) if self.apply_act else x


class EvoNorm2dB0(_EvoNormBatch):
    """B0: x / max(batch std, v x + instance std), `v` a learned vector."""

    v: nn.Parameter

    def __init__(
        self, num_features: int, apply_act: bool = True, momentum: float = 0.1, eps: float = 1e-3, **_: Any
    ) -> None:
        super().__init__(num_features, apply_act, momentum, eps)
        self.register_parameter("v", nn.Parameter(torch.ones(num_features)) if apply_act else None)

    def own(self, x: Tensor) -> Tensor:
        return x * self.over_channels(self.v, x) + instance_std(x, self.eps)


class EvoNorm2dB1(_EvoNormBatch):
    """B1: x / max(batch std, (x + 1) instance rms)."""

    def __init__(
        self, num_features: int, apply_act: bool = True, momentum: float = 0.1, eps: float = 1e-5, **_: Any
    ) -> None:
        super().__init__(num_features, apply_act, momentum, eps)

    def own(self, x: Tensor) -> Tensor:
        return (x + 1) * instance_rms(x, self.eps)


class EvoNorm2dB2(EvoNorm2dB1):
    """B2: x / max(batch std, instance rms - x)."""

    def own(self, x: Tensor) -> Tensor:
        return instance_rms(x, self.eps) - x


class _EvoNormSample(_EvoNorm):
    """A layer that divides an activation by a statistic of each sample's groups.

    `group_size`, channels a group, stands in for `groups` where given.
    """

    always = False  # whether to normalise where no activation is asked for
    default_eps = 1e-5
    statistic = staticmethod(group_std)

    def __init__(
        self, num_features: int, groups: int, group_size: int | None, apply_act: bool, eps: float | None
    ) -> None:
        super().__init__(num_features, apply_act, self.default_eps if eps is None else eps)
        self.groups = num_features // group_size if group_size else groups

    def activate(self, x: Tensor) -> Tensor:
        """The activation, or the input itself where none is asked for."""
        raise NotImplementedError

    def nonlinear(self, x: Tensor) -> Tensor:
        if not (self.apply_act or self.always):
            return x
        return self.activate(x) / self.statistic(x, self.groups, self.eps)


class EvoNorm2dS0(_EvoNormSample):
    """S0: x sigmoid(v x) / group std, `v` a learned vector."""

    v: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        groups: int = 32,
        group_size: int | None = None,
        apply_act: bool = True,
        eps: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__(num_features, groups, group_size, apply_act, eps)
        self.register_parameter("v", nn.Parameter(torch.ones(num_features)) if apply_act else None)

    def activate(self, x: Tensor) -> Tensor:
        return x if self.v is None else x * (x * self.over_channels(self.v, x)).sigmoid()


class EvoNorm2dS0a(EvoNorm2dS0):
    """S0 with epsilon 1e-3, normalising without activation too."""

    always = True
    default_eps = 1e-3


class EvoNorm2dS1(_EvoNormSample):
    """S1: act(x) / group std, by default with SiLU."""

    def __init__(
        self,
        num_features: int,
        groups: int = 32,
        group_size: int | None = None,
        apply_act: bool = True,
        act_layer: LayerType | None = None,
        eps: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__(num_features, groups, group_size, apply_act, eps)
        act = create_act_layer(act_layer or nn.SiLU) if apply_act else None
        self.act = act or nn.Identity()

    def activate(self, x: Tensor) -> Tensor:
        return self.act(x)


class EvoNorm2dS1a(EvoNorm2dS1):
    """S1 with epsilon 1e-3, normalising without activation too."""

    always = True
    default_eps = 1e-3


class EvoNorm2dS2(EvoNorm2dS1):
    """S2: act(x) / group rms, by default with SiLU."""

    statistic = staticmethod(group_rms)


class EvoNorm2dS2a(EvoNorm2dS2):
    """S2 with epsilon 1e-3, normalising without activation too."""

    always = True
    default_eps = 1e-3
