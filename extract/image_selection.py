"""Selects the images to extract: enough of every class, and no more."""

from __future__ import annotations

import numpy as np

from extract.data.annotations import Annotations


def class_balanced_images(
    annotations: Annotations, min_images_per_class: int, seed: int, among: np.ndarray | None = None
) -> np.ndarray:
    """Returns positions, ascending, of images that show every class in `min_images_per_class` images.

    A class of fewer images gets all of them. Goes through the classes from the rarest to the most frequent and adds
    random images of each until it has enough, counting the images that earlier classes have added. `among` (N,) bool
    are the images to select from.
    """
    pairs = class_image_pairs(annotations)
    pairs = pairs if among is None else pairs[among[pairs[:, 1]]]
    return cover_classes(pairs[:, 0], pairs[:, 1], min_images_per_class, np.random.default_rng(seed))


def class_image_pairs(annotations: Annotations) -> np.ndarray:
    """Returns (P, 2) int64, every pair of a class and the position of an image that shows it, crowd regions ignored."""
    owner = np.repeat(np.arange(len(annotations.image_ids)), np.diff(annotations.offsets))
    pairs = np.stack([annotations.labels.astype(np.int64), owner], 1)[~annotations.crowd]
    return np.unique(pairs, axis=0)


def cover_classes(
    classes: np.ndarray, images: np.ndarray, min_images_per_class: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns `class_balanced_images` of (P,) pairs of class and image position, sorted by class."""
    images_of_classes = np.split(images, np.flatnonzero(np.diff(classes)) + 1) if len(images) else []
    selected = np.zeros(images.max(initial=-1) + 1, bool)
    for candidates in sorted(images_of_classes, key=len):
        missing = min_images_per_class - int(selected[candidates].sum())
        unused = candidates[~selected[candidates]]
        if missing > 0:
            selected[rng.choice(unused, min(missing, len(unused)), replace=False)] = True
    return np.flatnonzero(selected)
