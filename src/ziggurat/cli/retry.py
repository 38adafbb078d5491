from __future__ import annotations

import typer

from .common import AsJson, Device, Retries, Timeout, Workers, errors_end_with
from .status import Dest


def run(
    dest: Dest,
    device: Device = "auto",
    workers: Workers = None,
    timeout: Timeout = 60.0,
    retries: Retries = 3,
    as_json: AsJson = False,
) -> None:
    """Computes the failed images of a run anew, and no others: after a file was mended, or a disk came back.

    \b
    Example:
      ziggurat retry photos.features --timeout 300

    What succeeds becomes a row in the file of its unit, what fails stays in failures.parquet. With --json: an object a line.

    Exit status: 0 complete; 3 complete, some images failed; 4 to be gone on with; 1 an error.
    """
    with errors_end_with(1):
        from ..extraction import retry
        from ..extraction.progress import reporter_for

        with reporter_for(as_json) as reporter:
            found = retry(dest, device=device, workers=workers, timeout=timeout, retries=retries, on_event=reporter)
    raise typer.Exit(found.exit_code)
