"""Heads on feature level "hidden", frozen layers, and the same heads on pooled features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import calib
from calib.deployment import on_pooled_features
from calib.head_types import build_head
from calib.heads import linear_layers
from tests.toy_cache import CLASSES, HIDDEN, forward, toy_cache

CASCADE = (0.5, 0.6)
RANK = 7
HIDDEN_TYPES = ("linear", "3fc_ft", "3fc_lowrank")
OPTIONS = {"steps": 60, "lr": 0.03}


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """The same RoIs at level pooled, and at level hidden with directions."""
    folder = tmp_path_factory.mktemp("hidden_heads")
    hidden = toy_cache(folder / "hidden.zarr", "hidden", CASCADE, projection=RANK)
    return toy_cache(folder / "pooled.zarr", "pooled", CASCADE), hidden


def build(cache, head_type, freeze_layers=0):
    return build_head(cache, head_type, 8, 0, {}, freeze_layers)


def first_layers(cache):
    return [cache.fc_layers(stage)[0] for stage in range(len(cache.stages))]


@pytest.mark.parametrize("head_type", ["3fc_ft", "3fc_lowrank"])
def test_a_head_on_hidden_features_starts_from_the_detector(caches, head_type):
    rois = caches[1].image(107)
    head = build(caches[1], head_type)
    np.testing.assert_allclose(head.logits(rois), rois.logits.astype(np.float32), rtol=5e-3, atol=2e-2)
    assert head.info.widths == (HIDDEN, HIDDEN, CLASSES + 1) and head.info.rank == RANK * (head_type == "3fc_lowrank")
    assert all(p.requires_grad for p in head.parameters())


def test_linear_on_hidden_features_trains_the_classifier_only(caches):
    head = build(caches[1], "linear")
    assert [p.requires_grad for p in head.stages[0].parameters()] == [False, False, True, True]
    rois = caches[1].image(100)
    classifier = tuple(p.detach().numpy() for p in linear_layers(head.stages[1])[-1].parameters())
    own = [*caches[1].fc_layers(1)[:-1], classifier]
    expected = forward(own, caches[0].image(100).features[:, 1])
    np.testing.assert_allclose(head.logits(rois)[:, 1], expected, rtol=1e-2, atol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("head_type", HIDDEN_TYPES)
def test_a_trained_head_scores_pooled_features_alike(caches, head_type):
    pooled, hidden = caches
    head = calib.train_head(hidden, head_type=head_type, **OPTIONS)
    deployed = on_pooled_features(head, first_layers(hidden), (3, 7, 7))
    assert deployed.level == "pooled" and deployed.info.widths == (147, HIDDEN, HIDDEN, CLASSES + 1)
    for own, other in zip(hidden, pooled, strict=True):
        np.testing.assert_allclose(deployed.scores(other), head.scores(own), atol=5e-3)
    assert on_pooled_features(deployed, [], ()) is deployed
    deployed.check_cache(pooled)


def test_the_correction_is_folded_exactly(caches):
    pooled, hidden = caches
    head = build(hidden, "3fc_lowrank")
    torch.nn.init.normal_(head.stages[1][0].weight, generator=torch.Generator().manual_seed(1))
    deployed = on_pooled_features(head, first_layers(hidden), (3, 7, 7))
    (weight, bias), projection = hidden.fc_layers(1)[0], hidden.projections[1]
    x = pooled.image(100).features[:, 1].reshape(30, -1).astype(np.float64)
    correction = head.stages[1][0].weight.detach().double().numpy()
    expected = x @ weight.T + bias + (x - projection.center) @ projection.directions.T @ correction.T
    layer = linear_layers(deployed.stages[1])[0]
    np.testing.assert_allclose(layer(torch.from_numpy(x).float()).detach(), expected, rtol=1e-5, atol=1e-4)
    for own, stored in zip(head.projections, hidden.projections, strict=True):
        np.testing.assert_array_equal(own.directions, stored.directions)
        np.testing.assert_array_equal(own.center, stored.center)


@pytest.mark.long
def test_low_rank_training_is_training_within_the_directions(tmp_path):
    """One step on all of the detector's layers, its first weight's gradient restricted to the span of V."""
    hidden = toy_cache(tmp_path / "hidden.zarr", "hidden", projection=RANK)
    pooled = toy_cache(tmp_path / "pooled.zarr")
    options = {"steps": 1, "lr": 0.1, "weight_decay": 0.0}
    head = calib.train_head(hidden, head_type="3fc_lowrank", **options)
    full = calib.train_head(pooled, head_type="3fc_ft", **options)
    weight, directions = hidden.fc_layers()[0][0], hidden.projections[0].directions
    moved = (linear_layers(full.stages[0])[0].weight.detach().numpy() - weight) @ directions.T
    center = hidden.projections[0].center @ directions.T
    shift = linear_layers(full.stages[0])[0].bias.detach().numpy() - hidden.fc_layers()[0][1]
    # Coordinates are centered: the gradient of U is that of W along V, less that of the bias times V μ.
    expected = moved - shift[:, None] * center
    np.testing.assert_allclose(head.stages[0][0].weight.detach().numpy(), expected, rtol=0.05, atol=2e-3)


@pytest.mark.long
def test_a_head_without_correction_ignores_the_projection(caches, tmp_path):
    bare = toy_cache(tmp_path / "bare.zarr", "hidden", CASCADE)
    head, other = (calib.train_head(cache, head_type="3fc_ft", **OPTIONS) for cache in (caches[1], bare))
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    np.testing.assert_array_equal(head.scores(caches[1].image(100)), head.scores(bare.image(100)))
    head.check_cache(bare)
    assert head.projections == []


def test_a_cache_without_projection_or_with_another_is_refused(caches, tmp_path):
    bare = toy_cache(tmp_path / "bare.zarr", "hidden", CASCADE)
    with pytest.raises(ValueError, match="bare.zarr: head '3fc_lowrank' needs a projection, which the cache lacks"):
        build(bare, "3fc_lowrank")
    head = build(caches[1], "3fc_lowrank")
    head.check_cache(caches[1])
    with pytest.raises(ValueError, match=r"bare.zarr: feature shape \(16,\), the head was trained for \(23,\)"):
        head.check_cache(bare)
    with pytest.raises(
        ValueError, match="pooled.zarr: level pooled, the head was trained for hidden; python -m extract"
    ):
        head.check_cache(caches[0])
    head.stages[1][0].center += 1
    with pytest.raises(ValueError, match="the projection of stage 1 has other directions than the head's train cache"):
        head.check_cache(caches[1])


@pytest.mark.parametrize("head_type", ["3fc_ft", "3fc_lowrank"])
def test_round_trip_through_a_folder(caches, tmp_path, head_type):
    head = calib.train_head(caches[1], head_type=head_type, out=str(tmp_path / "head"), **OPTIONS)
    loaded = calib.load_head(tmp_path / "head")
    assert loaded.info == head.info
    np.testing.assert_array_equal(loaded.scores(caches[1].image(107)), head.scores(caches[1].image(107)))


def test_other_first_layers_are_refused(caches):
    head = build(caches[1], "3fc_lowrank")
    with pytest.raises(ValueError, match=r"the detector's first layers have shapes \[\(16, 147\)\], expected"):
        on_pooled_features(head, first_layers(caches[1])[:1], (3, 7, 7))


@pytest.mark.long
@pytest.mark.parametrize("level", ["pooled", "hidden"])
@pytest.mark.parametrize("count", [1, 2])
def test_frozen_layers_stay_the_detectors(caches, level, count):
    cache = caches[level == "hidden"]
    head = calib.train_head(cache, head_type="3fc_ft", freeze_layers=count, **OPTIONS)
    below = level == "hidden"
    assert head.info.frozen_layers == count - below and head.info.config["freeze_layers"] == count
    for stage in range(len(CASCADE)):
        layers = linear_layers(head.stages[stage])
        for depth, (layer, (weight, _)) in enumerate(zip(layers, cache.fc_layers(stage)[below:], strict=True)):
            frozen = depth + below < count
            assert np.array_equal(layer.weight.detach().numpy(), weight) == frozen
            assert layer.weight.requires_grad is not frozen


@pytest.mark.long
def test_hidden_features_train_as_pooled_ones_with_a_frozen_first_layer(caches):
    pooled = calib.train_head(caches[0], head_type="3fc_ft", freeze_layers=1, **OPTIONS)
    hidden = calib.train_head(caches[1], head_type="3fc_ft", **OPTIONS)
    rois = [cache.image(100) for cache in caches]
    np.testing.assert_allclose(hidden.scores(rois[1]), pooled.scores(rois[0]), atol=0.02)


@pytest.mark.parametrize(
    ("level", "head_type", "count", "limit"),
    [
        ("pooled", "3fc_ft", 3, 2),
        ("pooled", "linear", 3, 2),
        ("pooled", "2fc_rand", 1, 0),
        ("hidden", "3fc_ft", 3, 2),
        ("hidden", "3fc_lowrank", 1, 0),
    ],
)
def test_too_many_frozen_layers_are_refused(caches, level, head_type, count, limit):
    message = f"freeze_layers is {count}, expected at most {limit} for head '{head_type}' on {level} features"
    with pytest.raises(ValueError, match=message):
        build(caches[level == "hidden"], head_type, count)


def test_runs_without_frozen_layers_have_the_identity_of_older_versions():
    config = calib.Config(cache="c", out="o")
    assert config.identity("f").get("freeze_layers") is None
    assert replace(config, freeze_layers=1).identity("f")["freeze_layers"] == 1
