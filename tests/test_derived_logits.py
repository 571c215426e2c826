"""Logits that caches of level "hidden" leave out and compute from the features."""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest

import fuse
from calib.posthoc.logn import logit_moments
from extract.accuracy import own_accuracy
from extract.cache.creation import write_cache
from extract.cache.derived import LOGIT_TOLERANCE, UpperLayers
from extract.cache.format import CacheError, row_bytes, row_shapes
from extract.cache.hdf5 import export_hdf5, import_hdf5
from extract.cache.reader import RoICache
from extract.data.class_map import MIN_LOGIT
from extract.rois import RoIs
from extract.verify import worst_logit_error
from tests.toy_cache import CLASSES, HIDDEN, forward, toy_cache, toy_classes, toy_layers

CASCADE, SIZE = (0.5, 0.6, 0.7), 5


@pytest.fixture(scope="module")
def caches(tmp_path_factory) -> tuple[RoICache, RoICache]:
    """The same RoIs at level hidden, without logits, and at level pooled."""
    folder = tmp_path_factory.mktemp("derived")
    return (
        toy_cache(folder / "hidden.zarr", "hidden", CASCADE, images=3, projection=SIZE),
        toy_cache(folder / "pooled.zarr", "pooled", CASCADE, images=3),
    )


def rewrite(cache: RoICache, url: object, rois: object = None, **options: object) -> RoICache:
    options = {"detector": cache.detector, "fc_layers": [cache.fc_layers(s) for s in range(3)]} | options
    return write_cache(
        url,
        list(cache) if rois is None else rois,
        toy_classes(),
        split="train",
        level="hidden",
        stages=CASCADE,
        projections=cache.projections,
        **options,
    )


def test_logits_are_computed_when_they_are_read(caches, monkeypatch):
    hidden, pooled = caches
    assert "logits" not in hidden.fields and "logits" in pooled.fields
    rois, expected = hidden[1], pooled[1]
    with monkeypatch.context() as patch:
        patch.setattr(UpperLayers, "logits", None)
        assert len(rois) == 30 and rois.num_classes == CLASSES and "3 stage(s), 12 classes" in repr(rois)
    layers = [hidden.fc_layers(s) for s in range(3)]
    inputs = np.maximum(rois.features[..., :HIDDEN].astype(np.float32), 0)
    reference = np.stack([forward(own[1:], inputs[:, s]) for s, own in enumerate(layers)], 1)
    assert rois.logits.dtype == np.float32 and rois.logits is rois.logits
    np.testing.assert_allclose(rois.logits, reference, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rois.logits, expected.logits, atol=2e-2)
    assert rois.num_classes == CLASSES and replace(rois, masks=None).logits is rois.logits


def test_logits_do_not_need_the_features_of_an_image(caches):
    hidden, _ = caches
    rois = hidden.image_at(2, ())
    assert rois.features is None
    np.testing.assert_allclose(rois.logits, hidden[2].logits, rtol=1e-6, atol=1e-6)
    again = pickle.loads(pickle.dumps(hidden.image_at(2, ())))
    np.testing.assert_array_equal(again.logits, rois.logits)


def test_fields_of_many_rois(caches):
    hidden, pooled = caches
    rows = np.array([40, 3, 3, 89])
    for values, other in ((hidden.read("logits"), pooled.read("logits")), (hidden.take("logits", rows), None)):
        expected = pooled.take("logits", rows) if other is None else other
        assert values.dtype == np.float32 and values.shape == expected.shape
        np.testing.assert_allclose(values, expected, atol=2e-2)
    for own, other in zip(logit_moments(hidden), logit_moments(pooled), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-2)
    assert own_accuracy(hidden).total == own_accuracy(pooled).total == 9


@pytest.mark.long
def test_detections_are_those_of_stored_logits(caches):
    hidden, pooled = (fuse.detect(cache, mode="original", masks=False) for cache in caches)
    assert len(hidden.scores) == len(pooled.scores)
    np.testing.assert_allclose(np.sort(hidden.scores), np.sort(pooled.scores), atol=5e-3)


def test_a_cache_of_a_tenth_of_the_size():
    def bytes_of(*feature: int, logits: bool) -> int:
        one = np.zeros((1, 1), np.float32)
        arrays = {"boxes": np.zeros((1, 4)), "objectness": one[0], "labels": one, "ious": one, "gt_ids": one}
        masks, is_gt, proposals = np.zeros((1, 28, 28)), one[0], np.zeros((1, 1, 4))
        features, own = np.zeros((1, 1, *feature)), np.zeros((1, 1, 1204))
        arrays |= {"masks": masks, "is_gt": is_gt, "proposals": proposals, "features": features, "logits": own}
        return row_bytes(row_shapes(RoIs(image_id=1, height=9, width=9, **arrays), logits))

    assert bytes_of(256, 7, 7, logits=True) > 8 * bytes_of(1024 + 256, logits=False)


