"""`--memory-limit`: how much memory this process takes, checks before work starts, and an end before too much is taken.

Memory is the resident set of the process, without what a GPU holds.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TOLERANCE = 0.05
"""Share of a limit by which a process may exceed it before it is ended."""
LIBRARIES = 600_000_000
"""Bytes that a command takes once PyTorch and Numba are imported; the files mapped are more or less of it."""
PERIOD = 0.01
"""Seconds between two measurements."""
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Returns the memory that this process takes now; without /proc, the most that it has taken."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Returns the most memory that this process has taken since `reset_peak`, or since it began."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Lets `peak_bytes` begin anew, where the system can."""
    with suppress(OSError):
        _CLEAR.write_text("5")


def require_memory(limit: float | None, needed: float, what: str) -> None:
    """Raises ValueError naming the least limit if `needed` bytes, for `what`, are more than `memory_limit`."""
    if limit is not None and needed > limit:
        digit = 10 ** (len(f"{needed:.0f}") - 3)
        least = math.ceil(needed / digit) * digit  # rounded up to three digits
        raise ValueError(f"memory_limit is {limit:.3g} bytes, expected at least {least:.3g}, for {what}")


def return_freed_memory() -> None:
    """Gives what this process has freed back to the system, where the C library can."""
    import ctypes

    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def enforced_limit(limit: float | None) -> Iterator[None]:
    """Ends the process, with a line on stderr and exit code 1, if it exceeds `limit` bytes within the block.

    For commands, whose outputs survive the end of their process at any moment. What is known before work starts is
    checked by `require_memory`; this is for the rest, such as an image with more objects than all others.

    Raises ValueError if the process has taken more already.
    """
    if limit is None:
        yield
        return
    require_memory(limit, resident_bytes(), "the program alone")
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(PERIOD):
            if resident_bytes() > limit * (1 + TOLERANCE):
                print(f"error: memory_limit is {limit:.3g} bytes, and the command needs more", file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)

    thread = threading.Thread(target=watch, daemon=True, name="memory limit")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _status(field: str) -> int:
    """Returns a size of /proc/self/status in bytes; without it the largest resident set so far."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        try:
            import resource
        except ImportError:  # Windows
            raise ValueError("memory_limit: this system does not tell how much memory a process takes") from None
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
