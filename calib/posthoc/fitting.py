"""What fits to labelled RoIs share: which RoIs, their logits and embeddings, the temperature of largest likelihood."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from extract.utils.progress import FIRST_LINE, progress_bar

if TYPE_CHECKING:
    import torch

    from calib.heads import Head
    from extract import RoICache

MAX_ROWS = 32_768
"""RoIs that a fit uses: of 1,231 outputs they take 160 MB. They are spread evenly over the cache."""
ROWS_AT_ONCE = 4096
SCALES = (1e-3, 1e3)
"""Range of 1/T."""


def labelled_rows(cache: RoICache, stage: int) -> np.ndarray:
    """Returns packed rows of a cache whose label is known in a stage, ascending int64, `MAX_ROWS` at most.

    Raises:
        ValueError: no RoI has a label.
    """
    labels = cache.read("labels")[:, stage]
    rows = np.flatnonzero(labels >= 0)
    if not (labels[rows] < cache.num_classes).any():
        raise ValueError(f"{cache.url}: no RoI of stage {stage} matches a ground-truth box, there is nothing to fit")
    return rows[:: -(-len(rows) // MAX_ROWS)]


def labelled_logits(cache: RoICache, stage: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits (n, K+1) float32 and labels (n,) int64, 0…K, of a stage. Raises as `labelled_rows` does."""
    rows = labelled_rows(cache, stage)
    return cache.take("logits", rows)[:, stage].astype(np.float32), cache.read("labels")[rows, stage].astype(np.int64)


def embeddings(cache: RoICache, head: Head, stage: int, rows: np.ndarray) -> Iterator[torch.Tensor]:
    """Yields the input of a stage's classifier for packed rows (n,), `ROWS_AT_ONCE` at a time."""
    import torch

    below = torch.nn.Sequential(*list(head.stages[stage].children())[:-1])
    blocks = range(0, len(rows), ROWS_AT_ONCE)
    for start in progress_bar(blocks, desc="fit", unit="block", delay=FIRST_LINE):
        features = cache.take("features", rows[start : start + ROWS_AT_ONCE])[:, stage]
        with torch.no_grad():
            yield below(torch.from_numpy(features).flatten(1).float())


def fit_temperature(logits: np.ndarray, labels: np.ndarray, activation: str = "softmax") -> float:
    """Returns the T > 0 that minimises the negative log-likelihood of logits / T.

    The likelihood is convex in 1/T, so that bisection of its derivative finds the minimum in `SCALES`.

    Args:
        logits: (n, K+1) float32, background last.
        labels: (n,) int64, 0…K.
        activation: "softmax", or "sigmoid" for K independent classes; background then has no likelihood.
    """
    import torch

    z, targets = torch.from_numpy(logits), torch.from_numpy(labels)
    if activation == "sigmoid":
        z, present = z[:, :-1], one_hot(targets, z.shape[1])[:, :-1]
        of_labels = (z * present).sum(dtype=torch.float64)
    else:
        of_labels = z.gather(1, targets[:, None]).sum(dtype=torch.float64)

    def slope(scale: float) -> float:
        scores = (z * scale).softmax(1) if activation == "softmax" else (z * scale).sigmoid()
        return float((scores * z).sum(dtype=torch.float64) - of_labels)

    low, high = np.log(SCALES)
    for _ in range(28):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(float(np.exp(middle))) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def one_hot(targets: torch.Tensor, width: int) -> torch.Tensor:
    """Returns (n, width) float32 with 1 in the column of each target (n,)."""
    import torch

    return torch.nn.functional.one_hot(targets, width).float()