@pytest.mark.long
def test_logits_that_the_layers_do_not_give_are_stored(caches, tmp_path, caplog):
    caplog.set_level(logging.INFO, "extract")
    hidden, _ = caches
    shifted = [replace(rois, logits=rois.logits + 5) for rois in hidden]
    stored = rewrite(hidden, tmp_path / "c.zarr", shifted)
    assert "c.zarr: logits are stored: those of the features differ by" in caplog.text
    np.testing.assert_allclose(stored.read("logits"), hidden.read("logits") + 5, rtol=1e-3, atol=1e-3)
    with pytest.raises(CacheError, match="logits of the stored features differ from the stored logits"):
        worst_logit_error(stored)
    message = f"image 107: logits differ .* of the largest, expected {LOGIT_TOLERANCE:.0e} at most"
    with pytest.raises(CacheError, match=f"{tmp_path}/d.zarr: {message}"):
        rewrite(hidden, tmp_path / "d.zarr", [hidden[0], *shifted[1:]])
    assert not (tmp_path / "d.zarr").exists()
    other = toy_layers(np.random.default_rng(9), 3)
    assert "logits" in rewrite(hidden, tmp_path / "e.zarr", fc_layers=other).fields, "layers of another detector"


@pytest.mark.long
def test_outputs_that_are_no_class(caches, tmp_path, caplog):
    caplog.set_level(logging.INFO, "extract")
    hidden, _ = caches
    detector = {"name": "toy", "class_outputs": list(range(1, CLASSES + 1)), "num_outputs": CLASSES + 1}
    assert "logits" in rewrite(hidden, tmp_path / "softmax.zarr", detector=detector).fields
    assert "logits are stored: outputs of the detector that are no class are part of background" in caplog.text
    sigmoid = detector | {"activation": "sigmoid"}
    assert "logits" not in rewrite(hidden, tmp_path / "sigmoid.zarr", detector=sigmoid).fields


@pytest.mark.long
def test_classes_that_the_detector_lacks(caches, tmp_path):
    hidden, _ = caches
    layers = [list(hidden.fc_layers(stage)) for stage in range(3)]
    for own in layers:
        own[-1][0][3], own[-1][1][3] = 0, MIN_LOGIT
    detector = {"name": "toy", "class_outputs": [0, 1, 2, -1, *range(3, CLASSES - 1)], "num_outputs": CLASSES - 1}
    logits = [rois.logits.copy() for rois in hidden]
    for values in logits:
        values[..., 3] = MIN_LOGIT
    rois = [replace(one, logits=values) for one, values in zip(hidden, logits, strict=True)]
    cache = rewrite(hidden, tmp_path / "c.zarr", rois, detector=detector, fc_layers=layers)
    assert "logits" not in cache.fields and (cache[0].logits[..., 3] == MIN_LOGIT).all()
    np.testing.assert_allclose(cache[0].logits, logits[0], rtol=1e-3, atol=1e-2)
    rois[1] = replace(rois[1], logits=rois[1].logits + 5)
    with pytest.raises(CacheError, match="image 107: logits differ"):
        rewrite(hidden, tmp_path / "d.zarr", rois, detector=detector, fc_layers=layers)


@pytest.mark.long
def test_caches_that_store_logits_work_as_before(caches, tmp_path, monkeypatch):
    hidden, _ = caches
    with monkeypatch.context() as patch:
        patch.setattr("extract.cache.creation.why_stored", lambda *_: "an older version")
        old = rewrite(hidden, tmp_path / "old.zarr")
    assert worst_logit_error(old) < 5e-3 and old[0].logits.dtype == np.float16
    np.testing.assert_array_equal(old.read("logits"), old.take("logits", np.arange(90)))
    export_hdf5(old, tmp_path / "old.h5")
    export_hdf5(hidden, tmp_path / "new.h5")
    for name, source in (("old", old), ("new", hidden)):
        again = import_hdf5(tmp_path / f"{name}.h5", str(tmp_path / f"{name}-again.zarr"))
        np.testing.assert_allclose(again.read("logits"), source.read("logits"), rtol=1e-3, atol=1e-3)
    assert "logits" not in again.fields and again.fingerprint == hidden.fingerprint


@pytest.mark.long
def test_images_without_rois(caches, tmp_path):
    hidden, _ = caches
    names = ("proposals", "boxes", "logits", "objectness", "features", "labels", "ious", "gt_ids", "is_gt")
    empty = replace(hidden[0], **{name: getattr(hidden[0], name)[:0] for name in names})
    cache = rewrite(hidden, tmp_path / "c.zarr", [empty, hidden[1]])
    assert "logits" not in cache.fields and cache[0].logits.shape == (0, 3, CLASSES + 1)
