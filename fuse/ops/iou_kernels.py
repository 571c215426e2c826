"""Numba kernels for the IoU of one box with many.

The arithmetic is float32 in the order of torchvision's CPU kernel, so that NMS removes exactly the same boxes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

STEP_BOXES = 16
"""Boxes per step of `overlaps_any`, a multiple of the vector width."""


class Box(NamedTuple):
    """Corners and area of one box, float32."""

    left: np.float32
    top: np.float32
    right: np.float32
    bottom: np.float32
    area: np.float32


EMPTY_BOX = Box(np.float32(0), np.float32(0), np.float32(0), np.float32(0), np.float32(0))
"""Its IoU with any box is 0 or NaN."""


class BoxColumns(NamedTuple):
    """N boxes as one (N,) float32 array per coordinate, so that loops over boxes use vector instructions."""

    left: np.ndarray
    top: np.ndarray
    right: np.ndarray
    bottom: np.ndarray
    area: np.ndarray


@numba.njit(nogil=True)
def overlap_bitmasks(boxes: np.ndarray, iou_threshold: np.float32) -> np.ndarray:
    """Returns which pairs of `boxes` (R, 4) have an IoU above the threshold, as (R, ceil(R / 64)) uint64 bits."""
    words = (len(boxes) + 63) // 64
    columns = zero_columns(words * 64)
    for r in range(len(boxes)):
        set_box(columns, r, as_box(boxes[r]))
    bitmasks, hits = np.empty((len(boxes), words), np.uint64), np.empty(words * 64, np.uint8)
    for r in range(len(boxes)):
        box = as_box(boxes[r])
        for i in range(hits.size):
            hits[i] = _iou(box, columns, i) > iou_threshold
        for w in range(words):
            bits, word = hits[w * 64 : (w + 1) * 64], np.uint64(0)
            for i in range(64):
                word |= np.uint64(bits[i]) << np.uint64(i)
            bitmasks[r, w] = word
    return bitmasks


@numba.njit(nogil=True)
def overlaps_any(box: Box, others: BoxColumns, count: int, iou_threshold: np.float32) -> bool:
    """Returns whether the IoU of the box with any of the first `count` others is above the threshold.

    Compares whole steps of boxes, without a remainder; boxes after `count` must be `EMPTY_BOX`.
    """
    hits: Any = 0  # a count, because a loop that ends early is not vectorized
    for i in range((count + STEP_BOXES - 1) // STEP_BOXES * STEP_BOXES):
        hits += _iou(box, others, i) > iou_threshold
    return hits > 0


@numba.njit(nogil=True, error_model="numpy")
def _iou(box: Box, others: BoxColumns, i: int) -> np.float32:
    """Returns the IoU of the box with box i of the others; NaN if both have no area."""
    zero = np.float32(0)
    width = max(zero, min(box.right, others.right[i]) - max(box.left, others.left[i]))
    height = max(zero, min(box.bottom, others.bottom[i]) - max(box.top, others.top[i]))
    intersection = width * height
    return intersection / (others.area[i] + box.area - intersection)


@numba.njit(nogil=True)
def as_box(xyxy: np.ndarray) -> Box:
    """Converts (4,) float32 xyxy."""
    left, top, right, bottom = xyxy[0], xyxy[1], xyxy[2], xyxy[3]
    return Box(left, top, right, bottom, (right - left) * (bottom - top))


@numba.njit(nogil=True)
def zero_columns(size: int) -> BoxColumns:
    """Returns columns of `size` empty boxes."""
    left, top = np.zeros(size, np.float32), np.zeros(size, np.float32)
    right, bottom = np.zeros(size, np.float32), np.zeros(size, np.float32)
    return BoxColumns(left, top, right, bottom, np.zeros(size, np.float32))


@numba.njit(nogil=True)
def set_box(columns: BoxColumns, i: int, box: Box) -> None:
    """Sets box i of the columns."""
    columns.left[i], columns.top[i], columns.right[i], columns.bottom[i] = box.left, box.top, box.right, box.bottom
    columns.area[i] = box.area
