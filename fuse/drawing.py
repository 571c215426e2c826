"""Draws detections into images: outlines of masks, boxes, and labels beside the boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from extract.detectors.base import ImageDetections

MIN_EDGE = 480
"""Least length of a drawn image's shorter edge in pixels, so that labels fit."""
LINE_WIDTH, FONT_SIZE, PADDING, GAP = 3, 17, 3, 8
COLOURS = ("#e69f00", "#56b4e9", "#f0e442", "#00b386", "#ee7733", "#dd99bb", "#ffffff", "#b3b3ff")
"""Bright, so that black text is legible on them."""


class _Rectangle(NamedTuple):
    x1: float
    y1: float
    x2: float
    y2: float

    def overlap(self, other: _Rectangle) -> float:
        """Returns the area of the intersection."""
        width = min(self.x2, other.x2) - max(self.x1, other.x1)
        height = min(self.y2, other.y2) - max(self.y1, other.y1)
        return max(width, 0) * max(height, 0)


def draw_detections(
    pixels: np.ndarray, detections: ImageDetections, masks: np.ndarray | None, names: Sequence[str], max_drawn: int
) -> np.ndarray:
    """Draws the best detections into an image, which is first enlarged by a whole number if it is small.

    Args:
        pixels: (H, W, 3) uint8 RGB, or another kind that a detector reads, such as grey.
        detections: best first, in pixels of the image.
        masks: (D, H, W) bool, or None.
        names: of the K classes.
        max_drawn: detections drawn.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    zoom = -(-MIN_EDGE // min(pixels.shape[:2]))
    image = PILImage.fromarray(_enlarge(_displayable(pixels), zoom))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT_SIZE)
    boxes = [_Rectangle(*box) for box in (detections.boxes[:max_drawn] * zoom).tolist()]
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(boxes))]
    for i, (box, colour) in enumerate(zip(boxes, colours, strict=True)):
        if masks is not None:
            draw.bitmap((0, 0), _outline(_enlarge(masks[i], zoom)), colour)
        draw.rectangle(box, outline=colour)
    labelled: list[_Rectangle] = []
    for box, colour, label, score in zip(boxes, colours, detections.labels, detections.scores, strict=False):
        text = f"{names[label]} {score:.2f}"
        labelled.append(_place_label(draw.textbbox((0, 0), text, font), box, boxes, labelled, image.size))
        draw.rectangle(labelled[-1], fill=colour)
        draw.text((labelled[-1].x1 + PADDING, labelled[-1].y1 + PADDING), text, "black", font, anchor="lt")
    return np.asarray(image)


def side_by_side(images: Sequence[np.ndarray]) -> PILImage.Image:
    """Joins images (H, W, 3) uint8 of one height from left to right, with white between them."""
    space = np.full((len(images[0]), GAP, 3), 255, np.uint8)
    return PILImage.fromarray(np.concatenate([part for image in images for part in (space, image)][1:], axis=1))


def _place_label(
    text: tuple[float, float, float, float],
    box: _Rectangle,
    boxes: Sequence[_Rectangle],
    labels: Sequence[_Rectangle],
    size: tuple[int, int],
) -> _Rectangle:
    """Chooses the place beside a box that hides the least of all boxes and of the labels placed before.

    Args:
        text: bounding box of the label's text.
        box: what the label belongs to.
        boxes: of all detections.
        labels: placed before.
        size: width and height of the image.
    """
    width, height = text[2] - text[0] + 2 * PADDING, text[3] - text[1] + 2 * PADDING
    corners = [
        (x, y) for y in (box.y1 - height, box.y2) for x in (box.x1, (box.x1 + box.x2 - width) / 2, box.x2 - width)
    ]
    corners += [(x, y) for x in (box.x2, box.x1 - width) for y in (box.y1, box.y2 - height)]
    places = []
    for x, y in corners:
        x, y = max(0, min(x, size[0] - width - 1)), max(0, min(y, size[1] - height - 1))
        places.append(_Rectangle(x, y, x + width, y + height))
    return min(places, key=lambda place: sum(place.overlap(other) for other in (*boxes, *labels, *labels)))


def _outline(mask: np.ndarray) -> PILImage.Image:
    """Returns the pixels of a mask (H, W) bool that are within `LINE_WIDTH` of its edge, as a bitmap."""
    inner = np.pad(mask, LINE_WIDTH, mode="edge")
    for axis in (0, 1):
        shifted = [np.roll(inner, shift, axis) for shift in range(-LINE_WIDTH, LINE_WIDTH + 1)]
        inner = np.logical_and.reduce(shifted)
    inner = inner[LINE_WIDTH:-LINE_WIDTH, LINE_WIDTH:-LINE_WIDTH]
    return PILImage.fromarray(np.where(mask & ~inner, 255, 0).astype(np.uint8), "L")


def _displayable(pixels: np.ndarray) -> np.ndarray:
    """Converts pixels (H, W) or (H, W, C) of any type to (H, W, 3) uint8; other types are scaled by their maximum."""
    if pixels.dtype != np.uint8:
        pixels = (pixels.clip(0) * (255 / max(pixels.max(), 1e-12))).astype(np.uint8)
    if pixels.ndim == 2 or pixels.shape[2] < 3:
        pixels = pixels.reshape(*pixels.shape[:2], -1)[:, :, :1].repeat(3, 2)
    return pixels[:, :, :3]


def _enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Enlarges (H, W, …) by a whole number."""
    return image.repeat(factor, 0).repeat(factor, 1)
