"""The detections of many images as they come, of which fixed AP keeps the best of each class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fuse.detections import Detections, top_of_groups

if TYPE_CHECKING:
    from fuse.inference import Row

Part = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""image_id, class, score (D,), box (D, 4) and RLE (D,) of D detections."""

_PRUNE_AFTER = 1_000_000  # detections added to a row with `per_class` between two looks at which are the best


class DetectionAccumulator:
    """A row's detections so far. Once a class has `per_class`, worse ones are no longer looked for.

    Attributes:
        floors: (K,) float32, the scores that detections of the images to come have to exceed.
    """

    def __init__(self, row: Row, num_classes: int, masks: bool):
        self.floors = np.full(num_classes, row.score_threshold, np.float32)
        self._per_class, self._capped, self._masks = row.per_class, row.max_detections is not None, masks
        nothing = np.empty(0, np.int64)
        self._parts = [(nothing, nothing, np.empty(0, np.float32), np.empty((0, 4), np.float32), np.empty(0, object))]
        self._added = 0

    def add(self, part: Part) -> None:
        """Appends one image's detections."""
        self._parts.append(part)
        self._added += len(part[0])
        if self._per_class is not None and self._added > max(_PRUNE_AFTER, len(self._parts[0][0])):
            self._prune()

    def detections(self, category_ids: np.ndarray) -> Detections:
        if self._per_class is not None:
            self._prune()
        image_id, cls, score, box, rle = self._joined()
        return Detections(image_id, category_ids[cls], score, box, rle.tolist() if self._masks else None)

    def _joined(self) -> Part:
        return tuple(np.concatenate(columns) for columns in zip(*self._parts, strict=True))

    def _prune(self) -> None:
        columns = self._joined()
        best = top_of_groups(columns[1], columns[2], self._per_class)
        self._parts, self._added = [tuple(column[best] for column in columns)], 0
        if self._capped:  # there a detection that is not looked for would leave its place to another
            return
        _, cls, score = self._parts[0][:3]
        full = np.bincount(cls, minlength=len(self.floors)) == self._per_class
        worst = np.full(len(self.floors), np.inf, np.float32)
        np.minimum.at(worst, cls, score)
        self.floors = np.where(full, worst, self.floors)  # a new array: threads are reading the old one
