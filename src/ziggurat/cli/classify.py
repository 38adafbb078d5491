from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import AsJson, Batch, Checkpoint, Device, Model, Random, Skipped, Sources, load_model, progress


def run(
    sources: Sources,
    model: Model,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Classes shown for each image, the most probable first.")] = 5,
    checkpoint: Checkpoint = None,
    classes: Annotated[int | None, typer.Option(
        min=1, metavar="N", help="Classes of the checkpoint, where they are not those of the published weights.")] = None,
    random: Random = False,
    batch: Batch = 32,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """The most probable classes of images.

    \b
    Examples:
      ziggurat classify cat.jpg -m tf_efficientnet_lite0.pip_in1k
      ziggurat classify photos/ 'more/*.png' -m resnet50 --top 1 --json

    With --json: a list of {path, classes: [{index, label, name, probability}]}, or {path, error} for a bad file.

    Exit status: 0 all done; 1 some files could not be read (each is named and passed over); 2 nothing could be done.
    """
    from ..data import find_images
    from ..extraction import classify_images

    backbone = load_model(model, checkpoint, random, device, classes, has_head=True)
    paths = find_images(sources)
    skipped = Skipped()
    found = classify_images(backbone, paths, top, batch)
    with progress(found, len(paths), "classifying", prints=True) as results:
        if as_json:
            print_rows(results, skipped)
        else:
            for path, scores in results:
                if skipped.took(scores):
                    lines = (f"  {score.probability:7.2%}  {score.name}" for score in scores)
                    typer.echo("\n".join([str(path), *lines]))
    skipped.finish()


def print_rows(results: Iterable[tuple[Path, Any]], skipped: Skipped) -> None:
    """A JSON list, element by element, so that a million images need no more memory than one."""
    typer.echo("[", nl=False)
    for position, (path, scores) in enumerate(results):
        if skipped.took(scores):
            row: dict[str, Any] = {"path": str(path), "classes": [score._asdict() for score in scores]}
        else:
            row = skipped.as_json()[-1]
        typer.echo(f"{',' if position else ''}\n  {json.dumps(row, ensure_ascii=False)}", nl=False)
    typer.echo("\n]")
