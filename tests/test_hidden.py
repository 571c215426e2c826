"""Feature level "hidden": extraction, the projection, and conversion of pooled caches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import extract
from extract.config import ConvertConfig
from extract.convert import run as convert
from extract.hidden import hidden_features
from extract.projection import principal_directions
from extract.verify import worst_logit_error

SIZE = 20


@pytest.fixture(scope="module")
def caches(tiny, tmp_path_factory):
    """Train and val caches of both levels; the val cache takes its directions from the train cache."""
    folder = tmp_path_factory.mktemp("hidden")
    train = str(folder / "train_hidden.zarr")
    options = {"train": {"projection": SIZE}, "val": {"projection_from": train}}
    found = {}
    for split, of_split in options.items():
        found[split, "pooled"] = extract.run(tiny.config(split, folder / f"{split}.zarr"))
        out = folder / f"{split}_hidden.zarr"
        found[split, "hidden"] = extract.run(tiny.config(split, out, level="hidden", **of_split))
    return found


@pytest.mark.parametrize("split", ["train", "val"])
def test_hidden_features_follow_from_pooled_ones(caches, split):
    pooled, hidden = caches[split, "pooled"], caches[split, "hidden"]
    (projection,) = hidden.projections
    assert hidden.fields["features"] == (1, 256 + SIZE) and hidden.num_directions == SIZE
    for own, other in zip(pooled, hidden, strict=True):
        expected = hidden_features(torch.from_numpy(own.features[:, 0]), pooled.fc_layers()[0], projection)
        np.testing.assert_allclose(other.features[:, 0], expected, rtol=1e-2, atol=1e-2)
        np.testing.assert_array_equal(other.logits, own.logits)
        np.testing.assert_array_equal(other.labels, own.labels)
    assert worst_logit_error(hidden) < 5e-3


def test_the_val_cache_has_the_directions_of_the_train_cache(caches):
    train, val = (caches[split, "hidden"] for split in ("train", "val"))
    for own, other in zip(train.projections[0], val.projections[0], strict=True):
        np.testing.assert_array_equal(own, other)


def test_a_converted_cache_equals_the_extracted_one(caches, tmp_path):
    for split, options in {
        "train": {"projection": SIZE},
        "val": {"projection_from": caches["train", "hidden"].url},
    }.items():
        out = str(tmp_path / split)
        new = convert(ConvertConfig(caches[split, "pooled"].url, out, device="cpu", **options))
        expected = caches[split, "hidden"]
        assert new.fields == expected.fields and new.num_directions == SIZE
        np.testing.assert_allclose(new.projections[0].directions, expected.projections[0].directions, atol=2e-3)
        np.testing.assert_allclose(new.read("features"), expected.read("features"), rtol=2e-2, atol=3e-2)


def test_principal_directions_are_those_of_an_exact_decomposition():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 60)) + rng.normal(size=(300, 60)) / 10 + 5
    directions, center = principal_directions(features.astype(np.float32), 8, seed=0)
    np.testing.assert_allclose(center, features.mean(0), atol=1e-4)
    exact = np.linalg.svd(features - features.mean(0), full_matrices=False)[2][:8]
    np.testing.assert_allclose(np.abs(directions @ exact.T), np.eye(8), atol=1e-3)
    assert (directions.max(1) == np.abs(directions).max(1)).all()
    again = principal_directions(features.astype(np.float32), 8, seed=0)
    np.testing.assert_array_equal(again.directions, directions)
