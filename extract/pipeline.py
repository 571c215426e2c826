"""Work beside the main thread: what it needs next is made ready ahead of it, what it has done is put away behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T, U = TypeVar("T"), TypeVar("U")


def ahead(
    function: Callable[[T], U],
    items: Iterable[T],
    *,
    threads: int,
    depth: int,
    start: Callable[[], object] | None = None,
) -> Iterator[U]:
    """`function` of every item, in their order, by threads up to `depth` items ahead; each begins with `start`.

    An error comes out in its turn. Closed or failed, the iterator waits for what has been begun, and drops the rest.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead", initializer=start)
    begun: deque[Future[U]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > depth:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Behind:
    """A thread for one job after the other, one at a time. Leaving the block waits for the job begun.

    A job's error comes out of the next call, or at the end of the block.
    """

    def __enter__(self) -> Behind:
        self._pool, self._job = ThreadPoolExecutor(1, thread_name_prefix="behind"), Future()
        self._job.set_result(None)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            self.wait()

    def do(self, function: Callable[..., object], *args: object) -> None:
        """Begins a job when the one before has ended: what two jobs hold is all that is in memory."""
        self.wait()
        self._job = self._pool.submit(function, *args)

    def wait(self) -> None:
        """Returns when the job begun has ended."""
        self._job.result()

    def check(self) -> None:
        """Raises the error of a job that has failed."""
        if self._job.done():
            self.wait()
