"""Measures which exported files give a network's own numbers, and writes it to exporting/certified.json and docs/exports.md.

    python tools/certify.py [--resume FILE] [--shard K/N] [--formats onnx,torch] [--only CLASS]   measures
    python tools/certify.py --write FILE [FILE ...]                                               writes the two

Each class of each family stands for its architectures by the smallest of them, with random weights, at a small size. Each
view is captured by torch.export once, with a fixed shape and with batch, height and width free, and written in every
format; each file is read back and run in its own runtime. A result is appended to FILE as a line of JSON as soon as it is
known, and is not measured again when FILE is there. AOTInductor comes last: compiling takes most of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ziggurat
from ziggurat.errors import ExportFailed
from ziggurat.exporting.export import FORMATS, Prepared, prepare
from ziggurat.facts import CERTIFIED, MODES
from ziggurat.optimization.program import in_brief
from ziggurat.registry import catalog
from ziggurat.testing import settled

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "exports.md"
LINES = Path("certify-results", "lines.jsonl")
VIEWS = ("classify", "embed", "pyramid")
SIDE = 96  # pixels, where a network takes any size
TOLERANCE = 1e-4
SLOW = ("aoti",)
UNCHECKED = {"coreml": "written, not checked: Core ML runs on macOS only"} if sys.platform != "darwin" else {}
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "coremltools")

Key = tuple[str, str, str, str]  # class, view, mode, format


def representatives() -> dict[str, tuple[str, int]]:
    """For each `module.class` its smallest architecture by parameters, and the side at which it is tried, in pixels."""
    rows = sorted(catalog().items(), key=lambda row: (row[1]["params"], row[0]))
    found: dict[str, tuple[str, int]] = {}
    for name, facts in rows:
        side = facts["input_size"][-1] if facts["native_size_only"] else max(SIDE, facts["min_size"])
        found.setdefault(f"{facts['module']}.{facts['class']}", (name, side))
    return dict(sorted(found.items()))


def jobs(classes: Iterable[str], formats: Iterable[str]) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Class, view, mode and the formats to write then: the quick formats of all classes first, and small networks first."""
    quick = tuple(format for format in formats if format not in SLOW)
    slow = tuple(format for format in formats if format in SLOW)
    costs = catalog()
    classes = sorted(classes, key=lambda one: costs[representatives()[one][0]]["activations"])
    yield from ((one, view, mode, quick) for one in classes for mode in MODES for view in VIEWS if quick)
    yield from ((one, view, mode, slow) for mode in MODES for view in ("classify", "pyramid", "embed") for one in classes if slow)


