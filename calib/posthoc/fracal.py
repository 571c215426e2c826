"""FRACAL: class frequency and the fractal dimension of where a class's boxes are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calib.posthoc.base import Affine, Posthoc, append_background, training_counts
from calib.scoring import Original
from extract.data.classes import CountColumn

if TYPE_CHECKING:
    from extract import RoICache

MAX_GRID = 64


class Fracal(Posthoc):
    """softmax(z_c − log₁₀(p_c·K), z_bg), each foreground score then divided by Φ_c^λ and all normalised.

    p_c is the share of training images that contain class c (with `count="instance_count"`, of training instances). Φ_c
    is the box-counting dimension of its box centres in the ground truth of a train cache: 1 for a class on a line or of
    few instances, 2 for one that is everywhere. Normalised, the division is a shift by −λ·log Φ_c. With sigmoid
    scores: σ(z_c) · σ(z_c − log₁₀(p_c·K) − log₁₀(K·Φ_c^λ / Σ Φ^λ)).

    Source: Alexandridis et al., "Fractal Calibration for Long-tailed Object Detection" (CVPR 2025), and its released
    code (`ConvFCFracalBBoxHead`, `calculate_fractality.py`): frequencies to base 10, `fractal_l` is λ.
    """

    needs = "class counts and ground-truth boxes of a train cache"
    source = "Alexandridis et al., CVPR 2025, and its released code"
    fits_labels = True

    def __init__(self, lam: float = 2.0, count: CountColumn = "image_count", num_images: int | None = None) -> None:
        """`num_images` is the size of the training set, by default as the cache records it."""
        self.lam, self.count, self.num_images = lam, count, num_images
        self.name = f"fracal-{lam:g}"

    def compute_affine(self, cache: RoICache) -> Affine:
        """Returns scale 1 and shift −log₁₀(p_c·K) − λ·log Φ_c, which is 0 for sigmoid scores.

        Raises ValueError if the cache has no ground-truth boxes or does not record the size of the training set.
        """
        if _is_sigmoid(cache):
            return Affine(np.ones(1), np.zeros(1))
        shift = self._frequency_shift(cache) - self.lam * np.log(dimensions(cache))
        return Affine(np.ones(1), append_background(shift, 0))

    def compute_gate(self, cache: RoICache) -> Affine | None:
        """Returns the logits of the second factor of sigmoid scores."""
        if not _is_sigmoid(cache):
            return None
        weights = dimensions(cache) ** self.lam
        shift = self._frequency_shift(cache) - np.log10(weights * len(weights) / weights.sum())
        return Affine(np.ones(1), append_background(shift, 0))

    def _frequency_shift(self, cache: RoICache) -> np.ndarray:
        """Returns (K,) −log₁₀ p_c − log₁₀ K."""
        counts = training_counts(cache, self.count)
        total = counts.sum() if self.count == "instance_count" else self._training_images(cache, counts.max())
        return np.log10(total / (counts * len(counts)))

    def _training_images(self, cache: RoICache, largest: float) -> int:
        images = self.num_images or cache.provenance.get("train_images")
        if images is None:
            missing = f"does not record how many images the training set has, which {self.name} needs"
            raise ValueError(f"{cache.url}: {missing}: give num_images, or count 'instance_count'")
        if images < largest:
            raise ValueError(f"num_images is {images}, but a class is in {largest:.0f} training images")
        return images


def dimensions(cache: RoICache) -> np.ndarray:
    """Returns `box_counting_dimensions` (K,) of the ground-truth boxes of a train cache.

    Raises ValueError if the cache has none.
    """
    labels = cache.read("labels")[:, 0]
    rows = np.flatnonzero(cache.read("is_gt").astype(bool) & (labels >= 0) & (labels < cache.num_classes))
    if not len(rows):
        raise ValueError(f"{cache.url}: has no ground-truth boxes, give a train cache to fit on")
    position = np.searchsorted(cache.offsets, rows, side="right") - 1
    sizes = cache.images[["width", "height"]].to_numpy(np.float64)[position]
    boxes = cache.read("proposals")[rows, 0].astype(np.float64)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 / sizes
    return box_counting_dimensions(centers, labels[rows], cache.num_classes)


def box_counting_dimensions(
    centers: np.ndarray, labels: np.ndarray, num_classes: int, max_grid: int = MAX_GRID
) -> np.ndarray:
    """Returns (K,) float64 dimensions: the slope of log(cells that hold a centre) over log(g), at least 1.

    Grids have g × g cells for g = 1 … `max_grid` with g² at most the class's number of centres. The dimension of a
    class of fewer than 4 centres is 1.

    Args:
        centers: (n, 2) x and y as fractions of the image's size.
        labels: (n,) classes.
        num_classes: K.
        max_grid: edge of the finest grid.
    """
    counts = np.bincount(labels, minlength=num_classes)
    grids = np.arange(1, max_grid + 1)
    cells = np.empty((max_grid, num_classes))
    for row, g in enumerate(grids):
        column, line = np.clip((centers * g).astype(np.int64), 0, g - 1).T
        occupied = np.unique((labels.astype(np.int64) * g + line) * g + column)
        cells[row] = np.bincount(occupied // g**2, minlength=num_classes)
    used = grids[:, None] ** 2 <= counts
    x = np.broadcast_to(np.log(grids)[:, None], used.shape)
    y = np.log(np.maximum(cells, 1))
    deviation = np.where(used, x - (x * used).sum(0) / np.maximum(used.sum(0), 1), 0)
    slope = (deviation * y).sum(0) / np.maximum(np.square(deviation).sum(0), 1e-9)
    return np.where(counts < 4, 1, np.maximum(slope, 1))


def _is_sigmoid(cache: RoICache) -> bool:
    return Original.from_description(cache.detector).activation == "sigmoid"
