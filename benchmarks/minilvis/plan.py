"""Who is where: how many instances each class has, and which classes each image shows. Nothing is drawn here.

Training counts follow LVIS v0.5: quantiles of its curve inside each of the paper's bins, so that the bins
keep LVIS's shares of the classes and their very edges. The upper two bins are compressed to keep the data set
small.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPLITS = ("train", "val", "test")
OBJECTS = (6, 10)  # fewest and most objects of one image
EVAL_MIN = 15  # instances of every class in val and in test: the AP of a tail class must be no lottery
EVAL_TEMPER = 0.5  # the rest of val and test follows count ** EVAL_TEMPER
NEGATIVES = 16  # absent classes verified per image
NOT_EXHAUSTIVE = 0.025  # share of the (image, present class) pairs marked so
STRATA = 4  # neighbours in the class table come from different quarters of the curve

# (lower edge, upper edge, share of the classes, exponent):
# a count c of LVIS becomes lower * (c / lower) ** exponent.
BINS = ((1, 10, 58, 1.0), (10, 100, 89, 1.0), (100, 1000, 57, 0.35), (1000, np.inf, 36, 0.06))


@dataclass(frozen=True)
class ImagePlan:
    """What one image shows and what its annotation says. Classes are indices 0…K-1."""

    objects: np.ndarray  # (n,) int64 class of each object, back to front
    negatives: np.ndarray  # (NEGATIVES,) int64, sorted
    not_exhaustive: np.ndarray  # int64, sorted


def train_counts(classes: int, images: int, rng: np.random.Generator) -> np.ndarray:
    """(K,) int64 training instances per class.

    At full scale they are the curve itself; where `images` hold fewer or more objects they are scaled to fit.
    """
    curve = np.array(json.loads((Path(__file__).parent / "lvis_v0.5_instance_counts.json").read_text()))
    counts = np.sort(np.concatenate([_quantiles(curve, *one) for one in _bins_for(classes)]))
    low, high = OBJECTS[0] * images, OBJECTS[1] * images
    if not low <= counts.sum() <= high:
        counts = np.maximum(1, (counts * ((low + high) / 2 / counts.sum())).astype(np.int64))
        counts[-1] += max(0, low - counts.sum())
    if counts.sum() > high:
        raise ValueError(f"train_images: {images} images hold at most {high} objects, too few for {classes} classes")
    return counts[_mixed_order(classes, rng)]


def eval_counts(train: np.ndarray, images: int) -> np.ndarray:
    """(K,) int64 instances per class of val or test: a floor for each, the rest along the tempered curve."""
    total = sum(OBJECTS) // 2 * images
    floor = min(EVAL_MIN, total // len(train))
    if floor < 1:
        raise ValueError(f"eval_images: {images} images show {total} objects, fewer than the {len(train)} classes")
    weight = train**EVAL_TEMPER
    counts = floor + np.floor((total - floor * len(train)) * weight / weight.sum()).astype(np.int64)
    counts[np.argmax(train)] += total - counts.sum()
    return counts


def plan_images(counts: np.ndarray, images: int, rng: np.random.Generator) -> list[ImagePlan]:
    """Deal `counts` instances to `images` images; every instance is dealt exactly once."""
    sizes = _image_sizes(int(counts.sum()), images, rng)
    objects = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return [_plan_image(part, len(counts), rng) for part in np.split(objects, np.cumsum(sizes)[:-1])]


def category_ids(classes: int, rng: np.random.Generator) -> np.ndarray:
    """(K,) int64 ascending ids with gaps, so that nobody may take an id for an index."""
    return 2 + np.cumsum(rng.integers(1, 4, classes))


def _bins_for(classes: int):
    """BINS with the number of classes in place of the share (largest remainder)."""
    share = np.array([b[2] for b in BINS]) * classes / sum(b[2] for b in BINS)
    size = np.floor(share).astype(int)
    size[np.argsort(size - share)[: classes - size.sum()]] += 1
    return [(low, high, n, power) for (low, high, _, power), n in zip(BINS, size, strict=True)]


def _quantiles(curve: np.ndarray, low: float, high: float, n: int, power: float) -> np.ndarray:
    inside = curve[(curve >= low) & (curve < high)]
    value = np.quantile(inside, (np.arange(n) + 0.5) / n)
    return np.floor(low * (value / low) ** power).astype(np.int64)


def _mixed_order(classes: int, rng: np.random.Generator) -> np.ndarray:
    """(K,) ranks in class order: neighbours, which look alike, come from different quarters of the curve."""
    strata = np.array_split(np.arange(classes), STRATA)
    key = np.concatenate([(rng.permutation(len(s)) + rng.random(len(s))) / max(len(s), 1) for s in strata])
    return np.argsort(key)


def _image_sizes(total: int, images: int, rng: np.random.Generator) -> np.ndarray:
    """(images,) objects per image, inside OBJECTS, adding up to `total`."""
    low, high = OBJECTS
    if not low * images <= total <= high * images:
        raise ValueError(f"{images} images hold {low * images} to {high * images} objects, not {total}")
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
