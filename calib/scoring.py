"""The protocol of everything that scores RoIs, and the scorer of a detector's own scores.

Letters in shapes: `R` RoIs, `K` classes. Background is the last column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np

from extract.class_scores import (
    Activation,
    Average,
    check_activation,
    check_average,
    scores_with_objectness,
    stage_scores,
)
from extract.rois import SCORES_WITH_OBJECTNESS, RoIs

if TYPE_CHECKING:
    from extract import RoICache

Level = Literal["pooled", "hidden", "embedding", "logits"]
"""Feature level of a cache or a scorer; "logits" stands for no features at all."""


class Scorer(Protocol):
    """An object that turns the RoIs of one image into class scores.

    A scorer is hashable, since scores are cached by scorer, and `scores` may be called from several threads at once.
    """

    @property
    def name(self) -> str:
        """Name of the scorer in messages and reports."""

    @property
    def level(self) -> Level:
        """Feature level that `scores` reads; with "logits", `rois.features` may be None."""

    @property
    def instance_counts(self) -> Sequence[int]:
        """Training instances of the classes 0…K-1; empty if unknown."""

    def scores(self, rois: RoIs) -> np.ndarray:
        """Returns (R, K+1) float32 class scores."""

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Original:
    """The scorer of the detector's own scores, from the cached logits.

    Attributes:
        average: "scores" or "logits", see `stage_scores`.
        activation: "softmax" or "sigmoid".
        with_objectness: the scores are `scores_with_objectness` of the class scores, as CenterNet2's.
    """

    average: Average = "scores"
    activation: Activation = "softmax"
    with_objectness: bool = False

    name: ClassVar[str] = "original"
    level: ClassVar[Level] = "logits"
    instance_counts: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown average or activation."""
        check_average(self.average)
        check_activation(self.activation)

    @classmethod
    def from_description(cls, detector: Mapping[str, object], average: str | None = None) -> Original:
        """Builds the scorer from a detector's description; `average` overrides how the framework averages stages."""
        return cls(
            check_average(average or detector.get("stage_average", "scores")),
            check_activation(detector.get("activation", "softmax")),
            bool(detector.get(SCORES_WITH_OBJECTNESS, False)),
        )

    def averaged(self, average: str) -> Original:
        """Returns the scorer that averages stages by "scores" or "logits"."""
        return replace(self, average=check_average(average))

    def scores(self, rois: RoIs) -> np.ndarray:
        """Returns (R, K+1) float32 class scores."""
        scores = stage_scores(rois.logits, self.average, self.activation)
        return scores_with_objectness(scores, rois.objectness) if self.with_objectness else scores


@dataclass(frozen=True)
class WithObjectness:
    """A scorer of class scores, as a detector uses them whose own scores are `scores_with_objectness`."""

    scorer: Scorer

    with_objectness: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """See `Scorer.name`."""
        return self.scorer.name

    @property
    def level(self) -> Level:
        """See `Scorer.level`."""
        return self.scorer.level

    @property
    def instance_counts(self) -> Sequence[int]:
        """See `Scorer.instance_counts`."""
        return self.scorer.instance_counts

    def scores(self, rois: RoIs) -> np.ndarray:
        """Returns (R, K+1) float32 scores."""
        return scores_with_objectness(self.scorer.scores(rois), rois.objectness)


def for_detector(scorer: Scorer, detector: Mapping[str, object]) -> Scorer:
    """Returns a scorer whose scores follow from class scores as those of a detector do, from its description.

    A scorer whose attribute `with_objectness` is true uses objectness already, and is returned itself.
    """
    wanted = bool(detector.get(SCORES_WITH_OBJECTNESS, False)) and not getattr(scorer, "with_objectness", False)
    return WithObjectness(scorer) if wanted else scorer


def with_stage_average(scorer: Scorer, average: str | None) -> Scorer:
    """Returns the scorer with its stages averaged by "scores" or "logits"; with None the scorer itself.

    Raises:
        ValueError: the scorer has no method `averaged(average)`.
    """
    if average is None:
        return scorer
    if not hasattr(scorer, "averaged"):
        raise ValueError(f"stage average is {average!r}, but scorer {scorer.name!r} averages no stages")
    return scorer.averaged(average)


def instance_counts_of(cache: RoICache) -> tuple[int, ...]:
    """Returns the training instances of a cache's classes 0…K-1."""
    return tuple(cache.classes["instance_count"].tolist())
