"""From logits to class scores, and the detector's own classifier as a scorer.

A *scorer* has a `.name` and `.scores(rois) -> (R, K+1) float32`, background last.
Letters in shapes: `R` RoIs, `S` stages of the box head, `K` classes.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from extract.rois import RoIs

AVERAGES = ("scores", "logits")
"""What a detector with several stages averages: softmax scores (detectron2) or logits (mmdetection's HTC)."""


class Scorer(Protocol):
    """Turns the RoIs of one image into class scores."""

    name: str

    def scores(self, rois: RoIs) -> np.ndarray:
        """(R, K+1) float32 class scores, background last."""


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in float32, shifted by the maximum so that it cannot overflow.

    Args:
        logits: (..., K+1) of any float type.

    Returns:
        (..., K+1) float32; rows sum to 1.
    """
    scores = np.array(logits, dtype=np.float32)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def stage_scores(logits: np.ndarray, average: str = "scores") -> np.ndarray:
    """Class scores of all stages together.

    Args:
        logits: (R, S, K+1), float16 or float32, background last.
        average: "scores" takes the mean of the stages' softmaxes, "logits" the softmax of their mean logits.

    Returns:
        (R, K+1) float32; rows sum to 1.

    Raises:
        ValueError: `average` is something else, or `logits` has not three axes.
    """
    check_average(average)
    if logits.ndim != 3:
        raise ValueError(f"logits have shape {logits.shape}, expected (R, S, K+1)")
    if logits.shape[1] == 1:
        return softmax(logits[:, 0])
    if average == "scores":
        return softmax(logits).mean(axis=1)
    return softmax(logits.mean(axis=1, dtype=np.float32))


def check_average(average: str) -> str:
    """`average` itself, or a ValueError that lists what is possible."""
    if average not in AVERAGES:
        raise ValueError(f"stage average is {average!r}, expected {' or '.join(map(repr, AVERAGES))}")
    return average


class Original:
    """The detector's own scores, from the logits in the RoIs."""

    name = "original"

    def __init__(self, average: str = "scores") -> None:
        self.average = check_average(average)

    def scores(self, rois: RoIs) -> np.ndarray:
        """(R, K+1) float32 class scores, background last."""
        return stage_scores(rois.logits, self.average)
