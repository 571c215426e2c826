"""Training from a cache four times as big as the memory that the process may use.

    python -m benchmarks.speed.streaming [LEVEL …]

There are three caches on disk (`benchmarks.speed.traincache`): pooled features for `2fc_rand`, hidden ones for
`3fc_lowrank`, embeddings for `linear`. For each, a child process is limited to a quarter of the features' size by a
memory cgroup, page cache included; where no cgroup can be made, by RLIMIT_DATA, which leaves the page cache out. The
child process times

* training steps; baseline are the same steps from memory, on a stand-in of the same structure with fewer images;
* prefetching the features of steps without training on them, in seconds per GB read from the disk (/proc/self/io);
  baseline is a sequential read of the same files.

Files are evicted from the page cache beforehand. `memory` is the child's peak after half of the steps,
`baseline_memory` its peak after all steps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch

from benchmarks.speed.measure import (
    Result,
    Timing,
    disk_bytes_read,
    drop_page_cache,
    list_files,
    result,
    save,
)
from benchmarks.speed.traincache import TrainCache
from benchmarks.speed.training import WARM_UP, StepClock, run_training
from calib.config import HeadType
from calib.features import Features
from calib.loader import batches
from calib.sampler import BiLevelSampler
from extract.cache.opening import open_cache
from extract.cache.reader import RoICache
from extract.utils.memory_limit import peak_bytes


class Case(NamedTuple):
    """A head to train, on a cache with `images_per_class` images of every class, for `steps` timed steps."""

    head_type: HeadType
    level: str
    images_per_class: int
    steps: int


class Streamed(NamedTuple):
    """What the child process measures: seconds per GB or per RoI, and peak memory in bytes half-way and at the end."""

    limited_by: str
    sequential: float
    prefetch: float
    training: float
    memory_half: int
    memory_end: int


CASES = (
    Case("2fc_rand", "pooled", 1, 16),
    Case("3fc_lowrank", "hidden", 8, 40),
    Case("linear", "embedding", 8, 120),
)
"""6, 4 and 3 GB of features. A quarter of them holds interpreter and network, too."""
IN_MEMORY_IMAGES = 200
ROUNDS = 3
TARGET = 0.8
"""Speed relative to the baseline."""
CGROUP = Path("/sys/fs/cgroup/memory/tailcal-streaming")


def main() -> None:
    """Times all caches, or those of the given feature levels, and saves the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("levels", nargs="*", help="feature levels to measure")
    levels = parser.parse_args().levels
    save("streaming", [row for case in CASES if not levels or case.level in levels for row in time_case(case)])


def time_case(case: Case) -> list[Result]:
    """Times training and prefetching from one cache."""
    folder = Path(tempfile.mkdtemp(prefix="streaming"))
    try:
        TrainCache(case.level, images_per_class=case.images_per_class).write(folder / "train.zarr")
        size = sum(file.stat().st_size for file in list_files(folder / "train.zarr" / "feature"))
        streamed = run_limited(folder, size // 4, case)
    finally:
        shutil.rmtree(folder)
    cache, clock = TrainCache(case.level, IN_MEMORY_IMAGES), StepClock("cpu")
    run_training(cache, case.head_type, "cpu", WARM_UP + case.steps, clock)
    # Steps of the two caches differ in size, so times are per RoI.
    in_memory = sum(clock.step_times[WARM_UP:]) / count_rois(cache, case.steps)
    limit = f"{size / 1e9:.1f} GB within {size / 4e9:.1f} GB ({streamed.limited_by})"
    memory = streamed.memory_half, streamed.memory_end
    training = Timing(streamed.training, in_memory, in_memory / streamed.training, *memory)
    prefetch = Timing(streamed.prefetch, streamed.sequential, streamed.sequential / streamed.prefetch, *memory)
    name = f"{case.level} features of steps, prefetched, per GB"
    return [
        result(f"training {case.head_type} from {limit}, per RoI", "from memory", training, "at_least", TARGET),
        result(name, "a sequential read", prefetch, "at_least", TARGET),
    ]


def run_limited(folder: Path, limit: int, case: Case) -> Streamed:
    """Runs `measure_streaming` in a child process that may use `limit` bytes of memory."""
    group: Path | None = CGROUP
    try:
        CGROUP.mkdir(exist_ok=True)
        (CGROUP / "memory.limit_in_bytes").write_text(str(limit))
    except OSError:
        group = None
    arguments = json.dumps([str(folder / "train.zarr"), limit, case, str(group or "")])
    command = [sys.executable, "-m", "benchmarks.speed.streaming", arguments]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        if group:
            group.rmdir()
    return Streamed(*json.loads(done.stdout))


def measure_streaming(url: str, limit: int, case: Case, group: str) -> Streamed:
    """Joins the cgroup, or limits this process, then reads and trains. Runs in the child process."""
    if group:
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
    else:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    cache, files = open_cache(url), list_files(Path(url))
    rounds = []
    for first in range(WARM_UP + case.steps, WARM_UP + (ROUNDS + 1) * case.steps, case.steps):
        drop_page_cache(files)
        sequential = read_sequentially(Path(url))
        drop_page_cache(files)
        rounds.append((sequential, prefetch_steps(cache, range(first, first + case.steps))))
    drop_page_cache(files)
    clock, steps = MemoryClock("cpu"), WARM_UP + case.steps
    run_training(cache, case.head_type, "cpu", steps, clock)
    sequential, prefetch = np.median(rounds, axis=0).tolist()
    training = sum(clock.step_times[WARM_UP:]) / count_rois(cache, case.steps)
    limited_by = "cgroup" if group else "RLIMIT_DATA"
    return Streamed(limited_by, sequential, prefetch, training, clock.peaks[steps // 2], clock.peaks[-1])


class MemoryClock(StepClock):
    """Also records the peak memory.

    Attributes:
        peaks: bytes, one entry per step.
    """

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.peaks: list[int] = []

    def update(self) -> None:
        """Takes the time of a step, and the peak memory."""
        super().update()
        self.peaks.append(peak_bytes())


def count_rois(cache: RoICache | TrainCache, steps: int) -> int:
    """Counts the RoIs of the timed steps."""
    sampler = BiLevelSampler(cast(RoICache, cache))
    return sum(len(sampler.step(step).rows) for step in range(WARM_UP, WARM_UP + steps))


def prefetch_steps(cache: RoICache, steps: range) -> float:
    """Returns the seconds per GB from the disk of the trainer's reading without the training."""
    features = Features(cache, torch.device("cpu"))
    if features.in_memory:
        raise RuntimeError("the features fit in memory, nothing would be streamed")
    sampler = BiLevelSampler(cache)
    before, started = disk_bytes_read(), time.perf_counter()
    for _ in batches(sampler, features, 1, steps):
        pass
    return (time.perf_counter() - started) / (disk_bytes_read() - before) * 1e9


def read_sequentially(url: Path) -> float:
    """Returns the seconds per GB from the disk of reading the features' files one after the other."""
    before, started = disk_bytes_read(), time.perf_counter()
    buffer = bytearray(1 << 23)
    for file in list_files(url / "feature"):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return (time.perf_counter() - started) / (disk_bytes_read() - before) * 1e9


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("["):
        url, limit, case, group = json.loads(sys.argv[1])
        print(json.dumps(measure_streaming(url, limit, Case(*case), group)))
    else:
        main()
