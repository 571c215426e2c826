"""Draw one image: a background, then its objects back to front, each left visible enough."""

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

# The photographs and textures that scikit-image carries inside its wheel; the others would be downloads.
PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
    "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png",
    "motorcycle_right.png", "page.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
TEXTURE_SHARE = 0.3  # of the backgrounds are procedural
OBJECT_SIDE = (20, 60)  # px, longer side of a sprite before rotation; log-uniform
ANGLE = 35  # degrees, either way
MIN_VISIBLE = 0.55  # share of an object's pixels that later objects must leave
MIN_INSIDE = 0.8  # share of an object's pixels inside the image
TRIES = 12  # placements tried before the object is made smaller


@dataclass(frozen=True)
class Rendered:
    """One finished image."""

    pixels: np.ndarray  # (H, W, 3) uint8
    masks: np.ndarray  # (n, H, W) bool, the visible part of each object; disjoint


def render(objects: np.ndarray, sprites: list[list[Image.Image]], size: int, rng: np.random.Generator) -> Rendered:
    """`objects`: (n,) classes, indices into `sprites` (per class its drawings)."""
    background = _background(size, rng)
    # A hopelessly crowded start (an object that fits nowhere) is thrown away as a whole.
    while (placed := _place_all(objects, sprites, background.copy(), rng)) is None:
        pass
    canvas, owner = placed
    canvas += rng.normal(0, rng.uniform(0, 6), canvas.shape)
    return Rendered(canvas.clip(0, 255).astype(np.uint8), owner[None] == np.arange(len(objects))[:, None, None])


def _place_all(objects, sprites, canvas, rng):
    """Canvas and (H, W) int64 owner map (-1: background), or None where an object found no place."""
    size = len(canvas)
    owner = np.full((size, size), -1)
    full = np.zeros(len(objects), np.int64)  # pixels of each object as drawn, inside the image
    for index, one in enumerate(objects):
        drawing = sprites[one][rng.integers(len(sprites[one]))]
        rgb, alpha = _vary(drawing, rng)
        spot = _find_spot(alpha, owner, full[:index], rng)
        if spot is None:
            return None
        (y, x), shrink = spot
        if shrink < 1:
            rgb, alpha = _shrink(rgb, alpha, shrink)
        here, there = _overlap(y, x, alpha.shape, size)
        rgb, alpha = rgb[there], alpha[there]
        canvas[here] += alpha[..., None] * (rgb - canvas[here])
        solid = alpha >= 0.5
        owner[here][solid] = index
        full[index] = solid.sum()
    return canvas, owner


def _find_spot(alpha, owner, full, rng):
    """((top, left), shrink factor) of a placement that leaves all earlier objects visible, or None."""
    visible = np.bincount(owner.ravel() + 1, minlength=len(full) + 1)[1:]
    for shrink in (1.0, 0.8, 0.64):
        solid = (alpha if shrink == 1 else _shrink(None, alpha, shrink)[1]) >= 0.5
        low = -np.array(solid.shape) // 5
        for y, x in rng.integers(low, len(owner) - np.array(solid.shape) - low + 1, (TRIES, 2)):
            here, there = _overlap(y, x, solid.shape, len(owner))
            inside = solid[there]
            lost = np.bincount(owner[here][inside] + 1, minlength=len(full) + 1)[1:]
            if inside.sum() >= MIN_INSIDE * solid.sum() and (visible - lost >= MIN_VISIBLE * full).all():
                return (y, x), shrink
    return None


def _vary(drawing: Image.Image, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The drawing at a random scale, aspect, flip, rotation and colour.

    Returns (h, w, 3) float32 0…255 and (h, w) float32 alpha 0…1.
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
    """Turn the hue by up to 20 degrees and change contrast and brightness."""
    angle = np.deg2rad(rng.uniform(-20, 20))
    third, root = (1 - np.cos(angle)) / 3, np.sin(angle) / np.sqrt(3)
    # Rotation about the grey axis (1, 1, 1).
    hue = np.full((3, 3), third) + np.cos(angle) * np.eye(3) + root * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    contrast, brightness = rng.uniform(0.6, 1.2), rng.uniform(-30, 30)
    return ((rgb @ hue.T.astype(np.float32) - 128) * contrast + 128 + brightness).clip(0, 255).astype(np.float32)


def _shrink(rgb: np.ndarray | None, alpha: np.ndarray, factor: float) -> tuple[np.ndarray | None, np.ndarray]:
    """rgb (h, w, 3) and alpha (h, w) float32 at `factor` of their size, at least 6 px a side."""
    shape = [max(6, round(s * factor)) for s in alpha.shape[::-1]]
    small = np.asarray(Image.fromarray(alpha).resize(shape, Image.Resampling.BILINEAR))
    if rgb is not None:
        rgb = np.asarray(Image.fromarray(rgb.astype(np.uint8)).resize(shape, Image.Resampling.BILINEAR), np.float32)
    return rgb, small


def _overlap(y: int, x: int, shape: tuple[int, int], size: int):
    """Where a size x size canvas and an array of `shape` laid on it at (y, x) overlap: indices into both."""
    top, left, bottom, right = max(y, 0), max(x, 0), min(y + shape[0], size), min(x + shape[1], size)
    return np.s_[top:bottom, left:right], np.s_[top - y : bottom - y, left - x : right - x]


def _background(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3) float32: a crop of a photograph, or smooth random colours."""
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
    """scikit-image's photographs, at most 512 px on the shorter side: they are only ever shown small."""
    spec = importlib.util.find_spec("skimage")
    if spec is None:
        raise ModuleNotFoundError("Mini-LVIS uses scikit-image's photographs as backgrounds: pip install scikit-image")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    images = [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS]
    for image in images:
        image.thumbnail((768, 768))
    return images
