"""Held-out training images: which they are, and that nothing is trained on them."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import calib
from calib.config import Config
from extract.cache.creation import write_cache
from extract.holdout import HELD_OUT_SHARE, held_out_images, image_draws, training_part
from tests.toy_cache import toy_cache, toy_classes


def _annotations(images: int, classes: int, seed: int) -> SimpleNamespace:
    """A long tail: class c is in about images / (c + 1)**2 images, at least one."""
    rng = np.random.default_rng(seed)
    owners = [rng.choice(images, max(1, int(images / (c + 1) ** 2)), replace=False) for c in range(classes)]
    owner, labels = np.concatenate(owners), np.repeat(np.arange(classes), [len(own) for own in owners])
    order = np.argsort(owner, kind="stable")
    return SimpleNamespace(
        image_ids=np.arange(images) * 3 + 10**6,
        labels=labels[order],
        crowd=np.zeros(len(labels), bool),
        offsets=np.searchsorted(owner[order], np.arange(images + 1)),
    )


@pytest.mark.parametrize("seed", range(4))
def test_every_class_keeps_an_image_and_has_one_held_out_if_it_can(seed):
    annotations = _annotations(500, 24, seed)
    held_out = held_out_images(annotations)
    owner = np.repeat(np.arange(500), np.diff(annotations.offsets))
    for c in range(24):
        own = held_out[owner[annotations.labels == c]]
        assert not own.all()
        # Images of few classes: of each class of two images or more one can be spared.
        assert own.any() or len(own) == 1
    assert 0.05 < held_out.mean() < 0.2
    np.testing.assert_array_equal(held_out, held_out_images(annotations))


def test_the_draw_of_an_image_depends_on_its_id_alone():
    ids = np.array([0, 1, 2, 139, 1_000_001, 2**62])
    np.testing.assert_array_equal(image_draws(ids)[::-1], image_draws(ids[::-1]))
    assert (image_draws(np.arange(100_000)) < HELD_OUT_SHARE).mean() == pytest.approx(HELD_OUT_SHARE, abs=0.003)
    # The published first outputs of SplitMix64 from seeds 0 and 1.
    assert [int(x * 2**53) for x in image_draws(np.arange(2))] == [
        0xE220A8397B1DCDAF >> 11,
        0x910A2DEC89025CC1 >> 11,
    ]


@pytest.mark.long
def test_a_cache_without_some_images_is_the_cache_of_the_others(tmp_path):
    cache = toy_cache(tmp_path / "train.zarr", images=20)
    gone = cache.images["image_id"].to_numpy()[[0, 3, 17]]
    part = cache.without_images(gone)
    rest = write_cache(
        tmp_path / "rest.zarr",
        [r for r in cache if r.image_id not in gone],
        toy_classes(),
        split="train",
        level="pooled",
    )
    assert part.images["image_id"].tolist() == rest.images["image_id"].tolist()
    for field in cache.fields:
        np.testing.assert_array_equal(part.read(field), rest.read(field), err_msg=field)
        rows = np.array([5, 0, 400, 5])
        np.testing.assert_array_equal(part.take(field, rows), rest.take(field, rows), err_msg=field)
    for position in (0, 7, -1):
        np.testing.assert_array_equal(part[position].features, rest[position].features)
    with pytest.raises(KeyError):
        part.image(int(gone[0]))
    assert len({cache.fingerprint, part.fingerprint, cache.without_images(gone[:1]).fingerprint}) == 3
    assert cache.without_images(np.array([-5])) is cache
    assert pickle.loads(pickle.dumps(part)).fingerprint == part.fingerprint
    assert part.without_images(gone[:0]) is part
    twice = cache.without_images(gone[:1]).without_images(gone[1:])
    assert twice.fingerprint == part.fingerprint


@pytest.mark.long
def test_a_head_is_not_trained_on_held_out_images(tmp_path):
    cache = toy_cache(tmp_path / "train.zarr", images=12)
    held_out = write_cache(tmp_path / "holdout.zarr", [cache[2], cache[5]], toy_classes(), split="val", level="pooled")
    options = {"head_type": "2fc_rand", "hidden": 8, "steps": 4}
    head = calib.train_head(cache, holdout=held_out.url, **options)
    part = calib.train_head(cache.without_images(held_out.images["image_id"]), **options)
    for name, tensor in part.state_dict().items():
        assert torch.equal(tensor, head.state_dict()[name])
    assert head.info.cache_fingerprint == part.info.cache_fingerprint != cache.fingerprint
    with pytest.raises(ValueError, match="train.zarr: has all images of .*train.zarr, so that none is left to train"):
        calib.train_head(cache, holdout=cache.url, **options)


def test_a_cache_of_another_split_or_file_is_refused():
    def cache(url: str, **provenance: object) -> SimpleNamespace:
        return SimpleNamespace(url=url, provenance=provenance)

    train = cache("train.zarr", annotations_sha256="a")
    with pytest.raises(ValueError, match="val.zarr: was extracted with --split val, expected one with --split holdout"):
        training_part(train, cache("val.zarr", config={"split": "val"}))
    with pytest.raises(ValueError, match="h.zarr: was made from another annotation file than train.zarr"):
        training_part(train, cache("h.zarr", config={"split": "holdout"}, annotations_sha256="b"))


def test_the_identity_of_a_run_is_as_before():
    assert "holdout" not in Config(cache="", out="", holdout="h.zarr").identity("x")
