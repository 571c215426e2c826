"""Train caches with the label structure of LVIS v0.5: as a stand-in in memory, and on disk.

An image of such a cache has, for every class that LVIS annotates there, 1 + Poisson instances with the mean of the
class table; for every instance `ROIS_PER_INSTANCE` foreground RoIs; and `BACKGROUND` background RoIs.

`ROIS_PER_INSTANCE` is that of Mini-LVIS's train cache, ground-truth boxes included, with 1,000 proposals per image:

    labels = extract.open_cache("data/plain/train.zarr").read("labels")
    ((labels >= 0) & (labels < 240)).sum() / extract.open_cache("data/plain/train.zarr").read("is_gt").sum()
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.speed.inputs import SIZE, lvis_classes, lvis_pairs, make_rois
from extract.cache.creation import create_cache
from extract.cache.format import IMAGES_PER_BLOCK, Header, Layers, Projection
from extract.cache.opening import open_cache
from extract.cache.reader import RoICache
from extract.image_selection import cover_classes
from extract.rois import RoIs

ROIS_PER_INSTANCE = 15.6
BACKGROUND = 64
WIDTHS = {
    "pooled": (256 * 49, 1024, 1024, 1231),
    "hidden": (256 * 49, 1024, 1024, 1231),
    "embedding": (1024, 1231),
}
"""Inputs and outputs of the detector's fully connected layers, by feature level of a cache that stores them."""
DIRECTIONS = 256
"""Of the projection of level hidden."""
SHAPES = {"pooled": (256, 7, 7), "hidden": (1024 + DIRECTIONS,), "embedding": (1024,)}
NOISE_ROWS = 4096


class TrainCache:
    """The part of the `RoICache` interface that the trainer uses. Features are noise that repeats every 4,096 rows."""

    url = "memory"
    split = "train"
    stages = (0.5,)
    fingerprint = "none"
    class_map = None

    def __init__(self, level: str, images: int | None = None, images_per_class: int = 1) -> None:
        """Selects images so that every class has `images_per_class`; `images` limits them to a random subset."""
        rng = np.random.default_rng(0)
        classes, owners, _ = lvis_pairs("train")
        self.classes, self.level = lvis_classes(), level
        self.detector: dict[str, object] = {}
        self.num_classes = len(self.classes)
        chosen = np.sort(rng.permutation(cover_classes(classes, owners, images_per_class, rng))[:images])
        kept = np.isin(owners, chosen)
        classes, owners = classes[kept], np.searchsorted(chosen, owners[kept])
        rate = (self.classes["instance_count"] / self.classes["image_count"]).to_numpy()
        rois = np.round(ROIS_PER_INSTANCE * (1 + rng.poisson(rate[classes] - 1))).astype(int)
        labels = np.concatenate([np.repeat(classes, rois), np.full(BACKGROUND * len(chosen), self.num_classes)])
        owners = np.concatenate([np.repeat(owners, rois), np.repeat(np.arange(len(chosen)), BACKGROUND)])
        # Proposals are sorted by objectness, so classes are mixed within an image.
        order = np.lexsort((rng.random(len(labels)), owners))
        self.labels = labels[order].astype(np.int32)[:, None]
        # One ground-truth box per instance, whose RoIs lie anywhere among those of the image.
        self.is_gt = (self.labels[:, 0] < self.num_classes) & (
            np.random.default_rng(2).random(len(labels)) < 1 / ROIS_PER_INSTANCE
        )
        self.ious = np.where(self.labels == self.num_classes, 0.3, 0.9).astype(np.float32)
        self.offsets = np.concatenate([[0], np.cumsum(np.bincount(owners))])
        self.images = pd.DataFrame({"image_id": chosen, "height": SIZE[0], "width": SIZE[1], "flipped": False})
        self.fields = {"features": (1, *SHAPES[level])}
        noise = rng.integers(0, 15_000, (NOISE_ROWS, 1, *SHAPES[level]), np.int16)  # as float16 from 0 to 1
        self._noise = noise.view(np.float16)

    def read(self, field: str) -> np.ndarray:
        """See `RoICache.read`."""
        return {"labels": self.labels, "ious": self.ious, "is_gt": self.is_gt}[field]

    def take(self, field: str, rows: np.ndarray) -> np.ndarray:
        """See `RoICache.take`."""
        return self._noise[rows % NOISE_ROWS]

    @property
    def projections(self) -> list[Projection]:
        """See `RoICache.projections`; the first axes."""
        size = WIDTHS["hidden"][0]
        return [Projection(np.eye(DIRECTIONS, size, dtype=np.float32), np.zeros(size, np.float32))]

    def fc_layers(self, stage: int = 0) -> Layers:
        """See `RoICache.fc_layers`; random weights."""
        rng = np.random.default_rng(1)
        return [
            (rng.standard_normal((o, i), np.float32) / np.float32(i) ** 0.5, np.zeros(o, np.float32))
            for i, o in pairwise(WIDTHS[self.level])
        ]

    def write(self, url: Path) -> RoICache:
        """Writes the same cache to disk; columns that the trainer does not read are zero."""
        sizes = np.diff(self.offsets)
        header = Header("train", self.level, self.stages, {}, {})
        writer = create_cache(
            str(url),
            self._rois(0),
            header,
            self.classes,
            self.images,
            int(sizes.max()),
            [self.fc_layers()],
            projections=self.projections if self.level == "hidden" else (),
        )
        for block in writer.pending():
            images = range(block * IMAGES_PER_BLOCK, min((block + 1) * IMAGES_PER_BLOCK, len(sizes)))
            writer.write_block(block, [self._rois(image) for image in images])
        writer.finish()
        return open_cache(str(url))

    def _rois(self, image: int) -> RoIs:
        rows = np.arange(*self.offsets[image : image + 2])
        return make_rois(
            int(self.images["image_id"][image]),
            np.zeros((len(rows), 4), np.float32),
            np.zeros((len(rows), self.num_classes + 1), np.float16),
            features=self.take("features", rows),
            labels=self.labels[rows],
            ious=self.ious[rows],
            is_gt=self.is_gt[rows],
        )
