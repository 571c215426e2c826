"""Progress of long work on stderr: a bar in a terminal; a line every so often in a log or a notebook."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from time import monotonic
from typing import Any

from tqdm import tqdm

_LOG = logging.getLogger(__name__)
LARGE, READ_RATE = 250_000_000, 120_000_000
"""Bytes of JSON that take two seconds to read, and about how many one core reads in a second (annotations of LVIS)."""
FIRST_LINE, LINE_EVERY = 2.0, 30.0
"""Seconds until the first line, and between two lines: what takes less than two seconds prints none."""


class _Lines(tqdm):
    """A tqdm that prints whole lines: what is done, what is left, and about how long that takes."""

    monitor_interval = 0  # its thread refreshes bars that stand still

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._printed: int | None = None
        self._due = monotonic() + FIRST_LINE
        self._printing, self._closed = threading.Lock(), threading.Event()
        super().__init__(*arguments, mininterval=0.5, miniters=1, **options)
        if not self.disable:
            threading.Thread(target=self._print_in_time, daemon=True).start()

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Prints a line if one is due; `msg` and `pos` belong to bars."""
        if msg is None:
            self._print_if_due()
        return True

    def clear(self, nolock: bool = False) -> None:
        """Leaves the lines where they are."""

    def close(self) -> None:
        """Prints a last line if there was one before."""
        self._closed.set()
        if not self.disable:
            with self._printing:
                if self._printed not in (None, self.n):
                    self._print()
                self.fp = io.StringIO()  # tqdm would wipe its bar
        super().close()

    def _print_in_time(self) -> None:
        """Prints lines that are due while a single item takes long."""
        while not self._closed.wait(max(self._due - monotonic(), 0.1)):
            self._print_if_due()

    def _print_if_due(self) -> None:
        with self._printing:
            if monotonic() >= self._due and not self._closed.is_set():
                self._print()

    def _print(self) -> None:
        state = self.format_dict
        done, total, seconds = state["n"], state["total"], state["elapsed"]
        text = f"{state['prefix']}: {done:,}" if not total else f"{state['prefix']}: {done:,} of {total:,}"
        text += f" {state['unit']}s in {self.format_interval(seconds)}"
        if total and state["initial"] < done < total:
            left = (total - done) * seconds / (done - state["initial"])
            text += f", about {self.format_interval(left)} left"
        self.fp.write(text + (f" ({state['postfix']})" if state["postfix"] else "") + "\n")
        self.fp.flush()
        self._printed, self._due = done, monotonic() + LINE_EVERY


def progress_bar(iterable: Iterable[Any] | None = None, *, shown: bool = True, **options: Any) -> tqdm:
    """Returns a tqdm for work that may take more than two seconds.

    Args:
        iterable: what to iterate over; None for a bar that is updated.
        shown: whether anything is printed.
        options: `desc`, `unit` (singular), `total`, `initial`, `leave` of tqdm.
    """
    kind = tqdm if sys.stderr is not None and sys.stderr.isatty() else _Lines
    return kind(iterable, file=sys.stderr, disable=not shown, **options)


def say_reading(path: str | os.PathLike) -> None:
    """Says about how long a large JSON file takes to read: it is decoded in one piece, without progress."""
    size = Path(path).stat().st_size
    if size >= LARGE:
        _LOG.info("reading %s: %.1f GB, about %.0f s", path, size / 1e9, size / READ_RATE)
