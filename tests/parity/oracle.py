"""timm as the oracle: the same weights in both libraries, every output compared.

    python tests/parity/oracle.py [PATTERN ...] [--module M] [--keys] [--size S] [--shard I/N] [--resume FILE]

Without --keys each architecture is built twice, timm's state dict is loaded strictly, and logits, unpooled and pooled
features and every level must agree to 2e-4 of the largest value. Weights are redrawn so that running statistics and
layer scales matter. With --keys, state dict keys (in order), shapes and feature_info are compared on the meta device.
--resume keeps finished rows in FILE and skips them when run again. A table is printed at the end; exit status 1 if
anything differs.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import ziggurat

TOLERANCE = 2e-4

MODULES = [
    "resnet", "resnest", "senet", "sknet", "res2net", "resnetv2", "regnet", "byobnet", "byoanet", "cspnet", "densenet",
    "vovnet", "xception_aligned", "efficientnet", "mobilenetv3", "vision_transformer", "deit", "convnext",
    "nasnet", "pnasnet",
    "hrnet", "rexnet",
]


def redraw(model: nn.Module) -> None:
    """Draws every parameter and running statistic anew, from a seed made of its name."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            last = name.rsplit(".", 1)[-1]
            drawn: torch.Tensor
            if last == "running_var" or (last in ("weight", "gamma", "scale_factor") and tensor.ndim == 1):
                drawn = torch.rand(tensor.shape, generator=generator) + 0.5
            elif last in ("running_mean", "bias") or tensor.ndim == 1:
                drawn = torch.randn(tensor.shape, generator=generator) * 0.1
            elif last == "weight":
                fan_in = math.prod(tensor.shape[1:])
                drawn = torch.randn(tensor.shape, generator=generator) * fan_in**-0.5
            elif isinstance(tensor, nn.Parameter):
                drawn = torch.randn(tensor.shape, generator=generator) * 0.1
            else:
                continue  # a computed buffer: a blur filter, a table of frequencies
            tensor.copy_(drawn)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    assert ours.shape == theirs.shape, f"shapes differ: ours {tuple(ours.shape)}, timm's {tuple(theirs.shape)}"
    assert torch.isfinite(theirs).all(), "timm's own output is not finite with these weights"
    largest = theirs.abs().max().item()
    return (ours - theirs).abs().max().item() / (largest or 1.0)


def input_size(name: str, size: int | None) -> tuple[int, int, int]:
    """The size to run at: the architecture's own where it is fixed or stated as a minimum, else `size`."""
    cfg = timm.get_pretrained_cfg(name)
    native = cfg.input_size if cfg else (3, 224, 224)
    fixed = cfg is not None and cfg.fixed_input_size
    if size is None or fixed or native[-1] <= size:
        return native
    if cfg is not None and cfg.min_input_size:
        return cfg.min_input_size
    return (native[0], size, size)


