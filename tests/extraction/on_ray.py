"""A script for test_engines: two nodes of Ray on this machine, of which one is killed while both extract.

    python on_ray.py IMAGES CHECKPOINT DEST < PROGRAM        writes what happened to DEST.json

PROGRAM, which uses Ray, is run before the nodes extract.
"""

import contextlib
import io
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

import ray
import ray.data
from ray.cluster_utils import Cluster
from running import children, run


def printed(program: str) -> str:
    """What a program prints that runs on this cluster."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(compile(program, "docs/extraction.md", "exec"), {"__name__": "docs"})
    return told.getvalue()


def worker(raylet: int) -> int | None:
    """The process of a node that has decoders, and so is at work."""
    return next((pid for pid in children(raylet) if b"MapWorker" in Path(f"/proc/{pid}/cmdline").read_bytes() and children(pid)), None)


def main(images: str, checkpoint: str, dest: str) -> None:
    node = dict(num_cpus=1, object_store_memory=80 << 20)
    cluster = Cluster(initialize_head=True, head_node_args={
        **node, "include_dashboard": False, "_system_config": {"health_check_period_ms": 1000}})
    other = cluster.add_node(**node)
    raylet = other.all_processes["raylet"][0].process.pid
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    found = {"printed": printed(sys.stdin.read()), "killed": None, "left": []}

    def kill() -> None:
        units = Path(dest, "_ziggurat", "units")
        while (pid := worker(raylet)) is None or not (units.is_dir() and len(list(units.iterdir())) >= 2):
            time.sleep(0.02)
        processes = [pid, *children(pid)]
        found["killed"] = len(list(units.iterdir()))
        cluster.remove_node(other, allow_graceful=False)
        end = time.monotonic() + 10
        while (left := [pid for pid in processes if os.path.exists(f"/proc/{pid}")]) and time.monotonic() < end:
            time.sleep(0.1)
        found["left"] = left

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = run(images, dest, engine="ray", random=False, checkpoint=checkpoint)
    killer.join(20)
    Path(dest).with_suffix(".json").write_text(json.dumps({**found, **summary._asdict()}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
