"""Time and memory of creating a model with weights from a local safetensors file, against timm in one run.

    python benchmarks/loading.py [--model vit_large_patch16_224] [--repeats 5]

Result on 2 cores of a CPU: see docs/benchmarks.md. Each creation is a process of its own, the two libraries in turn;
what is timed is `create_model` alone, after imports and with the file in the page cache. Memory is what the process
grew by at its peak: anonymous memory (its own), and anonymous plus file-backed (pages of the mapped file too).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CREATE = """
import json, sys, threading, time
library, model, path = sys.argv[1:]
import torch, safetensors.torch
if library == "timm":
    import timm as library
    import timm.models
else:
    import ziggurat as library
    import ziggurat.factory, ziggurat.weights.loading
    ziggurat.registry.family_of(model)          # imports of both libraries are done before the clock starts
torch.set_num_threads(2)

def resident():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {name: int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")}

before, peak, stop = resident(), {"anonymous": 0, "resident": 0}, threading.Event()
def watch():
    while not stop.is_set():
        now = resident()
        anonymous = now["RssAnon"] - before["RssAnon"]
        peak["anonymous"] = max(peak["anonymous"], anonymous)
        peak["resident"] = max(peak["resident"], anonymous + now["RssFile"] - before["RssFile"])
        time.sleep(0.001)
watcher = threading.Thread(target=watch); watcher.start()
start = time.perf_counter()
if {touch}:
    net = library.create_model(model, pretrained=True, pretrained_cfg_overlay=dict(file=path))
    total = sum(float(p.sum()) for p in net.parameters())
else:
    net = library.create_model(model, pretrained=True, pretrained_cfg_overlay=dict(file=path))
seconds = time.perf_counter() - start
stop.set(); watcher.join()
print(json.dumps(dict(seconds=seconds, **peak)))
"""

SAVE = """
import sys, torch, safetensors.torch, ziggurat
net = ziggurat.create_model(sys.argv[1])
safetensors.torch.save_file(net.state_dict(), sys.argv[2])
"""


def create(library: str, model: str, path: str, touch: bool) -> dict[str, float]:
    """One creation in a process of its own: seconds, and bytes at the peak."""
    code = CREATE.replace("{touch}", str(touch))
    done = subprocess.run([sys.executable, "-c", code, library, model, path], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.safetensors"
        subprocess.run([sys.executable, "-c", SAVE, args.model, str(path)], check=True)
        size = path.stat().st_size
        path.read_bytes()  # into the page cache
        print(f"{args.model}: {size / 1e6:.0f} MB of weights, medians of {args.repeats}, in turn")
        print(f"{'':34s} {'seconds':>8s} {'own memory':>11s} {'with mapped file':>17s}   (memory: x the weights)")
        for touch in (False, True):
            rows: dict[str, list[dict[str, float]]] = {"timm": [], "ziggurat": []}
            for _ in range(args.repeats):
                for library, found in rows.items():
                    found.append(create(library, args.model, str(path), touch))
            middle = {
                library: {key: statistics.median(row[key] for row in found) for key in found[0]}
                for library, found in rows.items()
            }
            what = "created, every weight read once" if touch else "created"
            for library, row in middle.items():
                print(f"{library + ', ' + what:42s} {row['seconds']:8.3f} {row['anonymous'] / size:11.2f} "
                      f"{row['resident'] / size:17.2f}")
            ratio = middle["timm"]["seconds"] / middle["ziggurat"]["seconds"]
            print(f"ratio of seconds, timm to ziggurat: {ratio:.1f}")


if __name__ == "__main__":
    main()