def outputs(model: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a classifier gives in either library, by name."""
    features = model.forward_features(x)
    last, levels = model.forward_intermediates(x)
    found = {"logits": model(x), "unpooled": features, "pooled": model.forward_head(features, pre_logits=True)}
    return found | {"last": last} | {f"level {i}": level for i, level in enumerate(levels)}


@torch.no_grad()
def compare(name: str, size: int | None = None, **kwargs: Any) -> dict[str, float]:
    """Largest relative difference of every output of architecture `name`.

    At most two copies of the weights are in memory at a time.
    """
    model = timm.create_model(name, **kwargs).eval()
    redraw(model)
    state_dict, num_classes = model.state_dict(), model.num_classes
    x = torch.randn(2, *input_size(name, size), generator=torch.Generator().manual_seed(0))
    references = outputs(model, x)
    del model
    model = ziggurat.create_model(name, **kwargs).eval()
    model.load_state_dict(state_dict, strict=True, assign=True)
    found = outputs(model, x)
    del model

    # both pyramids as if pretrained: one architecture has another epsilon then
    loaded = dict(features_only=True, pretrained=True,
                  pretrained_cfg_overlay=dict(state_dict=state_dict, num_classes=num_classes))
    model = timm.create_model(name, **loaded, **kwargs).eval()
    facts = model.feature_info.channels(), model.feature_info.reduction()
    references |= {f"pyramid {i}": level for i, level in enumerate(model(x))}
    del model
    model = ziggurat.create_model(name, **loaded, **kwargs).eval()
    assert all(torch.equal(value, state_dict[key]) for key, value in model.state_dict().items())
    assert facts == (model.feature_info.channels(), model.feature_info.reduction())
    found |= {f"pyramid {i}": level for i, level in enumerate(model(x))}

    assert found.keys() == references.keys(), f"ours gives {list(found)}, timm {list(references)}"
    return {key: difference(found[key], references[key]) for key in found}


def compare_keys(name: str) -> None:
    """Raises AssertionError where keys, their order, shapes, feature_info or attributes differ from timm's."""
    with torch.device("meta"):
        theirs, ours = timm.create_model(name), ziggurat.create_model(name)
    wanted = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    got = {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    missing = [f"{k} {wanted[k]}" for k in wanted if wanted[k] != got.get(k)]
    extra = [f"{k} {got[k]}" for k in got if got[k] != wanted.get(k)]
    assert not missing and not extra, f"missing {missing[:4]} (of {len(missing)}), extra {extra[:4]} (of {len(extra)})"
    assert list(wanted) == list(got), "keys are in another order: " + next(
        f"timm has {a}, we have {b}" for a, b in zip(wanted, got) if a != b
    )
    told = ["num_chs", "reduction", "module"]
    modules = dict(theirs.named_modules())
    if not all(level["module"] in modules for level in theirs.feature_info):
        told.remove("module")  # HRNet: timm names a stem and stages that make no level, or are not there
    facts = [[tuple(level[key] for key in told) for level in model.feature_info] for model in (ours, theirs)]
    assert facts[0] == facts[1], f"feature_info {facts[0]}, timm's {facts[1]}"
    for attribute in ("num_features", "head_hidden_size", "num_classes"):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute


def run(names: list[str], keys: bool, size: int | None, resume: Path | None) -> int:
    done: dict[str, str] = json.loads(resume.read_text()) if resume and resume.is_file() else {}
    failed = 0
    for name in names:
        if name in done:
            verdict = done[name]
        else:
            start = time.perf_counter()
            try:
                if keys:
                    compare_keys(name)
                    verdict = "ok"
                else:
                    found = compare(name, size)
                    worst = max(found, key=lambda k: found[k])
                    verdict = f"{'ok' if found[worst] <= TOLERANCE else 'DIFFERS'} {found[worst]:.1e} ({worst})"
            except Exception as error:  # a row of the table, and exit status 1
                verdict = f"FAILED {type(error).__name__}: {error}"
            verdict += f" {time.perf_counter() - start:.1f} s"
            done[name] = verdict
            if resume:
                resume.parent.mkdir(parents=True, exist_ok=True)
                resume.write_text(json.dumps(done, indent=0))
        failed += not verdict.startswith("ok")
        print(f"{name:45s} {verdict}", flush=True)
    print(f"{len(names) - failed} agree, {failed} do not")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=[])
    parser.add_argument("--module")
    parser.add_argument("--keys", action="store_true")
    parser.add_argument("--size", type=int, help="run at this many pixels where the architecture allows (default: own)")
    parser.add_argument("--shard", default="0/1", help="I/N: every N-th architecture, from the I-th")
    parser.add_argument("--resume", type=Path)
    args = parser.parse_args()
    names = [n for m in ([args.module] if args.module else MODULES) for n in timm.list_models(module=m)]
    if args.patterns:
        names = [n for n in names if any(fnmatch.fnmatch(n, p) for p in args.patterns)]
    index, count = map(int, args.shard.split("/"))
    return run(names[index::count], args.keys, args.size, args.resume)


if __name__ == "__main__":
    sys.exit(main())
