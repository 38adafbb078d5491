"""Many images to class scores, embeddings and pyramids: in batches, in order, with bad files named and passed over.

    model = ziggurat.create_model("tf_efficientnet_lite0.pip_in1k", pretrained=True).eval()
    for path, vector in ziggurat.extraction.embed_images(model, "photos"):
        ...                                     # a vector, or the UnreadableImage that says what is wrong

Names are loaded when they are first used; importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "runner": "Score class_labels classify_images embed_images extract_images image_transform",
    "writers": "EmbeddingWriter open_writer",
    "job": "Summary extract retry status verify",
    "manifest": "Manifest",
    "unit": "Report UnitRunner",
    "failures": "CAUSES Failure STAGES",
    "neighbours": "Duplicates Found Neighbour Pair find_duplicates search_images",
    "sheet": "contact_sheet",
    "picture": "draw_pyramid heat_rgb pca_rgb pyramid_picture",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in _HOMES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_HOMES})
