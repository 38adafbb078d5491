"""Networks on a GPU in bf16: ours against timm's in eager mode and compiled, and against what the GPU can do.

    python benchmarks/gpu.py [--models resnet50,vit_base_patch16_224,...] [--batch 256] [--rounds 7] [--device cuda] [--json FILE]

Class scores of 256 images in bf16, and the latency of one image through ResNet-50, which CUDA graphs make. Contenders are
made in a process each and run in turn, as in benchmarks/optimize.py. The bounds of the project: without a compiler 1.15x
timm's eager channels_last in the geometric mean; optimised 1.0x timm compiled or more, every network; and, on an H100 (SXM),
images per second of three networks and a latency of 1 ms. Without a GPU that is said, and nothing is timed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from optimize import MODELS, NOISE, Bounds, geometric_mean, ratio_to
from ziggurat.benchmarking.comparison import compare
from ziggurat.benchmarking.contenders import Case
from ziggurat.benchmarking.report import console, show_case, show_machine

AIMS = {"resnet50": 21_000, "vit_base_patch16_224": 12_700, "convnext_tiny": 18_000}  # images/s of an H100
COMPILED = ("timm-compile", "timm-autotune")
BACKENDS = ("timm-eager", "timm-channels_last", *COMPILED, "eager", "optimize-eager", "optimize")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join([*MODELS, "vit_base_patch16_224"]))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("left out: torch finds no GPU here")
        return 0

    cases = [Case(model, "classify", args.batch, "bf16") for model in args.models.split(",")]
    single = Case("resnet50", "classify", 1, "bf16")
    out, start = console(), time.perf_counter()
    done = compare([*cases, single], BACKENDS, rounds=args.rounds, device=args.device, baseline="timm-channels_last",
                   say=lambda sentence: print(f"{time.perf_counter() - start:6.0f} s  {sentence}", file=sys.stderr),
                   on_case=lambda machine, results: show_case(results, out))
    print()
    show_machine(done.machine, out)
    if args.json:
        done.write(args.json)

    print()
    bounds = Bounds()
    plain = [ratio_to("timm-channels_last", "optimize-eager", done.of(case)) for case in cases]
    known = [ratio for ratio in plain if ratio is not None]
    if known:
        bounds.hold("no compiler against timm eager channels_last, geometric mean", geometric_mean(known), 1.15, "1.15x")
    for case in cases:
        results = done.of(case)
        ratios = [ratio for peer in COMPILED if (ratio := ratio_to(peer, "optimize", results)) is not None]
        if ratios:
            bounds.hold(f"optimize against timm compiled, {case.network}", min(ratios), NOISE, "1.0x or more, 0.97 is noise")
        best = results["optimize"]
        if not best.failure and case.network in AIMS and "H100" in done.machine.device:
            bounds.hold(f"images/s of an H100, {case.network}", best.images_per_second, AIMS[case.network], f"{AIMS[case.network]:,}", "{:,.0f}")
    latency = done.of(single)["optimize"]
    if not latency.failure:
        bounds.hold("images/s one by one, resnet50", latency.images_per_second, 1000, "1 ms an image", "{:,.0f}")
    return 1 if bounds.missed else 0


if __name__ == "__main__":
    sys.exit(main())
