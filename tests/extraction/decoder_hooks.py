"""Reading and decoding whose mishaps are commanded by the item: what `test_workers` gives to real processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np

from ziggurat.extraction.decoding import DecodeFailure
from ziggurat.extraction.sources import ReadFailure

ONLY_HERE: dict[str, bytes] = {}  # what no other process can read


def read(item):
    """The container's text is the image; some texts are not to be read."""
    word, _, rest = item.container.partition(" ")
    if word == "missing":
        raise ReadFailure("missing", "there is no such file", False)
    if word == "flaky":  # works at the third attempt
        attempts = Path(rest)
        with attempts.open("a") as file:
            file.write(".")
        if attempts.stat().st_size < 3:
            raise ReadFailure("unavailable", "the connection was reset", True)
    if word == "down":
        raise ReadFailure("unavailable", "503 Slow Down", True)
    if word == "read-segv":
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(1000)
    return item.container.encode()


def read_only_here(item):
    return ONLY_HERE[item.key]


def decode(data, preprocessing):
    """What the bytes say: a grey, a mishap, or a mishap that happens once and leaves a file."""
    word, _, rest = data.decode().partition(" ")
    if word.startswith("once-"):
        try:
            Path(rest).touch(exist_ok=False)
        except FileExistsError:
            word, rest = "grey", "77"
        else:
            word = word.removeprefix("once-")
    if word == "hang":
        time.sleep(1000)
    elif word == "memory":
        np.ones(1 << 60, np.uint8)
    elif word == "corrupt":
        raise DecodeFailure("decode", "corrupt", "broken data stream")
    elif word == "exit":
        os._exit(7)
    elif word == "later":  # what it has damaged shows when it is done
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGABRT)).start()
    elif word == "bug":
        raise KeyError("a bug")
    elif word == "slow":
        time.sleep(0.02)
    elif hasattr(signal, word):
        os.kill(os.getpid(), getattr(signal, word))
        time.sleep(1000)
    grey = int(rest) if rest.isdigit() else 1
    return np.full((*preprocessing.size, preprocessing.channels), grey, np.uint8)


def decode_large(data, preprocessing):
    return np.full((*preprocessing.size, preprocessing.channels), data[-1], np.uint8)


class Unloadable:
    """A function that ends the process that it is sent to."""

    def __reduce__(self):
        return os._exit, (7,)
