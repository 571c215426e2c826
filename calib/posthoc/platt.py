"""Platt scaling of each class: a scale and a shift per logit, fitted to labelled RoIs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calib.posthoc.base import Affine, Posthoc
from calib.posthoc.fitting import labelled_logits, one_hot
from calib.scoring import Original

if TYPE_CHECKING:
    from extract import RoICache


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
    """Returns the scale (K+1,) and shift (K+1,) float32 of `Platt` by L-BFGS.

    Args:
        logits: (n, K+1) float32, background last.
        labels: (n,) int64, 0…K.
        penalty: weight of the prior.
        activation: "softmax" or "sigmoid".
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    # Float64, in which L-BFGS reaches the minimum of a sum of thousands of terms.
    z, targets = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    present = one_hot(targets, z.shape[1]).double() if activation == "sigmoid" else None
    fitted = torch.bincount(targets, minlength=z.shape[1]) > 0
    start = torch.stack([torch.ones_like(z[0]), torch.zeros_like(z[0])])
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        own_scale, own_shift = torch.where(fitted, parameters, start)
        adjusted = z * own_scale + own_shift
        if present is None:
            likelihood = cross_entropy(adjusted, targets, reduction="sum")
        else:
            likelihood = binary_cross_entropy_with_logits(adjusted, present, reduction="sum")
        # The mean over RoIs, of which L-BFGS's tolerances are independent of their number.
        value = (likelihood + penalty / 2 * (parameters - start).square().sum()) / len(z)
        value.backward()
        return value

    optimizer.step(loss)
    scale, shift = parameters.detach().float().numpy()
    return Affine(scale, shift)
