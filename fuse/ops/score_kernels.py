"""Numba kernel of `fuse.scores`: replaces columns of the scores in one pass. Letters: `R` RoIs, `K` classes."""

from __future__ import annotations

import numpy as np

from fuse.ops.kernel_cache import cached_njit


def replace_columns(
    original: np.ndarray, calibrated: np.ndarray, tail_mask: np.ndarray, threshold: np.float32, scale: np.float32
) -> np.ndarray:
    """Returns the original scores with the columns of tail classes replaced by calibrated scores.

    Args:
        original, calibrated: (R, K+1) float32, background last.
        tail_mask: (K,) bool.
        threshold: calibrated scores below it become 0.
        scale: factor of the other calibrated scores.

    Returns:
        (R, K+1) float32, a new array.
    """
    fused = np.empty_like(original)  # NumPy allocates large arrays in huge pages, Numba does not
    _fill(original, calibrated, tail_mask, threshold, scale, fused)
    return fused


@cached_njit
def _fill(
    original: np.ndarray,
    calibrated: np.ndarray,
    tail_mask: np.ndarray,
    threshold: np.float32,
    scale: np.float32,
    fused: np.ndarray,
) -> None:
    """Fills `fused` (R, K+1) float32."""
    zero = np.float32(0)
    for r in range(original.shape[0]):
        for c in range(tail_mask.size):
            old, new = original[r, c], calibrated[r, c]  # loads without a branch: LLVM vectorizes the loop
            new = zero if new < threshold else new * scale
            fused[r, c] = new if tail_mask[c] else old
        fused[r, tail_mask.size] = original[r, tail_mask.size]
