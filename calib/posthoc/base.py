"""What all post-hoc methods share. `z` are logits, `N_c` is the training count of class c, background is last."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self, get_args

import numpy as np

from calib.scoring import Level, Original, instance_counts_of
from extract.class_scores import activate, check_average, sigmoid, stage_mean, stage_scores, to_float32
from extract.data.class_map import ClassMap
from extract.data.classes import CountColumn
from extract.rois import RoIs
from extract.utils.summarized import Summarized

if TYPE_CHECKING:
    from extract import RoICache


class Affine(NamedTuple):
    """Scale and shift of logits: arrays that broadcast to (S, K+1), and exactly (S, K+1) float32 once fitted."""

    scale: np.ndarray
    shift: np.ndarray


class Posthoc(Summarized, ABC):
    """A scorer whose logits are an affine function of the detector's own, per stage and class.

    With several stages the method adjusts the logits of each stage; the stages are then averaged as the detector
    averages them. A subclass sets `name` and implements `compute_affine`; the parameters of its constructor are its
    hyperparameters. The first line of its docstring describes it in `python -m calib --list`.

    Where a formula multiplies scores with a second factor, `compute_gate` returns the logit of that factor as another
    affine function of the detector's logits: scores are then activation(z·scale + shift) · sigmoid(z·scale' + shift').

    Attributes:
        name: name with hyperparameters, such as "norcal-0.6".
        needs: what the method is fitted to.
        source: paper and equation.
        fits_labels: whether the method is fitted to labels or ground-truth boxes of a train cache.
        instance_counts: training instances of the classes 0…K-1, once fitted.
        category_ids, class_names: of these classes, once fitted.
        class_map: the outputs of the detector, once fitted; None if output i is class i.
    """

    name: str
    needs: ClassVar[str] = ""
    source: ClassVar[str] = ""
    fits_labels: bool = False
    level: ClassVar[Level] = "logits"
    instance_counts: tuple[int, ...] = ()
    category_ids: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    class_map: ClassMap | None = None
    _original: Original
    _affine: Affine | None = None
    _gate: Affine | None = None

    @abstractmethod
    def compute_affine(self, cache: RoICache) -> Affine:
        """Returns scale and shift for the logits of the cache's detector."""

    def compute_gate(self, cache: RoICache) -> Affine | None:
        """Returns scale and shift of the second factor's logit; None if there is no second factor."""
        return None

    def fit(self, cache: RoICache) -> Self:
        """Fits the method to the class counts, logits or classifier weights of a cache; returns the method itself.

        Classes that the detector lacks keep their logits, with which they are never detected.
        """
        affine, gate = self.compute_affine(cache), self.compute_gate(cache)
        self.instance_counts = instance_counts_of(cache)
        self._original = Original.from_description(cache.detector)
        self.category_ids = tuple(cache.classes["category_id"].tolist())
        self.class_names = tuple(cache.classes["name"].tolist())
        self.class_map = cache.class_map
        self._affine = self._per_stage(cache, affine)
        self._gate = None if gate is None else self._per_stage(cache, gate)
        return self

    def _per_stage(self, cache: RoICache, affine: Affine) -> Affine:
        """Returns (S, K+1) float32 arrays that leave the classes unchanged that the detector lacks."""
        shape = (len(cache.stages), cache.num_classes + 1)
        full = Affine(*(np.broadcast_to(values, shape).astype(np.float32) for values in affine))
        if self.class_map:
            full.scale[:, self.class_map.missing] = 1
            full.shift[:, self.class_map.missing] = 0
        return full

    @property
    def affine(self) -> Affine:
        """Fitted scale and shift, (S, K+1) float32 each. Raises ValueError before `fit`."""
        if self._affine is None:
            raise ValueError(f"{self.name} is not fitted: call fit(cache) first")
        return self._affine

    @property
    def gate(self) -> Affine | None:
        """Fitted scale and shift of the second factor's logit, (S, K+1) float32 each; None if there is none."""
        return self._gate

    def logits(self, rois: RoIs) -> np.ndarray:
        """Returns (R, S, K+1) float32 adjusted logits. Raises ValueError before `fit` and for other shapes."""
        return self._adjusted(rois, self.affine)

    def _adjusted(self, rois: RoIs, affine: Affine) -> np.ndarray:
        scale, shift = affine
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
        logits, average, activation = self.logits(rois), self._original.average, self._original.activation
        if self._gate is None:
            return stage_scores(logits, average, activation)
        gate = self._adjusted(rois, self._gate)
        if average == "logits":
            return activate(stage_mean(logits), activation) * sigmoid(stage_mean(gate))
        return (activate(logits, activation) * sigmoid(gate)).mean(axis=1)

    def averaged(self, average: str) -> Self:
        """Returns a copy that averages its stages by "scores" or "logits". Raises ValueError before `fit`."""
        other = copy.copy(self)
        other._affine = self.affine  # raises before `fit`
        other._original = replace(self._original, average=check_average(average))
        return other

    def summary(self) -> list[tuple[str, str]]:
        """Returns what `repr` shows: (name, text)."""
        formula = inspect.cleandoc(type(self).__doc__ or "").partition("\n")[0]
        fitted = "not fitted: call fit(cache)"
        if self._affine is not None:
            stages, outputs = self._affine.scale.shape
            fitted = f"for {outputs - 1:,} classes and {stages} stage(s)"
        return [
            ("Method", self.name),
            ("scores", formula),
            ("needs", self.needs),
            ("source", self.source),
            ("fitted", fitted),
        ]


def training_counts(cache: RoICache, column: CountColumn) -> np.ndarray:
    """Returns (K,) float64 training counts, at least 1 each, so that their logarithm is finite.

    Raises:
        ValueError: `column` is not a count.
    """
    if column not in get_args(CountColumn):
        raise ValueError(f"count is {column!r}, expected {' or '.join(map(repr, get_args(CountColumn)))}")
    return np.maximum(cache.classes[column].to_numpy(np.float64), 1)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises ValueError naming a hyperparameter whose value is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


def detected_classes(cache: RoICache) -> np.ndarray:
    """Returns the classes that the cache's detector has, ascending int64."""
    has_output = cache.class_map.has_output if cache.class_map else np.ones(cache.num_classes, bool)
    return np.flatnonzero(has_output)


def append_background(foreground: np.ndarray, background: float) -> np.ndarray:
    """Appends the background column: (…, K) → (…, K+1)."""
    return np.concatenate([foreground, np.full_like(foreground[..., :1], background)], axis=-1)
