"""A model with weights from a safetensors file: how long it takes, what memory it holds, what it reads, beside timm.

    python benchmarks/loading.py [--model vit_large_patch16_224] [--part convnext_base] [--repeat 5] [--file FILE]

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

A second table is of a part: PART's pyramid at strides 4, 8, 16, from a local file, every weight of it read, and from a
hub of the loopback interface (tests/local_hub.py), which counts the bytes that it gives. Bounds: no byte of what makes
stride 32, and 1.1 times the other weights at the peak.
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
from {package}.models import {family}  # the family's own file, so that creation alone is timed
import safetensors.torch
torch.nn.Linear(1, 1)

def memory():
    status = open("/proc/self/status").read()
    return {{k: int(re.search(k + r":\\s+(\\d+)", status)[1]) * 1024 for k in ("VmHWM", "VmRSS", "RssAnon", "RssFile")}}

open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
before = memory()
start = time.perf_counter()
model = {package}.create_model({model!r}, {arguments})
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


TO_16 = {"ziggurat": "features_only=True, out_strides=(4, 8, 16)", "timm": "features_only=True, out_indices=(0, 1, 2)"}


def measure(package: str, family: str, model: str, arguments: str, **environment: str) -> dict[str, float]:
    code = ONE.format(package=package, family=family, model=model, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, **environment})
    return json.loads(done.stdout.splitlines()[-1])


def write(model: str, file: str) -> None:
    subprocess.run([sys.executable, "-c", WRITE.format(model=model, file=file)], check=True)


def part_of(model: str, repeat: int, folder: str) -> list[str]:
    """Prints what a pyramid up to stride 16 of `model`, a ConvNeXt, reads and holds; returns what it misses."""
    from ziggurat.registry import get_pretrained_cfg

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from local_hub import LocalHub

    file = str(Path(folder, "part.safetensors"))
    write(model, file)
    body = Path(file).read_bytes()
    size, begin = len(body), 8 + int.from_bytes(body[:8], "little")
    header = json.loads(body[8:begin])
    last = [(begin + entry["data_offsets"][0], begin + entry["data_offsets"][1])
            for name, entry in header.items() if name.startswith("stages.3.")]
    cfg = get_pretrained_cfg(model)
    assert cfg is not None and cfg.hf_hub_id, f"{model} has no weights on the hub"

    def row(package: str, kind: str) -> dict[str, float]:
        arguments = f"{TO_16[package]}, " if kind == "part" else ""
        local = measure(package, "convnext", model, f"{arguments}pretrained=True, pretrained_cfg_overlay=dict(file={file!r})")
        with (
            LocalHub({cfg.hf_hub_id: {"model.safetensors": body}}) as hub,
            tempfile.TemporaryDirectory(dir=folder) as home,
        ):
            place = {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_HUB_DISABLE_TELEMETRY": "1"}
            found = measure(package, "convnext", model, f"{arguments}pretrained=True", **place)
            assert found["total"] == local["total"], f"{package} has other weights from the hub than from the file"
            given = [(start, stop) for _, start, stop in hub.served]
            hub.served.clear()
            measure(package, "convnext", model, f"{arguments}pretrained=True", **place)
            again = sum(stop - start for _, start, stop in hub.served)
        of_last = sum(max(0, min(b, d) - max(a, c)) for a, b in given for c, d in last)
        return dict(fetched=sum(b - a for a, b in given), last=of_last, again=again, peak=local["peak_touched"],
                    resident=local["anonymous_touched"] + local["file_touched"])

    columns = {"ziggurat, to stride 16": ("ziggurat", "part"), "ziggurat, whole": ("ziggurat", "whole"),
               "timm, to stride 16": ("timm", "part")}
    found: dict[str, list[dict[str, float]]] = {column: [] for column in columns}
    for _ in range(repeat):
        for column, (package, kind) in columns.items():
            found[column].append(row(package, kind))
    rows = {column: {key: statistics.median(one[key] for one in several) for key in several[0]}
            for column, several in found.items()}
    print(f"\n{model}, {size / 2**20:.0f} MiB of weights, {sum(b - a for a, b in last) / 2**20:.0f} of them what makes "
          f"stride 32; medians of {repeat} fresh processes each, in turn\n")
    print(f"{'MiB':44s}" + "".join(f"{column:>24s}" for column in columns))
    for label, key in (("fetched from a hub", "fetched"), ("  of what makes stride 32", "last"), ("  a second time", "again"),
                       ("peak resident, from a file, every weight read", "peak"), ("  resident afterwards", "resident")):
        print(f"{label:44s}" + "".join(f"{rows[column][key] / 2**20:24.1f}" for column in columns))
    ours = rows["ziggurat, to stride 16"]
    missed = []
    if ours["last"] or ours["again"]:
        missed.append("a pyramid up to stride 16 fetches what makes stride 32, or fetches twice")
    if ours["peak"] > 1.1 * (size - sum(b - a for a, b in last)):
        missed.append("the peak of a pyramid up to stride 16 is more than 1.1 times the weights without what makes stride 32")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="vit_large_patch16_224", help="a vision transformer")
    parser.add_argument("--part", default="convnext_base", help="a ConvNeXt; '' leaves the second table out")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--file", type=Path, help="its weights as safetensors")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = str(args.file or Path(folder, "weights.safetensors"))
        if not args.file:
            write(args.model, file)
        size = os.path.getsize(file)
        rows: dict[str, list[dict[str, float]]] = {"ziggurat": [], "timm": []}
        for _ in range(args.repeat):
            for package, found in rows.items():
                found.append(measure(package, "vision_transformer", args.model, f"checkpoint_path={file!r}"))
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
    if args.part:
        with tempfile.TemporaryDirectory() as folder:
            missed += part_of(args.part, args.repeat, folder)
    for sentence in missed:
        print(f"MISSED: {sentence}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
