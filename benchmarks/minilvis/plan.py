"""Plans Mini-LVIS: how many instances each class has, and which classes each image shows. Nothing is drawn.

Training counts follow LVIS v0.5: they are quantiles of its counts within each of the paper's bins, so that each bin has
LVIS's share of the classes and the same edges. The upper two bins are compressed to keep the dataset small.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

SPLITS = ("train", "val", "test")
OBJECTS = (6, 10)  # fewest and most objects in an image
EVAL_MIN = 15  # instances of every class in val and in test, so that AP of tail classes is no noise
EVAL_TEMPER = 0.5  # other instances of val and test are distributed as count ** EVAL_TEMPER
NEGATIVES = 16  # classes of an image that are verified to be absent
NOT_EXHAUSTIVE = 0.025  # share of the pairs of image and present class that are not exhaustively annotated
STRATA = 4  # neighbours in the class table have counts from different quarters


class Bin(NamedTuple):
    """A bin of training counts.

    Attributes:
        lower, upper: edges, half-open.
        classes: number of classes in the bin.
        exponent: a count c of LVIS becomes lower * (c / lower) ** exponent.
    """

    lower: float
    upper: float
    classes: int
    exponent: float


BINS = (Bin(1, 10, 58, 1.0), Bin(10, 100, 89, 1.0), Bin(100, 1000, 57, 0.35), Bin(1000, np.inf, 36, 0.06))


@dataclass(frozen=True)
class ImagePlan:
    """The objects of one image and its federated annotation. Classes are indices 0…K-1.

    Attributes:
        objects: (n,) int64, class of each object, back to front.
        negatives: (NEGATIVES,) int64, ascending, classes verified to be absent.
        not_exhaustive: (m,) int64, ascending, classes not annotated exhaustively.
    """

    objects: np.ndarray
    negatives: np.ndarray
    not_exhaustive: np.ndarray


def train_counts(classes: int, images: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the training instances of each class, (K,) int64.

    At full scale they follow LVIS's counts; if `images` hold fewer or more objects, they are scaled to fit. Raises
    ValueError if the images hold too few objects.
    """
    curve = np.array(json.loads((Path(__file__).parent / "lvis_v0.5_instance_counts.json").read_text()))
    counts = np.sort(np.concatenate([_quantiles(curve, one) for one in _bins_for(classes)]))
    low, high = OBJECTS[0] * images, OBJECTS[1] * images
    if not low <= counts.sum() <= high:
        counts = np.maximum(1, (counts * ((low + high) / 2 / counts.sum())).astype(np.int64))
        counts[-1] += max(0, low - counts.sum())
    if counts.sum() > high:
        raise ValueError(f"train_images is {images}, which hold at most {high} objects: too few for {classes} classes")
    return counts[_mixed_order(classes, rng)]


def eval_counts(train: np.ndarray, images: int) -> np.ndarray:
    """Returns the instances of each class in val or test, (K,) int64: at least `EVAL_MIN`, or as many as fit.

    Raises ValueError if the images show fewer objects than there are classes.
    """
    total = sum(OBJECTS) // 2 * images
    minimum = min(EVAL_MIN, total // len(train))
    if minimum < 1:
        raise ValueError(f"eval_images is {images}, which show {total} objects: fewer than the {len(train)} classes")
    weight = train**EVAL_TEMPER
    counts = minimum + np.floor((total - minimum * len(train)) * weight / weight.sum()).astype(np.int64)
    counts[np.argmax(train)] += total - counts.sum()
    return counts


def plan_images(counts: np.ndarray, images: int, rng: np.random.Generator) -> list[ImagePlan]:
    """Distributes `counts` instances over `images` images, each instance once."""
    sizes = _image_sizes(int(counts.sum()), images, rng)
    objects = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return [_plan_image(part, len(counts), rng) for part in np.split(objects, np.cumsum(sizes)[:-1])]


def category_ids(classes: int, rng: np.random.Generator) -> np.ndarray:
    """Returns (K,) int64 ascending ids with gaps, so that an id taken for an index is noticed."""
    return 2 + np.cumsum(rng.integers(1, 4, classes))


def _bins_for(classes: int) -> list[Bin]:
    """Scales `BINS` to a number of classes (largest remainder method)."""
    share = np.array([b.classes for b in BINS]) * classes / sum(b.classes for b in BINS)
    size = np.floor(share).astype(int)
    size[np.argsort(size - share)[: classes - size.sum()]] += 1
    return [one._replace(classes=int(n)) for one, n in zip(BINS, size, strict=True)]


def _quantiles(curve: np.ndarray, part: Bin) -> np.ndarray:
    """Returns the counts of a bin's classes: quantiles of LVIS's counts in the bin, compressed."""
    inside = curve[(curve >= part.lower) & (curve < part.upper)]
    value = np.quantile(inside, (np.arange(part.classes) + 0.5) / part.classes)
    return np.floor(part.lower * (value / part.lower) ** part.exponent).astype(np.int64)


def _mixed_order(classes: int, rng: np.random.Generator) -> np.ndarray:
    """Returns (K,) ranks of counts in class order: neighbours, which look alike, are from different strata."""
    strata = np.array_split(np.arange(classes), STRATA)
    key = np.concatenate([(rng.permutation(len(s)) + rng.random(len(s))) / max(len(s), 1) for s in strata])
    return np.argsort(key)


def _image_sizes(total: int, images: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the objects of each image, (images,), within `OBJECTS` and `total` in sum."""
    low, high = OBJECTS
    if not low * images <= total <= high * images:
        raise ValueError(f"{images} images hold {low * images} to {high * images} objects, expected {total}")
    sizes = low + rng.binomial(high - low, (total / images - low) / (high - low), images)
    while (excess := sizes.sum() - total) != 0:
        movable = np.flatnonzero(sizes > low if excess > 0 else sizes < high)
        sizes[rng.permutation(movable)[: abs(excess)]] -= np.sign(excess)
    return sizes


def _plan_image(objects: np.ndarray, classes: int, rng: np.random.Generator) -> ImagePlan:
    present = np.unique(objects)
    absent = np.setdiff1d(np.arange(classes), present)
    negatives = np.sort(rng.permutation(absent)[:NEGATIVES])
    return ImagePlan(objects, negatives, present[rng.random(len(present)) < NOT_EXHAUSTIVE])
