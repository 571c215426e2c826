"""NorCal's variants, FRACAL, temperature, Platt scaling and nearest class means, against plain transcriptions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import fuse
from calib import load_head, posthoc, save_head
from calib.posthoc.fitting import fit_temperature, labelled_logits
from calib.posthoc.fracal import box_counting_dimensions, dimensions
from calib.posthoc.platt import fit_platt
from calib.scoring import Original
from extract import write_cache
from extract.class_scores import softmax
from fuse.config import FusionConfig
from fuse.export.module import CalibratedScores
from fuse.plugins import Calibration
from tests.posthoc_references import calculate_fractality, fracal_scores, norcal_probabilities
from tests.toy_cache import CLASSES, toy_cache, toy_classes

COUNTS = toy_classes()["image_count"].to_numpy()


@pytest.fixture(scope="module", params=["softmax", "sigmoid"])
def activation(request):
    return request.param


@pytest.fixture(scope="module")
def cascades(tmp_path_factory):
    """A cascade for each activation and stage average."""
    folder = tmp_path_factory.mktemp("cascades")
    return {
        (activation, average): toy_cache(
            folder / f"{activation}-{average}.zarr", "embedding", (0.5, 0.6), 8, average=average, activation=activation
        )
        for activation in ("softmax", "sigmoid")
        for average in ("scores", "logits")
    }


@pytest.fixture(scope="module")
def cache(cascades):
    return cascades["softmax", "scores"]


VARIANTS = [posthoc.NorCal(0.6, variant=v) for v in ("normalized", "unnormalized", "logits")]
VARIANTS += [
    posthoc.NorCal(0.9, factor="effective-number", variant=v) for v in ("normalized", "unnormalized", "logits")
]


@pytest.mark.parametrize("method", VARIANTS, ids=lambda method: method.name)
def test_norcal_is_the_released_code(cache, method):
    rois = cache.image(107)
    calibrate_on = {"normalized": "exps", "unnormalized": "probs", "logits": "logits"}[method.variant]
    own = {"power": "gamma", "effective-number": "cb"}[method.factor]
    per_stage = [
        norcal_probabilities(rois.logits[:, s], COUNTS, own, method.gamma, calibrate_on, method.variant == "normalized")
        for s in range(2)
    ]
    np.testing.assert_allclose(method.fit(cache).scores(rois), np.mean(per_stage, 0), rtol=2e-4, atol=1e-7)


def test_norcal_of_sigmoid_scores(cascades):
    cache = cascades["sigmoid", "logits"]
    rois = cache.image(107)
    odds = np.exp(rois.logits.astype(np.float64).mean(1))
    odds[:, :-1] /= COUNTS**0.6
    np.testing.assert_allclose(posthoc.NorCal(0.6).fit(cache).scores(rois), odds / (odds + 1), rtol=2e-4, atol=1e-7)


IDENTITIES = [
    posthoc.NorCal(0),
    posthoc.NorCal(0, variant="unnormalized"),
    posthoc.NorCal(0, variant="logits"),
    posthoc.NorCal(0, factor="effective-number"),
    posthoc.NorCal(0, factor="effective-number", variant="unnormalized"),
    posthoc.LogitAdjustment(0),
    posthoc.Temperature(1),
    posthoc.Platt(np.inf),
]


@pytest.mark.parametrize("method", IDENTITIES, ids=lambda method: method.name)
@pytest.mark.parametrize("average", ["scores", "logits"])
def test_limiting_cases_are_the_original_scores_to_the_bit(cascades, activation, average, method):
    cache = cascades[activation, average]
    expected = Original(average, activation).scores(cache[0])
    np.testing.assert_array_equal(method.fit(cache).scores(cache[0]), expected)


@pytest.fixture(scope="module")
def places(tmp_path_factory, activation):
    """A train cache whose ground-truth boxes are spread, class by class in smaller regions."""
    folder = tmp_path_factory.mktemp("places")
    plain = toy_cache(folder / "plain.zarr", images=40, activation=activation)
    rng = np.random.default_rng(0)
    images = []
    for rois in plain:
        centers = rng.random((len(rois), 2)) * (1 + rois.labels[:, :1]) / (CLASSES + 1) * (60, 50)
        boxes = np.hstack([centers - 1, centers + 1]).astype(np.float32)
        images.append(replace(rois, proposals=boxes[:, None]))
    options = {"split": "train", "level": "pooled", "stages": (0.5,), "detector": plain.detector}
    return write_cache(folder / "c.zarr", images, plain.classes, provenance={"train_images": 200}, **options)


def _ground_truth(cache):
    rows = np.flatnonzero(cache.read("is_gt"))
    boxes = cache.read("proposals")[rows, 0].astype(np.float64) / (60, 50, 60, 50)
    return (boxes[:, :2] + boxes[:, 2:]) / 2, cache.read("labels")[rows, 0]


def test_dimensions_are_those_of_the_released_code(places):
    centers, labels = _ground_truth(places)
    expected = calculate_fractality(*centers.T, labels, CLASSES, dims=16)
    np.testing.assert_allclose(box_counting_dimensions(centers, labels, CLASSES, 16), expected, rtol=1e-9)
    np.testing.assert_allclose(dimensions(places), expected, rtol=1e-9)  # with 120 boxes no grid is finer than 10 × 10
    assert len(np.unique(expected)) == 5


def test_dimensions_of_lines_and_squares():
    x, y = np.random.default_rng(0).random((2, 4000))
    centers = np.concatenate([np.stack([x, y], 1), np.stack([x, 0 * x], 1), [[0.5, 0.5]] * 3])
    labels = np.repeat([0, 1, 2], [4000, 4000, 3])
    square, line, few, absent = box_counting_dimensions(centers, labels, 4)
    assert 1.8 < square <= 2 and line == pytest.approx(1, abs=1e-9) and (few, absent) == (1, 1)
    assert set(box_counting_dimensions(centers, labels, 4, max_grid=1)) == {1}, "one cell"


def test_fracal_is_the_released_code(places, activation):
    rois = places.image(107)
    expected = fracal_scores(rois.logits[:, 0], COUNTS, 200, dimensions(places), 1.5, activation)
    scores = posthoc.Fracal(1.5).fit(places).scores(rois)
    compared = slice(None) if activation == "softmax" else slice(-1)  # the code has no background of sigmoid scores
    np.testing.assert_allclose(scores[:, compared], expected[:, compared], rtol=2e-4, atol=1e-7)


def test_fracal_of_uniform_classes_and_dimensions_is_the_original_to_the_bit(tmp_path):
    classes = toy_classes().assign(instance_count=7)
    cache = toy_cache(tmp_path / "c.zarr", classes=classes)  # all boxes at one place: every dimension is 1
    scores = posthoc.Fracal(2, count="instance_count").fit(cache).scores(cache[0])
    np.testing.assert_array_equal(scores, Original().scores(cache[0]))


def test_fracal_names_what_it_lacks(cache, tmp_path):
    with pytest.raises(ValueError, match="does not record how many images the training set has, which fracal-2 needs"):
        posthoc.Fracal().fit(cache)
    with pytest.raises(ValueError, match="num_images is 3, but a class is in 12 training images"):
        posthoc.Fracal(num_images=3).fit(cache)
    proposals = [replace(cache[0], is_gt=np.zeros(30, bool))]
    options = {"split": "val", "level": "embedding", "stages": (0.5, 0.6)}
    val = write_cache(tmp_path / "v.zarr", proposals, cache.classes, **options)
    with pytest.raises(ValueError, match="has no ground-truth boxes, give a train cache"):
        posthoc.Fracal(num_images=50).fit(val)


def _loss(logits, labels, activation):
    """Negative log-likelihood of (n, K+1) logits, in float64; background is a class."""
    z = torch.from_numpy(np.asarray(logits, np.float64))
    if activation == "softmax":
        return torch.nn.functional.cross_entropy(z, torch.from_numpy(labels), reduction="sum").item()
    present = torch.eye(z.shape[1], dtype=torch.float64)[labels]
    return torch.nn.functional.binary_cross_entropy_with_logits(z, present, reduction="sum").item()


def _labelled(size, width=CLASSES + 1):
    """Logits (n, width) and labels that are drawn from their softmax."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(size, width)) - np.arange(width) / 4
    labels = (softmax(logits).cumsum(1) > rng.random((size, 1))).argmax(1)
    return logits.astype(np.float32), labels


