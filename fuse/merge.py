"""The detections of several detectors, or of one detector at several scales and mirrored, joined into one result.

Tables 9 and 10 of Wang et al. 2019: every part detects by itself, suppression and cap included. Each part is a
result file like any other, so what made it does not matter here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from tqdm import tqdm

from extract.detectors.base import ImageDetections
from extract.utils.optional import require
from fuse.config import MergeMethod
from fuse.detections import Detections
from fuse.ops.nms import batched_nms, check_batched, check_iou_threshold, detection_limit

METHODS = get_args(MergeMethod)
_NOTHING = ImageDetections(np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, np.float32))


def merge_detections(
    parts: Sequence[Detections],
    *,
    method: MergeMethod = "nms",
    iou_threshold: float = 0.5,
    max_detections: int | None = 300,
    weights: Sequence[float] | None = None,
    sizes: Mapping[int, tuple[int, int]] | None = None,
    progress: bool = False,
) -> Detections:
    """The detections of several results as one, image by image as `merge_image` joins them.

    Args:
        parts: two or more results; an image that some of them lack has the detections of the others.
        method, iou_threshold, max_detections, weights: as of `merge_image`.
        sizes: (height, width) of every image by its id; needed for "wbf".
        progress: show a bar on stderr.

    Returns:
        Images in ascending order of their id, the detections of each best first. "nms" keeps the masks; "wbf" makes
        boxes that no mask belongs to, and returns none.

    Raises:
        ValueError: fewer than two parts, an option out of range, for "nms" parts with and without masks, and what
            `merge_image` raises, with the image.
    """
    check_options(len(parts), method, iou_threshold, max_detections, weights)
    if method == "wbf" and sizes is None:
        raise ValueError("sizes is None, expected the (height, width) of every image: method 'wbf' needs them")
    masked = method == "nms" and have_masks({f"part {i}": part for i, part in enumerate(parts, start=1)})
    options = {"method": method, "iou_threshold": iou_threshold, "max_detections": max_detections, "weights": weights}
    joined = _joined(parts)
    category_ids, labels = np.unique(joined.category_ids, return_inverse=True)
    images, found, origins = [joined.image_ids[:0]], [_NOTHING], [np.empty(0, np.int64)]
    groups = _by_image(joined.image_ids)
    starts = np.cumsum([len(part) for part in parts])[:-1]
    for group in tqdm(groups, desc="merge", unit="image", disable=None if progress else True):
        image_id = int(joined.image_ids[group[0]])
        if method == "wbf" and image_id not in sizes:
            raise ValueError(f"sizes has no image {image_id}, which has detections")
        views = np.split(group, np.searchsorted(group, starts))
        views = [ImageDetections(joined.boxes[view], labels[view], joined.scores[view]) for view in views]
        try:
            merged, origin = merge_image(views, len(category_ids), size=(sizes or {}).get(image_id), **options)
        except ValueError as error:
            raise ValueError(f"image {image_id}: {error}") from error
        images.append(np.full(len(merged.scores), image_id))
        found.append(merged)
        origins.append(group[:0] if origin is None else group[origin])
    box, label, score = (np.concatenate(columns) for columns in zip(*found, strict=True))
    rle = [joined.rles[i] for i in np.concatenate(origins)] if masked else None
    return Detections(np.concatenate(images), category_ids[label], score, box, rle)


def merge_image(
    parts: Sequence[ImageDetections],
    num_classes: int,
    *,
    method: MergeMethod = "nms",
    iou_threshold: float = 0.5,
    max_detections: int | None = 300,
    weights: Sequence[float] | None = None,
    size: tuple[int, int] | None = None,
) -> tuple[ImageDetections, np.ndarray | None]:
    """One image's detections by several detectors or of several views as one.

    * "nms": of boxes of a class that overlap the best stays as it is (`batched_nms`); equal scores by class, then
      the earlier part first.
    * "wbf": weighted box fusion (Solovyev et al. 2021): boxes of a class that overlap become their mean, weighted
      by score. Their mean score is rescaled by how many parts agree: a box that one of four parts found keeps a
      quarter of its score. No mask belongs to such a box.

    Args:
        parts: two or more; labels 0 … K-1. Detections of score 0 are left out.
        num_classes: K.
        method: one of `METHODS`.
        iou_threshold: boxes of a class that overlap more are one object.
        max_detections: kept of all parts together, best first; None or -1 keeps all.
        weights: how much each part counts beside the one that counts most; all alike by default. "nms" multiplies
            scores by it.
        size: (height, width) of the image; needed for "wbf".

    Returns:
        The detections, best first; and (D,) int64, which of the concatenated inputs each one is, None for "wbf".

    Raises:
        ValueError: an option out of range or missing, a NaN, a label out of range.
    """
    check_options(len(parts), method, iou_threshold, max_detections, weights)
    shares = np.ones(len(parts)) if weights is None else np.asarray(weights, np.float64) / max(weights)
    boxes, labels, scores = map(np.concatenate, zip(*parts, strict=True))
    if method == "wbf":
        check_batched(boxes, labels, scores, num_classes)
        fused = _fuse_boxes(parts, shares, iou_threshold, size)
        kept = detection_limit(max_detections, len(fused.scores))
        return ImageDetections(*(column[:kept] for column in fused)), None
    scores = scores * np.repeat(shares.astype(np.float32), [len(part.scores) for part in parts])
    origin = batched_nms(boxes, labels, scores, num_classes, iou_threshold, max_detections)
    return ImageDetections(boxes[origin], labels[origin], scores[origin]), origin


def have_masks(parts: Mapping[str, Detections]) -> bool:
    """Whether the parts, by name, have masks; raises ValueError naming one that lacks them where another has them."""
    masked = [name for name, part in parts.items() if part.rles is not None]
    bare = [name for name, part in parts.items() if part.rles is None and len(part)]  # no detections need no masks
    if masked and bare:
        raise ValueError(
            f"{bare[0]} has no masks and {masked[0]} has, expected masks in all parts or in none; "
            "method 'wbf' joins boxes alone"
        )
    return bool(masked)


def check_options(
    parts: int, method: str, iou_threshold: float, max_detections: int | None, weights: Sequence[float] | None
) -> None:
    """Raises ValueError for an option of `merge_image` that is out of range, given the number of parts."""
    if parts < 2:
        raise ValueError(f"parts are {parts}, expected at least 2")
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected {' or '.join(map(repr, METHODS))}")
    check_iou_threshold(iou_threshold)
    detection_limit(max_detections, 0)
    if weights is None:
        return
    if len(weights) != parts:
        raise ValueError(f"weights are {tuple(weights)}, expected {parts}, one for each part")
    if not all(0 < weight < np.inf for weight in weights):
        raise ValueError(f"weights are {tuple(weights)}, expected numbers above 0")


def _joined(parts: Sequence[Detections]) -> Detections:
    """All detections below one another, masks where there are any."""
    columns = ("image_ids", "category_ids", "scores", "boxes")
    arrays = [np.concatenate([getattr(part, column) for part in parts]) for column in columns]
    masked = any(part.rles is not None for part in parts)
    return Detections(*arrays, [mask for part in parts for mask in part.rles or [None] * len(part)] if masked else None)


def _by_image(image_id: np.ndarray) -> list[np.ndarray]:
    """Ascending positions of each image's detections, images by ascending id."""
    order = np.argsort(image_id, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(image_id[order])) + 1) if len(order) else []


