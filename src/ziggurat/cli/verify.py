from __future__ import annotations

import typer

from .common import AsJson, errors_end_with
from .status import Dest


def run(dest: Dest, as_json: AsJson = False) -> None:
    """Reads a run back and proves it: counts, hashes, keys, values that are finite; then writes _SUCCESS.

    \b
    Example:
      ziggurat verify photos.features

    A unit that is damaged is set aside, and the same extract command computes it anew. With --json: an object a line.

    Exit status: 0 complete; 3 complete, some images failed; 4 to be gone on with; 1 an error.
    """
    with errors_end_with(1):
        from ..extraction import verify
        from ..extraction.progress import reporter_for

        with reporter_for(as_json) as reporter:
            found = verify(dest, on_event=reporter)
    raise typer.Exit(found.exit_code)
