"""Training images that are held out to choose methods and hyperparameters by, so that val is left for the comparison.

Every image has a number in [0, 1) made of its id alone, and those below a share are held out. No class loses its last
image in training, and a class of two images or more has one held out wherever that is possible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from extract.data.annotations import Annotations
from extract.image_selection import class_image_pairs

if TYPE_CHECKING:
    from extract.cache.reader import RoICache

HELD_OUT_SHARE = 0.1
"""Share of the training images that are held out."""


def held_out_images(annotations: Annotations) -> np.ndarray:
    """Returns (N,) bool: the images of a training file that are held out, the same in every run."""
    classes, images = class_image_pairs(annotations).T
    draws = image_draws(annotations.image_ids)
    held_out = spare_last_images(draws < HELD_OUT_SHARE, classes, images)
    return cover_classes(held_out, classes, images, draws)


def training_part(train: RoICache, holdout: RoICache) -> RoICache:
    """Returns the train cache without the held-out images.

    Raises ValueError for a cache that was extracted with another split, or from another training file.
    """
    split = holdout.provenance.get("config", {}).get("split", "holdout")
    if split != "holdout":
        raise ValueError(f"{holdout.url}: was extracted with --split {split}, expected one with --split holdout")
    files = [cache.provenance.get("annotations_sha256") for cache in (train, holdout)]
    if None not in files and files[0] != files[1]:
        raise ValueError(f"{holdout.url}: was made from another annotation file than {train.url}")
    part = train.without_images(holdout.images["image_id"].to_numpy())
    if not len(part):
        raise ValueError(f"{holdout.url}: has all images of {train.url}, so that none is left to train on")
    return part


def image_draws(image_ids: np.ndarray) -> np.ndarray:
    """Returns (N,) float64 in [0, 1) that look random, each a function of its id (N,) int64 (SplitMix64)."""
    z = image_ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def spare_last_images(held_out: np.ndarray, classes: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns (N,) bool: `held_out` without the images of classes of which all are.

    `classes`, `images` (P,) are the distinct pairs of a class and an image that shows it.
    """
    left = np.bincount(classes, ~held_out[images], minlength=1)
    spared = held_out.copy()
    spared[images[left[classes] == 0]] = False
    return spared


def cover_classes(held_out: np.ndarray, classes: np.ndarray, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Returns (N,) bool: `held_out` and, of each class without any, the image of the least draw that can be spared.

    An image can be spared if all of its classes have others left. Classes are served from the rarest on. Arguments are
    those of `spare_last_images`, and `draws` (N,).
    """
    held_out = held_out.copy()
    left = np.bincount(classes, ~held_out[images], minlength=1).astype(np.int64)
    counts = np.bincount(classes)
    by_class, by_image = _groups(classes, images), _groups(images, classes)
    for c in np.argsort(counts, kind="stable").tolist():
        own = by_class.get(c, ())
        if any(held_out[i] for i in own):
            continue
        for i in sorted(own, key=draws.__getitem__):
            if all(left[other] > 1 for other in by_image[i]):
                held_out[i] = True
                left[by_image[i]] -= 1
                break
    return held_out


def _groups(keys: np.ndarray, values: np.ndarray) -> dict[int, list[int]]:
    """Returns the values (P,) of each key (P,)."""
    groups: dict[int, list[int]] = {}
    for key, value in zip(keys.tolist(), values.tolist(), strict=True):
        groups.setdefault(key, []).append(value)
    return groups
