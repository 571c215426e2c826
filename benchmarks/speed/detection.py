"""Detecting on a whole val cache: all CPUs of the process against one of them, detections equal.

    python -m benchmarks.speed.detection

Images of 1,000 RoIs and LVIS v0.5's classes, in a cache of level "logits" (the detector alone, and NorCal's scores for
the tail) and in one of level "embedding" with masks (the detector alone, and a linear head's scores for the tail). The
caches take 3 and 5 MB an image, in a temporary folder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

from benchmarks.speed import inputs
from benchmarks.speed.measure import compare, keep, row
from calib.heads import build_head
from calib.posthoc import NorCal
from calib.scoring import Scorer
from extract import RoICache, write_cache
from extract.rois import RoIs
from fuse.detections import Detections
from fuse.inference import Row, detect_many

ROIS = 1000
WIDTH = 1024  # of an embedding
ROUNDS = 5


def main(images: int = 64) -> None:
    """Times both caches."""
    cpus = os.sched_getaffinity(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for level in ("logits", "embedding"):
            cache = make_cache(Path(folder) / f"{level}.zarr", level, images)
            scorer = NorCal().fit(cache) if level == "logits" else build_head(cache, "linear", 0, 0, {})
            found = [on(some, cache, scorer) for some in (cpus, {min(cpus)})]
            for ours, other in zip(*(parts.values() for parts in found), strict=True):
                assert_same(ours, other)
            pair = compare(
                lambda cache=cache, scorer=scorer: on(cpus, cache, scorer),
                lambda cache=cache, scorer=scorer: on({min(cpus)}, cache, scorer),
                rounds=ROUNDS,
            )
            what = f"fuse, original and cat, {images} images, level {level}" + (
                ", with masks" if level != "logits" else ""
            )
            bound = 0.9 * len(cpus)
            rows.append(row(f"{what}, {len(cpus)} CPUs", "one CPU", pair, at_least=bound))
    keep("detection", rows)


def on(cpus: set[int], cache: RoICache, scorer: Scorer) -> dict[str, Detections]:
    """Both rows' detections with all threads of this process on these CPUs."""
    before = os.sched_getaffinity(0)
    try:
        pin(cpus)
        return detect_many(cache, {"original": Row("original"), "cat": Row("cat", scorer)})
    finally:
        pin(before)


def pin(cpus: set[int]) -> None:
    for task in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(task), cpus)
        except ProcessLookupError:  # a thread that has ended since
            pass


def assert_same(ours: Detections, other: Detections) -> None:
    """Detections equal to the bit, in one order."""
    for column in ("image_ids", "category_ids", "scores", "boxes"):
        np.testing.assert_array_equal(getattr(ours, column), getattr(other, column))
    assert ours.rles == other.rles


def make_cache(path: Path, level: str, images: int) -> RoICache:
    classes = inputs.lvis_classes()
    rng = np.random.default_rng(0)
    layers = [
        (rng.normal(0, 0.02, (len(classes) + 1, WIDTH)).astype(np.float32), np.zeros(len(classes) + 1, np.float32))
    ]
    made = Images(level, images)
    return write_cache(str(path), made, classes, split="val", level=level, fc_layers=[layers] if level != "logits" else ())


class Images(Sequence):
    """One image's RoIs after the other, made when asked for."""

    def __init__(self, level: str, count: int):
        self._level, self._count = level, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> RoIs:
        if not 0 <= index < self._count:
            raise IndexError(index)
        boxes, rng = inputs.proposals(ROIS, index), np.random.default_rng((index, 2))
        height, width = inputs.SIZE
        features = masks = None
        if self._level == "embedding":
            features = np.maximum(rng.normal(0, 1, (ROIS, 1, WIDTH)), 0).astype(np.float16)
            y, x = np.mgrid[-1:1:28j, -1:1:28j]
            radius = rng.uniform(0.3, 1.2, (ROIS, 1, 1))
            masks = (254 / (1 + np.exp(8 * (x**2 + y**2 - radius)))).astype(np.uint8)
        return RoIs(
            image_id=index + 1,
            height=height,
            width=width,
            proposals=boxes[:, None],
            boxes=boxes,
            logits=inputs.logits(ROIS, seed=index)[:, None],
            objectness=np.ones(ROIS, np.float32),
            features=features,
            labels=np.zeros((ROIS, 1), np.int32),
            ious=np.zeros((ROIS, 1), np.float32),
            gt_ids=np.full((ROIS, 1), -1),
            is_gt=np.zeros(ROIS, bool),
            masks=masks,
        )


if __name__ == "__main__":
    tyro.cli(main)
