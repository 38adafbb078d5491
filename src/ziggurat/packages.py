"""Optional packages: whether they are there, and the sentence for where they are not."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from .errors import MissingExtra

__all__ = ["is_installed", "require_packages"]


def is_installed(package: str) -> bool:
    """Whether a package of the top level is there to be imported; it is not imported."""
    try:
        return find_spec(package) is not None
    except ImportError:  # from a finder that keeps others from importing it
        return False


def require_packages(what: str, packages: Iterable[str], extra: str, instead: str = "") -> None:
    """Raises `MissingExtra` where one of `packages`, which `what` needs, is not installed.

    It says that `pip install 'ziggurat[extra]'` brings them, and `instead`, if given, what to do without them.
    """
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        otherwise = f", or {instead}" if instead else ""
        raise MissingExtra(f"{what} needs {', '.join(missing)}, not installed: pip install 'ziggurat[{extra}]'{otherwise}")
