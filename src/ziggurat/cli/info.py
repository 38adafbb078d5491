from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from .common import AsJson, print_json, table

if TYPE_CHECKING:
    from ..facts import ModelInfo, WeightsInfo


def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Architecture, or architecture.tag to see those weights only.")],
    as_json: AsJson = False,
) -> None:
    """What an architecture is: its size, its cost, its levels, the strides it can end at, and its published weights.

    \b
    Examples:
      ziggurat info resnet50
      ziggurat info tf_efficientnet_lite0.pip_in1k --json

    'ziggurat search' finds architectures by these facts. Licences and data sets are those that the publishers of the
    weights state; data sets are in the order of training. MindCV's name of an architecture, or a former one, is answered
    with the one that it has here. With --json: all facts, by the names of `ModelInfo` and
    `WeightsInfo`, null where nothing is known.

    Exit status: 0; 2 for a name that does not exist (the nearest ones are named).
    """
    from ..registry import model_info, resolve_name

    info = model_info(resolve_name(name))
    if as_json:
        print_json(info)
    else:
        typer.echo(described(info))


def described(info: ModelInfo) -> str:
    lines = [info.name]
    if info.params is not None:
        assert info.input_size is not None and info.macs is not None and info.activations is not None
        size = " × ".join(map(str, info.input_size))
        rows = [
            ("module", f"ziggurat.models.{info.module} ({info.class_name})"),
            ("parameters", f"{info.params / 1e6:.1f} M"),
            ("cost", f"{info.macs / 1e9:.2f} GMACs, {info.activations / 1e6:.1f} M activations for an input of {size}"),
            ("embedding", f"{info.embedding} numbers"),
            ("sizes", info.size_rule),
        ]
        lines += [f"  {label:11s} {value}" for label, value in rows]
        levels = ((i, level["reduction"], level["channels"], level["module"]) for i, level in enumerate(info.levels or ()))
        lines += ["", indented(table(["level", "stride", "channels", "module"], levels, left=0))]
        ways = ((asked, way["stride"], way["how"], f"{way['macs'] / 1e9:.2f}") for asked, way in (info.output_strides or {}).items())
        lines += ["", indented(table(["output_stride", "stride", "how", "GMACs"], ways, left=0))]
    if info.exports is not None:
        views = list(next(iter(info.exports.values())))
        formats = ((format, *(exported(modes) for modes in row.values())) for format, row in info.exports.items())
        lines += ["", f"  exports: largest error of a file of one size / of any size, measured on {info.exports_of}",
                  indented(table(["format", *views], formats, left=len(views) + 1))]
    if info.pretrained:
        headings = ["weights", "image", "classes", "licence", "data", "from"]
        found = (
            (weights.tag, f"{weights.input_size[-1]} px", weights.num_classes, weights.license or "not stated",
             " > ".join(weights.datasets or ()) or "not stated", source(weights))
            for weights in info.pretrained.values()
        )
        lines += ["", indented(table(headings, found, left=6))]
    else:
        lines += ["", "  no published weights"]
    return "\n".join(lines)


def exported(modes: Mapping[str, float | str | None]) -> str:
    """The results of a view in a format, each in a word; the sentences are in the JSON."""
    return " / ".join(
        "not run" if result is None else f"{result:.0e}" if not isinstance(result, str)
        else "written" if result.startswith("written") else "fails" for result in modes.values()
    )


def source(weights: WeightsInfo) -> str:
    """Where weights come from, in a word."""
    if weights.get("package"):
        return f"package {weights['package'].replace('_', '-')}"
    if weights.hf_hub_id:
        return f"hf-hub:{weights.hf_hub_id}"
    return weights.url or str(weights["file"])


def indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
