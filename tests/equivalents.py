"""The kernels in Numba, NumPy and torch: one table for the correctness tests and the benchmarks.

The NumPy functions are readable references, the torch functions the standard path. Letters in shapes: `R` RoIs, `K`
classes, `N` boxes or masks; those of `resampled_ap` are its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from pycocotools import mask as coco_mask

from fuse.evaluation.accumulate import RECALL_THRESHOLDS
from fuse.evaluation.image_bootstrap import ROUNDED_UP
from fuse.ops.array_kernels import argsort_descending
from fuse.ops.masks import encode_masks
from fuse.ops.matching_kernels import IGNORED, TRUE_POSITIVE
from fuse.ops.nms import NMSResult, batched_nms, class_nms
from fuse.ops.resampling_kernels import resampled_ap
from fuse.ops.score_kernels import replace_columns


def class_nms_numpy(
    boxes: np.ndarray,
    scores: np.ndarray,
    iou_threshold: float = 0.5,
    score_threshold: float | np.ndarray = 0.0,
    max_detections: int | None = 300,
) -> NMSResult:
    thresholds = np.broadcast_to(score_threshold, scores.shape[1] - 1)
    kept = []
    for c in range(scores.shape[1] - 1):
        class_boxes, class_scores = boxes if boxes.ndim == 2 else boxes[:, c], scores[:, c]
        order = np.argsort(-class_scores, kind="stable")
        order = order[class_scores[order] > thresholds[c]]
        while len(order):
            best, order = order[0], order[1:]
            kept.append((-class_scores[best], c, best))
            order = order[~(_iou(class_boxes[best], class_boxes[order]) > iou_threshold)]
    kept = sorted(kept)[: None if max_detections in (None, -1) else max_detections]
    score, class_index, roi_index = zip(*kept, strict=True) if kept else ((), (), ())
    return NMSResult(np.array(roi_index, np.int64), np.array(class_index, np.int64), -np.array(score, np.float32))


def class_nms_torch(
    boxes: np.ndarray,
    scores: np.ndarray,
    iou_threshold: float = 0.5,
    score_threshold: float | np.ndarray = 0.0,
    max_detections: int | None = 300,
) -> NMSResult:
    import torchvision  # not for the tests without frameworks

    thresholds = np.broadcast_to(score_threshold, scores.shape[1] - 1)
    kept = []
    for c in range(scores.shape[1] - 1):
        roi = np.flatnonzero(scores[:, c] > thresholds[c])
        class_boxes = torch.from_numpy((boxes if boxes.ndim == 2 else boxes[:, c])[roi])
        best = torchvision.ops.nms(class_boxes, torch.from_numpy(scores[roi, c]), iou_threshold).numpy()
        kept.append(np.stack([roi[best], np.full(len(best), c)], axis=1))
    roi, label = np.concatenate(kept).T
    order = np.lexsort((roi, label, -scores[roi, label]))[: None if max_detections in (None, -1) else max_detections]
    return NMSResult(roi[order], label[order], scores[roi, label][order])


def batched_nms_numpy(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    num_classes: int,
    iou_threshold: float = 0.5,
    max_detections: int | None = 300,
) -> np.ndarray:
    per_class = _scores_per_class(labels, scores, num_classes)
    return class_nms_numpy(boxes, per_class, iou_threshold, 0.0, max_detections).roi_index


def batched_nms_torch(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    num_classes: int,
    iou_threshold: float = 0.5,
    max_detections: int | None = 300,
) -> np.ndarray:
    per_class = _scores_per_class(labels, scores, num_classes)
    return class_nms_torch(boxes, per_class, iou_threshold, 0.0, max_detections).roi_index


def encode_masks_numpy(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> list[dict]:
    pasted = np.zeros((len(masks), height, width), np.uint8)
    for i, (mask, (x1, y1, x2, y2)) in enumerate(zip(masks, boxes.astype(np.float64), strict=True)):
        padded, side = np.pad(mask.astype(np.float64), 1), len(mask)
        for y in range(max(0, int(np.ceil(y1 - 0.5))), min(height - 1, int(np.floor(y2 - 0.5))) + 1):
            for x in range(max(0, int(np.ceil(x1 - 0.5))), min(width - 1, int(np.floor(x2 - 0.5))) + 1):
                v, u = ((y + 0.5 - y1) / (y2 - y1) * side + 0.5, (x + 0.5 - x1) / (x2 - x1) * side + 0.5)
                j, k = min(int(v), side), min(int(u), side)
                cells = padded[j : j + 2, k : k + 2]
                pasted[i, y, x] = [1 - v + j, v - j] @ cells @ [1 - u + k, u - k] >= 127.5
    return _encode(pasted)


def encode_masks_torch(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> list[dict]:
    pasted = np.zeros((len(masks), height, width), np.uint8)
    for i, (mask, (x1, y1, x2, y2)) in enumerate(zip(masks, boxes.astype(np.float64), strict=True)):
        y, x = (torch.arange(n, dtype=torch.float64) + 0.5 for n in (height, width))
        grid = torch.meshgrid((y - y1) / (y2 - y1) * 2 - 1, (x - x1) / (x2 - x1) * 2 - 1, indexing="ij")
        image = torch.from_numpy(mask.astype(np.float64))[None, None]
        grid = torch.stack(grid[::-1], dim=-1)[None]
        pasted[i] = torch.nn.functional.grid_sample(image, grid, align_corners=False)[0, 0] >= 127.5
    return _encode(pasted)


def replace_columns_numpy(
    original: np.ndarray, calibrated: np.ndarray, tail_mask: np.ndarray, threshold: np.float32, scale: np.float32
) -> np.ndarray:
    fused = original.copy()
    new = calibrated[:, :-1] * scale
    new[calibrated[:, :-1] < threshold] = 0
    fused[:, :-1][:, tail_mask] = new[:, tail_mask]
    return fused


def replace_columns_torch(
    original: np.ndarray, calibrated: np.ndarray, tail_mask: np.ndarray, threshold: np.float32, scale: np.float32
) -> np.ndarray:
    old, new, columns = map(torch.from_numpy, (original, calibrated, np.append(tail_mask, False)))
    return torch.where(columns, (new * scale).masked_fill(new < threshold, 0), old).numpy()


def argsort_descending_numpy(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores.astype(np.int64), kind="stable").astype(np.int32)


def argsort_descending_torch(scores: np.ndarray) -> np.ndarray:
    order = torch.from_numpy(scores.astype(np.int64)).argsort(descending=True, stable=True)
    return order.numpy().astype(np.int32)


def resampled_ap_numba(
    weights: np.ndarray,
    classes: np.ndarray,
    images: np.ndarray,
    outcomes: np.ndarray,
    gt_classes: np.ndarray,
    gt_images: np.ndarray,
    thresholds: np.ndarray,
    members: np.ndarray,
) -> np.ndarray:
    shape = len(thresholds), weights.shape[1]
    sums, counts = np.zeros(shape), np.zeros(shape, np.int32)
    resampled_ap(
        weights, classes, images, outcomes, gt_classes, gt_images, ROUNDED_UP, thresholds, members, sums, counts
    )
    return np.divide(sums, counts, out=np.full(shape, np.nan), where=counts > 0)


def resampled_ap_numpy(
    weights: np.ndarray,
    classes: np.ndarray,
    images: np.ndarray,
    outcomes: np.ndarray,
    gt_classes: np.ndarray,
    gt_images: np.ndarray,
    thresholds: np.ndarray,
    members: np.ndarray,
) -> np.ndarray:
    ap = np.full((len(classes) - 1, outcomes.shape[1], weights.shape[1]), np.nan)
    for k, t, b in np.ndindex(ap.shape):
        positives = weights[gt_images[gt_classes[k] : gt_classes[k + 1]], b].sum()
        if positives:
            found = slice(classes[k], classes[k + 1])
            drawn = np.repeat(outcomes[found, t], weights[images[found], b])  # a detection per draw of its image
            hits = np.cumsum(drawn[drawn != IGNORED] == TRUE_POSITIVE)
            precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
            ap[k, t, b] = np.append(precision, 0.0)[
                np.minimum(np.searchsorted(hits / positives, RECALL_THRESHOLDS), len(hits))
            ].mean()
    chosen = [ap.mean(axis=1) if t < 0 else ap[:, t] for t in thresholds]
    return np.stack([pd.DataFrame(one[of]).mean().to_numpy() for one, of in zip(chosen, members, strict=True)])


def _scores_per_class(labels: np.ndarray, scores: np.ndarray, num_classes: int) -> np.ndarray:
    """(N, K+1) float32, each box's score (N,) in the column of its label (N,), 0 elsewhere."""
    per_class = np.zeros((len(scores), num_classes + 1), np.float32)
    per_class[np.arange(len(scores)), labels] = scores
    return per_class


