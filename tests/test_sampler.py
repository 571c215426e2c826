"""Bi-level sampling: statistics, and steps against a slow reference."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib import BiLevelSampler

# fmt: off
OLD_STEP = [
    764, 765, 769, 783, 788, 793, 794, 796, 806, 810, 1867, 1869, 1879, 1883, 625, 626, 627, 630,
    799, 771, 602, 775, 1878, 791, 804, 1880, 636, 807, 803, 1872, 790, 608, 601, 619, 603, 786,
]  # of version 1: a head trained with the same seed must stay the same
# fmt: on


@dataclass
class Labels:
    """The part of a cache that the sampler reads. `labels`, `ious`: (R, S)."""

    labels: np.ndarray
    ious: np.ndarray
    offsets: np.ndarray
    num_classes: int
    stages: tuple[float, ...] = (0.5,)
    url: str = "memory"
    classes: pd.DataFrame = field(init=False)

    def __post_init__(self):
        self.is_gt = np.random.default_rng(1).random(len(self.labels)) < 0.1
        self.classes = pd.DataFrame({"name": [f"class {c}" for c in range(self.num_classes)]})

    def read(self, name):
        return {"labels": self.labels, "ious": self.ious, "is_gt": self.is_gt}[name]


def make(num_classes=40, images=200, stages=(0.5,), seed=0, long_tail=1.0):
    """Images of 0 to 60 RoIs with up to five classes each, long-tailed; some labels are ignore (-1)."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, num_classes + 1) ** -long_tail
    counts = rng.integers(0, 61, images)
    present = rng.choice(num_classes, (images, 5), p=share / share.sum())
    image = np.repeat(np.arange(images), counts)
    ious = np.repeat(rng.random((len(image), 1), np.float32), len(stages), axis=1)
    label = present[image, rng.integers(0, 5, len(image))]
    labels = np.where(ious >= np.array(stages), label[:, None], num_classes).astype(np.int32)
    labels[rng.random(len(image)) < 0.05] = -1
    return Labels(labels, ious, np.concatenate([[0], np.cumsum(counts)]), num_classes, stages)


def check(step, cache, stage, classes_per_step, images_per_class, rois_per_class=None):
    """Asserts that a step has the classes, images and RoIs that the method prescribes."""
    labels, ious = cache.labels[:, stage], cache.ious[:, stage]
    image = np.repeat(np.arange(len(cache.offsets) - 1), np.diff(cache.offsets))
    available = sorted({int(c) for c in labels if 0 <= c < cache.num_classes})
    assert step.rows.dtype == np.int64 and step.labels.dtype == np.int32
    assert len(set(step.rows.tolist())) == len(step.rows)
    assert [labels[r] for r in step.rows] == step.labels.tolist()
    is_foreground = step.labels < cache.num_classes
    drawn = sorted(set(step.labels[is_foreground].tolist()))
    assert -1 not in drawn and len(drawn) == min(classes_per_step, len(available))
    images = set()
    for c in drawn:
        rows = step.rows[step.labels == c]
        own = {int(image[r]) for r in rows}
        assert len(own) == min(images_per_class, len({int(i) for i in image[labels == c]}))
        for i in own:
            every = [r for r in range(len(labels)) if labels[r] == c and image[r] == i]
            taken = [r for r in rows if image[r] == i]
            limit = len(every) if rois_per_class is None else rois_per_class
            assert set(taken) <= set(every) and len(taken) == min(limit, len(every))
            assert sum(cache.is_gt[r] for r in taken) == min(limit, sum(cache.is_gt[r] for r in every))
        images |= own
    pool = [
        r
        for r in range(len(labels))
        if image[r] in images and labels[r] == cache.num_classes and 0.1 <= ious[r] < cache.stages[stage]
    ]
    background = step.rows[~is_foreground]
    assert len(background) == min(is_foreground.sum(), len(pool))
    assert set(background.tolist()) <= set(pool)


