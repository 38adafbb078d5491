"""A comparison for people and for programs: tables, a plot, JSON.

JSON holds `machine` (`device`, `threads`, `load`, `system`, `versions`, `bandwidth` in bytes/s, `peaks` in flops/s by
precision), `settings` (`backends`, `rounds`, `threads`, `device`) and `results`, a list of rows:

- what was computed: `network`, `view`, `batch`, `precision`, `size` (pixels; null: the network's own), `pixels`, `backend`;
- `failure`: why there is no figure, and then nothing follows; null otherwise;
- `images_per_second` (of the median round), `quartiles` of it over the rounds, `latency` (seconds a batch that 50, 90 and 99 %
  of all calls took at most: `p50`, `p90`, `p99`), `rounds` (seconds of each call, a list a round);
- `baseline` (true of one row), `ratio` (times as fast as it, by medians), `paired_ratio` (the median ratio of a round);
- `error` (largest absolute difference to ours in eager float32, as a share of the output's largest value; null: other shapes,
  or not finite), `note` (what the contender settled on);
- `build_seconds` (from weights to first outputs), `build_memory` and `memory` (peak bytes of the process while it is made and
  while it runs; on a GPU, of the GPU; null where the system does not tell);
- `of_peak` (multiply-adds as a share of the machine's peak), `of_roofline` (the least time of its layers as a share of the time
  taken; see `costs.least_seconds`); null where there is no peak of the precision.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadArgument
from ..packages import require_packages

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .comparison import Comparison, Machine, Result

__all__ = ["check_plot", "console", "doing", "plot", "show_case", "show_machine"]

WIDTH = 160  # columns, where there is no terminal
COLOURS = {"ours": "#3b6ea5", "peers": "#b0b0b0"}


def console() -> Console:
    """Standard output, wide where it is no terminal."""
    import sys

    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, soft_wrap=False)


@contextmanager
def doing() -> Iterator[Callable[[str], None]]:
    """A function that tells what is going on, on standard error, in one line that is gone at the end; silent elsewhere."""
    from rich.console import Console

    errors = Console(stderr=True)
    if not errors.is_terminal:
        yield lambda sentence: None
        return
    with errors.status("") as status:
        yield lambda sentence: status.update(f"[dim]{sentence}[/dim]")


def show_machine(machine: Machine, to: Console) -> None:
    """One line: what computes, and the most it can."""
    peaks = ", ".join(f"{precision} {peak / 1e9:,.0f} Gflop/s" for precision, peak in machine.peaks.items() if peak)
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    load = "" if machine.load is None else f", load {machine.load}"
    to.print(f"{machine.device}, {machine.threads} threads{load}; measured peak: {peaks or 'none'}; a copy moves "
             f"{machine.bandwidth / 1e9:,.1f} GB/s; {versions}", soft_wrap=True)


def show_case(results: Sequence[Result], to: Console) -> None:
    """A table of the contenders of one case, and the sentences of those that have no figures."""
    from rich.markup import escape

    to.print()
    if any(not result.failure for result in results):
        to.print(table_of(results))
    else:
        to.print(str(results[0].case), style="italic")
    for result in results:
        if result.failure:
            to.print(f"[bold]{result.backend}[/bold]: {escape(result.failure)}", soft_wrap=True)


def table_of(results: Sequence[Result]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(str(results[0].case)), title_justify="left", box=None, pad_edge=False)
    table.add_column("backend", no_wrap=True)
    for heading in ("images/s", "quartiles", "ratio", "paired", "p50 ms", "p90", "p99", "MiB", "to build", "s", "error", "of peak",
                    "roofline"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    fastest = min((result.seconds for result in results if not result.failure), default=None)
    for result in results:
        if not result.failure:
            table.add_row(result.backend, *cells(result), Text(result.note), style="bold" if result.seconds == fastest else "")
    return table


def cells(result: Result) -> Iterator[str]:
    low, high = result.spread
    yield f"{result.images_per_second:.4g}"
    yield f"{low:.4g}-{high:.4g}"
    yield f"{result.ratio:.2f}x" + ("*" if result.is_baseline else " ")
    yield f"{result.paired:.2f}x"
    for share in (50, 90, 99):
        yield f"{1000 * result.latency(share):.4g}"
    for held in (result.memory, result.build_memory):
        yield "" if held is None else f"{held / 2**20:.0f}"
    yield f"{result.build_seconds:.1f}"
    yield "-" if result.error is None else f"{result.error:.1e}"
    for reached in (result.of_peak, result.of_roofline):
        yield "" if reached is None else f"{reached:.0%}"


def check_file(option: str, path: Path) -> None:
    """Raises `BadArgument` where no file can be written to `path`, before hours of timing."""
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise BadArgument(f"{option} {path}: give the name of a file, in a folder that is there and can be written")


def check_plot(path: Path) -> None:
    """Raises `BadArgument` for a file that `plot` cannot write, and `MissingExtra`, before hours of timing."""
    import_matplotlib()
    check_file("--plot", path)
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise BadArgument(f"--plot {path}: give a file name that ends in .png, .svg or .pdf")


def plot(comparison: Comparison, path: Path) -> None:
    """Bars of images per second with their quartiles, a panel a case, into `path` (.png, .svg or .pdf).

    Raises `MissingExtra` without matplotlib.
    """
    figure_class, axes_of = import_matplotlib()
    cases = [(case, [one for one in rows if not one.failure])
             for case, rows in ((case, list(rows)) for case, rows in groupby(comparison.results, lambda result: result.case))]
    cases = [(case, rows) for case, rows in cases if rows]
    heights = [0.9 + 0.28 * len(rows) for _, rows in cases] or [1.0]
    figure: Any = figure_class(figsize=(8, sum(heights)), layout="constrained")
    axes_of(figure)
    panels = figure.subplots(max(len(cases), 1), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (case, rows) in zip(panels, cases):
        rates = [one.images_per_second for one in rows]
        spreads = [[rate - one.spread[0] for rate, one in zip(rates, rows)], [one.spread[1] - rate for rate, one in zip(rates, rows)]]
        colours = [COLOURS["peers" if one.backend.startswith("timm") else "ours"] for one in rows]
        bars = panel.barh([one.backend for one in rows], rates, xerr=[[max(0.0, s) for s in side] for side in spreads], color=colours,
                          ecolor="#404040", capsize=2)
        panel.bar_label(bars, [f" {rate:.3g}  ({one.ratio:.2f}x)" for rate, one in zip(rates, rows)], fontsize=8)
        panel.set_title(str(case), fontsize=9, loc="left")
        panel.invert_yaxis()
        panel.margins(x=0.2)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel(f"images/s, medians and quartiles of {comparison.settings['rounds']} rounds; {comparison.machine.device}", fontsize=8)
    figure.savefig(path, dpi=150)


def import_matplotlib() -> tuple[Any, Any]:
    """A figure's class and the canvas that draws it without a display."""
    require_packages("--plot", ["matplotlib"], "plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    return Figure, FigureCanvasAgg
