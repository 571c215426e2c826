"""Draws one image: a background, then its objects back to front, none of them covered too much."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

# Photographs and textures that are part of scikit-image's wheel; it downloads its other images.
PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
    "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png",
    "motorcycle_right.png", "page.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
TEXTURE_SHARE = 0.3  # share of backgrounds that are random colours instead of photographs
OBJECT_SIDE = (20, 60)  # px, longer side of a sprite before rotation; log-uniform
ANGLE = 35  # degrees, largest rotation either way
MIN_VISIBLE = 0.55  # share of an object's pixels that later objects may not cover
MIN_INSIDE = 0.8  # share of an object's pixels that must be inside the image
SHRINK_FACTORS = (1.0, 0.8, 0.64)  # sizes tried, relative to the drawn size
TRIES = 12  # placements tried at each size


@dataclass(frozen=True)
class Rendered:
    """One finished image.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        masks: (n, H, W) bool, the visible part of each object; disjoint.
    """

    pixels: np.ndarray
    masks: np.ndarray


class Canvas(NamedTuple):
    """An image being drawn.

    Attributes:
        pixels: (H, W, 3) float32 from 0 to 255.
        owner: (H, W) int64, the object that each pixel shows, -1 for background.
    """

    pixels: np.ndarray
    owner: np.ndarray


class Placement(NamedTuple):
    """Top left corner of a sprite, in pixels of the image, and the factor that it is scaled by."""

    y: int
    x: int
    shrink: float


def render(objects: np.ndarray, sprites: list[list[Image.Image]], size: int, rng: np.random.Generator) -> Rendered:
    """Draws one image.

    Args:
        objects: (n,) classes, back to front.
        sprites: drawings of each class, RGBA.
        size: edge of the image in pixels.
        rng: source of all random numbers.
    """
    background = _background(size, rng)
    # If an object fits nowhere, all placements are drawn again.
    while (placed := _place_all(objects, sprites, background.copy(), rng)) is None:
        pass
    pixels, owner = placed
    pixels += rng.normal(0, rng.uniform(0, 6), pixels.shape)
    return Rendered(pixels.clip(0, 255).astype(np.uint8), owner[None] == np.arange(len(objects))[:, None, None])


def _place_all(
    objects: np.ndarray, sprites: list[list[Image.Image]], pixels: np.ndarray, rng: np.random.Generator
) -> Canvas | None:
    """Draws all objects into `pixels`; returns None if an object fits nowhere."""
    size = len(pixels)
    owner = np.full((size, size), -1)
    full = np.zeros(len(objects), np.int64)  # pixels of each object inside the image before others cover it
    for index, one in enumerate(objects):
        drawing = sprites[one][rng.integers(len(sprites[one]))]
        rgb, alpha = _vary(drawing, rng)
        placement = _find_placement(alpha, owner, full[:index], rng)
        if placement is None:
            return None
        if placement.shrink < 1:
            rgb, alpha = _shrink_rgb(rgb, alpha, placement.shrink), _shrink_alpha(alpha, placement.shrink)
        here, there = _overlap(placement.y, placement.x, alpha.shape, size)
        rgb, alpha = rgb[there], alpha[there]
        pixels[here] += alpha[..., None] * (rgb - pixels[here])
        solid = alpha >= 0.5
        owner[here][solid] = index
        full[index] = solid.sum()
    return Canvas(pixels, owner)


def _find_placement(
    alpha: np.ndarray, owner: np.ndarray, full: np.ndarray, rng: np.random.Generator
) -> Placement | None:
    """Tries random placements, then smaller sizes; returns the first that leaves all earlier objects visible.

    Args:
        alpha: (h, w) of the new object.
        owner: see `Canvas`.
        full: pixels of the earlier objects before others cover them.
        rng: source of random numbers.
    """
    visible = np.bincount(owner.ravel() + 1, minlength=len(full) + 1)[1:]
    for shrink in SHRINK_FACTORS:
        solid = (alpha if shrink == 1 else _shrink_alpha(alpha, shrink)) >= 0.5
        low = -np.array(solid.shape) // 5
        for y, x in rng.integers(low, len(owner) - np.array(solid.shape) - low + 1, (TRIES, 2)):
            here, there = _overlap(y, x, solid.shape, len(owner))
            inside = solid[there]
            lost = np.bincount(owner[here][inside] + 1, minlength=len(full) + 1)[1:]
            if inside.sum() >= MIN_INSIDE * solid.sum() and (visible - lost >= MIN_VISIBLE * full).all():
                return Placement(int(y), int(x), shrink)
    return None


def _vary(drawing: Image.Image, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Changes scale, aspect ratio, flip, rotation and colour of a drawing at random.

    Returns (h, w, 3) float32 RGB from 0 to 255 and (h, w) float32 alpha from 0 to 1.
    """
    side = np.exp(rng.uniform(*np.log(OBJECT_SIDE)))
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    scale = side / max(drawing.size)
    sprite = drawing.resize(
        [max(8, round(s * scale * f)) for s, f in zip(drawing.size, (stretch, 1 / stretch), strict=True)]
    )
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    sprite = sprite.rotate(rng.uniform(-ANGLE, ANGLE), Image.Resampling.BILINEAR, expand=True)
    pixels = np.asarray(sprite, np.float32)
    return _shift_colour(pixels[..., :3], rng), pixels[..., 3] / 255


