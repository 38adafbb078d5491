from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..errors import BadArgument
from .common import chosen_device, print_json

STDOUT = "-"


class Command(TyperCommand):
    """Takes --json with a file or without one, as a flag."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = []
        for here, following in zip(args, [*args[1:], ""]):
            is_file = following.endswith(".json") or "/" in following
            given.append(f"--json={STDOUT}" if here == "--json" and not is_file else here)
        return super().parse_args(ctx, given)


def run(
    names: Annotated[list[str], typer.Argument(
        metavar="NAME...", help="Architectures, with random weights; architecture.tag for published ones (times are the same, errors are not).")],
    against: Annotated[str | None, typer.Option(
        metavar="PEER,...", help="timm: the same networks of timm's with the same weights, in every way that is installed; "
                                 "or some of them: timm-eager, timm-channels_last, timm-compile, timm-onnxruntime, timm-openvino.")] = None,
    views: Annotated[str, typer.Option(metavar="VIEW,...", help="classify, embed, pyramid (all levels).")] = "classify",
    backends: Annotated[str, typer.Option(
        metavar="NAME,...", help="eager (the model as it is), optimize (ziggurat.optimize, which chooses), optimize-eager "
                                 "(without a compiler), or another backend of it by its name: openvino, onnxruntime, compile, ...")] = "eager,optimize",
    batch: Annotated[str, typer.Option(metavar="N,...", help="Images computed at once.")] = "8",
    precision: Annotated[str, typer.Option(metavar="NAME,...", help="fp32, bf16, fp16, int8.")] = "fp32",
    size: Annotated[int | None, typer.Option(min=1, metavar="PX", help="Side of the images. The network's own if not given.")] = None,
    pixels: Annotated[bool, typer.Option("--pixels", help="Images are bytes, and normalising them is part of the work.")] = False,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="How often each has its turn.")] = 7,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads of each contender. What each takes by itself if not given.")] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="Where to compute: cpu, cuda, cuda:1; auto takes a GPU if there is one.")] = "auto",
    json: Annotated[str | None, typer.Option(
        metavar="[FILE.json]", help="Write the figures, every round's among them, into a file; without one, print them instead of tables.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw bars of images/s with their spread: .png, .svg or .pdf.")] = None,
) -> None:
    """How fast networks are on this machine: ours against each other and against timm's, and against what the machine can do.

    \b
    Examples:
      ziggurat bench resnet50
      ziggurat bench resnet50 convnext_tiny --against timm --views pyramid --batch 1,8 --json figures.json --plot figures.png

    First the machine itself is measured, by matrix products and a copy. Then each contender is made in a process of its own,
    and they run in turn, one at a time, in another order each round. A row of the table: images per second in the median
    round and its quartiles; ratio to the baseline, which is marked *, by medians and as the median of each round's; the
    milliseconds that 50, 90 and 99 % of the batches took at most; peak memory of the process while it ran and while it was
    made; the seconds that making took; the largest error, as a share of the largest value, against eager float32; shares of
    the measured peak, and of what peak and bandwidth together allow layer by layer; what was chosen. Leave the machine
    alone meanwhile.

    Exit status: 0; 1 if a contender has no figures (its sentence is printed); 2 if nothing could be timed as asked.
    """
    from ..benchmarking import report
    from ..benchmarking.comparison import Machine, Result, compare
    from ..benchmarking.contenders import Case, peers_of

    asked = [*several("--backends", backends), *(peer for name in several("--against", against or "") for peer in peers_of(name))]
    if not asked:
        raise BadArgument("--backends: name one at least")
    cases = [Case(name, view, count, arithmetic, size, pixels) for name in names for view in several("--views", views)
             for count in whole("--batch", batch) for arithmetic in several("--precision", precision)]
    if json is not None and json != STDOUT:
        report.check_file("--json", Path(json))
    if plot is not None:
        report.check_plot(plot)
    out = report.console()
    first = True

    def show(machine: Machine, results: list[Result]) -> None:
        nonlocal first
        if json == STDOUT:
            return
        if first:
            report.show_machine(machine, out)
        first = False
        report.show_case(results, out)

    with report.doing() as say:
        done = compare(cases, asked, rounds=rounds, threads=threads, device=str(chosen_device(device)), say=say, on_case=show)
    if json == STDOUT:
        print_json(done.as_dict())
    elif json is not None:
        done.write(Path(json))
    if plot is not None:
        report.plot(done, plot)
    if all(result.failure for result in done.results):
        raise typer.Exit(2)
    if any(result.failure for result in done.results):
        raise typer.Exit(1)


def several(option: str, text: str) -> list[str]:
    """The values of an option that takes several with commas between them, each once."""
    found = [part.strip() for part in text.split(",")] if text else []
    if not all(found):
        raise BadArgument(f"{option} {text}: give values with commas between them, and nothing empty")
    return list(dict.fromkeys(found))


def whole(option: str, text: str) -> list[int]:
    numbers = several(option, text)
    if not numbers or not all(number.isdecimal() and int(number) for number in numbers):
        raise BadArgument(f"{option} {text}: give whole numbers of 1 or more with commas between them, as in 1,8,32")
    return [int(number) for number in numbers]
