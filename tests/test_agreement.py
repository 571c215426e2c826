"""Comparison of an adapter with its framework's own inference, before anything is extracted."""

from __future__ import annotations

import numpy as np
import pytest

import extract
from extract.detectors.agreement import Tolerance, score_difference
from extract.detectors.base import ImageDetections

BOXES = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 70, 30]], np.float32)
SCORES = np.array([[0.6, 0.1, 0.3], [0.2, 0.5, 0.3], [0.55, 0.4, 0.05]], np.float32)
TOLERANCE = Tolerance(1e-3, 1e-2)


def detections(*found: tuple[int, int, float]) -> ImageDetections:
    """Detections of RoI, class and score."""
    rois, labels, scores = zip(*found, strict=True) if found else ((), (), ())
    index = np.array(rois, np.int64)
    return ImageDetections(BOXES[index], np.array(labels, np.int64), np.array(scores, np.float32))


@pytest.mark.parametrize(
    "found",
    [
        [(0, 0, 0.6), (2, 0, 0.55), (1, 1, 0.5)],
        [(0, 0, 0.6), (1, 1, 0.5)],
        [(0, 0, 0.6), (1, 1, 0.5), (2, 0, 0.01)],
        [(0, 0, 0.6004), (1, 1, 0.4996)],
    ],
    ids=["all", "without a class's second", "decayed by soft-NMS", "rounded"],
)
def test_what_is_no_difference(found):
    for boxes in (BOXES, np.repeat(BOXES[:, None], 2, 1)):
        assert score_difference(detections(*found), boxes, SCORES, TOLERANCE) == ""


def test_differences_are_described():
    own = "the framework's own inference"
    text = score_difference(detections(), BOXES, SCORES, TOLERANCE)
    assert text == f"{own} scores boxes up to 0, this library up to 0.6"
    text = score_difference(detections((0, 0, 0.6), (1, 1, 0.8)), BOXES, SCORES, TOLERANCE)
    assert text == f"{own} scores a box of output 1 with 0.8, this library with 0.5"
    moved = detections((0, 0, 0.6), (1, 1, 0.5))
    moved.boxes[1] += 3
    assert score_difference(moved, BOXES, SCORES, TOLERANCE).startswith(f"{own} has a box of output 1")
    assert score_difference(detections(), BOXES[:0], SCORES[:0], TOLERANCE) == ""


@pytest.mark.parametrize("power", [0.5, 1.002])
def test_extraction_refuses_a_detector_that_scores_otherwise(tiny, tmp_path, monkeypatch, power):
    from extract.detectors.torchvision import TorchvisionDetector

    inherited = TorchvisionDetector.own_inference

    def own_inference(self, image, score_threshold):
        found = inherited(self, image, score_threshold)
        return found._replace(scores=found.scores**power)

    monkeypatch.setattr(TorchvisionDetector, "own_inference", own_inference)
    config = tiny.config("val", tmp_path / "val.zarr", level="logits")
    if power > 1:
        assert len(extract.run(config)) > 0  # half a percent is no difference
        return
    with pytest.raises(ValueError, match=r"detector .*: image \d+: .* scores a box .*, this library with 0\.\d+; such"):
        extract.run(config)
    assert not (tmp_path / "val.zarr").exists()


def test_an_inference_that_fails_is_named(tiny, tmp_path, monkeypatch):
    from extract.detectors.torchvision import TorchvisionDetector

    def own_inference(self, image, score_threshold):
        raise NotImplementedError("no such\noperator")

    monkeypatch.setattr(TorchvisionDetector, "own_inference", own_inference)
    with pytest.raises(ValueError, match=r"image \d+: the framework's own inference failed: no such operator"):
        extract.run(tiny.config("val", tmp_path / "val.zarr", level="logits"))
    assert not (tmp_path / "val.zarr").exists()
