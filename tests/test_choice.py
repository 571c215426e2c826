"""Head type auto: what each feature level resolves to, and the choice on held-out training images."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch

import calib
from calib import choice
from calib.choice import choose_head_type, held_out_images, resolve_auto
from calib.config import Config
from calib.features import Features
from calib.sampler import BiLevelSampler
from tests.test_sampler import make
from tests.test_train import call_before_step, crash
from tests.toy_cache import toy_cache

OPTIONS = {"steps": 60, "checkpoint_every": 20}


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("choice") / "hidden.zarr", "hidden", projection=9)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(choice, "STEPS", 30)
    monkeypatch.setattr(choice, "HELD_OUT_STEPS", 10)


@pytest.mark.long
@pytest.mark.parametrize(
    ("level", "options", "expected"),
    [
        ("pooled", {}, ("3fc_ft", None)),
        ("pooled", {"fc_layers": False}, ("3fc_rand", None)),
        ("embedding", {}, ("linear", None)),
        ("hidden", {}, ("3fc_ft", 4)),
        ("hidden", {"projection": 5}, ("auto", 4)),
    ],
)
def test_the_feature_level_decides(level, options, expected, tmp_path):
    cache = toy_cache(tmp_path / "c.zarr", level, images=1, **options)
    resolved = resolve_auto(Config(cache="", out=""), cache)
    assert (resolved.head_type, resolved.rois_per_class) == expected


def test_other_head_types_and_options_stay_as_they_are(hidden):
    explicit = Config(cache="", out="", head_type="3fc_ft")
    assert resolve_auto(explicit, hidden) is explicit
    assert resolve_auto(Config(cache="", out="", rois_per_class=9), hidden).rois_per_class == 9
    assert resolve_auto(Config(cache="", out="", freeze_layers=1), hidden).head_type == "3fc_ft"


def test_held_out_images_leave_every_class_an_image():
    cache = make(num_classes=60, images=300, long_tail=1.5)
    labels, images = cache.labels[:, 0], np.repeat(np.arange(300), np.diff(cache.offsets))
    for seed in range(5):
        held_out = held_out_images(cache, seed)
        assert 10 <= held_out.sum() <= 50
        left = {int(c) for c, image in zip(labels, images, strict=True) if 0 <= c < 60 and not held_out[image]}
        assert left == {int(c) for c in labels if 0 <= c < 60}
        np.testing.assert_array_equal(held_out, held_out_images(cache, seed))


def test_samplers_of_two_parts_share_no_image(caplog):
    cache = make(num_classes=60, images=300)
    held_out = held_out_images(cache, 0)
    images = np.repeat(np.arange(300), np.diff(cache.offsets))
    for part in (held_out, ~held_out):
        rows = np.concatenate([BiLevelSampler(cache, images=part).step(i).rows for i in range(20)])
        assert part[images[rows]].all()
    assert not caplog.records


@pytest.mark.long
def test_the_lower_loss_is_chosen_and_stated(hidden, caplog):
    config = resolve_auto(Config(cache="", out="", steps=60), hidden)
    features = Features(hidden, torch.device("cpu"))
    with caplog.at_level(logging.INFO):
        first = choose_head_type(hidden, config, features)
    assert first == choose_head_type(hidden, config, features)
    losses = {name: values["loss"] for name, values in first.held_out.items()}
    assert first.head_type == min(losses, key=losses.get) and set(losses) == {"3fc_ft", "3fc_lowrank"}
    (line,) = [r.getMessage() for r in caplog.records if "held-out" in r.getMessage()]
    assert line.startswith(f"head type {first.head_type} is chosen on ") and f"{losses['3fc_ft']:.4f}" in line


@pytest.mark.long
def test_the_choice_is_recorded_and_resumed(hidden, tmp_path, monkeypatch):
    out = tmp_path / "head"
    whole = calib.train_head(hidden, out=str(tmp_path / "whole"), **OPTIONS)
    assert whole.info.kind == whole.info.choice["head_type"] and whole.info.config["head"] == "auto"
    assert whole.info.config["rois_per_class"] == 4
    call_before_step(monkeypatch, 45, crash)
    with pytest.raises(RuntimeError):
        calib.train_head(hidden, out=str(out), **OPTIONS)
    monkeypatch.setattr("calib.train.choose_head_type", None)  # the resumed run takes it from the checkpoint
    resumed = calib.train_head(hidden, out=str(out), **OPTIONS)
    assert resumed.info == whole.info == calib.load_head(out).info
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert first == {"step": 0, "choice": whole.info.choice}
    calib.train_head(hidden, out=str(out), **OPTIONS)  # is finished
    explicit = calib.train_head(hidden, head_type=whole.name, rois_per_class=4, **OPTIONS)
    assert all(map(torch.equal, explicit.state_dict().values(), whole.state_dict().values()))


@pytest.mark.long
def test_without_an_image_to_hold_out_the_first_layer_is_frozen(tmp_path, caplog):
    cache = toy_cache(tmp_path / "c.zarr", "hidden", images=1, projection=9)
    with caplog.at_level(logging.INFO):
        head = calib.train_head(cache, steps=3)
    assert head.name == "3fc_ft" and head.info.choice == {"head_type": "3fc_ft", "held_out": {}}
    assert "head type 3fc_ft is taken: no training image can be held out to choose by" in caplog.text


@pytest.mark.long
def test_the_papers_head_is_the_default_on_pooled_features(tmp_path):
    cache = toy_cache(tmp_path / "c.zarr", images=3)
    default, explicit = (calib.train_head(cache, steps=3, **options) for options in ({}, {"head_type": "3fc_ft"}))
    assert default.info == explicit.info and default.info.config["head"] == "3fc_ft" and not default.info.choice
    assert all(map(torch.equal, default.state_dict().values(), explicit.state_dict().values()))
