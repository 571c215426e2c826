"""`RoIs`: one image's regions of interest, the data type that the three packages exchange.

A detector adapter returns them, a cache stores them, a scorer turns them into class scores.
Letters in shapes: `R` RoIs, `S` stages of the box head, `K` classes, `*D` axes of a feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

POOLED_AFTER_CONVOLUTIONS = "pooled_after_convolutions"
"""Key of a detector's description: its box head has convolutions, and features of level "pooled" are their output, the
input of its fully connected layers. Absent where pooled features are the box head's input."""
SCORES_WITH_OBJECTNESS = "scores_with_objectness"
"""Key of a detector's description: its scores are the root of class score times objectness, as CenterNet2's (Zhou et
al., "Probabilistic two-stage detection", 2021, section 5). Absent where they are the class scores."""


@dataclass(frozen=True, eq=False, repr=False)
class RoIs:
    """The regions of interest of one image, as flat arrays.

    Boxes are xyxy in absolute pixels of the original, unflipped image. Labels are contiguous classes `0…K-1`,
    background `K`, or ignore `-1`.

    Attributes:
        image_id: the annotation file's id of the image.
        height, width: size of the original image in pixels.
        proposals: (R, S, 4) float32, the boxes that each stage's features are pooled from.
        boxes: (R, 4) float32 refined boxes of a class-agnostic regressor, or (R, K, 4) of a class-specific one.
        logits: (R, S, K+1) float16 or float32, of the detector's own classifier, background last. A cache of level
            "hidden" computes them when they are first read; see `extract.cache.derived`.
        objectness: (R,) float32, the RPN's probability (1 for ground-truth boxes).
        features: (R, S, *D) float16 or float32, pooled maps (C, P, P) or embeddings (C,); None at feature level
            "logits". A detector returns a tensor on its device, a cache a float16 array.
        labels: (R, S) int32, by each stage's matching IoU.
        ious: (R, S) float32, IoU with the ground-truth box in `gt_ids`.
        gt_ids: (R, S) int64, annotation id of the ground-truth box of largest IoU, -1 if none overlaps.
        is_gt: (R,) bool, whether the proposal is a ground-truth box.
        masks: (R, M, M) uint8, class-agnostic mask probability of `boxes`, times 255 (at most 254 in a cache),
            or None.
        flipped: whether features and logits were computed on the image flipped left to right.
    """

    image_id: int
    height: int
    width: int
    proposals: np.ndarray
    boxes: np.ndarray
    logits: np.ndarray
    objectness: np.ndarray
    features: np.ndarray | Tensor | None
    labels: np.ndarray
    ious: np.ndarray
    gt_ids: np.ndarray
    is_gt: np.ndarray
    masks: np.ndarray | None = None
    flipped: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError naming the image, the field, its shape and the expected one."""
        rois, stages, width = self._ndim("logits", 3)
        classes = width - 1
        expected: dict[str, list[tuple[int, ...]]] = {
            "proposals": [(rois, stages, 4)],
            "boxes": [(rois, 4), (rois, classes, 4)],
            "objectness": [(rois,)],
            "labels": [(rois, stages)],
            "ious": [(rois, stages)],
            "gt_ids": [(rois, stages)],
            "is_gt": [(rois,)],
        }
        for name, shapes in expected.items():
            shape = getattr(self, name).shape
            if shape not in shapes:
                raise ValueError(f"image {self.image_id}: {name} has shape {shape}, expected {_either(shapes)}")
        for name, lead in (("features", (rois, stages)), ("masks", (rois,))):
            array = getattr(self, name)
            if array is not None and array.shape[: len(lead)] != lead:
                raise ValueError(f"image {self.image_id}: {name} has shape {array.shape}, expected {(*lead, '…')}")

    def __len__(self) -> int:
        return len(self.proposals)

    def __repr__(self) -> str:
        features = "none" if self.features is None else self.features.shape[2:]
        return (
            f"RoIs(image_id={self.image_id}, {len(self)} RoIs, {self.proposals.shape[1]} stage(s), "
            f"{self.num_classes} classes, features {features})"
        )

    @property
    def num_classes(self) -> int:
        """K, without background."""
        return self.logits.shape[2] - 1

    def _ndim(self, name: str, ndim: int) -> tuple[int, ...]:
        shape = getattr(self, name).shape
        if len(shape) != ndim:
            raise ValueError(f"image {self.image_id}: {name} has shape {shape}, expected {ndim} axes")
        return shape


def _either(shapes: list[tuple[int, ...]]) -> str:
    return " or ".join(str(shape) for shape in shapes)
