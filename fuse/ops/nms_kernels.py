"""Multi-class NMS on selected candidates, and its Numba kernels: select, group by class, run greedy NMS.

Scores are the uint32 bits of non-negative float32 values, which have the same order.
Letters in shapes: `R` RoIs, `K` classes, `N` candidates.

NumPy allocates the arrays, and kernels do not call each other: Numba takes twice as long to compile a kernel that
allocates, and compiles a called kernel once more for each caller.
"""

from __future__ import annotations

import numpy as np

from fuse.ops.array_kernels import argsort_descending
from fuse.ops.iou_kernels import STEP_BOXES, WORD_BITS, as_columns, bitmask_nms, greedy_nms, overlap_bitmasks
from fuse.ops.kernel_cache import cached_njit

BLOCK_CLASSES = 64
"""Classes per block maximum: enough for vector instructions, few enough to skip most scores."""
BITMASK_CANDIDATES_PER_BOX = 16
"""With more candidates than this per shared box, the IoU of all pairs of boxes is computed once for all classes."""


def block_maxima(scores: np.ndarray) -> tuple[np.ndarray, np.uint32]:
    """Returns the maximum of each block of `BLOCK_CLASSES` classes, and the maximum of all scores.

    Args:
        scores: (R, K+1) uint32, background last.

    Returns:
        (R, ceil(K / BLOCK_CLASSES)) uint32 without background; and a uint32, background included.
    """
    num_classes = scores.shape[1] - 1
    maxima = np.empty((len(scores), (num_classes + BLOCK_CLASSES - 1) // BLOCK_CLASSES), np.uint32)
    return maxima, np.uint32(_block_maxima(scores, maxima))


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
    size = BLOCK_CLASSES * np.count_nonzero(maxima >= min_score)  # at most; memory that is never written costs nothing
    roi_index, class_index, score = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.uint32)
    n = _select_candidates(scores, maxima, class_thresholds, min_score, roi_index, class_index, score)
    return roi_index[:n], class_index[:n], score[:n]


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
    offsets = np.zeros(num_classes + 1, np.int64)
    np.cumsum(np.bincount(class_index, minlength=num_classes), out=offsets[1:])
    grouped, queue = np.empty(score.size, np.int32), np.empty(score.size, np.int32)
    _group_by_class(np.arange(score.size, dtype=np.int32), class_index, offsets.copy(), grouped)
    order = argsort_descending(score.take(grouped))
    _group_by_class(order, class_index.take(grouped), offsets.copy(), queue)
    keep, threshold = np.zeros(score.size, np.uint8), np.float32(iou_threshold)
    if boxes.shape[1] == 1 and score.size > BITMASK_CANDIDATES_PER_BOX * len(boxes):
        words = (len(boxes) + WORD_BITS - 1) // WORD_BITS
        bitmasks, columns = np.empty((len(boxes), words), np.uint64), as_columns(boxes[:, 0], words * WORD_BITS)
        overlap_bitmasks(columns, threshold, np.empty(words * WORD_BITS, np.uint8), bitmasks)
        bitmask_nms(queue, offsets, roi_index.take(grouped), bitmasks, np.empty(words, np.uint64), keep)
    else:
        gathered = np.empty((score.size, 4), np.float32)
        _gather_boxes(boxes, roi_index, class_index, offsets.copy(), gathered)
        kept = np.zeros((5, np.diff(offsets).max(initial=0) + STEP_BOXES), np.float32)
        greedy_nms(queue, offsets, gathered, threshold, kept, keep)
    best = grouped.take(order.compress(keep.take(order))[:max_detections])  # quicker than indexing
    return roi_index.take(best).astype(np.int64), class_index.take(best).astype(np.int64), score.take(best)


@cached_njit
def _block_maxima(scores: np.ndarray, maxima: np.ndarray) -> np.uint32:
    """Writes the maximum of each block to `maxima` and returns the maximum of all scores, see `block_maxima`."""
    num_classes = scores.shape[1] - 1
    largest = np.uint32(0)
    for r in range(scores.shape[0]):
        row = scores[r, :num_classes]
        largest = max(largest, scores[r, num_classes])
        for b in range(maxima.shape[1]):
            block = row[b * BLOCK_CLASSES : (b + 1) * BLOCK_CLASSES]
            maximum = np.uint32(0)
            for i in range(block.size):  # vectorized; a loop over columns of `scores` is not
                maximum = max(maximum, block[i])
            maxima[r, b] = maximum
            largest = max(largest, maximum)
    return largest


@cached_njit
def _select_candidates(
    scores: np.ndarray,
    maxima: np.ndarray,
    class_thresholds: np.ndarray,
    min_score: np.uint32,
    roi_index: np.ndarray,
    class_index: np.ndarray,
    score: np.ndarray,
) -> int:
    """Writes the candidates to the last three arguments and returns their number, see `select_candidates`."""
    n = 0
    for r in range(scores.shape[0]):
        for b in range(maxima.shape[1]):
            if maxima[r, b] >= min_score:
                for c in range(b * BLOCK_CLASSES, min((b + 1) * BLOCK_CLASSES, class_thresholds.size)):
                    if scores[r, c] >= min_score and scores[r, c] > class_thresholds[c]:
                        roi_index[n], class_index[n], score[n] = r, c, scores[r, c]
                        n += 1
    return n


@cached_njit
def _group_by_class(indices: np.ndarray, class_index: np.ndarray, places: np.ndarray, grouped: np.ndarray) -> None:
    """Writes `indices` to `grouped`, both (N,) int32, by class and stable; index i has class `class_index[i]`.

    `places` (K+1,) int64 is where each class starts; it is overwritten.
    """
    for n in range(indices.size):
        i = indices[n]
        c = class_index[i]
        grouped[places[c]] = i
        places[c] += 1


@cached_njit
def _gather_boxes(
    boxes: np.ndarray, roi_index: np.ndarray, class_index: np.ndarray, places: np.ndarray, gathered: np.ndarray
) -> None:
    """Writes the boxes of the candidates to `gathered` (N, 4) float32, class by class; `places` as above.

    Reads `boxes` in memory order, because random reads of many megabytes are slow.
    """
    for n in range(roi_index.size):
        c = class_index[n]
        p, b = places[c], c if boxes.shape[1] > 1 else 0
        for i in range(4):
            gathered[p, i] = boxes[roi_index[n], b, i]
        places[c] = p + 1
