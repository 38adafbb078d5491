"""Lets unchanged code that imports timm run on ziggurat.

    import ziggurat.compat.timm
    ziggurat.compat.timm.install()      # before anything imports timm
    from timm.layers import DropPath    # ziggurat's

`import ziggurat as timm` needs none of this: it is for code that imports timm's submodules by name. Nothing of timm is
imported; what ziggurat lacks is an ImportError or an AttributeError, as for any missing name.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

__all__ = ["install", "uninstall"]

# timm's private modules that code is known to import from, and where ziggurat has the same
_ELSEWHERE = {
    "models._builder": "factory",
    "models._factory": "factory",
    "models._features": "backbone",
    "models._helpers": "weights.reading",
    "models._hub": "compat.hub",
    "models._manipulate": "compat.manipulate",
    "models._pretrained": "weights.pretrained",
    "models._registry": "registry",
}


class _Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `timm.x` where `ziggurat.x` is; both names are then one module object."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != "timm" and not fullname.startswith("timm."):
            return None
        name = self._real_name(fullname)
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=found.submodule_search_locations is not None) \
            if found else None

    @staticmethod
    def _real_name(fullname: str) -> str:
        inner = fullname.partition(".")[2]
        inner = _ELSEWHERE.get(inner, inner)
        return f"ziggurat.{inner}" if inner else "ziggurat"

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._real_name(spec.name))
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # the import system has just put the alias' spec on the module: give it its own back
        module.__spec__ = self._specs.pop(module.__spec__.name)  # type: ignore[union-attr]

    def __init__(self) -> None:
        self._specs: dict[str, Any] = {}


def install() -> None:
    """From here on, `import timm` gives ziggurat. Raises RuntimeError where timm itself is imported already."""
    timm = sys.modules.get("timm")
    if timm is not None and not timm.__name__.startswith("ziggurat"):
        raise RuntimeError("timm is imported already: call install() before anything imports it")
    if not any(isinstance(finder, _Alias) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Alias())


def uninstall() -> None:
    """`import timm` means timm again."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Alias)]
    for name in [n for n in sys.modules if n == "timm" or n.startswith("timm.")]:
        del sys.modules[name]
