"""A model with weights from a local safetensors file: how long it takes and what memory it holds, beside timm.

    python benchmarks/loading.py [--model vit_large_patch16_224] [--repeat 5] [--file FILE]

Weights of the architecture (random ones, in a temporary file unless --file names one) are loaded by

    ziggurat.create_model(MODEL, checkpoint_path=FILE)
    timm.create_model(MODEL, checkpoint_path=FILE)

each in a fresh process, in turn, after the imports; medians are printed. Memory is what the process holds more than
before the call, from /proc/self, so Linux only:

- peak resident: the high-water mark of all resident pages (VmHWM), pages of the memory-mapped file among them;
- anonymous at the end (RssAnon): what the process has allocated for itself and the system cannot take back;
- file-backed at the end (RssFile): pages of the mapped file, which other processes share.

A memory-mapped weight is read when it is used. So that this is no trick of not reading, a second pair of columns
adds one pass over all parameters (their sum), after which every weight has been read. Bounds of the project: 5x in
time, a peak of at most 1.1x the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ONE = """
import json, re, sys, time
import torch
import {package}
from {package}.models import vision_transformer  # the family's own file, so that creation alone is timed
import safetensors.torch
torch.nn.Linear(1, 1)

def memory():
    status = open("/proc/self/status").read()
    return {{k: int(re.search(k + r":\\s+(\\d+)", status)[1]) * 1024 for k in ("VmHWM", "VmRSS", "RssAnon", "RssFile")}}

open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
before = memory()
start = time.perf_counter()
model = {package}.create_model({model!r}, checkpoint_path={file!r})
created = time.perf_counter() - start
after = memory()
with torch.inference_mode():
    total = sum(p.sum().item() for p in model.parameters())
touched = time.perf_counter() - start
end = memory()
print(json.dumps(dict(
    created=created, touched=touched, total=total,
    peak=after["VmHWM"] - before["VmRSS"], anonymous=after["RssAnon"] - before["RssAnon"],
    file=after["RssFile"] - before["RssFile"],
    peak_touched=end["VmHWM"] - before["VmRSS"], anonymous_touched=end["RssAnon"] - before["RssAnon"],
    file_touched=end["RssFile"] - before["RssFile"],
)))
"""
WRITE = """
import ziggurat, safetensors.torch
safetensors.torch.save_file(ziggurat.create_model({model!r}).state_dict(), {file!r})
"""


def measure(package: str, model: str, file: str) -> dict[str, float]:
    code = ONE.format(package=package, model=model, file=file)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="vit_large_patch16_224", help="a vision transformer")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--file", type=Path, help="its weights as safetensors")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = str(args.file or Path(folder, "weights.safetensors"))
        if not args.file:
            subprocess.run([sys.executable, "-c", WRITE.format(model=args.model, file=file)], check=True)
        size = os.path.getsize(file)
        rows: dict[str, list[dict[str, float]]] = {"ziggurat": [], "timm": []}
        for _ in range(args.repeat):
            for package, found in rows.items():
                found.append(measure(package, args.model, file))
    totals = {row["total"] for found in rows.values() for row in found}
    assert len(totals) == 1, f"the two did not load the same weights: {totals}"
    ours, theirs = ({key: statistics.median(row[key] for row in found) for key in found[0]} for found in rows.values())

    print(f"{args.model}, {size / 2**20:.0f} MiB of weights; medians of {args.repeat} fresh processes each, in turn\n")
    print(f"{'':44s}{'ziggurat':>12s}{'timm':>12s}{'timm / ziggurat':>18s}")
    for label, key in (("create_model", "created"), ("create_model and reading every weight", "touched")):
        print(f"{label:44s}{ours[key] * 1e3:9.0f} ms{theirs[key] * 1e3:9.0f} ms{theirs[key] / ours[key]:17.1f}x")
    print(f"\n{'memory over the size of the weights':44s}{'ziggurat':>12s}{'timm':>12s}")
    for label, key in (
        ("peak resident, create_model", "peak"), ("  anonymous afterwards", "anonymous"), ("  file-backed afterwards", "file"),
        ("peak resident, every weight read", "peak_touched"), ("  anonymous afterwards", "anonymous_touched"),
        ("  file-backed afterwards", "file_touched"),
    ):
        print(f"{label:44s}{ours[key] / size:11.2f}x{theirs[key] / size:11.2f}x")
    missed = []
    if theirs["created"] < 5 * ours["created"]:
        missed.append("create_model is not 5 times as fast as timm's")
    if ours["peak_touched"] > 1.1 * size:
        missed.append("the peak is more than 1.1 times the weights")
    for sentence in missed:
        print(f"MISSED: {sentence}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
