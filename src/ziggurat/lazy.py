"""Packages whose names are imported when they are first used."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

__all__ = ["LazyNames"]


class LazyNames(dict[str, str]):
    """The public names of a package, each with the module of the package that has it.

        _HOME = LazyNames(__name__, {"image": "find_images open_image"})    # by module, the names in it
        __all__ = sorted(_HOME)

        def __getattr__(name: str) -> Any:
            return _HOME.imported(name)

        def __dir__() -> list[str]:
            return _HOME.listed()

    The two functions stand in each package, since type checkers look for them there.
    """

    def __init__(self, package: str, homes: Mapping[str, str]) -> None:
        super().__init__({name: home for home, names in homes.items() for name in names.split()})
        self.package, self.modules = package, tuple(homes)

    def imported(self, name: str) -> Any:
        """What the package calls `name`, one of its public names or modules, from now on without asking here."""
        if name in self:
            value = getattr(import_module(f"{self.package}.{self[name]}"), name)
        elif name in self.modules:
            value = import_module(f"{self.package}.{name}")
        else:
            raise AttributeError(f"module {self.package!r} has no attribute {name!r}")
        setattr(sys.modules[self.package], name, value)
        return value

    def listed(self) -> list[str]:
        """All that the package has, imported or not."""
        return sorted({*vars(sys.modules[self.package]), *self, *self.modules})
