"""Which images to extract: a class-balanced training plan visits only those it needs."""

from __future__ import annotations

import numpy as np

from extract.data.annotations import Annotations


def class_balanced_images(annotations: Annotations, images_per_class: int, seed: int) -> np.ndarray:
    """Positions, ascending, of images that hold every class in `images_per_class` images where it has as many.

    Goes through the classes from the rarest on and adds random images of each until it has enough, counting
    the images that earlier classes brought.
    """
    pairs = class_image_pairs(annotations)
    return cover(pairs[:, 0], pairs[:, 1], images_per_class, np.random.default_rng(seed))


def class_image_pairs(annotations: Annotations) -> np.ndarray:
    """(P, 2) int64, every pair of a class and the position of an image that contains it, crowds left out."""
    owner = np.repeat(np.arange(len(annotations.image_ids)), np.diff(annotations.offsets))
    pairs = np.stack([annotations.labels.astype(np.int64), owner], 1)[~annotations.crowd]
    return np.unique(pairs, axis=0)


def cover(classes: np.ndarray, images: np.ndarray, images_per_class: int, rng: np.random.Generator) -> np.ndarray:
    """`class_balanced_images` on (P,) pairs of class and image, sorted by class."""
    members = np.split(images, np.flatnonzero(np.diff(classes)) + 1) if len(images) else []
    chosen = np.zeros(images.max(initial=-1) + 1, bool)
    for candidates in sorted(members, key=len):
        missing = images_per_class - int(chosen[candidates].sum())
        unused = candidates[~chosen[candidates]]
        if missing > 0:
            chosen[rng.choice(unused, min(missing, len(unused)), replace=False)] = True
    return np.flatnonzero(chosen)
