"""A run that is watched on held-out images: the figures, when they are computed, and where they are written."""

from __future__ import annotations

import json

import numpy as np
import pytest

import calib
from calib.held_out import HeldOutRoIs, average_precision
from calib.metrics import MetricsLog
from tests.test_train import OPTIONS, assert_same
from tests.toy_cache import CLASSES, toy_cache

HELD_OUT = (100, 107, 114)
"""Ids of the first images of a toy cache."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("train") / "train.zarr")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("held_out") / "holdout.zarr", images=3, split="val")


def test_average_precision_is_the_mean_precision_at_the_objects():
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.2], [0.1, 0.6]])
    np.testing.assert_allclose(average_precision(scores, np.array([0, 2, 0, 1])), [(1 + 2 / 3) / 2, 1])
    # Of equal scores the wrong ones come first; a class without objects has no AP, and -1 is no object.
    np.testing.assert_allclose(average_precision(scores, np.array([-1, 2, 1, 2])), [np.nan, 1 / 3])


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_that_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.random((60, 4)), rng.integers(-1, 5, 60)
    expected = []
    for c in range(4):
        right = (labels == c)[np.argsort(-scores[:, c])]
        expected.append((np.cumsum(right) / np.arange(1, 61))[right].mean())
    np.testing.assert_allclose(average_precision(scores, labels), expected)


def test_figures(held_out):
    watched = HeldOutRoIs(held_out, 0)
    objects = watched.labels < CLASSES
    assert 0 < objects.sum() and (~objects).sum() <= 3 * objects.sum()
    perfect = np.eye(CLASSES + 1)[watched.labels]
    figures = watched.figures(perfect)
    assert figures["fg_accuracy"] == figures["bg_accuracy"] == 1 and figures["AP"] == 100
    assert list(figures)[:3] == ["fg_accuracy", "bg_accuracy", "AP"]
    present = np.unique(watched.labels[objects])
    counts = (present + 1) ** 2
    assert ("AP(0,10)" in figures) == bool((counts < 10).any()) and "AP[1000,-)" not in figures
    worst = watched.figures(1 - perfect)
    assert worst["fg_accuracy"] == 0 and worst["AP"] < 50


def test_a_large_cache_gives_a_sample(held_out, monkeypatch):
    monkeypatch.setattr("calib.held_out.MAX_BYTES", 9 * 2 * 3 * 49)
    labels = HeldOutRoIs(held_out, 0).labels
    assert (labels < CLASSES).sum() == 2 and len(labels) == 8


@pytest.mark.long
def test_a_watched_run_has_the_same_head_and_writes_the_figures(cache, held_out, tmp_path, monkeypatch):
    boards = []
    write = MetricsLog.write_held_out
    monkeypatch.setattr(MetricsLog, "write_held_out", lambda log, *values: (boards.append(log), write(log, *values)))
    out = tmp_path / "head"
    options = {**OPTIONS, "holdout": held_out.url, "evaluate_every": 60}
    watched = calib.train_head(cache, out=str(out), **options)
    alone = calib.train_head(cache.without_images(np.array(HELD_OUT)), **OPTIONS)
    assert_same(watched, alone)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["held_out"] for line in lines if "held_out" in line}
    assert list(found) == [60, 120] and found[120]["AP"] > 60, "at every 60th and at the last step"
    assert [line["step"] for line in lines if "loss" in line] == [50, 60, 100, 120]
    assert boards[-1].held_out_summary() == f", AP of held-out RoIs {found[120]['AP']:.1f}"
    assert not any("holdout" in name or "evaluate" in name for name in calib.load_head(out).info.config)
    assert_same(calib.train_head(cache, out=str(out), **{**options, "evaluate_every": 30}), watched)


@pytest.mark.long
def test_a_cache_that_the_head_cannot_score_is_left_out_but_not_watched(cache, tmp_path, caplog):
    other = toy_cache(tmp_path / "holdout.zarr", level="embedding", images=3, split="val")
    head = calib.train_head(cache, **{**OPTIONS, "steps": 3, "holdout": other.url})
    assert "the run is not watched on held-out images" in caplog.text and "level" in caplog.text
    assert head.info.config["steps"] == 3


def test_evaluate_every_is_at_least_one():
    with pytest.raises(ValueError, match="evaluate_every is 0, expected at least 1"):
        calib.Config(cache="c", out="o", evaluate_every=0)
