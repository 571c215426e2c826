"""Encodes masks as COCO RLE: class-agnostic mask probabilities, pasted in the same pass, and masks of the image's size.

Pasting is that of detectron2 and mmdetection: a pixel is foreground if the probability at its centre, interpolated
bilinearly over the box with zeros around it, is at least 0.5. Only pixels whose centre is in the box can be
foreground, so no others are computed, and no mask of the image's size is made.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from fuse.ops.kernel_cache import cached_njit, inner_njit

HALF = np.float32(127.5)
"""Probability 0.5 in units of uint8."""
MAX_RUN_CHARS = 7
"""Characters of a run in COCO's string."""
RUNS_PER_MASK = 512
"""Room for the runs of a mask; where there is too little, the masks are encoded in several rounds."""


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
    columns, rows = ((np.empty(size, np.int64), np.empty(size, np.float32)) for size in (width, height))
    line = np.zeros(masks.shape[1] + 2, np.float32)

    def write_runs(start: int, runs: np.ndarray, ends: np.ndarray) -> int:
        return _paste_runs(masks[start:], boxes[start:], height, width, runs, ends, columns, rows, line)

    return _records(write_runs, len(masks), height, width)


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
    bitmaps, columns = np.ascontiguousarray(masks).view(np.uint8), np.empty(masks.shape[2], np.uint8)

    def write_runs(start: int, runs: np.ndarray, ends: np.ndarray) -> int:
        return _bitmap_runs(bitmaps[start:], runs, ends, columns)

    return _records(write_runs, len(masks), *masks.shape[1:])


def _records(
    write_runs: Callable[[int, np.ndarray, np.ndarray], int], count: int, height: int, width: int
) -> list[dict]:
    """Returns the records of masks.

    Args:
        write_runs: writes the run lengths of the masks from `start` on to `runs` (int64) and where those of each mask
            end to `ends` (int64), for as many masks as there is room. Returns their number.
        count: of masks.
        height, width: of the image.
    """
    runs, ends = np.empty(height * width + 2 + RUNS_PER_MASK * count, np.int64), np.empty(count, np.int64)
    records: list[dict] = []
    while len(records) < count:
        done = write_runs(len(records), runs, ends)
        codes = np.empty(ends[done - 1] * MAX_RUN_CHARS, np.uint8)
        length = _compress(runs, ends[:done], codes)
        text = codes[:length].tobytes().decode("ascii")
        bounds = pairwise([0, *ends[:done].tolist()])
        records += [{"size": [height, width], "counts": text[start:end]} for start, end in bounds]
    return records


@cached_njit
def _bitmap_runs(masks: np.ndarray, runs: np.ndarray, ends: np.ndarray, columns: np.ndarray) -> int:
    """Writes the run lengths of masks (N, H, W) uint8 as `_paste_runs` does; overwrites `columns` (W,) uint8."""
    height, width = masks.shape[1], masks.shape[2]
    count = 0
    for m in range(masks.shape[0]):
        if count + height * width + 2 > runs.size:
            return m
        columns[:] = 0
        top, bottom = height, -1
        for y in range(height):  # along the rows, which are contiguous, so that the slow pass below sees few pixels
            row = np.uint8(0)
            for x in range(width):
                row |= masks[m, y, x]
                columns[x] |= masks[m, y, x]
            if row:
                top, bottom = min(top, y), y
        start, inside = 0, False
        for x in range(width):
            if not columns[x]:
                if inside:  # the column before was foreground to its last pixel
                    runs[count] = x * height - start
                    count, start, inside = count + 1, x * height, False
                continue
            for y in range(top if not inside else 0, bottom + 1):
                if (masks[m, y, x] != 0) != inside:
                    runs[count] = x * height + y - start
                    count, start, inside = count + 1, x * height + y, not inside
            if inside and bottom < height - 1:
                runs[count] = x * height + bottom + 1 - start
                count, start, inside = count + 1, x * height + bottom + 1, False
        if start < height * width:
            runs[count] = height * width - start
            count += 1
        ends[m] = count
    return masks.shape[0]


