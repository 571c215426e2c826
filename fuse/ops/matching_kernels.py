"""Numba kernels of AP: box overlaps, matching of detections with ground truth, precision at recall thresholds.

Letters in shapes: `N` detections, `G` objects of ground truth, `T` IoU thresholds, `A` ranges of areas, `K` classes.
They compute what `pycocotools.cocoeval` does in `computeIoU`, `evaluateImg` and `accumulate`.
"""

from __future__ import annotations

import numpy as np

from fuse.ops.kernel_cache import cached_njit

FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, 2
"""Outcomes of a detection."""
EPSILON = np.spacing(1)


@cached_njit
def box_overlaps(
    boxes: np.ndarray,
    gt_boxes: np.ndarray,
    first: np.ndarray,
    offsets: np.ndarray,
    crowd: np.ndarray,
    overlaps: np.ndarray,
) -> None:
    """Computes the overlap of each box with consecutive boxes of ground truth.

    The overlap is the IoU; with a crowd region it is the share of the box inside.

    Args:
        boxes: (N, 4) float64 xywh.
        gt_boxes: (G, 4) float64 xywh.
        first: (N,) int64, the first box of ground truth of each.
        offsets: (N+1,) int64; the overlaps of box n are at offsets[n]:offsets[n + 1].
        crowd: (G,) bool.
        overlaps: float64.
    """
    for n in range(boxes.shape[0]):
        left, top, width, height = boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3]
        for g in range(first[n], first[n] + offsets[n + 1] - offsets[n]):
            gt_left, gt_top, gt_width, gt_height = gt_boxes[g, 0], gt_boxes[g, 1], gt_boxes[g, 2], gt_boxes[g, 3]
            across = min(left + width, gt_left + gt_width) - max(left, gt_left)
            down = min(top + height, gt_top + gt_height) - max(top, gt_top)
            overlap = 0.0
            if across > 0 and down > 0:
                common, area = across * down, width * height
                overlap = common / (area if crowd[g] else area + gt_width * gt_height - common)
            overlaps[offsets[n] + g - first[n]] = overlap


@cached_njit
def match(
    cells: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    places: np.ndarray,
    overlaps: np.ndarray,
    gt_ignored: np.ndarray,
    crowd: np.ndarray,
    free: np.ndarray,
    thresholds: np.ndarray,
    taken: np.ndarray,
    outcomes: np.ndarray,
) -> None:
    """Matches the detections of each image and class with its ground truth, best score first.

    A detection takes the object that it overlaps most, if that is at least the threshold: an object that counts and
    that no better detection has taken, or else an ignored one. Crowd regions are never taken up. The last of equal
    overlaps wins.

    Args:
        cells: (C+1,) int64; the detections of cell c are cells[c]:cells[c + 1].
        first, last: (C,) int64; the ground truth of cell c is first[c]:last[c].
        places: (N,) int64, where each detection's overlaps with the ground truth of its cell start.
        overlaps: float64.
        gt_ignored: (A, G) bool.
        crowd: (G,) bool.
        free: (A, N) bool, detections that are ignored if they match nothing.
        thresholds: (T,) float64.
        taken: zeros (G,) int64, overwritten.
        outcomes: (A, T, N) uint8.
    """
    mark = 0
    for a in range(outcomes.shape[0]):
        for t in range(outcomes.shape[1]):
            mark += 1
            for c in range(cells.size - 1):
                for n in range(cells[c], cells[c + 1]):
                    best, found = thresholds[t], -1
                    best_ignored, found_ignored = thresholds[t], -1
                    for g in range(first[c], last[c]):
                        overlap = overlaps[places[n] + g - first[c]]
                        if taken[g] == mark and not crowd[g]:
                            continue
                        if gt_ignored[a, g]:
                            if overlap >= best_ignored:
                                best_ignored, found_ignored = overlap, g
                        elif overlap >= best:
                            best, found = overlap, g
                    if found >= 0:
                        taken[found] = mark
                        outcomes[a, t, n] = TRUE_POSITIVE
                    elif found_ignored >= 0:
                        taken[found_ignored] = mark
                        outcomes[a, t, n] = IGNORED
                    else:
                        outcomes[a, t, n] = IGNORED if free[a, n] else FALSE_POSITIVE


@cached_njit
def precision_curves(
    classes: np.ndarray,
    order: np.ndarray,
    outcomes: np.ndarray,
    gt_counts: np.ndarray,
    recall_thresholds: np.ndarray,
    ranks: np.ndarray,
    caps: np.ndarray,
    points: np.ndarray,
    precision: np.ndarray,
    recall: np.ndarray,
) -> None:
    """Computes precision at recall thresholds, interpolated from the right, and the highest recall, of each class.

    Classes without ground truth are left as they are.

    Args:
        classes: (K+1,) int64; the detections of class k are order[classes[k]:classes[k + 1]], best first.
        order: (N,) int64 positions in `outcomes`.
        outcomes: (A, T, N) uint8.
        gt_counts: (A, K) int64, objects that count.
        recall_thresholds: (101,) float64, ascending.
        ranks: (N,) int64, of each detection in its image and class, from 0.
        caps: (M,) int64; recall is that of detections of a lower rank.
        points: (2, N) float64, overwritten.
        precision: zeros (T, 101, K, A) float64.
        recall: zeros (T, K, A, M) float64.
    """
    for k in range(classes.size - 1):
        for a in range(outcomes.shape[0]):
            if gt_counts[a, k] == 0:
                continue
            for t in range(outcomes.shape[1]):
                hits, misses, count = 0, 0, 0
                for i in range(classes[k], classes[k + 1]):
                    outcome = outcomes[a, t, order[i]]
                    misses += outcome == FALSE_POSITIVE
                    if outcome == TRUE_POSITIVE:
                        hits += 1
                        for m in range(caps.size):
                            recall[t, k, a, m] += ranks[order[i]] < caps[m]
                    points[0, count] = hits / gt_counts[a, k]
                    points[1, count] = hits / (misses + hits + EPSILON)
                    count += 1
                for m in range(caps.size):
                    recall[t, k, a, m] /= gt_counts[a, k]
                for i in range(count - 1, 0, -1):
                    if points[1, i] > points[1, i - 1]:
                        points[1, i - 1] = points[1, i]
                i = 0
                for r in range(recall_thresholds.size):
                    while i < count and points[0, i] < recall_thresholds[r]:
                        i += 1
                    if i == count:
                        break
                    precision[t, r, k, a] = points[1, i]
