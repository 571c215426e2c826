"""Platt scaling of each class: a scale and a shift per logit, fitted to labelled RoIs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calib.posthoc.base import Affine, Posthoc
from calib.posthoc.fitting import labelled_logits, one_hot
from calib.scoring import Original

if TYPE_CHECKING:
    import torch

    from extract import RoICache

MAX_STEPS = 50
"""Of Newton's method, which needs about ten; more only where the loss has no minimum."""
TOLERANCE = 1e-9
"""Decrease of the mean negative log-likelihood, below which it stops."""
MIN_STEP, MIN_RIDGE = 1e-6, 1e-6
"""Shortest step of the line search, and the least that is added to second derivatives."""


class Platt(Posthoc):
    """a_c·z_c + b_c per class and stage, by maximum likelihood of labelled RoIs with a prior of a = 1 and b = 0.

    With sigmoid scores this is Platt scaling of each class against the rest. With softmax scores it is its multi-class
    form, vector scaling, background included. The prior is `penalty`/2 · Σ_c ((a_c − 1)² + b_c²), added to the sum of
    the RoIs' negative log-likelihoods. A class without RoIs keeps its logit, and an infinite penalty changes none.

    Source: Platt, "Probabilistic Outputs for Support Vector Machines" (1999), of which targets are not
    smoothed here; Guo et al. (ICML 2017), section 4.2, vector scaling.
    """

    needs = "logits and labels of a train cache"
    source = "Platt, 1999; vector scaling of Guo et al., ICML 2017, section 4.2"
    fits_labels = True

    def __init__(self, penalty: float = 1.0) -> None:
        """Raises ValueError for a negative penalty."""
        if not penalty >= 0:
            raise ValueError(f"penalty is {penalty}, expected at least 0")
        self.penalty = penalty
        self.name = f"platt-{penalty:g}"

    def compute_affine(self, cache: RoICache) -> Affine:
        """Returns scale a_c and shift b_c. Raises ValueError if the cache has no labels."""
        if np.isinf(self.penalty):
            return Affine(np.ones(1), np.zeros(1))
        activation = Original.from_description(cache.detector).activation
        fitted = [
            fit_platt(*labelled_logits(cache, stage), self.penalty, activation) for stage in range(len(cache.stages))
        ]
        return Affine(*(np.stack(values) for values in zip(*fitted, strict=True)))


def fit_platt(logits: np.ndarray, labels: np.ndarray, penalty: float, activation: str) -> Affine:
    """Returns the scale (K+1,) and shift (K+1,) float32 of `Platt` by Newton's method: the loss is convex.

    Args:
        logits: (n, K+1) float32, background last.
        labels: (n,) int64, 0…K.
        penalty: weight of the prior.
        activation: "softmax" or "sigmoid".
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    z, targets = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    present, softmax = one_hot(targets, z.shape[1]).double(), activation == "softmax"
    fitted = torch.bincount(targets, minlength=z.shape[1]) > 0
    start = torch.stack([torch.ones_like(z[0]), torch.zeros_like(z[0])])

    def loss(values: torch.Tensor) -> torch.Tensor:
        adjusted = z * values[0] + values[1]
        if softmax:
            likelihood = cross_entropy(adjusted, targets, reduction="sum")
        else:
            likelihood = binary_cross_entropy_with_logits(adjusted, present, reduction="sum")
        return likelihood + penalty / 2 * (values - start).square().sum()

    values, value = start.clone(), loss(start)
    for _ in range(MAX_STEPS):
        adjusted = z * values[0] + values[1]
        scores = adjusted.softmax(1) if softmax else adjusted.sigmoid()
        errors = scores - present
        slope = torch.stack([(errors * z).sum(0), errors.sum(0)]) + penalty * (values - start)
        direction = torch.zeros_like(values)
        curvature = _curvature(z[:, fitted], scores[:, fitted], softmax)
        curvature.diagonal().add_(max(penalty, MIN_RIDGE))  # the loss is flat along a shift of all logits
        direction[:, fitted] = torch.linalg.solve(curvature, slope[:, fitted].flatten()).view(2, -1)
        decrease = (slope * direction).sum()
        if decrease < TOLERANCE * len(z):
            break
        step = 1.0
        while (lower := loss(values - step * direction)) > value - step * decrease / 4 and step > MIN_STEP:
            step /= 2
        values, value = values - step * direction, lower
    scale, shift = values.float().numpy()
    return Affine(scale, shift)


def _curvature(z: torch.Tensor, scores: torch.Tensor, softmax: bool) -> torch.Tensor:
    """Returns the second derivatives (2C, 2C) of the likelihood, scales before shifts, for logits and scores (n, C)."""
    import torch

    weights = scores if softmax else scores * (1 - scores)
    of_scales, of_both, of_shifts = ((weights * one).sum(0).diag() for one in (z.square(), z, 1))
    if softmax:  # a score falls where another rises
        weighted = scores * z
        of_scales, of_both = of_scales - weighted.T @ weighted, of_both - weighted.T @ scores
        of_shifts = of_shifts - scores.T @ scores
    return torch.cat([torch.cat([of_scales, of_both], 1), torch.cat([of_both.T, of_shifts], 1)])
