from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import AsJson, print_json


def run(
    source: Annotated[Path, typer.Argument(
        metavar="SOURCE", help="A checkpoint: MindSpore's .ckpt, PyTorch's .pth, .pt, .bin or .ckpt, .npz or .safetensors. What "
                               "it is, is read from its content.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write, NAME.safetensors.")],
    ema: Annotated[bool | None, typer.Option(
        "--ema/--no-ema", help="Of a training checkpoint, take the averaged weights (an error if it has none), or the last "
                               "ones. Without either: PyTorch's averaged, if it has them, and MindSpore's "
                               "last.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Rewrite a checkpoint of another framework or format as safetensors.

    \b
    Examples:
      ziggurat convert resnet50-224.ckpt resnet50.safetensors
      ziggurat convert run/last.ckpt run/averaged.safetensors --ema --force

    Nothing in the file is run or trusted. Kept are the network's tensors, in their type; what an optimizer left beside
    them is not. MindSpore's normalisations come under PyTorch's names (gamma: weight, moving_mean: running_mean);
    other names stay. With --json: {out, tensors, bytes}.

    Exit status: 0; 2 if the file cannot be read, holds no plain tensors, or OUT cannot be written.
    """
    from ..weights.converting import convert_checkpoint

    written = convert_checkpoint(source, out, ema, overwrite=force)
    if as_json:
        print_json({"out": str(out), **written._asdict()})
    else:
        typer.echo(f"{out}: {written.tensors} tensors, {written.bytes:,} bytes")
