"""Probabilities with which a training step draws classes.

Source: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition" (ICLR 2020), section 3: eq.
(1), p_j proportional to n_j^q, with q = 0 class-balanced, 1 instance-balanced, 1/2 square-root; eq. (2) progressive.
"""

from __future__ import annotations

import numpy as np

from calib.config import Sampling

POWERS: dict[Sampling, float] = {"class-balanced": 0.0, "instance-balanced": 1.0, "square-root": 0.5}


def class_probabilities(counts: np.ndarray, sampling: Sampling, progress: float) -> np.ndarray:
    """Returns the probabilities (C,) float64 of the classes.

    Args:
        counts: (C,) training instances of the classes, of which one below 1 counts as 1.
        sampling: one of `calib.config.SAMPLINGS`. Progressively balanced begins instance-balanced and ends
            class-balanced: (1 − t)·n_j/Σn + t/C.
        progress: t, the share of the run that is done, 0 to 1.
    """
    counts = np.maximum(counts, 1).astype(np.float64)
    if sampling in POWERS:
        weights = counts ** POWERS[sampling]
        return weights / weights.sum()
    return (1 - progress) * counts / counts.sum() + progress / len(counts)
