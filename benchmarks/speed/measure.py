"""Times a case and its baseline in turn, and keeps the results in CSV files.

Columns of `benchmarks/results/speed/*.csv`:

    case, baseline              what was timed, and what it was compared with
    time, baseline_time         median seconds
    ratio                       baseline_time / time; with a bound "…at_most" time / baseline_time
    target, bound, met          "at_least": ratio >= target; "at_most": ratio <= target; "seconds_at_most":
                                time <= target; "size_at_most": ratio <= target, which is memory / baseline_memory and
                                without times; all three empty where there is no target
    memory, baseline_memory     bytes at the peak beyond those before the call; empty where not measured
    machine, commit, date       see `benchmarks.provenance`
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from benchmarks.provenance import provenance, read_results
from extract.utils.memory_limit import peak_bytes, reset_peak, resident_bytes

RESULTS = Path(__file__).parents[1] / "results" / "speed"
KEYS = ["case", "baseline"]
Bound = Literal["at_least", "at_most", "seconds_at_most", "size_at_most"]
Clock = Callable[[], float]


class Timing(NamedTuple):
    """Median seconds of case and baseline, median of the rounds' baseline_time / time, and peak memory in bytes."""

    time: float
    baseline_time: float
    speedup: float
    memory: int | None = None
    baseline_memory: int | None = None


@dataclass(frozen=True)
class Result:
    """One row of a CSV file, without its provenance."""

    case: str
    baseline: str
    time: float
    baseline_time: float
    ratio: float
    target: float | None
    bound: Bound | None
    met: bool | None
    memory: int | None
    baseline_memory: int | None


def compare(
    case: Callable[[], object],
    baseline: Callable[[], object],
    rounds: int = 7,
    repeat: int = 1,
) -> Timing:
    """Times both in turn, after a call of each that warms up and measures its peak memory.

    `repeat` calls of `case` are timed as one, for what is too short to time.
    """
    memory, baseline_memory = peak_memory(case), peak_memory(baseline)
    pairs = [(seconds(case, repeat), seconds(baseline)) for _ in range(rounds)]
    return timing(pairs, memory, baseline_memory)


def timing(
    pairs: Sequence[tuple[float, float]], memory: int | None = None, baseline_memory: int | None = None
) -> Timing:
    """Returns the medians over rounds of (time, baseline_time) in seconds."""
    times = np.array(pairs)
    case, baseline = np.median(times, axis=0).tolist()
    return Timing(case, baseline, float(np.median(times[:, 1] / times[:, 0])), memory, baseline_memory)


def seconds(function: Callable[[], object], repeat: int = 1, clock: Clock = time.perf_counter) -> float:
    """Returns the time of a call by a clock, wall time by default, averaged over `repeat` calls."""
    started = clock()
    for _ in range(repeat):
        function()
    return (clock() - started) / repeat


def peak_memory(function: Callable[[], object]) -> int | None:
    """Returns the bytes that a call adds to this process's resident memory at its peak; None without Linux's /proc."""
    if not Path("/proc/self/clear_refs").exists():
        function()
        return None
    before = resident_bytes()
    reset_peak()
    function()
    return max(peak_bytes() - before, 0)


def result(case: str, baseline: str, timing: Timing, bound: Bound | None = None, target: float | None = None) -> Result:
    """Returns a row of a CSV file, with `met` if there is a target."""
    ratio = timing.speedup if bound in (None, "at_least") else 1 / timing.speedup
    met = None
    if bound is not None and target is not None:
        below = timing.time if bound == "seconds_at_most" else ratio
        met = ratio >= target if bound == "at_least" else below <= target
    times = timing.time, timing.baseline_time, ratio
    return Result(case, baseline, *times, target, bound, met, timing.memory, timing.baseline_memory)


def size(case: str, baseline: str, count: int, baseline_count: int, target: float) -> Result:
    """Returns a row that compares bytes, which must be at most `target` of the baseline's."""
    timing = Timing(np.nan, np.nan, baseline_count / count, count, baseline_count)
    return result(case, baseline, timing, "size_at_most", target)


def save(name: str, results: Iterable[Result], folder: Path = RESULTS) -> None:
    """Prints results and writes them to `<name>.csv` in a folder, replacing rows of the same case and baseline."""
    file = folder / f"{name}.csv"
    rows = pd.DataFrame([asdict(one) | provenance() for one in results])
    for column in ("time", "baseline_time", "ratio", "target"):
        rows[column] = [np.nan if value is None else float(f"{value:.5g}") for value in rows[column]]
    rows["met"] = rows["met"].map({True: "true", False: "false"})
    rows = rows.astype({"memory": "Int64", "baseline_memory": "Int64"})
    print(rows.drop(columns=["machine", "commit", "date"]).to_string(index=False), flush=True)
    if file.is_file():
        rows = merge_rows(pd.read_csv(file, dtype=str, keep_default_na=False), rows, KEYS)
    file.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(file, index=False)


def merge_rows(before: pd.DataFrame, rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Joins tables, in the order of `before`, then of `rows`; of rows with the same keys that of `rows` is kept."""
    order = list(dict.fromkeys([*before.set_index(keys).index, *rows.set_index(keys).index]))
    merged = pd.concat([rows.astype(object), before.astype(object)]).drop_duplicates(keys)
    return merged.set_index(keys).loc[order].reset_index()[list(rows.columns)]


def merge_into(file: Path, rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Returns the rows of a file of results, if it is there, joined with others as by `merge_rows`."""
    return merge_rows(read_results(file), rows, keys) if file.is_file() else rows


def list_files(*folders: Path) -> list[Path]:
    """Lists all files below some folders, sorted by name."""
    return sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())


def drop_page_cache(files: Iterable[Path]) -> None:
    """Evicts files from the system's page cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_bytes_read() -> int:
    """Returns the bytes that this process has read from the disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])
