"""Resampled images, and the columns of AP that are computed in each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from extract.data.bins import bin_index, bin_names
from fuse.evaluation.engines import AREAS

EVERY_THRESHOLD = -1
"""Of a column: AP is the mean over IoU thresholds."""


class ApColumn(NamedTuple):
    """A column of AP: the mean over some classes.

    Attributes:
        name: of the column.
        area: position in `AREAS`.
        threshold: of the IoU thresholds, or `EVERY_THRESHOLD`.
        classes: (K,) bool, by ascending category id.
    """

    name: str
    area: int
    threshold: int
    classes: np.ndarray


def ap_columns(classes: pd.DataFrame, bins: tuple[float, ...], num_areas: int) -> list[ApColumn]:
    """Returns the columns of AP that `summarize` makes, without bAP.

    Args:
        classes: a class table.
        bins: edges of half-open bins of training instances.
        num_areas: 1 by LVIS's protocol, 4 by COCO's.
    """
    table = classes.sort_values("category_id")
    index, tags = bin_index(table["instance_count"].to_numpy(), bins), table["frequency"].to_numpy()
    every = np.ones(len(table), bool)
    groups = {f"AP{name}": index == i for i, name in enumerate(bin_names(bins))} | {"AP": every}
    groups |= {f"AP{tag}": tags == tag for tag in "rcf"}
    columns = [ApColumn(name, 0, EVERY_THRESHOLD, members) for name, members in groups.items()]
    columns += [ApColumn("AP50", 0, 0, every), ApColumn("AP75", 0, 5, every)]
    return columns + [ApColumn(f"AP{AREAS[a]}", a, EVERY_THRESHOLD, every) for a in range(1, num_areas)]


def draw_images(num_images: int, samples: int, seed: int) -> np.ndarray:
    """Draws resamples of images with replacement; returns (I, B) uint16, how often each image is in each.

    They depend on nothing else: rows, detectors and IoU types on the same images are compared on the same resamples.
    """
    rng = np.random.default_rng(seed)
    weights = np.empty((num_images, samples), np.uint16)
    for sample in range(samples):
        weights[:, sample] = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
    return weights


class Resamples(NamedTuple):
    """Resampled images, and the columns of AP that are computed in each.

    Attributes:
        columns: of `ap_columns`.
        weights: (I, B) uint16 of `draw_images`, images by ascending id.
    """

    columns: list[ApColumn]
    weights: np.ndarray
