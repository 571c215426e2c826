"""From logits to class scores, and the detector's own classifier as a scorer.

A *scorer* has a `.name` and `.scores(rois) -> (R, K+1) float32`, background last. One whose `.level` is "logits" looks
at no features, which then are not read. `fuse.detect` asks for the scores of several images at once, from threads.
Letters in shapes: `R` RoIs, `S` stages of the box head, `K` classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from extract.rois import RoIs

if TYPE_CHECKING:
    import torch

AVERAGES = ("scores", "logits")
"""What a detector with several stages averages: scores (detectron2) or logits (mmdetection)."""
ACTIVATIONS = ("softmax", "sigmoid")
"""What turns a detector's logits into scores: one softmax over all classes, or each class by itself."""


class Scorer(Protocol):
    """Turns the RoIs of one image into class scores."""

    name: str

    def scores(self, rois: RoIs) -> np.ndarray:
        """(R, K+1) float32 class scores, background last."""


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in float32.

    Args:
        logits: (..., K+1) of any float type.

    Returns:
        (..., K+1) float32; rows sum to 1.
    """
    import torch

    scores = np.empty(np.shape(logits), np.float32)
    torch.softmax(_tensor(logits), -1, out=torch.from_numpy(scores))
    return scores


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Of every number by itself, in float32: (...) of any float type → (...) float32."""
    return _tensor(logits).sigmoid().numpy()


def stage_scores(logits: np.ndarray, average: str = "scores", activation: str = "softmax") -> np.ndarray:
    """Class scores of all stages together.

    Args:
        logits: (R, S, K+1), float16 or float32, background last.
        average: "scores" takes the mean of the stages' scores, "logits" the scores of their mean logits.
        activation: "softmax", or "sigmoid" of a detector that scores each class by itself.

    Returns:
        (R, K+1) float32; rows sum to 1 with softmax.

    Raises:
        ValueError: `average` or `activation` is something else, or `logits` has not three axes.
    """
    check_average(average)
    check_activation(activation)
    if logits.ndim != 3:
        raise ValueError(f"logits have shape {logits.shape}, expected (R, S, K+1)")
    activate = softmax if activation == "softmax" else sigmoid
    if logits.shape[1] == 1:
        return activate(logits[:, 0])
    if average == "scores":
        return activate(logits).mean(axis=1)
    return activate(_tensor(logits).mean(1).numpy())


def to_float32(values: np.ndarray) -> np.ndarray:
    """The array itself if it is of that type already."""
    return _tensor(values).numpy()


def _tensor(logits: np.ndarray) -> torch.Tensor:
    """float32 on the CPU. NumPy converts float16 number by number, and its exponential takes several times torch's.

    What NumPy allocates lies in huge pages, of which threads that work side by side need few.
    """
    import torch  # the package is imported where no score is computed

    values = torch.from_numpy(np.require(logits, requirements="CW"))
    if values.dtype == torch.float32:
        return values
    return torch.from_numpy(np.empty(values.shape, np.float32)).copy_(values)


def check_average(average: str) -> str:
    """`average` itself, or a ValueError that lists what is possible."""
    if average not in AVERAGES:
        raise ValueError(f"stage average is {average!r}, expected {' or '.join(map(repr, AVERAGES))}")
    return average


def check_activation(activation: str) -> str:
    """`activation` itself, or a ValueError that lists what is possible."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}, expected {' or '.join(map(repr, ACTIVATIONS))}")
    return activation


class Original:
    """The detector's own scores, from the logits in the RoIs."""

    name = "original"
    level = "logits"

    def __init__(self, average: str = "scores", activation: str = "softmax") -> None:
        self.average, self.activation = check_average(average), check_activation(activation)

    @classmethod
    def from_description(cls, detector: Mapping[str, object], average: str | None = None) -> Original:
        """That of a detector's description; `average` replaces the framework's way of averaging stages."""
        return cls(average or detector.get("stage_average", "scores"), detector.get("activation", "softmax"))

    def scores(self, rois: RoIs) -> np.ndarray:
        """(R, K+1) float32 class scores, background last."""
        return stage_scores(rois.logits, self.average, self.activation)
