"""The calibrated detector live: the offline path's detections, as the framework's own results."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import calib
import extract
import fuse
from extract.data.annotations import read_annotations
from extract.data.class_map import ClassMap
from extract.data.images import flip_boxes, read_image
from extract.detectors import load_detector
from extract.detectors.base import ImageDetections
from extract.detectors.class_map import map_detector
from fuse.commands.live_config import PredictConfig
from fuse.live import CalibratedDetector, View, load_image
from fuse.merge import merge_image
from tests import frameworks
from tests.conftest import CLASSES
from tests.exactness import assert_same_detections

MODES = ["original", "calibrated", "avg", "cat", "cat-thr", "cat-scale", "det"]


@pytest.fixture(scope="module")
def setting(tiny, tmp_path_factory):
    """A detector, its val cache, a head of it in a folder, and the images."""
    folder = tmp_path_factory.mktemp("live")
    config = tiny.config("val", folder / "val.zarr", proposals=1000)
    val = extract.run(config)
    train = extract.run(tiny.config("train", folder / "train.zarr", min_images_per_class=2))
    calib.train_head(train, head_type="3fc_ft", steps=5, out=str(folder / "head"))
    annotations = read_annotations(config.annotations)
    pictures = [read_image(config.images, names, (112, 112)) for names in annotations.file_names]
    return load_detector(config), val, folder / "head", pictures


def of_image(detections: fuse.Detections, val: extract.RoICache, position: int) -> ImageDetections:
    part = detections.take(detections.image_ids == val.images["image_id"][position])
    return ImageDetections(part.boxes, np.searchsorted(val.classes["category_id"], part.category_ids), part.scores)


@pytest.mark.parametrize("mode", MODES)
def test_live_equals_offline(setting, mode):
    detector, val, head, pictures = setting
    options = {"mode": mode, "tail": 4, "max_detections": 50}
    offline = fuse.detect(val, calib.load_head(head), masks=False, **options)
    live = CalibratedDetector(detector, head, **options).predict(pictures[:3])
    for position, (detected, masks) in enumerate(live):
        stored = of_image(offline, val, position)
        # A cache holds half floats, so that candidates of nearly one score may change places.
        np.testing.assert_allclose(detected.scores, stored.scores, atol=2e-3)
        same = (detected.labels == stored.labels) & (np.abs(detected.boxes - stored.boxes).max(1) < 0.1)
        assert same.mean() > 0.8
        assert masks.shape == (50, 112, 112) and masks.dtype == bool


def test_detectors_show_what_they_are(setting):
    detector, _, head, _ = setting
    live = CalibratedDetector(detector, head, views=(View(), View(size=(96, 1200), flip=True)), mode="cat", tail=4)
    assert "benchmarks.minilvis.detector:mask_rcnn (torchvision)" in repr(live) and "mode cat" in live._repr_html_()
    assert "own size; 96 to 1,200 pixels, flipped" in repr(live) and "cpu, 4 image(s) per forward pass" in repr(live)
    mapped = map_detector(detector, ClassMap(tuple(range(detector.num_classes))[::-1], detector.num_classes))
    assert f"outputs   {mapped.class_map}" in repr(mapped) and "class-agnostic; masks class-agnostic" in repr(mapped)
    assert "outputs" not in repr(detector) and "edges of 144 to 144 pixels" in repr(mapped)


@pytest.mark.parametrize("mode", MODES)
def test_live_runs_the_functions_of_the_offline_path(setting, mode, tmp_path):
    """Without the rounding to half floats in between the two are equal to the last bit."""
    detector, val, head, pictures = setting
    head = calib.load_head(head)
    live = CalibratedDetector(detector, head, mode=mode, tail=4)
    forward = detector.forward([load_image(0, pictures[0])], live.level)
    fusion = fuse.Fusion.for_cache(val, fuse.FusionConfig(mode=mode, tail=4), head)
    roi, label, score = fusion.detect(forward.rois[0])
    ((detected, _),) = live.predict(pictures[:1])
    np.testing.assert_array_equal(detected.scores, score)
    np.testing.assert_array_equal(detected.labels, label)
    np.testing.assert_allclose(detected.boxes, forward.rois[0].boxes[roi], atol=1e-4)


@pytest.mark.parametrize("head_type", ["3fc_ft", "3fc_lowrank"])
def test_heads_on_hidden_features_live_and_offline(setting, tiny, tmp_path, head_type):
    """The detector's own pre-activations, and the head's directions, in place of a cache's."""
    detector, _, _, pictures = setting
    few = {"level": "hidden", "min_images_per_class": 1}
    train = extract.run(tiny.config("train", tmp_path / "train.zarr", projection=8, **few))
    val = extract.run(tiny.config("val", tmp_path / "val.zarr", proposals=1000, projection_from=train.url, **few))
    head = calib.train_head(train, head_type=head_type, steps=3, device="cpu")
    options = {"mode": "calibrated", "max_detections": 50}
    offline = fuse.detect(val, head, masks=False, **options)
    position = int(np.searchsorted(read_annotations(tiny.data / "val.json").image_ids, val.images["image_id"][0]))
    live = CalibratedDetector(detector, head, views=(View(), View(size=(112, 112))), **options)
    assert live.level == "hidden"
    ((detected, _),) = CalibratedDetector(detector, head, **options).predict(pictures[position])
    stored = of_image(offline, val, 0)
    np.testing.assert_allclose(detected.scores, stored.scores, atol=2e-3)
    same = (detected.labels == stored.labels) & (np.abs(detected.boxes - stored.boxes).max(1) < 0.1)
    assert same.mean() > 0.8
    ((views, _),) = live.predict(pictures[position])
    assert len(views.scores) and abs(views.scores[0] - detected.scores[0]) < 1e-3


