"""A radix sort in Numba: the kernel of one pass, and the function that runs all passes."""

from __future__ import annotations

import numpy as np

from fuse.ops.kernel_cache import cached_njit

RADIX_BITS = 11
"""Bits per pass of the radix sort."""


def argsort_descending(scores: np.ndarray) -> np.ndarray:
    """Returns the (N,) int32 indices that sort `scores` (N,) uint32 in descending order: a stable radix sort."""
    order, other = np.arange(scores.size, dtype=np.int32), np.empty(scores.size, np.int32)
    for shift in range(0, 32, RADIX_BITS):
        _sort_by_digit(scores, shift, order, np.zeros((1 << RADIX_BITS) + 1, np.int64), other)
        order, other = other, order
    return order


@cached_njit
def _sort_by_digit(scores: np.ndarray, shift: int, order: np.ndarray, starts: np.ndarray, sorted_: np.ndarray) -> None:
    """Writes `order` to `sorted_`, both (N,) int32, by descending digit of the scores, stable.

    Args:
        scores: (N,) uint32.
        shift: of the digit, in bits.
        starts: zeros (2 ** RADIX_BITS + 1,) int64, overwritten.
    """
    mask = np.uint32((1 << RADIX_BITS) - 1)
    for i in range(scores.size):
        starts[np.int64(mask - (scores[i] >> np.uint32(shift) & mask)) + 1] += 1
    for i in range(1, starts.size):
        starts[i] += starts[i - 1]
    for i in range(order.size):
        n = order[i]
        digit = np.int64(mask - (scores[n] >> np.uint32(shift) & mask))
        sorted_[starts[digit]] = n
        starts[digit] += 1
