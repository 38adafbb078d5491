"""What the contenders of a network share: its weights, images, and the outputs that eager float32 gives for them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .. import registry
from ..backbone import Backbone
from ..errors import BadArgument
from ..factory import create_model
from .contenders import Case, Kit, network_of, normalised
from .costs import layers_of

__all__ = ["prepare"]

SCALE = 0.1  # of what is initialised with less
SMOOTH = 16  # pixels between the random points that images are drawn through


def prepare(cases: Sequence[Case], folder: Path) -> list[Kit]:
    """The kit of each of `cases`, all of one network, with its files in `folder`.

    Weights are the published ones of the network's tag, or random ones. Images are smooth, as photos are, and random. The
    outputs are those of our network, as it is, in float32 on the CPU.
    """
    first = cases[0]
    assert all((case.network, case.size, case.pixels) == (first.network, first.size, first.pixels) for case in cases)
    _, tag = registry.split_model_name_tag(first.network)
    arguments, size = fitting(first)
    torch.manual_seed(0)
    model = create_model(first.network, pretrained=bool(tag), **arguments).eval()
    generator = torch.Generator().manual_seed(0)
    side = model.in_chans, size, size
    mean, std = (tuple(float(value) for value in model.pretrained_cfg[name]) for name in ("mean", "std"))
    reductions = model.feature_info.reduction()
    strides = tuple(dict.fromkeys(reductions))
    deepest = {stride: index for index, stride in enumerate(reductions)}
    shared: dict[str, Any] = dict(weights=str(folder / "weights.safetensors"), size=size, arguments=arguments, strides=strides,
                                  indices=tuple(deepest[stride] for stride in strides), mean=mean, std=std)
    if not tag:
        settle(model, normalised(pictures(4, side, generator), Kit(images="", **shared)))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, shared["weights"])
    del model
    kits = []
    for number, case in enumerate(cases):
        kit = Kit(images=str(folder / f"case_{number}.safetensors"), **shared)
        images = pictures(case.batch, side, generator)
        given = normalised(images, kit)
        with torch.inference_mode():
            outputs = tree_leaves(network_of(case, kit)(given))
        if not all(output.isfinite().all() for output in outputs):
            raise BadArgument(f"{case}: its outputs are not finite with these weights")
        names = {f"output_{i}": output.contiguous() for i, output in enumerate(outputs)}
        save_file({"images": images if case.pixels else given.contiguous(), **names}, kit.images)
        layers = layers_of(network_of(case, kit, "meta"), torch.empty((case.batch, *side), device="meta"))
        kits.append(Kit(images=kit.images, flops=sum(layer.flops for layer in layers), layers=tuple((layer.flops, layer.numbers) for layer in layers), **shared))
    return kits


def fitting(case: Case) -> tuple[dict[str, Any], int]:
    """The arguments by which the network takes images of the case's size, and that size."""
    model = create_model(case.network, device="meta")
    native = model.pretrained_cfg["input_size"][-1]
    size = case.size or native
    takes = "img_size" in inspect.signature(type(model).__init__).parameters
    return {"img_size": size} if takes and size != native else {}, size


def pictures(count: int, side: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Bytes (B C H W): smooth colours between random points, with a little grain."""
    channels, height, width = side
    points = torch.rand(count, channels, height // SMOOTH + 2, width // SMOOTH + 2, generator=generator)
    smooth = nn.functional.interpolate(points, (height, width), mode="bilinear", align_corners=True)
    grain = torch.rand(count, *side, generator=generator) - 0.5
    return (255 * smooth + 16 * grain).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def settle(model: Backbone, images: Tensor) -> None:
    """Random weights that all matter: no scale near zero, and batch norms with the statistics of `images`.

    As initialised, branches that begin with a scale of zero would hide what is wrong in them. Scales of one everywhere make
    attention of random weights so sharp that rounding alone decides what it looks at.
    """
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and not name.endswith("bias") and parameter.abs().max() < SCALE:
            parameter.uniform_(SCALE, 2 * SCALE)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all that is seen
        norm.train()
    model(images)
    model.eval()
