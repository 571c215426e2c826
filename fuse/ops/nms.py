"""Exact per-class non-maximum suppression over every class of every proposal.

At 1,000 proposals, 1,230 classes and threshold 0.0 there are 1,230,000 candidates, yet only
`max_detections` survive, and a candidate is only ever suppressed by one of higher score. So one pass takes
the maximum of each short stretch of classes; those maxima tell a score above which some thousand candidates
lie, and only these are sorted and suppressed. If too few survive, the same is done from a lower score.
Nothing is approximated.
"""

from __future__ import annotations

import numpy as np

from fuse.ops.nms_kernels import block_maxima, candidates, nms_by_class

_FIRST = 1024  # stretches searched first
_GROWTH = 4
_SAMPLE = 4096  # stretches that tell where the search begins, at least
_INFINITY = 0x7F800000  # bits of float32 infinity: as unsigned integers, NaN and negative numbers lie above it


def class_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    iou_threshold: float = 0.5,
    score_threshold: float | np.ndarray = 0.0,
    max_detections: int | None = 300,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Greedy non-maximum suppression of each class by itself, then the best `max_detections` of all classes.

    Candidates are the scores strictly above `score_threshold`. One is suppressed if its IoU with a kept box
    of its class exceeds `iou_threshold`; the arithmetic is that of `torchvision.ops.nms` on the CPU, in
    float32. The order is by falling score, equal scores by class and then by RoI, both in suppression and
    in the result.

    Args:
        boxes: (R, 4) float32 xyxy shared by the classes, or (R, K, 4) of a class-specific regressor.
        scores: (R, K+1) float32, background last; its column is never returned.
        iou_threshold: in [0, 1].
        score_threshold: at least 0; an array (K,) sets it class by class.
        max_detections: kept over all classes; None or -1 keeps all.

    Returns:
        roi_index (D,) int64, class_index (D,) int64, score (D,) float32, best first.

    Raises:
        ValueError: shapes that do not fit, a NaN, or a threshold out of range.
    """
    boxes, scores = _check_arrays(boxes, scores)
    rois, classes = len(scores), scores.shape[1] - 1
    floors = _check_thresholds(iou_threshold, score_threshold, classes)
    everything = max_detections is None or max_detections == -1
    limit = detection_limit(max_detections, rois * classes)
    if not rois or not classes or not limit:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)

    bits = scores.view(np.uint32)  # while no score is negative, bits have the order of the floats
    maxima, largest = block_maxima(bits)
    if largest > _INFINITY:
        if np.isnan(scores).any():
            raise ValueError("scores contain NaN")
        bits = np.maximum(scores, np.float32(0)).view(np.uint32)  # a negative score is above no threshold
        maxima, _ = block_maxima(bits)

    lowest = floors.min() + np.uint32(1)
    sample = maxima[:: max(1, maxima.size // _SAMPLE)].ravel()
    share = 1.0 if everything else _FIRST / maxima.size
    while True:
        nth = int(sample.size * (1 - share))
        cut = lowest if nth <= 0 else max(lowest, np.partition(sample, nth)[nth])
        found = candidates(bits, maxima, floors, cut)
        roi, label, values = nms_by_class(*found, boxes, classes, _below(iou_threshold), limit)
        if len(roi) == limit or cut == lowest:
            return roi, label, values.view(np.float32)
        share *= _GROWTH


def batched_nms(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    num_classes: int,
    iou_threshold: float = 0.5,
    max_detections: int | None = 300,
) -> np.ndarray:
    """`class_nms` of N boxes that have one class each, without the (N, K) scores it would take.

    Args:
        boxes: (N, 4) float32 xyxy.
        labels: (N,) int, 0 … K-1.
        scores: (N,) float32; only those above 0 are candidates.
        num_classes: K.
        iou_threshold, max_detections: as of `class_nms`.

    Returns:
        (D,) int64 indices of the boxes that are kept, best first; equal scores by class and then by index, both in
        suppression and in the result.

    Raises:
        ValueError: shapes that do not fit, a NaN, a label or an option out of range.
    """
    boxes, labels, scores = check_batched(boxes, labels, scores, num_classes)
    check_iou_threshold(iou_threshold)
    limit = min(len(scores), detection_limit(max_detections, len(scores)))
    if not limit:
        return np.empty(0, np.int64)
    above = np.flatnonzero(scores > 0)
    found = above.astype(np.int32), labels[above].astype(np.int32), scores[above].view(np.uint32)
    return nms_by_class(*found, boxes, num_classes, _below(iou_threshold), limit)[0]


def check_batched(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first arguments of `batched_nms`, boxes as (N, 1, 4); its errors."""
    labels, scores = np.asarray(labels, np.int64), np.ascontiguousarray(scores, np.float32)
    shapes = np.shape(boxes), labels.shape, scores.shape
    if scores.ndim != 1 or shapes != ((len(scores), 4), scores.shape, scores.shape):
        raise ValueError(f"boxes, labels and scores have shapes {shapes}, expected (N, 4), (N,) and (N,)")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"labels are {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}")
    if np.isnan(scores).any():
        raise ValueError("scores contain NaN")
    return _check_arrays(boxes, scores[:, None])[0], labels, scores


def detection_limit(max_detections: int | None, candidates: int) -> int:
    """`max_detections` as a number, which for None and -1 is that of all candidates. Raises ValueError below -1."""
    limit = candidates if max_detections is None or max_detections == -1 else max_detections
    if limit < 0:
        raise ValueError(f"max_detections is {max_detections}, expected at least 0, or -1 or None for all")
    return limit


def check_iou_threshold(iou_threshold: float) -> None:
    """Raises ValueError unless the threshold is in [0, 1]."""
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold is {iou_threshold}, expected 0 to 1")


def _check_arrays(boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """boxes as (R, 1, 4) or (R, K, 4) and scores as (R, K+1), both contiguous float32."""
    boxes, scores = np.ascontiguousarray(boxes, np.float32), np.ascontiguousarray(scores, np.float32)
    if scores.ndim != 2 or not scores.shape[1]:
        raise ValueError(f"scores have shape {scores.shape}, expected (R, K+1)")
    rois, classes = len(scores), scores.shape[1] - 1
    if boxes.shape not in ((rois, 4), (rois, classes, 4)):
        raise ValueError(f"boxes have shape {boxes.shape}, expected {(rois, 4)} or {(rois, classes, 4)}")
    if boxes.size and np.isnan(boxes.min()):
        raise ValueError("boxes contain NaN")
    return boxes.reshape(rois, -1, 4) if rois else boxes, scores


def _check_thresholds(iou_threshold: float, score_threshold: float | np.ndarray, classes: int) -> np.ndarray:
    """The score thresholds of the classes as (K,) uint32 bits."""
    check_iou_threshold(iou_threshold)
    floors = np.empty(classes, np.float32)
    floors[:] = score_threshold
    if not (floors >= 0).all():
        raise ValueError(f"score_threshold is {score_threshold}, expected at least 0")
    return np.abs(floors).view(np.uint32)  # abs turns -0.0 into 0.0


def _below(threshold: float) -> np.float32:
    """The largest float32 that is not above it: a float32 exceeds the one where it exceeds the other."""
    rounded = np.float32(threshold)
    return rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf))
