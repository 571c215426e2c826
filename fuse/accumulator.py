"""Collects the detections of many images; for fixed AP, keeps the best of each class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fuse.detections import Detections, top_of_groups
from fuse.fusion import Fusion

PRUNE_AFTER = 1_000_000
"""Detections added between two prunings, with `max_detections_per_class`."""


class DetectionColumns(NamedTuple):
    """D detections: image ids and classes (D,) int64, scores (D,) and boxes (D, 4) float32, RLE masks (D,) object."""

    image_ids: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    rles: np.ndarray


class DetectionAccumulator:
    """The detections of one fusion so far.

    Attributes:
        class_thresholds: (K,) float32, scores that detections of the images to come must exceed. Once a class has
            `max_detections_per_class`, its threshold is the worst of these.
    """

    def __init__(self, fusion: Fusion, num_classes: int, masks: bool):
        """Begins without detections; `masks` is whether they will have masks."""
        self.class_thresholds = np.full(num_classes, fusion.config.score_threshold, np.float32)
        self._per_class, self._capped = fusion.config.max_detections_per_class, fusion.max_detections is not None
        self._masks = masks
        none = np.empty(0, np.int64)
        empty = DetectionColumns(none, none, np.empty(0, np.float32), np.empty((0, 4), np.float32), np.empty(0, object))
        self._parts = [empty]
        self._added = 0

    def add(self, part: DetectionColumns) -> None:
        """Appends one image's detections."""
        self._parts.append(part)
        self._added += len(part.scores)
        if self._per_class is not None and self._added > max(PRUNE_AFTER, len(self._parts[0].scores)):
            self._prune()

    def detections(self, category_ids: np.ndarray) -> Detections:
        """Returns all detections; `category_ids` (K,) int64 are those of the classes."""
        if self._per_class is not None:
            self._prune()
        every = self._joined()
        rles = every.rles.tolist() if self._masks else None
        return Detections(every.image_ids, category_ids[every.labels], every.scores, every.boxes, rles)

    def _joined(self) -> DetectionColumns:
        return DetectionColumns(*(np.concatenate(columns) for columns in zip(*self._parts, strict=True)))

    def _prune(self) -> None:
        assert self._per_class is not None
        every = self._joined()
        best = top_of_groups(every.labels, every.scores, self._per_class)
        kept = DetectionColumns(*(column[best] for column in every))
        self._parts, self._added = [kept], 0
        if self._capped:  # with a cap per image, a dropped detection would free a place for another
            return
        full = np.bincount(kept.labels, minlength=len(self.class_thresholds)) == self._per_class
        worst = np.full(len(self.class_thresholds), np.inf, np.float32)
        np.minimum.at(worst, kept.labels, kept.scores)
        self.class_thresholds = np.where(full, worst, self.class_thresholds)  # a new array: threads read the old one
