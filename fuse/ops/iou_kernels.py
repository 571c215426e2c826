"""Numba kernels of greedy NMS within classes.

IoU is computed in float32 in the order of torchvision's CPU kernel, so that NMS removes exactly the same boxes. Boxes
that many are compared with are columns (5, N): left, top, right, bottom, area; loops over them use vector instructions.
The IoU of an empty column, five zeros, with any box is 0 or NaN, which is above no threshold.
"""

from __future__ import annotations

import numpy as np

from fuse.ops.kernel_cache import cached_njit

STEP_BOXES = 16
"""Boxes that are compared at least, without a test in between; a multiple of the vector width."""
WORD_BITS = 64


def as_columns(boxes: np.ndarray, size: int) -> np.ndarray:
    """Converts boxes (N, 4) float32 xyxy to columns (5, size), with empty boxes after the first N."""
    columns = np.zeros((5, size), np.float32)
    columns[:4, : len(boxes)] = boxes.T
    columns[4] = (columns[2] - columns[0]) * (columns[3] - columns[1])
    return columns


@cached_njit
def greedy_nms(
    queue: np.ndarray,
    offsets: np.ndarray,
    boxes: np.ndarray,
    iou_threshold: np.float32,
    kept: np.ndarray,
    keep: np.ndarray,
) -> None:
    """Runs NMS class by class on the candidates that `queue` lists by class, best first.

    Args:
        queue: (N,) int32 positions in `boxes`.
        offsets: (K+1,) int64, where each class starts in `queue`.
        boxes: (N, 4) float32 xyxy.
        iou_threshold: a kept box removes boxes of its class whose IoU with it is above this.
        kept: zeros (5, M) float32, M at least the candidates of a class rounded up to `STEP_BOXES`; zeros afterwards.
        keep: zeros (N,) uint8; set to 1 for the boxes that are kept.
    """
    zero = np.float32(0)
    for c in range(offsets.size - 1):
        count = 0
        for q in range(offsets[c], offsets[c + 1]):
            p = queue[q]
            left, top, right, bottom = boxes[p, 0], boxes[p, 1], boxes[p, 2], boxes[p, 3]
            area = (right - left) * (bottom - top)
            hits = 0  # a count, because a loop that ends early is not vectorized
            for i in range((count + STEP_BOXES - 1) // STEP_BOXES * STEP_BOXES):
                width = max(zero, min(right, kept[2, i]) - max(left, kept[0, i]))
                height = max(zero, min(bottom, kept[3, i]) - max(top, kept[1, i]))
                intersection = width * height
                hits += intersection / (kept[4, i] + area - intersection) > iou_threshold
            if hits == 0:
                kept[0, count], kept[1, count], kept[2, count], kept[3, count] = left, top, right, bottom
                kept[4, count] = area
                keep[p] = 1
                count += 1
        for j in range(5):
            for i in range(count):
                kept[j, i] = zero


@cached_njit
def overlap_bitmasks(columns: np.ndarray, iou_threshold: np.float32, hits: np.ndarray, bitmasks: np.ndarray) -> None:
    """Sets `bitmasks` (R, W) uint64: bit i of row r is whether the IoU of boxes r and i is above the threshold.

    Args:
        columns: (5, 64 W) float32 boxes, empty after the first R.
        hits: (64 W,) uint8, overwritten.
    """
    zero = np.float32(0)
    for r in range(bitmasks.shape[0]):
        left, top, right, bottom, area = columns[0, r], columns[1, r], columns[2, r], columns[3, r], columns[4, r]
        for i in range(hits.size):
            width = max(zero, min(right, columns[2, i]) - max(left, columns[0, i]))
            height = max(zero, min(bottom, columns[3, i]) - max(top, columns[1, i]))
            intersection = width * height
            hits[i] = intersection / (columns[4, i] + area - intersection) > iou_threshold
        for w in range(bitmasks.shape[1]):
            bits, word = hits[w * WORD_BITS : (w + 1) * WORD_BITS], np.uint64(0)
            for i in range(WORD_BITS):
                word |= np.uint64(bits[i]) << np.uint64(i)
            bitmasks[r, w] = word


@cached_njit
def bitmask_nms(
    queue: np.ndarray,
    offsets: np.ndarray,
    roi_index: np.ndarray,
    bitmasks: np.ndarray,
    removed: np.ndarray,
    keep: np.ndarray,
) -> None:
    """Runs `greedy_nms` where the classes share R boxes: position p has box `roi_index[p]`.

    Args:
        queue, offsets, keep: as of `greedy_nms`.
        roi_index: (N,) int32.
        bitmasks: (R, W) uint64 of `overlap_bitmasks`.
        removed: (W,) uint64, overwritten.
    """
    for c in range(offsets.size - 1):
        for w in range(removed.size):
            removed[w] = np.uint64(0)
        for q in range(offsets[c], offsets[c + 1]):
            p = queue[q]
            r = roi_index[p]
            if not removed[r >> 6] >> np.uint64(r & 63) & np.uint64(1):
                keep[p] = 1
                overlapping = bitmasks[r]
                for w in range(removed.size):
                    removed[w] |= overlapping[w]
