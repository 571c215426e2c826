"""Calibration without training: rescale the logits that the detector already gave.

Each method is a scorer (`calib.scoring`) with `fit(cache)`, which reads what it needs from any cache of the
detector (class counts, logits or classifier weights) and returns the scorer itself. `N_c` is a class's
training count, `z` are logits, background is last. With several stages a method works on each stage's
logits; the stages are then averaged as the detector does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from calib.scoring import Original, stage_scores, to_float32
from extract.rois import RoIs

if TYPE_CHECKING:
    from extract import RoICache

Count = Literal["image_count", "instance_count"]
ROWS_AT_ONCE = 16384


class Posthoc:
    """Common to all methods: the adjusted logits are affine in the original ones, per stage and class."""

    name: str
    level = "logits"
    instance_counts: tuple[int, ...] = ()
    _scale: np.ndarray
    _shift: np.ndarray
    _average: str
    _activation: str

    def fit(self, cache: RoICache) -> Self:
        """Takes what the method needs from the cache and returns itself."""
        shape = (len(cache.stages), cache.num_classes + 1)
        scale, shift = self._affine(cache)
        self._scale = np.broadcast_to(scale, shape).astype(np.float32)
        self._shift = np.broadcast_to(shift, shape).astype(np.float32)
        self.instance_counts = tuple(cache.classes["instance_count"].tolist())
        original = Original.from_description(cache.detector)
        self._average, self._activation = original.average, original.activation
        return self

    def logits(self, rois: RoIs) -> np.ndarray:
        """(R, S, K+1) float32 adjusted logits. Raises ValueError before `fit` or for other shapes."""
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
        """(R, K+1) float32 class scores, background last, by the detector's own activation."""
        return stage_scores(self.logits(rois), self._average, self._activation)

    @property
    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift of the logits, (S, K+1) float32 each. Raises ValueError before `fit`."""
        if not hasattr(self, "_scale"):
            raise ValueError(f"{self.name} is not fitted: call fit(cache) first")
        return self._scale, self._shift

    def __repr__(self) -> str:
        return f"<{self.name}{'' if hasattr(self, '_scale') else ', not fitted'}>"

    def _affine(self, cache: RoICache) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift of the logits, each broadcastable to (S, K+1)."""
        raise NotImplementedError


class NorCal(Posthoc):
    """Foreground probabilities divided by N_c^γ, then normalised: softmax(z_c − γ·log N_c, z_bg).

    Source: Pan et al., "On Model Calibration for Long-Tailed Object Detection and Instance Segmentation"
    (NeurIPS 2021), section 4, with a_c = N_c^γ. Background is left alone. The authors' code counts images.
    """

    def __init__(self, gamma: float = 0.6, count: Count = "image_count") -> None:
        self.gamma, self.count = gamma, count
        self.name = f"norcal-{gamma:g}"

    def _affine(self, cache: RoICache) -> tuple[np.ndarray, np.ndarray]:
        return np.ones(1), _with_background(-self.gamma * np.log(_counts(cache, self.count)), 0)


class LogitAdjustment(Posthoc):
    """z_c − τ·log π_c, π_c being the class's share of the training instances; background is left alone.

    Source: Menon et al., "Long-tail learning via logit adjustment" (ICLR 2021), eq. (9), which is for
    classification. A detector's background has no count, so π is a distribution over foreground classes only.
    """

    def __init__(self, tau: float = 1.0, count: Count = "instance_count") -> None:
        self.tau, self.count = tau, count
        self.name = f"logit-adjustment-{tau:g}"

    def _affine(self, cache: RoICache) -> tuple[np.ndarray, np.ndarray]:
        counts = _counts(cache, self.count)
        return np.ones(1), _with_background(-self.tau * np.log(counts / counts.sum()), 0)


class LogN(Posthoc):
    """(z_c − (μ_c − min μ)) / σ_c, μ and σ being a class's mean and deviation over the cache's RoIs.

    Source: Zhao et al., "Logit Normalization for Long-tail Object Detection" (2022). Background keeps its
    logit (μ = 0, σ = 1); the minimum is over foreground classes. Fit it on a train cache.
    """

    name = "logn"

    def _affine(self, cache: RoICache) -> tuple[np.ndarray, np.ndarray]:
        mean, deviation = _moments(cache)
        mean, deviation = mean[:, :-1], deviation[:, :-1]
        # A class whose logit never varies carries no scale of its own.
        scale = 1 / np.where(deviation > 0, deviation, 1)
        shift = -(mean - mean.min(axis=1, keepdims=True)) * scale
        return _with_background(scale, 1), _with_background(shift, 0)


class TauNorm(Posthoc):
    """Classifier rows w_c / ‖w_c‖^τ without bias, background's too: on logits (z_c − b_c) / ‖w_c‖^τ.

    Source: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition" (ICLR 2020),
    section 4.2, τ-normalized classifier. Needs the classifier weights in the cache.
    """

    def __init__(self, tau: float = 1.0) -> None:
        self.tau = tau
        self.name = f"tau-norm-{tau:g}"

    def _affine(self, cache: RoICache) -> tuple[np.ndarray, np.ndarray]:
        layers = [cache.fc_layers(stage) for stage in range(len(cache.stages))]
        if not all(layers):
            raise ValueError(f"{cache.url}: has no classifier weights (detector/), {self.name} needs them")
        weights, biases = (np.stack(arrays) for arrays in zip(*(layer[-1] for layer in layers), strict=True))
        scale = np.linalg.norm(weights, axis=-1) ** -self.tau
        return scale, -biases * scale


def _counts(cache: RoICache, column: Count) -> np.ndarray:
    """(K,) training counts; classes without any count as 1, so that their logarithm exists."""
    return np.maximum(cache.classes[column].to_numpy(np.float64), 1)


def _with_background(foreground: np.ndarray, background: float) -> np.ndarray:
    """(…, K) → (…, K+1)."""
    return np.concatenate([foreground, np.full_like(foreground[..., :1], background)], axis=-1)


def _moments(cache: RoICache) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of all logits of a cache in one pass, each (S, K+1) float64."""
    rows = int(cache.offsets[-1])
    if rows == 0:
        raise ValueError(f"{cache.url}: holds no RoIs, there is nothing to fit")
    total, squares = np.zeros((2, len(cache.stages), cache.num_classes + 1))
    for start in range(0, rows, ROWS_AT_ONCE):
        logits = cache.take("logits", np.arange(start, min(start + ROWS_AT_ONCE, rows))).astype(np.float64)
        total += logits.sum(axis=0)
        squares += np.square(logits).sum(axis=0)
    mean = total / rows
    return mean, np.sqrt(np.maximum(squares / rows - np.square(mean), 0))