def _fuse_boxes(
    parts: Sequence[ImageDetections], weights: np.ndarray, iou_threshold: float, size: tuple[int, int] | None
) -> ImageDetections:
    """Weighted box fusion of one image, best first. `weights` (P,), `size` (height, width)."""
    if size is None:
        raise ValueError("size is None, expected the (height, width) of the image: method 'wbf' needs it")
    library = require("ensemble_boxes", extra="ensemble")
    scale = np.array([size[1], size[0]] * 2, np.float64)
    columns = zip(*(_fractions(part, scale) for part in parts), strict=True)
    boxes, scores, labels = library.weighted_boxes_fusion(*columns, weights=weights, iou_thr=iou_threshold)
    order = np.lexsort((labels, -scores))
    boxes, labels, scores = boxes[order] * scale, labels[order], scores[order]
    return ImageDetections(boxes.astype(np.float32), labels.astype(np.int64), scores.astype(np.float32))


def _fractions(part: ImageDetections, scale: np.ndarray) -> tuple[list, list, list]:
    """Boxes in fractions of the image and clipped to it, scores, labels: without what the library warns of."""
    boxes = (part.boxes / scale).clip(0, 1)
    kept = (part.scores > 0) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return boxes[kept].tolist(), part.scores[kept].tolist(), part.labels[kept].tolist()
