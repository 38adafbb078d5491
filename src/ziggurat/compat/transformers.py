"""Backbones for the heads of transformers: what its `AutoBackbone` gives, made by ziggurat.

    from transformers import UperNetConfig, UperNetForSemanticSegmentation
    from ziggurat.compat.transformers import ZigguratBackboneConfig

    config = ZigguratBackboneConfig(backbone="resnet50", out_strides=(4, 8, 16, 32))
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config, num_labels=7))
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..errors import BadArgument, MissingExtra
from ..factory import create_model

try:
    from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
    from transformers import initialization as init
    from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
    from transformers.modeling_outputs import BackboneOutput
except ImportError as error:
    raise MissingExtra("ziggurat.compat.transformers needs transformers 5.10 or newer: "
                       "pip install 'ziggurat[transformers]'") from error

__all__ = ["ZigguratBackbone", "ZigguratBackboneConfig"]


class ZigguratBackboneConfig(BackboneConfigMixin, PreTrainedConfig):
    """The configuration of a `ZigguratBackbone`: which architecture, and which of its levels.

    - `backbone`: the architecture, with a tag behind a dot where `pretrained` weights are to be of that tag.
    - `out_strides`, or `out_indices`: the levels given out, ascending (default: the last). Levels are called 'stage0',
      'stage1', ... in `stage_names` and `out_features`.
    - `num_channels`: channels of the images.
    - `arguments`: others of `create_model` (`output_stride`, `img_size`, `pyramid`, ...), as plain values.
    """

    model_type = "ziggurat_backbone"

    backbone: str = "resnet50"
    num_channels: int = 3
    pretrained: bool = False
    out_strides: list[int] | tuple[int, ...] | None = None
    stage_names: list[str] | None = None
    arguments: dict | None = None
    _out_indices: list[int] | None = None
    _out_features: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        given = {key: kwargs.pop(key, None) for key in ("out_indices", "out_features")}
        super().__post_init__(**kwargs)
        if given["out_indices"] is not None:
            self._out_indices = list(given["out_indices"])
        if given["out_features"] is not None:
            self._out_features = list(given["out_features"])
        if self._out_indices is not None and self.out_strides is not None and self.stage_names is None:
            raise BadArgument("give out_indices or out_strides, not both")


class ZigguratBackbone(BackboneMixin, PreTrainedModel):
    """A ziggurat backbone under transformers' backbone interface: `channels`, `out_features`, `stage_names`.

    `forward` gives a `BackboneOutput` whose `feature_maps` are the levels of `config`, NCHW. `network` is the
    `Backbone` itself; its weights are drawn or loaded by ziggurat.
    """

    config: ZigguratBackboneConfig
    config_class = ZigguratBackboneConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = "image"
    has_attentions = False
    supports_gradient_checkpointing = False

    def __init__(self, config: ZigguratBackboneConfig) -> None:
        network = _create(config, pretrained=config.pretrained and torch.get_default_device().type != "meta")
        info = network.feature_info
        config.stage_names = [f"stage{i}" for i in range(len(info))]
        config.set_output_features_output_indices(out_features=None, out_indices=list(info.out_indices))
        super().__init__(config)
        self.network = network
        self.num_features = [level["num_chs"] for level in info]
        self._is_hollow = any(p.is_meta for p in network.parameters())
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """The levels of images (B C H W), as `feature_maps`."""
        if output_hidden_states or output_attentions:
            raise BadArgument("a ziggurat backbone gives feature_maps, no hidden states or attentions; "
                              "choose the levels by out_strides or out_indices")
        maps = tuple(self.network(pixel_values))
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return BackboneOutput(feature_maps=maps) if wants_dict else (maps,)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers fills a model that it made on the meta device: what no checkpoint gave comes from another build
        if module is self.network and self._is_hollow:
            fresh = _create(self.config, pretrained=False)
            for ours, theirs in zip((*module.parameters(), *module.buffers()), (*fresh.parameters(), *fresh.buffers())):
                init.copy_(ours, theirs.to(ours.device))
            self._is_hollow = False


def _create(config: ZigguratBackboneConfig, pretrained: bool) -> Backbone:
    chosen: dict[str, Any] = dict(config.arguments or {})
    if config.out_strides is not None:
        chosen["out_strides"] = tuple(config.out_strides)
    elif config._out_features is not None and config._out_indices is None:
        chosen["out_indices"] = tuple(int(name.removeprefix("stage")) for name in config._out_features)
    else:
        chosen["out_indices"] = tuple(config._out_indices or (-1,))
    return create_model(config.backbone, pretrained=pretrained, in_chans=config.num_channels, features_only=True, **chosen)


AutoConfig.register(ZigguratBackboneConfig.model_type, ZigguratBackboneConfig, exist_ok=True)
AutoBackbone.register(ZigguratBackboneConfig, ZigguratBackbone, exist_ok=True)
