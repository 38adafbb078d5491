"""What the outputs of a classifier are called: label names and descriptions by class index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

from ..errors import BadArgument

__all__ = ["CustomDatasetInfo", "DatasetInfo", "DatasetInfoLabelMapper", "LabelMappingCoverage"]


class DatasetInfo(ABC):
    """The labels of a data set. A label name is a class's unique key, a description what people read."""

    @abstractmethod
    def num_classes(self) -> int:
        """How many classes have a label."""

    @abstractmethod
    def label_names(self) -> Any:
        """The label names: a sequence in the order of the classes, or names by index."""

    @abstractmethod
    def label_descriptions(self, detailed: bool = False, as_dict: bool = False) -> Any:
        """All descriptions, by label name where `as_dict`."""

    @abstractmethod
    def index_to_label_name(self, index: int) -> str:
        """The label name of one class."""

    @abstractmethod
    def label_name_to_description(self, label: str, detailed: bool = False) -> str:
        """The description of one label name."""

    def index_to_description(self, index: int, detailed: bool = False) -> str:
        """The description of one class."""
        return self.label_name_to_description(self.index_to_label_name(index), detailed=detailed)

    def label_indices(self) -> tuple[int, ...]:
        """The class indices that have a label."""
        return tuple(range(self.num_classes()))

    def has_label(self, index: int) -> bool:
        """Whether this class has a label."""
        return 0 <= int(index) < self.num_classes()


class CustomDatasetInfo(DatasetInfo):
    """The labels of your own data set.

    `label_names` is a sequence in the order of the classes, or a dict from index to name, which may leave indices out
    and whose keys may be strings, as JSON makes them. `label_descriptions` goes from name to description; without it
    a name describes itself. Raises TypeError for values of another kind, BadArgument (a ValueError) for names or
    indices that cannot be.
    """

    def __init__(
        self,
        label_names: Sequence[str] | dict[int | str, str],
        label_descriptions: dict[str, str] | None = None,
    ) -> None:
        if not isinstance(label_names, (list, tuple, dict)) or not label_names:
            raise BadArgument(f"label_names={label_names!r}: it takes a list, tuple or dict that is not empty")
        by_index: dict[int, str] = {}
        for key, name in label_names.items() if isinstance(label_names, dict) else enumerate(label_names):
            index = _class_index(key)
            if index in by_index:
                raise BadArgument(f"Duplicate label index {index}: two keys of label_names mean the same class")
            if not isinstance(name, str):
                raise TypeError(f"label {name!r} of class {index} is a {type(name).__name__}; labels are strings")
            by_index[index] = name
        if label_descriptions is not None:
            if not isinstance(label_descriptions, dict):
                raise TypeError(
                    f"label_descriptions is a {type(label_descriptions).__name__}; it takes a dict from name to description"
                )
            bare = [name for name in by_index.values() if name not in label_descriptions]
            if bare:
                raise BadArgument(f"Missing descriptions for {bare[:10]}{' and others' * (len(bare) > 10)}")
        self._given = label_names  # handed back as it came
        self._by_index = by_index
        self._descriptions = label_descriptions

    def num_classes(self) -> int:
        return len(self._by_index)

    def label_names(self) -> Sequence[str] | dict[int | str, str]:
        return self._given

    def label_indices(self) -> tuple[int, ...]:
        return tuple(self._by_index)

    def has_label(self, index: int) -> bool:
        return int(index) in self._by_index

    def label_descriptions(self, detailed: bool = False, as_dict: bool = False) -> dict[str, str] | None:
        return self._descriptions

    def label_name_to_description(self, label: str, detailed: bool = False) -> str:
        return self._descriptions[label] if self._descriptions else label

    def index_to_label_name(self, index: int) -> str:
        return self._by_index[int(index)]


def _class_index(key: Any) -> int:
    if not isinstance(key, (Integral, str)):
        raise TypeError(f"label index {key!r} is a {type(key).__name__}; it takes an int, or a string that spells one")
    try:
        index = int(key)
    except ValueError as error:
        raise BadArgument(f"label index {key!r} is not integer-like") from error
    if index < 0:
        raise BadArgument(f"label index {index} is below 0")
    return index


class LabelMappingCoverage(NamedTuple):
    """How a data set's labels fit a classifier: classes with a label, without one, and labels beyond the last class."""

    mapped: int
    missing: int
    extra: int


class DatasetInfoLabelMapper:
    """A function from class index to text, also for classes that have no label.

    `label_type`: "name", "description", or "detailed" (also "detail"). A class without a label gets `fallback_format`,
    in which `{index}` stands for its index; with None it raises as the data set does.
    """

    def __init__(
        self,
        dataset_info: DatasetInfo,
        label_type: str = "description",
        fallback_format: str | None = "<unmapped:{index}>",
    ) -> None:
        kinds = ("name", "description", "detail", "detailed")
        if label_type not in kinds:
            raise BadArgument(f"Invalid label type {label_type!r}: it is one of {', '.join(kinds)}")
        self.dataset_info = dataset_info
        self.label_type = label_type
        self.fallback_format = fallback_format

    def __call__(self, index: int) -> str:
        index, info = int(index), self.dataset_info
        if self.fallback_format is not None and not info.has_label(index):
            return self.fallback_format.format(index=index)
        if self.label_type == "name":
            return info.index_to_label_name(index)
        return info.index_to_description(index, detailed=self.label_type.startswith("detail"))

    def coverage(self, num_classes: int) -> LabelMappingCoverage:
        """How the labels fit a classifier of `num_classes`. Raises BadArgument below 0."""
        if num_classes < 0:
            raise BadArgument(f"num_classes={num_classes}: a classifier has 0 classes or more")
        labels = self.dataset_info.label_indices()
        inside = len([index for index in labels if index in range(num_classes)])
        return LabelMappingCoverage(inside, num_classes - inside, len(labels) - inside)
