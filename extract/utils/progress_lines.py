"""A tqdm that prints lines, for logs and notebooks; apart from `progress`, because importing tqdm takes 20 ms."""

from __future__ import annotations

import io
import threading
from time import monotonic
from typing import Any

from tqdm import tqdm


class Lines(tqdm):
    """Prints whole lines: what is done, what is left, and about how long that takes."""

    monitor_interval = 0  # its thread refreshes bars that stand still

    def __init__(self, *arguments: Any, first_line: float, line_every: float, **options: Any) -> None:
        """`first_line` are the seconds until the first line, `line_every` those between two lines."""
        self._printed: int | None = None
        self._due, self._line_every = monotonic() + first_line, line_every
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
        self._printed, self._due = done, monotonic() + self._line_every
