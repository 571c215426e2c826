"""Threads beside the main thread: prefetching, parallel maps, background work."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")
PIECES_PER_THREAD = 2
"""Items per thread that `parallel_map` has begun or queued at a time."""


def prefetch(
    function: Callable[[T], U],
    items: Iterable[T],
    *,
    threads: int,
    depth: int,
    initializer: Callable[[], object] | None = None,
) -> Generator[U, None, None]:
    """Yields `function(item)` in order, computed by threads up to `depth` items ahead.

    Args:
        function: called in a thread.
        items: consumed in the caller's thread, at most `depth` ahead.
        threads: number of threads.
        depth: results that are computed or computing beyond the one that is yielded.
        initializer: called by each thread before its first item.

    An error is raised in its turn. Closed or failed, the iterator waits for the calls that run and drops the others.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch", initializer=initializer)
    pending: deque[Future[U]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def parallel_map(function: Callable[[int], T], count: int, threads: int | None = None) -> Generator[T, None, None]:
    """Yields `function(0)`, `function(1)`, … `function(count - 1)`, computed by `threads`, one per CPU by default.

    The kernels, torch and NumPy release the interpreter's lock. Only a few results are in memory at once. While it
    lasts, the threads share the CPUs that torch may use. Errors and closing are as in `prefetch`.
    """
    import torch

    cpus = available_cpus()
    workers = max(1, min(count, threads or cpus))
    before = torch.get_num_threads()
    share = max(1, min(before, cpus) // workers)
    torch.set_num_threads(share)  # per thread, and the default of new threads
    initializer, depth = partial(torch.set_num_threads, share), PIECES_PER_THREAD * workers - 1
    try:
        results = prefetch(function, range(count), threads=workers, depth=depth, initializer=initializer)
        with closing(results):
            yield from results
    finally:
        torch.set_num_threads(before)


class BackgroundWorker:
    """A thread that runs one job at a time. Leaving the `with` block waits for the running job.

    The next call, or the end of the block, raises the error of a failed job.
    """

    def __enter__(self) -> BackgroundWorker:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._job: Future[object] = Future()
        self._job.set_result(None)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            self.wait()

    def submit(self, function: Callable[..., object], *args: object) -> None:
        """Starts a job after the previous one has ended, so that no more than two jobs' data are in memory."""
        self.wait()
        self._job = self._pool.submit(function, *args)

    def wait(self) -> None:
        """Returns when the running job has ended."""
        self._job.result()

    def raise_if_failed(self) -> None:
        """Raises the error of a job that has failed; does not wait."""
        if self._job.done():
            self.wait()


def available_cpus() -> int:
    """Returns the number of CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
