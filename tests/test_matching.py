"""Matching and the selection of training RoIs, against plain loops."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.matching import GroundTruth, box_iou, match, select_training_samples

K = 9


def reference_iou(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return width * height / (area[0] + area[1] - width * height)


def reference_match(proposals, gt, threshold):
    labels, ious, ids = [], [], []
    for proposal in proposals:
        overlaps = [(reference_iou(proposal, b), -g) for g, b in enumerate(gt.boxes) if not gt.crowd[g]]
        iou, minus = max(overlaps, default=(0.0, 0))
        labels.append(gt.labels[-minus] if iou >= threshold else K)
        ious.append(iou)
        ids.append(gt.ids[-minus] if iou > 0 else -1)
    return labels, ious, ids


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Whole-number corners in a small image, so that IoU hits 0.5 exactly now and then."""
    low = rng.integers(0, 8, (count, 2))
    return np.concatenate([low, low + rng.integers(1, 8, (count, 2))], 1).astype(np.float32)


def make_gt(boxes: np.ndarray, crowd: list[bool] | None = None) -> GroundTruth:
    count = len(boxes)
    labels = (np.arange(count) * 4 % K).astype(np.int32)
    return GroundTruth(boxes, labels, 100 + np.arange(count), np.array(crowd or [False] * count, bool))


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), proposals=st.integers(0, 12), objects=st.integers(0, 6))
def test_match_equals_a_loop(seed, proposals, objects):
    rng = np.random.default_rng(seed)
    boxes, gt = random_boxes(rng, proposals), make_gt(random_boxes(rng, objects))
    labels, ious, ids = match(boxes, gt, 0.5, K)
    expected = reference_match(boxes.astype(float), gt, 0.5)
    assert labels.dtype == np.int32 and ious.dtype == np.float32 and ids.dtype == np.int64
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_allclose(ious, expected[1], rtol=1e-6)
    np.testing.assert_array_equal(ids, expected[2])


def test_iou_of_a_box_without_area_is_zero():
    point = np.float32([[3, 3, 3, 3]])
    assert box_iou(point, point).tolist() == [[0.0]]


def test_background_inside_a_crowd_is_ignored():
    gt = make_gt(np.float32([[0, 0, 10, 10], [20, 20, 60, 60]]), crowd=[False, True])
    proposals = np.float32([[0, 0, 10, 10], [25, 25, 35, 35], [55, 55, 75, 75], [70, 0, 80, 9]])
    labels, _, ids = match(proposals, gt, 0.5, K)
    assert labels.tolist() == [0, -1, K, K]
    assert ids.tolist() == [100, -1, -1, -1], "nothing is matched with a crowd"


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), background=st.integers(0, 10))
def test_training_samples(seed, background):
    rng = np.random.default_rng(seed)
    boxes, gt = random_boxes(rng, 40), make_gt(random_boxes(rng, 3))
    keep = select_training_samples(boxes, gt, 0.5, background, np.random.default_rng(seed))
    labels, ious, _ = match(boxes, gt, 0.5, K)
    eligible = (labels == K) & (ious >= 0.1)
    assert (np.diff(keep) > 0).all()
    assert set(np.flatnonzero(labels < K)) <= set(keep)
    assert eligible[[i for i in keep if labels[i] == K]].all()
    assert sum(labels[keep] == K) == min(background, eligible.sum())


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), limit=st.integers(1, 8))
def test_training_samples_of_a_class_are_limited(seed, limit):
    rng = np.random.default_rng(seed)
    boxes, gt = random_boxes(rng, 200), make_gt(random_boxes(rng, 3))
    every, keep = (
        select_training_samples(boxes, gt, 0.5, 64, np.random.default_rng(seed), rois_per_class=most)
        for most in (None, limit)
    )
    labels, _, _ = match(boxes, gt, 0.5, K)
    for label in range(K):
        of_class = (labels[every] == label).sum()
        assert (labels[keep] == label).sum() == min(of_class, max(limit - (gt.labels == label).sum(), 0))
    assert (np.diff(keep) > 0).all() and set(keep[labels[keep] < K]) <= set(every)
    assert (labels[keep] == K).sum() <= (labels[keep] < K).sum() + len(gt.labels)
