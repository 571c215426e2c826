"""τ-normalization: classifier rows divided by powers of their norms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calib.posthoc.base import Affine, Posthoc

if TYPE_CHECKING:
    from extract import RoICache


class TauNorm(Posthoc):
    """Classifier rows w_c / ‖w_c‖^τ without bias, background included: logits (z_c − b_c) / ‖w_c‖^τ.

    Source: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition" (ICLR 2020),
    section 4.2, τ-normalized classifier. Needs the classifier weights in the cache.
    """

    needs = "the detector's classifier weights"
    source = "Kang et al., ICLR 2020, section 4.2"

    def __init__(self, tau: float = 1.0) -> None:
        self.tau = tau
        self.name = f"tau-norm-{tau:g}"

    def compute_affine(self, cache: RoICache) -> Affine:
        """Returns scale ‖w_c‖^−τ and shift −b_c·‖w_c‖^−τ. Raises ValueError if the cache has no classifier."""
        layers = [cache.fc_layers(stage) for stage in range(len(cache.stages))]
        if not all(layers):
            raise ValueError(f"{cache.url}: has no classifier weights (detector/), {self.name} needs them")
        weights, biases = (np.stack(arrays) for arrays in zip(*(layer[-1] for layer in layers), strict=True))
        norms = np.linalg.norm(weights, axis=-1)
        scale = np.where(norms > 0, norms, 1) ** -self.tau  # a class that the detector lacks has no weights
        return Affine(scale, -biases * scale)
