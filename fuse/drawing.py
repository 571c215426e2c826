"""Draws detections into images: outlines of masks and boxes, labels beside them, and pairs of before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from extract.detectors.base import ImageDetections
from extract.matching import box_iou

MIN_EDGE = 480
"""Least length of a drawn image's shorter edge in pixels, so that labels fit."""
FONT_SHARE, LINE_SHARE = 1 / 30, 1 / 180
"""Height of text and width of lines, as shares of a drawn image's shorter edge."""
PADDING, GAP = 3, 8
COLOURS = ("#e69f00", "#56b4e9", "#f0e442", "#00b386", "#ee7733", "#dd99bb", "#ffffff", "#b3b3ff")
"""Bright, so that black text is legible on them."""
SAME_IOU = 0.5
"""Boxes of a class that overlap at least this much are one detection in both halves of a pair."""
TITLES = ("original", "calibrated")
"""Of the halves of a pair."""


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


class MaskedDetections(NamedTuple):
    """One image's detections, best first, and their masks (D, H, W) bool or None: what a live detector predicts."""

    detections: ImageDetections
    masks: np.ndarray | None = None

    def __repr__(self) -> str:
        masks = "no masks" if self.masks is None else "masks of {:,} x {:,} pixels".format(*self.masks.shape[1:])
        return f"MaskedDetections({self.detections!r}, {masks})"

    def take(self, index: np.ndarray | slice) -> MaskedDetections:
        """Returns the detections at `index` (integers, a bool mask or a slice)."""
        masks = None if self.masks is None else self.masks[index]
        return MaskedDetections(ImageDetections(*(column[index] for column in self.detections)), masks)


def draw_pair(
    pixels: np.ndarray,
    before: tuple[ImageDetections, np.ndarray | None],
    after: tuple[ImageDetections, np.ndarray | None],
    names: Sequence[str],
    *,
    max_drawn: int = 10,
    changed_only: bool = False,
    titles: tuple[str, str] = TITLES,
) -> PILImage.Image:
    """Draws an image with two detectors' detections side by side; a class has the same colour in both halves.

    Example: `fuse.draw_pair(pixels, original.predict(pixels)[0], calibrated.predict(pixels)[0], head.class_names)`

    Args:
        pixels: as of `draw_detections`.
        before, after: (detections, masks) of `CalibratedDetector.predict`, best first; masks may be None.
        names: of the K classes.
        max_drawn: detections drawn in each half, best first.
        changed_only: of those, leave out detections that the other half has as well: of the same class, with an IoU of
            at least 0.5.
        titles: of the two halves.
    """
    halves = [MaskedDetections(*half).take(slice(max_drawn)) for half in (before, after)]
    colours = class_colours(np.concatenate([half.detections.labels for half in halves]))
    if changed_only:
        changed = [_unmatched(*pair) for pair in (halves, halves[::-1])]
        halves = [half.take(index) for half, index in zip(halves, changed, strict=True)]
    drawn = [
        draw_detections(pixels, *half, names, colours=colours, title=title)
        for half, title in zip(halves, titles, strict=True)
    ]
    return side_by_side(drawn)


def draw_detections(
    pixels: np.ndarray,
    detections: ImageDetections,
    masks: np.ndarray | None,
    names: Sequence[str],
    max_drawn: int | None = None,
    *,
    colours: Mapping[int, str] | None = None,
    title: str = "",
) -> np.ndarray:
    """Draws the best detections into an image, which is first enlarged by a whole number if it is small.

    Masks are outlines, so that they do not hide the image; text and lines have a size that fits the image.

    Args:
        pixels: (H, W, 3) uint8 RGB, or another kind that a detector reads, such as grey.
        detections: best first, in pixels of the image.
        masks: (D, H, W) bool, or None.
        names: of the K classes.
        max_drawn: detections drawn; None draws all.
        colours: of classes; by default each class of the image has its own, as far as there are colours.
        title: written above the image; "" leaves it out.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    zoom = -(-MIN_EDGE // min(pixels.shape[:2]))
    image = PILImage.fromarray(_enlarge(_displayable(pixels), zoom))
    edge = min(image.size)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(edge * FONT_SHARE)
    line = max(2, round(edge * LINE_SHARE))
    boxes = [_Rectangle(*box) for box in (detections.boxes[:max_drawn] * zoom).tolist()]
    labels = detections.labels[:max_drawn].tolist()
    palette = class_colours(np.array(labels, np.int64)) if colours is None else colours
    for i, box, label in reversed(list(zip(range(len(boxes)), boxes, labels, strict=True))):  # the best one on top
        if masks is not None:
            draw.bitmap((0, 0), _outline(_enlarge(masks[i], zoom), line), palette[label])
        draw.rectangle(box, outline=palette[label], width=1 if masks is not None else line)
    placed: list[_Rectangle] = []
    for box, label, score in zip(boxes, labels, detections.scores.tolist(), strict=False):
        text = _fitting(f"{names[label]} {score:.2f}", font, image.width - 2 * PADDING - 1)
        placed.append(_place_label(draw.textbbox((0, 0), text, font), box, boxes, placed, image.size))
        draw.rectangle(placed[-1], fill=palette[label])
        draw.text((placed[-1].x1 + PADDING, placed[-1].y1 + PADDING), text, "black", font, anchor="lt")
    return _with_title(np.asarray(image), title, font) if title else np.asarray(image)


def class_colours(labels: np.ndarray) -> dict[int, str]:
    """Returns a colour for each class of labels (D,), in the order in which they occur; after eight, colours repeat."""
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(dict.fromkeys(labels.tolist()))}


def side_by_side(images: Sequence[np.ndarray]) -> PILImage.Image:
    """Joins images (H, W, 3) uint8 of one height from left to right, with white between them."""
    space = np.full((len(images[0]), GAP, 3), 255, np.uint8)
    return PILImage.fromarray(np.concatenate([part for image in images for part in (space, image)][1:], axis=1))


def _unmatched(half: MaskedDetections, other: MaskedDetections) -> np.ndarray:
    """Returns (D,) bool: whether a detection of `half` is none of `other`'s."""
    (boxes, labels, _), (other_boxes, other_labels, _) = half.detections, other.detections
    same = (labels[:, None] == other_labels) & (box_iou(boxes, other_boxes) >= SAME_IOU)
    return ~same.any(axis=1)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Returns the text, its middle left out as far as needed so that it is at most `width` pixels wide."""
    kept = len(text)
    short = text
    while kept > 2 and font.getbbox(short)[2] > width:
        kept -= 1
        short = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return short


def _with_title(pixels: np.ndarray, title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> np.ndarray:
    """Returns the image (H, W, 3) below a bar with its title."""
    _, top, _, bottom = font.getbbox("Åbp")  # not the title, so that both halves of a pair have bars of one height
    bar = PILImage.new("RGB", (pixels.shape[1], int(bottom - top) + 4 * PADDING), "#222222")
    ImageDraw.Draw(bar).text((bar.width / 2, bar.height / 2), title, "white", font, anchor="mm")
    return np.concatenate([np.asarray(bar), pixels])


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


def _outline(mask: np.ndarray, width: int) -> PILImage.Image:
    """Returns the pixels of a mask (H, W) bool that are within `width` of its edge, as a bitmap."""
    inner = np.pad(mask, width, mode="edge")
    for axis in (0, 1):
        shifted = [np.roll(inner, shift, axis) for shift in range(-width, width + 1)]
        inner = np.logical_and.reduce(shifted)
    inner = inner[width:-width, width:-width]
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
