"""LogN: logits normalised by their mean and standard deviation per class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calib.posthoc.base import Affine, Posthoc, append_background, detected_classes

if TYPE_CHECKING:
    from extract import RoICache


class LogN(Posthoc):
    """(z_c − (μ_c − min μ)) / σ_c, where μ_c and σ_c are mean and standard deviation over the cache's RoIs.

    Source: Zhao et al., "Logit Normalization for Long-tail Object Detection" (2022). Background keeps its
    logit (μ = 0, σ = 1); the minimum is over foreground classes. Fit it on a train cache.
    """

    name = "logn"
    needs = "logits of a train cache"
    source = "Zhao et al., 2022"

    def compute_affine(self, cache: RoICache) -> Affine:
        """Returns scale 1/σ_c and shift −(μ_c − min μ)/σ_c."""
        mean, deviation = (moment[:, :-1] for moment in logit_moments(cache))
        scale = 1 / np.where(deviation > 0, deviation, 1)  # a constant logit is not scaled
        smallest = mean[:, detected_classes(cache)].min(axis=1, keepdims=True)
        shift = -(mean - smallest) * scale
        return Affine(append_background(scale, 1), append_background(shift, 0))


def logit_moments(cache: RoICache, rows_at_once: int = 16384) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of a cache's logits, each (S, K+1) float64, in one pass over the cache.

    Raises:
        ValueError: the cache has no RoIs.
    """
    rows = int(cache.offsets[-1])
    if rows == 0:
        raise ValueError(f"{cache.url}: holds no RoIs, there is nothing to fit")
    total, squares = np.zeros((2, len(cache.stages), cache.num_classes + 1))
    for start in range(0, rows, rows_at_once):
        logits = cache.take("logits", np.arange(start, min(start + rows_at_once, rows))).astype(np.float64)
        total += logits.sum(axis=0)
        squares += np.square(logits).sum(axis=0)
    mean = total / rows
    return mean, np.sqrt(np.maximum(squares / rows - np.square(mean), 0))
