"""Temperature scaling: one divisor of all logits, per stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calib.posthoc.base import Affine, Posthoc
from calib.posthoc.fitting import fit_temperature, labelled_logits
from calib.scoring import Original

if TYPE_CHECKING:
    from extract import RoICache


class Temperature(Posthoc):
    """z / T, background included; T minimises the negative log-likelihood of labelled RoIs, per stage.

    With sigmoid scores the likelihood is that of independent classes. The order of a RoI's classes is unchanged; that
    of different RoIs is not.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), section 4.2, eq. (9).
    """

    needs = "logits and labels of a train cache; none with a given T"
    source = "Guo et al., ICML 2017, eq. (9)"

    def __init__(self, temperature: float | None = None) -> None:
        """Raises ValueError for a temperature that is not positive; None fits it."""
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature is {temperature}, expected more than 0")
        self.temperature, self.fits_labels = temperature, temperature is None
        self.name = "temperature" if temperature is None else f"temperature-{temperature:g}"

    def compute_affine(self, cache: RoICache) -> Affine:
        """Returns scale 1/T and shift 0. Raises ValueError if T is to be fitted and the cache has no labels."""
        if self.temperature is not None:
            return Affine(np.full(1, 1 / self.temperature), np.zeros(1))
        activation = Original.from_description(cache.detector).activation
        temperatures = [
            fit_temperature(*labelled_logits(cache, stage), activation) for stage in range(len(cache.stages))
        ]
        return Affine(1 / np.array(temperatures)[:, None], np.zeros(1))
