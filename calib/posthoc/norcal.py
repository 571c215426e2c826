"""NorCal: probabilities divided by powers of the class counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calib.posthoc.base import Affine, Posthoc, append_background, training_counts
from extract.data.classes import CountColumn

if TYPE_CHECKING:
    from extract import RoICache


class NorCal(Posthoc):
    """Foreground probabilities divided by N_c^γ and normalised: softmax(z_c − γ·log N_c, z_bg).

    Source: Pan et al., "On Model Calibration for Long-Tailed Object Detection and Instance Segmentation"
    (NeurIPS 2021), section 4, with a_c = N_c^γ. Background is unchanged. The authors' code counts images.
    """

    def __init__(self, gamma: float = 0.6, count: CountColumn = "image_count") -> None:
        self.gamma, self.count = gamma, count
        self.name = f"norcal-{gamma:g}"

    def compute_affine(self, cache: RoICache) -> Affine:
        """Returns scale 1 and shift −γ·log N_c."""
        shift = -self.gamma * np.log(training_counts(cache, self.count))
        return Affine(np.ones(1), append_background(shift, 0))
