"""Runs a benchmark in turns with the same one of another commit; started by `benchmarks.speed.versus`, not by hand.

Before each call that is timed, and at its start, the process writes a line to its standard output and waits for one on
its standard input. `compare` times its case alone, since baselines are the same in both commits and take longer.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable

from benchmarks.speed import measure

REPEATED, LONG = 3, 10.0
"""Times as many rounds as the benchmark asks for, unless they take more seconds in all."""
SHORT = 0.02
"""Seconds; of what takes less, several calls are timed as one."""
_seconds = measure.seconds


class Turns:
    """The turns of this process: `wait` lets the other one go on."""

    def __init__(self) -> None:
        """Takes standard output for itself; what others print goes to standard error."""
        self._lines = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._timing = False

    def wait(self) -> None:
        """Returns when it is this process's turn; ends the process if there will be none."""
        print(file=self._lines)
        if not sys.stdin.readline():
            raise SystemExit("the other process has failed")

    def seconds(self, function: Callable[[], object], *args: object, **options: object) -> float:
        """Is `measure.seconds` in a turn of its own; within a call that is timed, the turn goes on.

        Always wall time: a commit may have taken processor time for what another took wall time.
        """
        options.pop("clock", None)
        if self._timing:
            return _seconds(function, *args, **options)  # type: ignore[arg-type]
        self.wait()
        self._timing = True
        try:
            return _seconds(function, *args, **options)  # type: ignore[arg-type]
        finally:
            self._timing = False


def case_alone(
    case: Callable[[], object], baseline: Callable[[], object], rounds: int = 7, repeat: int = 1
) -> measure.Timing:
    """Is `measure.compare` without the baseline."""
    memory = measure.peak_memory(case)
    repeat = max(repeat, int(SHORT / measure.seconds(case)))
    times: list[float] = []
    while len(times) < rounds or (len(times) < REPEATED * rounds and sum(times) * repeat < LONG):
        times.append(measure.seconds(case, repeat))
    return measure.timing([(time, time) for time in times], memory)


if __name__ == "__main__":
    turns = Turns()
    turns.wait()
    measure.seconds, measure.compare = turns.seconds, case_alone
    sys.argv = sys.argv[1:]
    runpy.run_module(f"benchmarks.speed.{sys.argv[0]}", run_name="__main__", alter_sys=True)