def measure(architecture: str, side: int, view: str, mode: str, formats: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each format its error, or in a sentence what stands in the way, and the seconds that it took."""
    start = time.perf_counter()
    model = settled(lambda **kwargs: ziggurat.create_model(architecture, **kwargs))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that cannot be free, which `fixed` says too
            prepared = prepare(model, mode == "dynamic", view=view, size=side)
    except ExportFailed as error:
        for format in formats:
            yield format, {"result": cause(error), "seconds": round(time.perf_counter() - start, 1)}
        return
    for format in formats:
        result = written(prepared, format)
        if prepared.fixed:
            result = prepared.fixed + (f"; with the batch alone free: {shown(result)}" if prepared.dynamic else "")
        yield format, {"result": result, "seconds": round(time.perf_counter() - start, 1)}
        start = time.perf_counter()


def written(prepared: Prepared, format: str) -> float | str:
    """The largest error of a file that is written and thrown away, or why there is none."""
    with TemporaryDirectory(prefix="certify-") as folder:
        path = Path(folder, f"view{FORMATS[format].suffix}")
        try:
            error = prepared.write(path, format, TOLERANCE, check=format not in UNCHECKED).error
        except ExportFailed as failure:
            return cause(failure)
    return UNCHECKED[format] if error is None else float(f"{error:.1e}")


def cause(error: BaseException) -> str:
    """What went wrong, in a line: the message of what raised first, else the error's own without its advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = in_brief(error).partition("; try ")[0] if isinstance(error, ExportFailed) else in_brief(error)
    return text.removeprefix("ExportFailed: ")


def shown(result: float | str | None) -> str:
    """A result as the table shows it."""
    return "not run" if result is None else result if isinstance(result, str) else f"{result:.0e}" if result else "0"


def versions() -> dict[str, str]:
    """The packages that took part, by name."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def known(paths: Iterable[Path]) -> dict[Key, dict[str, Any]]:
    """The lines of these files by what they are of, the last of each."""
    rows: dict[Key, dict[str, Any]] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows[row["class"], row["view"], row["mode"], row["format"]] = row
    return rows


def run(file: Path, classes: dict[str, tuple[str, int]], formats: Sequence[str]) -> None:
    """Measures what `file` does not hold yet, and appends it."""
    done = known([file]) if file.exists() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    at = versions()
    with file.open("a", encoding="utf-8") as lines:
        for one, view, mode, some in jobs(classes, formats):
            left = [format for format in some if (one, view, mode, format) not in done]
            if not left:
                continue
            architecture, side = classes[one]
            for format, found in measure(architecture, side, view, mode, left):
                row = {"class": one, "architecture": architecture, "size": side, "view": view, "mode": mode, "format": format,
                       **found, "versions": at}
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                print(f"{one:32s} {view:8s} {mode:7s} {format:8s} {found['seconds']:6.1f} s  {shown(found['result'])}", flush=True)


def certified(rows: dict[Key, dict[str, Any]]) -> dict[str, Any]:
    """What certified.json holds: a result for every class, format, view and mode, null for what was not run."""
    classes = {}
    for one, (architecture, side) in representatives().items():
        exports = {
            format: {view: {mode: rows.get((one, view, mode, format), {}).get("result") for mode in MODES} for view in VIEWS}
            for format in FORMATS
        }
        classes[one] = {"architecture": architecture, "size": side, "exports": exports}
    found = {name: number for row in rows.values() for name, number in row["versions"].items()}
    return {"versions": found or versions(), "tolerance": TOLERANCE, "classes": classes}


def page(table: dict[str, Any]) -> str:
    """docs/exports.md of certified.json."""
    cells = [(one, format, view, mode, result)
             for one, row in table["classes"].items() for format, views in row["exports"].items()
             for view, modes in views.items() for mode, result in modes.items()]
    reasons = sorted({result for *_, result in cells if isinstance(result, str) and result not in UNCHECKED.values()})
    number = {reason: index for index, reason in enumerate(reasons, 1)}

    def cell(result: float | str | None) -> str:
        if isinstance(result, str):
            return f"[{number[result]}]" if result in number else "written"
        return shown(result)

    runtimes = ", ".join(f"{name} {value}" for name, value in table["versions"].items())
    lines = [
        "# Exports",
        "",
        "Which files of `ziggurat.export` give the network's own numbers: made by `make certify`, and what `model_info(name).exports` "
        "answers from. Each class of each family stands for its architectures by the smallest of them, with random weights. "
        "A number is the largest absolute difference between an output of the file, in its format's own runtime, and the "
        f"network's in PyTorch, as a share of that output's largest value; more than {table['tolerance']:g} counts as a failure. "
        "Two numbers are of a file of fixed shape / a file with batch, height and width free, tried at two shapes. "
        "*written*: converted without complaint, and not run, since Core ML runs on macOS only. "
        "*not run*: nobody has tried it yet. [1] and so on: it does not work, for the reason of that number below the tables.",
        "",
        f"Measured with {runtimes}.",
        "",
        "| format | files that agree | fail | written, not run | not tried |",
        "|---|--:|--:|--:|--:|",
    ]
    for format in FORMATS:
        results = [result for _, of, _, _, result in cells if of == format]
        agree = sum(isinstance(result, float) for result in results)
        fail = sum(result in number for result in results)
        untried = results.count(None)
        lines.append(f"| {format} | {agree} | {fail} | {len(results) - agree - fail - untried} | {untried} |")
    for view in VIEWS:
        lines += ["", f"## {view}", "", "| class | architecture | pixels | " + " | ".join(FORMATS) + " |",
                  "|---|---|--:|" + "---|" * len(FORMATS)]
        for one, row in table["classes"].items():
            pairs = [" / ".join(cell(row["exports"][format][view][mode]) for mode in MODES) for format in FORMATS]
            lines.append(f"| {one} | {row['architecture']} | {row['size']} | " + " | ".join(pairs) + " |")
    if reasons:
        lines += ["", "## Reasons", "", *(f"{index}. {reason.replace('|', '/')}" for reason, index in number.items())]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--resume", type=Path, default=LINES, metavar="FILE", help=f"lines to append to (default: {LINES})")
    parser.add_argument("--shard", default="0/1", metavar="K/N", help="every Nth class, from the Kth: 0/2 and 1/2")
    parser.add_argument("--formats", default=",".join(FORMATS), help="formats, with commas between them (default: all)")
    parser.add_argument("--only", default="", metavar="CLASS", help="classes (module.Class) with this in their names")
    parser.add_argument("--write", type=Path, nargs="+", metavar="FILE", help="write the JSON and the page from these lines")
    args = parser.parse_args()
    if args.write:
        table = certified(known(args.write))
        CERTIFIED.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(table), encoding="utf-8")
        print(f"{CERTIFIED.name} and {PAGE.name}: {len(table['classes'])} classes")
        return 0
    first, _, count = args.shard.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        parser.error(f"--shard {args.shard}: give K/N with K from 0 to N - 1")
    chosen = dict(list(representatives().items())[int(first)::int(count)])
    chosen = {one: row for one, row in chosen.items() if args.only.lower() in one.lower()}
    formats = args.formats.split(",")
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown or not chosen:
        parser.error(f"--formats: no {', '.join(unknown)}; there are {', '.join(FORMATS)}" if unknown else f"--only: no class has {args.only!r}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run(args.resume, chosen, formats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
