"""What the comparison with a cache's checksums costs where `fuse` and `calib.train` read: in processor time.

    python -m benchmarks.speed.integrity [--folder DIR]

Baseline is the same cache without its manifest, as caches of earlier versions are: every chunk is compared with its own
checksum, but not with the one that it was written with. Files are in the system's page cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import zarr

from benchmarks.speed import inputs
from benchmarks.speed.measure import Result, result, save, seconds, timing
from benchmarks.speed.storage import Images
from extract import RoICache, open_cache, write_cache
from extract.cache.manifest import MANIFEST, MANIFEST_SUM

TARGET, ROUNDS = 1.03, 25


def main() -> None:
    """Times all cases and saves the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where temporary files are written; decides which disk is measured")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as name:
        pooled = _write(Path(name) / "pooled", Images(16, 250, features=True), "train")
        logits = _write(Path(name) / "logits", Images(24, 1000, features=False), "val")
        results = [
            _time("take of a training step's features, pooled", pooled, _take),
            _time("for rois in cache, pooled", pooled, _iterate),
            _time("for rois in cache, logits", logits, _iterate),
        ]
    save("integrity", results)


def _write(folder: Path, images: Images, split: str) -> tuple[RoICache, RoICache]:
    """Writes a cache; returns it, and the same files without a manifest."""
    level = "logits" if images[0].features is None else "pooled"
    cache = write_cache(str(folder), images, inputs.lvis_classes(), split=split, level=level)
    copied = f"{folder}-without"
    shutil.copytree(folder, copied, copy_function=os.link)
    attributes = zarr.open_group(copied, mode="r+").attrs
    attributes.put({key: value for key, value in attributes.items() if key not in (MANIFEST, MANIFEST_SUM)})
    return cache, open_cache(copied)


def _time(case: str, caches: tuple[RoICache, RoICache], read: Callable[[RoICache], None]) -> Result:
    """Times both caches in turn, after a call of each that warms up."""
    calls = [partial(read, cache) for cache in caches]
    for call in calls:
        call()
    pairs = [(_seconds(calls[0]), _seconds(calls[1])) for _ in range(ROUNDS)]
    return result(
        f"{case}, all chunks compared with the manifest's", "without a manifest", timing(pairs), "at_most", TARGET
    )


def _seconds(call: Callable[[], None]) -> float:
    return seconds(call, clock=time.process_time)


def _take(cache: RoICache) -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        images = rng.permutation(len(cache))
        cache.take("features", np.concatenate([250 * i + rng.choice(250, 20, replace=False) for i in images]))


def _iterate(cache: RoICache) -> None:
    for rois in cache:
        assert len(rois)


if __name__ == "__main__":
    main()