@pytest.mark.long
@pytest.mark.parametrize(("classes_per_step", "images_per_class"), [(16, 1), (5, 3), (100, 1)])
@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("rois_per_class", [None, 1, 4])
def test_steps_are_those_of_the_slow_reference(classes_per_step, images_per_class, stage, rois_per_class):
    cache = make(stages=(0.5, 0.6, 0.7))
    sampler = BiLevelSampler(cache, classes_per_step, images_per_class, 3, rois_per_class)
    for index in range(10):
        check(sampler.step(index, stage), cache, stage, classes_per_step, images_per_class, rois_per_class)


@pytest.mark.long
@given(
    seed=st.integers(0, 10_000),
    num_classes=st.integers(1, 6),
    images=st.integers(1, 8),
    classes_per_step=st.integers(1, 8),
    images_per_class=st.integers(1, 4),
    rois_per_class=st.none() | st.integers(1, 5),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_cache(seed, num_classes, images, classes_per_step, images_per_class, rois_per_class):
    cache = make(num_classes, images, seed=seed)
    if not ((cache.labels >= 0) & (cache.labels < num_classes)).any():
        with pytest.raises(ValueError, match="no foreground RoIs in stage 0"):
            BiLevelSampler(cache)
        return
    sampler = BiLevelSampler(cache, classes_per_step, images_per_class, seed, rois_per_class)
    for index in range(3):
        check(sampler.step(index), cache, 0, classes_per_step, images_per_class, rois_per_class)


def _chi_square(counts):
    expected = counts.sum() / len(counts)
    return ((counts - expected) ** 2 / expected).sum()


@pytest.mark.long
def test_classes_are_drawn_uniformly_however_long_the_tail():
    cache = make(num_classes=40, images=400, long_tail=1.2)
    sampler = BiLevelSampler(cache, classes_per_step=4)
    drawn = np.concatenate([np.unique(s.labels[s.labels < 40]) for s in islice(sampler, 3000)])
    counts = np.bincount(drawn, minlength=40)[np.setdiff1d(np.arange(40), sampler.missing_classes)]
    assert counts.sum() == 12_000
    assert _chi_square(counts) < len(counts) + 3 * np.sqrt(2 * len(counts))


@pytest.mark.long
@pytest.mark.parametrize("images_per_class", [1, 3])
def test_images_of_a_class_are_drawn_uniformly(images_per_class):
    # One class, 20 images with 1, 2, … 20 RoIs of it: the number of RoIs must not matter.
    counts = np.arange(1, 21)
    total = counts.sum()
    cache = Labels(
        np.zeros((total, 1), np.int32),
        np.ones((total, 1), np.float32),
        np.concatenate([[0], np.cumsum(counts)]),
        1,
    )
    sampler = BiLevelSampler(cache, 16, images_per_class)
    image = np.repeat(np.arange(20), counts)
    drawn = np.concatenate([np.unique(image[sampler.step(i).rows]) for i in range(2000)])
    assert len(drawn) == 2000 * images_per_class
    assert _chi_square(np.bincount(drawn, minlength=20)) < 20 + 3 * np.sqrt(40)


@pytest.mark.long
def test_thinned_rois_are_drawn_uniformly_after_ground_truth():
    # One class in one image: rows 3 and 8 are ground truth, two of the other ten are drawn beside them.
    cache = Labels(np.zeros((12, 1), np.int32), np.ones((12, 1), np.float32), np.array([0, 12]), 1)
    cache.is_gt = np.isin(np.arange(12), [3, 8])
    steps = islice(BiLevelSampler(cache, rois_per_class=4), 1000)
    counts = np.bincount(np.concatenate([s.rows for s in steps]), minlength=12)
    assert counts[3] == counts[8] == 1000 and counts.sum() == 4000
    assert _chi_square(np.delete(counts, [3, 8])) < 10 + 3 * np.sqrt(20)


def test_the_papers_own_sampling_is_unchanged():
    step = BiLevelSampler(make(num_classes=12, images=60, seed=4), classes_per_step=3, seed=11).step(5)
    assert step.rows.tolist() == OLD_STEP


def test_background_is_drawn_uniformly_from_all_images():
    # Two classes, one image each, with ten background RoIs.
    labels = np.array([0] * 5 + [2] * 10 + [1] * 5 + [2] * 10, np.int32)[:, None]
    cache = Labels(labels, np.where(labels == 2, 0.3, 0.9).astype(np.float32), np.array([0, 15, 30]), 2)
    rows = np.concatenate([s.rows[10:] for s in islice(BiLevelSampler(cache), 500)])
    assert len(rows) == 5000
    assert _chi_square(np.bincount(rows, minlength=30)[labels[:, 0] == 2]) < 20 + 3 * np.sqrt(40)


def test_background_bounds_are_half_open_and_follow_the_stage():
    ious = np.float32([0.9, 0.0999, 0.1, 0.4999, 0.5, 0.65, 0.7])
    labels = np.array([[0, 0]] + [[1, 1]] * 6, np.int32)
    labels[4:, 0] = -1  # IoU above the first stage's threshold, but not foreground: a crowd region
    cache = Labels(labels, np.stack([ious, ious], 1), np.array([0, 7]), 1, (0.5, 0.7))
    sampler = BiLevelSampler(cache)
    seen = [{int(r) for i in range(50) for r in sampler.step(i, stage).rows[1:]} for stage in (0, 1)]
    assert seen == [{2, 3}, {2, 3, 4, 5}]


def test_an_image_drawn_for_two_classes_gives_both():
    cache = Labels(np.array([[0], [1], [0], [2]], np.int32), np.ones((4, 1), np.float32), np.array([0, 4]), 3)
    step = BiLevelSampler(cache).step(0)
    assert sorted(step.rows.tolist()) == [0, 1, 2, 3]
    check(step, cache, 0, 16, 1)


def test_steps_are_reproducible_one_by_one():
    cache = make()
    first, second = BiLevelSampler(cache, seed=5), BiLevelSampler(cache, seed=5)
    for index, step in enumerate(islice(first, 5)):
        np.testing.assert_array_equal(step.rows, second.step(index).rows)
    resumed = next(second.steps(start=4))
    np.testing.assert_array_equal(resumed.rows, first.step(4).rows)
    others = [BiLevelSampler(cache, seed=6).step(4), first.step(3)]
    assert all(resumed.rows.tolist() != other.rows.tolist() for other in others)


def test_stages_share_images_where_ground_truth_boxes_are_in_all():
    cache = make(num_classes=8, stages=(0.5, 0.6))
    cache.labels[(cache.ious > 0.5) & (cache.ious < 0.6)] = -1
    cache.labels[:, 1] = cache.labels[:, 0]
    sampler = BiLevelSampler(cache, classes_per_step=3)
    drawn = [sampler.step(7, stage) for stage in (0, 1)]
    foreground = [step.rows[step.labels < 8].tolist() for step in drawn]
    assert foreground[0] == foreground[1]


def test_missing_classes_are_reported_once(caplog):
    cache = make(num_classes=10)
    cache.labels[np.isin(cache.labels, [3, 7])] = 10
    with caplog.at_level(logging.WARNING):
        sampler = BiLevelSampler(cache)
        sampler.step(0)
    assert sampler.missing_classes.tolist() == [3, 7]
    assert [r.getMessage() for r in caplog.records] == [
        "memory: 2 of 10 classes have no foreground RoIs and are never sampled: class 3, class 7"
    ]


def test_bad_input_is_named():
    cache = make()
    with pytest.raises(ValueError, match="classes_per_step is 0, expected at least 1"):
        BiLevelSampler(cache, classes_per_step=0)
    with pytest.raises(ValueError, match="rois_per_class is 0, expected at least 1"):
        BiLevelSampler(cache, rois_per_class=0)
    cache.labels[5] = 41
    with pytest.raises(ValueError, match=r"memory: labels span -1…41, expected -1…40"):
        BiLevelSampler(cache)