@pytest.mark.parametrize("name", ["detectron2-cascade", "mmdet-hybrid"])
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # detectron2's anchors
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # mmdetection's masks
def test_cascades_of_other_frameworks_live_and_offline(name, tiny, tmp_path):
    spec = frameworks.SPECS[name](tmp_path)
    options = {**vars(spec), "min_images_per_class": 1}
    train, val = (extract.run(tiny.config(s, tmp_path / s, proposals=1000, **options)) for s in ("train", "val"))
    head = calib.train_head(train, head_type="2fc_rand", hidden=16, steps=3)
    options = {"mode": "cat", "tail": 4, "max_detections": 50}
    offline = fuse.detect(val, head, masks=False, **options)
    annotations = read_annotations(tiny.data / "val.json")
    position = int(np.searchsorted(annotations.image_ids, val.images["image_id"][0]))
    picture = read_image(tiny.data / "val", annotations.file_names[position], (112, 112))
    detector = load_detector(spec)
    assert "stages    3, matching IoU 0.5, 0.6, 0.7" in repr(detector) and "cpu, fp32" in repr(detector)
    ((detected, masks),) = CalibratedDetector(detector, head, **options).predict(picture)
    stored = of_image(offline, val, 0)
    # A cache holds half floats, so that candidates of nearly one score may change places.
    np.testing.assert_allclose(detected.scores, stored.scores, atol=5e-3)
    same = (detected.labels == stored.labels) & (np.abs(detected.boxes - stored.boxes).max(1) < 0.2)
    assert same.mean() > 0.8 and masks.shape == (50, 112, 112)


def test_original_alone_is_the_framework(setting):
    detector, _, _, pictures = setting
    tensor = torch.from_numpy(pictures[0].copy()).permute(2, 0, 1).float() / 255
    with torch.inference_mode():
        (expected,) = detector.model([tensor])
    (result,) = CalibratedDetector(detector, mode="original")(tensor)
    assert result.keys() == expected.keys()
    ours, theirs = detector.to_arrays(result), detector.to_arrays(expected)
    assert_same_detections(ours[0], theirs[0])


def test_every_kind_of_image_and_batches(setting, tmp_path):
    detector, _, head, pictures = setting
    live = CalibratedDetector(detector, head, batch_size=3)
    PILImage.fromarray(pictures[0]).save(tmp_path / "0.png")
    tensor = torch.from_numpy(pictures[0].copy()).permute(2, 0, 1)
    kinds = [tmp_path / "0.png", str(tmp_path / "0.png"), PILImage.open(tmp_path / "0.png"), tensor, tensor / 255]
    other = pictures[1][:96]
    results = live([pictures[0], other, *kinds])
    assert len(results) == 7
    (alone,) = live(other)
    torch.testing.assert_close(results[1], alone, atol=1e-4, rtol=1e-4)
    for result in results[2:]:
        torch.testing.assert_close(result["scores"], results[0]["scores"], atol=1e-4, rtol=1e-4)
    assert live([]) == []


def test_views_are_detected_each_and_joined(setting):
    detector, _, head, pictures = setting
    views = (View(), View((160, 160)), View(flip=True))
    ((joined, masks),) = CalibratedDetector(detector, head, views=views, max_detections=40).predict(pictures[0])
    parts = []
    for view in views:
        picture = pictures[0][:, ::-1] if view.flip else pictures[0]
        seen = detector if view.size is None else detector.resized(*view.size)
        ((part, _),) = CalibratedDetector(seen, head, max_detections=40).predict(picture)
        boxes = flip_boxes(part.boxes, 112) if view.flip else part.boxes
        parts.append(ImageDetections(boxes, part.labels, part.scores))
    expected, _ = merge_image(parts, CLASSES, iou_threshold=0.5, max_detections=40)
    assert_same_detections(joined, expected)
    assert masks.shape == (40, 112, 112)


