"""The families, one file each, and under timm's names what is public about models.

`from ziggurat.models.resnet import resnet34` imports one family. Attributes of this package are found when they are
used: the functions of the registry and the factory, the classes of the families (`ziggurat.models.ResNet`) and the
architectures themselves (`ziggurat.models.resnet34`).
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

_FAMILY_INTERNALS = ("efficientnet_blocks", "efficientnet_builder")  # shared by two families, no family themselves

_PUBLIC = {
    **dict.fromkeys(
        ("create_model", "build_model_with_cfg", "parse_model_name", "safe_model_name", "resolve_pretrained_cfg"),
        "factory",
    ),
    **dict.fromkeys(
        ("generate_default_cfgs", "get_arch_name", "get_arch_pretrained_cfgs", "get_deprecated_models",
         "get_pretrained_cfg", "get_pretrained_cfg_value", "is_model", "is_model_in_modules", "is_model_pretrained",
         "list_models", "list_modules", "list_pretrained", "model_entrypoint", "model_info", "register_model",
         "register_model_deprecations", "split_model_name_tag"),
        "registry",
    ),
    **dict.fromkeys(("PretrainedCfg", "DefaultCfg", "filter_pretrained_cfg"), "weights.pretrained"),
    **dict.fromkeys(("Backbone", "Family", "FeatureInfo", "group_modules", "group_parameters"), "backbone"),
    **dict.fromkeys(("checkpoint_seq", "model_parameters", "named_apply"), "compat.manipulate"),
    **dict.fromkeys(("clean_state_dict", "load_checkpoint", "load_state_dict"), "weights.reading"),
    **dict.fromkeys(("adapt_input_conv",), "weights.adapting"),
    **dict.fromkeys(("load_weights",), "weights.loading"),
    **dict.fromkeys(("load_model_config_from_hf", "load_state_dict_from_hf", "push_to_hf_hub", "save_for_hf"),
                    "compat.hub"),
    **dict.fromkeys(("get_notrace_functions", "get_notrace_modules", "register_notrace_function",
                     "register_notrace_module"), "layers"),
}


def _families() -> list[str]:
    return [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")
            and m.name not in _FAMILY_INTERNALS]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"ziggurat.{_PUBLIC[name]}"), name)
    if name in _families():
        return importlib.import_module(f"{__name__}.{name}")
    from ..registry import catalog

    for architecture, facts in catalog().items():
        if name in (architecture, facts["class"]):
            return getattr(importlib.import_module(f"{__name__}.{facts['module']}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, *_families()])
