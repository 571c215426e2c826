"""Numba kernel of AP over resampled images: accumulates the same matches with a weight for each image.

Letters in shapes: `N` detections, `G` objects, `I` images, `T` IoU thresholds, `K` classes, `B` resamples, `C` columns.
"""

from __future__ import annotations

import numpy as np

from fuse.ops.kernel_cache import cached_njit
from fuse.ops.matching_kernels import EPSILON, IGNORED, TRUE_POSITIVE

BLOCK = 64
"""Resamples that are accumulated at a time: their counters stay in the first-level cache."""


@cached_njit
def resampled_ap(
    weights: np.ndarray,
    classes: np.ndarray,
    images: np.ndarray,
    outcomes: np.ndarray,
    gt_classes: np.ndarray,
    gt_images: np.ndarray,
    rounded_up: np.ndarray,
    thresholds: np.ndarray,
    members: np.ndarray,
    sums: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Adds each class's AP in each resample to the columns that the class belongs to.

    An image drawn w times counts w times: its detections and objects have weight w. AP is precision, interpolated from
    the right, at 101 recall thresholds, as of `precision_curves`. From the worst detection to the best, the running
    maximum of precision is the interpolated one. Of w equal detections only the last is a point of the curve: precision
    at the others is lower and so replaced by it. A class without objects in a resample has no AP there.

    Args:
        weights: (I, B) uint16, how often each image was drawn.
        classes: (K+1,) int64; the detections of class k are classes[k]:classes[k + 1], best first.
        images: (N,) int32.
        outcomes: (N, T) uint8.
        gt_classes: (K+1,) int64; the objects of class k that count are gt_classes[k]:gt_classes[k + 1].
        gt_images: (G,) int32.
        rounded_up: (101,) bool, recall thresholds r / 100 whose float64 is above r divided by 100.
        thresholds: (C,) int64, the IoU threshold of each column; negative for the mean over all.
        members: (C, K) bool.
        sums: (C, B) float64, added to: AP in 0 to 1.
        counts: (C, B) int32, added to: classes with AP.
    """
    num_thresholds = outcomes.shape[1]
    positives, total = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    scale = np.empty(BLOCK)
    hits, ignored = np.empty((num_thresholds, BLOCK), np.int32), np.empty((num_thresholds, BLOCK), np.int32)
    area = np.empty((num_thresholds, BLOCK))
    drawn = np.zeros((weights.shape[0], BLOCK), np.int32)
    for start in range(0, weights.shape[1], BLOCK):
        width = min(BLOCK, weights.shape[1] - start)
        drawn[:, :width] = weights[:, start : start + width]
        for k in range(classes.size - 1):
            if gt_classes[k] == gt_classes[k + 1]:
                continue
            positives[:] = 0
            for g in range(gt_classes[k], gt_classes[k + 1]):
                for b in range(BLOCK):
                    positives[b] += drawn[gt_images[g], b]
            detections = slice(classes[k], classes[k + 1])
            _count(drawn, images[detections], outcomes[detections], total, hits, ignored)
            for b in range(BLOCK):
                scale[b] = 100.0 / positives[b] if positives[b] else 0.0
            _integrate(drawn, images[detections], outcomes[detections], rounded_up, scale, total, hits, ignored, area)
            _add_to_columns(area[:, :width], positives, k, start, thresholds, members, sums, counts)


@cached_njit
def _count(
    drawn: np.ndarray,
    images: np.ndarray,
    outcomes: np.ndarray,
    total: np.ndarray,
    hits: np.ndarray,
    ignored: np.ndarray,
) -> None:
    """Counts a class's detections (n,) in each resample: all (W,), and true positives and ignored ones (T, W)."""
    total[:], hits[:], ignored[:] = 0, 0, 0
    for i in range(images.size):
        row = drawn[images[i]]
        for b in range(BLOCK):
            total[b] += row[b]
        for t in range(outcomes.shape[1]):
            if outcomes[i, t] == TRUE_POSITIVE:
                for b in range(BLOCK):
                    hits[t, b] += row[b]
            elif outcomes[i, t] == IGNORED:
                for b in range(BLOCK):
                    ignored[t, b] += row[b]


@cached_njit
def _integrate(
    drawn: np.ndarray,
    images: np.ndarray,
    outcomes: np.ndarray,
    rounded_up: np.ndarray,
    scale: np.ndarray,
    total: np.ndarray,
    hits: np.ndarray,
    ignored: np.ndarray,
    area: np.ndarray,
) -> None:
    """Sums interpolated precision at 101 recall thresholds into `area` (T, W), from the worst detection to the best.

    `total`, `hits` and `ignored` are those of `_count`, and are counted down to 0.
    """
    best, reached = np.zeros(area.shape), np.empty(area.shape)
    area[:] = 0.0
    for t in range(outcomes.shape[1]):
        for b in range(BLOCK):
            reached[t, b] = _thresholds_reached(hits[t, b], scale[b], rounded_up)
    for i in range(images.size - 1, -1, -1):
        row = drawn[images[i]]
        for t in range(outcomes.shape[1]):
            if outcomes[i, t] == TRUE_POSITIVE:
                for b in range(BLOCK):
                    precision = hits[t, b] / (total[b] - ignored[t, b] + EPSILON)
                    best[t, b] = max(best[t, b], precision)
                    hits[t, b] -= row[b]
                    before = _thresholds_reached(hits[t, b], scale[b], rounded_up)
                    area[t, b] += (reached[t, b] - before) * best[t, b]
                    reached[t, b] = before
            elif outcomes[i, t] == IGNORED:
                for b in range(BLOCK):
                    ignored[t, b] -= row[b]
        for b in range(BLOCK):
            total[b] -= row[b]


@cached_njit
def _thresholds_reached(hits: int, scale: float, rounded_up: np.ndarray) -> float:
    """Returns how many of the recall thresholds 0.00, 0.01 … 1.00 are at most hits / positives.

    `scale` is 100 / positives. Without hits there is no point of the curve, so even recall 0 is not reached.
    """
    quotient = hits * scale
    whole = np.floor(quotient + 1e-9)
    exact = (quotient - whole < 1e-9) & rounded_up[np.int64(whole)]
    return (hits > 0) * (whole + 1.0 - exact)


@cached_njit
def _add_to_columns(
    area: np.ndarray,
    positives: np.ndarray,
    k: int,
    start: int,
    thresholds: np.ndarray,
    members: np.ndarray,
    sums: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Adds the AP of class k in the resamples from `start` on; area (T, W) sums precision at 101 thresholds."""
    for c in range(thresholds.size):
        if not members[c, k]:
            continue
        for b in range(area.shape[1]):
            if positives[b] == 0:
                continue
            if thresholds[c] < 0:
                ap = 0.0
                for t in range(area.shape[0]):
                    ap += area[t, b]
                ap /= area.shape[0]
            else:
                ap = area[thresholds[c], b]
            sums[c, start + b] += ap / 101.0
            counts[c, start + b] += 1
