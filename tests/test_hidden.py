"""Feature level "hidden": extraction, the projection, and conversion of pooled caches."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import extract
from extract.cache.format import CacheError
from extract.cache.writer import CacheWriter
from extract.command_configs import ConvertConfig
from extract.convert import run as convert
from extract.hidden import hidden_features
from extract.projection import principal_directions
from extract.verify import worst_logit_error
from tests.conftest import CLASSES
from tests.test_extraction import command, flags

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
        np.testing.assert_allclose(other.logits, own.logits, atol=5e-3 * np.abs(own.logits).max())
        np.testing.assert_array_equal(other.labels, own.labels)
    assert "logits" not in hidden.fields and worst_logit_error(hidden) is None
    assert pooled.level == "pooled" and worst_logit_error(pooled) < 5e-3


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


def test_an_interrupted_extraction_resumes_with_the_directions_it_has_fitted(tiny, caches, tmp_path, monkeypatch):
    config = tiny.config("train", tmp_path / "cache", level="hidden", projection=SIZE)
    write = CacheWriter.write_block

    def interrupted(self, block, rois):
        write(self, block, rois)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "write_block", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract.run(config)
    with pytest.raises(CacheError, match=f"other options: projection .{SIZE} there, 3 now.; --overwrite"):
        extract.run(replace(config, projection=3))
    with monkeypatch.context() as patch:
        patch.setattr("extract.extraction.fit_on_images", None)
        assert extract.run(config).fingerprint == caches["train", "hidden"].fingerprint


def test_conversion_resumes(caches, tmp_path, monkeypatch):
    config = ConvertConfig(caches["train", "pooled"].url, str(tmp_path / "cache"), projection=SIZE, device="cpu")
    whole = convert(replace(config, out=str(tmp_path / "whole")))
    write = CacheWriter.write_block

    def interrupted(self, block, rois):
        if block:
            raise KeyboardInterrupt
        write(self, block, rois)

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "write_block", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(config)
    with pytest.raises(CacheError, match="other options: projection .20 there, 3 now."):
        convert(replace(config, projection=3))
    monkeypatch.setattr("extract.convert.fit_projections", None)
    assert convert(config).fingerprint == convert(config).fingerprint == whole.fingerprint


def test_later_levels_follow_from_earlier_ones(tiny, caches, tmp_path):
    expected = extract.run(tiny.config("train", tmp_path / "embedding.zarr", level="embedding"))
    for level in ("pooled", "hidden"):
        new = convert(ConvertConfig(caches["train", level].url, str(tmp_path / level), level="embedding", device="cpu"))
        np.testing.assert_allclose(new.read("features"), expected.read("features"), rtol=1e-2, atol=1e-2)
        assert worst_logit_error(new) < 5e-3 and new.projections == []
        assert new.detector == expected.detector
    logits = convert(ConvertConfig(new.url, str(tmp_path / "logits"), level="logits", device="cpu"))
    assert logits.fields.get("features") is None and logits.fc_layers() == []
    np.testing.assert_allclose(logits.read("logits"), expected.read("logits"), rtol=1e-2, atol=5e-3)
    with pytest.raises(CacheError, match="level 'embedding' does not give level 'hidden'"):
        convert(ConvertConfig(new.url, str(tmp_path / "no")))


def test_what_cannot_be_is_refused_in_one_line(tiny, caches, tmp_path, capfd):
    val, train = caches["val", "pooled"].url, caches["train", "pooled"].url
    hidden, no = caches["train", "hidden"].url, tmp_path / "no"
    base = flags(tiny.config("val", no))
    cases = {
        "a val cache of level hidden needs --projection-from with its train cache": [*base, "--level", "hidden"],
        "level is pooled: only feature level hidden has a projection": [*base, "--projection-from", hidden],
        "projection is 0: --projection-from": [
            *base,
            "--level",
            "hidden",
            "--projection",
            0,
            "--projection-from",
            hidden,
        ],
        "rois_per_class is 2: a val cache keeps the top proposals": [*base, "--rois-per-class", 2],
        f"projection is 3: {hidden} has {SIZE} directions": [
            *(*base, "--level", "hidden", "--projection", 3, "--projection-from", hidden)
        ],
        f"{train}: has no projection .level 'pooled'., from which directions could be": [
            *(*base, "--level", "hidden", "--projection-from", train)
        ],
        f"{val}: a val cache needs --projection-from with its train cache": ["convert", val, no],
        "projection is 2000, expected at most 7": ["convert", train, no, "--projection", 2000],
        f"{train}: level 'pooled' does not give level 'pooled'|invalid choice": [
            "convert",
            train,
            no,
            "--level",
            "pooled",
        ],
    }
    for message, arguments in cases.items():
        assert command(*arguments) in (1, 2), message
        assert re.search(message, " ".join(capfd.readouterr().err.replace("│", " ").split())), message
        assert not no.exists()


def test_directions_of_another_detector_are_refused(tiny, caches, tmp_path):
    weights = load_file(tiny.weights)
    name = "roi_heads.box_predictor.cls_score.bias"
    save_file({**weights, name: weights[name] + 1}, tmp_path / "other.safetensors")
    config = tiny.config("val", tmp_path / "no", level="hidden", projection_from=caches["train", "hidden"].url)
    with pytest.raises(ValueError, match="train_hidden.zarr: detector tensors .*, directions are needed for"):
        extract.run(replace(config, weights=tmp_path / "other.safetensors"))
    assert not (tmp_path / "no").exists()


def test_an_estimate_fits_no_directions(tiny, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "extract")
    monkeypatch.setattr("extract.extraction.fit_on_images", None)
    config = tiny.config("train", tmp_path / "no", level="hidden", projection=SIZE, estimate=True)
    assert extract.run(config) is None and not (tmp_path / "no").exists()
    assert f"RoIs each at {2 * (256 + SIZE) + 53:,} bytes" in caplog.text, caplog.text


def test_few_rois_per_class(tiny, caches, tmp_path):
    config = tiny.config("train", tmp_path / "few.zarr", level="hidden", projection=0, rois_per_class=2)
    cache, every = extract.run(config), caches["train", "hidden"]
    assert not cache.projections and cache.provenance["config"]["rois_per_class"] == 2
    assert "rois_per_class" not in every.provenance["config"]
    for rois, other in zip(cache, every, strict=True):
        counts, gt = (
            np.bincount(labels, minlength=CLASSES + 1) for labels in (rois.labels[:, 0], rois.labels[rois.is_gt, 0])
        )
        assert (counts[:-1] <= np.maximum(gt[:-1], 2)).all() and rois.is_gt.sum() == other.is_gt.sum()
        assert counts[-1] <= counts[:-1].sum()
    with pytest.raises(CacheError, match="other options: rois_per_class .2 there, None now."):
        extract.run(replace(config, rois_per_class=None))


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
