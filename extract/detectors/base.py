"""The interface of all detector adapters."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from extract.cache.format import Layers
from extract.rois import RoIs

if TYPE_CHECKING:
    import torch

Choose = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(position in the batch, proposals (P, 4) best first) → (indices of the proposals to keep, boxes (G, 4) to add)."""


@dataclass(frozen=True, eq=False)
class Image:
    """An image and its id; pixels (H, W, 3) uint8 RGB."""

    image_id: int
    pixels: np.ndarray


class ImageDetections(NamedTuple):
    """One image's detections, best first: boxes (D, 4) float32 xyxy pixels, labels (D,) int64, scores (D,) float32."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


class ForwardOutput(Protocol):
    """What one forward pass over a batch of images leaves.

    Attributes:
        rois: of each image, labels unknown; features are tensors on the detector's device. Boxes are in pixels of
            the given images. Proposals are those that were chosen, in their order, then the boxes that were added
            (`is_gt`, objectness 1), which stay what they are in every stage of a cascade.
    """

    rois: list[RoIs]

    def masks(self) -> list[np.ndarray]:
        """Of each image the class-agnostic mask probability of every refined box, (R, M, M) uint8 times 255."""

    def to_framework(self, detected: Sequence[ImageDetections]) -> list[Any]:
        """Detections of each image as the framework's own inference returns them, with its masks of these boxes."""


class Detector(Protocol):
    """A frozen two-stage detector.

    Attributes:
        num_classes: K, without background.
        stages: matching IoU of each stage of its box head.
        description: what a cache says of it, plain JSON values: name, framework, framework_version,
            weights_sha256, activation ("softmax" or "sigmoid"), stage_average ("scores" or "logits"), nms_iou,
            skip_empty, class_agnostic_boxes, class_agnostic_masks.
        has_masks: whether it predicts class-agnostic masks, which a cache can keep.
        size: (shorter, longer) edge that images are resized to, in pixels.
        device: where it runs.
    """

    num_classes: int
    stages: tuple[float, ...]
    description: dict
    has_masks: bool
    size: tuple[int, int]
    device: torch.device

    def forward(self, images: Sequence[Image], level: str, choose: Choose | None = None) -> ForwardOutput:
        """One forward pass over a batch of images of one size.

        Args:
            images: padded to a common size as the framework does it, which images of one size are not.
            level: of the features that are kept: "pooled", "embedding" or "logits".
            choose: which proposals are looked at; all that the framework's inference looks at by default.
        """

    def fc_layers(self, level: str) -> list[Layers]:
        """Per stage the layers that lead from the features of a level to the logits, background last; [] if
        they are not fully connected or the level stores no features."""

    def forward_preprocessed(
        self, inputs: Any, image_ids: Sequence[int], level: str, choose: Choose | None = None
    ) -> ForwardOutput:
        """`forward` of inputs that the framework has prepared for its model: what a model given back to it calls."""

    def state_with(self, classifiers: Layers) -> dict[str, torch.Tensor]:
        """The model's state_dict with other classifiers, per stage weight (K+1, C) and bias (K+1,), background last."""

    def to_arrays(self, result: Any) -> tuple[ImageDetections, np.ndarray | None]:
        """One of `ForwardOutput.to_framework` in plain arrays, and its masks (D, H, W) bool at the image's size if it has any."""

    def resized(self, shorter: int, longer: int) -> Detector:
        """The same detector, sharing its weights, for images resized to these edges."""


def parse_options(options: Sequence[str]) -> dict:
    """KEY=VALUE pairs as builder arguments; values are JSON where they parse as such, else text."""
    parsed = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"detector option {option!r}, expected KEY=VALUE")
        try:
            parsed[key] = json.loads(value)
        except json.JSONDecodeError:
            parsed[key] = value
    return parsed


def import_function(target: str, what: str) -> Callable:
    """The function at MODULE:NAME. Raises ValueError or ImportError naming the part that is missing."""
    module, _, name = target.partition(":")
    if not module or not name:
        raise ValueError(f"{what} {target!r}, expected MODULE:FUNCTION")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # console scripts, unlike `python -m`, do not look there
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{what} {target!r}: {error} in {os.getcwd()} or on PYTHONPATH") from error
    if not callable(getattr(found, name, None)):
        raise ValueError(f"{what} {target!r}: module {module} has no function {name}")
    return getattr(found, name)
