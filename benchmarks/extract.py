"""Images to embeddings, end to end: `ziggurat.extract` beside what one writes by hand, and beside its own two bounds.

    python benchmarks/extract.py [--images 600] [--rounds 3] [--batch 32] [--cores 2] [--model NAME] [--skip-slow]
    python benchmarks/extract.py --memory [--counts 1000 100000]

One folder of JPEGs (crops of the photos under examples/, 500 x 375 pixels, quality 92, generated into a temporary folder),
one model with one set of weights, and in turn, round by round, each in a process of its own that waits meanwhile:

- timm: its model in eager mode, its own transform, a DataLoader with `--cores` workers, batches of 32 (and of --batch);
- transformers: the image-feature-extraction pipeline around that model (TimmWrapper), the same workers and batches;
- thingsvision, if it can be imported;
- ziggurat.extract, in fp32 and in bf16, writing Parquet and verifying it;
- decoding alone: the decoders of ziggurat.extract over the folder;
- forward alone: its forward pass over images that are decoded already.

Figures are images per second, medians of the rounds. What is done once a run whatever its length (loading the model,
converting it, starting Python in the workers) is not in them: contestants have a round of a few images first, and
`ziggurat.extract` is timed from when it has planned. That set-up is printed apart. Decoding and forward pass share the
cores, so together they allow 1 / (1/D + 1/F); the share is how much of it `ziggurat.extract` reaches. The exact path is
timm's: Pillow and eager float32. Exit status 1 if a bound is missed: fp32 4x timm with a cosine of 0.9999 and 85 % of
what the bounds allow, bf16 6x timm where the CPU has bf16.

--memory prints the peak resident memory of this process and of the largest of its workers, at both numbers of images
(hard links of eight JPEGs of 32 pixels) through a small network.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

PHOTOS = Path(__file__).parent.parent / "examples/photos"
WARM_UP = 64  # images


# -------------------------------------------------------------------- images


def write_images(folder: Path, count: int, size: tuple[int, int] = (500, 375), links: int = 1) -> None:
    """`count` JPEGs of random crops of the photos; only one in `links` is a file of its own, the others are hard links."""
    from PIL import Image

    photos = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]
    random = np.random.default_rng(0)
    made: list[Path] = []
    for i in range(count):
        path = folder / f"{i // 1000:03d}" / f"{i:06d}.jpg"
        path.parent.mkdir(exist_ok=True, parents=True)
        if len(made) * links > i:
            os.link(made[i % len(made)], path)
            continue
        photo = photos[i % len(photos)]
        width = int(photo.width * random.uniform(0.6, 1))
        height = min(photo.height, width * size[1] // size[0])
        left, top = (int(random.integers(0, room + 1)) for room in (photo.width - width, photo.height - height))
        photo.resize(size, Image.Resampling.LANCZOS, (left, top, left + width, top + height)).save(path, quality=92)
        made.append(path)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jpg"))


class Prepared:
    """A data set of images as a transform makes them of Pillow's."""

    def __init__(self, paths: list[Path], transform: Callable[[Any], Any]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


# -------------------------------------------------------------------- contestants: round(folder) -> what it found


def timm_model(name: str) -> Any:
    """timm's network, with the weights that ziggurat has of it."""
    import timm

    import ziggurat

    model = timm.create_model(name.partition(".")[0], num_classes=0).eval()
    model.load_state_dict(ziggurat.create_model(name, pretrained=True, num_classes=0).state_dict())
    model.pretrained_cfg = asdict(ziggurat.get_pretrained_cfg(name))
    return model


def timm_loop(args: argparse.Namespace, batch: int) -> Callable[[Path], dict[str, Any]]:
    import torch
    from timm.data import create_transform, resolve_model_data_config
    from torch.utils.data import DataLoader

    model = timm_model(args.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)

    def run(folder: Path) -> dict[str, Any]:
        loader = DataLoader(Prepared(files(folder), transform), batch, num_workers=args.cores, pin_memory=device == "cuda")
        with torch.inference_mode():
            found = torch.cat([model(images.to(device, non_blocking=True)).cpu() for images in loader])
        return {"vectors": found.numpy()}

    return run


def transformers_pipeline(args: argparse.Namespace) -> Callable[[Path], dict[str, Any]]:
    import torch
    import transformers
    from timm.data import resolve_model_data_config

    transformers.logging.set_verbosity_error()
    wrapped = timm_model(args.model)
    architecture = args.model.partition(".")[0]
    settings = dict(resolve_model_data_config(wrapped), num_classes=0)
    config = transformers.TimmWrapperConfig(architecture=architecture, num_labels=0,
                                            pretrained_cfg=settings)
    model = transformers.TimmWrapperModel(config).eval()
    model.timm_model.load_state_dict(wrapped.state_dict())
    processor = transformers.TimmWrapperImageProcessor(settings, architecture)
    pipeline = transformers.pipeline("image-feature-extraction", model=model, image_processor=processor,
                                     device=0 if torch.cuda.is_available() else -1)

    def run(folder: Path) -> dict[str, Any]:
        paths = [str(path) for path in files(folder)]
        found = list(pipeline(paths, batch_size=args.batch, num_workers=args.cores, pool=True, return_tensors=True))
        return {"vectors": torch.cat(found).numpy()}

    return run


def thingsvision_extractor(args: argparse.Namespace) -> Callable[[Path], dict[str, Any]]:
    import torch
    from thingsvision import get_extractor
    from thingsvision.utils.data import DataLoader, ImageDataset

    extractor = get_extractor(args.model.partition(".")[0], source="timm", device="cpu", pretrained=False)
    extractor.model.load_state_dict(timm_model(args.model).state_dict(), strict=False)

    def run(folder: Path) -> dict[str, Any]:
        data = ImageDataset(root=str(folder), out_path=tempfile.mkdtemp(), backend=extractor.get_backend(),
                            transforms=extractor.get_transformations())
        loader = DataLoader(dataset=data, batch_size=args.batch, backend=extractor.get_backend())
        with torch.inference_mode():
            extractor.extract_features(batches=loader, module_name="global_pool", flatten_acts=True)
        return {}

    return run


def ours(args: argparse.Namespace, precision: str) -> Callable[[Path], dict[str, Any]]:
    import ziggurat

    def run(folder: Path) -> dict[str, Any]:
        told: dict[str, Any] = {}

        def listen(event: Any) -> None:
            name = type(event).__name__
            if name == "Planned":
                told.update(planned=time.perf_counter(), reason=event.reason)
            elif name == "Progress":
                told.update(busy=dict(event.busy))

        with tempfile.TemporaryDirectory() as out:
            began = time.perf_counter()
            summary = ziggurat.extract(folder, model=args.model, out=out, embed=True, batch_size=args.batch, workers=args.cores,
                                       threads=args.cores, backend=args.backend, precision=precision, on_event=listen)
            ended = time.perf_counter()
            assert summary.state == "complete", summary
            vectors = np.asarray(ziggurat.open(out).embedding.numpy(), np.float32)
        return {"vectors": vectors, "seconds": ended - told["planned"], "set_up": told["planned"] - began,
                "reason": told["reason"], "busy": told["busy"]}

    return run


def our_parts(args: argparse.Namespace, precision: str) -> tuple[Any, Any]:
    import ziggurat
    from ziggurat.extraction.decoding import Preprocessing
    from ziggurat.extraction.forward import make_forward
    from ziggurat.extraction.outputs import Outputs

    model = ziggurat.create_model(args.model, pretrained=True, num_classes=0)
    preprocessing = Preprocessing.of(model)
    if precision == "none":
        return None, preprocessing
    return make_forward(model, Outputs(embed=True), preprocessing, backend=args.backend, precision=precision,
                        batch_size=args.batch, threads=args.cores), preprocessing


def decoding_alone(args: argparse.Namespace) -> Callable[[Path], dict[str, Any]]:
    from ziggurat.extraction.sources import list_inputs
    from ziggurat.extraction.workers import Decoders

    _, preprocessing = our_parts(args, "none")

    def run(folder: Path) -> dict[str, Any]:
        items = list_inputs(folder).items
        began = time.perf_counter()
        with Decoders(args.cores, preprocessing, ahead=2 * args.batch) as decoders:
            assert all(isinstance(pixels, np.ndarray) for pixels in decoders.map(items))
        return {"seconds": time.perf_counter() - began}

    return run


def forward_alone(args: argparse.Namespace, precision: str) -> Callable[[Path], dict[str, Any]]:
    from ziggurat.extraction.decoding import decode

    forward, preprocessing = our_parts(args, precision)
    kept: dict[Path, list[np.ndarray]] = {}

    def run(folder: Path) -> dict[str, Any]:
        paths = files(folder)
        if folder not in kept:
            kept[folder] = [decode(path.read_bytes(), preprocessing) for path in paths]
        images, empty = kept[folder], np.zeros_like(kept[folder][0])
        starts = range(0, len(images), args.batch)
        batches = [(start, np.stack((images[start : start + args.batch] + [empty] * args.batch)[: args.batch])) for start in starts]
        began = time.perf_counter()
        for _ in forward.stream(batches):
            pass
        return {"seconds": time.perf_counter() - began, "reason": forward.reason}

    return run


CONTESTANTS: dict[str, Callable[[argparse.Namespace], Callable[[Path], dict[str, Any]]]] = {
    "timm, DataLoader, batch 32": lambda args: timm_loop(args, 32),
    "timm, DataLoader, our batch": lambda args: timm_loop(args, args.batch),
    "transformers pipeline": transformers_pipeline,
    "thingsvision": thingsvision_extractor,
    "ziggurat.extract, fp32": lambda args: ours(args, "fp32"),
    "ziggurat.extract, bf16": lambda args: ours(args, "bf16"),
    "decoding alone": decoding_alone,
    "forward alone, fp32": lambda args: forward_alone(args, "fp32"),
    "forward alone, bf16": lambda args: forward_alone(args, "bf16"),
}


def serve(args: argparse.Namespace) -> None:
    """Makes one contestant and runs it over each folder that it is told, a line of JSON for each."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    run = CONTESTANTS[args.serve](args)
    for line in sys.stdin:
        order = json.loads(line)
        began = time.perf_counter()
        found = run(Path(order["folder"]))
        found.setdefault("seconds", time.perf_counter() - began)
        vectors = found.pop("vectors", None)
        if vectors is not None:
            np.save(order["vectors"], vectors)
        answers.write(json.dumps(found) + "\n")


class Contestant:
    """A contestant in a process of its own."""

    def __init__(self, name: str, arguments: list[str], scratch: Path) -> None:
        self.name, self.vectors = name, scratch / f"{name.replace(' ', '-')}.npy"
        self.rounds: list[dict[str, Any]] = []
        self.process = subprocess.Popen([sys.executable, __file__, "--serve", name, *arguments], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, folder: Path) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"folder": str(folder), "vectors": str(self.vectors)}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def median(self, key: str = "seconds") -> float:
        return statistics.median(found[key] for found in self.rounds)

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


# -------------------------------------------------------------------- the comparison


def bf16_runs() -> str:
    """Why bf16 is left out here; empty where the CPU, or the GPU, has it."""
    import torch

    if torch.cuda.is_available() or not find_spec("openvino"):
        return ""
    from ziggurat.extraction.backends import import_openvino

    core = import_openvino().Core()
    return "" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "this CPU has no bf16 instructions"


def least_cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (one, other))
    return float((one * other).sum(axis=1).min())


def compare(args: argparse.Namespace) -> int:
    left_out: dict[str, str] = {}
    if args.batch == 32:
        left_out["timm, DataLoader, our batch"] = ""
    if args.skip_slow:
        left_out["transformers pipeline"] = left_out["thingsvision"] = "--skip-slow"
    elif find_spec("thingsvision") is None:
        left_out["thingsvision"] = "not installed (2.7.3 wants NumPy 1, torchvision 0.15, transformers 4.40 and TensorFlow)"
    if why := bf16_runs():
        left_out["ziggurat.extract, bf16"] = left_out["forward alone, bf16"] = why
    arguments = ["--model", args.model, "--batch", str(args.batch), "--cores", str(args.cores), "--backend", args.backend]

    with tempfile.TemporaryDirectory() as scratch:
        folder, few = Path(scratch, "images"), Path(scratch, "few")
        write_images(folder, args.images)
        write_images(few, WARM_UP)
        contestants = {name: Contestant(name, arguments, Path(scratch)) for name in CONTESTANTS if name not in left_out}
        for contestant in contestants.values():
            contestant.run(few)
        for number in range(args.rounds):
            order = list(contestants.values())
            for contestant in order if number % 2 == 0 else reversed(order):
                contestant.rounds.append(contestant.run(folder))
        exact = np.load(contestants["timm, DataLoader, batch 32"].vectors)
        cosines = {name: least_cosine(np.load(one.vectors), exact) for name, one in contestants.items() if one.vectors.exists()}
        for contestant in contestants.values():
            contestant.end()

    rates = {name: args.images / one.median() for name, one in contestants.items()}
    base = rates["timm, DataLoader, batch 32"]
    print(f"{args.model}, {args.images} JPEGs of 500 x 375, {args.cores} workers and threads, batch {args.batch}; medians of "
          f"{args.rounds} rounds in turn\n\n{'':30s}{'images/s':>10s}{'x timm':>9s}   least cosine to the exact path")
    for name, rate in rates.items():
        cosine = f"{cosines[name]:.6f}" if name in cosines else ""
        print(f"{name:30s}{rate:10.1f}{rate / base:9.2f}   {cosine}")
    for name, why in left_out.items():
        if why:
            print(f"{name:30s}  left out: {why}")
    missed = []
    for precision, bound, cosine in (("fp32", 4, 0.9999), ("bf16", 6, 0.0)):
        name = f"ziggurat.extract, {precision}"
        if name not in rates:
            continue
        run = contestants[name].rounds[-1]
        decoding, forward = rates["decoding alone"], rates[f"forward alone, {precision}"]
        allowed = 1 / (1 / decoding + 1 / forward)
        print(f"\n{precision}: {run['reason']}\n  the bounds allow {allowed:.1f} images/s together, reached "
              f"{rates[name] / allowed:.0%}; set-up {contestants[name].median('set_up'):.1f} s; busy seconds of the last round "
              f"({run['seconds']:.1f} s): " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in run["busy"].items()))
        if rates[name] < bound * base:
            missed.append(f"{name} is not {bound} times as fast as timm")
        if cosines[name] < cosine:
            missed.append(f"{name}: a cosine of {cosines[name]:.6f} to the exact path, less than {cosine}")
        if precision == "fp32" and rates[name] < 0.85 * allowed:
            missed.append(f"{name} reaches less than 85 % of what decoding and the forward pass allow together")
    for sentence in missed:
        print(f"MISSED: {sentence}")
    return 1 if missed else 0


# -------------------------------------------------------------------- memory


def peak(folder: str) -> None:
    """Runs the small network over a folder and prints peaks in MiB: of this process, and of the largest of its children."""
    import ziggurat

    with tempfile.TemporaryDirectory() as out:
        ziggurat.extract(folder, model="resnet10t", random=True, size=32, out=out, embed=True, batch_size=64, unit_size=4096,
                         workers=2, threads=2, backend="torch")
        plan = Path(out, "_ziggurat/plan.parquet").stat().st_size
    mine, children = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"this process": mine, "largest worker": children, "plan on disk": plan / 2**20}))


def memory(args: argparse.Namespace) -> int:
    peaks = []
    for count in args.counts:
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder), count, (32, 32), links=-(-count // 8))
            done = subprocess.run([sys.executable, __file__, "--peak", folder], stdout=subprocess.PIPE, text=True, check=True)
            peaks.append(json.loads(done.stdout.splitlines()[-1]))
    print("peak resident memory, MiB\n\n" + f"{'':20s}" + "".join(f"{count:>12,d}" for count in args.counts) + "  images")
    for key in peaks[0]:
        print(f"{key:20s}" + "".join(f"{found[key]:12.1f}" for found in peaks))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--cores", type=int, default=2, help="decoding processes, and threads of our forward pass")
    parser.add_argument("--model", default="tf_efficientnet_lite0.pip_in1k")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--skip-slow", action="store_true", help="timm and ziggurat only")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args)
        return 0
    if args.peak:
        peak(args.peak)
        return 0
    return memory(args) if args.memory else compare(args)


if __name__ == "__main__":
    sys.exit(main())
