from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from ..errors import BadArgument
from .common import AsJson, print_json, strides_of, table

SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}

Many = list[str] | None
Amount = str | None
Size = int | None


def run(
    patterns: Annotated[Many, typer.Argument(
        metavar="[PATTERNS]", help="Glob patterns, quoted ('*resnet*'): names that match any of them. All names without one.")] = None,
    exclude: Annotated[Many, typer.Option("--exclude", metavar="PATTERN", help="Leave out names that match; may be repeated.")] = None,
    module: Annotated[Many, typer.Option(
        "--module", metavar="NAME", help="Only architectures of this model file (resnet, regnet, ...); may be repeated.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only what has published weights, a line for each tag.")] = False,
    license: Annotated[Many, typer.Option(
        "--license", metavar="ID", help="Weights under this licence (apache-2.0, mit, ...); may be repeated. What is not "
                                        "stated is left out.")] = None,
    dataset: Annotated[Many, typer.Option(
        "--dataset", metavar="NAME", help="Weights that saw this data set in training (imagenet-21k, laion-2b, ...); may "
                                          "be repeated.")] = None,
    stride: Annotated[str | None, typer.Option("--stride", metavar="S,S,...", help="Levels of all these strides are there: 4, or 4,8,16,32.")] = None,
    output_stride: Annotated[Size, typer.Option(
        "--output-stride", metavar="S", help="The network can be made to end at this stride; --max-macs is then what that costs.")] = None,
    how: Annotated[str | None, typer.Option(
        "--how", metavar="WAY", help="The way in which it does: native (it is no coarser), dilated or stitched.")] = None,
    native_size_only: Annotated[bool | None, typer.Option(
        "--native-size-only/--any-size", help="Only what resizes images to its own size, or all but that.")] = None,
    min_params: Annotated[Amount, typer.Option("--min-params", metavar="N", help="Parameters at least: 5M.")] = None,
    max_params: Annotated[Amount, typer.Option("--max-params", metavar="N", help="Parameters at most: 30M.")] = None,
    max_macs: Annotated[Amount, typer.Option("--max-macs", metavar="N", help="Multiply-adds an image at most: 4.5G.")] = None,
    max_activations: Annotated[Amount, typer.Option("--max-activations", metavar="N", help="Activations an image at most: 20M.")] = None,
    min_embedding: Annotated[Size, typer.Option("--min-embedding", metavar="N", help="Numbers in the embedding at least.")] = None,
    max_embedding: Annotated[Size, typer.Option("--max-embedding", metavar="N", help="Numbers in the embedding at most.")] = None,
    min_input_size: Annotated[Size, typer.Option("--min-input-size", metavar="PX", help="Longer side of the native image at least.")] = None,
    max_input_size: Annotated[Size, typer.Option("--max-input-size", metavar="PX", help="Longer side of the native image at most.")] = None,
    sort: Annotated[str, typer.Option(
        "--sort", metavar="KEY", help="name, params, macs, activations, embedding or input_size, smallest first; -params: largest first.")] = "name",
    as_json: AsJson = False,
) -> None:
    """Choose architectures by what is known of them: size, cost, strides, and the licence and data of their weights.

    \b
    Examples:
      ziggurat search --stride 4 --max-params 30M --license apache-2.0
      ziggurat search 'vit_*' --output-stride 8 --max-macs 50G --sort macs
      ziggurat search --dataset lvd-142m --sort=-params --json

    A fact that is not known fails every condition on it. Costs are those of one image of the architecture's own size;
    where weights are listed, their size is named under `image`. With --json: a list of what 'ziggurat info --json'
    prints, each with the weights found.

    Exit status: 0; 1 if nothing fits; 2 for a licence, data set, module, stride or order that does not exist.
    """
    from ..query import search
    from ..registry import model_info

    names = search(
        patterns or "",
        exclude_filters=exclude or "",
        module=module or "",
        pretrained=pretrained,
        license=license,
        dataset=dataset,
        stride=strides_of(stride),
        output_stride=output_stride,
        how=how,
        native_size_only=native_size_only,
        min_params=amount("--min-params", min_params),
        max_params=amount("--max-params", max_params),
        max_macs=amount("--max-macs", max_macs),
        max_activations=amount("--max-activations", max_activations),
        min_embedding=min_embedding,
        max_embedding=max_embedding,
        min_input_size=min_input_size,
        max_input_size=max_input_size,
        sort=sort,
    )
    infos = {name: model_info(name) for name in names}
    if as_json:
        print_json(list(infos.values()))
    elif names:
        of_weights = pretrained or bool(license or dataset)
        headings = ["name", "params", "MACs", "embedding", "image", "strides"]
        rows = (row(name, info, output_stride, of_weights) for name, info in infos.items())
        typer.echo(table([*headings, "licence", "data"] if of_weights else headings, rows))
    if not names:
        typer.echo("nothing fits all of that; leave out a condition", err=True)
        raise typer.Exit(1)


def row(name: str, info: Any, output_stride: int | None, of_weights: bool) -> Iterable[object]:
    """The line of one architecture, or of one of its weights."""
    macs = info.output_strides[output_stride]["macs"] if output_stride else info.macs
    weights = next(iter(info.pretrained.values())) if of_weights else None
    size = (weights or info).input_size
    yield name
    yield "-" if info.params is None else f"{info.params / 1e6:.1f} M"
    yield "-" if macs is None else f"{macs / 1e9:.2f} G"
    yield "-" if info.embedding is None else info.embedding
    yield "-" if size is None else max(size[1:])
    yield " ".join(map(str, dict.fromkeys(info.strides or ()))) or "-"
    if weights:
        yield weights.license or "-"
        yield " > ".join(weights.datasets or ()) or "-"


def amount(option: str, text: str | None) -> float | None:
    """The number that `30M`, `4.5G` or `30000000` is."""
    if text is None:
        return None
    number, scale = (text[:-1], SUFFIXES[text[-1].lower()]) if text[-1:].lower() in SUFFIXES else (text, 1.0)
    try:
        return float(number) * scale
    except ValueError as error:
        raise BadArgument(f"{option} {text}: give a number, as 30M, 4.5G or 30000000") from error
