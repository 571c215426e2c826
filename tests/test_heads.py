"""Heads: layers of each type, scores, and the folder on disk."""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch

import calib
from calib.config import HEAD_TYPES
from calib.head_types import RECIPES, build_head
from extract.cache.format import LEVELS
from extract.class_scores import stage_scores
from extract.uses import trainable_head_types
from tests.toy_cache import CLASSES, HIDDEN, forward, toy_cache, toy_classes

CASCADE = (0.5, 0.6, 0.7)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("heads") / "pooled.zarr", stages=CASCADE, images=3)


def build(cache, head_type, hidden=8, seed=0):
    return build_head(cache, head_type, hidden, seed, {})


def test_3fc_ft_starts_from_the_detector(cache):
    rois = cache.image(107)
    head = build(cache, "3fc_ft")
    logits = head.logits(rois)
    assert logits.shape == (30, 3, CLASSES + 1) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, rois.logits.astype(np.float32), rtol=2e-3, atol=5e-3)
    assert all(p.requires_grad for p in head.parameters())


@pytest.mark.parametrize(
    ("head_type", "widths", "frozen"),
    [
        ("linear", (147, HIDDEN, HIDDEN, CLASSES + 1), 2),
        ("2fc_rand", (147, 8, CLASSES + 1), 0),
        ("3fc_rand", (147, 8, 8, CLASSES + 1), 0),
        ("3fc_ft", (147, HIDDEN, HIDDEN, CLASSES + 1), 0),
    ],
)
def test_head_types_differ_in_their_layers(cache, head_type, widths, frozen):
    head = build(cache, head_type)
    assert head.info.widths == widths and head.info.frozen_layers == frozen
    assert sum(not p.requires_grad for p in head.parameters()) == 2 * frozen * len(CASCADE)
    assert (head.name, head.num_classes, head.info.category_ids[:3]) == (head_type, CLASSES, (2, 5, 8))


def test_linear_on_pooled_features_scores_the_detectors_embedding(cache):
    rois = cache.image(100)
    head = build(cache, "linear")
    classifier = head.stages[1][-1]
    own = [*cache.fc_layers(1)[:-1], (classifier.weight.detach().numpy(), classifier.bias.detach().numpy())]
    np.testing.assert_allclose(head.logits(rois)[:, 1], forward(own, rois.features[:, 1]), rtol=1e-3, atol=1e-5)


def test_linear_on_embeddings_is_one_layer(tmp_path):
    cache = toy_cache(tmp_path / "c.zarr", "embedding", images=1, fc_layers=False)
    head = build(cache, "linear")
    assert head.info.widths == (HIDDEN, CLASSES + 1)
    assert head.logits(cache.image(100)).shape == (30, 1, CLASSES + 1)


def test_new_layers_depend_on_the_seed_only(cache):
    torch.manual_seed(1)
    weights = [build(cache, "3fc_rand", seed=seed).state_dict() for seed in (4, 4, 5)]
    name = "stages.2.0.weight"
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])
    assert not torch.equal(weights[0][name], weights[0]["stages.1.0.weight"])


@pytest.mark.long
@pytest.mark.parametrize("average", ["scores", "logits"])
def test_scores_average_the_stages_as_the_detector_does(tmp_path, average):
    cache = toy_cache(tmp_path / "c.zarr", stages=CASCADE, images=1, average=average)
    rois, head = cache.image(100), build(cache, "3fc_ft")
    np.testing.assert_array_equal(head.scores(rois), stage_scores(head.logits(rois), average))
    np.testing.assert_allclose(head.scores(rois).sum(1), 1, rtol=1e-5)


def test_every_head_type_has_a_recipe():
    assert {recipe.head_type for recipe in RECIPES} == set(HEAD_TYPES)


@pytest.mark.parametrize("head_type", [recipe.head_type for recipe in RECIPES if recipe.level == "pooled"])
def test_round_trip_through_a_folder(cache, tmp_path, head_type):
    head = build(cache, head_type)
    calib.save_head(head, tmp_path / "head")
    calib.save_head(head, tmp_path / "head")
    loaded = calib.load_head(tmp_path / "head")
    assert loaded.info == head.info and not loaded.training
    rois = cache.image(107)
    np.testing.assert_array_equal(loaded.scores(rois), head.scores(rois))
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in head.parameters()]
    assert sorted(os.listdir(tmp_path / "head")) == ["config.json", "head.safetensors"]
    modes = {stat.S_IMODE((tmp_path / "head" / name).stat().st_mode) for name in os.listdir(tmp_path / "head")}
    assert len(modes) == 1


