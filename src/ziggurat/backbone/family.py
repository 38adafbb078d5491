"""A family: one backbone class and the table of its variants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["Family"]


class Family(Mapping):
    """Variants of a class by name: `Family(ResNet, {"resnet18": dict(depths=(2, 2, 2, 2)), ...})`.

    A mapping of name to (class, keyword arguments). Two families of one file are joined with `|`. A family file ends in
    `family = Family(...)` and `__getattr__ = family.entrypoint`, which makes `from ziggurat.models.resnet import
    resnet18` work without a function for each row.
    """

    def __init__(self, cls: type, table: Mapping[str, Mapping[str, Any]]) -> None:
        self._rows: dict[str, tuple[type, dict[str, Any]]] = {name: (cls, dict(row)) for name, row in table.items()}

    def __getitem__(self, name: str) -> tuple[type, dict[str, Any]]:
        cls, row = self._rows[name]
        return cls, dict(row)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __or__(self, other: Family) -> Family:
        twice = self._rows.keys() & other._rows.keys()
        assert not twice, f"two rows of one name: {sorted(twice)}"
        joined = Family(object, {})
        joined._rows = self._rows | other._rows
        return joined

    def entrypoint(self, name: str) -> Callable[..., Any]:
        """The function that creates variant `name`: `create_model` with the name filled in."""
        if name not in self._rows:
            raise AttributeError(name)

        def create(pretrained: bool = False, **kwargs: Any) -> Any:
            from ..factory import create_model

            return create_model(name, pretrained=pretrained, **kwargs)

        create.__name__ = create.__qualname__ = name
        create.__doc__ = f"A `{name}`; see `ziggurat.create_model` for the arguments."
        return create
