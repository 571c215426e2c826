"""Encodes masks as COCO RLE: class-agnostic mask probabilities, pasted in the same pass, and masks of the image's size.

Pasting is that of detectron2 and mmdetection: a pixel is foreground if the probability at its centre, interpolated
bilinearly over the box with zeros around it, is at least 0.5. Only pixels whose centre is in the box can be
foreground, so no others are computed, and no mask of the image's size is made.
"""

from __future__ import annotations

from itertools import pairwise

import numba
import numpy as np

from fuse.ops.kernel_cache import cached_njit

HALF = np.float32(127.5)
"""Probability 0.5 in units of uint8."""
MAX_RUN_CHARS = 7
"""Characters of a run in COCO's string."""


def encode_masks(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> list[dict]:
    """Returns masks at image size as compressed COCO RLE.

    Args:
        masks: (N, M, M) uint8, mask probability in the box times 255.
        boxes: (N, 4) float32 xyxy in pixels of the image; may extend beyond it.
        height, width: of the image.

    Returns:
        N records `{"size": [height, width], "counts": str}`. A mask without foreground is a valid record of area 0.

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
    codes, ends = _encode(masks, boxes, height, width)
    return _records(codes, ends, height, width)


def encode_bitmaps(masks: np.ndarray) -> list[dict]:
    """Returns masks of the image's size as compressed COCO RLE, as `pycocotools.mask.encode` does.

    Args:
        masks: (N, H, W) bool.

    Returns:
        N records `{"size": [H, W], "counts": str}`.

    Raises:
        ValueError: another dtype or shape.
    """
    if masks.dtype != bool or masks.ndim != 3:
        raise ValueError(f"masks are {masks.dtype} {masks.shape}, expected bool (N, H, W)")
    codes, ends = _encode_bitmaps(np.ascontiguousarray(masks).view(np.uint8))
    return _records(codes, ends, *masks.shape[1:])


def _records(codes: np.ndarray, ends: np.ndarray, height: int, width: int) -> list[dict]:
    """Returns the records of masks whose concatenated strings are `codes` uint8 and end at `ends` (N,) int64."""
    text = codes.tobytes().decode("ascii")
    return [{"size": [height, width], "counts": text[start:end]} for start, end in pairwise([0, *ends.tolist()])]


@cached_njit
def _encode(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the concatenated strings of all masks, uint8 ASCII codes, and where each ends, (N,) int64."""
    runs, ends = np.empty(height * width + 2, np.int64), np.empty(len(masks), np.int64)
    text, length = np.empty(256 * len(masks), np.uint8), 0
    for i in range(len(masks)):
        count = _paste_runs(masks[i], boxes[i], height, width, runs)
        text = _with_room(text, length, count * MAX_RUN_CHARS)
        length += _compress(runs, count, text[length:])
        ends[i] = length
    return text[:length], ends


@cached_njit
def _encode_bitmaps(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `_encode` returns, of (N, H, W) uint8 masks of 0 and 1."""
    height, width = masks.shape[1:]
    runs, ends = np.empty(height * width + 2, np.int64), np.empty(len(masks), np.int64)
    text, length = np.empty(256 * len(masks), np.uint8), 0
    for i in range(len(masks)):
        count = _bitmap_runs(masks[i], runs)
        text = _with_room(text, length, count * MAX_RUN_CHARS)
        length += _compress(runs, count, text[length:])
        ends[i] = length
    return text[:length], ends


@numba.njit(nogil=True)
def _with_room(text: np.ndarray, length: int, more: int) -> np.ndarray:
    """Returns `text`, or a longer copy of its first `length` characters if it has no room for `more`."""
    if text.size >= length + more:
        return text
    longer = np.empty(2 * (length + more), np.uint8)
    for j in range(length):  # a slice takes Numba seconds to compile
        longer[j] = text[j]
    return longer


@numba.njit(nogil=True)
def _bitmap_runs(mask: np.ndarray, runs: np.ndarray) -> int:
    """Writes the run lengths of a mask (H, W) uint8 to `runs`, as `_paste_runs` does. Returns their number."""
    height, width = mask.shape
    columns = np.zeros(width, np.uint8)
    top, bottom = height, -1
    for y in range(height):  # along the rows, which are contiguous, so that the slow pass below sees few pixels
        row = np.uint8(0)
        for x in range(width):
            row |= mask[y, x]
            columns[x] |= mask[y, x]
        if row:
            top, bottom = min(top, y), y
    count, start, inside = 0, 0, False
    for x in range(width):
        if not columns[x]:
            if inside:  # the column before was foreground to its last pixel
                runs[count] = x * height - start
                count, start, inside = count + 1, x * height, False
            continue
        for y in range(top if not inside else 0, bottom + 1):
            if (mask[y, x] != 0) != inside:
                runs[count] = x * height + y - start
                count, start, inside = count + 1, x * height + y, not inside
        if inside and bottom < height - 1:
            runs[count] = x * height + bottom + 1 - start
            count, start, inside = count + 1, x * height + bottom + 1, False
    if start < height * width:
        runs[count] = height * width - start
        count += 1
    return count


@numba.njit(nogil=True)
def _paste_runs(mask: np.ndarray, box: np.ndarray, height: int, width: int, runs: np.ndarray) -> int:
    """Writes the run lengths of the pasted mask to `runs`: column-major, background first. Returns their number.

    Args:
        mask: (M, M) uint8.
        box: (4,) float32 xyxy.
        height, width: of the image.
        runs: int64, with room for height * width + 2.
    """
    side = mask.shape[0]
    x1, y1, x2, y2 = box
    left, right = _pixel_range(x1, x2, width)
    top, bottom = _pixel_range(y1, y2, height)
    count, start, inside = 0, 0, False
    if x2 > x1 and y2 > y1 and left <= right and top <= bottom:
        rows, row_weights = _interpolation(top, bottom, y1, y2, side)
        columns, column_weights = _interpolation(left, right, x1, x2, side)
        full_height = top == 0 and bottom == height - 1  # else every run ends in its column
        line = np.zeros(side + 2, np.float32)
        for x in range(left, right + 1):
            _interpolate_column(mask, columns[x - left], column_weights[x - left], line)
            for y in range(top, bottom + 1):
                i, weight = rows[y - top], row_weights[y - top]
                if (line[i] + weight * (line[i + 1] - line[i]) >= HALF) != inside:
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
def _pixel_range(low: np.float32, high: np.float32, size: int) -> tuple[int, int]:
    """Returns the first and the last pixel of the image with the centre in [low, high]; first > last if none has."""
    first, last = np.ceil(low - 0.5), np.floor(high - 0.5)
    return int(min(max(first, 0.0), size)), int(max(min(last, size - 1.0), -1.0))


@numba.njit(nogil=True)
def _interpolation(
    first: int, last: int, low: np.float32, high: np.float32, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the lower of the two mask cells that each pixel is interpolated from, and the weight of the upper.

    Cells are counted in the mask padded by one cell. Returns (P,) int64 and (P,) float32, P = last - first + 1.
    """
    cells, weights = np.empty(last - first + 1, np.int64), np.empty(last - first + 1, np.float32)
    for pixel in range(first, last + 1):
        position = (pixel + 0.5 - low) / (high - low) * side + 0.5
        cell = min(int(position), side)
        cells[pixel - first], weights[pixel - first] = cell, position - cell
    return cells, weights


@numba.njit(nogil=True)
def _interpolate_column(mask: np.ndarray, column: int, weight: np.float32, line: np.ndarray) -> None:
    """Fills `line[1:-1]`, of (M + 2,) float32, with the mask (M, M) interpolated between `column` - 1 and `column`."""
    side = mask.shape[0]
    for j in range(side):
        low = np.float32(mask[j, column - 1]) if column > 0 else np.float32(0)
        high = np.float32(mask[j, column]) if column < side else np.float32(0)
        line[j + 1] = low + weight * (high - low)


@numba.njit(nogil=True)
def _compress(runs: np.ndarray, count: int, text: np.ndarray) -> int:
    """Writes `runs[:count]` int64 to `text` uint8 as COCO's string, in ASCII codes. Returns its length.

    Five bits per character; from the fourth run on, the difference to the run two before.
    """
    length = 0
    for i in range(count):
        value = runs[i] - runs[i - 2] if i > 2 else runs[i]
        more = True
        while more:
            low = value & 31
            value >>= 5
            more = value != -1 if low & 16 else value != 0
            text[length] = low + 48 + (32 if more else 0)
            length += 1
    return length