def _shift_colour(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotates the hue by up to 20 degrees and changes contrast and brightness."""
    angle = np.deg2rad(rng.uniform(-20, 20))
    third, root = (1 - np.cos(angle)) / 3, np.sin(angle) / np.sqrt(3)
    # Rotation about the grey axis (1, 1, 1) of RGB.
    hue = np.full((3, 3), third) + np.cos(angle) * np.eye(3) + root * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    contrast, brightness = rng.uniform(0.6, 1.2), rng.uniform(-30, 30)
    return ((rgb @ hue.T.astype(np.float32) - 128) * contrast + 128 + brightness).clip(0, 255).astype(np.float32)


def _shrink_alpha(alpha: np.ndarray, factor: float) -> np.ndarray:
    """Scales alpha (h, w) float32 by a factor, to at least 6 px a side."""
    return np.asarray(Image.fromarray(alpha).resize(_shrunk_size(alpha, factor), Image.Resampling.BILINEAR))


def _shrink_rgb(rgb: np.ndarray, alpha: np.ndarray, factor: float) -> np.ndarray:
    """Scales rgb (h, w, 3) float32 as `_shrink_alpha` scales alpha."""
    image = Image.fromarray(rgb.astype(np.uint8))
    return np.asarray(image.resize(_shrunk_size(alpha, factor), Image.Resampling.BILINEAR), np.float32)


def _shrunk_size(alpha: np.ndarray, factor: float) -> tuple[int, int]:
    """Returns (width, height)."""
    height, width = alpha.shape
    return max(6, round(width * factor)), max(6, round(height * factor))


def _overlap(y: int, x: int, shape: tuple[int, ...], size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Returns the overlap of a size x size canvas and an array of `shape` at (y, x), as indices into both."""
    top, left, bottom, right = max(y, 0), max(x, 0), min(y + shape[0], size), min(x + shape[1], size)
    return np.s_[top:bottom, left:right], np.s_[top - y : bottom - y, left - x : right - x]


def _background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns (size, size, 3) float32: a crop of a photograph, or smooth random colours."""
    if rng.random() < TEXTURE_SHARE:
        cells = rng.integers(2, 12)
        image = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float32).copy()
    photograph = _photographs()[rng.integers(len(PHOTOGRAPHS))]
    side = int(rng.uniform(0.25, 1) * min(photograph.size))
    left, top = (int(rng.integers(0, edge - side + 1)) for edge in photograph.size)
    crop = photograph.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
    return _shift_colour(np.asarray(crop, np.float32), rng)


@functools.cache
def _photographs() -> list[Image.Image]:
    """Loads scikit-image's photographs, scaled down to at most 768 px."""
    spec = importlib.util.find_spec("skimage")
    if spec is None:
        raise ModuleNotFoundError("Mini-LVIS uses scikit-image's photographs as backgrounds: pip install scikit-image")
    folder = Path(next(iter(spec.submodule_search_locations or ()))) / "data"
    images = [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS]
    for image in images:
        image.thumbnail((768, 768))
    return images
