"""The table of what `optimize` tried."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .choices import Trial
from .program import Recipe

__all__ = ["as_table", "as_text"]


LAYOUTS = {"channels_last": "NHWC", "contiguous": "NCHW", "as given": ""}


def as_table(trials: Sequence[Trial], chosen: Recipe, title: str = "") -> Table:
    """A row a trial: how, images/s (img/s), ratio to eager, largest error, seconds to build; below it, why some are not used."""
    table = Table(title=title or None, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("backend", "type", "layout", "images"):
        table.add_column(name, no_wrap=True)
    for name in ("img/s", "ratio", "error", "built"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    notes = []
    for trial in trials:
        recipe, is_chosen = trial.recipe, trial.recipe == chosen and not trial.dropped
        if trial.dropped:
            notes.append(f"{recipe}: {trial.dropped}")
        table.add_row(recipe.backend, recipe.precision, LAYOUTS.get(recipe.layout, recipe.layout),
                      "as given" if recipe.layout == "as given" else f"{recipe.part} a thread" if recipe.part else "at once",
                      _figure(trial.images_per_second, "{:.1f}"), _figure(trial.ratio, "{:.2f}x"),
                      _figure(trial.error, "{:.1e}"), _figure(trial.seconds, "{:.1f} s"),
                      "chosen" if is_chosen else "dropped" if trial.dropped else "",
                      style="bold" if is_chosen else "dim" if trial.dropped else "")
    table.caption = escape("\n".join(notes)) or None
    return table


def as_text(trials: Sequence[Trial], chosen: Recipe, title: str = "") -> str:
    """That table as plain text, as wide as the terminal, or 120 columns where there is none."""
    console = Console(file=io.StringIO(), width=shutil.get_terminal_size((120, 24)).columns, color_system=None)
    console.print(as_table(trials, chosen, title))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
