"""The command `ziggurat`: a file a command, each of them thin over a public function of the library.

`list`, `search` and `info` answer without torch: what needs it is imported inside the commands.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import ZigguratError
from . import (
    bench,
    classify,
    convert,
    download,
    duplicates,
    embed,
    export,
    extract,
    features,
    info,
    list,
    retry,
    search,
    show,
    status,
    verify,
)

__all__ = ["app", "main"]

FAILED = 2  # exit status: nothing could be done as asked


class Sentences(TyperGroup):
    """Prints an error that is the user's to mend, and a warning, as its sentence; a traceback is for defects of ours."""

    def invoke(self, ctx: Any) -> Any:  # a Context of click, which newer typers bring inside themselves
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _say
                return super().invoke(ctx)
        except ZigguratError as error:
            typer.echo(f"ziggurat: {error}", err=True)
            raise typer.Exit(FAILED) from error


def _say(message: Warning | str, *where: object, **more: object) -> None:
    typer.echo(f"ziggurat: {message}", err=True)


app = typer.Typer(
    cls=Sentences,
    name="ziggurat",
    help="Vision backbones as feature extractors: class scores, embeddings and feature pyramids of your images.",
    epilog="'ziggurat COMMAND --help' explains a command. Exit status: 0 all done; 1 some files could not be read "
           "(they were named and passed over); 2 nothing could be done as asked. Commands on a run (extract, status, retry, "
           "verify, duplicates) say theirs.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for command in (list, search, info, classify, embed, features, show, extract, status, retry, verify, duplicates, download, convert,
                export, bench):
    app.command(command.__name__.rpartition(".")[2], cls=getattr(command, "Command", None))(command.run)


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        typer.echo(f"ziggurat {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version and leave."),
) -> None:
    pass


def main() -> None:
    """The entry point of the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without × still gets its table
    app()
