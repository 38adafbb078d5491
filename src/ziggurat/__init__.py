"""ziggurat: every vision backbone behind one interface: scores, embeddings, tokens and pyramids.

    import ziggurat
    model = ziggurat.create_model("resnet50", pretrained=True).eval()
    pyramid = model.pyramid(images)      # {2: ..., 4: ..., 8: ..., 16: ..., 32: ...}, keyed by stride
    vectors = model.embed(images)        # one vector an image

Importing this package imports neither torch nor any model file: names are looked up when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "build_model_with_cfg": "factory",
    "create_model": "factory",
    "parse_model_name": "factory",
    "safe_model_name": "factory",
    "Embedder": "extraction.embedder",
    "export": "exporting.export",
    "extract": "extraction.job",
    "open": "extraction.opening",
    "optimize": "optimization.optimizing",
    "as_backbone": "backbone",
    "load": "saving",
    "save": "saving",
    "Backbone": "backbone",
    "Family": "backbone",
    "FeatureInfo": "backbone",
    "PretrainedCfg": "weights.pretrained",
    "generate_default_cfgs": "registry",
    "get_arch_name": "registry",
    "get_arch_pretrained_cfgs": "registry",
    "get_deprecated_models": "registry",
    "get_pretrained_cfg": "registry",
    "get_pretrained_cfg_value": "registry",
    "is_model": "registry",
    "is_model_in_modules": "registry",
    "is_model_pretrained": "registry",
    "list_models": "registry",
    "list_modules": "registry",
    "list_pretrained": "registry",
    "model_entrypoint": "registry",
    "model_info": "registry",
    "ModelInfo": "facts",
    "WeightsInfo": "facts",
    "search": "query",
    "register_model": "registry",
    "register_model_deprecations": "registry",
    "split_model_name_tag": "registry",
    "is_exportable": "layers",
    "is_scriptable": "layers",
    "set_exportable": "layers",
    "set_scriptable": "layers",
}
_ROOMS = ("backbone", "benchmarking", "compat", "data", "errors", "exporting", "extraction", "layers", "models",
          "optimization", "registry", "factory", "testing", "view", "weights")

# all but `open`: "from ziggurat import *" must not take the place of the builtin
__all__ = sorted([*(_PUBLIC.keys() - {"open"}), *_ROOMS, "__version__"])

if TYPE_CHECKING:
    from .backbone import Backbone as Backbone
    from .backbone import Family as Family
    from .backbone import FeatureInfo as FeatureInfo
    from .backbone import as_backbone as as_backbone
    from .exporting.export import export as export
    from .extraction.embedder import Embedder as Embedder
    from .extraction.job import extract as extract
    from .extraction.opening import open as open
    from .factory import build_model_with_cfg as build_model_with_cfg
    from .factory import create_model as create_model
    from .factory import parse_model_name as parse_model_name
    from .factory import safe_model_name as safe_model_name
    from .facts import ModelInfo as ModelInfo
    from .facts import WeightsInfo as WeightsInfo
    from .optimization.optimizing import optimize as optimize
    from .query import search as search
    from .registry import *  # noqa: F403
    from .saving import load as load
    from .saving import save as save
    from .weights.pretrained import PretrainedCfg as PretrainedCfg


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    elif name in _ROOMS:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "open"])
