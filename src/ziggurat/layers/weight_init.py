"""Ways to draw the first weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ziggurat.errors import BadArgument

from .cond_conv2d import CondConv2d

__all__ = [
    "init_weight_jax",
    "init_weight_tf",
    "init_weight_vit",
    "is_meta_device",
    "lecun_normal_",
    "trunc_normal_",
    "trunc_normal_tf_",
    "variance_scaling_",
]

# the standard deviation of a unit normal cut at two standard deviations
_CUT_NORMAL_STD = 0.87962566103423978


def is_meta_device(device: torch.device | str | None) -> bool:
    """Whether this device, or the default one where it is None, holds shapes only."""
    return (torch.get_default_device() if device is None else torch.device(device)).type == "meta"


def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Fills with a normal distribution cut at the absolute bounds `a` and `b`."""
    return nn.init.trunc_normal_(tensor, mean=mean, std=std, a=a, b=b)


def trunc_normal_tf_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Fills with a normal distribution cut at `a` and `b` standard deviations, as TensorFlow and JAX do."""
    with torch.no_grad():
        return nn.init.trunc_normal_(tensor, mean=0.0, std=1.0, a=a, b=b).mul_(std).add_(mean)


def variance_scaling_(
    tensor: Tensor, scale: float = 1.0, mode: str = "fan_in", distribution: str = "normal"
) -> Tensor:
    """Fills so that the variance is `scale` over the fan (TensorFlow's VarianceScaling).

    `mode` is fan_in, fan_out or fan_avg; `distribution` is normal, uniform or truncated_normal.
    """
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(tensor)
    fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    if mode not in fans:
        raise BadArgument(f"no fan mode {mode!r}: use one of {', '.join(fans)}")
    std = math.sqrt(scale / fans[mode])
    with torch.no_grad():
        if distribution == "truncated_normal":
            return trunc_normal_tf_(tensor, std=std / _CUT_NORMAL_STD)
        if distribution == "normal":
            return tensor.normal_(std=std)
        if distribution == "uniform":
            reach = math.sqrt(3) * std
            return tensor.uniform_(-reach, reach)
    raise BadArgument(f"no distribution {distribution!r}: use one of normal, uniform, truncated_normal")


def lecun_normal_(tensor: Tensor) -> Tensor:
    """Fills with a cut normal distribution of variance 1 / fan_in, Flax's default for dense and conv layers."""
    return variance_scaling_(tensor, mode="fan_in", distribution="truncated_normal")


def _fill(tensor: Tensor | None, value: float) -> None:
    if tensor is not None:
        nn.init.constant_(tensor, value)


def init_weight_vit(
    module: nn.Module, name: str, init_bias: float = 0.02, head_bias: float = 0.0, classifier_name: str = "head"
) -> None:
    """Initialises one named module as PyTorch ViT code does: cut normal weights of std 0.02, dense biases
    `init_bias`.

    The classifier starts at zero weights and `head_bias`. A module that can initialise itself is asked to.
    """
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        if name.startswith(classifier_name):
            nn.init.zeros_(module.weight)
            _fill(module.bias, head_bias)
            return
        trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            _fill(module.bias, init_bias)
    else:
        getattr(module, "init_weights", lambda: None)()


def init_weight_jax(module: nn.Module, name: str, head_bias: float = 0.0, classifier_name: str = "head") -> None:
    """Initialises one named module as the original JAX ViT does: Xavier dense layers, LeCun convolutions.

    Biases inside an MLP are drawn with std 1e-6; the classifier starts at zero weights and `head_bias`.
    """
    if isinstance(module, nn.Linear):
        if name.startswith(classifier_name):
            nn.init.zeros_(module.weight)
            _fill(module.bias, head_bias)
            return
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.normal_(module.bias, std=1e-6) if "mlp" in name else nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        lecun_normal_(module.weight)
        _fill(module.bias, 0.0)
    else:
        getattr(module, "init_weights", lambda: None)()


def init_weight_tf(module: nn.Module, name: str = "") -> None:
    """Initialises one named module as TensorFlow's EfficientNet is: normal convolutions, uniform dense layers, by fan out.

    A `routing_fn`, which weighs the experts of mixed convolutions, counts its inputs too. Norms start as the identity,
    biases as zero. Other modules stay as they are.
    """
    if isinstance(module, (nn.Conv2d, CondConv2d)):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        fan = module.out_features + (module.in_features if name.endswith("routing_fn") else 0)
        nn.init.uniform_(module.weight, -(fan**-0.5), fan**-0.5)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
        nn.init.ones_(module.weight)
    else:
        return
    _fill(module.bias, 0.0)
