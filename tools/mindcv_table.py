"""Write `src/ziggurat/weights/tables/mindcv/*.toml`, the weights that MindCV publishes, from an installed MindCV.

    make parity-mindcv makes the environment; then, in it:
    PYTHONPATH=src python tools/mindcv_table.py [--check]

Addresses and input sizes are MindCV's `default_cfgs`, read by introspection; where these say nothing of the
preprocessing, the defaults of MindCV's `create_transforms` hold. Names become ours by `compat/mindcv.json`. What a
network computes otherwise than ours does by default is stated here, in `TRAINED_WITH`, and held to MindCV's outputs by
the tests; only families that are so held have rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOG_v", "3")  # MindSpore's own log: errors only

from mindcv.models.registry import model_entrypoint
from mindcv.version import __version__

from ziggurat.registry import catalog

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "ziggurat"
TABLES = PACKAGE / "weights" / "tables" / "mindcv"
ADDRESS = "https://download.mindspore.cn/toolkits/mindcv/"

SAME_POOL = dict(pool_pad_type="same")
SAME = dict(pad_type="same", bn_eps=1e-5)
SAME_STEM_NOT = dict(pad_type="same", stem_pad_type="")
SYMMETRIC_BUT_FIRST_REDUCTION = dict(pad_type=("", "", "same", ""), pool_pad_type="same")

# MindCV's modules that are held to its outputs, and by patterns of our names what they need: the first that fits (None:
# MindCV's network is another)
TRAINED_WITH: dict[str, dict[str, dict[str, Any] | None]] = {
    "cmt": {"*": dict(act_layer="gelu_tanh", norm_eps=1e-7)},
    "convnext": {"*": dict(act_layer="gelu_tanh", pad_type="same")},
    "densenet": {},  # at sizes that 32 divides: elsewhere MindCV's transitions round down
    "efficientnet": {"efficientnet_b[567]": dict(pad_type="same", bn_eps=1e-3), "*": SAME},
    "googlenet": {"*": dict(norm_layer="", wide_kernel_size=5, pad_type="same")},
    "hrnet": {"*": dict(head_conv_bias=False)},
    "mnasnet": {"*": dict(bn_eps=1e-3)},
    "mobilenetv1": {"*": dict(act_layer="relu")},
    "mobilenetv2": {},
    "mobilenetv3": {
        "mobilenetv3_*_075": SAME_STEM_NOT | dict(scale_expansion=True, scale_head=True),
        "*": SAME_STEM_NOT,
    },
    "nasnet": {"*": SYMMETRIC_BUT_FIRST_REDUCTION | dict(count_include_pad=False)},
    "pnasnet": {"*": SYMMETRIC_BUT_FIRST_REDUCTION},
    "pvt": {"*": dict(act_layer="gelu_tanh", attn_norm_eps=1e-5, sr_norm_eps=1e-7)},
    "regnet": {},
    "repmlp": {"*": dict(act_layer="gelu_tanh")},
    "repvgg": {},
    "res2net": {},
    "resnest": {"*": SAME_POOL},
    "resnet": {"*": SAME_POOL},
    "rexnet": {},
    "senet": {"*": SAME_POOL},
    "shufflenetv1": {},
    "shufflenetv2": {
        "*": dict(shuffles_first=True, widens_first=False, classifier_bias=False, pool_pad_type="same"),
    },
    "sknet": {"skresnet18": SAME_POOL, "skresnet34": SAME_POOL, "*": None},  # bottlenecks lack an activation
    "squeezenet": {"squeezenet1_0": dict(ceil_mode=False), "*": dict(ceil_mode=False, stem_padding=1)},
}

HEADER = f"""\
# The weights of this module that MindCV publishes, with the tag mindcv_in1k: where they lie, what they expect to see, and
# the arguments (trained_with) with which our architecture computes what MindCV's does. A row without an address is for
# checkpoints of one's own. MindCV (Apache-2.0) states no licence of the weights. Origin of the facts: MindCV {__version__},
# read by introspection by tools/mindcv_table.py, which writes this file (do not edit by hand).
"""
DEFAULT = """
[default]
pixels = "imagenet"
interpolation = "bilinear"
"""


def stated(name: str) -> dict[str, Any]:
    """What MindCV says of the weights `name`."""
    module = sys.modules[model_entrypoint(name).__module__]
    return dict(getattr(module, "default_cfgs", {}).get(name) or {})


def best(names: list[str]) -> str:
    """Of MindCV's names for one network, the one whose weights are published, or that says no other image size."""
    return min(names, key=lambda name: (not stated(name).get("url"), not name.endswith("_224"), name))


def row(name: str, trained_with: dict[str, Any]) -> dict[str, Any]:
    cfg = stated(name)
    found: dict[str, Any] = {}
    url = cfg.get("url") or ""
    assert not url or url.startswith(ADDRESS), url
    if url:
        found["url"] = url
    if cfg.get("num_classes", 1000) == 1001:
        found["label_offset"] = -1  # MindCV drops the last
    if list(cfg.get("input_size", (3, 224, 224))) != [3, 224, 224]:
        found["input_size"] = list(cfg["input_size"])
    for key in ("interpolation", "crop_pct", "fixed_input_size"):
        if key in cfg:
            found[key] = cfg[key]
    if trained_with:
        found["trained_with"] = trained_with
    return found


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {as_toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)


def pages() -> dict[str, str]:
    """The tables by our modules."""
    names = json.loads((PACKAGE / "compat" / "mindcv.json").read_text(encoding="utf-8"))["names"]
    modules: dict[str, dict[str, dict[str, Any]]] = {}
    for mindcv_module, trained_with in TRAINED_WITH.items():
        theirs: dict[str, list[str]] = {}
        for name, ours in names[mindcv_module].items():
            theirs.setdefault(ours, []).append(name)
        for ours, candidates in theirs.items():
            if ours not in catalog():
                print(f"{ours} is not in the catalog: no row")
                continue
            needs = next((args for pattern, args in trained_with.items() if fnmatchcase(ours, pattern)), {})
            if needs is None:
                continue
            modules.setdefault(catalog()[ours]["module"], {})[ours] = row(best(candidates), needs)
    return {module: page(module, rows) for module, rows in sorted(modules.items())}


def page(module: str, rows: dict[str, dict[str, Any]]) -> str:
    """A table of these rows, in the order of the module's architectures."""
    lines = [HEADER + DEFAULT]
    for ours in (name for name in catalog(module) if name in rows):
        lines.append(f"[{ours}]")
        lines += [f"{key} = {as_toml(value)}" for key, value in rows[ours].items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where a committed file differs")
    args = parser.parse_args()
    written = pages()
    there = {path.stem: path.read_text(encoding="utf-8") for path in TABLES.glob("*.toml")}
    if not args.check:
        TABLES.mkdir(exist_ok=True)
        for module, text in written.items():
            (TABLES / f"{module}.toml").write_text(text, encoding="utf-8")
    sys.stdout.flush()
    os._exit(int(args.check and there != written))  # MindSpore's own end prints a traceback a cell


if __name__ == "__main__":
    main()
