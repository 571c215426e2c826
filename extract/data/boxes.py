"""Boxes of annotation files: clipped to their images, and without those that have no area."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from extract.data.records import BoxRecord
from extract.data.repairs import AnnotationError, Repairs

OVERHANG = 1.0
"""Pixels by which a box may exceed the image without a report, as rounded boxes do; it is clipped."""
LARGEST = float(np.finfo(np.float32).max)
NO_AREA = "have no area and are left out"


class ClippedBoxes(NamedTuple):
    """Boxes (A, 4) float32 xyxy in pixels, inside their images, and whether each has an area, (A,) bool."""

    boxes: np.ndarray
    has_area: np.ndarray


def clip_boxes(annotations: Sequence[BoxRecord], sizes: np.ndarray, repairs: Repairs) -> ClippedBoxes:
    """Clips the annotations' boxes to their images.

    Args:
        annotations: A annotations.
        sizes: (A, 2) width and height of their images, 0 where it is unknown.
        repairs: is told of boxes without area, outside their images, and over the edge by more than `OVERHANG`.

    Raises AnnotationError for a box that is not finite.
    """
    xywh = finite_boxes(annotations, repairs.source)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    limit = np.where(sizes > 0, sizes, LARGEST)
    limit = np.concatenate([limit, limit], 1)
    boxes = np.clip(corners, 0, limit).astype(np.float32)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    outside = ((corners[:, 2:] <= 0) | (corners[:, :2] >= limit[:, :2])).any(1) & (xywh[:, 2:] > 0).all(1)
    over = ((corners < -OVERHANG) | (corners > limit + OVERHANG)).any(1)
    faults = {
        NO_AREA: ~has_area & ~outside,
        "lie outside their image and are left out": ~has_area & outside,
        "reach over the edge of their image and are clipped": has_area & over,
    }
    for fault, bad in faults.items():
        report_boxes(annotations, bad, fault, repairs)
    return ClippedBoxes(boxes, has_area)


def finite_boxes(annotations: Sequence[BoxRecord], source: str) -> np.ndarray:
    """Returns the annotations' boxes (A, 4) float64 left, top, width, height.

    Raises AnnotationError for a box that is not finite, or not in single precision.
    """
    xywh = np.array([a.bbox for a in annotations], np.float64).reshape(-1, 4)
    bad = ~(np.abs(xywh) <= LARGEST).all(1)
    if bad.any():
        first = annotations[int(np.argmax(bad))]
        raise AnnotationError(f"{source}: annotation {first.id}: bbox {list(first.bbox)} is not finite")
    return xywh


def report_boxes(annotations: Sequence[BoxRecord], bad: np.ndarray, fault: str, repairs: Repairs) -> None:
    """Tells `repairs` of the annotations at `bad`, (A,) bool."""
    if bad.any():
        repairs.add("boxes", fault, f"annotation {annotations[int(np.argmax(bad))].id}", int(bad.sum()))
