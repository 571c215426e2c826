"""Checks of a detector's adapter that are the same for every framework."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from extract.cache.format import Projection
from extract.detectors.base import Detector, Image, ImageDetections
from extract.hidden import HiddenForward, hidden_features
from extract.rois import RoIs
from extract.verify import forward as forward_layers
from fuse.config import FusionConfig
from fuse.fusion import Fusion

GT_BOX = np.float32([[10, 20, 60, 70]])


def make_images(*sizes: tuple[int, int]) -> list[Image]:
    """Returns images of blocky noise, of the given (height, width)."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h // 8, w // 8, 3)).repeat(8, 0).repeat(8, 1) for h, w in sizes]
    return [Image(i + 1, pixels.astype(np.uint8)) for i, pixels in enumerate(images)]


def select_none(index: int, proposals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Selects no proposal and appends no box."""
    return np.empty(0, np.int64), np.empty((0, 4), np.float32)


def select_three(index: int, proposals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Selects the three best proposals in reverse order, and appends one ground-truth box."""
    return np.arange(3)[::-1], GT_BOX


def our_detections(
    rois: RoIs, detector: Detector, score_threshold: float, max_detections: int | None = 300
) -> ImageDetections:
    """Returns detections with the original head's scores and our NMS."""
    config = FusionConfig(mode="original", score_threshold=score_threshold, max_detections=max_detections)
    return Fusion.resolve(config, detector.description, ()).detections(rois)


def assert_same_detections(
    ours: ImageDetections, theirs: ImageDetections, *, score: float = 1e-4, box: float = 5e-3
) -> None:
    """Checks the number, the scores in order, and boxes and classes except among almost equal scores."""
    assert len(ours.scores) == len(theirs.scores)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=score)
    gap = np.abs(np.diff(ours.scores, prepend=9, append=-9))
    clear = np.minimum(gap[:-1], gap[1:]) > 1e-5
    np.testing.assert_array_equal(ours.labels[clear], theirs.labels[clear])
    np.testing.assert_allclose(ours.boxes[clear], theirs.boxes[clear], atol=box)
    # Equal scores may come in any order, but must belong to the same boxes and classes.
    order = [np.lexsort((d.boxes[:, 1], d.boxes[:, 0], d.labels, -d.scores.round(4))) for d in (ours, theirs)]
    same = np.mean(ours.labels[order[0]] == theirs.labels[order[1]]) if len(order[0]) else 1
    assert same > 0.97, "only scores at a rounding boundary may differ"


def assert_selection_is_applied(detector: Detector, *, tolerance: float = 1e-3) -> None:
    """Checks that selected proposals come first, in order, then the ground-truth box, unchanged in every stage."""
    images = make_images((96, 144))
    (rois,) = detector.forward(images, "pooled", select_three).rois
    (plain,) = detector.forward(images, "pooled").rois
    assert rois.is_gt.tolist() == [False, False, False, True] and rois.objectness[3] == 1
    np.testing.assert_allclose(rois.proposals[3], np.repeat(GT_BOX, len(detector.stages), 0), atol=1e-4)
    for field in ("proposals", "boxes", "logits"):
        np.testing.assert_allclose(getattr(rois, field)[:3], getattr(plain, field)[:3][::-1], atol=tolerance)
    assert (np.diff(plain.objectness) <= 0).all() and 0 <= plain.objectness.min() <= plain.objectness.max() <= 1


def assert_layers_give_logits(
    detector: Detector, images: Sequence[Image], levels: Sequence[str] = ("pooled", "embedding")
) -> None:
    """Checks that each stage's fully connected layers map its features to its logits, and the first to hidden ones."""
    assert_hidden_features(detector, images)
    for level in levels:
        rois = detector.forward(images, level).rois[0]
        stages = detector.fc_layers(level)
        assert len(stages) == len(detector.stages) == rois.features.shape[1]
        for stage, layers in enumerate(stages):
            features, expected = rois.features[:, stage].float().numpy(), rois.logits[:, stage]
            logits = forward_layers(layers if level == "pooled" else layers[-1:], features)
            np.testing.assert_allclose(logits, expected, atol=0.01 * np.abs(expected).max())
    assert detector.fc_layers("logits") == [] and detector.forward(images, "logits").rois[0].features is None


def assert_hidden_features(detector: Detector, images: Sequence[Image]) -> None:
    """Checks hidden features against pooled ones, or that a detector without such layers is refused in one line.

    The pre-activations are those of the model's own modules: the first layer is not computed twice.
    """
    stages = detector.fc_layers("pooled")
    if not stages:
        with pytest.raises(ValueError, match="feature level hidden needs a box head whose layers .* fully connected$"):
            HiddenForward(detector)
        return
    width = stages[0][0][0].shape[1]
    rng = np.random.default_rng(0)
    directions = [np.linalg.qr(rng.normal(size=(width, 3)))[0].T.astype(np.float32) for _ in stages]
    projections = [Projection(one, rng.normal(size=width).astype(np.float32)) for one in directions]
    forward = HiddenForward(detector, projections)
    assert all(forward.modules)
    output = forward(images, None)
    for rois, pooled in zip(output.rois, detector.forward(images, "pooled").rois, strict=True):
        np.testing.assert_array_equal(rois.logits, pooled.logits)
        assert rois.features.shape == (len(rois), len(stages), len(stages[0][0][1]) + 3)
        for stage, (layers, projection) in enumerate(zip(stages, projections, strict=True)):
            expected = hidden_features(pooled.features[:, stage], layers[0], projection)
            torch.testing.assert_close(rois.features[:, stage], expected, atol=1e-3, rtol=1e-3)