@pytest.mark.long
def test_a_head_type_that_the_cache_does_not_support_is_refused(tmp_path):
    bare = toy_cache(tmp_path / "bare.zarr", images=1, fc_layers=False)
    for head_type in ("3fc_ft", "linear"):
        with pytest.raises(ValueError, match=f"bare.zarr: head '{head_type}' needs the detector's own layers.* 2fc"):
            build(bare, head_type)
    logits = toy_cache(tmp_path / "logits.zarr", "logits", images=1)
    with pytest.raises(
        ValueError, match="needs feature level 'pooled' or 'embedding' or 'hidden', the cache has 'logits'"
    ):
        build(logits, "linear")
    embedding = toy_cache(tmp_path / "embedding.zarr", "embedding", images=1)
    with pytest.raises(
        ValueError, match="head '3fc_ft' needs feature level 'pooled' or 'hidden', the cache has 'embed"
    ):
        build(embedding, "3fc_ft")
    with pytest.raises(ValueError, match="head_type is '4fc', expected one of linear"):
        build(bare, "4fc")


@pytest.mark.long
@pytest.mark.parametrize("fc_layers", [True, False])
@pytest.mark.parametrize("level", LEVELS)
def test_extract_states_which_head_types_a_cache_trains(level, fc_layers, tmp_path):
    directions = 5 if level == "hidden" and fc_layers else 0
    cache = toy_cache(tmp_path / "c.zarr", level, images=1, fc_layers=fc_layers, projection=directions)
    trained = set()
    for head_type in HEAD_TYPES:
        with suppress(ValueError):
            trained.add(build(cache, head_type).name)
    assert set(trainable_head_types(level, fc_layers, directions)) == trained


def test_pooled_features_before_and_after_convolutions_are_told_apart(cache):
    head = build(cache, "2fc_rand")
    other = calib.Head(replace(head.info, pooled_after_convolutions=True))
    message = "pooled features of the box head's input, the head was trained for after the box head's convolutions"
    with pytest.raises(ValueError, match=f"pooled.zarr: {message}"):
        other.check_cache(cache)


@pytest.mark.long
def test_features_of_another_level_are_refused(cache, tmp_path):
    head = build(cache, "2fc_rand")
    for level, found in (("embedding", r"\(3, 16\)"), ("logits", "none")):
        other = toy_cache(tmp_path / f"{level}.zarr", level, stages=CASCADE, images=1)
        expected = r"image 100: head '2fc_rand' expects pooled features \(3, 3, 7, 7\) per RoI"
        with pytest.raises(ValueError, match=rf"{expected}, the RoIs have {found}"):
            head.scores(other.image(100))


@pytest.mark.long
def test_a_cache_that_the_head_cannot_score_is_refused(cache, tmp_path):
    head = build(cache, "linear")
    head.check_cache(cache)
    for name, options in {
        "level embedding, the head was trained for pooled": {"level": "embedding", "stages": CASCADE},
        r"stages \(0.5,\), the head was trained for \(0.5, 0.6, 0.7\)": {},
    }.items():
        other = toy_cache(tmp_path / "other.zarr", images=1, **options)
        with pytest.raises(ValueError, match=f"other.zarr: {name}"):
            head.check_cache(other)


@pytest.mark.long
def test_a_cache_of_other_training_counts_is_refused(cache, tmp_path):
    head = build(cache, "linear")
    assert head.info.instance_counts == tuple((c + 1) ** 2 for c in range(CLASSES))
    calib.save_head(head, tmp_path / "head")
    classes = toy_classes()
    classes.loc[[4, 7], "instance_count"] = [3, 2]
    other = toy_cache(tmp_path / "other.zarr", stages=CASCADE, images=1, split="val", classes=classes)
    expected = "other.zarr: class class 4 has 3 training instances, the head was trained with 25"
    with pytest.raises(ValueError, match=expected):
        calib.load_head(tmp_path / "head").check_cache(other)


def _edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    del config["config_sha256"]
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, r"config.json: format version 2, this library reads 1 \(written by a newer version\)"),
        ({"format": "other"}, "config.json: format is 'other', expected 'tailcal-head'"),
        ({"widths": "3"}, r"config.json: Expected `array`, got `str` - at `\$.widths`"),
        ({"widths": [147, 8, 9]}, "config.json: widths are .* expected to lead from 147 to 13"),
        ({"instance_counts": [1, 4]}, "config.json: 2 instance_counts for 12 category_ids"),
        ({"widths": [147, 9, 13]}, r"head.safetensors: stages.0.0.bias is \(8,\), expected \(9,\) from config.json"),
        ({"stages": [0.5]}, r"head.safetensors: stages.1.0.bias is \(8,\), expected None from config.json"),
        ({"stages": [0.5] * 4}, r"head.safetensors: stages.3.0.bias is None, expected \(8,\) from config.json"),
    ],
)
def test_a_damaged_description_is_refused(cache, tmp_path, change, message):
    calib.save_head(build(cache, "2fc_rand"), tmp_path)
    _edit(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        calib.load_head(tmp_path)


def test_missing_and_damaged_files_are_named(cache, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no finished head there; calib.train makes one"):
        calib.load_head(tmp_path / "nowhere")
    calib.save_head(build(cache, "2fc_rand"), tmp_path)
    weights = tmp_path / "head.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"head\.safetensors: damaged"):
        calib.load_head(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"head\.safetensors: no such file"):
        calib.load_head(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: Input data was truncated"):
        calib.load_head(tmp_path)
