from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import BadArgument
from .common import AsJson, Checkpoint, Device, Model, Random, Skipped, load_model, print_json, strides_of


def run(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The image to look at.")],
    model: Model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The picture: .png, .jpg or another ending that Pillow writes.")] = Path("pyramid.png"),
    strides: Annotated[str | None, typer.Option(
        metavar="S,S,...", help="Only these strides, the deepest level of each; all levels without it.")] = None,
    checkpoint: Checkpoint = None,
    random: Random = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """A picture of the pyramid: the input as the model sees it, then every level.

    Each level comes as colours of its first three principal components (like features, like colours) and, below, as a
    heat map of the length of the feature vector.

    \b
    Example:
      ziggurat show cat.jpg -m tf_efficientnet_lite0.pip_in1k --out pyramid.png

    With --json: {out, width, height}. Exit status: 0; 1 if the image could not be read; 2 if nothing could be done.
    """
    from PIL import Image

    from ..data import open_image
    from ..errors import UnreadableImage
    from ..extraction import draw_pyramid

    Image.init()
    if Image.EXTENSION.get(out.suffix.lower()) not in Image.SAVE:
        raise BadArgument(f"--out {out}: Pillow writes no {out.suffix or 'file without an ending'}; give .png or .jpg")
    chosen = strides_of(strides)
    skipped = Skipped()
    try:
        photo = open_image(image)
    except UnreadableImage as error:
        skipped.took(error)
        skipped.finish()
    backbone = load_model(model, checkpoint, random, device)
    picture = draw_pyramid(backbone, photo, chosen, title=f"{model} on {image.name}")
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    if as_json:
        print_json({"out": str(out), "width": picture.width, "height": picture.height})
    else:
        typer.echo(f"{out}: {picture.width} x {picture.height} px")
