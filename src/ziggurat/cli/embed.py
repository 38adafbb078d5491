from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UnreadableImage
from .common import (
    AsJson,
    Batch,
    Checkpoint,
    Device,
    Model,
    Number,
    Random,
    Skipped,
    Sources,
    load_model,
    print_json,
    progress,
)


def run(
    sources: Sources,
    model: Model,
    out: Annotated[Path, typer.Option(
        metavar="FILE", help="Where to: .parquet, .npz, .npy (paths beside it in .paths.json) or .csv.")],
    dtype: Annotated[Number, typer.Option(help="Numbers in the file: 16 or 32 bits.")] = Number.f32,
    checkpoint: Checkpoint = None,
    random: Random = False,
    batch: Batch = 32,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """One vector an image, the one that the classifier would read, into one file keyed by path.

    \b
    Examples:
      ziggurat embed photos/ -m tf_efficientnet_lite0.pip_in1k --out photos.parquet
      ziggurat embed 'shots/**/*.jpg' -m resnet50 --out shots.npz --dtype f16 --batch 64

    Images are read as they are needed, so their number does not matter. The file appears when it is complete. With
    --json: {out, model, images, width, dtype, errors}.

    Exit status: 0 all done; 1 some files could not be read (each is named and passed over); 2 nothing could be done.
    """
    from ..data import find_images
    from ..extraction import embed_images, open_writer

    about = {"model": model, "norm": "as the classifier reads it, behind the final norm where there is one"}
    with open_writer(out, dtype.value, about) as writer:
        backbone = load_model(model, checkpoint, random, device)
        paths = find_images(sources)
        skipped = Skipped()
        with progress(embed_images(backbone, paths, batch), len(paths), "embedding") as results:
            for path, vector in results:
                if skipped.took(vector):
                    assert not isinstance(vector, UnreadableImage)
                    writer.add(path, vector)
    if as_json:
        print_json({"out": str(out) if writer.count else None, "model": model, "images": writer.count,
                    "width": writer.width, "dtype": dtype.value, "errors": skipped.as_json()})
    elif writer.count:
        typer.echo(f"{out}: {writer.count} embeddings of {writer.width} numbers ({dtype.value})")
    else:
        typer.echo(f"no image could be read, so {out} was not written", err=True)
    skipped.finish()
