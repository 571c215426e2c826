"""Detection on a val cache with all CPUs of the process, against one CPU; detections are checked to be equal.

    python -m benchmarks.speed.detection

Images have 1,000 RoIs and LVIS v0.5's classes, once in a cache of feature level "logits" (original, and NorCal's scores
for the tail) and once in one of "embedding" with masks (original, and a linear head's scores for the tail). The caches
take 3 and 5 MB an image, in a temporary folder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tyro

from benchmarks.speed import inputs
from benchmarks.speed.measure import Result, compare, result, save
from calib.head_types import build_head
from calib.posthoc import NorCal
from calib.scoring import Scorer
from extract import RoICache, write_cache
from extract.rois import RoIs
from fuse.config import FusionConfig
from fuse.detections import Detections
from fuse.fusion import Fusion
from fuse.inference import detect_many

ROIS = 1000
EMBEDDING = 1024
ROUNDS = 5
EFFICIENCY = 0.9
"""Target: speed-up per CPU."""


def main(images: int = 64) -> None:
    """Times both caches and saves the results."""
    with tempfile.TemporaryDirectory() as folder:
        save("detection", [time_detection(Path(folder), level, images) for level in ("logits", "embedding")])


def time_detection(folder: Path, level: str, images: int) -> Result:
    """Times all CPUs against one, on a new cache of a feature level."""
    cpus = os.sched_getaffinity(0)
    cache = make_cache(folder / f"{level}.zarr", level, images)
    scorer = NorCal().fit(cache) if level == "logits" else build_head(cache, "linear", 0, 0, {})
    on_all, on_one = partial(detect_on, cpus, cache, scorer), partial(detect_on, {min(cpus)}, cache, scorer)
    for ours, theirs in zip(on_all().values(), on_one().values(), strict=True):
        assert_equal(ours, theirs)
    with_masks = ", with masks" if "masks" in cache.fields else ""
    case = f"detect original and cat, {images} images, feature level {level}{with_masks}, {len(cpus)} CPUs"
    return result(case, "one CPU", compare(on_all, on_one, ROUNDS), "at_least", EFFICIENCY * len(cpus))


def detect_on(cpus: set[int], cache: RoICache, scorer: Scorer) -> dict[str, Detections]:
    """Detects with both modes, with all threads of this process on these CPUs."""
    before = os.sched_getaffinity(0)
    try:
        pin_threads(cpus)
        fusions = {
            "original": Fusion.for_cache(cache, FusionConfig(mode="original")),
            "cat": Fusion.for_cache(cache, FusionConfig(mode="cat"), scorer),
        }
        return detect_many(cache, fusions)
    finally:
        pin_threads(before)


def pin_threads(cpus: set[int]) -> None:
    """Restricts every thread of this process to these CPUs."""
    for task in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(task), cpus)
        except ProcessLookupError:  # a thread that has ended since
            pass


def assert_equal(ours: Detections, theirs: Detections) -> None:
    """Asserts the same detections, bit for bit and in the same order."""
    for column in ("image_ids", "category_ids", "scores", "boxes"):
        np.testing.assert_array_equal(getattr(ours, column), getattr(theirs, column))
    assert ours.rles == theirs.rles


def make_cache(path: Path, level: str, images: int) -> RoICache:
    """Writes a val cache of made-up RoIs."""
    classes = inputs.lvis_classes()
    outputs = len(classes) + 1
    weight = np.random.default_rng(0).normal(0, 0.02, (outputs, EMBEDDING)).astype(np.float32)
    fc_layers = [[(weight, np.zeros(outputs, np.float32))]] if level != "logits" else ()
    return write_cache(str(path), Images(level, images), classes, split="val", level=level, fc_layers=fc_layers)


class Images(Sequence[RoIs]):
    """RoIs of each image, made when indexed."""

    def __init__(self, level: str, count: int) -> None:
        self._level, self._count = level, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> RoIs:  # type: ignore[override]  # no slices
        if not 0 <= index < self._count:
            raise IndexError(index)
        rng = np.random.default_rng((index, 2))
        features = masks = None
        if self._level == "embedding":
            features = np.maximum(rng.normal(0, 1, (ROIS, 1, EMBEDDING)), 0).astype(np.float16)
            masks = inputs.disc_masks(ROIS, rng)
        logits = inputs.logits(ROIS, seed=index)
        return inputs.make_rois(index + 1, inputs.proposals(ROIS, index), logits, features=features, masks=masks)


if __name__ == "__main__":
    tyro.cli(main)
