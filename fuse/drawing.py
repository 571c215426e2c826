"""Draws detections into images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image as PILImage

from extract.detectors.base import ImageDetections

MIN_EDGE = 480
"""Pixels of a drawn image's shorter edge, at least, so that class names fit in."""


def draw_detections(
    pixels: np.ndarray, detections: ImageDetections, masks: np.ndarray | None, names: Sequence[str], max_drawn: int
) -> np.ndarray:
    """The image with its best detections drawn into it, enlarged by a whole number where it is small.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        detections: best first, in pixels of the image.
        masks: (D, H, W) bool, or None.
        names: of the K classes.
        max_drawn: detections drawn.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    import torch
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    zoom, best = -(-MIN_EDGE // min(pixels.shape[:2])), slice(max_drawn)
    canvas = torch.from_numpy(_enlarge(pixels.transpose(2, 0, 1), zoom))
    if masks is not None and len(masks):
        canvas = draw_segmentation_masks(canvas, torch.from_numpy(_enlarge(masks[best], zoom)), alpha=0.5)
    if len(detections.scores):
        labels, scores = detections.labels[best], detections.scores[best]
        texts = [f"{names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
        canvas = draw_bounding_boxes(canvas, torch.from_numpy(detections.boxes[best] * zoom), texts, width=2)
    return canvas.permute(1, 2, 0).numpy()


def side_by_side(images: Sequence[np.ndarray]) -> PILImage.Image:
    """Images (H, W, 3) uint8 of one height, left to right."""
    return PILImage.fromarray(np.concatenate(images, axis=1))


def _enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """(…, H, W) enlarged by a whole number."""
    return image.repeat(factor, -2).repeat(factor, -1)
