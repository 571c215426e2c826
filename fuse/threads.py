"""Work on several images at once, in threads: the kernels, torch and NumPy run beside one another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import TypeVar

from extract.pipeline import ahead

T = TypeVar("T")
_AHEAD = 2  # pieces of work for each thread that are begun or waited for at a time


def in_order(work: Callable[[int], T], count: int) -> Iterator[T]:
    """work(0), work(1), … work(count - 1), computed by one thread for each CPU that the process may use.

    Only a few are in memory at once. While it lasts the threads share what torch may use of CPUs. An exception comes
    up in its turn; closed, interrupted or failed, the iterator waits for the pieces that run and begins no other.
    """
    import torch

    cpus = _cpus()
    workers = max(1, min(count, cpus))
    before = torch.get_num_threads()
    share = max(1, min(before, cpus) // workers)
    torch.set_num_threads(share)  # a setting of each thread and what new ones begin with
    start = partial(torch.set_num_threads, share)
    try:
        with closing(ahead(work, range(count), threads=workers, depth=_AHEAD * workers - 1, start=start)) as results:
            yield from results
    finally:
        torch.set_num_threads(before)


def _cpus() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
