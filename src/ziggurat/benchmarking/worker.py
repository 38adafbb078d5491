"""A contender in a process of its own: made once, told to run a round at a time, ended with all that it started.

    with Worker(threads=2) as worker:
        worker.ask("build", backend="eager", case=..., kit=..., ...)
        seconds = worker.ask("run", calls=3)["seconds"]

The two talk in lines of JSON over pipes. What libraries print goes to a log, whose last line is told when the process dies.
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from ..errors import ZigguratError

__all__ = ["ContenderFailed", "Worker"]

PATIENCE = 1.0  # seconds for a process to end by itself


class ContenderFailed(Exception):
    """What a process could not do, in a sentence."""


class Worker:
    """A process that answers one order at a time; leaving the block ends it, with all processes that it has started."""

    def __init__(self, threads: int | None = None) -> None:
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        # a session of its own: Ctrl-C is for the parent, which then ends the whole group
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=environment, start_new_session=True)

    def ask(self, order: str, **arguments: Any) -> dict[str, Any]:
        """The answer to an order of `ORDERS`. Raises `ContenderFailed` with the reason where there is none."""
        assert self.process.stdin and self.process.stdout
        line = ""
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"order": order, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if not line:
            raise ContenderFailed(self._death())
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise ContenderFailed(answer["failed"])
        return answer

    def _death(self) -> str:
        status = self.process.wait()
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        hint = ", as the system does when memory is short" if status == -signal.SIGKILL else ""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return f"its process {how}{hint}" + (f": {lines[-1][:200]}" if lines else "")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *of: object) -> None:
        assert self.process.stdin and self.process.stdout
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(0 if of[0] else PATIENCE)
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):  # macOS: of a group that is ending
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


# ---------------------------------------------------------------- in the process


class Bench:
    """The one contender of this process, and what it is asked."""

    def __init__(self) -> None:
        self.call: Callable[[], Any] = lambda: None
        self.device = "cpu"

    def prepare(self, cases: list[dict[str, Any]], folder: str) -> dict[str, Any]:
        from .contenders import Case
        from .references import prepare

        return {"kits": [asdict(kit) for kit in prepare([Case(**case) for case in cases], Path(folder))]}

    def machine(self, precisions: list[str], threads: int | None, device: str) -> dict[str, Any]:
        from .machine import copy_bandwidth, describe, machine_peak

        peaks = {precision: machine_peak(precision, threads, device) for precision in precisions}
        return {**describe(device, threads), "bandwidth": copy_bandwidth(threads, device), "peaks": peaks}

    def build(self, backend: str, case: dict[str, Any], kit: dict[str, Any], device: str, threads: int | None,
              folder: str) -> dict[str, Any]:
        """Makes it; what that took, and how far its outputs are from the reference."""
        import torch
        from safetensors.torch import load_file

        from ..view import largest_error
        from .contenders import Case, Kit, assembled, import_first

        if threads:
            torch.set_num_threads(threads)
        files = load_file(kit["images"])
        images = files.pop("images")
        import_first(backend)
        gc.collect()
        forget_peak(device)
        start = time.perf_counter()
        built = assembled(backend, Case(**case), Kit(**kit), images, device, threads, folder)
        outputs = built.outputs()
        seconds = time.perf_counter() - start
        peak = peak_memory(device)
        wanted = [files[f"output_{i}"] for i in range(len(files))]
        error = finite(largest_error(outputs, wanted)) if len(wanted) == len(outputs) else None
        del outputs, files, wanted
        self.call, self.device = built.call, device
        forget_peak(device)
        once = self.run(1, first=2 if device.startswith("cuda") else 0)["seconds"][0]  # CUDA graphs are captured meanwhile
        return {"build_seconds": seconds, "build_memory": peak, "error": error, "note": built.note, "once": once}

    def run(self, calls: int, first: int = 0) -> dict[str, Any]:
        """Seconds of each of `calls`, behind `first` that are not counted, and the peak of memory since it was built."""
        for _ in range(first):
            self.call()
        seconds = []
        for _ in range(calls):
            start = time.perf_counter()
            self.call()
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds, "memory": peak_memory(self.device)}


def peak_memory(device: str) -> int | None:
    """The most bytes held at once since `forget_peak`: of the GPU, or of resident memory; None where that is not told."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None


def finite(error: float | None) -> float | None:
    return error if error is not None and math.isfinite(error) else None


def forget_peak(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        with suppress(PermissionError):  # in some containers; the peak is then that of the whole process
            Path("/proc/self/clear_refs").write_text("5")


ORDERS = ("prepare", "machine", "build", "run")


def serve() -> None:
    """Answers the orders that come in, until there are no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    warnings.simplefilter("ignore")
    bench = Bench()
    for line in sys.stdin:
        asked = json.loads(line)
        order = asked.pop("order")
        assert order in ORDERS, order
        try:
            answer: Mapping[str, Any] = getattr(bench, order)(**asked)
        except ZigguratError as error:
            answer = {"failed": str(error)}
        except Exception as error:  # whatever a contender raises is its row in the table, and in full in the log
            from ..optimization.program import in_brief

            traceback.print_exc()
            answer = {"failed": in_brief(error)}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    serve()
