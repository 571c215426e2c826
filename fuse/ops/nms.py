"""Exact NMS per class over all classes of all proposals (multi-class NMS).

At 1,000 proposals, 1,230 classes and threshold 0.0 there are 1,230,000 candidates, of which `max_detections` are
kept. Only a candidate with a higher score can remove a candidate, so low scores do not change what is kept above them.
`class_nms` therefore takes the maximum of each block of classes in one pass, derives from these maxima a score that
some thousand candidates reach, and sorts only those candidates and runs NMS on them. If too few are kept, it starts
again from a lower score. The result is exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fuse.defaults import IOU_THRESHOLD, MAX_DETECTIONS, SCORE_THRESHOLD
from fuse.ops.nms_kernels import block_maxima, nms_by_class, select_candidates

FIRST_BLOCKS = 1024
"""Blocks of classes whose maxima reach the first `min_score`."""
GROWTH = 4
"""Factor on the number of these blocks if too few detections are kept."""
CANDIDATES_PER_DETECTION = 8
"""So many of the best candidates are tried first, times the detections wanted: more are rarely needed."""
MIN_SAMPLE = 4096
"""Block maxima that `min_score` is estimated from, at least."""
INFINITY_BITS = 0x7F800000
"""Bits of float32 infinity; the bits of NaN and of negative numbers are larger as unsigned integers."""


class NMSResult(NamedTuple):
    """D detections, best first: roi_index (D,) int64, class_index (D,) int64, score (D,) float32."""

    roi_index: np.ndarray
    class_index: np.ndarray
    score: np.ndarray


def class_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    iou_threshold: float = IOU_THRESHOLD,
    score_threshold: float | np.ndarray = SCORE_THRESHOLD,
    max_detections: int | None = MAX_DETECTIONS,
) -> NMSResult:
    """Runs greedy NMS on each class by itself and returns the best `max_detections` of all classes.

    Candidates are the scores strictly above `score_threshold`. A kept box removes boxes of its class whose IoU with
    it is above `iou_threshold`, computed in float32 as `torchvision.ops.nms` does on the CPU. The order is by
    descending score, equal scores by class and then by RoI, both in NMS and in the result.

    Args:
        boxes: (R, 4) float32 xyxy shared by the classes, or (R, K, 4) of a class-specific regressor.
        scores: (R, K+1) float32, background last; background is never detected.
        iou_threshold: in [0, 1].
        score_threshold: at least 0; an array (K,) sets one per class.
        max_detections: kept over all classes; None or -1 keeps all.

    Raises:
        ValueError: shapes that do not fit, a NaN, or a threshold out of range.
    """
    boxes, scores = _check_arrays(boxes, scores)
    num_classes = scores.shape[1] - 1
    class_thresholds = _check_thresholds(iou_threshold, score_threshold, num_classes)
    all_scores = len(scores) * num_classes
    limit = detection_limit(max_detections, all_scores)
    if not all_scores or not limit:
        return NMSResult(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    bits, maxima = _score_bits(scores)
    lowest = class_thresholds.min() + np.uint32(1)
    sample = maxima[:: max(1, maxima.size // MIN_SAMPLE)].ravel()
    share = 1.0 if limit >= all_scores else FIRST_BLOCKS / maxima.size  # of the blocks
    while True:
        nth = int(sample.size * (1 - share))
        min_score = lowest if nth <= 0 else max(lowest, np.partition(sample, nth)[nth])
        candidates = select_candidates(bits, maxima, class_thresholds, min_score)
        few = _best_candidates(*candidates, CANDIDATES_PER_DETECTION * limit)
        found = nms_by_class(*few, boxes, num_classes, _round_down(iou_threshold), limit)
        if len(found[0]) < limit and len(few[0]) < len(candidates[0]):
            found = nms_by_class(*candidates, boxes, num_classes, _round_down(iou_threshold), limit)
        roi_index, class_index, score = found
        if len(roi_index) == limit or min_score == lowest:
            return NMSResult(roi_index, class_index, score.view(np.float32))
        share *= GROWTH


def _best_candidates(
    roi_index: np.ndarray, class_index: np.ndarray, score: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the `count` candidates of the best scores, and those of the same score as the last, in their order."""
    if 2 * count > len(score):
        return roi_index, class_index, score
    chosen = np.flatnonzero(score >= np.partition(score, len(score) - count)[len(score) - count])
    return roi_index.take(chosen), class_index.take(chosen), score.take(chosen)