@cached_njit
def _paste_runs(
    masks: np.ndarray,
    boxes: np.ndarray,
    height: int,
    width: int,
    runs: np.ndarray,
    ends: np.ndarray,
    columns: tuple[np.ndarray, np.ndarray],
    rows: tuple[np.ndarray, np.ndarray],
    line: np.ndarray,
) -> int:
    """Writes the run lengths of pasted masks: column-major, background first. Returns the number of masks.

    Stops at a mask that may have more runs than there is room for.

    Args:
        masks, boxes, height, width: as of `encode_masks`.
        runs, ends: int64 and (N,) int64, where the runs of each mask end.
        columns, rows: cells and weights of `_interpolation` for each column and row of pixels, overwritten.
        line: (M + 2,) float32 with zeros at its ends, overwritten.
    """
    count = 0
    for m in range(masks.shape[0]):
        if count + height * width + 2 > runs.size:
            return m
        left, right = _interpolation(boxes[m, 0], boxes[m, 2], width, masks.shape[1], *columns)
        top, bottom = _interpolation(boxes[m, 1], boxes[m, 3], height, masks.shape[1], *rows)
        start, inside = 0, False
        full_height = top == 0 and bottom == height - 1  # else every run ends in its column
        for x in range(left, right + 1 if top <= bottom else left):
            _interpolate_column(masks, m, columns[0][x], columns[1][x], line)
            for y in range(top, bottom + 1):
                i = rows[0][y]
                if (line[i] + rows[1][y] * (line[i + 1] - line[i]) >= HALF) != inside:
                    runs[count] = x * height + y - start
                    count, start, inside = count + 1, x * height + y, not inside
            if inside and not (full_height and x < right):
                runs[count] = x * height + bottom + 1 - start
                count, start, inside = count + 1, x * height + bottom + 1, False
        if start < height * width:
            runs[count] = height * width - start
            count += 1
        ends[m] = count
    return masks.shape[0]


@inner_njit
def _interpolation(
    low: np.float32, high: np.float32, size: int, side: int, cells: np.ndarray, weights: np.ndarray
) -> tuple[int, int]:
    """Finds the pixels of the image whose centre is in [low, high], and the mask cells that they are interpolated from.

    Writes the lower of the two cells to `cells` int64, counted in the mask padded by one cell, and the weight of the
    upper to `weights` float32. Returns the first and the last pixel; first > last if there is none.
    """
    first, last = np.ceil(low - 0.5), np.floor(high - 0.5)
    first = 0.0 if first < 0 else min(first, np.float64(size))
    last = -1.0 if last < 0 or not high > low else min(last, size - 1.0)
    for pixel in range(int(first), int(last) + 1):
        position = (pixel + 0.5 - low) / (high - low) * side + 0.5
        cell = np.int64(position)
        cells[pixel] = cell if cell < side else side
        weights[pixel] = position - cells[pixel]
    return int(first), int(last)


@inner_njit
def _interpolate_column(masks: np.ndarray, m: int, column: int, weight: np.float32, line: np.ndarray) -> None:
    """Fills `line[1:-1]`, of (M + 2,) float32, with mask m interpolated between `column` - 1 and `column`."""
    side, zero = masks.shape[1], np.float32(0)
    for j in range(side):
        low = np.float32(masks[m, j, column - 1]) if column > 0 else zero
        high = np.float32(masks[m, j, column]) if column < side else zero
        line[j + 1] = low + weight * (high - low)


@cached_njit
def _compress(runs: np.ndarray, ends: np.ndarray, text: np.ndarray) -> int:
    """Writes masks to `text` uint8 as COCO's strings, in ASCII codes. Returns its length.

    Five bits per character; from the fourth run on, the difference to the run two before.

    Args:
        runs: int64 run lengths of all masks.
        ends: (N,) int64, where the runs of each mask end; overwritten by where its string ends.
        text: with room for `MAX_RUN_CHARS` characters per run.
    """
    length, first = 0, 0
    for m in range(ends.size):
        for i in range(first, ends[m]):
            value = runs[i] - runs[i - 2] if i > first + 2 else runs[i]
            more = True
            while more:
                low = value & 31
                value >>= 5
                more = value != -1 if low & 16 else value != 0
                text[length] = low + 48 + (32 if more else 0)
                length += 1
        first = ends[m]
        ends[m] = length
    return length
