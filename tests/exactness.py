"""Ours against a framework's own inference: the same for every adapter."""

from __future__ import annotations

import numpy as np

from extract.detectors.base import Detector, Image, ImageDetections
from extract.rois import RoIs
from fuse.config import FusionConfig
from fuse.fusion import Fusion


def make_images(*sizes: tuple[int, int]) -> list[Image]:
    """Blocky noise of the given (height, width)."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h // 8, w // 8, 3)).repeat(8, 0).repeat(8, 1) for h, w in sizes]
    return [Image(i + 1, pixels.astype(np.uint8)) for i, pixels in enumerate(images)]


def our_detections(
    rois: RoIs, detector: Detector, threshold: float, max_detections: int | None = 300
) -> ImageDetections:
    """The original head's scores, then our suppression."""
    config = FusionConfig(mode="original", score_threshold=threshold, max_detections=max_detections)
    return Fusion.resolve(config, detector.description, ()).detections(rois)


def assert_same_detections(
    ours: ImageDetections, theirs: ImageDetections, *, score: float = 1e-4, box: float = 5e-3
) -> None:
    """Equally many, equal scores in order; equal boxes and classes wherever a score is not shared by a neighbour."""
    assert len(ours.scores) == len(theirs.scores)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=score)
    gap = np.abs(np.diff(ours.scores, prepend=9, append=-9))
    clear = np.minimum(gap[:-1], gap[1:]) > 1e-5
    np.testing.assert_array_equal(ours.labels[clear], theirs.labels[clear])
    np.testing.assert_allclose(ours.boxes[clear], theirs.boxes[clear], atol=box)
    # Among equal scores the order is free, the set is not.
    order = [np.lexsort((d.boxes[:, 1], d.boxes[:, 0], d.labels, -d.scores.round(4))) for d in (ours, theirs)]
    tied = np.mean(ours.labels[order[0]] == theirs.labels[order[1]]) if len(order[0]) else 1
    assert tied > 0.97, "scores at a rounding boundary may differ, no more"
