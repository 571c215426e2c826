"""Numba kernels of `fuse.ops.nms`: select candidates from the scores, sort them, run greedy NMS per class.

Scores are the uint32 bits of non-negative float32 values, which have the same order.
Letters in shapes: `R` RoIs, `K` classes, `N` candidates.
"""

from __future__ import annotations

import numba
import numpy as np

from fuse.ops.array_kernels import accumulate, arange, argsort_descending, take
from fuse.ops.iou_kernels import EMPTY_BOX, STEP_BOXES, as_box, overlap_bitmasks, overlaps_any, set_box, zero_columns
from fuse.ops.kernel_cache import cached_njit

BLOCK_CLASSES = 64
"""Classes per block maximum: enough for vector instructions, few enough to skip most scores."""
BITMASK_CANDIDATES_PER_BOX = 16
"""With more candidates than this per shared box, the IoU of all pairs of boxes is computed once for all classes."""


@cached_njit
def block_maxima(scores: np.ndarray) -> tuple[np.ndarray, np.uint32]:
    """Returns the maximum of each block of `BLOCK_CLASSES` classes, and the maximum of all scores.

    Args:
        scores: (R, K+1) uint32, background last.

    Returns:
        (R, ceil(K / BLOCK_CLASSES)) uint32 without background; and a uint32, background included.
    """
    num_rois, num_classes = scores.shape[0], scores.shape[1] - 1
    maxima = np.empty((num_rois, (num_classes + BLOCK_CLASSES - 1) // BLOCK_CLASSES), np.uint32)
    largest = np.uint32(0)
    for r in range(num_rois):
        row = scores[r, :num_classes]
        largest = max(largest, scores[r, num_classes])
        for b in range(maxima.shape[1]):
            block = row[b * BLOCK_CLASSES : (b + 1) * BLOCK_CLASSES]
            maximum = np.uint32(0)
            for i in range(block.size):  # vectorized; a loop over the values themselves is not
                maximum = max(maximum, block[i])
            maxima[r, b] = maximum
            largest = max(largest, maximum)
    return maxima, largest


@cached_njit
def select_candidates(
    scores: np.ndarray, maxima: np.ndarray, class_thresholds: np.ndarray, min_score: np.uint32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the scores that are at least `min_score` and above the threshold of their class, in row-major order.

    Args:
        scores: (R, K+1) uint32, background last.
        maxima: of `block_maxima`.
        class_thresholds: (K,) uint32.
        min_score: over all classes.

    Returns:
        roi_index (N,) int32, class_index (N,) int32, score (N,) uint32.
    """
    num_rois, num_classes = scores.shape[0], scores.shape[1] - 1
    size = 0  # an upper bound; memory that is never written costs nothing
    for r in range(num_rois):
        for b in range(maxima.shape[1]):
            size += BLOCK_CLASSES if maxima[r, b] >= min_score else 0
    roi_index, class_index, score = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.uint32)
    n = 0
    for r in range(num_rois):
        row = scores[r, :num_classes]
        for b in range(maxima.shape[1]):
            if maxima[r, b] >= min_score:
                block = row[b * BLOCK_CLASSES : (b + 1) * BLOCK_CLASSES]
                for i in range(block.size):
                    if block[i] >= min_score and block[i] > class_thresholds[b * BLOCK_CLASSES + i]:
                        roi_index[n], class_index[n], score[n] = r, b * BLOCK_CLASSES + i, block[i]
                        n += 1
    return roi_index[:n], class_index[:n], score[:n]


@cached_njit
def nms_by_class(
    roi_index: np.ndarray,
    class_index: np.ndarray,
    score: np.ndarray,
    boxes: np.ndarray,
    num_classes: int,
    iou_threshold: np.float32,
    max_detections: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs greedy NMS on each class by itself and returns the best `max_detections` of all classes.

    Example: 3 RoIs, 2 classes. The IoU of RoIs 0 and 1 is above the threshold; RoI 2 overlaps neither.

        candidate     0   1   2   3   4   5
        roi_index     0   0   1   1   2   2
        class_index   0   1   0   1   0   1
        score        .6  .9  .8  .7  .4  .5

        grouped       0   2   4 | 1   3   5     candidates, class by class
        order         3   1   4   0   5   2     positions in `grouped`, best first
        queue         1   0   2 | 3   4   5     positions in `grouped`, class by class, best first
        keep          -   +   + | +   -   +     by position: 1 removes 0, and 3 removes 4
        kept          1   2   5   4             candidates of the positions in `order` that are kept

    Args:
        roi_index, class_index, score: candidates, (N,) each; those of one class by ascending RoI.
        boxes: (R, 1, 4) shared by the classes, or (R, K, 4); float32 xyxy.
        num_classes: K.
        iou_threshold: a kept box removes boxes of its class whose IoU with it is above this.
        max_detections: of all classes together.

    Returns:
        roi_index (D,) int64, class_index (D,) int64, score (D,) uint32, best first; equal scores by class, then RoI.
    """
    offsets = _class_offsets(class_index, num_classes)
    grouped = _group_by_class(arange(score.size), class_index, offsets)
    order = argsort_descending(take(score, grouped))
    queue = _group_by_class(order, take(class_index, grouped), offsets)
    if boxes.shape[1] == 1 and score.size > BITMASK_CANDIDATES_PER_BOX * len(boxes):
        keep = _bitmask_nms(queue, offsets, take(roi_index, grouped), boxes[:, 0], iou_threshold)
    else:
        keep = _greedy_nms(queue, offsets, _gather_boxes(boxes, roi_index, class_index, offsets), iou_threshold)
    return _best_kept(order, keep, grouped, roi_index, class_index, score, max_detections)


@numba.njit(nogil=True)
def _class_offsets(class_index: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns (K+1,) int64: grouped by class, the candidates of class c are at `offsets[c]:offsets[c + 1]`."""
    offsets = np.zeros(num_classes + 1, np.int64)
    for c in class_index:
        offsets[c + 1] += 1
    accumulate(offsets)
    return offsets


@numba.njit(nogil=True)
def _group_by_class(indices: np.ndarray, class_index: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Groups `indices` (N,) int32 by class, stable; index i has class `class_index[i]`."""
    grouped, places = np.empty_like(indices), offsets.copy()
    for i in indices:
        c = class_index[i]
        grouped[places[c]] = i
        places[c] += 1
    return grouped


@numba.njit(nogil=True)
def _gather_boxes(boxes: np.ndarray, roi_index: np.ndarray, class_index: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns the boxes of the candidates, class by class, (N, 4) float32.

    Reads `boxes` in memory order, because random reads of many megabytes are slow.
    """
    gathered, places = np.empty((roi_index.size, 4), np.float32), offsets.copy()
    for n in range(roi_index.size):
        c = class_index[n]
        box = boxes[roi_index[n], c if boxes.shape[1] > 1 else 0]
        for i in range(4):
            gathered[places[c], i] = box[i]
        places[c] += 1
    return gathered


@numba.njit(nogil=True)
def _greedy_nms(queue: np.ndarray, offsets: np.ndarray, boxes: np.ndarray, iou_threshold: np.float32) -> np.ndarray:
    """Returns (N,) bool: which of `boxes` (N, 4) are kept. `queue` (N,) has their indices by class, best first."""
    keep = np.zeros(queue.size, np.bool_)
    largest = 0
    for c in range(offsets.size - 1):
        largest = max(largest, offsets[c + 1] - offsets[c])
    kept = zero_columns(largest + STEP_BOXES)  # the kept boxes of one class
    for c in range(offsets.size - 1):
        count = 0
        for p in queue[offsets[c] : offsets[c + 1]]:
            box = as_box(boxes[p])
            if not overlaps_any(box, kept, count, iou_threshold):
                set_box(kept, count, box)
                count += 1
                keep[p] = True
        for i in range(count):
            set_box(kept, i, EMPTY_BOX)
    return keep


@numba.njit(nogil=True)
def _bitmask_nms(
    queue: np.ndarray, offsets: np.ndarray, roi_index: np.ndarray, boxes: np.ndarray, iou_threshold: np.float32
) -> np.ndarray:
    """Returns the same as `_greedy_nms` where the classes share `boxes` (R, 4); position p has box `roi_index[p]`.

    First computes the boxes that each box overlaps, as one bit per pair, for all classes.
    """
    bitmasks = overlap_bitmasks(boxes, iou_threshold)
    keep, removed = np.zeros(queue.size, np.bool_), np.empty(bitmasks.shape[1], np.uint64)
    for c in range(offsets.size - 1):
        removed[:] = 0
        for p in queue[offsets[c] : offsets[c + 1]]:
            r = roi_index[p]
            if not removed[r >> 6] >> np.uint64(r & 63) & np.uint64(1):
                keep[p] = True
                overlapping = bitmasks[r]
                for w in range(removed.size):
                    removed[w] |= overlapping[w]
    return keep


@numba.njit(nogil=True)
def _best_kept(
    order: np.ndarray,
    keep: np.ndarray,
    grouped: np.ndarray,
    roi_index: np.ndarray,
    class_index: np.ndarray,
    score: np.ndarray,
    max_detections: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the first `max_detections` kept candidates in order, as `nms_by_class` does."""
    size = min(max_detections, order.size)
    rois, classes, scores = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.uint32)
    count = 0
    for p in order:
        if count == size:
            break
        if keep[p]:
            n = grouped[p]
            rois[count], classes[count], scores[count] = roi_index[n], class_index[n], score[n]
            count += 1
    return rois[:count], classes[:count], scores[:count]
