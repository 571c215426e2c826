"""Interrupting a training run between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from extract.utils.distributed import world_size


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Yields an event that Ctrl-C and SIGTERM set instead of interrupting; a second signal raises KeyboardInterrupt.

    Outside the main thread, which alone receives signals, the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def set_event(signum: int, frame: object) -> None:
        # torchrun repeats a signal that its processes have received already, and kills them if they take too long.
        if event.is_set() and world_size() == 1:
            raise KeyboardInterrupt
        event.set()

    previous = {number: signal.signal(number, set_event) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
