"""Two ways of doing one thing, timed in turn, and the tables that the figures go to."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

RESULTS = Path(__file__).parents[1] / "results" / "speed"
KEYS = ["what", "against"]


@dataclass(frozen=True)
class Pair:
    """Median seconds of ours and of the other, the median of the rounds' ratios other : ours, and the memory that each
    took at its peak beyond what was there before, in bytes."""

    ours: float
    other: float
    ratio: float
    ours_memory: int
    other_memory: int


def compare(ours: Callable[[], object], other: Callable[[], object], rounds: int = 7, repeat: int = 1) -> Pair:
    """Times both in turn, after a call of each that warms up and shows its peak of memory.

    `repeat` calls of `ours` count as one, for what is too short to time.
    """
    memory = peak_memory(ours), peak_memory(other)
    times = np.array([(seconds(ours, repeat), seconds(other)) for _ in range(rounds)])
    return Pair(*np.median(times, axis=0), float(np.median(times[:, 1] / times[:, 0])), *memory)


def seconds(function: Callable[[], object], repeat: int = 1) -> float:
    """Wall time of a call, averaged over `repeat` of them."""
    started = time.perf_counter()
    for _ in range(repeat):
        function()
    return (time.perf_counter() - started) / repeat


def peak_memory(function: Callable[[], object]) -> int:
    """Bytes that a call adds to the resident memory of this process at its peak; 0 where Linux's /proc is missing."""
    if not Path("/proc/self/clear_refs").exists():
        function()
        return 0
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    function()
    return max(status("VmHWM") - before, 0)


def row(
    what: str, against: str, pair: Pair, *, at_least: float | None = None, at_most: float | None = None
) -> dict[str, str]:
    """A line of a table. `at_least` is reached where ours is so many times as fast, `at_most` where it takes no more
    than so many times as long; without either the figure is shown and nothing promised."""
    slower = at_most is not None
    ratio = 1 / pair.ratio if slower else pair.ratio
    bound = at_most if slower else at_least
    reached = bound is None or (ratio <= bound if slower else ratio >= bound)
    return {
        "what": what,
        "against": against,
        "ours": _time(pair.ours),
        "other": _time(pair.other),
        "ratio": _number(ratio) + ("× its time" if slower else "× as fast"),
        "reach": "" if bound is None else ("≤ " if slower else "≥ ") + f"{bound:,g}×",
        "reached": "" if bound is None else "yes" if reached else "no",
        "memory": f"{pair.ours_memory / 1e6:,.0f} : {pair.other_memory / 1e6:,.0f} MB",
    }


def keep(name: str, rows: Sequence[dict[str, str]]) -> None:
    """Prints the rows and puts them into `results/speed/<name>.csv`, in the place of older ones of the same case."""
    file = RESULTS / f"{name}.csv"
    table = pd.DataFrame(rows, dtype=str)
    print(table.to_string(index=False), flush=True)
    if file.is_file():
        before = pd.read_csv(file, dtype=str, keep_default_na=False)
        merged = before.set_index(KEYS)
        fresh = table.set_index(KEYS)
        merged = pd.concat([fresh.reindex(merged.index.intersection(fresh.index)), merged, fresh])
        order = list(dict.fromkeys([*before.set_index(KEYS).index, *fresh.index]))
        table = merged[~merged.index.duplicated()].reindex(order).reset_index()
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False)


def files_of(*folders: Path) -> list[Path]:
    """All files below some folders, by name."""
    return sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())


def drop(files: Sequence[Path]) -> None:
    """Takes files out of the system's page cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_from_disk() -> int:
    """Bytes that this process has had from the disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def status(field: str) -> int:
    """A size of /proc/self/status in bytes: VmRSS, the resident memory, or VmHWM, its peak."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def _time(value: float) -> str:
    return f"{value * 1e3:,.3g} ms" if value < 1 else f"{value:,.1f} s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
