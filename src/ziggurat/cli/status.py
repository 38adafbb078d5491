from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import AsJson, errors_end_with, print_json, table

Dest = Annotated[Path, typer.Argument(metavar="DEST", help="The folder of a run, the --out of 'ziggurat extract'.")]


def run(dest: Dest, as_json: AsJson = False) -> None:
    """How far a run has come, and what failed in it; another process may be at work on it.

    \b
    Examples:
      ziggurat status photos.features
      ziggurat status photos.features --json

    Exit status: 0 complete; 3 complete, some images failed; 4 to be gone on with; 1 an error.
    """
    with errors_end_with(1):
        from ..extraction import status

        found = status(dest)
    if as_json:
        print_json({**found._asdict(), "exit_code": found.exit_code})
    else:
        failed = sum(found.failures.values())
        typer.echo(f"{found.out}: {found.state}\n{found.units_done:,} of {found.units:,} units; {found.rows:,} rows and "
                   f"{failed:,} failures of {found.images:,} images")
        if found.failures:
            typer.echo(table(["stage", "cause", "images"], [[*cause.split("/"), count] for cause, count in found.failures.items()], left=2))
        if found.reason:
            typer.echo(found.reason)
    raise typer.Exit(found.exit_code)
