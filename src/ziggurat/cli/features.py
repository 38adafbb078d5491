from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import BadArgument
from .common import (
    AsJson,
    Batch,
    Checkpoint,
    Device,
    Model,
    Random,
    Skipped,
    Sources,
    load_model,
    print_json,
    progress,
    strides_of,
    table,
)


def run(
    sources: Sources,
    model: Model,
    strides: Annotated[str | None, typer.Option(
        metavar="S,S,...", help="Only these strides, as in 8,16: how many input pixels lie between two positions.")] = None,
    output_stride: Annotated[int | None, typer.Option(
        metavar="S", help="No level coarser than this: 8 or 16, say. ziggurat info NAME shows how that is reached and what "
                          "it costs.")] = None,
    pyramid: Annotated[bool, typer.Option(
        "--pyramid", help="Where a network has one stride alone (a plain ViT): its last level, interpolated to --strides "
                          "(4,8,16,32).")] = False,
    norm: Annotated[bool, typer.Option(
        "--norm", help="Levels behind the network's final norm, where it fits: all of a plain ViT, else the last; the "
                       "table says which.")] = False,
    out: Annotated[Path | None, typer.Option(
        metavar="DIR", help="Write each image's levels there as PATH.safetensors, tensors stride4, stride8, ... (C H W).")] = None,
    checkpoint: Checkpoint = None,
    random: Random = False,
    batch: Batch = 32,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """The feature pyramid of images: its table, and with --out the maps themselves.

    \b
    Examples:
      ziggurat features cat.jpg -m tf_efficientnet_lite0.pip_in1k
      ziggurat features photos/ -m resnet50 --strides 8,16 --out pyramids/
      ziggurat features photos/ -m vit_small_patch16_224 --pyramid --norm --out pyramids/
      ziggurat features photos/ -m vit_small_patch16_224 --output-stride 4 --out dense/

    A stride that several levels share is given by the deepest of them. With --out folders are kept below the one that
    all images share; the metadata of a file hold path, model, and in norm which tensors are behind the final norm.
    With --json: {model, levels: [{level, stride, channels, height, width, norm}], images, errors}.

    Exit status: 0 all done; 1 some files could not be read (each is named and passed over); 2 nothing could be done.
    """
    from safetensors.torch import save_file

    from ..backbone.plan import take_strides
    from ..data import find_images
    from ..extraction import extract_images

    chosen = strides_of(strides)
    backbone = load_model(model, checkpoint, random, device, output_stride=output_stride)
    if backbone.out_indices is None:
        reductions = backbone.feature_info.reduction()
        if pyramid:
            backbone.keep_levels(1, norm)
            backbone.add_pyramid("interpolate", chosen or (4, 8, 16, 32))
        else:
            backbone.keep_levels(take_strides(reductions, chosen or list(dict.fromkeys(reductions))), norm)
    elif pyramid or norm:
        raise BadArgument(f"--pyramid and --norm make levels of a whole network; {model} was saved with levels of strides "
                          f"{backbone.feature_info.reduction()}: leave them out")
    info = backbone.feature_info
    if chosen is None:
        chosen = tuple(dict.fromkeys(info.reduction()))
    given = {s: info.out_indices[i] for s, i in zip(chosen, take_strides(info.reduction(), chosen))}
    normed = {s: info[i]["norm"] for s, i in given.items()}
    if backbone.pyramid_neck is not None:
        (base,) = backbone.out_indices or ()
        given = dict.fromkeys(given, base)
    paths = find_images(sources)
    places = dict(zip(paths, destinations(paths, out))) if out else {}
    skipped = Skipped()
    levels: list[dict[str, Any]] = []
    images: list[dict[str, str]] = []
    count = 0
    notes = json.dumps({f"stride{s}": is_normed for s, is_normed in normed.items()})
    found = extract_images(backbone, paths, ("pyramid",), strides=chosen, batch_size=batch)
    with progress(found, len(paths), "extracting") as results:
        for path, views in results:
            if not skipped.took(views):
                continue
            assert isinstance(views, dict)
            maps = views["pyramid"]
            count += 1
            if not levels:  # all images are brought to one size, so all have these
                levels = [dict(level=given[s], stride=s, channels=m.shape[0], height=m.shape[1], width=m.shape[2],
                               norm=normed[s]) for s, m in maps.items()]
            if out:
                places[path].parent.mkdir(parents=True, exist_ok=True)
                save_file({f"stride{s}": m.contiguous() for s, m in maps.items()}, places[path],
                          metadata={"path": os.fspath(path), "model": model, "norm": notes})
            if as_json:
                images.append({"path": str(path)} | ({"file": str(places[path])} if out else {}))
    if as_json:
        print_json({"model": model, "levels": levels, "images": images, "errors": skipped.as_json()})
    elif levels:
        rows = [[v["level"], v["stride"], v["channels"], f"{v['height']} x {v['width']}"] for v in levels]
        headings = ["level", "stride", "channels", "H x W"]
        if norm or any(normed.values()):
            headings.append("norm")
            rows = [[*row, "yes" if v["norm"] else "no"] for row, v in zip(rows, levels)]
        typer.echo(table(headings, rows, left=0))
        if out:
            typer.echo(f"{out}: {count} files")
    skipped.finish()


def destinations(paths: Sequence[Path], out: Path) -> list[Path]:
    """For each image a file of its own under `out`, its folders kept below the one that all images share."""
    if out.exists() and not out.is_dir():
        raise BadArgument(f"--out {out} is a file: give a folder")
    full = [Path(os.path.abspath(path)) for path in paths]
    shared = os.path.commonpath([path.parent for path in full]) if full else ""
    return [out / path.relative_to(shared).with_name(f"{path.name}.safetensors") for path in full]