def batched_nms(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    num_classes: int,
    iou_threshold: float = IOU_THRESHOLD,
    max_detections: int | None = MAX_DETECTIONS,
) -> np.ndarray:
    """Runs `class_nms` on N boxes that have one class each, without their (N, K+1) scores.

    Args:
        boxes: (N, 4) float32 xyxy.
        labels: (N,) int, 0 … K-1.
        scores: (N,) float32; only scores above 0 are candidates.
        num_classes: K.
        iou_threshold, max_detections: as of `class_nms`.

    Returns:
        (D,) int64 indices of the kept boxes, best first; equal scores by class and then by index, both in NMS and in
        the result.

    Raises:
        ValueError: shapes that do not fit, a NaN, a label or an option out of range.
    """
    boxes, labels, scores = check_batched(boxes, labels, scores, num_classes)
    check_iou_threshold(iou_threshold)
    limit = min(len(scores), detection_limit(max_detections, len(scores)))
    if not limit:
        return np.empty(0, np.int64)
    positive = np.flatnonzero(scores > 0)
    candidates = positive.astype(np.int32), labels[positive].astype(np.int32), scores[positive].view(np.uint32)
    return nms_by_class(*candidates, boxes, num_classes, _round_down(iou_threshold), limit)[0]


def check_batched(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the first three arguments of `batched_nms`, boxes as (N, 1, 4); raises its errors."""
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
    """Returns `max_detections` as a number, where None and -1 mean all candidates. Raises ValueError below -1."""
    limit = candidates if max_detections is None or max_detections == -1 else max_detections
    if limit < 0:
        raise ValueError(f"max_detections is {max_detections}, expected at least 0, or -1 or None for all")
    return limit


def check_iou_threshold(iou_threshold: float) -> None:
    """Raises ValueError unless the threshold is in [0, 1]."""
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold is {iou_threshold}, expected 0 to 1")


def _check_arrays(boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes as (R, 1, 4) or (R, K, 4) and scores as (R, K+1), both contiguous float32."""
    boxes, scores = np.ascontiguousarray(boxes, np.float32), np.ascontiguousarray(scores, np.float32)
    if scores.ndim != 2 or not scores.shape[1]:
        raise ValueError(f"scores have shape {scores.shape}, expected (R, K+1)")
    num_rois, num_classes = len(scores), scores.shape[1] - 1
    if boxes.shape not in ((num_rois, 4), (num_rois, num_classes, 4)):
        raise ValueError(f"boxes have shape {boxes.shape}, expected {(num_rois, 4)} or {(num_rois, num_classes, 4)}")
    if boxes.size and np.isnan(boxes.min()):
        raise ValueError("boxes contain NaN")
    return boxes.reshape(num_rois, -1, 4) if num_rois else boxes, scores


def _check_thresholds(iou_threshold: float, score_threshold: float | np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the score thresholds of the classes as (K,) uint32 bits."""
    check_iou_threshold(iou_threshold)
    class_thresholds = np.empty(num_classes, np.float32)
    class_thresholds[:] = score_threshold
    if not (class_thresholds >= 0).all():
        raise ValueError(f"score_threshold is {score_threshold}, expected at least 0")
    return np.abs(class_thresholds).view(np.uint32)  # abs turns -0.0 into 0.0


def _score_bits(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores as (R, K+1) uint32 bits, negative scores as 0, and their `block_maxima`.

    Raises ValueError for NaN.
    """
    bits = scores.view(np.uint32)
    maxima, largest = block_maxima(bits)
    if largest <= INFINITY_BITS:
        return bits, maxima
    if np.isnan(scores).any():
        raise ValueError("scores contain NaN")
    bits = np.maximum(scores, np.float32(0)).view(np.uint32)  # a negative score is above no threshold
    return bits, block_maxima(bits)[0]


def _round_down(threshold: float) -> np.float32:
    """Returns the largest float32 not above the threshold: a float32 IoU is above both or neither."""
    rounded = np.float32(threshold)
    return rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf))
