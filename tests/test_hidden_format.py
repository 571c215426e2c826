"""Caches of feature level "hidden" of a synthetic detector: stored, checked, shown, converted, and as HDF5."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import zarr

from extract.cache.creation import write_cache
from extract.cache.format import CacheError, Projection
from extract.cache.hdf5 import export_hdf5, import_hdf5
from extract.cache.opening import open_cache
from extract.cache.reader import RoICache
from extract.command_configs import ConvertConfig
from extract.convert import run as convert
from extract.verify import worst_logit_error
from tests.toy_cache import HIDDEN, change_attributes, toy_cache, toy_classes, toy_layers, toy_projection

CASCADE, SIZE = (0.5, 0.6, 0.7), 5


@pytest.fixture
def cache(tmp_path) -> RoICache:
    return toy_cache(tmp_path / "hidden.zarr", "hidden", CASCADE, images=3, projection=SIZE)


def test_a_cache_holds_its_directions(cache):
    assert cache.fields["features"] == (3, HIDDEN + SIZE) and cache.num_directions == SIZE
    for stage, projection in enumerate(cache.projections):
        for own, expected in zip(projection, toy_projection(SIZE, 50 + stage), strict=True):
            np.testing.assert_array_equal(own, expected)
    expected = "hidden, features (21,) float16, the last 5 along principal directions, from which logits are computed"
    assert expected in repr(cache)
    assert len(cache.fc_layers(0)) == 3, "the first layer is stored, from which a head on pooled features is made"


def test_without_directions(tmp_path):
    cache = toy_cache(tmp_path / "c.zarr", "hidden", images=2)
    assert cache.projections == [] and cache.num_directions == 0 and cache.fields["features"] == (1, HIDDEN)


@pytest.mark.long
def test_hdf5_keeps_the_directions(cache, tmp_path):
    export_hdf5(cache, tmp_path / "c.h5")
    again = import_hdf5(tmp_path / "c.h5", str(tmp_path / "again.zarr"))
    assert again.fingerprint == cache.fingerprint and again.fields == cache.fields
    for own, other in zip(cache.projections, again.projections, strict=True):
        np.testing.assert_array_equal(own.directions, other.directions)
        np.testing.assert_array_equal(own.center, other.center)


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "message"),
    {
        "layers": ({"fc_layers": []}, r"level 'hidden' needs fc_layers of 1 stage\(s\), at least two layers each"),
        "one layer": ({"fc_layers": [toy_layers(np.random.default_rng(0), 1)[0][:1]]}, "at least two layers each"),
        "missing": ({"projections": []}, "features are 21 per RoI, stage 0 needs 16 .* layer and 0 of its projection"),
        "stages": ({"projections": [toy_projection(SIZE, 1)] * 2}, "projections are of 2 stages, expected 1"),
        "shape": ({"projections": [Projection(np.eye(SIZE), np.zeros(SIZE))]}, r"shapes \(5, 5\) and \(5,\), expected"),
        "scaled": (
            {"projections": [Projection(2 * toy_projection(SIZE, 1).directions, toy_projection(SIZE, 1).center)]},
            "projections of stage 0: the directions are not orthonormal",
        ),
        "level": ({"level": "embedding"}, "level 'embedding' has no projections, level 'hidden' has"),
    }.values(),
)
def test_what_does_not_fit_the_features_is_refused(tmp_path, changes, message):
    cache = toy_cache(tmp_path / "c.zarr", "hidden", images=1, projection=SIZE)
    options = {"level": "hidden", "fc_layers": [cache.fc_layers()], "projections": cache.projections} | changes
    with pytest.raises(CacheError, match=f"new.zarr: .*{message}|new.zarr: {message}"):
        write_cache(tmp_path / "new.zarr", cache, toy_classes(), split="train", **options)
    assert not (tmp_path / "new.zarr").exists()


def test_verify_checks_the_directions(cache):
    group = zarr.open_group(cache.url, mode="r+")
    group["detector/stage_1/directions"][0] *= 2
    change_attributes(cache.url)  # the manifest would tell as well
    with pytest.raises(CacheError, match="hidden.zarr: projections of stage 1: the directions are not orthonormal"):
        worst_logit_error(open_cache(cache.url))


@pytest.mark.long
@pytest.mark.parametrize("split", ["train", "val"])
def test_conversion_of_a_cascade(tmp_path, split):
    """Given the same directions, the same features up to rounding to half floats as those of pooled features."""
    hidden, pooled, embedding = (
        toy_cache(tmp_path / f"{level}.zarr", level, CASCADE, 20, split=split, projection=SIZE * (level == "hidden"))
        for level in ("hidden", "pooled", "embedding")
    )
    config = ConvertConfig(pooled.url, str(tmp_path / "new.zarr"), device="cpu")
    new = convert(replace(config, projection_from=hidden.url))
    np.testing.assert_allclose(new.read("features"), hidden.read("features"), rtol=2e-3, atol=2e-3)
    assert new.header.split == split and new.fields == hidden.fields
    for field in new.fields.keys() - {"features"}:
        np.testing.assert_array_equal(new.read(field), pooled.read(field))
    np.testing.assert_allclose(new.read("logits"), pooled.read("logits"), atol=2e-2)
    for source in (pooled, new):
        other = convert(
            ConvertConfig(source.url, str(tmp_path / f"{source.level}.emb"), level="embedding", device="cpu")
        )
        np.testing.assert_allclose(other.read("features"), embedding.read("features"), rtol=5e-3, atol=1e-2)


@pytest.mark.long
def test_conversion_fits_directions_of_train_caches_only(tmp_path):
    train = toy_cache(tmp_path / "train.zarr", images=8)
    new = convert(ConvertConfig(train.url, str(tmp_path / "new.zarr"), projection=12, device="cpu"))
    features = train.read("features").reshape(240, -1).astype(np.float32)
    directions, center = new.projections[0]
    exact = np.linalg.svd(features - features.mean(0), full_matrices=False)[2][:12]
    np.testing.assert_allclose(center, features.mean(0), atol=1e-4)
    captured = [np.square((features - center) @ basis.T).sum() for basis in (directions, exact)]
    assert captured[0] > 0.999 * captured[1]
    coordinates = new.read("features")[:, 0, HIDDEN:]
    np.testing.assert_allclose(coordinates, (features - center) @ directions.T, atol=2e-2)
    val = toy_cache(tmp_path / "val.zarr", images=2, split="val")
    with pytest.raises(CacheError, match="val.zarr: a val cache needs --projection-from with its train cache"):
        convert(ConvertConfig(val.url, str(tmp_path / "no.zarr"), device="cpu"))
    assert convert(ConvertConfig(val.url, str(tmp_path / "no.zarr"), projection=0, device="cpu")).num_directions == 0


@pytest.mark.long
def test_a_cache_without_layers_converts_to_logits_only(tmp_path):
    bare = toy_cache(tmp_path / "bare.zarr", images=1, fc_layers=False)
    for level, message in {
        "hidden": "needs a box head whose layers",
        "embedding": "has no fully connected layers",
    }.items():
        with pytest.raises(ValueError, match=f"bare.zarr: .*{message}"):
            convert(ConvertConfig(bare.url, str(tmp_path / "no.zarr"), level=level, device="cpu"))
    assert (
        convert(ConvertConfig(bare.url, str(tmp_path / "logits.zarr"), level="logits", device="cpu")).level == "logits"
    )


def test_the_cache_to_read_is_never_replaced(cache, monkeypatch):
    fingerprint, config = cache.fingerprint, ConvertConfig(cache.url, f"{cache.url}/", level="logits", overwrite=True)
    with pytest.raises(CacheError, match="hidden.zarr/: is the cache to read; give another place to write to"):
        convert(config)
    assert open_cache(cache.url).fingerprint == fingerprint
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="convert runs in one process"):
        convert(config)
