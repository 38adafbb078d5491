from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import BadArgument
from .common import AsJson, chosen_device, errors_end_with, print_json, strides_of, table

SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}

ON_SHEET = 20  # queries that a contact sheet shows
OF_IMAGES = {"k", "sheet", "no_sheet", "index", "device"}  # what belongs to the search for images, and not to that for facts
OF_BOTH = {"patterns", "as_json"}

Many = list[str] | None
Amount = str | None
Size = int | None


class Index(str, Enum):
    """How images are compared."""

    auto = "auto"
    exact = "exact"
    faiss = "faiss"


IMAGES = "Images like an image (DEST QUERY...)"


def run(
    context: typer.Context,
    patterns: Annotated[Many, typer.Argument(
        metavar="[DEST QUERY...] | [PATTERNS]",
        help="The folder of a run ('ziggurat extract --out DEST') and what to look for in it: images, folders, quoted globs, or "
             "keys of the run. Or glob patterns, quoted ('*resnet*'), of architectures; all without one.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, metavar="N", help="Images to find for each query.", rich_help_panel=IMAGES)] = 10,
    sheet: Annotated[Path, typer.Option(
        "--sheet", metavar="FILE", help="The contact sheet, a picture of queries and what was found.",
        rich_help_panel=IMAGES)] = Path("search.png"),
    no_sheet: Annotated[bool, typer.Option("--no-sheet", help="Draw none.", rich_help_panel=IMAGES)] = False,
    index: Annotated[Index, typer.Option(
        help="exact: with every image of the run; faiss: with an index, for very many queries; auto: says which.",
        rich_help_panel=IMAGES)] = Index.auto,
    device: Annotated[str, typer.Option(
        metavar="NAME", help="Where to embed the queries: cpu, cuda; auto takes a GPU if there is one.", rich_help_panel=IMAGES)] = "auto",
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
    """Find images of a run that are like an image; or choose architectures by size, cost, strides and licence.

    \b
    Images, in the features that 'ziggurat extract' wrote:
      ziggurat search photos.features cat.jpg --k 10
      ziggurat search photos.features cat.jpg 'more/*.png' --sheet found.png

    The images whose embeddings have the greatest cosine to the query's, as a table and as a contact sheet. A query is
    embedded as the run's images were; one that is a key of the run needs no model. With --json: a list of {query,
    neighbours: [{key, row, similarity}]}. Exit status: 0; 1 an error.

    \b
    Architectures, by what is known of them:
      ziggurat search --stride 4 --max-params 30M --license apache-2.0
      ziggurat search 'vit_*' --output-stride 8 --max-macs 50G --sort macs
      ziggurat search --dataset lvd-142m --sort=-params --json

    A fact that is not known fails every condition on it. Costs are those of one image of the architecture's own size;
    where weights are listed, their size is named under `image`. With --json: a list of what 'ziggurat info --json'
    prints, each with the weights found.

    Exit status: 0; 1 if nothing fits; 2 for a licence, data set, module, stride or order that does not exist.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    asked = {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}
    dest = Path(patterns[0]) if patterns else None
    if dest is not None and (dest / "_ziggurat" / "manifest.json").is_file():
        assert patterns
        with errors_end_with(1):
            if others := asked - OF_IMAGES - OF_BOTH:
                raise BadArgument(f"{options_of(others)}: for choosing architectures, but {str(dest)!r} is a run, whose images are "
                                  "searched; leave out the one or the other")
            search_run(dest, patterns[1:], k, None if no_sheet else sheet, index.value, device, as_json)
        return

    from ..query import search
    from ..registry import list_models, model_info

    if dest is not None and dest.is_dir() and (asked & OF_IMAGES or not list_models(str(dest))):
        typer.echo(f"ziggurat: {str(dest)!r} is a folder, but not of a run (it has no _ziggurat/manifest.json): give the folder "
                   "that was the --out of 'ziggurat extract'", err=True)
        raise typer.Exit(1)
    if asked & OF_IMAGES:
        raise BadArgument(f"{options_of(asked & OF_IMAGES)}: for searching the images of a run; give its folder first, as in "
                          "'ziggurat search DEST cat.jpg'")
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


def search_run(
    dest: Path, queries: list[str], k: int, sheet: Path | None, index: str, device: str, as_json: bool
) -> None:
    """The search for images: the table or the JSON of what was found, and the contact sheet."""
    if not queries:
        raise BadArgument(f"{str(dest)!r} is a run; give one or more images to look for in it, as in 'ziggurat search {dest} cat.jpg'")
    from PIL import Image

    from ..extraction import contact_sheet, search_images
    from ..extraction.neighbours import FAISS_QUERIES, chosen_index
    from ..extraction.opening import open

    Image.init()
    if sheet is not None and Image.EXTENSION.get(sheet.suffix.lower()) not in Image.SAVE:
        raise BadArgument(f"--sheet {sheet}: Pillow writes no {sheet.suffix or 'file without an ending'}; give .png or .jpg")
    run = open(dest)
    found = search_images(run, queries, k, index=index, device=chosen_device(device))
    if as_json:
        print_json([{"query": each.query, "neighbours": [near._asdict() for near in each.neighbours]} for each in found])
    else:
        lines = [[each.query, near.key, number, f"{near.similarity:.4f}"]
                 for each in found for number, near in enumerate(each.neighbours, 1)]
        typer.echo(table(["query", "image", "rank", "similarity"], lines, left=2))
    way = chosen_index(index, len(found))
    why = "as asked" if index != "auto" else f"an index of FAISS pays from {FAISS_QUERIES:,} queries at once"
    if way == "faiss":
        why += "; it may miss a neighbour, --index exact does not"
    typer.echo(f"{way}: {len(found):,} {'query' if len(found) == 1 else 'queries'} over {len(run):,} embeddings ({why})", err=True)
    if sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(run, found[:ON_SHEET]).save(sheet)
        more = f", the first {ON_SHEET} queries" if len(found) > ON_SHEET else ""
        typer.echo(f"{sheet}: the contact sheet{more}", err=True)


def options_of(names: Iterable[str]) -> str:
    """Parameters as they are written on the command line."""
    return ", ".join(sorted(f"--{name.replace('_', '-')}" for name in names))


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