def test_scorers_that_train_nothing(setting):
    detector, val, _, pictures = setting
    norcal = calib.posthoc.NorCal().fit(val)
    live = CalibratedDetector(detector, norcal, mode="cat")
    assert live.level == "logits"
    ((detected, _),) = live.predict(pictures[0])
    assert len(detected.scores) == 300
    with pytest.raises(ValueError, match=r"tail is 100: give tail_mask, a bool array; plain has no training counts"):
        CalibratedDetector(detector, type("S", (), {"name": "plain", "level": "logits", "instance_counts": ()})())


def test_a_scorer_has_the_level_of_the_features_that_it_reads(setting):
    detector, val, head, pictures = setting
    loaded = calib.load_head(head)

    class Wrapped:
        name, level, instance_counts = "wrapped", "pooled", ()

        def scores(self, rois):
            return loaded.scores(rois)

    tail = val.classes["instance_count"].to_numpy() < 4
    ((found, _),) = CalibratedDetector(detector, Wrapped(), tail_mask=tail.tolist()).predict(pictures[0])
    ((expected, _),) = CalibratedDetector(detector, head, tail=4).predict(pictures[0])
    assert_same_detections(found, expected)


def test_the_head_given_stays_on_its_device(setting):
    detector, _, head, _ = setting
    loaded, elsewhere = calib.load_head(head), copy.copy(detector)
    elsewhere.model = copy.deepcopy(detector.model).to("meta")
    live = CalibratedDetector(elsewhere, loaded)
    assert next(live.fusion.calibrated.parameters()).device.type == "meta"
    assert next(loaded.parameters()).device.type == "cpu"


def test_limits_of_the_commands_are_checked():
    for options, message in (
        ({"score_threshold": -1}, "score_threshold is -1, expected at least 0"),
        ({"score_threshold": float("nan")}, "score_threshold is nan, expected at least 0"),
        ({"max_detections": 0}, "max_detections is 0, expected at least 1"),
        ({"iou_threshold": 2}, "iou_threshold is 2, expected 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            PredictConfig(detector="mmdet", head=Path("head"), out=Path("out"), images=(Path("a.png"),), **options)


def test_wrong_input_is_named(setting, tmp_path):
    detector, _, head, pictures = setting
    live = CalibratedDetector(detector, head)
    with pytest.raises(FileNotFoundError, match="no.png: no such image"):
        live(tmp_path / "no.png")
    with pytest.raises(ValueError, match=r"image 1: float64 \(3, 3\), expected uint8 \(H, W, 3\) RGB"):
        live([pictures[0], np.zeros((3, 3))])
    with pytest.raises(ValueError, match="views: expected at least one, the first not flipped"):
        CalibratedDetector(detector, head, views=[View(flip=True)])
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        CalibratedDetector(detector, head, batch_size=0)
    with pytest.raises(ValueError, match="needs a calibrated scorer"):
        CalibratedDetector(detector)
    with pytest.raises(ValueError, match="image 0: floats from 0 to 255, expected 0 to 1"):
        live(torch.tensor([0.0, 255.0]).expand(3, 2, 2))
    with pytest.raises(ValueError, match="image 1: floats from nan to nan, expected 0 to 1"):
        live([pictures[0], torch.full((3, 2, 2), torch.nan)])
    for size in ((0, 10), (20, 10)):
        with pytest.raises(ValueError, match=rf"size is \({size[0]}, 10\), expected \(shorter, longer\) edge"):
            View(size)
    for options, message in (
        ({"mode": "props-gt"}, "mode is 'props-gt', which needs ground truth"),
        ({"thresold": 0.1}, "option 'thresold', expected one of mode, tail"),
        ({"iou_threshold": 1.5}, "iou_threshold is 1.5, expected 0 to 1"),
        ({"score_threshold": -0.1}, "score_threshold is -0.1, expected at least 0"),
        ({"max_detections": -2}, "max_detections is -2, expected at least 1, or -1"),
    ):
        with pytest.raises(ValueError, match=message):
            CalibratedDetector(detector, head, **options)
    loaded = calib.load_head(head)
    loaded.info = replace(loaded.info, tensors_sha256="another")
    with pytest.raises(ValueError, match="detector tensors .*, the head was trained for another"):
        CalibratedDetector(detector, loaded)


def test_another_input_size_or_normalisation_than_the_heads(setting, caplog):
    detector, _, folder, _ = setting
    size = detector.description["settings"]["input_size"]
    CalibratedDetector(detector, folder, views=[View(), View(size=(100, 150))])
    assert "input size" not in caplog.text, "views are other sizes on purpose"
    CalibratedDetector(detector.resized(100, 150), folder)
    assert (
        f"input size (shorter, longer edge) of the detector [100, 150], the head was trained for {size}" in caplog.text
    )
    head = calib.load_head(folder)
    head.info = replace(head.info, settings={**head.info.settings, "channel_order": "BGR"})
    with pytest.raises(ValueError, match="detector channel order RGB, the head was trained for BGR"):
        CalibratedDetector(detector, head)
    head.info = replace(head.info, settings={}, tensors_sha256="")
    CalibratedDetector(detector, head)  # as heads of older versions
