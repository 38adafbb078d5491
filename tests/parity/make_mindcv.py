"""MindCV as the oracle: what its networks put out, kept small enough for the repository.

    make parity-mindcv                                    the files in tests/parity/mindcv_files, anew, and compared
    python tests/parity/make_mindcv.py NAME ... [--sizes 64,75] [--out DIR] [--full DIR]

It runs in an environment with MindSpore 2.10, MindCV 0.3 and NumPy 1 (`tests/parity/mindcv_requirements.txt`), not in
ziggurat's. Each network's parameters and running statistics are drawn anew, each from a seed made of its name, so that
the test run can draw them again and no checkpoint need be kept (`tests/parity/mindcv.py`); so are the images. Of each
output a few thousand values are kept, taken at even distances through all channels and positions. `--full` writes
NAME.ckpt as MindSpore saves it, and every value.

A size at which MindCV itself fails is noted with its error.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import types
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")  # MindSpore's own log: errors only
os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.append(sys.path.pop(0))  # mindcv is the package, not the file beside this one

import mindcv.models.hrnet
import mindcv.models.pvt
import mindcv.models.rexnet
import mindspore
import numpy as np
from drawing import drawn, image, sampled
from mindcv.models import create_model
from mindcv.version import __version__ as mindcv_version

HERE = Path(__file__).parent


def mend() -> None:
    """MindCV 0.3 was written for MindSpore 2.0, and two of its networks ask for what 2.10 has no longer.

    ReXNet reshapes what `initializer` makes, which has no data yet. PVT resizes positions with `ops.ResizeBilinear`, at
    its own image size to the size that they have: that, and nothing else, is put in the operation's place.
    """
    lazy = mindcv.models.rexnet.init

    def initializer(*args, **kwargs):
        tensor = lazy.initializer(*args, **kwargs)
        return tensor.init_data() if tensor.has_init else tensor

    def resize_bilinear(size):
        def resize(x):
            if tuple(x.shape[2:]) != tuple(size):
                raise ValueError(f"positions of {x.shape[2:]} would be resized to {size}, which this MindSpore cannot")
            return x

        return resize

    mindcv.models.rexnet.init = types.SimpleNamespace(**{**vars(lazy), "initializer": initializer})
    ops = vars(mindcv.models.pvt.ops)
    mindcv.models.pvt.ops = types.SimpleNamespace(**{**ops, "ResizeBilinear": resize_bilinear})


@contextlib.contextmanager
def unrounded():
    """HRNet without its rounding of enlarged branches to float16, which moves its levels by 3e-4 of the largest value.

    What is rounded up here may be rounded down there, so that only outputs without it can tell more than that.
    """
    types_ = mindcv.models.hrnet.ms
    mindcv.models.hrnet.ms = types.SimpleNamespace(float32=types_.float32, float16=types_.float32)
    try:
        yield
    finally:
        mindcv.models.hrnet.ms = types_


def redraw(name: str, net: mindspore.nn.Cell) -> dict[str, np.ndarray]:
    """Draws every parameter anew; returns those that keep their value (tables of positions)."""
    kept = {}
    for parameter in net.get_parameters():
        parameter.init_data()
        value = drawn(name, parameter.name, tuple(parameter.shape), bool(parameter.requires_grad))
        if value is None:
            kept[parameter.name] = parameter.asnumpy()
        else:
            parameter.set_data(mindspore.Tensor(value))
    return kept


def outputs(net: mindspore.nn.Cell, size: int, levels: mindspore.nn.Cell | None) -> dict[str, np.ndarray]:
    """Scores and levels for one image of `size` pixels a side."""
    x = mindspore.Tensor(image(size))
    found = net(x)
    arrays = {"logits": (found[0] if isinstance(found, (tuple, list)) else found).asnumpy()}
    if levels is not None:
        arrays |= {f"level{i}": level.asnumpy() for i, level in enumerate(levels(x))}
    return arrays


def with_levels(name: str, net: mindspore.nn.Cell, checkpoint: Path) -> mindspore.nn.Cell | None:
    """The network of all levels with the same parameters, or None where MindCV has none for it."""
    flattened = bool(getattr(net, "flatten_sequential", False))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # what it paired, three lines a parameter
            found = create_model(name, checkpoint_path=str(checkpoint), auto_mapping=flattened, features_only=True,
                                 out_indices=list(range(64)))
        found.out_channels  # noqa: B018 (some classifiers take any argument: only a pyramid has this)
    except (TypeError, RuntimeError, AttributeError) as error:
        print(f"{name}: no levels ({type(error).__name__})")
        return None
    return found.set_train(False)


def make(name: str, sizes: list[int], out: Path, full: Path | None) -> None:
    net = create_model(name).set_train(False)
    kept = redraw(name, net)
    directory = full or out
    checkpoint = directory / f"{name}.ckpt"
    mindspore.save_checkpoint(net, str(checkpoint))
    checkpoint.chmod(0o644)  # MindSpore leaves it read-only
    levels = with_levels(name, net, checkpoint)
    info = None if levels is None else getattr(net, "feature_info", None) or levels.net.feature_info
    facts = dict(
        name=name,
        mindcv=mindcv_version,
        mindspore=mindspore.__version__,
        parameters=[[p.name, list(p.shape), bool(p.requires_grad)] for p in net.get_parameters()],
        half=[p.name for p in net.get_parameters() if p.dtype == mindspore.float16],
        levels=info,
        outputs={},
        failures={},
    )
    small, everything = {f"kept/{key}": value for key, value in kept.items()}, {}
    for size in sizes:
        try:
            arrays = outputs(net, size, levels)
        except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            facts["failures"][size] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            continue
        if name.startswith("hrnet"):
            with unrounded():
                arrays |= {f"unrounded/{key}": value for key, value in outputs(net, size, levels).items()}
        facts["outputs"][size] = {key: dict(shape=value.shape, largest=float(np.abs(value).max()))
                                  for key, value in arrays.items()}
        small |= {f"{size}/{key}": sampled(value) for key, value in arrays.items()}
        everything |= {f"{size}/{key}": value for key, value in arrays.items()}
    text = json.dumps(facts, default=int)
    np.savez_compressed(out / f"{name}.npz", facts=np.array(text), **small)
    if full:
        np.savez(full / f"{name}.npz", facts=np.array(text), **everything)
    else:
        checkpoint.unlink()
    print(name, {size: list(found) for size, found in facts["outputs"].items()}, facts["failures"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="MindCV's names (default: those of the files that are there)")
    parser.add_argument("--sizes", help="sides of the images in pixels (default: those of the file, or 64,75)")
    parser.add_argument("--out", type=Path, default=HERE / "mindcv_files")
    parser.add_argument("--full", type=Path, help="also write the checkpoint and every value, here")
    args = parser.parse_args()
    mend()
    for directory in filter(None, (args.out, args.full)):
        directory.mkdir(parents=True, exist_ok=True)
    for name in args.names or sorted(path.stem for path in args.out.glob("*.npz")):
        sizes = args.sizes or "64,75"
        if not args.sizes and (args.out / f"{name}.npz").is_file():
            with np.load(args.out / f"{name}.npz") as file:
                facts = json.loads(str(file["facts"]))
            sizes = ",".join([*facts["outputs"], *facts["failures"]])
        make(name, [int(size) for size in sizes.split(",")], args.out, args.full)
    sys.stdout.flush()
    os._exit(0)  # MindSpore's own end prints a traceback a cell


if __name__ == "__main__":
    main()
