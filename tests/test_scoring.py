"""Softmax and stage averages against their definitions."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from calib.scoring import Original, WithObjectness, for_detector
from extract.class_scores import detector_scores, scores_with_objectness, softmax, stage_scores
from tests.toy_cache import toy_cache


def _softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_softmax_is_its_definition(dtype):
    logits = np.random.default_rng(0).normal(size=(5, 2, 7)).astype(dtype)
    before = logits.copy()
    scores = softmax(logits)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, _softmax(logits.astype(np.float64)), rtol=1e-5)
    np.testing.assert_array_equal(logits, before)


def test_cached_and_live_logits_give_the_same_scores():
    cached = np.random.default_rng(0).normal(size=(5, 3, 1231)).astype(np.float16)
    cached.flags.writeable = False
    for options in ({}, {"average": "logits"}, {"activation": "sigmoid"}):
        scores = stage_scores(cached, **options)
        np.testing.assert_array_equal(stage_scores(cached.astype(np.float32), **options), scores)
        np.testing.assert_array_equal(stage_scores(cached[2:], **options), scores[2:])


def test_softmax_of_large_logits_does_not_overflow():
    np.testing.assert_array_equal(softmax(np.array([[65000, 0, -65000]], np.float16)), [[1, 0, 0]])


def test_stage_averages():
    logits = np.random.default_rng(1).normal(size=(4, 3, 6)).astype(np.float32)
    np.testing.assert_allclose(stage_scores(logits, "scores"), _softmax(logits).mean(1), rtol=1e-5)
    np.testing.assert_allclose(stage_scores(logits, "logits"), _softmax(logits.mean(1)), rtol=1e-5)


def test_one_stage_needs_no_average():
    logits = np.random.default_rng(2).normal(size=(4, 1, 6)).astype(np.float32)
    for average in ("scores", "logits"):
        np.testing.assert_array_equal(stage_scores(logits, average), softmax(logits[:, 0]))


def test_no_rois_give_no_scores():
    assert stage_scores(np.zeros((0, 2, 5), np.float16), "scores").shape == (0, 5)
    assert stage_scores(np.zeros((0, 2, 5), np.float16), "logits").shape == (0, 5)


@pytest.mark.parametrize("average", ["scores", "logits"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "exp"])
@pytest.mark.parametrize("with_objectness", [False, True])
def test_a_detectors_scores_are_those_of_the_original_scorer(tmp_path, average, activation, with_objectness):
    (rois,) = toy_cache(tmp_path / "c.zarr", "logits", stages=(0.5, 0.6), images=1)
    detector = {"stage_average": average, "activation": activation, "scores_with_objectness": with_objectness}
    expected = Original.from_description(detector).scores(rois)
    np.testing.assert_array_equal(detector_scores(rois.logits, rois.objectness, detector), expected)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="stage average is 'mean', expected 'scores' or 'logits'"):
        Original("mean")
    with pytest.raises(ValueError, match=r"logits have shape \(2, 3\), expected \(R, S, K\+1\)"):
        stage_scores(np.zeros((2, 3)))


@pytest.mark.long
def test_original_scores_the_cached_logits(tmp_path):
    cache = toy_cache(tmp_path / "c.zarr", "logits", stages=(0.5, 0.6), images=2)
    rois = cache[0]
    scores = Original("logits").scores(rois)
    np.testing.assert_allclose(scores, _softmax(rois.logits.astype(np.float64).mean(1)), rtol=1e-4)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)


@pytest.mark.process
def test_importing_the_package_imports_no_framework():
    code = "import sys, calib, calib.config; print({'torch', 'numba', 'zarr', 'pandas'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "set()\n"


def test_all_scorers_of_a_detector_use_objectness_as_it_does(tmp_path):
    cache = toy_cache(tmp_path / "val.zarr", split="val")
    detector = {**cache.detector, "scores_with_objectness": True}
    original, rois = Original.from_description(detector), cache.image_at(0)
    plain = Original.from_description(cache.detector)
    expected = np.sqrt(plain.scores(rois) * rois.objectness[:, None])
    for scorer in (original, for_detector(original, detector), for_detector(plain, detector)):
        np.testing.assert_array_equal(scorer.scores(rois), expected)
    assert for_detector(original, detector) is original and for_detector(plain, cache.detector) is plain
    wrapped = for_detector(plain, detector)
    assert wrapped == WithObjectness(plain) and hash(wrapped) == hash(WithObjectness(plain))
    assert (wrapped.name, wrapped.level, wrapped.instance_counts) == (plain.name, "logits", ())
    assert scores_with_objectness(np.zeros((0, 3), np.float32), np.zeros(0, np.float32)).dtype == np.float32
