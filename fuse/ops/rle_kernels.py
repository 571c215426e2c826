"""Numba kernels on run-length encodings (RLE): decode COCO's strings, and compute how masks overlap.

A mask's runs of foreground are [starts, ends) in column-major order of pixels, without empty runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fuse.ops.kernel_cache import cached_njit


@cached_njit
def decode_runs(
    codes: np.ndarray, offsets: np.ndarray, starts: np.ndarray, ends: np.ndarray, bounds: np.ndarray, sizes: np.ndarray
) -> None:
    """Decodes the strings of U masks.

    Args:
        codes: uint8 ASCII codes of all strings.
        offsets: (U+1,) int64, where each string starts.
        starts, ends: int32 with room for a run per two codes and one more per mask; the runs of all masks.
        bounds: (U+1,) int64; where the runs of each mask start.
        sizes: (U, 2) int64; the pixels of the mask that are foreground, and the pixels that its runs have in all.
    """
    n = 0
    value: Any
    for u in range(offsets.size - 1):
        bounds[u] = n
        previous, before, position, area, foreground, count = 0, 0, 0, 0, False, 0
        value, shift = 0, 0
        for i in range(offsets[u], offsets[u + 1]):
            code = np.int64(codes[i]) - 48
            value |= (code & 31) << shift
            shift += 5
            if code & 32 and shift < 60:
                continue
            if code & 16:
                value |= -1 << shift
            length = value + before if count > 2 else value  # from the fourth run on, the change from two before
            if foreground and length > 0:
                starts[n], ends[n] = position, position + length
                n, area = n + 1, area + length
            position += length
            previous, before, count = length, previous, count + 1
            value, shift, foreground = 0, 0, not foreground
        sizes[u, 0], sizes[u, 1] = area, position
    bounds[offsets.size - 1] = n


@cached_njit
def mask_overlaps(
    starts: np.ndarray,
    ends: np.ndarray,
    bounds: np.ndarray,
    areas: np.ndarray,
    detected: np.ndarray,
    first: np.ndarray,
    offsets: np.ndarray,
    crowd: np.ndarray,
    overlaps: np.ndarray,
) -> None:
    """Computes the overlap of each detected mask with consecutive masks of ground truth, all of the same image.

    The overlap is the IoU; with a crowd region it is the share of the detected mask inside.

    Args:
        starts, ends, bounds: of `decode_runs`.
        areas: (U,) int64, pixels of each mask.
        detected: (P,) int64, the detected masks.
        first: (P,) int64, the first mask of ground truth of each.
        offsets: (P+1,) int64; the overlaps of detected mask p are at offsets[p]:offsets[p + 1].
        crowd: (U,) bool.
        overlaps: float64.
    """
    for p in range(detected.size):
        d = detected[p]
        for g in range(first[p], first[p] + offsets[p + 1] - offsets[p]):
            i, i_end, j, j_end = bounds[d], bounds[d + 1], bounds[g], bounds[g + 1]
            common = 0
            if i < i_end and j < j_end and starts[i] < ends[j_end - 1] and starts[j] < ends[i_end - 1]:
                while i < i_end and j < j_end:
                    low = starts[i] if starts[i] > starts[j] else starts[j]
                    if ends[i] < ends[j]:
                        high = ends[i]
                        i += 1
                    else:
                        high = ends[j]
                        j += 1
                    if high > low:
                        common += high - low
            total = areas[d] if crowd[g] else areas[d] + areas[g] - common
            overlaps[offsets[p] + g - first[p]] = common / total if common else 0.0
