"""Training from a cache four times as big as the memory that it may use.

    python -m benchmarks.speed.streaming

Two caches on disk (`benchmarks.speed.traincache`): pooled features for `2fc_rand`, embeddings for `linear`. For each a
process is confined to a quarter of the features' size, page cache included, by a memory cgroup; where none can be made,
by RLIMIT_DATA, which leaves the page cache out. In it

* the trainer's steps are timed against the same steps from memory, from a stand-in of the same structure with fewer
  images: what reading costs a run;
* the steps' features are read ahead without being trained on, against a sequential read of the same files, in bytes
  from the disk per second (/proc/self/io): what reading could feed.

Files are dropped from the page cache beforehand. `memory` is the process's peak after a half and after all steps.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed import measure
from benchmarks.speed.traincache import TrainCache
from benchmarks.speed.training import WARM_UP, _Clock, run
from calib.features import Features
from calib.loader import batches
from calib.sampler import BiLevelSampler
from extract.cache.reader import RoICache, open_cache

CASES = {"2fc_rand": ("pooled", 1, 16), "linear": ("embedding", 8, 120)}
"""Level, images per class (6 and 3 GB of features) and timed steps. The quarter holds interpreter and network, too."""
FROM_MEMORY = 200
"""Images."""
ROUNDS = 3
GROUPS = Path("/sys/fs/cgroup/memory")


def main() -> None:
    """Prints the table and keeps it."""
    rows = []
    for kind, (level, per_class, steps) in CASES.items():
        folder = Path(tempfile.mkdtemp(prefix="streaming"))
        try:
            TrainCache(level, images_per_class=per_class).write(folder / "train.zarr")
            size = sum(file.stat().st_size for file in measure.files_of(folder / "train.zarr" / "feature"))
            found = confined(folder, size // 4, kind, steps)
        finally:
            shutil.rmtree(folder)
        memory, clock = TrainCache(level, FROM_MEMORY), _Clock("cpu")
        run(memory, kind, "cpu", WARM_UP + steps, clock)
        # The two caches' steps differ in size: they compare by the RoI.
        ours, other = found["train"], sum(clock.seconds[WARM_UP:]) / _rois(memory, steps)
        name = f"training {kind} from {size / 1e9:.1f} GB within {size / 4e9:.1f} GB ({found['means']}), a RoI"
        pair = measure.Pair(ours, other, other / ours, *found["memory"])
        rows.append(measure.row(name, "from memory", pair, at_least=0.8))
        pair = measure.Pair(
            found["prefetch"], found["sequential"], found["sequential"] / found["prefetch"], *found["memory"]
        )
        rows.append(measure.row(f"{level} features of steps read ahead, a GB", "a sequential read", pair, at_least=0.8))
    measure.keep("streaming", rows)


def confined(folder: Path, limit: int, kind: str, steps: int) -> dict:
    """What `_child` prints, from a process that may use `limit` bytes."""
    command = [sys.executable, "-m", "benchmarks.speed.streaming", str(folder), str(limit), kind, str(steps)]
    group = GROUPS / "tailcal-streaming"
    try:
        group.mkdir(exist_ok=True)
        (group / "memory.limit_in_bytes").write_text(str(limit))
    except OSError:
        group = None
    try:
        environment = os.environ | {"STREAMING_GROUP": str(group or "")}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        if group:
            group.rmdir()
    return json.loads(done.stdout)


def _child(folder: str, limit: str, kind: str, steps: str) -> None:
    group = os.environ["STREAMING_GROUP"]
    if group:
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
    else:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
    url, steps = Path(folder, "train.zarr"), int(steps)
    cache = open_cache(str(url))
    rounds = []
    for first in range(WARM_UP + steps, WARM_UP + (ROUNDS + 1) * steps, steps):
        measure.drop(measure.files_of(url))
        rounds.append([_sequential(url)])
        measure.drop(measure.files_of(url))
        rounds[-1].append(_ahead(cache, range(first, first + steps)))
    sequential, prefetch = np.median(rounds, axis=0)
    measure.drop(measure.files_of(url))
    clock, memory = _Clock("cpu"), []
    clock.set_postfix_str = lambda text: memory.append(measure.status("VmHWM"))
    import calib.train as trainer

    trainer.LOG_EVERY = (WARM_UP + steps) // 2
    run(cache, kind, "cpu", WARM_UP + steps, clock)
    rois = _rois(cache, steps)
    print(
        json.dumps(
            {
                "means": "cgroup" if group else "RLIMIT_DATA",
                "sequential": sequential,
                "prefetch": prefetch,
                "train": sum(clock.seconds[WARM_UP:]) / rois,
                "memory": [memory[0], memory[-1]],
            }
        )
    )


def _rois(cache: RoICache | TrainCache, steps: int) -> int:
    sampler = BiLevelSampler(cache)
    return sum(len(sampler.step(step).rows) for step in range(WARM_UP, WARM_UP + steps))


def _ahead(cache: RoICache, steps: range) -> float:
    """Seconds per GB from the disk of the trainer's reading without the training."""
    features = Features(cache, torch.device("cpu"))
    if features.in_memory:
        raise RuntimeError("the features fit in memory, nothing would be streamed")
    sampler = BiLevelSampler(cache)
    before, started = measure.bytes_from_disk(), time.perf_counter()
    for _ in batches(sampler, features, 1, steps):
        pass
    return (time.perf_counter() - started) / (measure.bytes_from_disk() - before) * 1e9


def _sequential(url: Path) -> float:
    """Seconds per GB of reading the features' files one after the other."""
    before, started = measure.bytes_from_disk(), time.perf_counter()
    buffer = np.empty(1 << 23, np.uint8)
    for file in measure.files_of(url / "feature"):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return (time.perf_counter() - started) / (measure.bytes_from_disk() - before) * 1e9


if __name__ == "__main__":
    _child(*sys.argv[1:]) if sys.argv[1:] else main()
