from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import BadArgument
from .common import AsJson, Checkpoint, Random, load_model, print_json, strides_of

SUFFIXES = {".onnx": "onnx", ".xml": "openvino", ".mlpackage": "coreml", ".pt2": "torch"}


def run(
    model: Annotated[str, typer.Argument(
        metavar="NAME", help="Architecture, architecture.tag, hf-hub:OWNER/NAME or a saved model's folder.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write, in a folder that exists.")],
    format: Annotated[str | None, typer.Option(
        metavar="FORMAT", help="onnx (.onnx), openvino (.xml, and .bin beside it), torch (.pt2), aoti (.pt2, compiled for this "
                               "machine) or coreml (.mlpackage). Without it, what PATH ends in says so; .pt2 is torch.")] = None,
    view: Annotated[str | None, typer.Option(
        metavar="VIEW", help="classify, embed, pyramid or tokens. Without it, what the model itself gives.")] = None,
    strides: Annotated[str | None, typer.Option(metavar="S,S,...", help="Of a pyramid, only these strides, as in 4,8.")] = None,
    size: Annotated[str | None, typer.Option(
        metavar="PIXELS", help="224, or 224x320 (height x width). Without it, the model's own.")] = None,
    static: Annotated[bool, typer.Option(
        "--static", help="Images of --size alone, --batch at a time; otherwise batch, height and width are free.")] = False,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Images at a time with --static.")] = 1,
    pixels: Annotated[bool, typer.Option("--pixels", help="Images are bytes of 0 to 255: the file normalises them.")] = False,
    class_names: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Names of the classes, a line each, for the file's metadata.")] = None,
    tolerance: Annotated[float, typer.Option(
        metavar="X", help="How far outputs may be from the model's, as a part of their largest value.")] = 1e-4,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not run the file: for formats whose runtime is elsewhere.")] = False,
    checkpoint: Checkpoint = None,
    classes: Annotated[int | None, typer.Option(
        min=1, metavar="N", help="Classes of the checkpoint, where they are not those of the published weights.")] = None,
    random: Random = False,
    as_json: AsJson = False,
) -> None:
    """A model as a file for other runtimes, compared with the model in the runtime of its format.

    \b
    Examples:
      ziggurat export tf_efficientnet_lite0.pip_in1k lite0.onnx
      ziggurat export resnet50 resnet50.xml --view pyramid --strides 8,16,32 --pixels
      ziggurat export my-model/ model.pt2 --format aoti --static --batch 8

    The input is called images; outputs are scores, embedding, stride_4 and so on. Mean and standard deviation, size, crop and
    class names are in the file's metadata. An older file stays as it is unless the new one gives the model's numbers.
    With --json: {path, format, view, names, shape, dynamic, min_size, side_step, error}.

    Exit status: 0 written; 2 not, and why is said.
    """
    sides = size_of(size)
    chosen = format or SUFFIXES.get(path.suffix)
    if chosen is None:
        raise BadArgument(f"PATH {path} ends in none of {', '.join(SUFFIXES)}: give another, or --format")
    wanted = strides_of(strides)
    names = None if class_names is None else lines_of(class_names)
    from ..exporting.export import export, place

    place(path, chosen, not no_check)  # a wrong path is told before weights are fetched
    backbone = load_model(model, checkpoint, random, "cpu", classes, has_head=view in (None, "classify", "forward"))
    made = export(backbone, path, chosen, not static, view=view, strides=wanted, size=sides, batch=batch, pixels=pixels,
                  class_names=names, tolerance=tolerance, check=not no_check)
    shape = ["any" if axis in made.dynamic else str(side)
             for axis, side in zip(("batch", "channels", "height", "width"), made.shape)]
    if as_json:
        print_json({**vars(made), "path": str(made.path)})
        return
    checked = "not checked" if made.error is None else f"within {made.error:.1e} of the model"
    least = f" of {made.min_size} pixels and more" if "height" in made.dynamic else ""
    step = f", multiples of {made.side_step}" if made.side_step > 1 and least else ""
    typer.echo(f"{made.path}: {made.format}, images {' x '.join(shape)}{least}{step}, gives {', '.join(made.names)}; {checked}")


def size_of(text: str | None) -> tuple[int, int] | None:
    """The value of --size, '224' or '224x320'."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise BadArgument(f"--size {text}: give pixels, as in 224, or 224x320 (height x width)")
    return int(sides[0]), int(sides[-1])


def lines_of(path: Path) -> list[str]:
    """The names in a text file, a line each."""
    if not path.is_file():
        raise BadArgument(f"--class-names {path}: there is no such file")
    return path.read_text(encoding="utf-8").splitlines()
