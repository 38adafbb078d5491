from __future__ import annotations

from typing import Annotated

import typer

from ..errors import BadArgument, nearest
from .common import AsJson, print_json


def run(
    patterns: Annotated[list[str] | None, typer.Argument(
        metavar="[PATTERNS]", help="Glob patterns, quoted ('*resnet*'): names that match any of them. All names without one.")] = None,
    module: Annotated[list[str] | None, typer.Option(
        "--module", metavar="NAME", help="Only architectures of this model file (resnet, regnet, ...); may be repeated.")] = None,
    pretrained: Annotated[bool, typer.Option(
        "--pretrained", help="Only what has published weights, listed as architecture.tag, the default tag among them.")] = False,
    exclude: Annotated[list[str] | None, typer.Option(
        "--exclude", metavar="PATTERN", help="Leave out names that match; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """List architectures, one name a line.

    \b
    Examples:
      ziggurat list 'resnet*' --exclude '*d'
      ziggurat list --module efficientnet --pretrained --json

    Exit status: 0; 1 if no name matches; 2 for a module that does not exist.
    """
    from ..registry import list_models, list_modules, mindcv_counterparts

    known = list_modules()
    for name in module or ():
        if name not in known:
            close = nearest(name, known)
            raise BadArgument(f"no module {name!r}: {'nearest are' if close else 'there are'} {', '.join(close or known)}")
    names = list_models(patterns or "", module=module or "", pretrained=pretrained, exclude_filters=exclude or "")
    if as_json:
        print_json(names)
    elif names:
        typer.echo("\n".join(names))
    if not names:
        renamed = ", ".join(f"{theirs} is {ours}" for theirs, ours in mindcv_counterparts(patterns or ()).items())
        typer.echo(f"no architecture matches, but MindCV's names do: {renamed}" if renamed else
                   "no architecture matches; patterns need their stars: '*resnet*' finds what has resnet in it", err=True)
        raise typer.Exit(1)
