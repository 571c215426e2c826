"""Merges the results of several detectors, or of one detector with test-time augmentation (TTA), into one result.

Tables 9 and 10 of Wang et al. 2019. Each result has been through its own NMS and cap; how it was made does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import NamedTuple, get_args

import numpy as np

from extract.detectors.base import ImageDetections
from extract.utils.optional import require
from extract.utils.progress import progress_bar
from fuse.config import MergeMethod
from fuse.defaults import IOU_THRESHOLD, MAX_DETECTIONS
from fuse.detections import Detections, positions_by_image
from fuse.ops.nms import batched_nms, check_batched, check_iou_threshold, detection_limit

METHODS: tuple[str, ...] = get_args(MergeMethod)


class MergedImage(NamedTuple):
    """One image's merged detections.

    Attributes:
        detections: D detections, best first.
        indices: (D,) int64, their indices in the concatenated results; None for "wbf", which makes new boxes.
    """

    detections: ImageDetections
    indices: np.ndarray | None


def merge_detections(
    results: Sequence[Detections],
    *,
    method: MergeMethod = "nms",
    iou_threshold: float = IOU_THRESHOLD,
    max_detections: int | None = MAX_DETECTIONS,
    weights: Sequence[float] | None = None,
    sizes: Mapping[int, tuple[int, int]] | None = None,
    progress: bool = True,
) -> Detections:
    """Merges results image by image with `merge_image`.

    Args:
        results: two or more; an image may be missing in some of them.
        method, iou_threshold, max_detections, weights: as of `merge_image`.
        sizes: (height, width) of every image by its id; needed for "wbf".
        progress: show progress on stderr.

    Returns:
        Images by ascending id, the detections of each best first; for "wbf" without masks, because its boxes are new.

    Raises:
        ValueError: fewer than two results, for "nms" masks in some only, and what `merge_image` raises, with the image.
    """
    check_options(len(results), method, iou_threshold, max_detections, weights)
    masks = method == "nms" and have_masks({f"result {i}": result for i, result in enumerate(results, start=1)})
    every = _concatenate(results, masks)
    sizes = _check_sizes(sizes, every.image_ids) if method == "wbf" else {}
    category_ids, labels = np.unique(every.category_ids, return_inverse=True)
    result_starts = np.cumsum([len(result) for result in results])[:-1]
    merged = [every.take(slice(0))]
    for positions in progress_bar(positions_by_image(every.image_ids), desc="merge", unit="image", shown=progress):
        image_id = int(every.image_ids[positions[0]])
        by_result = np.split(positions, np.searchsorted(positions, result_starts))
        try:
            (boxes, image_labels, scores), indices = merge_image(
                [ImageDetections(every.boxes[index], labels[index], every.scores[index]) for index in by_result],
                len(category_ids),
                method=method,
                iou_threshold=iou_threshold,
                max_detections=max_detections,
                weights=weights,
                size=sizes.get(image_id),
            )
        except ValueError as error:
            raise ValueError(f"image {image_id}: {error}") from error
        image_ids = np.full(len(scores), image_id)
        rles = [every.rles[i] for i in positions[indices]] if every.rles is not None else None
        merged.append(Detections(image_ids, category_ids[image_labels], scores, boxes, rles))
    return _concatenate(merged, masks)


def merge_image(
    results: Sequence[ImageDetections],
    num_classes: int,
    *,
    method: MergeMethod = "nms",
    iou_threshold: float = IOU_THRESHOLD,
    max_detections: int | None = MAX_DETECTIONS,
    weights: Sequence[float] | None = None,
    size: tuple[int, int] | None = None,
) -> MergedImage:
    """Merges one image's detections of several detectors or views.

    * "nms": class-aware NMS over all results (`batched_nms`), which keeps the best of overlapping boxes of a class;
      equal scores by class, then the earlier result first.
    * "wbf": weighted box fusion (Solovyev et al. 2021), which averages overlapping boxes of a class, weighted by
      score. Their mean score is scaled by the share of results that have the box: one of four keeps a quarter. A result
      has one vote: of its boxes of one object, only the best counts. So no score exceeds the best of its boxes.

    Args:
        results: two or more; labels 0 … K-1. Detections of score 0 are dropped.
        num_classes: K.
        method: one of `METHODS`.
        iou_threshold: boxes of a class with a larger IoU are one object.
        max_detections: kept over all results, best first; None or -1 keeps all.
        weights: of the results, relative to the largest; equal by default. "nms" multiplies scores by them.
        size: (height, width) of the image; needed for "wbf".

    Raises:
        ValueError: an option out of range or missing, a NaN, a label out of range.
    """
    check_options(len(results), method, iou_threshold, max_detections, weights)
    relative = np.ones(len(results)) if weights is None else np.asarray(weights, np.float64) / max(weights)
    boxes, labels, scores = map(np.concatenate, zip(*results, strict=True))
    if method == "wbf":
        check_batched(boxes, labels, scores, num_classes)
        fused = _fuse_boxes(results, num_classes, relative, iou_threshold, size)
        limit = detection_limit(max_detections, len(fused.scores))
        return MergedImage(ImageDetections(*(column[:limit] for column in fused)), None)
    scores = scores * np.repeat(relative.astype(np.float32), [len(result.scores) for result in results])
    indices = batched_nms(boxes, labels, scores, num_classes, iou_threshold, max_detections)
    return MergedImage(ImageDetections(boxes[indices], labels[indices], scores[indices]), indices)


def have_masks(results: Mapping[str, Detections]) -> bool:
    """Returns whether the results have masks. Raises ValueError naming one without masks where another has them."""
    with_masks = [name for name, result in results.items() if result.rles is not None]
    without = [name for name, result in results.items() if result.rles is None and len(result)]
    if with_masks and without:
        raise ValueError(
            f"{without[0]} has no masks and {with_masks[0]} has, expected masks in all results or in none; "
            "method 'wbf' merges boxes alone"
        )
    return bool(with_masks)


def check_options(
    count: int, method: str, iou_threshold: float, max_detections: int | None, weights: Sequence[float] | None
) -> None:
    """Raises ValueError for an option of `merge_image` that is out of range; `count` is the number of results."""
    if count < 2:
        raise ValueError(f"results are {count}, expected at least 2")
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected {' or '.join(map(repr, METHODS))}")
    check_iou_threshold(iou_threshold)
    detection_limit(max_detections, 0)
    if weights is None:
        return
    if len(weights) != count:
        raise ValueError(f"weights are {tuple(weights)}, expected {count}, one for each result")
    if not all(0 < weight < np.inf for weight in weights):
        raise ValueError(f"weights are {tuple(weights)}, expected numbers above 0")


def _check_sizes(sizes: Mapping[int, tuple[int, int]] | None, image_ids: np.ndarray) -> Mapping[int, tuple[int, int]]:
    """Returns the sizes. Raises ValueError unless there is one for every image."""
    if sizes is None:
        raise ValueError("sizes is None, expected the (height, width) of every image: method 'wbf' needs them")
    for image_id in np.unique(image_ids).tolist():
        if image_id not in sizes:
            raise ValueError(f"sizes has no image {image_id}, which has detections")
    return sizes


def _concatenate(results: Sequence[Detections], masks: bool) -> Detections:
    """Concatenates results; with `masks`, all that have detections have masks."""
    return Detections(
        image_ids=np.concatenate([result.image_ids for result in results]),
        category_ids=np.concatenate([result.category_ids for result in results]),
        scores=np.concatenate([result.scores for result in results]),
        boxes=np.concatenate([result.boxes for result in results]),
        rles=[rle for result in results for rle in result.rles or []] if masks else None,
    )


def _fuse_boxes(
    results: Sequence[ImageDetections],
    num_classes: int,
    weights: np.ndarray,
    iou_threshold: float,
    size: tuple[int, int] | None,
) -> ImageDetections:
    """Runs weighted box fusion on one image; best first. `weights` of the results, `size` (height, width)."""
    if size is None:
        raise ValueError("size is None, expected the (height, width) of the image: method 'wbf' needs it")
    library = require("ensemble_boxes", extra="ensemble").ensemble_boxes_wbf
    scale = np.array([size[1], size[0]] * 2, np.float64)
    columns = zip(*(_candidates(result, num_classes, iou_threshold, scale) for result in results), strict=True)
    by_class = library.prefilter_boxes(*columns, weights, 0.0)
    fused = [_fuse_class(candidates, iou_threshold, library) for candidates in by_class.values()]
    rows = np.concatenate([np.empty((0, 8)), *fused])
    labels, scores, boxes = rows[:, 0].astype(np.int64), rows[:, 1] / weights.sum(), rows[:, 4:] * scale
    order = np.lexsort((labels, -scores))
    return ImageDetections(boxes[order].astype(np.float32), labels[order], scores[order].astype(np.float32))


def _fuse_class(candidates: np.ndarray, iou_threshold: float, library: ModuleType) -> np.ndarray:
    """Fuses the boxes of one class as `library.weighted_boxes_fusion` does, but with one vote per result.

    The library counts every box: an object that a result has twice would weigh more than the share of results that
    have it.

    Args:
        candidates: (N, 8) float64, best first: label, score times weight, weight, number of the result, box.
        iou_threshold: boxes with a larger IoU are one object.
        library: `ensemble_boxes.ensemble_boxes_wbf`.

    Returns:
        (M, 8) float64, the fused boxes in the same columns; their score is the sum of the votes.
    """
    fused, votes = np.empty((0, 8)), []
    for candidate in candidates:
        index, _ = library.find_matching_box_fast(fused, candidate, iou_threshold)
        if index < 0:
            votes.append([candidate])
            fused = np.vstack([fused, candidate])
        elif candidate[3] not in [vote[3] for vote in votes[index]]:
            votes[index].append(candidate)
            fused[index] = library.get_weighted_box(votes[index])
    fused[:, 1] = [sum(vote[1] for vote in group) for group in votes]
    return fused


def _candidates(
    result: ImageDetections, num_classes: int, iou_threshold: float, scale: np.ndarray
) -> tuple[list, list, list]:
    """Returns boxes divided by `scale` (4,) and clipped to the image, scores and labels.

    Drops boxes without area and scores of 0, for which the library warns, and by NMS what the result has twice.
    """
    boxes = (result.boxes / scale).clip(0, 1)
    index = np.flatnonzero((result.scores > 0) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    columns = boxes[index], result.labels[index], result.scores[index]
    best = batched_nms(*columns, num_classes, iou_threshold, None)
    boxes, labels, scores = (column[best].tolist() for column in columns)
    return boxes, scores, labels
