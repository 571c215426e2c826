"""The bootstrap over images: AP of resampled images, from matches that are made once.

A resample draws as many images as there are, with replacement. An image that is drawn w times counts w times, as if the
dataset had w copies of it. Every row sees the same resamples, so that rows can be compared resample by resample.
"""

from __future__ import annotations

import numpy as np

from fuse.evaluation.accumulate import RECALL_THRESHOLDS
from fuse.evaluation.native import Matches
from fuse.evaluation.resamples import ApColumn
from fuse.ops.matching_kernels import IGNORED, TRUE_POSITIVE
from fuse.ops.resampling_kernels import resampled_ap

ROUNDED_UP = np.arange(101) / 100 < RECALL_THRESHOLDS
"""Recall thresholds that float64 holds as more than r / 100, so that a recall of r / 100 does not reach them."""


def resample(matches: Matches, columns: list[ApColumn], weights: np.ndarray) -> np.ndarray:
    """Returns AP of each column in each resample, (C, B) float64 in points; NaN where no class has ground truth.

    Args:
        matches: of a row.
        columns: of `ap_columns`.
        weights: (I, B) uint16, images by ascending id.
    """
    order, _ = matches.by_class()
    sums, counts = np.zeros((len(columns), weights.shape[1])), np.zeros((len(columns), weights.shape[1]), np.int32)
    for a in sorted({column.area for column in columns}):
        chosen = [c for c, column in enumerate(columns) if column.area == a]
        thresholds = np.array([columns[c].threshold for c in chosen], np.int64)
        members = np.stack([columns[c].classes for c in chosen])
        part = np.zeros((len(chosen), weights.shape[1])), np.zeros((len(chosen), weights.shape[1]), np.int32)
        resampled_ap(
            weights, *_detections(matches, a, order), *_objects(matches, a), ROUNDED_UP, thresholds, members, *part
        )
        sums[chosen], counts[chosen] = part
    return 100 * np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _detections(matches: Matches, area: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (K+1,) where classes start, images (N,) int32 and outcomes (N, T) of the detections that AP depends on.

    Those that are ignored at every threshold do not count, nor do those below the last true positive of their class.
    """
    num_classes = len(matches.gt.category_ids)
    outcomes = np.ascontiguousarray(matches.outcomes[area, :, order])
    classes = matches.cells[order] % num_classes
    last = np.full(num_classes, -1)
    positive = np.flatnonzero((outcomes == TRUE_POSITIVE).any(axis=1))
    last[classes[positive]] = positive  # the last of a class stays
    kept = (np.arange(len(order)) <= last[classes]) & (outcomes != IGNORED).any(axis=1)
    starts = np.searchsorted(classes[kept], np.arange(num_classes + 1))
    return starts, (matches.cells[order[kept]] // num_classes).astype(np.int32), outcomes[kept]


def _objects(matches: Matches, area: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (K+1,) where classes start, and images (G,) int32, of the objects that count, by class."""
    num_classes, kept = len(matches.gt.category_ids), matches.gt.cells[~matches.gt_ignored[area]]
    order = np.argsort(kept % num_classes, kind="stable")
    starts = np.searchsorted(kept[order] % num_classes, np.arange(num_classes + 1))
    return starts, (kept[order] // num_classes).astype(np.int32)
