"""What commands share: options that mean the same everywhere, the model asked for, progress, and the bad files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BadArgument, SourceUnavailable, UnreadableImage, ZigguratError

if TYPE_CHECKING:
    from ..backbone import Backbone

Model = Annotated[str, typer.Option(
    "--model", "-m", metavar="NAME",
    help="Architecture, or architecture.tag for particular weights ('ziggurat list --pretrained' lists them); "
         "hf-hub:OWNER/NAME or local-dir:PATH (or the path of a saved model's folder) for others.")]
Sources = Annotated[list[str], typer.Argument(
    metavar="SOURCES", help="Images, folders (searched with all below them) and quoted glob patterns ('shots/**/*.png').")]
Checkpoint = Annotated[Path | None, typer.Option(
    metavar="FILE", help="Weights of your own instead: .safetensors, .pth, .npz or MindSpore's .ckpt, plain tensors only.")]
Random = Annotated[bool, typer.Option("--random", help="Take random weights: for trying things out, features mean nothing.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="Where to compute: cpu, cuda, cuda:1, mps; auto takes a GPU if there is one.")]
Batch = Annotated[int, typer.Option(min=1, metavar="N", help="Images computed at once.")]
Workers = Annotated[int | None, typer.Option(
    min=0, metavar="N", help="Decoding processes: as many as cores. 0: decode in this one.")]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="How long one image may take to decode.")]
Retries = Annotated[int, typer.Option(min=0, metavar="N", help="How often a read that failed is tried again.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]


class Number(str, Enum):
    """The numbers of a file, of 16 or of 32 bits."""

    f16 = "f16"
    f32 = "f32"


def load_model(
    name: str,
    checkpoint: Path | None,
    random: bool,
    device: str,
    num_classes: int | None = None,
    has_head: bool = False,
    **arguments: Any,
) -> Backbone:
    """The model asked for, in evaluation mode on its device; refused where it would have no weights unasked.

    Without `has_head` the classifier is left out, so that a checkpoint of any classes fits. `num_classes` are those of
    the checkpoint. Further `arguments` go to `create_model`.
    """
    if checkpoint is not None and random:
        raise BadArgument("--checkpoint and --random exclude each other: give one of the two")
    if num_classes is not None and checkpoint is None:
        raise BadArgument("--classes says how many classes a checkpoint has: give it together with --checkpoint")
    from ..factory import create_model

    name = known_model(name, checkpoint, random)
    options: dict[str, Any] = {} if has_head else {"num_classes": 0}
    if num_classes is not None:
        options = {"pretrained_cfg_overlay": {"num_classes": num_classes, "label_offset": None}}
    model = create_model(name, pretrained=not random and checkpoint is None, checkpoint_path=checkpoint, **options, **arguments)
    return model.eval().to(chosen_device(device))


def known_model(name: str, checkpoint: Path | None, random: bool) -> str:
    """A model's name, a folder's path as 'local-dir:PATH'; refused where it would have no weights unasked."""
    from .. import registry
    from ..factory import parse_model_name

    if (Path(name) / "config.json").is_file():
        name = f"local-dir:{name}"
    source, _ = parse_model_name(name)
    if source is None:
        info = registry.model_info(name)  # a wrong name or tag is told before torch has to do anything
        if checkpoint is None and not random and not info.pretrained:
            raise SourceUnavailable(f"{name} has no published weights; give --checkpoint FILE, or --random if random weights "
                                    "will do")
    return name


@contextmanager
def errors_end_with(status: int) -> Iterator[None]:
    """An error that is the user's to mend ends the command with its sentence and this exit status."""
    try:
        yield
    except ZigguratError as error:
        typer.echo(f"ziggurat: {error}", err=True)
        raise typer.Exit(status) from error


def chosen_device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # builds without CUDA answer with an assertion
        cause = str(error).partition("\n")[0].rstrip(".")
        raise BadArgument(f"--device {name}: it cannot be used here ({cause}); give cpu, cuda, mps or auto") from error


class Skipped:
    """The files that could not be read: each is named at once, all are counted at the end."""

    def __init__(self) -> None:
        self.errors: list[UnreadableImage] = []
        self.seen = 0

    def took(self, result: Any) -> bool:
        """Whether a result is one; an error in its place is told on stderr."""
        self.seen += 1
        if not isinstance(result, UnreadableImage):
            return True
        self.errors.append(result)
        typer.echo(f"skipped: {result}", err=True)
        return False

    def as_json(self) -> list[dict[str, str]]:
        """The files and what is wrong with each."""
        return [{"path": str(error.path), "error": str(error.cause)} for error in self.errors]

    def finish(self) -> None:
        """Ends the command, with status 1 if a file was skipped."""
        if self.errors:
            typer.echo(f"{len(self.errors)} of {self.seen} files could not be read", err=True)
            raise typer.Exit(1)


@contextmanager
def progress(
    found: Iterable[tuple[Path, Any]], total: int, doing: str, prints: bool = False
) -> Iterator[Iterable[tuple[Path, Any]]]:
    """`found` as it is, with a bar on stderr while it lasts, if that is a terminal.

    No bar for a single image, nor where the results themselves run down the terminal (`prints`).
    """
    if not sys.stderr.isatty() or total < 2 or (prints and sys.stdout.isatty()):
        yield found
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        yield bar.track(found, total=total, description=doing)


def table(headings: list[str], rows: Iterable[Iterable[object]], left: int = 1) -> str:
    """Rows under their headings, columns aligned: the first `left` of them to the left, numbers to the right."""
    cells = [headings, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in cells
    )


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def strides_of(text: str | None) -> tuple[int, ...] | None:
    """The value of --strides, '8,16'."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise BadArgument(f"--strides {text}: give whole numbers with commas between them, as in 8,16") from error
