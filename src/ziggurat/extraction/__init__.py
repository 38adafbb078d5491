"""Many images to class scores, embeddings and pyramids: in batches, in order, with bad files named and passed over.

    model = ziggurat.create_model("tf_efficientnet_lite0.pip_in1k", pretrained=True).eval()
    for path, vector in ziggurat.extraction.embed_images(model, "photos"):
        ...                                     # a vector, or the UnreadableImage that says what is wrong

Names are loaded when they are first used; importing this package does not import torch.
"""

from __future__ import annotations

from typing import Any

from ..lazy import LazyNames

_HOME = LazyNames(__name__, {
    "runner": "Score class_labels classify_images embed_images extract_images image_transform",
    "writers": "EmbeddingWriter open_writer",
    "job": "Summary extract retry status verify",
    "manifest": "Manifest",
    "unit": "Report UnitRunner",
    "failures": "CAUSES Failure STAGES",
    "neighbours": "Duplicates Found Neighbour Pair find_duplicates search_images",
    "sheet": "contact_sheet",
    "picture": "draw_pyramid heat_rgb pca_rgb pyramid_picture",
})

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    return _HOME.imported(name)


def __dir__() -> list[str]:
    return _HOME.listed()
