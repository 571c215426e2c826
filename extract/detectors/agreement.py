"""Whether an adapter finds in an image what its framework's own inference finds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from extract.class_scores import detector_scores
from extract.detectors.base import Detector, Image, ImageDetections
from extract.detectors.class_map import MappedDetector
from extract.utils.errors import one_line

CANDIDATES = 1000
"""Pairs of a RoI and an output that the framework's inference gets; NMS of all of them takes seconds."""
BOX_TOLERANCE = 1.0
"""In pixels, between the coordinates of equal boxes."""


class Tolerance(NamedTuple):
    """The largest difference between equal scores: `absolute`, plus `relative` times the score."""

    absolute: float
    relative: float


TOLERANCE = Tolerance(1e-3, 1e-2)
"""Of two passes through the whole model."""


def check_inference(detector: Detector, image: Image) -> None:
    """Compares an adapter's detections in an image with those of its framework's own inference.

    An adapter without `own_inference` is not compared.

    Raises ValueError naming the detector, the image and the largest difference, or why that inference failed.
    """
    adapter = detector.original if isinstance(detector, MappedDetector) else detector
    own_inference = getattr(adapter, "own_inference", None)
    if own_inference is None:
        return
    (rois,) = adapter.forward([image], "logits").rois
    scores = detector_scores(rois.logits, rois.objectness, adapter.description)
    threshold = _threshold(_candidates(rois.boxes, scores))
    where = f"detector {adapter.description['name']}: image {image.image_id}"
    try:
        own = own_inference(image, threshold)
    except Exception as error:  # a framework's code raises errors of any kind
        raise ValueError(f"{where}: the framework's own inference failed: {one_line(error)}") from error
    difference = score_difference(own, rois.boxes, scores, TOLERANCE)
    if difference:
        raise ValueError(f"{where}: {difference}; such a detector is not supported")


def score_difference(own: ImageDetections, boxes: np.ndarray, scores: np.ndarray, tolerance: Tolerance) -> str:
    """Describes the largest difference between a framework's detections in an image and an adapter's; "" for none.

    Of each output, only the framework's best detection is compared: it is the same whatever kind of NMS follows. It has
    to be one of the adapter's boxes, with the same score.

    Args:
        own: the framework's.
        boxes: (R, 4) or (R, N, 4) refined boxes of the adapter, in the same pixels.
        scores: (R, N+1) scores of the adapter, background last.
        tolerance: of scores.
    """
    best, own_best = (float(values.max(initial=0)) for values in (_candidates(boxes, scores), own.scores))
    if best - own_best > tolerance.absolute + tolerance.relative * best:
        return f"the framework's own inference scores boxes up to {own_best:.4g}, this library up to {best:.4g}"
    worst, text = tolerance.absolute, ""
    order = np.argsort(-own.scores, kind="stable")
    _, first = np.unique(own.labels[order], return_index=True)
    for i in order[first].tolist():
        output, own_score = int(own.labels[i]), float(own.scores[i])
        distance = np.abs((boxes if boxes.ndim == 2 else boxes[:, output]) - own.boxes[i]).max(axis=1, initial=0)
        near = scores[distance <= BOX_TOLERANCE, output]
        if not len(near):
            return f"the framework's own inference has a box of output {output} that this library has not"
        score = float(near[np.abs(near - own_score).argmin()])
        excess = abs(score - own_score) - tolerance.relative * own_score
        if excess > worst:
            worst = excess
            text = (
                f"the framework's own inference scores a box of output {output} with {own_score:.4g}, "
                f"this library with {score:.4g}"
            )
    return text


def _candidates(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the scores (R, N) of outputs, 0 where a box is empty: most frameworks leave these out."""
    empty = np.asarray((boxes[..., 2:] <= boxes[..., :2]).any(-1))
    return np.where(empty[:, None] if boxes.ndim == 2 else empty, 0, scores[:, :-1])


def _threshold(candidates: np.ndarray) -> float:
    """Returns a score threshold that leaves about `CANDIDATES` of scores (R, N)."""
    if candidates.size <= CANDIDATES:
        return 0.0
    least = np.partition(candidates, -CANDIDATES, axis=None)[-CANDIDATES]
    return float(least) * 0.999  # the framework's threshold is strict
