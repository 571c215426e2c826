"""Numba kernels for one-dimensional arrays: sort, gather, accumulate.

NumPy has functions for these, but Numba takes up to seconds to compile each use of `cumsum`, `max` or an array of
indices.
"""

from __future__ import annotations

import numba
import numpy as np

RADIX_BITS = 11
"""Bits per pass of the radix sort."""


@numba.njit(nogil=True)
def argsort_descending(scores: np.ndarray) -> np.ndarray:
    """Returns the (N,) int32 indices that sort `scores` (N,) uint32 in descending order: a stable radix sort."""
    order, other = arange(scores.size), np.empty(scores.size, np.int32)
    mask = np.uint32((1 << RADIX_BITS) - 1)
    for shift in range(0, 32, RADIX_BITS):
        starts = np.zeros((1 << RADIX_BITS) + 1, np.int64)
        for i in range(scores.size):
            starts[np.int64(mask - (scores[i] >> np.uint32(shift) & mask)) + 1] += 1
        accumulate(starts)
        for n in order:
            digit = np.int64(mask - (scores[n] >> np.uint32(shift) & mask))
            other[starts[digit]] = n
            starts[digit] += 1
        order, other = other, order
    return order


@numba.njit(nogil=True)
def arange(size: int) -> np.ndarray:
    """Returns 0 … size-1, int32."""
    numbers = np.empty(size, np.int32)
    for i in range(size):
        numbers[i] = i
    return numbers


@numba.njit(nogil=True)
def take(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Returns `values[indices]`, both (N,)."""
    taken = np.empty_like(values)
    for i in range(indices.size):
        taken[i] = values[indices[i]]
    return taken


@numba.njit(nogil=True)
def accumulate(counts: np.ndarray) -> None:
    """Replaces the counts (N,) by their cumulative sum."""
    for i in range(1, counts.size):
        counts[i] += counts[i - 1]
