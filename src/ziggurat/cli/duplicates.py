from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import AsJson, Device, chosen_device, errors_end_with, print_json, table


def run(
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="The folder of a run, the --out of 'ziggurat extract'.")],
    threshold: Annotated[float, typer.Option(
        metavar="COSINE", help="The least cosine of their embeddings, above 0, to 1. At 0.9, copies as JPEG of usual quality or "
                               "of half the size are found; other crops are not. What is right depends on the network.")] = 0.9,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Pairs to list, the most similar; all are counted.")] = 1000,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Near-duplicates among the images of a run: pairs whose embeddings are almost the same.

    \b
    Examples:
      ziggurat duplicates photos.features
      ziggurat duplicates photos.features --threshold 0.97 --json

    Every image is compared with every other one: twice as many images take four times as long. With --json: {images,
    threshold, total, pairs: [{similarity, key, other, row, other_row}]}.

    Exit status: 0, whether there are any or not; 1 an error.
    """
    with errors_end_with(1):
        from ..extraction import find_duplicates

        found = find_duplicates(dest, threshold, limit, device=chosen_device(device))
    if as_json:
        print_json({"images": found.images, "threshold": threshold, "total": found.total,
                    "pairs": [pair._asdict() for pair in found.pairs]})
        return
    if found.pairs:
        typer.echo(table(["image", "other", "similarity"], [[pair.key, pair.other, f"{pair.similarity:.4f}"] for pair in found.pairs], left=2))
    shown = f", the {len(found.pairs):,} most similar are listed" if found.total > len(found.pairs) else ""
    typer.echo(f"{found.total:,} pair{'' if found.total == 1 else 's'} of {threshold:g} or more among {found.images:,} images{shown}", err=True)