def test_temperature_has_the_largest_likelihood(activation):
    logits, labels = _labelled(3000)
    best = fit_temperature(logits, labels, activation)
    counted = logits.astype(np.float64)
    if activation == "sigmoid":  # background has no likelihood: a constant logit adds a constant
        counted[:, -1] = 0
    values = [_loss(counted / t, labels, activation) for t in (0.98 * best, best, 1.02 * best)]
    assert np.argmin(values) == 1
    assert activation == "sigmoid" or best == pytest.approx(1, abs=0.05), "labels are drawn at T = 1"
    assert fit_temperature(logits * 3, labels, activation) == pytest.approx(3 * best, rel=1e-4)


def test_temperature_is_fitted_per_stage(cache):
    scale, shift = posthoc.Temperature().fit(cache).affine
    expected = [1 / fit_temperature(*labelled_logits(cache, stage)) for stage in range(2)]
    np.testing.assert_allclose(scale, np.repeat([expected], CLASSES + 1, 0).T, rtol=1e-6)
    assert not shift.any()


@pytest.mark.long
def test_platt_has_the_largest_posterior(activation):
    logits, labels = _labelled(500)
    logits, labels = logits[labels != 4], labels[labels != 4]

    def objective(values):
        return _loss(logits * values[0] + values[1], labels, activation) + np.square(values - [[1], [0]]).sum()

    fitted = np.stack(fit_platt(logits, labels, 2.0, activation)).astype(np.float64)
    assert fitted[0, 4] == 1 and fitted[1, 4] == 0, "a class without RoIs keeps its logit"
    rng = np.random.default_rng(0)
    for _ in range(20):
        step = 0.01 * rng.normal(size=fitted.shape)
        step[:, 4] = 0
        assert objective(fitted + step) > objective(fitted)


