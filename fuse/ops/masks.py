"""Class-agnostic mask probabilities pasted into the image and encoded as COCO run lengths, in one pass.

Pasting is that of detectron2 and mmdetection: the probability at a pixel's centre, interpolated bilinearly in the
continuous box with zeros around it, is mask from 0.5 on. Only pixels whose centre is in the box can reach 0.5, so
nothing else is looked at, and the runs are written straight from them.
"""

from __future__ import annotations

from itertools import pairwise

import numba
import numpy as np

_HALF = np.float32(127.5)  # probability 0.5 in uint8 units


def encode_masks(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> list[dict]:
    """Masks at image size as compressed COCO RLE.

    Args:
        masks: (N, M, M) uint8, mask probability in the box times 255.
        boxes: (N, 4) float32 xyxy in pixels of the image; may reach beyond it.
        height, width: of the image.

    Returns:
        N records `{"size": [height, width], "counts": str}`; a mask without a pixel is a legal record of area 0.

    Raises:
        ValueError: another dtype or shape, or boxes that are not finite.
    """
    masks, boxes = np.ascontiguousarray(masks), np.ascontiguousarray(boxes, np.float32)
    if masks.dtype != np.uint8 or masks.ndim != 3:
        raise ValueError(f"masks are {masks.dtype} {masks.shape}, expected uint8 (N, M, M)")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"boxes have shape {boxes.shape}, expected {(len(masks), 4)}")
    if not np.isfinite(boxes).all():
        raise ValueError("boxes contain NaN or infinity")
    text, ends = _encode(masks, boxes, height, width)
    text = text.tobytes().decode("ascii")
    spans = pairwise([0, *ends.tolist()])
    return [{"size": [height, width], "counts": text[start:end]} for start, end in spans]


@numba.njit(nogil=True)
def _encode(masks, boxes, height, width):
    """The strings of all masks one after the other, uint8 ASCII codes, and where each ends, (N,) int64."""
    runs, ends = np.empty(height * width + 2, np.int64), np.empty(len(masks), np.int64)
    text, length = np.empty(256 * len(masks), np.uint8), 0
    for i in range(len(masks)):
        count = _paste_runs(masks[i], boxes[i], height, width, runs)
        if text.size < length + count * 7:  # a run takes at most seven characters
            longer = np.empty(2 * (length + count * 7), np.uint8)
            longer[:length] = text[:length]
            text = longer
        length += _compress(runs, count, text[length:])
        ends[i] = length
    return text[:length], ends


@numba.njit(nogil=True)
def _paste_runs(mask, box, height, width, runs):
    """Column-major run lengths of the pasted mask, first of zeros, into `runs`; returns how many.

    `mask` (M, M) uint8, `box` (4,) float32 xyxy, `runs` int64 with room for height * width + 2.
    """
    side = mask.shape[0]
    x1, y1, x2, y2 = box
    left, right = _inside(x1, x2, width)
    top, bottom = _inside(y1, y2, height)
    count, start, inside = 0, 0, False
    if x2 > x1 and y2 > y1 and left <= right and top <= bottom:
        rows, row_weights = _cells(top, bottom, y1, y2, side)
        columns, column_weights = _cells(left, right, x1, x2, side)
        full_height = top == 0 and bottom == height - 1  # only then does a run go on in the next column
        line = np.zeros(side + 2, np.float32)
        for x in range(left, right + 1):
            _blend(mask, columns[x - left], column_weights[x - left], line)
            for y in range(top, bottom + 1):
                i, weight = rows[y - top], row_weights[y - top]
                if (line[i] + weight * (line[i + 1] - line[i]) >= _HALF) != inside:
                    runs[count] = x * height + y - start
                    count, start, inside = count + 1, x * height + y, not inside
            if inside and not (full_height and x < right):
                runs[count] = x * height + bottom + 1 - start
                count, start, inside = count + 1, x * height + bottom + 1, False
    if start < height * width:
        runs[count] = height * width - start
        count += 1
    return count


@numba.njit(nogil=True)
def _inside(low, high, size):
    """First and last pixel whose centre is in [low, high] and in the image; first > last if there is none."""
    first, last = np.ceil(low - 0.5), np.floor(high - 0.5)
    return int(min(max(first, 0.0), size)), int(max(min(last, size - 1.0), -1.0))


@numba.njit(nogil=True)
def _cells(first, last, low, high, side):
    """Of each pixel centre the lower of its two cells, counted in a mask padded by one, and the upper's weight.

    (P,) int64 and (P,) float32 for the P = last - first + 1 pixels.
    """
    cells, weights = np.empty(last - first + 1, np.int64), np.empty(last - first + 1, np.float32)
    for pixel in range(first, last + 1):
        position = (pixel + 0.5 - low) / (high - low) * side + 0.5
        cell = min(int(position), side)
        cells[pixel - first], weights[pixel - first] = cell, position - cell
    return cells, weights


@numba.njit(nogil=True)
def _blend(mask, column, weight, line):
    """Fills `line[1:-1]`, of (M + 2,) float32, with the (M, M) mask's column at a fractional place."""
    side = mask.shape[0]
    for j in range(side):
        low = np.float32(mask[j, column - 1]) if column > 0 else np.float32(0)
        high = np.float32(mask[j, column]) if column < side else np.float32(0)
        line[j + 1] = low + weight * (high - low)


@numba.njit(nogil=True)
def _compress(runs, count, text):
    """COCO's string of run lengths: 5 bits a character, differences from the fourth; returns its length.

    Reads `runs[:count]` int64, fills `text` uint8 with ASCII codes.
    """
    n = 0
    for i in range(count):
        value = runs[i] - runs[i - 2] if i > 2 else runs[i]
        more = True
        while more:
            low = value & 31
            value >>= 5
            more = value != -1 if low & 16 else value != 0
            text[n] = low + 48 + (32 if more else 0)
            n += 1
    return n
