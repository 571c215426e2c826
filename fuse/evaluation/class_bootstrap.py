"""Confidence intervals of mean AP, by the bootstrap over classes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from extract.data.bins import BINS, bin_index, bin_names


def bootstrap_intervals(
    per_class: pd.DataFrame,
    bins: tuple[float, ...] = BINS,
    *,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns a confidence interval for each bin's AP and for AP: the percentile bootstrap over classes.

    Draws n of a bin's n classes with ground truth, with replacement, and averages their AP, `samples` times. Images
    are not resampled, so the interval shows how much a mean depends on its classes, not on the images.

    Args:
        per_class: a table of `per_class_ap`.
        bins: edges of half-open bins of training instances.
        confidence: share of the samples inside the interval.
        samples: number of draws.
        seed: of the draws; the same seed gives the same intervals.

    Returns:
        One row per bin and one for AP, columns low and high in points; NaN where no class has ground truth.
    """
    rng = np.random.default_rng(seed)
    evaluated = per_class.dropna(subset="AP")
    ap, index = evaluated["AP"].to_numpy(), bin_index(evaluated["instance_count"].to_numpy(), bins)
    groups = {f"AP{name}": ap[index == i] for i, name in enumerate(bin_names(bins))} | {"AP": ap}
    intervals = {}
    for name, group in groups.items():
        if len(group):
            draws = rng.integers(len(group), size=(samples, len(group)))
            intervals[name] = np.quantile(group[draws].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
        else:
            intervals[name] = np.full(2, np.nan)
    return pd.DataFrame(intervals, index=["low", "high"]).T
