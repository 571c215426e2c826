"""NorCal: probabilities divided by a factor that grows with the class count, and its variants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from calib.posthoc.base import Affine, Posthoc, append_background, check_choice, training_counts
from extract.data.classes import CountColumn

if TYPE_CHECKING:
    from extract import RoICache

Factor = Literal["power", "effective-number"]
"""a_c = N_c^γ, or the effective number of instances (1 − γ^N_c) / (1 − γ)."""
Variant = Literal["normalized", "unnormalized", "logits"]
"""What is divided by a_c: probabilities that are normalised again, probabilities, or logits."""


class NorCal(Posthoc):
    """Foreground probabilities divided by N_c^γ and normalised: softmax(z_c − γ·log N_c, z_bg).

    Background is unchanged. The authors' code counts images. Variants of the same code:

    * `factor="effective-number"`: the divisor is (1 − γ^N_c) / (1 − γ) (Cui et al., "Class-Balanced Loss Based on
      Effective Number of Samples", CVPR 2019, eq. 2, with β = γ), for 0 ≤ γ < 1.
    * `variant="unnormalized"`: softmax(z)_c / a_c, not normalised again (the ablation of normalisation).
    * `variant="logits"`: softmax(z_c / a_c, z_bg), a temperature per class (Ye et al., 2020).

    With sigmoid scores the classes are independent: sigmoid(z_c − log a_c), and for the variants the same with the
    detector's activation in place of the softmax.

    Source: Pan et al., "On Model Calibration for Long-Tailed Object Detection and Instance Segmentation"
    (NeurIPS 2021), section 4, and its released code (`CalibrationFastRCNNOutputLayers`).
    """

    needs = "class counts"
    source = "Pan et al., NeurIPS 2021, section 4"

    def __init__(
        self,
        gamma: float = 0.6,
        count: CountColumn = "image_count",
        factor: Factor = "power",
        variant: Variant = "normalized",
    ) -> None:
        """Raises ValueError for an unknown factor or variant, or a γ that the effective number does not allow."""
        check_choice("factor", factor, get_args(Factor))
        check_choice("variant", variant, get_args(Variant))
        if factor == "effective-number" and not 0 <= gamma < 1:
            raise ValueError(f"gamma is {gamma}, expected 0 ≤ gamma < 1 with factor 'effective-number'")
        self.gamma, self.count, self.factor, self.variant = gamma, count, factor, variant
        parts = [f"norcal-{gamma:g}", *([factor] * (factor != "power")), *([variant] * (variant != "normalized"))]
        self.name = "-".join(parts)

    def compute_affine(self, cache: RoICache) -> Affine:
        """Returns scale 1 and shift −log a_c, or scale 1/a_c for variant "logits"."""
        log_factors = self._log_factors(cache)
        if self.variant == "logits":
            return Affine(append_background(np.exp(-log_factors), 1), np.zeros(1))
        return Affine(np.ones(1), append_background(-log_factors * (self.variant == "normalized"), 0))

    def compute_gate(self, cache: RoICache) -> Affine | None:
        """Returns the logit of 1/a_c for variant "unnormalized": log(p / (1 − p)) with log p = −log a_c."""
        if self.variant != "unnormalized":
            return None
        log_factors = self._log_factors(cache)
        with np.errstate(divide="ignore"):  # a factor of 1 has an infinite logit; sigmoid(30) is 1 in float32
            logits = np.clip(-log_factors - np.log(-np.expm1(-log_factors)), None, 30)
        return Affine(np.zeros(1), append_background(logits, 30))

    def _log_factors(self, cache: RoICache) -> np.ndarray:
        """Returns (K,) log a_c, at least 0."""
        counts = training_counts(cache, self.count)
        if self.factor == "power":
            return self.gamma * np.log(counts)
        return np.log((1 - self.gamma**counts) / (1 - self.gamma))
