"""Small runs for tests: images, real processes that can be killed, and a digest of what a run has written."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import ziggurat

MODEL = "resnet10t"
SMALL = dict(model=MODEL, random=True, size=64, batch_size=4, unit_size=8, workers=1, threads=1, backend="torch", device="cpu")
FLAGS = ["-m", MODEL, "--random", "--size", "64", "--batch", "4", "--unit", "8", "--workers", "1", "--threads", "1",
         "--backend", "torch", "--device", "cpu"]


def picture(seed: int, size: tuple[int, int] = (72, 80), format: str = "JPEG", **options: object) -> bytes:
    """A file of an image of `size` (width, height) that no other seed gives."""
    values = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).resize(size, Image.Resampling.BILINEAR).save(stream, format, **options)
    return stream.getvalue()


def pictures(folder: Path, count: int, first: int = 0) -> Path:
    """A folder with so many JPEG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        (folder / f"{seed:05d}.jpg").write_bytes(picture(seed))
    return folder


def written(dest: Path) -> dict[str, str]:
    """The hash of every file of a run, by its path; without the log and the lock, which are no output."""
    return {
        path.relative_to(dest).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(dest.rglob("*"))
        if path.is_file() and path.relative_to(dest).parts[:2] not in {("_ziggurat", "log"), ("_ziggurat", "lock")}
    }


def run(source, out, **changes) -> ziggurat.extraction.Summary:
    """`ziggurat.extract` with a small model."""
    return ziggurat.extract(source, out=out, **{**SMALL, **changes})


def _command(arguments: list[str], log: str) -> None:
    """`ziggurat ARGUMENTS` in a process of its own group, with its words in a file."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["ziggurat", *arguments]
    from ziggurat.cli import main

    main()


class Command:
    """`ziggurat ARGUMENTS`, started as a process from one that has imported torch already, which saves seconds."""

    def __init__(self, arguments: list[object], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ziggurat.extraction.job", "ziggurat.cli"])
        self.log = log
        self.process = context.Process(target=_command, args=([str(each) for each in arguments], str(log)))
        self.process.start()

    def wait(self, timeout: float = 100.0) -> int:
        """The exit status."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"it did not end within {timeout} s:\n{self.said()}"
        return self.process.exitcode

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.process.pid, number)

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, condition, timeout: float = 60.0) -> None:
        """Waits until a condition holds, while the process is alive."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.is_alive() and time.monotonic() < end, self.said()
            time.sleep(0.005)


def children(pid: int) -> list[int]:
    """Processes whose parent is this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found
