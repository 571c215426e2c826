"""Post-hoc methods against references of a few lines."""

from __future__ import annotations

import numpy as np
import pytest

from calib import posthoc
from calib.config import HEAD_TYPES, SAMPLINGS
from calib.losses import LOSSES
from calib.posthoc.base import training_counts
from calib.posthoc.logn import logit_moments
from extract.class_scores import stage_scores
from tests.toy_cache import CLASSES, toy_cache, toy_classes


def _softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.fixture(scope="module", params=["scores", "logits"])
def cache(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("posthoc") / "c.zarr"
    return toy_cache(path, stages=(0.5, 0.6, 0.7), images=8, average=request.param)


def _expect(scorer, cache, adjust):
    """Compares scores with the reference `adjust(logits (R, K+1), stage)` for one stage."""
    rois = cache.image(107)
    logits = rois.logits.astype(np.float64)
    adjusted = np.stack([adjust(logits[:, s], s) for s in range(3)], axis=1)
    average = cache.detector["stage_average"]
    expected = _softmax(adjusted).mean(1) if average == "scores" else _softmax(adjusted.mean(1))
    scores = scorer.fit(cache).scores(rois)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("count", ["image_count", "instance_count"])
def test_norcal_divides_probabilities_by_counts(cache, count):
    def adjust(z, stage):
        p = np.exp(z)
        p[:, :-1] /= toy_classes()[count].to_numpy() ** 0.7
        return np.log(p)

    _expect(posthoc.NorCal(0.7, count), cache, adjust)


def test_norcal_counts_images_and_treats_zero_as_one(cache):
    assert posthoc.NorCal().count == "image_count"
    np.testing.assert_array_equal(training_counts(cache, "image_count"), np.arange(CLASSES) + 1)


def test_logit_adjustment_subtracts_log_priors(cache):
    counts = toy_classes()["instance_count"].to_numpy()
    prior = np.append(np.log(counts / counts.sum()), 0)
    _expect(posthoc.LogitAdjustment(0.5), cache, lambda z, stage: z - 0.5 * prior)


def test_logn_standardises_foreground_logits(cache):
    every = cache.read("logits").astype(np.float64)

    def adjust(z, stage):
        mean, deviation = every[:, stage, :-1].mean(0), every[:, stage, :-1].std(0)
        return np.column_stack([(z[:, :-1] - (mean - mean.min())) / deviation, z[:, -1]])

    _expect(posthoc.LogN(), cache, adjust)


def test_moments_are_the_same_however_many_rows_are_read_at_once(cache):
    for first, second in zip(logit_moments(cache), logit_moments(cache, rows_at_once=50), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-12)


def test_tau_norm_is_the_classifier_with_normalised_rows(cache):
    def adjust(z, stage):
        weight, bias = cache.fc_layers(stage)[-1]
        return (z - bias) / np.linalg.norm(weight, axis=1) ** 0.5

    _expect(posthoc.TauNorm(0.5), cache, adjust)


def test_identity_parameters_change_nothing(cache):
    rois = cache.image(100)
    for scorer in (posthoc.NorCal(0), posthoc.LogitAdjustment(0)):
        np.testing.assert_array_equal(scorer.fit(cache).logits(rois), rois.logits.astype(np.float32))


def test_names_contain_hyperparameters():
    scorers = posthoc.NorCal(0.6), posthoc.LogitAdjustment(), posthoc.LogN(), posthoc.TauNorm(0.25)
    assert [s.name for s in scorers] == ["norcal-0.6", "logit-adjustment-1", "logn", "tau-norm-0.25"]


@pytest.mark.parametrize("name", posthoc.METHODS)
def test_methods_are_built_by_name(cache, name):
    method = posthoc.build_method(name, **{"count": "instance_count"} if name == "fracal" else {})
    assert type(method) is posthoc.METHODS[name] and method.name.startswith(name)
    assert method.needs and method.source
    scorer = method.fit(cache)
    assert scorer.instance_counts == tuple(toy_classes()["instance_count"])
    assert scorer.scores(cache[0]).shape == (30, CLASSES + 1)


def test_hyperparameters_reach_the_method():
    norcal = posthoc.build_method("norcal", gamma=0.3, count="instance_count")
    assert (norcal.gamma, norcal.count) == (0.3, "instance_count")


@pytest.mark.parametrize(
    ("name", "hyperparameters", "message"),
    [
        ("nocal", {}, "method is 'nocal', expected one of norcal, logit-adjustment, logn, tau-norm, fracal"),
        ("logn", {"gamma": 0.6}, "gamma is 0.6: method logn has no gamma, it has no hyperparameters"),
        ("norcal", {"tau": 1}, "tau is 1: method norcal has no tau, it has gamma, count, factor, variant"),
    ],
)
def test_unknown_methods_and_hyperparameters_are_named(name, hyperparameters, message):
    with pytest.raises(ValueError, match=message):
        posthoc.build_method(name, **hyperparameters)


def test_stage_average_can_be_changed_after_fit(cache):
    method, rois = posthoc.NorCal().fit(cache), cache.image(100)
    for average in ("scores", "logits"):
        expected = stage_scores(method.logits(rois), average)
        np.testing.assert_array_equal(method.averaged(average).scores(rois), expected)


def test_errors(cache, tmp_path):
    rois = cache.image(100)
    with pytest.raises(ValueError, match="logn is not fitted"):
        posthoc.LogN().scores(rois)
    other = toy_cache(tmp_path / "one.zarr", images=1, fc_layers=False)
    with pytest.raises(ValueError, match=r"image 100: logits are \(3, 13\).* fitted for \(1, 13\)"):
        posthoc.NorCal().fit(other).scores(rois)
    with pytest.raises(ValueError, match="count is 'images', expected 'image_count' or 'instance_count'"):
        posthoc.NorCal(count="images").fit(other)
    with pytest.raises(ValueError, match=r"one.zarr: has no classifier weights .* tau-norm-1 needs them"):
        posthoc.TauNorm().fit(other)


def test_methods_are_listed(capsys):
    from calib.__main__ import main

    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    for name, method in posthoc.METHODS.items():
        assert f"--method {name}\n" in listed and method.needs in listed and method.source in listed
    for name, loss in LOSSES.items():
        assert f"--loss {name}\n" in listed and loss.needs in listed and loss.source in listed
    assert all(name in listed for name in (*HEAD_TYPES, *SAMPLINGS))
