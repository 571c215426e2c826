"""Progress of long work on stderr: a bar in a terminal; a line every so often in a log or a notebook."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

_LOG = logging.getLogger(__name__)
LARGE, READ_RATE = 250_000_000, 120_000_000
"""Bytes of JSON that take two seconds to read, and about how many one core reads in a second (annotations of LVIS)."""
FIRST_LINE, LINE_EVERY = 2.0, 30.0
"""Seconds until the first line, and between two lines: what takes less than two seconds prints none."""


def progress_bar(iterable: Iterable[Any] | None = None, *, shown: bool = True, **options: Any) -> tqdm:
    """Returns a tqdm for work that may take more than two seconds.

    Args:
        iterable: what to iterate over; None for a bar that is updated.
        shown: whether anything is printed.
        options: `desc`, `unit` (singular), `total`, `initial`, `leave` of tqdm.
    """
    from tqdm import tqdm

    from extract.utils.progress_lines import Lines

    options |= {"file": sys.stderr, "disable": not shown}
    if sys.stderr is not None and sys.stderr.isatty():
        return tqdm(iterable, **options)
    return Lines(iterable, first_line=FIRST_LINE, line_every=LINE_EVERY, **options)


def say_reading(path: str | os.PathLike) -> None:
    """Says about how long a large JSON file takes to read: it is decoded in one piece, without progress."""
    size = Path(path).stat().st_size
    if size >= LARGE:
        _LOG.info("reading %s: %.1f GB, about %.0f s", path, size / 1e9, size / READ_RATE)
