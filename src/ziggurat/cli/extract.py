from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import BadArgument
from .common import (
    AsJson,
    Checkpoint,
    Device,
    Model,
    Number,
    Random,
    Retries,
    Timeout,
    Workers,
    errors_end_with,
    strides_of,
)


class Decode(str, Enum):
    """How JPEG files become pixels."""

    exact = "exact"
    reference = "reference"
    fast = "fast"


class Exif(str, Enum):
    """What is done with the orientation that a camera wrote down."""

    ignore = "ignore"
    apply = "apply"


class Backend(str, Enum):
    """What computes the forward pass."""

    auto = "auto"
    torch = "torch"
    compile = "compile"
    openvino = "openvino"


class Precision(str, Enum):
    """The numbers of the forward pass."""

    fp32 = "fp32"
    bf16 = "bf16"


class Engine(str, Enum):
    """What hands out the units of work."""

    auto = "auto"
    local = "local"
    rank = "rank"
    ray = "ray"


def run(
    sources: Annotated[list[str], typer.Argument(
        metavar="SOURCE", help="A folder (with all below it), a quoted glob, a list file (.txt), tar or WebDataset shards "
                               "('shard-{000..127}.tar'), Parquet with an image or a path column, or an address of these "
                               "(s3://, gs://, https://, ...).")],
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DEST", help="The folder of the run; the same command goes on with what is there.")],
    embed: Annotated[bool, typer.Option("--embed", help="One vector an image, that the classifier would read. Taken if nothing is named.")] = False,
    strides: Annotated[str | None, typer.Option(metavar="S,S,...", help="Levels of the pyramid: 8,16.")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="The tokens of a vision transformer: cls, registers, patches.")] = False,
    logits: Annotated[bool, typer.Option("--logits", help="Class scores, before the softmax.")] = False,
    taps: Annotated[str | None, typer.Option(metavar="NAME,NAME,...", help="What submodules put out, pooled to a vector: blocks.7.")] = None,
    dtype: Annotated[Number, typer.Option(help="Numbers in the files. An image whose values float16 cannot hold is a failure.")] = Number.f16,
    format: Annotated[str, typer.Option(
        metavar="NAME,...", help="Of vectors: parquet, npy or lance; of pyramids and tokens: safetensors or zarr.")] = "parquet,safetensors",
    size: Annotated[int | None, typer.Option(min=1, metavar="PX", help="Side of the network's input. The weights' own if not given.")] = None,
    decode: Annotated[Decode, typer.Option(
        help="exact: fast and within two grey levels of Pillow; reference: Pillow itself; fast: JPEG decoded at a smaller scale.")] = Decode.exact,
    exif: Annotated[Exif, typer.Option(help="The orientation in a photo's EXIF: ignored, as in training, or applied.")] = Exif.ignore,
    column: Annotated[str | None, typer.Option(metavar="NAME", help="The column of Parquet files that has the images or their paths.")] = None,
    checkpoint: Checkpoint = None,
    random: Random = False,
    classes: Annotated[int | None, typer.Option(min=1, metavar="N", help="How many classes the checkpoint has (with --checkpoint).")] = None,
    backend: Annotated[Backend, typer.Option(help="What computes; auto takes the fastest that is installed and says which.")] = Backend.auto,
    precision: Annotated[Precision, typer.Option(help="Numbers of the forward pass; bf16 is faster and less exact.")] = Precision.fp32,
    device: Device = "auto",
    batch: Annotated[int | None, typer.Option(min=1, metavar="N", help="Images computed at once: 32, or the run's.")] = None,
    unit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Images in a file. Chosen by their number and size if not given.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads of the forward pass. All cores, or the run's.")] = None,
    workers: Workers = None,
    timeout: Timeout = 60.0,
    retries: Retries = 3,
    engine: Annotated[Engine, typer.Option(
        help="local: this process; rank: this process's share, under torchrun or SLURM; ray: a Ray cluster. auto: rank if "
             "started so, else local.")] = Engine.auto,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away the run that is in DEST and start over.")] = False,
    extend: Annotated[bool, typer.Option("--extend", help="Add inputs that are new since the run was planned.")] = False,
    max_error_rate: Annotated[float | None, typer.Option(
        metavar="RATE", help="Stop when a greater share of the images has failed (of 100 at least, or of all). If not given: "
                             "half of 1,000.")] = None,
    check: Annotated[bool, typer.Option("--verify/--no-verify", help="Read everything back at the end, and write _SUCCESS.")] = True,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Freeze the plan and stop: before many processes start on it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and how much room it takes; write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Features of very many images, onto the disk: killed at any moment, the same command goes on.

    \b
    Examples:
      ziggurat extract photos/ -m tf_efficientnet_lite0.pip_in1k --out photos.features
      ziggurat extract 'shard-{000..127}.tar' -m resnet50 --out maps --strides 8,16 --embed
      ziggurat extract s3://bucket/images -m vit_base_patch16_224 --out tokens --tokens --engine ray
      torchrun --nproc-per-node 8 -m ziggurat extract photos/ -m resnet50 --out vectors

    Several outputs come from one forward pass. The plan, the model's hash and all that decides the numbers are frozen in
    DEST first; a unit of images is on the disk wholly or not at all. An image that cannot be read, decoded or computed is
    a line of DEST/failures.parquet. Read the results with ziggurat.open(DEST), pandas or anything that reads Parquet; see
    'ziggurat status', 'retry', 'verify', 'search' and 'duplicates'. With --json: an object a line on stdout.

    Exit status: 0 complete; 3 complete, some images failed; 4 to be gone on with; 1 an error.
    """
    with errors_end_with(1):
        if checkpoint is not None and random:
            raise BadArgument("--checkpoint and --random exclude each other: give one of the two")
        if classes is not None and checkpoint is None:
            raise BadArgument("--classes says how many classes a checkpoint has: give it together with --checkpoint")
        wanted = strides_of(strides) or ()
        from ..extraction import extract
        from ..extraction.progress import reporter_for
        from .common import known_model

        with reporter_for(as_json) as reporter:
            summary = extract(
                sources if len(sources) > 1 else sources[0], known_model(model, checkpoint, random), out,
                embed=embed, strides=wanted, tokens=tokens, logits=logits, taps=() if taps is None else tuple(tap.strip() for tap in taps.split(",")),
                dtype=dtype.value, format=format, size=size, decode=decode.value, exif=exif.value, column=column,
                checkpoint=checkpoint, random=random, classes=classes, backend=backend.value, precision=precision.value,
                device=device, batch_size=batch, unit_size=unit, threads=threads, workers=workers, timeout=timeout,
                retries=retries, engine=engine.value, fresh=fresh, extend=extend, max_error_rate=max_error_rate, check=check,
                plan_only=plan_only, dry_run=dry_run, on_event=reporter,
            )
    raise typer.Exit(0 if dry_run or plan_only else summary.exit_code)
