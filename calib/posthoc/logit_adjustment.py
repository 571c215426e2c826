"""Logit adjustment: logits minus the logarithm of the class prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calib.posthoc.base import Affine, Posthoc, append_background, training_counts
from extract.data.classes import CountColumn

if TYPE_CHECKING:
    from extract import RoICache


class LogitAdjustment(Posthoc):
    """z_c − τ·log π_c, where π_c is the class's share of the training instances. Background is unchanged.

    Source: Menon et al., "Long-tail learning via logit adjustment" (ICLR 2021), eq. (9), which is for
    classification. A detector's background has no count, so π is a distribution over foreground classes only.
    """

    needs = "class counts"
    source = "Menon et al., ICLR 2021, eq. (9)"

    def __init__(self, tau: float = 1.0, count: CountColumn = "instance_count") -> None:
        self.tau, self.count = tau, count
        self.name = f"logit-adjustment-{tau:g}"

    def compute_affine(self, cache: RoICache) -> Affine:
        """Returns scale 1 and shift −τ·log π_c."""
        counts = training_counts(cache, self.count)
        return Affine(np.ones(1), append_background(-self.tau * np.log(counts / counts.sum()), 0))
