"""RepMLPNet (Ding et al. 2021, arXiv 2112.11081).

A hierarchical network whose blocks mix the positions of a partition of the map by a fully connected layer. Small
convolutions beside it give it the notion of neighbourhood in training; as they are linear and see one partition each,
they fold into the fully connected layer afterwards (`RepMLPNet.reparameterize`).

Names are those of the authors' checkpoints, `conv_embedding.conv.weight`; MindCV's `conv_embedding.conv.conv` become
them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import Backbone, Family
from ..errors import BadArgument
from ..layers.create_act import get_act_layer
from ..layers.drop import DropPath
from ..layers.shapes import to_2tuple
from ..layers.typing import LayerType

__all__ = ["RepMLPBlock", "RepMLPNet"]

STRIDES = (4, 2, 2, 2)


def conv_bn(in_chs: int, out_chs: int, kernel: int = 1, stride: int = 1, padding: int = 0, groups: int = 1) -> nn.Sequential:
    """A convolution without bias and its batch norm."""
    conv = nn.Conv2d(in_chs, out_chs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_chs)))


def embedding(in_chs: int, out_chs: int, side: int) -> nn.Sequential:
    """Patches of `side` x `side` cells, each through a convolution, a batch norm and a ReLU."""
    layers = conv_bn(in_chs, out_chs, side, side)
    layers.add_module("relu", nn.ReLU(inplace=True))
    return layers


def scale_and_shift(bn: Any) -> tuple[Tensor, Tensor]:
    """The factor and the summand, one a channel, that a batch norm is in evaluation."""
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return scale, bn.bias - bn.running_mean * scale


class GlobalPerceptron(nn.Module):
    """A factor for each channel from the mean of the map, by two layers: (B, C, H, W) to (B, C, 1, 1)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class RepMLPBlock(nn.Module):
    """Positions of each partition mixed by a fully connected layer and convolutions: (B, dim, H, W) to (B, dim, H, W).

    Maps are of whole partitions, `partition` = (rows, columns). Of the `dim` channels, every `share_sets`-th shares its
    weights. The result is scaled channel by channel with a view of the whole map (`gp`). With `deploy` the block is
    made as `reparameterize` leaves it.
    """

    def __init__(
        self,
        dim: int,
        partition: tuple[int, int],
        share_sets: int,
        kernels: Sequence[int] = (1, 3),
        reduction: int = 4,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        if dim % share_sets:
            raise BadArgument(f"share_sets={share_sets} does not divide a stage of {dim} channels; change one of them")
        cells = partition[0] * partition[1]
        self.partition = partition
        self.share_sets = share_sets
        self.gp = GlobalPerceptron(dim, dim // reduction)
        self.fc3 = nn.Conv2d(share_sets * cells, share_sets * cells, 1, groups=share_sets, bias=deploy)
        self.fc3_bn: nn.Module = nn.Identity() if deploy else nn.BatchNorm2d(share_sets)
        self.kernels = () if deploy else tuple(kernels)
        for k in self.kernels:
            self.add_module(f"repconv{k}", conv_bn(share_sets, share_sets, k, padding=k // 2, groups=share_sets))

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.partition
        # cut one way after the other: Core ML has no tensors of more than five axes
        strips = x.unflatten(3, (-1, columns)).permute(0, 3, 1, 2, 4)  # B, across, C, H, columns
        pieces = strips.flatten(0, 1).unflatten(2, (-1, rows)).permute(0, 2, 1, 3, 4)  # B * across, down, C, rows, columns
        parts = pieces.reshape(-1, self.share_sets, rows, columns)
        mixed = self.fc3_bn(self.fc3(parts.flatten(1)[..., None, None]).view_as(parts))
        for k in self.kernels:
            mixed = mixed + getattr(self, f"repconv{k}")(parts)
        mixed = mixed.reshape(pieces.shape).permute(0, 2, 1, 3, 4).reshape(strips.shape).permute(0, 2, 3, 1, 4).reshape(x.shape)
        return mixed * self.gp(x)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Folds batch norm and convolutions into the fully connected layer; in evaluation the outputs stay as they are."""
        if isinstance(self.fc3_bn, nn.Identity):
            return
        rows, columns = self.partition
        cells = rows * columns
        scale, bias = scale_and_shift(self.fc3_bn)
        weight = self.fc3.weight.reshape(self.share_sets, cells, cells) * scale[:, None, None]
        # what a convolution makes of an image with a single one, for each place of it
        units = torch.eye(cells, dtype=weight.dtype, device=weight.device).reshape(cells, 1, rows, columns)
        for k in self.kernels:
            branch = getattr(self, f"repconv{k}")
            scale, shift = scale_and_shift(branch.bn)
            kernels = branch.conv.weight * scale[:, None, None, None]
            weight = weight + F.conv2d(units, kernels, padding=k // 2).flatten(2).permute(1, 2, 0)
            bias = bias + shift
            delattr(self, f"repconv{k}")
        old = self.fc3
        with old.weight.device:
            self.fc3 = nn.Conv2d(old.in_channels, old.out_channels, 1, groups=old.groups, bias=True).to(weight.dtype)
        self.fc3.weight.copy_(weight.reshape(old.weight.shape))
        self.fc3.bias.copy_(bias.repeat_interleave(cells))  # type: ignore[union-attr]
        self.fc3.train(self.training).requires_grad_(old.weight.requires_grad)
        self.fc3_bn, self.kernels = nn.Identity(), ()


class FeedForward(nn.Module):
    """Two 1x1 convolutions with batch norms and an activation between them."""

    def __init__(self, dim: int, hidden: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.ffn_fc1 = conv_bn(dim, hidden)
        self.act = act()
        self.ffn_fc2 = conv_bn(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn_fc2(self.act(self.ffn_fc1(x)))


class RepMLPUnit(nn.Module):
    """A residual branch that mixes positions, then one that mixes channels, each behind a batch norm."""

    def __init__(self, dim: int, act: type[nn.Module], **mixer: Any) -> None:
        super().__init__()
        self.prebn1 = nn.BatchNorm2d(dim)
        self.repmlp_block = RepMLPBlock(dim, **mixer)
        self.drop_path = DropPath()
        self.prebn2 = nn.BatchNorm2d(dim)
        self.ffn_block = FeedForward(dim, 4 * dim, act)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.repmlp_block(self.prebn1(x)))
        return x + self.drop_path(self.ffn_block(self.prebn2(x)))


class RepMLPNet(Backbone):
    """Four stages of units, each after an embedding of patches, a batch norm, average pooling.

    The fully connected layers fix the size of a partition, and maps are of whole partitions: images of another size
    than `img_size` are resized to it, and levels back.

    - `channels`, `depths`, `share_sets`: of each stage, its width, units, and sets of channels that share weights.
    - `partition_size`: the pixels that a partition covers, a multiple of 32; part of the weights.
    - `img_size`: any multiple of it, in pixels; by default one partition, as published.
    - `kernels`: of the convolutions beside the fully connected layers. `deploy` makes them, and the batch norms there,
      part of these layers, as `reparameterize` does to a trained network.
    """

    units = r"stages\.(\d+)\.(\d+)"
    final_norm = "head_norm"

    stages: Any

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int],
        share_sets: Sequence[int],
        partition_size: int | tuple[int, int] = 224,
        img_size: int | tuple[int, int] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        kernels: Sequence[int] = (1, 3),
        act_layer: LayerType = nn.GELU,
        deploy: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, **kwargs)
        partition = to_2tuple(partition_size)
        image = partition if img_size is None else to_2tuple(img_size)
        if any(side < 1 or side % 32 for side in partition):
            raise BadArgument(f"partition_size={partition_size}: give a multiple of 32")
        if any(side < 1 or side % whole for side, whole in zip(image, partition)):
            raise BadArgument(f"img_size={img_size}: the network's partitions cover {partition[0]} x {partition[1]} pixels; give "
                              "a multiple of that (images of other sizes are resized), or another partition_size to train anew")
        self.native_size = image
        act: Any = get_act_layer(act_layer)
        self.conv_embedding = embedding(in_chans, channels[0], STRIDES[0])
        pairs = zip(channels, channels[1:], STRIDES[1:])
        self.embeds = nn.ModuleList(embedding(before, after, side) for before, after, side in pairs)
        self.stages = nn.ModuleList()
        for i, (dim, depth, sets) in enumerate(zip(channels, depths, share_sets)):
            self.plan.spend(STRIDES[i])
            rows, columns = (side // self.plan.reduction for side in partition)
            mixer = dict(partition=(rows, columns), share_sets=sets, kernels=kernels, deploy=deploy)
            self.stages.append(nn.ModuleList(RepMLPUnit(dim, act, **mixer) for _ in range(depth)))
            self.plan.mark(dim, f"stages.{i}")
        self.head_norm = nn.BatchNorm2d(channels[-1])
        self.make_head("head")

    def runs_after(self, level: str) -> list[str]:
        return [f"embeds.{i}" for i in range(int(level.removeprefix("stages.")), len(STRIDES) - 1)]

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        x = self.conv_embedding(x)
        for i, stage in enumerate(self.stages):
            if i:
                x = self.embeds[i - 1](x)
            for unit in stage:
                x = unit(x)
            yield x
        yield self.head_norm(x)

    def reparameterize(self) -> None:
        """Folds what helped training into the fully connected layers: the same outputs in evaluation, in less time.

        The state dict is then that of a model created with `deploy=True`.
        """
        for module in self.modules():
            if isinstance(module, RepMLPBlock):
                module.reparameterize()
        self.remember(deploy=True)

    def init_weights(self) -> None:
        """Convolutions and linear layers uniform within the root of one over their inputs."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                reach = module.weight[0].numel() ** -0.5
                nn.init.uniform_(module.weight, -reach, reach)
                if module.bias is not None:
                    nn.init.uniform_(module.bias, -reach, reach)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()


T = dict(channels=(64, 128, 256, 512), depths=(2, 2, 6, 2), share_sets=(1, 4, 16, 128))
B = dict(channels=(96, 192, 384, 768), depths=(2, 2, 12, 2), share_sets=(1, 4, 32, 128))
D = dict(channels=(80, 160, 320, 640), depths=(2, 2, 18, 2), share_sets=(1, 4, 16, 128))
L = dict(channels=(96, 192, 384, 768), depths=(2, 2, 18, 2), share_sets=(1, 4, 32, 256))

family = Family(RepMLPNet, {
    "repmlp_t224": T | dict(partition_size=224),
    "repmlp_b224": B | dict(partition_size=224),
    "repmlp_t256": T | dict(partition_size=256),
    "repmlp_b256": B | dict(partition_size=256),
    "repmlp_d256": D | dict(partition_size=256),
    "repmlp_l256": L | dict(partition_size=256),
})  # fmt: skip
__getattr__ = family.entrypoint
