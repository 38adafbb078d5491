"""The names and shapes of all parameters of all of MindCV's networks, into mindcv_files/names.json.xz.

    python tests/parity/make_mindcv_names.py

It runs where `make_mindcv.py` does.
"""

from __future__ import annotations

import json
import lzma
import os
import sys
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")  # MindSpore's own log: errors only

sys.path.append(sys.path.pop(0))  # mindcv is the package, not the file beside this one

import mindspore.common.initializer as initializers
from make_mindcv import mend
from mindcv.models import create_model, list_models

FILE = Path(__file__).parent / "mindcv_files" / "names.json.xz"


def draw_nothing() -> None:
    """Parameters stay as they are allocated: only their shapes are wanted."""
    for kind in initializers.Initializer.__subclasses__():
        kind._initialize = lambda self, array: None


def main() -> None:
    mend()
    draw_nothing()
    found: dict[str, list] = {}
    for name in sorted(list_models()):
        try:
            net = create_model(name)
        except KeyError as error:  # MindCV lists three networks whose configuration it has not
            print(f"{name}: {error!r}")
            continue
        found[name] = [[parameter.name, list(parameter.shape)] for parameter in net.get_parameters()]
        print(f"{name}: {len(found[name])} parameters", flush=True)
        del net
    with lzma.open(FILE, "wt", preset=9) as file:
        json.dump(found, file, separators=(",", ":"))
    sys.stdout.flush()
    os._exit(0)  # MindSpore's own end prints a traceback a cell


if __name__ == "__main__":
    main()
