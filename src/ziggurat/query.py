"""Architectures and weights chosen by what is known of them; answered from the catalog, without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from .errors import BadArgument, nearest
from .registry import catalog, is_own, list_models, list_modules, split_model_name_tag, weights_of
from .weights import provenance

__all__ = ["search"]

SORTS = ("name", "params", "macs", "activations", "embedding", "input_size")
T = TypeVar("T", int, str)


def search(
    filter: str | Iterable[str] = "",
    *,
    exclude_filters: str | Iterable[str] = "",
    module: str | Iterable[str] = "",
    pretrained: bool = False,
    license: str | Iterable[str] | None = None,
    dataset: str | Iterable[str] | None = None,
    stride: int | Iterable[int] | None = None,
    output_stride: int | None = None,
    how: str | None = None,
    native_size_only: bool | None = None,
    min_params: float | None = None,
    max_params: float | None = None,
    max_macs: float | None = None,
    max_activations: float | None = None,
    min_embedding: int | None = None,
    max_embedding: int | None = None,
    min_input_size: int | None = None,
    max_input_size: int | None = None,
    sort: str = "name",
) -> list[str]:
    """Names of the architectures for which all that is asked for is known to hold; of their weights with `pretrained`.

        search(stride=4, max_params=30e6, license="apache-2.0", pretrained=True)
        search("vit_*", output_stride=8, how="stitched", max_macs=50e9, sort="macs")

    A fact that is not known fails every condition on it: a licence that no source states, anything measured of a
    user's own architecture. `model_info(name)` gives all facts of one name.

    - `filter`, `exclude_filters`, `module`: as for `list_models`; glob patterns of names, one or several model files.
    - `pretrained`: only what has published weights, listed as `architecture.tag`, one name for each tag.
    - `license`: weights under this licence or one of several ('apache-2.0', 'mit'); implies `pretrained`.
    - `dataset`: weights that saw this data set, or one of several, in training, fine-tuning included ('imagenet-21k',
      'laion-2b'); implies `pretrained`.
    - `stride`: there is a level of this stride, or of each of several, without any `output_stride`.
    - `output_stride`: `create_model` takes this value; `how` says in which way: 'native' (the network is no coarser),
      'dilated' or 'stitched'.
    - `native_size_only`: True for architectures that resize images to their own size, False for all others.
    - `min_params`, `max_params`, `max_macs`, `max_activations`: bounds, both ends included, for one image at the
      architecture's native size; MACs are those at `output_stride` where that is given.
    - `min_embedding`, `max_embedding`: bounds of the width of `embed`'s vector.
    - `min_input_size`, `max_input_size`: bounds of the longer side in pixels of the images that the weights were
      trained on, with weights; of the architecture's native size without.
    - `sort`: 'name' (natural order), 'params', 'macs', 'activations', 'embedding' or 'input_size', the smallest
      first; with a minus in front ('-params') the largest first. What is not known comes last.

    Raises `BadArgument` for a licence, data set, module, stride or order that does not exist, naming those that do.
    """
    licenses = [name.lower() for name in _several(license)]
    data = [provenance.data_set_named(name) for name in _several(dataset)]
    strides = _several(stride)
    _exist("module", _several(module), list_modules)
    _exist("license", licenses, _licenses)
    _exist("dataset", data, provenance.known_data_sets)
    _exist("stride", strides, _strides)
    _exist("output_stride", _several(output_stride), _output_strides)
    _exist("how", _several(how), _ways)
    _exist("sort", [sort.removeprefix("-")], lambda: SORTS)
    if how is not None and output_stride is None:
        raise BadArgument(f"how={how!r} says how an output stride is reached: give output_stride=8 or another with it")

    of_weights = pretrained or bool(licenses or data)
    bounds = {
        "params": (min_params, max_params),
        "macs": (None, max_macs),
        "activations": (None, max_activations),
        "embedding": (min_embedding, max_embedding),
        "input_size": (min_input_size, max_input_size),
    }
    found: dict[str, dict[str, float | None]] = {}
    for name in list_models(filter, module, pretrained=of_weights, exclude_filters=exclude_filters):
        architecture, tag = split_model_name_tag(name)
        facts = {} if is_own(architecture) else catalog()[architecture]
        figures = {key: facts.get(key) for key in bounds}
        if not set(strides) <= {level["reduction"] for level in facts.get("levels", ())}:
            continue
        if native_size_only is not None and facts.get("native_size_only") is not native_size_only:
            continue
        if output_stride is not None:
            way = facts.get("output_strides", {}).get(str(output_stride))
            if way is None or how not in (None, way["how"]):
                continue
            figures["macs"] = way["macs"]
        if of_weights:
            cfg = weights_of(architecture)[tag]
            if licenses and provenance.licence(name, cfg)[0] not in licenses:
                continue
            if data and not set(data) & set(provenance.data_sets(tag) or ()):
                continue
            figures["input_size"] = cfg.input_size
        if figures["input_size"]:
            figures["input_size"] = max(figures["input_size"][1:])
        if all(_within(figures[key], *ends) for key, ends in bounds.items()):
            found[name] = figures
    return _ordered(found, sort)


def _ordered(found: dict[str, dict[str, float | None]], sort: str) -> list[str]:
    """The names, in natural order as they come, sorted; what has no figure comes last."""
    key = sort.removeprefix("-")
    falls = sort.startswith("-")
    if key == "name":
        return list(found)[:: -1 if falls else 1]
    known = {name: figure for name, figures in found.items() if (figure := figures[key]) is not None}
    return [
        *sorted(known, key=lambda name: -known[name] if falls else known[name]),
        *(name for name in found if name not in known),
    ]


def _several(value: T | Iterable[T] | None) -> list[T]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, (str, int)) else list(value)


def _within(value: float | None, low: float | None, high: float | None) -> bool:
    if low is None and high is None:
        return True
    return value is not None and (low is None or low <= value) and (high is None or value <= high)


def _exist(argument: str, values: Iterable[T], known: Callable[[], Iterable[T]]) -> None:
    """Raises `BadArgument` for the first value that is not among those known."""
    for value in values:
        if value not in (there := list(known())):
            close = nearest(str(value), map(str, there)) if len(there) > 12 else []
            said = f"{'nearest are' if close else 'there are'} {', '.join(close or map(str, there))}"
            raise BadArgument(f"no {argument} {value!r}: {said}")


def _licenses() -> list[str]:
    stated = {
        provenance.licence(f"{architecture}.{tag}", cfg)[0]
        for architecture in list_models()
        for tag, cfg in weights_of(architecture).items()
        if cfg.has_weights
    }
    return sorted(name for name in stated if name)


def _strides() -> list[int]:
    return sorted({level["reduction"] for facts in catalog().values() for level in facts["levels"]})


def _output_strides() -> list[int]:
    return sorted({int(stride) for facts in catalog().values() for stride in facts["output_strides"]})


def _ways() -> list[str]:
    return sorted({way["how"] for facts in catalog().values() for way in facts["output_strides"].values()})
