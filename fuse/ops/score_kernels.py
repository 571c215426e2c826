"""The kernel of `fuse.scores`: the columns of two heads' scores side by side, in one pass."""

from __future__ import annotations

import numba
import numpy as np


def replace_columns(
    original: np.ndarray, calibrated: np.ndarray, tail: np.ndarray, threshold: np.float32, scale: np.float32
) -> np.ndarray:
    """The calibrated scores of the tail columns, 0 if below the threshold, times the scale; the original's elsewhere.

    `original` and `calibrated` (R, K+1) float32, `tail` (K,) bool. Returns (R, K+1) float32.
    """
    fused = np.empty_like(original)  # in huge pages, which Numba's own arrays are not
    _fill(original, calibrated, tail, threshold, scale, fused)
    return fused


@numba.njit(nogil=True)
def _fill(original, calibrated, tail, threshold, scale, fused):
    """`replace_columns` into `fused` (R, K+1) float32."""
    zero = np.float32(0)
    for r in range(original.shape[0]):
        for c in range(tail.size):
            old, new = original[r, c], calibrated[r, c]  # both are read, whichever it is: so it becomes vectors
            new = zero if new < threshold else new * scale
            fused[r, c] = new if tail[c] else old
        fused[r, tail.size] = original[r, tail.size]