def _encode(pasted: np.ndarray) -> list[dict]:
    """Masks (N, height, width) uint8 as compressed COCO RLE."""
    size = list(pasted.shape[1:])
    counts = coco_mask.encode(np.asfortranarray(pasted.transpose(1, 2, 0)))
    return [{"size": size, "counts": c["counts"].decode()} for c in counts]


def _iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of a box (4,) with boxes (N, 4), in float32 in the order of operations of torchvision's CPU kernel."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    intersection = np.maximum(np.float32(0), high - low).prod(axis=1)
    area, areas = (box[2:] - box[:2]).prod(), (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (intersection / (area + areas - intersection)).astype(np.float64)


EQUIVALENTS: dict[str, dict[str, Callable]] = {
    "class_nms": {"numba": class_nms, "numpy": class_nms_numpy, "torch": class_nms_torch},
    "batched_nms": {"numba": batched_nms, "numpy": batched_nms_numpy, "torch": batched_nms_torch},
    "replace_columns": {"numba": replace_columns, "numpy": replace_columns_numpy, "torch": replace_columns_torch},
    "argsort_descending": {
        "numba": argsort_descending,
        "numpy": argsort_descending_numpy,
        "torch": argsort_descending_torch,
    },
    "encode_masks": {"numba": encode_masks, "numpy": encode_masks_numpy, "torch": encode_masks_torch},
    "resampled_ap": {"numba": resampled_ap_numba, "numpy": resampled_ap_numpy},  # torch has nothing like it
}
"""Each kernel's functions by framework. All return the same, bit for bit, but for the rounding of resampled AP."""
