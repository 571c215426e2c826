"""Class scores from logits, and the protocol of everything that scores RoIs.

Letters in shapes: `R` RoIs, `S` stages of the box head, `K` classes. Background is the last column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, cast, get_args

import numpy as np

from extract.rois import SCORES_WITH_OBJECTNESS, RoIs

if TYPE_CHECKING:
    import torch

    from extract import RoICache

Level = Literal["pooled", "hidden", "embedding", "logits"]
"""Feature level of a cache or a scorer; "logits" stands for no features at all."""
Average = Literal["scores", "logits"]
"""What a detector with several stages averages: scores (detectron2) or logits (mmdetection)."""
Activation = Literal["softmax", "sigmoid", "exp"]
"""What turns logits into scores: one softmax over all classes, a sigmoid per class, or for heads whose logits are
logarithms of scores the exponential."""
AVERAGES: tuple[str, ...] = get_args(Average)
ACTIVATIONS: tuple[str, ...] = get_args(Activation)


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


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax over the last axis, computed in float32.

    Args:
        logits: (..., K+1) of any float type.

    Returns:
        (..., K+1) float32; rows sum to 1.
    """
    import torch

    scores = np.empty(np.shape(logits), np.float32)
    torch.softmax(_to_tensor(logits), -1, out=torch.from_numpy(scores))
    return scores


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Returns the element-wise sigmoid, computed in float32: (...) of any float type → (...) float32."""
    return _to_tensor(logits).sigmoid().numpy()


def activate(logits: np.ndarray, activation: str) -> np.ndarray:
    """Returns the softmax over the last axis, or the sigmoid or exponential of each logit: (..., K+1) float32."""
    if activation == "exp":
        return np.exp(to_float32(logits))
    return softmax(logits) if activation == "softmax" else sigmoid(logits)


def stage_scores(logits: np.ndarray, average: str = "scores", activation: str = "softmax") -> np.ndarray:
    """Returns class scores averaged over stages.

    Args:
        logits: (R, S, K+1), float16 or float32, background last.
        average: "scores" for the mean of each stage's scores, "logits" for the scores of the mean logits.
        activation: "softmax", "sigmoid" for independent classes, or "exp".

    Returns:
        (R, K+1) float32; rows sum to 1 with softmax.

    Raises:
        ValueError: unknown `average` or `activation`, or `logits` does not have three axes.
    """
    check_average(average)
    check_activation(activation)
    if logits.ndim != 3:
        raise ValueError(f"logits have shape {logits.shape}, expected (R, S, K+1)")
    if logits.shape[1] == 1:
        return activate(logits[:, 0], activation)
    if average == "scores":
        return activate(logits, activation).mean(axis=1)
    return activate(stage_mean(logits), activation)


def stage_mean(logits: np.ndarray) -> np.ndarray:
    """Returns the mean over stages: (R, S, K+1) → (R, K+1) float32."""
    return _to_tensor(logits).mean(1).numpy()


def to_float32(values: np.ndarray) -> np.ndarray:
    """Returns the values as float32; an array that is float32 already is not copied."""
    return _to_tensor(values).numpy()


def check_average(average: object) -> Average:
    """Returns `average`; raises ValueError listing the valid values."""
    if average not in AVERAGES:
        raise ValueError(f"stage average is {average!r}, expected {' or '.join(map(repr, AVERAGES))}")
    return cast(Average, average)


def check_activation(activation: object) -> Activation:
    """Returns `activation`; raises ValueError listing the valid values."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}, expected {' or '.join(map(repr, ACTIVATIONS))}")
    return cast(Activation, activation)


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


def scores_with_objectness(scores: np.ndarray, objectness: np.ndarray) -> np.ndarray:
    """Returns the root of class score times objectness: (R, K+1) and (R,) float32 → (R, K+1) float32.

    These are the scores of CenterNet2 (Zhou et al., "Probabilistic two-stage detection", 2021, section 5), background
    included.
    """
    return np.sqrt(scores * objectness[:, None])


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


def _to_tensor(values: np.ndarray) -> torch.Tensor:
    """Converts to float32 on the CPU with torch, which converts float16 several times faster than NumPy.

    The result is allocated by NumPy, which uses huge pages, so that concurrent threads take few page faults.
    """
    import torch  # here, so that importing this module does not import torch

    tensor = torch.from_numpy(np.require(values, requirements=("C", "W")))
    if tensor.dtype == torch.float32:
        return tensor
    return torch.from_numpy(np.empty(tensor.shape, np.float32)).copy_(tensor)
