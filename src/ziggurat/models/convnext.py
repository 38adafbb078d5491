"""ConvNeXt: a ResNet modernised step by step towards a transformer (Liu et al. 2022, arXiv 2201.03545), and its V2.

A block is a large depthwise convolution, one norm and a perceptron over channels. V2 (Woo et al. 2023, 2301.00808)
puts global response normalisation into the perceptron and drops the layer scale. The stem and the layers between
stages are convolutions of patches side by side; where a side of the map is not whole patches it is filled up with
zeros, so that levels round up.

`conv_mlp` writes the perceptron as 1x1 convolutions of maps, otherwise it is linear layers with channels last: the same
function, quicker one way in narrow networks and the other in wide ones. The `_ols` variants have a stem of overlapping
convolutions, `_hnf` norms before pooling as most networks do, `_rms` scales without centring.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone, Family
from ..backbone.plan import Step
from ..errors import BadArgument
from ..layers.classifier import NormMlpClassifierHead
from ..layers.conv2d_ceil import Conv2dCeil
from ..layers.conv2d_same import Conv2dSame
from ..layers.create_act import get_act_layer
from ..layers.create_conv2d import create_conv2d
from ..layers.create_norm import get_norm_layer
from ..layers.drop import DropPath
from ..layers.mlp import GlobalResponseNormMlp, Mlp
from ..layers.shapes import make_divisible, to_ntuple
from ..layers.typing import LayerType
from ..layers.weight_init import trunc_normal_

__all__ = ["ConvNeXt", "ConvNeXtBlock", "ConvNeXtStage"]

Make = Callable[..., nn.Module]

CHANNELS_LAST = {"layernorm2d": "layernorm", "simplenorm2d": "simplenorm", "rmsnorm2d": "rmsnorm"}
"""Norms of maps, and what each is where channels come last."""


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, a norm and a perceptron four times as wide, added to the block's input."""

    def __init__(
        self,
        chs: int,
        kernel_size: int = 7,
        dilation: int = 1,
        mlp_ratio: float = 4.0,
        conv_mlp: bool = False,
        conv_bias: bool = True,
        use_grn: bool = False,
        ls_init_value: float | None = 1e-6,
        act_layer: LayerType = "gelu",
        norm_layer: LayerType = "layernorm",
    ) -> None:
        super().__init__()
        self.use_conv_mlp = conv_mlp
        self.ls_init_value = ls_init_value
        self.conv_dw = create_conv2d(chs, chs, kernel_size, dilation=dilation, depthwise=True, bias=conv_bias)
        norm = get_norm_layer(norm_layer)
        assert norm is not None
        self.norm = norm(chs)
        mlp = GlobalResponseNormMlp if use_grn else Mlp
        self.mlp = mlp(chs, int(mlp_ratio * chs), act_layer=act_layer, use_conv=conv_mlp)
        self.gamma = None if ls_init_value is None else nn.Parameter(torch.empty(chs))
        self.reset_scale()
        self.drop_path = DropPath()

    def reset_scale(self) -> None:
        """Puts the layer scale, where there is one, back to its initial value."""
        if self.gamma is not None and self.ls_init_value is not None:
            nn.init.constant_(self.gamma, self.ls_init_value)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv_dw(x)
        if self.use_conv_mlp:
            branch = self.mlp(self.norm(branch))
        else:
            branch = self.mlp(self.norm(branch.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        branch = self.drop_path(branch)
        if self.gamma is None:
            return x + branch
        return torch.addcmul(x, branch, self.gamma.view(-1, 1, 1))  # scaled and added in one pass

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Makes the layer scale part of the perceptron's last layer; does nothing a second time."""
        if self.gamma is None:
            return
        last = self.mlp.fc2
        last.weight.mul_(self.gamma.view(-1, *[1] * (last.weight.ndim - 1)))
        if last.bias is not None:
            last.bias.mul_(self.gamma)
        self.gamma = None


class ConvNeXtStage(nn.Module):
    """A norm and a convolution where the stage changes width, stride or dilation, then blocks."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        depth: int,
        step: Step,
        norm_layer: Make,
        block: Make,
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        spreads = step.first_dilation != step.dilation
        self.downsample: nn.Module = nn.Identity()
        if in_chs != out_chs or step.stride > 1 or spreads:
            conv: nn.Module
            if step.stride > 1:
                conv = Conv2dCeil(in_chs, out_chs, step.stride, bias=conv_bias)
            else:
                side = 2 if spreads else 1
                conv = create_conv2d(in_chs, out_chs, side, dilation=step.first_dilation, padding="same", bias=conv_bias)
            self.downsample = nn.Sequential(norm_layer(in_chs), conv)
        self.blocks = nn.Sequential(*(block(out_chs, dilation=step.dilation) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class ConvNeXt(Backbone):
    """A stem of patches, four stages of ConvNeXt blocks, pooling, a norm and the classifier.

    - `depths`, `dims`, `kernel_sizes`: of the stages: blocks, channels, and the side of their depthwise convolutions.
    - `stem_type`: 'patch' is one convolution of `patch_size` at that stride; 'overlap' two of 3x3 at stride 2,
      'overlap_tiered' the first of them half as wide, 'overlap_act' with an activation between them.
    - `output_stride` is 32 unless told: with patches of 8 the last stage dilates.
    - `pad_type`: where an image is not whole patches, '' fills it up below and to the right, 'same' on all sides.
    - `conv_mlp`: blocks work on maps throughout; `conv_bias`: convolutions have biases; `use_grn`: global response
      normalisation in the blocks; `ls_init_value`: initial layer scale, None for no layer scale.
    - `head_norm_first`: the norm comes before pooling and so closes the trunk; `head_hidden_size`: width of a hidden
      layer in the head; `head_init_scale`: factor of the head's initial weights.
    - `norm_layer`: a norm of maps; without `conv_mlp` one of layernorm, simplenorm and rmsnorm. `norm_eps`: its epsilon.
    """

    units = r"stages\.(\d+)\.blocks\.(\d+)"
    dilates_to = 8
    final_norm = "norm_pre"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        output_stride: int | None = 32,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        kernel_sizes: int | Sequence[int] = 7,
        ls_init_value: float | None = 1e-6,
        stem_type: str = "patch",
        patch_size: int = 4,
        pad_type: str = "",
        head_init_scale: float = 1.0,
        head_norm_first: bool = False,
        head_hidden_size: int | None = None,
        conv_mlp: bool = False,
        conv_bias: bool = True,
        use_grn: bool = False,
        act_layer: LayerType = "gelu",
        norm_layer: LayerType | None = None,
        norm_eps: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, output_stride, **kwargs)
        self.conv_mlp = conv_mlp
        self.head_init_scale = head_init_scale
        of_maps, of_blocks = norms(norm_layer, norm_eps, conv_mlp)
        self.stem = make_stem(in_chans, dims[0], stem_type, patch_size, pad_type, conv_bias, act_layer, of_maps)
        self.plan.spend(patch_size if stem_type == "patch" else 4)
        self.stages = nn.Sequential()
        width = dims[0]
        for i, (depth, out_chs, kernel_size) in enumerate(zip(depths, dims, to_ntuple(len(depths))(kernel_sizes))):
            step = self.plan.step(2 if i > 0 or self.plan.reduction == 2 else 1)
            block = partial(ConvNeXtBlock, kernel_size=kernel_size, conv_mlp=conv_mlp, conv_bias=conv_bias,
                            use_grn=use_grn, ls_init_value=ls_init_value, act_layer=act_layer, norm_layer=of_blocks)
            self.stages.append(ConvNeXtStage(width, out_chs, depth, step, of_maps, block, conv_bias))
            width = out_chs
            self.plan.mark(width, f"stages.{i}")
        self.norm_pre = of_maps(width) if head_norm_first else nn.Identity()
        if head_norm_first:
            if head_hidden_size:
                raise BadArgument(f"head_norm_first with head_hidden_size={head_hidden_size}: a norm before pooling leaves "
                                  "the classifier alone in the head; leave one of them out")
            self.make_head("head.fc")
        else:
            self.head: Any = NormMlpClassifierHead(width, num_classes, head_hidden_size, global_pool, self.drop_rate,
                                                   norm_layer=of_maps, act_layer="gelu")
            self.make_head("head.fc", hidden=self.head.num_features)

    def init_weights(self) -> None:
        """Truncated normal weights, zero biases, and layer scales at their initial value."""
        for name, module in self.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if name.startswith("head.") and self.head_init_scale != 1.0:
                    with torch.no_grad():
                        module.weight.mul_(self.head_init_scale)
            elif isinstance(module, ConvNeXtBlock):
                module.reset_scale()

    def drop_head(self) -> None:
        """Removes the classifier, and the norm and the hidden layer before it."""
        self.head.strip()
        self.head.change_width(self.num_features)
        self._hidden = None
        super().drop_head()

    def remap_checkpoint(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The published files of Meta's (both versions, DINOv3 and EUPE) and the image towers of OpenCLIP's.

        A perceptron's weights come as linear layers or as 1x1 convolutions, whichever this network has.
        """
        if any(name.startswith(TOWER) for name in state_dict):
            state_dict = from_tower(state_dict)
        elif any(name.startswith("downsample_layers.") for name in state_dict):
            state_dict = from_meta(state_dict)
        return {
            name: as_pointwise(value, self.conv_mlp) if re.search(r"\.mlp\.fc[12]\.weight$", name) else value
            for name, value in state_dict.items()
        }

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            yield x
        yield self.norm_pre(x)


def norms(norm_layer: LayerType | None, eps: float | None, conv_mlp: bool) -> tuple[Make, Make]:
    """The norm of maps, and that of the blocks, whose channels come last unless `conv_mlp`."""
    of_blocks = norm_layer = norm_layer or "layernorm"
    if isinstance(norm_layer, str):
        name = norm_layer.replace("_", "").lower()
        if name in CHANNELS_LAST or name in CHANNELS_LAST.values():
            norm_layer = name if name in CHANNELS_LAST else f"{name}2d"
            of_blocks = norm_layer if conv_mlp else CHANNELS_LAST[norm_layer]
        elif not conv_mlp:
            raise BadArgument(f"norm_layer={norm_layer!r}: blocks with channels last take "
                              f"{', '.join(CHANNELS_LAST.values())}; give one of them, or conv_mlp=True")
    elif not conv_mlp:
        raise BadArgument(f"norm_layer={norm_layer!r}: blocks with channels last take a norm by name, one of "
                          f"{', '.join(CHANNELS_LAST.values())}; give one of them, or conv_mlp=True")
    maps, blocks = get_norm_layer(norm_layer), get_norm_layer(of_blocks)
    assert maps is not None and blocks is not None
    return (maps, blocks) if eps is None else (partial(maps, eps=eps), partial(blocks, eps=eps))


def make_stem(
    in_chans: int,
    width: int,
    stem_type: str,
    patch_size: int,
    pad_type: str,
    bias: bool,
    act_layer: LayerType,
    norm_layer: Make,
) -> nn.Sequential:
    """From images to the map of the first stage, and a norm."""
    if pad_type not in ("", "same"):
        raise BadArgument(f"pad_type={pad_type!r}: give '' or 'same'")
    if stem_type == "patch":
        patches: nn.Module = Conv2dCeil(in_chans, width, patch_size, bias=bias)
        if pad_type == "same":
            patches = Conv2dSame(in_chans, width, patch_size, patch_size, bias=bias)
        return nn.Sequential(patches, norm_layer(width))
    if stem_type not in ("overlap", "overlap_tiered", "overlap_act"):
        raise BadArgument(f"stem_type={stem_type!r}: give 'patch', 'overlap', 'overlap_tiered' or 'overlap_act'")
    first = make_divisible(width // 2) if stem_type == "overlap_tiered" else width
    convs = [create_conv2d(in_chans, first, 3, stride=2, padding=pad_type, bias=bias),
             create_conv2d(first, width, 3, stride=2, padding=pad_type, bias=bias)]
    if stem_type == "overlap_act":
        act = get_act_layer(act_layer)
        assert act is not None
        convs.insert(1, act())
    return nn.Sequential(*convs, norm_layer(width))


TOWER = "visual.trunk."
META = (  # Meta's names and ours, in the order of their replacement
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.grn\.(gamma|weight)$", ".mlp.grn.weight"),
    (r"\.grn\.(beta|bias)$", ".mlp.grn.bias"),
    (r"^head\.", "head.fc."),
    (r"^norm\.", "head.norm."),
)


def from_meta(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint of Meta's under our names, without the projectors and level norms of distillation."""
    renamed = {}
    for name, value in state_dict.items():
        if name.startswith(("projectors.", "norms.")):
            continue
        for pattern, ours in META:
            name = re.sub(pattern, ours, name)
        renamed[name] = value.flatten() if ".grn." in name else value
    return renamed


def from_tower(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower of an OpenCLIP checkpoint: its projection, which has no bias, is the classifier."""
    named = {name[len(TOWER) :]: value for name, value in state_dict.items() if name.startswith(TOWER)}
    for layer, ours in (("proj", "fc"), ("mlp.fc1", "pre_logits.fc"), ("mlp.fc2", "fc")):
        for leaf in ("weight", "bias"):
            value = state_dict.get(f"visual.head.{layer}.{leaf}")
            if value is not None:
                named[f"head.{ours}.{leaf}"] = value
    if "head.fc.weight" in named:
        named.setdefault("head.fc.bias", named["head.fc.weight"].new_zeros(named["head.fc.weight"].shape[0]))
    return named


def as_pointwise(weight: Tensor, conv: bool) -> Tensor:
    """The weight of a layer that mixes channels position by position, in the shape of a 1x1 convolution or of a matrix."""
    if conv == (weight.ndim == 4):
        return weight
    return weight[..., None, None] if conv else weight[..., 0, 0]


CONV = dict(conv_mlp=True)

ATTO = dict(depths=(2, 2, 6, 2), dims=(40, 80, 160, 320)) | CONV
FEMTO = dict(depths=(2, 2, 6, 2), dims=(48, 96, 192, 384)) | CONV
PICO = dict(depths=(2, 2, 6, 2), dims=(64, 128, 256, 512)) | CONV
NANO = dict(depths=(2, 2, 8, 2), dims=(80, 160, 320, 640)) | CONV
ZEPTO = dict(depths=(2, 2, 4, 2), dims=(32, 64, 128, 256), norm_layer="simplenorm") | CONV
TINY = dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768))
SMALL = dict(depths=(3, 3, 27, 3), dims=(96, 192, 384, 768))
BASE = dict(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024))
LARGE = dict(depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536))

OVERLAP = dict(stem_type="overlap")
TIERED = dict(stem_type="overlap_tiered")
V2 = dict(use_grn=True, ls_init_value=None)
TANH = dict(act_layer="gelu_tanh", norm_eps=1e-5)

family = Family(ConvNeXt, {
    "convnext_zepto_rms": ZEPTO,
    "convnext_zepto_rms_ols": ZEPTO | dict(stem_type="overlap_act"),
    "convnext_atto": ATTO,
    "convnext_atto_ols": ATTO | TIERED,
    "convnext_atto_rms": ATTO | dict(norm_layer="rmsnorm2d"),
    "convnext_femto": FEMTO,
    "convnext_femto_ols": FEMTO | TIERED,
    "convnext_pico": PICO,
    "convnext_pico_ols": PICO | TIERED,
    "convnext_nano": NANO,
    "convnext_nano_ols": NANO | OVERLAP,
    "convnext_tiny": TINY,
    "convnext_tiny_hnf": TINY | CONV | dict(head_norm_first=True),
    "convnext_small": SMALL,
    "convnext_base": BASE,
    "convnext_large": LARGE,
    "convnext_large_mlp": LARGE | dict(head_hidden_size=1536),
    "convnext_xlarge": dict(depths=(3, 3, 27, 3), dims=(256, 512, 1024, 2048)),
    "convnext_xxlarge": dict(depths=(3, 4, 30, 3), dims=(384, 768, 1536, 3072), norm_eps=1e-5),

    "convnextv2_atto": ATTO | V2,
    "convnextv2_femto": FEMTO | V2,
    "convnextv2_pico": PICO | V2,
    "convnextv2_nano": NANO | V2,
    "convnextv2_tiny": TINY | V2,
    "convnextv2_small": SMALL | V2,
    "convnextv2_base": BASE | V2,
    "convnextv2_large": LARGE | V2,
    "convnextv2_huge": dict(depths=(3, 3, 27, 3), dims=(352, 704, 1408, 2816)) | V2,

    "test_convnext": dict(depths=(1, 2, 4, 2), dims=(24, 32, 48, 64)) | TANH,
    "test_convnext2": dict(depths=(1, 1, 1, 1), dims=(32, 64, 96, 128)) | TANH,
    "test_convnext3": dict(depths=(1, 1, 1, 1), dims=(32, 64, 96, 128), kernel_sizes=(7, 5, 5, 3), act_layer="silu",
                           norm_eps=1e-5),
})  # fmt: skip

__getattr__ = family.entrypoint
