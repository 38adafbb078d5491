from __future__ import annotations

from typing import Annotated, Any

import typer

from .common import AsJson, print_json, table


def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Architecture, or architecture.tag to see those weights only.")],
    as_json: AsJson = False,
) -> None:
    """What an architecture is: its size, its cost, its levels, and the weights published for it.

    \b
    Examples:
      ziggurat info resnet50
      ziggurat info tf_efficientnet_lite0.pip_in1k --json

    Exit status: 0; 2 for a name that does not exist (the nearest ones are named).
    """
    from ..registry import model_info

    facts = model_info(name)
    if as_json:
        print_json(facts)
    else:
        typer.echo(described(facts))


def described(facts: dict[str, Any]) -> str:
    lines = [facts["name"]]
    if "params" in facts:
        size = " × ".join(map(str, facts["input_size"]))
        rows = [
            ("module", f"ziggurat.models.{facts['module']} ({facts['class']})"),
            ("parameters", f"{facts['params'] / 1e6:.1f} M"),
            ("cost", f"{facts['macs'] / 1e9:.2f} GMACs, {facts['activations'] / 1e6:.1f} M activations for an input of {size}"),
            ("embedding", f"{facts['embedding']} numbers"),
        ]
        lines += [f"  {label:11s} {value}" for label, value in rows]
        levels = ((i, level["reduction"], level["channels"], level["module"]) for i, level in enumerate(facts["levels"]))
        lines += ["", indented(table(["level", "stride", "channels", "module"], levels, left=0))]
    weights = [(tag, cfg) for tag, cfg in facts["pretrained"].items() if tag and source(cfg)]
    if weights:
        rows_of = ((tag, f"{cfg['input_size'][-1]} px", cfg["num_classes"], cfg.get("license", "not stated"), source(cfg))
                   for tag, cfg in weights)
        lines += ["", indented(table(["weights", "image", "classes", "licence", "from"], rows_of, left=5))]
    else:
        lines += ["", "  no published weights"]
    return "\n".join(lines)


def source(cfg: dict[str, Any]) -> str:
    """Where weights come from, in a word."""
    if cfg.get("package"):
        return f"package {cfg['package'].replace('_', '-')}"
    if cfg.get("hf_hub_id"):
        return f"hf-hub:{cfg['hf_hub_id']}"
    url = cfg.get("url") or cfg.get("file") or ""
    return url if isinstance(url, str) else url[0]


def indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
