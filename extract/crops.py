"""Cuts squares around boxes out of images, to look at: for contact sheets and for the report's detections."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw

CONTEXT = 1.6
"""Edge of a crop, as a multiple of the longer edge of its boxes."""
MIN_EDGE = 16
"""Least edge of a crop in pixels of the image."""


def crop_around(
    image: PILImage.Image, boxes: np.ndarray, edge: int, colours: Sequence[str], line: int = 2
) -> PILImage.Image:
    """Returns the square of an image around boxes, resized, with the boxes drawn; black outside of the image.

    Args:
        image: RGB.
        boxes: (B, 4) xyxy in pixels of the image, at least one.
        edge: of the result in pixels.
        colours: of the boxes; the last one is on top.
        line: width of the boxes' outlines in pixels of the result.
    """
    corners = np.asarray(boxes, np.float64)
    low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    wanted = max(MIN_EDGE, CONTEXT * float((high - low).max()))
    left, top = np.round((low + high - wanted) / 2).astype(int).tolist()
    size = round(wanted)
    crop = image.crop((left, top, left + size, top + size)).resize((edge, edge))
    draw, scale = ImageDraw.Draw(crop), edge / size
    for box, colour in zip(corners, colours, strict=True):
        draw.rectangle(((box - [left, top] * 2) * scale).tolist(), outline=colour, width=line)
    return crop
