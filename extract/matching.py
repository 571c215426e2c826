"""Matching proposals with ground truth, and choosing the RoIs that a training cache keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from extract.rois import RoIs

BACKGROUND_IOU = 0.1
"""Lower bound of the IoU that background RoIs of a training cache have (their upper bound is the matching IoU)."""

NO_CLASS = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The annotated objects of one image.

    Attributes:
        boxes: (G, 4) float32 xyxy.
        labels: (G,) int32.
        ids: (G,) int64.
        crowd: (G,) bool, regions of many objects.
        exhaustive: every object of the annotated classes is annotated.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    crowd: np.ndarray
    exhaustive: bool = True


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes (P, 4) with boxes (G, 4), xyxy: (P, G) float32; 0 where a box has no area."""
    inter, area_a, area_b = _overlap(a, b)
    union = area_a[:, None] + area_b[None, :] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def match(
    proposals: np.ndarray, truth: GroundTruth, threshold: float, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (P,) int32, IoU (P,) float32 and annotation ids (P,) int64 of proposals (P, 4).

    A proposal takes the class of the ground-truth box that it overlaps most if that IoU is at least `threshold`,
    else it is background (`num_classes`), or not known (-1) where that cannot be said: in an image that is not
    annotated exhaustively, and where a share of at least `threshold` of the proposal lies in a crowd region.
    In a federated data set "background" says no more than that no *annotated* object is there, as in the paper.
    """
    proposals = np.asarray(proposals, np.float32)
    single = ~truth.crowd
    labels = np.full(len(proposals), num_classes, np.int32)
    ious = np.zeros(len(proposals), np.float32)
    ids = np.full(len(proposals), -1, np.int64)
    if single.any() and len(proposals):
        iou = box_iou(proposals, truth.boxes[single])
        best = iou.argmax(1)
        ious = iou[np.arange(len(iou)), best]
        ids = np.where(ious > 0, truth.ids[single][best], -1)
        labels = np.where(ious >= threshold, truth.labels[single][best], num_classes).astype(np.int32)
    if not truth.exhaustive:
        labels[labels == num_classes] = -1
    if truth.crowd.any() and len(proposals):
        inter, area, _ = _overlap(proposals, truth.boxes[truth.crowd])
        inside = (inter >= threshold * area[:, None]).any(1)
        labels[inside & (labels == num_classes)] = -1
    return labels, ious, ids


def assign_targets(rois: RoIs, truth: GroundTruth, stages: Sequence[float]) -> RoIs:
    """`rois` with labels, ious and gt_ids of every stage, each by its own proposals and matching IoU.

    RoIs that are ground truth come in the order of `truth`, crowds left out, stay where they are in every stage and
    are each matched with themselves: of two annotations with the same box neither takes the other's.
    """
    matched = [match(rois.proposals[:, s], truth, t, rois.num_classes) for s, t in enumerate(stages)]
    labels, ious, ids = (np.stack(columns, 1) for columns in zip(*matched, strict=True))
    if rois.is_gt.any():
        single = ~truth.crowd
        labels[rois.is_gt], ids[rois.is_gt] = truth.labels[single, None], truth.ids[single, None]
        ious[rois.is_gt] = 1
    return replace(rois, labels=labels, ious=ious, gt_ids=ids)


def select_training_samples(
    proposals: np.ndarray, truth: GroundTruth, threshold: float, background: int, rng: np.random.Generator
) -> np.ndarray:
    """Indices, ascending, of the proposals (P, 4) that a training cache keeps.

    All that match an object, and at most `background` of those whose IoU lies in [0.1, threshold).
    """
    labels, ious, _ = match(proposals, truth, threshold, num_classes=NO_CLASS)
    foreground = np.flatnonzero((labels >= 0) & (labels < NO_CLASS))
    candidates = np.flatnonzero((labels == NO_CLASS) & (ious >= BACKGROUND_IOU))
    if len(candidates) > background:
        candidates = rng.choice(candidates, background, replace=False)
    return np.sort(np.concatenate([foreground, candidates]))


def _overlap(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intersections (P, G) and the areas (P,), (G,)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.clip(high - low, 0, None)
    areas = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b)]
    return sides[..., 0] * sides[..., 1], areas[0], areas[1]
