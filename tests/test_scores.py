from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.data.bins import BINS, bin_counts, bin_index, bin_names, edges
from fuse.scores import (
    COMBINATIONS,
    FUSION_MODES,
    IMAGE_MODES,
    SCORE_MODES,
    background_ratio,
    fuse_scores,
    oracle_scores,
    tail_classes,
)
from tests.equivalents import EQUIVALENTS

REPLACE = EQUIVALENTS["replace_columns"]
COUNTS = Path(__file__).parents[1] / "benchmarks/data/lvis_v0.5_class_counts.json"


def softmax_rows(rng, rois, classes):
    scores = np.exp(rng.normal(0, 3, (rois, classes + 1)))
    return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


@st.composite
def heads(draw):
    rois, classes = draw(st.integers(1, 8)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return softmax_rows(rng, rois, classes), softmax_rows(rng, rois, classes), rng.random(classes) < 0.5


@settings(deadline=None)
@given(heads())
def test_modes(arrays):
    original, new, tail = arrays
    every = np.append(tail, False)
    fused = {mode: fuse_scores(original, new, tail, mode, cat_threshold=0.2) for mode in SCORE_MODES}
    for scores in fused.values():
        assert scores.dtype == np.float32 and scores.shape == original.shape
    np.testing.assert_array_equal(fused["original"], original)
    np.testing.assert_array_equal(fused["calibrated"], new)
    np.testing.assert_array_equal(fused["avg"][:, :-1], ((original + new) / 2)[:, :-1])
    np.testing.assert_array_equal(fused["cat"], np.where(every, new, original))
    np.testing.assert_array_equal(fused["cat-thr"], np.where(every, np.where(new < np.float32(0.2), 0, new), original))
    ratio = new[:, -1].mean(dtype=np.float64) / original[:, -1].mean(dtype=np.float64)
    np.testing.assert_allclose(fused["cat-scale"], np.where(every, new * ratio, original), rtol=1e-6)
    for mode in set(SCORE_MODES) - {"calibrated"}:
        np.testing.assert_array_equal(fused[mode][:, -1], original[:, -1])


@settings(deadline=None)
@given(heads())
def test_arguments_are_left_as_they_were(arrays):
    original, new, tail = arrays
    before = original.copy(), new.copy()
    for mode in SCORE_MODES:
        fuse_scores(original, new, tail, mode)[:] = -1
    np.testing.assert_array_equal(original, before[0])
    np.testing.assert_array_equal(new, before[1])


@settings(deadline=None)
@given(heads(), st.sampled_from([-np.inf, 0.2]), st.sampled_from([1, 0.3]))
def test_replaced_columns_equal_both_references(arrays, threshold, scale):
    original, new, tail = arrays
    new[0, 0] = np.nan
    found = [f(original, new, tail, np.float32(threshold), np.float32(scale)) for f in REPLACE.values()]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_no_tail_gives_the_original_scores_and_full_tail_the_calibrated_ones():
    rng = np.random.default_rng(0)
    original, new = softmax_rows(rng, 5, 7), softmax_rows(rng, 5, 7)
    for mode in ("cat", "cat-thr", "cat-scale"):
        np.testing.assert_array_equal(fuse_scores(original, new, np.zeros(7, bool), mode), original)
    np.testing.assert_array_equal(fuse_scores(original, new, np.ones(7, bool))[:, :-1], new[:, :-1])


def test_a_head_that_predicts_less_background_is_scaled_down():
    original = np.array([[0.1, 0.9], [0.1, 0.9]], np.float32)
    new = np.array([[0.6, 0.4], [0.5, 0.5]], np.float32)
    assert background_ratio(original, new) == pytest.approx(0.5)
    fused = fuse_scores(original, new, np.array([True]), "cat-scale")
    np.testing.assert_allclose(fused, [[0.3, 0.9], [0.25, 0.9]], rtol=1e-6)
    given_scale = fuse_scores(original, new, np.array([True]), "cat-scale", cat_scale=2.0)
    np.testing.assert_allclose(given_scale[:, 0], [1.2, 1.0], rtol=1e-6)


def test_background_ratio_of_nothing_is_one():
    assert background_ratio(np.zeros((0, 3)), np.zeros((0, 3))) == 1
    assert background_ratio(np.zeros((2, 3)), np.ones((2, 3))) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "concat"}, "mode is 'concat', expected one of original, calibrated"),
        ({"calibrated": np.zeros((2, 5))}, r"scores have shapes \(2, 4\) and \(2, 5\)"),
        ({"tail_mask": np.zeros(4, bool)}, r"tail_mask is bool \(4,\), expected bool \(3,\)"),
        ({"tail_mask": np.zeros(3, int)}, "tail_mask is int64"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {
        "original": np.zeros((2, 4)),
        "calibrated": np.zeros((2, 4)),
        "tail_mask": np.zeros(3, bool),
    } | change
    with pytest.raises(ValueError, match=message):
        fuse_scores(**arguments)


def test_true_labels_get_the_foreground_probability():
    original = np.array([[0.1, 0.2, 0.7], [0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.3, 0.3, 0.4]], np.float32)
    scores = oracle_scores(original, np.array([1, 0, 2, -1]))
    np.testing.assert_allclose(scores, [[0, 0.3, 0], [0.9, 0, 0], [0, 0, 0], [0, 0, 0]], rtol=1e-6)


def test_bins_are_half_open():
    assert bin_names() == ["(0,10)", "[10,100)", "[100,1000)", "[1000,-)"]
    assert bin_names((0, 5, float("inf"))) == ["(0,5)", "[5,-)"]
    assert bin_index([0, 1, 9, 10, 99, 100, 999, 1000, 10**6]).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert bin_index([0, 5, 10, 20], (5, 10, 20)).tolist() == [-1, 0, 1, -1]


@pytest.mark.parametrize("whole", [(0,), (0, 10, 10), (-1, 10), (0, float("nan"), 10)])
def test_bins_that_are_none(whole):
    with pytest.raises(ValueError, match="expected ascending edges"):
        bin_index([1], whole)


def test_inner_edges_get_their_ends():
    assert edges((10, 100, 1000)) == BINS and edges(()) == (0, float("inf"))
    for bins in [(10, 5), (0, 10), (-1,), (float("nan"),), (float("inf"),)]:
        with pytest.raises(ValueError, match="bins is .*, expected ascending numbers above 0"):
            edges(bins)


def test_fusion_modes_are_those_of_scores_and_two_more():
    assert (*COMBINATIONS,) == SCORE_MODES and FUSION_MODES == (*SCORE_MODES, *IMAGE_MODES)


def test_table_1_of_the_paper():
    classes = json.loads(COUNTS.read_text())["categories"]
    train = np.array([c["instance_count"] for c in classes])
    in_val = np.array([c["val_instance_count"] > 0 for c in classes])
    assert bin_counts(train) == [294, 453, 302, 181] and len(train) == 1230
    assert bin_counts(train[in_val]) == [67, 298, 284, 181] and in_val.sum() == 830
    assert tail_classes(train).sum() == 294 + 453 and tail_classes(train, 10).sum() == 294


@pytest.mark.parametrize(
    "row",
    [
        (0.0, 5.4, 16.6, 25.1, 13.1),
        (0.0, 13.3, 21.4, 27.0, 18.0),
        (39.7, 45.1, 31.4, 29.3, 36.6),
        (8.5, 20.8, 17.6, 19.3, 18.4),
        (8.5, 20.9, 19.6, 24.6, 20.3),
        (8.6, 22.0, 16.7, 25.2, 19.8),
        (8.6, 22.0, 19.6, 26.6, 21.1),
        (8.5, 20.8, 20.1, 26.7, 20.9),
        (8.5, 21.3, 19.9, 26.7, 21.0),
        (7.1, 30.5, 30.7, 33.9, 29.4),
        (16.0, 30.6, 29.8, 33.5, 29.8),
        (5.6, 33.0, 33.7, 37.0, 31.9),
        (12.7, 32.1, 33.6, 37.0, 32.1),
    ],
)
def test_bins_of_tables_2_4_6_7_weighted_by_their_val_classes_give_ap(row):
    """The paper's AP is the mean over classes with ground truth, and our bins are the paper's."""
    classes = [c for c in json.loads(COUNTS.read_text())["categories"] if c["val_instance_count"] > 0]
    weights = bin_counts([c["instance_count"] for c in classes], BINS)
    assert np.average(row[:4], weights=weights) == pytest.approx(row[4], abs=0.07)
