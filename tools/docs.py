"""Writes docs/api.md from docstrings and docs/models.md from the catalog.

    python tools/docs.py [--check]

With --check nothing is written: pages that differ from what would be are named, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

import ziggurat
from ziggurat import data, errors, exporting, extraction, optimization, registry, testing
from ziggurat.backbone import Backbone, Family, FeatureInfo, Plan
from ziggurat.extraction import opening
from ziggurat.facts import Fact
from ziggurat.registry import catalog
from ziggurat.weights.converting import convert_checkpoint

DOCS = Path(__file__).parents[1] / "docs"

MANY = ("Score", "class_labels", "classify_images", "embed_images", "extract_images", "image_transform", "EmbeddingWriter",
        "open_writer", "draw_pyramid", "heat_rgb", "pca_rgb", "pyramid_picture")
ON_DISK = [name for name in extraction.__all__ if name not in MANY and callable(getattr(extraction, name))]

SECTIONS: list[tuple[str, list[Any]]] = [
    ("Creating", [ziggurat.create_model, ziggurat.models.build_model_with_cfg, ziggurat.parse_model_name]),
    ("Listing", [getattr(registry, name) for name in registry.__all__]),
    ("Choosing", [ziggurat.search, ziggurat.ModelInfo, ziggurat.WeightsInfo]),
    ("A backbone", [Backbone, FeatureInfo]),
    ("Keeping", [ziggurat.save, ziggurat.load, convert_checkpoint]),
    ("Modules that are no family", [ziggurat.as_backbone]),
    ("Writing a family", [Plan, Family, testing.check_backbone]),
    ("An image to an input", [data.resolve_model_data_config, data.create_transform, data.open_image, data.find_images]),
    ("Many images", [getattr(extraction, name) for name in MANY]),
    ("Very many images, on the disk", [ziggurat.extract, ziggurat.open, opening.Run, opening.View,
                                       *(getattr(extraction, name) for name in ON_DISK), ziggurat.Embedder]),
    ("At the speed of the machine", [ziggurat.optimize, *(getattr(optimization, name) for name in
                                                          ("Optimized", "Trial", "Recipe", "fused", "cache_folder"))]),
    ("Files for other runtimes", [ziggurat.export, exporting.Exported, exporting.open, exporting.Loaded]),
    ("Errors", [getattr(errors, name) for name in errors.__all__]),
]


class Bare(str):
    """Text that a signature prints without quotes."""

    __repr__ = str.__str__


def signature(thing: Any) -> str:
    """The call of a function or class, without what a reader does not pass; sets in the order of their members."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return ""

    def bare(annotation: Any) -> Any:
        written = getattr(annotation, "__forward_arg__", annotation)  # of a NamedTuple
        return Bare(written) if isinstance(written, str) else annotation

    parameters = [each.replace(annotation=bare(each.annotation)) for name, each in found.parameters.items() if name != "self"]
    for i, each in enumerate(parameters):
        if isinstance(each.default, frozenset):
            parameters[i] = each.replace(default=Bare(f"frozenset({sorted(each.default)})"))
        elif inspect.isclass(each.default) and each.default is not each.empty:
            parameters[i] = each.replace(default=Bare(each.default.__name__))
    return str(found.replace(parameters=parameters, return_annotation=bare(found.return_annotation)))


def entry(thing: Any, name: str, depth: int) -> list[str]:
    """Heading, signature and docstring of one public thing, and of its own public methods."""
    lines = [f"{'#' * depth} `{name}`", ""]
    is_error = inspect.isclass(thing) and issubclass(thing, Exception)
    if callable(thing) and not is_error:
        lines += ["```python", f"{name.rpartition('.')[2]}{signature(thing)}", "```", ""]
    lines += [inspect.getdoc(thing) or "", ""]
    if inspect.isclass(thing) and not is_error:
        own = [c for c in thing.__mro__ if c.__module__.startswith("ziggurat.")]
        for member, value in {name: value for c in reversed(own) for name, value in vars(c).items()}.items():
            if isinstance(value, Fact):
                lines.append(f"- `{member}`: {value.__doc__}")
            target = value.fget if isinstance(value, property) else value
            if not member.startswith("_") and callable(target) and inspect.getdoc(target):
                lines += entry(target, f"{name}.{member}", depth + 1)
    return lines


def api_page() -> str:
    """Every public name with its docstring."""
    lines = ["# API", "", "Made from docstrings by `make docs`.", ""]
    for title, things in SECTIONS:
        lines += [f"## {title}", ""]
        for thing in things:
            lines += entry(thing, thing.__name__, 3)
    return "\n".join(lines).rstrip() + "\n"


def models_page() -> str:
    """Every architecture with what was measured of it."""
    lines = ["# Architectures", "", "Measured on the meta device at each architecture's own input size; made from the "
             "catalog by `make docs`.", ""]
    by_module: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, facts in catalog().items():
        by_module.setdefault(facts["module"], []).append((name, facts))
    for module, rows in by_module.items():
        lines += [f"## {module}", "", "| name | parameters, M | GMACs | input | embedding | strides | channels |",
                  "|---|--:|--:|--:|--:|---|---|"]
        for name, facts in rows:
            strides = [level["reduction"] for level in facts["levels"]]
            channels = [level["channels"] for level in facts["levels"]]
            if len(set(strides)) == 1:
                strides, channels = strides[:1], [f"{channels[0]} ({len(channels)} levels)"]
            lines.append(f"| {name} | {facts['params'] / 1e6:.1f} | {facts['macs'] / 1e9:.2f} | "
                         f"{facts['input_size'][-1]} | {facts['embedding']} | {' '.join(map(str, strides))} | "
                         f"{' '.join(map(str, channels))} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, report what is stale")
    check = parser.parse_args().check
    stale = []
    for name, text in (("api.md", api_page()), ("models.md", models_page())):
        path = DOCS / name
        if check and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            stale.append(name)
        elif not check:
            path.write_text(text, encoding="utf-8")
            print(path.name, f"{len(text.splitlines())} lines")
    if stale:
        print(f"stale: {', '.join(stale)}; run make docs")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
