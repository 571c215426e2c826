"""What all post-hoc methods share. `z` are logits, `N_c` is the training count of class c, background is last."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self, get_args

import numpy as np

from calib.scoring import Level, Original, check_average, instance_counts_of, stage_scores, to_float32
from extract.data.class_map import ClassMap
from extract.data.classes import CountColumn
from extract.rois import RoIs

if TYPE_CHECKING:
    from extract import RoICache


class Affine(NamedTuple):
    """Scale and shift of logits: arrays that broadcast to (S, K+1), and exactly (S, K+1) float32 once fitted."""

    scale: np.ndarray
    shift: np.ndarray


class Posthoc(ABC):
    """A scorer whose logits are an affine function of the detector's own, per stage and class.

    With several stages the method adjusts the logits of each stage; the stages are then averaged as the detector
    averages them. A subclass sets `name` and implements `compute_affine`; the parameters of its constructor are its
    hyperparameters.

    Attributes:
        name: name with hyperparameters, such as "norcal-0.6".
        instance_counts: training instances of the classes 0…K-1, once fitted.
        category_ids, class_names: of these classes, once fitted.
        class_map: the outputs of the detector, once fitted; None if output i is class i.
    """

    name: str
    level: ClassVar[Level] = "logits"
    instance_counts: tuple[int, ...] = ()
    category_ids: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    class_map: ClassMap | None = None
    _original: Original
    _affine: Affine | None = None

    @abstractmethod
    def compute_affine(self, cache: RoICache) -> Affine:
        """Returns scale and shift for the logits of the cache's detector."""

    def fit(self, cache: RoICache) -> Self:
        """Fits the method to the class counts, logits or classifier weights of a cache; returns the method itself.

        Classes that the detector lacks keep their logits, with which they are never detected.
        """
        shape = (len(cache.stages), cache.num_classes + 1)
        affine = self.compute_affine(cache)
        self.instance_counts = instance_counts_of(cache)
        self._original = Original.from_description(cache.detector)
        self._affine = Affine(*(np.broadcast_to(values, shape).astype(np.float32) for values in affine))
        self.category_ids = tuple(cache.classes["category_id"].tolist())
        self.class_names = tuple(cache.classes["name"].tolist())
        self.class_map = cache.class_map
        if self.class_map:
            self._affine.scale[:, self.class_map.missing] = 1
            self._affine.shift[:, self.class_map.missing] = 0
        return self

    @property
    def affine(self) -> Affine:
        """Fitted scale and shift, (S, K+1) float32 each. Raises ValueError before `fit`."""
        if self._affine is None:
            raise ValueError(f"{self.name} is not fitted: call fit(cache) first")
        return self._affine

    def logits(self, rois: RoIs) -> np.ndarray:
        """Returns (R, S, K+1) float32 adjusted logits. Raises ValueError before `fit` and for other shapes."""
        scale, shift = self.affine
        if rois.logits.shape[1:] != scale.shape:
            raise ValueError(
                f"image {rois.image_id}: logits are {rois.logits.shape[1:]} (stages, classes + 1), "
                f"{self.name} is fitted for {scale.shape}"
            )
        adjusted = to_float32(rois.logits) * scale
        adjusted += shift
        return adjusted

    def scores(self, rois: RoIs) -> np.ndarray:
        """Returns (R, K+1) float32 class scores, with the detector's own activation. Raises as `logits` does."""
        return stage_scores(self.logits(rois), self._original.average, self._original.activation)

    def averaged(self, average: str) -> Self:
        """Returns a copy that averages its stages by "scores" or "logits". Raises ValueError before `fit`."""
        other = copy.copy(self)
        other._affine = self.affine  # raises before `fit`
        other._original = replace(self._original, average=check_average(average))
        return other

    def __repr__(self) -> str:
        return f"<{self.name}{'' if self._affine else ', not fitted'}>"


def training_counts(cache: RoICache, column: CountColumn) -> np.ndarray:
    """Returns (K,) float64 training counts, at least 1 each, so that their logarithm is finite.

    Raises:
        ValueError: `column` is not a count.
    """
    if column not in get_args(CountColumn):
        raise ValueError(f"count is {column!r}, expected {' or '.join(map(repr, get_args(CountColumn)))}")
    return np.maximum(cache.classes[column].to_numpy(np.float64), 1)


def detected_classes(cache: RoICache) -> np.ndarray:
    """Returns the classes that the cache's detector has, ascending int64."""
    has_output = cache.class_map.has_output if cache.class_map else np.ones(cache.num_classes, bool)
    return np.flatnonzero(has_output)


def append_background(foreground: np.ndarray, background: float) -> np.ndarray:
    """Appends the background column: (…, K) → (…, K+1)."""
    return np.concatenate([foreground, np.full_like(foreground[..., :1], background)], axis=-1)
