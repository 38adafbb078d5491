"""The table of what `optimize` tried."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .choices import Trial
from .program import Recipe

__all__ = ["as_table", "as_text"]


def as_table(trials: Sequence[Trial], chosen: Recipe, title: str = "") -> Table:
    """A row a trial: how, images/s, ratio to eager, largest error, seconds to build, and what became of it."""
    table = Table(title=title or None, title_justify="left")
    table.add_column("tried", overflow="fold")
    for name in ("images/s", "ratio", "largest error", "built in"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for trial in trials:
        is_chosen = trial.recipe == chosen and not trial.dropped
        table.add_row(str(trial.recipe), _figure(trial.images_per_second, "{:.1f}"), _figure(trial.ratio, "{:.2f}x"),
                      _figure(trial.error, "{:.1e}"), _figure(trial.seconds, "{:.1f} s"),
                      "chosen" if is_chosen else trial.dropped, style="bold" if is_chosen else "dim" if trial.dropped else "")
    return table


def as_text(trials: Sequence[Trial], chosen: Recipe, title: str = "") -> str:
    """That table as plain text, as wide as the terminal, or 120 columns where there is none."""
    console = Console(file=io.StringIO(), width=shutil.get_terminal_size((120, 24)).columns, color_system=None)
    console.print(as_table(trials, chosen, title))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
