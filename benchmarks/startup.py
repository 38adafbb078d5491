"""What importing costs: `import ziggurat` over torch, and `ziggurat list` and `info`, beside timm in the same run.

    python benchmarks/startup.py [--repeat 15]

Each figure is the median over fresh processes, ziggurat's and timm's in turn. Times over torch are those of the import
alone, and of the import with a ResNet-18 created (which counts what the import put off), in a process that has imported
torch already. Exit status 1 if a bound is missed: 0.05 s over torch, neither torchvision nor a model file imported by
`import ziggurat`, no torch imported by `list` and `info`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

BOUND = 0.05  # seconds over torch

TIMED = """
import sys, time
import torch
start = time.perf_counter()
import {package}
print(time.perf_counter() - start)
print("torchvision" in sys.modules, sum(name.startswith("{package}.models.") for name in sys.modules))
{package}.create_model("resnet18")
print(time.perf_counter() - start)
"""
COMMAND = """
import sys
sys.argv = ["ziggurat", {arguments}]
import ziggurat.cli
try:
    ziggurat.cli.main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""
PEER = {  # what one writes with timm for the same answer
    "list": "import timm; print('\\n'.join(timm.list_models('*resnet*')))",
    "info": "import timm, torch; m = timm.create_model('resnet50'); print(m.feature_info, m.default_cfg, "
            "sum(p.numel() for p in m.parameters()))",
}


def run(code: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Seconds that a fresh interpreter takes for `code`, and what it said."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done


class Import(NamedTuple):
    """An import over torch: its seconds, those until a ResNet-18 stands, and what it brought along."""

    seconds: float
    until_model: float
    has_torchvision: bool
    models: int


def over_torch(package: str) -> Import:
    _, done = run(TIMED.format(package=package))
    seconds, facts, until_model = done.stdout.splitlines()
    has_torchvision, models = facts.split()
    return Import(float(seconds), float(until_model), has_torchvision == "True", int(models))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=15)
    args = parser.parse_args()
    rows = {"import": "import, over torch", "model": "import and resnet18, over torch",
            "list": "list '*resnet*', whole process", "info": "info resnet50, whole process"}
    ours: dict[str, list[float]] = {name: [] for name in rows}
    theirs: dict[str, list[float]] = {name: [] for name in rows}
    commands = {name: COMMAND.format(arguments=words) for name, words in
                {"list": "'list', '*resnet*'", "info": "'info', 'resnet50'"}.items()}
    over_torch("ziggurat"), over_torch("timm")  # once for the disk's and the byte code's caches
    missed = []
    for _ in range(args.repeat):
        own, peer = over_torch("ziggurat"), over_torch("timm")
        for times, found in ((ours, own), (theirs, peer)):
            times["import"].append(found.seconds)
            times["model"].append(found.until_model)
        if own.has_torchvision or own.models:
            missed.append(f"import ziggurat imports torchvision ({own.has_torchvision}) or {own.models} model files")
        for name, code in commands.items():
            seconds, done = run(code)
            ours[name].append(seconds)
            if done.stderr.split()[-1] != "False":
                missed.append(f"ziggurat {name} imports torch")
            theirs[name].append(run(PEER[name])[0])
    print(f"medians of {args.repeat} fresh processes each, in turn\n")
    print(f"{'':32s}{'ziggurat':>12s}{'timm':>12s}{'timm / ziggurat':>18s}")
    for name, label in rows.items():
        a, b = statistics.median(ours[name]), statistics.median(theirs[name])
        print(f"{label:32s}{a * 1e3:9.1f} ms{b * 1e3:9.1f} ms{b / a:17.1f}x")
    print()
    for package, found in (("ziggurat", own), ("timm", peer)):
        brought = "imports" if found.has_torchvision else "does not import"
        print(f"import {package} {brought} torchvision, and {found.models} model files")
    if statistics.median(ours["import"]) > BOUND:
        missed.append(f"import ziggurat adds more than {BOUND} s to import torch")
    for sentence in dict.fromkeys(missed):
        print(f"MISSED: {sentence}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