@pytest.mark.long
def test_platt_is_fitted_per_stage(cascades, activation):
    cache = cascades[activation, "scores"]
    affine = posthoc.Platt(3).fit(cache).affine
    for stage in range(2):
        expected = fit_platt(*labelled_logits(cache, stage), 3, activation)
        np.testing.assert_array_equal([affine.scale[stage], affine.shift[stage]], expected)


@pytest.mark.parametrize("name", ["ncm", "cosine-ncm"])
def test_class_means(tmp_path, name):
    cache = toy_cache(tmp_path / "c.zarr", "embedding", (0.5, 0.6), 25)
    head = posthoc.build_method(name, temperature=0.5).fit(cache)
    rois, logits = cache.image(107), []
    assert np.isin(np.arange(CLASSES), cache.read("labels")).all()
    for stage in range(2):
        x, labels = cache.read("features")[:, stage].astype(np.float64), cache.read("labels")[:, stage]
        means = np.stack([x[labels == c].mean(0) for c in range(CLASSES + 1)])
        own = rois.features[:, stage].astype(np.float64)
        if name == "ncm":
            logits.append(-np.square(own[:, None] - means).sum(-1) / 0.5)
        else:
            norms = np.linalg.norm(own, axis=1)[:, None] * np.linalg.norm(means, axis=1)
            logits.append(own @ means.T / norms / 0.5)
    expected = np.mean([softmax(z) for z in logits], 0)
    np.testing.assert_allclose(head.scores(rois), expected, rtol=2e-3, atol=1e-5)
    assert head.name == name and head.instance_counts == tuple(cache.classes["instance_count"])
    fitted = posthoc.build_method(name).fit(cache)
    assert not np.array_equal(fitted.scores(rois), head.scores(rois))


