"""A contact sheet: each query, and beside it the images that were found for it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from ..data.image import open_image, to_rgb
from ..errors import UnreadableImage
from .neighbours import Found, items_of
from .picture import FAINT, GAP, INK, MARGIN, PAPER
from .sources import Item, ReadFailure, read_bytes

if TYPE_CHECKING:
    from .opening import Run

__all__ = ["contact_sheet", "thumbnail"]

TILE = 160  # pixels
LABEL = 40  # pixels, for two lines below a tile
STEP = TILE + GAP
COLUMNS = 5  # images found side by side
MISSING = (214, 212, 208)

def contact_sheet(run: Run, found: Sequence[Found]) -> Image.Image:
    """The picture of what `search_images` found: a band a query, the query at its left, the most similar first.

    The images are read from where they were when the run was made. What cannot be read or decoded any more is a grey tile
    with its key.
    """
    places = items_of(run, [neighbour.row for each in found for neighbour in each.neighbours])
    rows = [max(1, math.ceil(len(each.neighbours) / COLUMNS)) for each in found]
    columns = 1 + max((min(COLUMNS, len(each.neighbours)) for each in found), default=0)
    page = Image.new("RGB", (2 * MARGIN + columns * STEP, 2 * MARGIN + sum(rows) * (STEP + LABEL) - GAP), PAPER)
    top = MARGIN
    for each, count in zip(found, rows):
        _draw(page, MARGIN, top, each.image, each.query, "query")
        for index, neighbour in enumerate(each.neighbours):
            line, column = divmod(index, COLUMNS)
            _draw(page, MARGIN + GAP + (1 + column) * STEP, top + line * (STEP + LABEL),
                  places[neighbour.row], neighbour.key, f"{index + 1}   {neighbour.similarity:.4f}")
        top += count * (STEP + LABEL)
    return page


def thumbnail(place: Item | None) -> Image.Image | None:
    """An image in the size of a tile; None where there is none, or none any more."""
    if place is None:
        return None
    try:
        image = to_rgb(open_image(io.BytesIO(read_bytes(place))))
    except (ReadFailure, UnreadableImage):
        return None
    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _draw(page: Image.Image, left: int, top: int, place: Item | None, name: str, words: str) -> None:
    """One image, and below it what is said of it and its name."""
    draw = ImageDraw.Draw(page)
    normal, small = ImageFont.load_default(14), ImageFont.load_default(12)
    image = thumbnail(place)
    if image is None:
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), MISSING)
        draw.text((left + TILE // 2, top + TILE // 2), _fitted(name, small, TILE - 8), INK, small, anchor="mm")
    else:
        page.paste(image, (left + (TILE - image.width) // 2, top + (TILE - image.height) // 2))
    draw.text((left, top + TILE + 3), words, INK, normal)
    draw.text((left, top + TILE + 21), _fitted(name, small, TILE), FAINT, small)


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """A text, or as much of its end as there is room for: names differ at the end."""
    if font.getlength(text) <= width:
        return text
    kept = text
    while kept and font.getlength(f"...{kept}") > width:
        kept = kept[1:]
    return f"...{kept}"
