"""Order of training images: each once per epoch (`plain`), or LVIS's repeat factor sampling (`rfs`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

Sampling = Literal["plain", "rfs"]

REPEAT_THRESHOLD = 0.01
"""LVIS repeats classes in fewer than 0.001 of 57,000 images, or 57 images; a class in a single image 7.5 times. The
same share of Mini-LVIS's 6,400 images is 6 images and would repeat almost nothing. 0.01 is 64 images, which repeats the
same classes by nearly the same factors (8 for a single image)."""


def repeat_factors(classes: list[np.ndarray], num_classes: int, threshold: float = REPEAT_THRESHOLD) -> np.ndarray:
    """Returns the repeat factor of each image, (N,) float64, at least 1.

    A class in a share f of the images has the factor max(1, sqrt(threshold / f)); an image has that of its rarest class
    (Gupta et al., "LVIS", 2019).

    Args:
        classes: for each image the class indices 0…K-1 of its objects.
        num_classes: K.
        threshold: share of the images below which a class is repeated.
    """
    images = np.zeros(num_classes)
    for present in map(np.unique, classes):
        images[present] += 1
    share = np.maximum(images, 1) / len(classes)
    factor = np.maximum(1, np.sqrt(threshold / share))
    return np.array([factor[one].max(initial=1) for one in classes])


def epoch_order(factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the image indices of one epoch, shuffled: each floor(factor) times, and once more with probability
    factor % 1."""
    repeats = np.floor(factors) + (rng.random(len(factors)) < factors % 1)
    return rng.permutation(np.repeat(np.arange(len(factors)), repeats.astype(np.int64)))


def batches(factors: np.ndarray, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yields batches of `size` image indices without end, across epochs. The same seed gives the same sequence."""
    waiting, epoch = np.empty(0, np.int64), 0
    while True:
        while len(waiting) < size:
            waiting = np.concatenate([waiting, epoch_order(factors, np.random.default_rng((seed, epoch)))])
            epoch += 1
        yield waiting[:size]
        waiting = waiting[size:]
