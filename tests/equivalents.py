"""The same functions in Numba, NumPy and torch: one table for the tests of correctness and the benchmarks.

NumPy's are the readable references, torch's the standard path.
"""

from __future__ import annotations

import numpy as np
import torch
import torchvision
from pycocotools import mask as coco_mask

from fuse.ops.masks import encode_masks
from fuse.ops.nms import class_nms
from fuse.ops.nms_kernels import argsort_descending
from fuse.ops.score_kernels import replace_columns


def class_nms_numpy(boxes, scores, iou_threshold=0.5, score_threshold=0.0, max_detections=300):
    kept = []
    for c in range(scores.shape[1] - 1):
        box, score = boxes if boxes.ndim == 2 else boxes[:, c], scores[:, c]
        order = np.argsort(-score, kind="stable")
        order = order[score[order] > score_threshold]
        while len(order):
            best, order = order[0], order[1:]
            kept.append((-score[best], c, best))
            order = order[~(_iou(box[best], box[order]) > iou_threshold)]
    kept = sorted(kept)[: None if max_detections in (None, -1) else max_detections]
    score, cls, roi = zip(*kept, strict=True) if kept else ((), (), ())
    return np.array(roi, np.int64), np.array(cls, np.int64), -np.array(score, np.float32)


def class_nms_torch(boxes, scores, iou_threshold=0.5, score_threshold=0.0, max_detections=300):
    kept = []
    for c in range(scores.shape[1] - 1):
        roi = np.flatnonzero(scores[:, c] > score_threshold)
        box = torch.from_numpy((boxes if boxes.ndim == 2 else boxes[:, c])[roi])
        best = torchvision.ops.nms(box, torch.from_numpy(scores[roi, c]), iou_threshold).numpy()
        kept.append(np.stack([roi[best], np.full(len(best), c)], axis=1))
    roi, cls = np.concatenate(kept).T
    order = np.lexsort((roi, cls, -scores[roi, cls]))[: None if max_detections in (None, -1) else max_detections]
    return roi[order], cls[order], scores[roi, cls][order]


def encode_masks_numpy(masks, boxes, height, width):
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


def encode_masks_torch(masks, boxes, height, width):
    pasted = np.zeros((len(masks), height, width), np.uint8)
    for i, (mask, (x1, y1, x2, y2)) in enumerate(zip(masks, boxes.astype(np.float64), strict=True)):
        y, x = (torch.arange(n, dtype=torch.float64) + 0.5 for n in (height, width))
        grid = torch.meshgrid((y - y1) / (y2 - y1) * 2 - 1, (x - x1) / (x2 - x1) * 2 - 1, indexing="ij")
        image = torch.from_numpy(mask.astype(np.float64))[None, None]
        grid = torch.stack(grid[::-1], dim=-1)[None]
        pasted[i] = torch.nn.functional.grid_sample(image, grid, align_corners=False)[0, 0] >= 127.5
    return _encode(pasted)


def replace_columns_numpy(original, calibrated, tail, threshold, scale):
    fused = original.copy()
    new = calibrated[:, :-1] * scale
    new[calibrated[:, :-1] < threshold] = 0
    fused[:, :-1][:, tail] = new[:, tail]
    return fused


def replace_columns_torch(original, calibrated, tail, threshold, scale):
    original, calibrated, every = map(torch.from_numpy, (original, calibrated, np.append(tail, False)))
    return torch.where(every, (calibrated * scale).masked_fill(calibrated < threshold, 0), original).numpy()


def argsort_descending_numpy(scores):
    return np.argsort(-scores.astype(np.int64), kind="stable").astype(np.int32)


def argsort_descending_torch(scores):
    order = torch.from_numpy(scores.astype(np.int64)).argsort(descending=True, stable=True)
    return order.numpy().astype(np.int32)


def _encode(pasted):
    size = list(pasted.shape[1:])
    counts = coco_mask.encode(np.asfortranarray(pasted.transpose(1, 2, 0)))
    return [{"size": size, "counts": c["counts"].decode()} for c in counts]


def _iou(box, boxes):
    """float32, in the order of operations of torchvision's CPU kernel."""
    corner = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    inter = np.maximum(np.float32(0), corner[1] - corner[0]).prod(axis=1)
    area, areas = (box[2:] - box[:2]).prod(), (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (inter / (area + areas - inter)).astype(np.float64)


EQUIVALENTS = {
    "class_nms": {"numba": class_nms, "numpy": class_nms_numpy, "torch": class_nms_torch},
    "replace_columns": {"numba": replace_columns, "numpy": replace_columns_numpy, "torch": replace_columns_torch},
    "argsort_descending": {
        "numba": argsort_descending,
        "numpy": argsort_descending_numpy,
        "torch": argsort_descending_torch,
    },
    "encode_masks": {"numba": encode_masks, "numpy": encode_masks_numpy, "torch": encode_masks_torch},
}