@pytest.mark.long
def test_class_means_of_pooled_features_and_of_classes_without_rois(tmp_path):
    cache = toy_cache(tmp_path / "c.zarr", images=3)
    absent = np.setdiff1d(np.arange(CLASSES), cache.read("labels"))
    head = posthoc.NCM().fit(cache)
    scores = head.scores(cache[0])
    assert len(absent) and not scores[:, absent].any()
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    assert head.level == "pooled" and head.info.frozen_layers == 2
    logits = toy_cache(tmp_path / "l.zarr", "logits", images=3)
    with pytest.raises(ValueError, match="needs feature level"):
        posthoc.NCM().fit(logits)


@pytest.mark.parametrize("name", ["ncm", "cosine-ncm"])
def test_class_means_are_saved(cache, tmp_path, name):
    head = posthoc.build_method(name, temperature=3.0).fit(cache)
    save_head(head, tmp_path / "head")
    np.testing.assert_array_equal(load_head(tmp_path / "head").scores(cache[0]), head.scores(cache[0]))


@pytest.mark.long
@pytest.mark.parametrize("mode", ["calibrated", "cat", "cat-scale"])
@pytest.mark.parametrize("average", ["scores", "logits"])
@pytest.mark.parametrize(
    "method",
    [
        posthoc.NorCal(0.6, variant="unnormalized"),
        posthoc.CosineNCM(0.1),
        posthoc.NCM(10.0),
        posthoc.Fracal(num_images=99),
    ],
    ids=lambda method: method.name,
)
def test_exported_modules_score_alike(cascades, activation, average, mode, method):
    cache = cascades[activation, average]
    scorer, rois, mask = method.fit(cache), cache.image(107), np.arange(CLASSES) < 5
    expected = fuse.fuse_scores(Original(average, activation).scores(rois), scorer.scores(rois), mask, mode)
    description = {**cache.detector, "nms_iou": 0.5}
    calibration = Calibration.from_scorer(scorer, description, FusionConfig(mode=mode))
    reread = Calibration.from_config(calibration.to_config().__dict__)
    module: CalibratedScores = reread.module().eval().requires_grad_(False)
    module.load_scorer(scorer, mask)
    np.testing.assert_allclose(module.scores(rois), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "hyperparameters", "message"),
    [
        ("norcal", {"factor": "root"}, "factor is 'root', expected one of power, effective-number"),
        ("norcal", {"variant": "probs"}, "variant is 'probs', expected one of normalized, unnormalized, logits"),
        ("norcal", {"gamma": 1.0, "factor": "effective-number"}, "gamma is 1.0, expected 0 ≤ gamma < 1"),
        ("temperature", {"temperature": 0.0}, "temperature is 0.0, expected more than 0"),
        ("ncm", {"temperature": -1.0}, "temperature is -1.0, expected more than 0"),
        ("platt", {"penalty": -1.0}, "penalty is -1.0, expected at least 0"),
    ],
)
def test_values_that_a_method_refuses(name, hyperparameters, message):
    with pytest.raises(ValueError, match=message):
        posthoc.build_method(name, **hyperparameters)


def test_fits_need_labels(cache, tmp_path):
    unlabelled = [replace(rois, labels=np.full_like(rois.labels, -1)) for rois in cache]
    empty = write_cache(
        tmp_path / "c.zarr", unlabelled, cache.classes, split="train", level="embedding", stages=(0.5, 0.6)
    )
    for method in (posthoc.Temperature(), posthoc.Platt(), posthoc.NCM()):
        with pytest.raises(ValueError, match="no RoI of stage 0 matches a ground-truth box"):
            method.fit(empty)
