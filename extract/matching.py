"""Matches proposals with ground truth, and samples the RoIs that a train cache keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from extract.rois import RoIs

BACKGROUND_IOU = 0.1
"""Lower bound of the IoU of background RoIs in a train cache; the upper bound is the matching IoU."""
IGNORE = -1
"""Label of RoIs that are neither a class nor background."""
UNUSED_CLASS = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The annotated objects of one image.

    Attributes:
        boxes: (G, 4) float32 xyxy.
        labels: (G,) int32 contiguous classes.
        ids: (G,) int64 annotation ids.
        crowd: (G,) bool, regions of many objects.
        exhaustive: whether all objects of the annotated classes are annotated.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    crowd: np.ndarray
    exhaustive: bool = True


class Matches(NamedTuple):
    """Labels (P,) int32, IoU (P,) float32 and annotation ids (P,) int64 of proposals; id -1 where nothing overlaps."""

    labels: np.ndarray
    ious: np.ndarray
    ids: np.ndarray


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the IoU of boxes (P, 4) with boxes (G, 4), xyxy: (P, G) float32; 0 for boxes without area."""
    inter, area_a, area_b = _overlap(a, b)
    union = area_a[:, None] + area_b[None, :] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def match(proposals: np.ndarray, gt: GroundTruth, iou_threshold: float, num_classes: int) -> Matches:
    """Matches proposals (P, 4) with the ground-truth box of largest IoU.

    A proposal gets the class of that box if the IoU is at least `iou_threshold`, else background (`num_classes`).
    Background becomes ignore (-1) where it is uncertain: in images that are not annotated exhaustively, and if at least
    the share `iou_threshold` of the proposal lies in a crowd region. In a federated dataset "background" only means
    that no *annotated* object is there, as in the paper.
    """
    proposals = np.asarray(proposals, np.float32)
    single = ~gt.crowd
    labels = np.full(len(proposals), num_classes, np.int32)
    ious = np.zeros(len(proposals), np.float32)
    ids = np.full(len(proposals), -1, np.int64)
    if single.any() and len(proposals):
        iou = box_iou(proposals, gt.boxes[single])
        best = iou.argmax(1)
        ious = iou[np.arange(len(iou)), best]
        ids = np.where(ious > 0, gt.ids[single][best], -1)
        labels = np.where(ious >= iou_threshold, gt.labels[single][best], num_classes).astype(np.int32)
    if not gt.exhaustive:
        labels[labels == num_classes] = IGNORE
    if gt.crowd.any() and len(proposals):
        inter, area, _ = _overlap(proposals, gt.boxes[gt.crowd])
        inside = (inter >= iou_threshold * area[:, None]).any(1)
        labels[inside & (labels == num_classes)] = IGNORE
    return Matches(labels, ious, ids)


def assign_targets(rois: RoIs, gt: GroundTruth, stages: Sequence[float]) -> RoIs:
    """Returns `rois` with labels, ious and gt_ids of every stage, each by its own proposals and matching IoU.

    Ground-truth RoIs must be in the order of `gt`, without crowd regions. In every stage each matches itself, even if
    another annotation has the same box.
    """
    matches = [match(rois.proposals[:, s], gt, iou, rois.num_classes) for s, iou in enumerate(stages)]
    labels, ious, ids = (np.stack(columns, 1) for columns in zip(*matches, strict=True))
    if rois.is_gt.any():
        single = ~gt.crowd
        labels[rois.is_gt], ids[rois.is_gt] = gt.labels[single, None], gt.ids[single, None]
        ious[rois.is_gt] = 1
    return replace(rois, labels=labels, ious=ious, gt_ids=ids)


def select_training_samples(
    proposals: np.ndarray,
    gt: GroundTruth,
    iou_threshold: float,
    background: int,
    rng: np.random.Generator,
    rois_per_class: int | None = None,
) -> np.ndarray:
    """Returns the indices, ascending, of the proposals (P, 4) that a train cache keeps.

    These are all foreground proposals, and at most `background` background proposals with an IoU in [0.1,
    iou_threshold). With `rois_per_class`, foreground proposals are drawn, so many of a class as its ground-truth boxes
    leave, and at most as many background proposals are kept as there are foreground RoIs, ground-truth boxes included.
    """
    labels, ious, _ = match(proposals, gt, iou_threshold, num_classes=UNUSED_CLASS)
    foreground = np.flatnonzero((labels >= 0) & (labels < UNUSED_CLASS))
    if rois_per_class is not None:
        foreground = _thin(foreground, labels[foreground], gt.labels[~gt.crowd], rois_per_class, rng)
        background = min(background, len(foreground) + int((~gt.crowd).sum()))
    candidates = np.flatnonzero((labels == UNUSED_CLASS) & (ious >= BACKGROUND_IOU))
    if len(candidates) > background:
        candidates = rng.choice(candidates, background, replace=False)
    return np.sort(np.concatenate([foreground, candidates]))


def _thin(
    rows: np.ndarray, labels: np.ndarray, gt_labels: np.ndarray, rois_per_class: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws rows (P,) of labels (P,), of each class so many as its ground-truth boxes leave of `rois_per_class`."""
    order = rng.permutation(len(rows))
    order = order[np.argsort(labels[order], kind="stable")]
    classes, start = np.unique(labels[order], return_index=True)
    rank = np.arange(len(rows)) - start[np.searchsorted(classes, labels[order])]
    left = rois_per_class - (labels[order, None] == gt_labels).sum(1)
    return rows[order[rank < left]]


def _overlap(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns intersections (P, G) and areas (P,), (G,)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.clip(high - low, 0, None)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (a, b)]
    return sides[..., 0] * sides[..., 1], areas[0], areas[1]
