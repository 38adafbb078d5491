"""What importing and listing cost, against timm in one run.

    python benchmarks/startup.py [--repeats 7]

Result on 2 cores of a CPU: see docs/benchmarks.md. Each measurement is a process of its own, all in turn; medians.
`import ziggurat` is timed after `import torch`; `list` and `info` are the whole command.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

IMPORT = """
import sys, time
{before}
start = time.perf_counter()
import {library}
seconds = time.perf_counter() - start
print(seconds, "torchvision" in sys.modules, sum(name.startswith("{library}.models.") for name in sys.modules))
"""
LISTED = "import sys; from ziggurat.cli import main; sys.argv = ['ziggurat', {args}]\ntry:\n    main()\nexcept SystemExit:\n" \
         "    pass\nprint('torch' in sys.modules, file=sys.stderr)"


def imported(library: str, before: str = "import torch") -> tuple[float, str, str]:
    """Seconds of an import, whether torchvision came with it, and how many model files."""
    code = IMPORT.format(library=library, before=before)
    seconds, torchvision, files = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    return float(seconds), torchvision, files


def command(args: str) -> tuple[float, str]:
    """Seconds of a whole command, and whether it imported torch."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", LISTED.format(args=args)], check=True, capture_output=True, text=True)
    return time.perf_counter() - start, done.stderr.split()[-1]


def listed_by_timm() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import timm; print(timm.list_models())"], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    imports: dict[str, list[tuple[float, str, str]]] = {"ziggurat": [], "timm": []}
    commands: dict[str, list[tuple[float, str]]] = {"'list'": [], "'info', 'resnet50'": []}
    peer = []
    for _ in range(repeats):
        for library, rows in imports.items():
            rows.append(imported(library))
        for args, found in commands.items():
            found.append(command(args))
        peer.append(listed_by_timm())
    print(f"medians of {repeats}, in turn")
    for library, rows in imports.items():
        seconds = statistics.median(row[0] for row in rows)
        print(f"import {library:9s} after torch {seconds:8.4f} s   torchvision imported: {rows[0][1]}, "
              f"model files: {rows[0][2]}")
    ratio = statistics.median(r[0] for r in imports["timm"]) / statistics.median(r[0] for r in imports["ziggurat"])
    print(f"ratio, timm to ziggurat: {ratio:.0f}")
    for args, found in commands.items():
        print(f"ziggurat {args.replace(chr(39), '').replace(',', ''):18s}    {statistics.median(f[0] for f in found):8.4f} s   "
              f"torch imported: {found[0][1]}")
    print(f"timm's list in Python           {statistics.median(peer):8.4f} s")
    whole = statistics.median(f[0] for f in commands["'list'"])
    print(f"ratio, timm's list to ziggurat list: {statistics.median(peer) / whole:.1f}")


if __name__ == "__main__":
    main()
