"""Learned fusion: a scorer that combines classifiers with weights per class.

The score of class c is σ(Σ_j w_cj·log s_cj + w_c,o·o + w_c,1) of the scores s_j of J classifiers and the logit o of the
objectness. `fuse.selection.learned` fits the weights.

Letters in shapes: `R` RoIs, `K` classes, `J` classifiers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from calib.heads import Head
from calib.scoring import Level, Scorer
from extract.cache.format import Projection
from extract.class_scores import sigmoid
from extract.data.class_map import ClassMap
from extract.rois import RoIs
from extract.utils.summarized import Summarized

if TYPE_CHECKING:
    from extract import RoICache
    from extract.detectors.base import Detector

SMALLEST = 1e-6
"""Scores are at least this before the logarithm."""
MAX_OBJECTNESS = 1 - 1e-4
"""Objectness is at most this before its logit, and at least one minus this."""


@dataclass(frozen=True, eq=False, repr=False)
class LearnedFusion(Summarized):
    """A scorer that combines others; its mode is "calibrated".

    Attributes:
        scorers: J classifiers, the detector's own first.
        weights: (J+2, K) float32 w; the last two are those of objectness and of 1.
        instance_counts: training instances of the classes.
        class_map: the detector's outputs in the order of the classes; None if output i is class i.
    """

    scorers: tuple[Scorer, ...]
    weights: np.ndarray
    instance_counts: tuple[int, ...]
    class_map: ClassMap | None = None

    name: ClassVar[str] = "learned"
    with_objectness: ClassVar[bool] = True

    @property
    def level(self) -> Level:
        """Feature level that the scorers read."""
        return next((scorer.level for scorer in self.scorers if scorer.level != "logits"), "logits")

    @property
    def heads(self) -> list[Head]:
        """The trained heads among the scorers."""
        return [scorer for scorer in self.scorers if isinstance(scorer, Head)]

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Category ids of the classes 0…K-1; empty if no head has them."""
        return next((head.category_ids for head in self.heads), ())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes 0…K-1; empty if no head has them."""
        return next((head.class_names for head in self.heads), ())

    @property
    def projections(self) -> list[Projection]:
        """Each stage's projection that the heads' features need; [] if none does."""
        return next((head.projections for head in self.heads if head.projections), [])

    def check_cache(self, cache: RoICache) -> None:
        """Raises ValueError, naming the field, if a head cannot score this cache."""
        for head in self.heads:
            head.check_cache(cache)

    def check_detector(self, detector: Detector) -> None:
        """Raises ValueError, naming the field, if a head was trained for another detector."""
        for head in self.heads:
            head.check_detector(detector)

    def summary(self) -> list[tuple[str, str]]:
        """Returns what `repr` shows: (name, text)."""
        names = [*(scorer.name for scorer in self.scorers), "objectness", "constant"]
        weights = zip(names, self.weights.min(axis=1).tolist(), self.weights.max(axis=1).tolist(), strict=True)
        return [
            ("Learned fusion", f"of {len(self.scorers)} classifiers, {self.weights.shape[1]:,} classes"),
            *((name, f"weights {low:.2f} to {high:.2f}") for name, low, high in weights),
        ]

    def scores(self, rois: RoIs) -> np.ndarray:
        """Returns (R, K+1) float32 class scores; background has the score of the first scorer."""
        scores = [scorer.scores(rois) for scorer in self.scorers]
        *own, objectness, constant = self.weights
        z = objectness * logit(rois.objectness)[:, None] + constant
        for weight, one in zip(own, scores, strict=True):
            z += weight * log_scores(one[:, :-1])
        return np.concatenate([sigmoid(z), scores[0][:, -1:]], axis=1)


def log_scores(scores: np.ndarray) -> np.ndarray:
    """Returns the logarithm of scores, at least that of `SMALLEST`, float32."""
    return np.log(np.maximum(scores, SMALLEST, dtype=np.float32))


def logit(objectness: np.ndarray) -> np.ndarray:
    """Returns the logit of objectness, clipped to `MAX_OBJECTNESS`, float32."""
    p = np.clip(objectness, 1 - MAX_OBJECTNESS, MAX_OBJECTNESS, dtype=np.float32)
    return np.log(p / (1 - p))
