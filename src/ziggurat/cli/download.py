from __future__ import annotations

from typing import Annotated

import typer

from ..errors import BadArgument
from ..weights.pretrained import PretrainedCfg
from .common import AsJson, print_json


def run(
    names: Annotated[list[str], typer.Argument(
        metavar="NAMES", help="Architectures (their default weights), or architecture.tag; hf-hub:OWNER/NAME for others.")],
    as_json: AsJson = False,
) -> None:
    """Fetch published weights now, so that they are there without a network later.

    \b
    Example:
      ziggurat download resnet50 vit_base_patch16_224.augreg_in21k

    They go where their client keeps its files (the Hugging Face Hub's cache, or torch's), and what is there already is
    not fetched again. Prints where each lies; with --json: a list of {name, file}.

    Exit status: 0; 2 at the first that does not exist or cannot be fetched.
    """
    from ..weights.loading import fetch_file

    rows = []
    for name, cfg in [(name, published(name)) for name in names]:  # all names are checked before the first download
        file = fetch_file(cfg)
        rows.append({"name": name, "file": str(file)})
        if not as_json:
            typer.echo(f"{name}  {file}")
    if as_json:
        print_json(rows)


def published(name: str) -> PretrainedCfg:
    """The configuration of the weights that a name stands for."""
    from ..factory import parse_model_name
    from ..registry import get_pretrained_cfg, model_info
    from ..weights.hub import load_config_from_hub

    source, rest = parse_model_name(name)
    if source == "hf-hub":
        return load_config_from_hub(rest).pretrained_cfg
    if source is not None:
        raise BadArgument(f"{name} lies on this machine already; give the name of an architecture or hf-hub:OWNER/NAME")
    model_info(rest)
    return get_pretrained_cfg(rest) or PretrainedCfg(architecture=rest)
