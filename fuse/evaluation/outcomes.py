"""What a detector calls each object: the class of the best detection on it, right, a look-alike, or none at all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from extract.matching import box_iou
from extract.utils.progress import FIRST_LINE, progress_bar
from fuse.detections import Detections, positions_by_image
from fuse.evaluation.checks import with_categories
from fuse.evaluation.dataset import EvaluationDataset
from fuse.evaluation.ground_truth import GroundTruth

IOU = 0.5
"""Least IoU of the boxes of a detection and of the object that it is on."""
NOTHING = -1
"""No object, no detection or no class."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The detections of a row on G objects, crowd regions left out. Classes are rows of the class table.

    A detection, whatever its class, is on the object whose box it overlaps most, if their IoU is at least 0.5. An
    object is *named* if the best detection on it has its class, *taken for* another class if it has another one, and
    *missed* if there is no detection on it.

    Attributes:
        detections: N detections.
        image_ids: (G,) int64, of the objects.
        labels: (G,) int64 classes of the objects.
        boxes: (G, 4) float32 xyxy.
        best: (G,) int64, the best detection on each object; -1 if it is missed.
        best_own: (G,) int64, the best detection of the object's own class on it; -1 if there is none.
        found_labels: (N,) int64 classes of the detections.
        objects: (N,) int64, the object that a detection is on; -1 if none.
    """

    detections: Detections
    image_ids: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    best: np.ndarray
    best_own: np.ndarray
    found_labels: np.ndarray
    objects: np.ndarray

    @cached_property
    def taken_for(self) -> np.ndarray:
        """(G,) int64 class of the best detection on each object; -1 if it is missed."""
        return np.where(self.best >= 0, np.append(self.found_labels, NOTHING)[self.best], NOTHING)

    @property
    def named(self) -> np.ndarray:
        """(G,) bool: whether the best detection on an object has its class."""
        return self.taken_for == self.labels

    @property
    def own_scores(self) -> np.ndarray:
        """(G,) float32 score of the best detection of the object's own class on it; NaN if there is none."""
        return np.where(self.best_own >= 0, np.append(self.detections.scores, np.nan)[self.best_own], np.nan)


def object_outcomes(
    dataset: EvaluationDataset, detections: Detections, classes: pd.DataFrame, progress: bool = False
) -> Outcomes:
    """Returns what the detections call each object of a dataset.

    Args:
        dataset: of `load_annotations`.
        detections: of any of its images. Of equal scores, the earlier detection is the better one.
        classes: the class table, whose rows are the classes.
        progress: show it on stderr, after two seconds.
    """
    gt = GroundTruth.from_dataset(with_categories(dataset, classes))
    kept = np.flatnonzero(~gt.crowd)
    rank = np.argsort(classes["category_id"].to_numpy(np.int64))  # ascending category ids → rows of the class table
    boxes = gt.boxes[kept].astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    image_ids = gt.image_ids[gt.cells[kept] // len(gt.category_ids)]
    labels = rank[gt.classes[kept]]
    found = rank[np.searchsorted(gt.category_ids, detections.category_ids)]
    objects = _objects_of(image_ids, boxes, detections, progress)
    on = np.flatnonzero(objects >= 0)
    own = on[found[on] == labels[objects[on]]]
    best, best_own = (_best(detections.scores, objects, index, len(kept)) for index in (on, own))
    return Outcomes(detections, image_ids, labels, boxes, best, best_own, found, objects)


def _objects_of(image_ids: np.ndarray, boxes: np.ndarray, detections: Detections, progress: bool) -> np.ndarray:
    """Returns (N,) int64, the object that each detection is on; `image_ids` (G,) are ascending."""
    objects = np.full(len(detections), NOTHING, np.int64)
    images = positions_by_image(detections.image_ids)
    for positions in progress_bar(images, desc="match objects", unit="image", shown=progress, delay=FIRST_LINE):
        image_id = detections.image_ids[positions[0]]
        first, last = np.searchsorted(image_ids, (image_id, image_id + 1))
        if first == last:
            continue
        overlaps = box_iou(detections.boxes[positions], boxes[first:last])
        objects[positions] = np.where(overlaps.max(axis=1) >= IOU, first + overlaps.argmax(axis=1), NOTHING)
    return objects


def _best(scores: np.ndarray, objects: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """Returns (G,) int64, the detection of highest score on each of `count` objects, of those at `index`."""
    best = np.full(count, NOTHING, np.int64)
    order = index[np.lexsort((index, -scores[index]))]
    best[objects[order[::-1]]] = order[::-1]  # of an object's detections, the best is written last
    return best
