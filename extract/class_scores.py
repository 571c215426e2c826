"""Class scores of a detector's own classifier, from its logits.

Letters in shapes: `R` RoIs, `S` stages of the box head, `K` classes. Background is the last column.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np

from extract.rois import SCORES_WITH_OBJECTNESS

if TYPE_CHECKING:
    import torch

Average = Literal["scores", "logits"]
"""What a detector with several stages averages: scores (detectron2) or logits (mmdetection)."""
Activation = Literal["softmax", "sigmoid", "exp"]
"""What turns logits into scores: one softmax over all classes, a sigmoid per class, or for heads whose logits are
logarithms of scores the exponential."""
AVERAGES: tuple[str, ...] = get_args(Average)
ACTIVATIONS: tuple[str, ...] = get_args(Activation)


def detector_scores(logits: np.ndarray, objectness: np.ndarray, detector: Mapping[str, object]) -> np.ndarray:
    """Returns a detector's own class scores: (R, K+1) float32.

    Args:
        logits: (R, S, K+1), float16 or float32, background last.
        objectness: (R,) float32.
        detector: its description, see `extract.detectors.base.Detector`.

    Raises:
        ValueError: unknown stage average or activation in the description.
    """
    average = check_average(detector.get("stage_average", "scores"))
    scores = stage_scores(logits, average, check_activation(detector.get("activation", "softmax")))
    return scores_with_objectness(scores, objectness) if detector.get(SCORES_WITH_OBJECTNESS) else scores


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


def scores_with_objectness(scores: np.ndarray, objectness: np.ndarray) -> np.ndarray:
    """Returns the root of class score times objectness: (R, K+1) and (R,) float32 → (R, K+1) float32.

    These are the scores of CenterNet2 (Zhou et al., "Probabilistic two-stage detection", 2021, section 5), background
    included.
    """
    return np.sqrt(scores * objectness[:, None])


def _to_tensor(values: np.ndarray) -> torch.Tensor:
    """Converts to float32 on the CPU with torch, which converts float16 several times faster than NumPy.

    The result is allocated by NumPy, which uses huge pages, so that concurrent threads take few page faults.
    """
    import torch  # here, so that importing this module does not import torch

    tensor = torch.from_numpy(np.require(values, requirements=("C", "W")))
    if tensor.dtype == torch.float32:
        return tensor
    return torch.from_numpy(np.empty(tensor.shape, np.float32)).copy_(tensor)
