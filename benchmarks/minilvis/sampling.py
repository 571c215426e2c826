"""Which training images come when: each once an epoch (`plain`), or LVIS's repeat factor sampling (`rfs`)."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

Sampling = Literal["plain", "rfs"]

# LVIS uses t = 0.001 of 57,000 images: classes in fewer than 57 images are repeated, one of a single image
# 7.5 times. The same share of Mini-LVIS's 6,400 images would be 6 images and repeat almost nothing. 0.01 of
# them is 64 images: the same part of the curve is repeated, by nearly the same factors (8 for a single
# image).
REPEAT_THRESHOLD = 0.01


def repeat_factors(classes: list[np.ndarray], num_classes: int, threshold: float = REPEAT_THRESHOLD) -> np.ndarray:
    """(N,) float64 repeat factor >= 1 of each image; `classes`: per image the indices 0…K-1 of its objects.

    A class in the share f of the images has the factor max(1, sqrt(threshold / f)), an image that of its
    rarest class.
    """
    images = np.zeros(num_classes)
    for present in map(np.unique, classes):
        images[present] += 1
    share = np.maximum(images, 1) / len(classes)
    factor = np.maximum(1, np.sqrt(threshold / share))
    return np.array([factor[one].max(initial=1) for one in classes])


def epoch_order(factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Image indices of one epoch, shuffled: floor(factor) times each, once more by the fraction's chance."""
    repeats = np.floor(factors) + (rng.random(len(factors)) < factors % 1)
    return rng.permutation(np.repeat(np.arange(len(factors)), repeats.astype(np.int64)))


def batches(factors: np.ndarray, size: int, seed: int) -> Iterator[np.ndarray]:
    """(size,) image indices without end, the epochs joined. The same seed gives the same sequence."""
    waiting, epoch = np.empty(0, np.int64), 0
    while True:
        while len(waiting) < size:
            waiting = np.concatenate([waiting, epoch_order(factors, np.random.default_rng((seed, epoch)))])
            epoch += 1
        yield waiting[:size]
        waiting = waiting[size:]
