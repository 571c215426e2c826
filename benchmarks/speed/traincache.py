"""Train caches with the label structure of LVIS v0.5: as a stand-in in memory, and on disk.

What an image of such a cache holds: of every class that LVIS annotates there, 1 + Poisson instances with the mean that
the class table gives; of every instance `ROIS_PER_INSTANCE` foreground RoIs; 64 background RoIs.

`ROIS_PER_INSTANCE` is that of Mini-LVIS's train cache, ground-truth boxes included, 1,000 proposals an image:

    labels = extract.open_cache("data/plain/train.zarr").read("labels")
    ((labels >= 0) & (labels < 240)).sum() / extract.open_cache("data/plain/train.zarr").read("is_gt").sum()
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.speed.inputs import lvis_classes, lvis_pairs
from extract.cache.format import IMAGES_PER_BLOCK, Header, Layers
from extract.cache.reader import RoICache, open_cache
from extract.cache.writer import create_cache
from extract.image_selection import cover
from extract.rois import RoIs

ROIS_PER_INSTANCE = 15.6
BACKGROUND = 64
WIDTHS = {"pooled": (256 * 49, 1024, 1024, 1231), "embedding": (1024, 1231)}
SHAPES = {"pooled": (256, 7, 7), "embedding": (1024,)}
POOL = 4096


class TrainCache:
    """As much of a `RoICache` as the trainer uses. Features are finite noise that repeats every 4,096 rows."""

    url, split, stages, fingerprint = "memory", "train", (0.5,), "none"

    def __init__(self, level: str, images: int | None = None, images_per_class: int = 1) -> None:
        """A class-balanced plan, or so many images of it."""
        rng = np.random.default_rng(0)
        classes, owners, _ = lvis_pairs("train")
        self.classes, self.level, self.detector = lvis_classes(), level, {}
        self.num_classes = len(self.classes)
        chosen = np.sort(rng.permutation(cover(classes, owners, images_per_class, rng))[:images])
        kept = np.isin(owners, chosen)
        classes, owners = classes[kept], np.searchsorted(chosen, owners[kept])
        rate = (self.classes["instance_count"] / self.classes["image_count"]).to_numpy()
        rois = np.round(ROIS_PER_INSTANCE * (1 + rng.poisson(rate[classes] - 1))).astype(int)
        labels = np.concatenate([np.repeat(classes, rois), np.full(BACKGROUND * len(chosen), self.num_classes)])
        owners = np.concatenate([np.repeat(owners, rois), np.repeat(np.arange(len(chosen)), BACKGROUND)])
        # Proposals come best first, whatever their class.
        order = np.lexsort((rng.random(len(labels)), owners))
        self.labels = labels[order].astype(np.int32)[:, None]
        self.ious = np.where(self.labels == self.num_classes, 0.3, 0.9).astype(np.float32)
        self.offsets = np.concatenate([[0], np.cumsum(np.bincount(owners))])
        self.images = pd.DataFrame({"image_id": chosen, "height": 800, "width": 1216, "flipped": False})
        self.fields = {"features": (1, *SHAPES[level])}
        noise = rng.integers(0, 15_000, (POOL, 1, *SHAPES[level]), np.int16)  # below 15,360: a half float from 0 to 1
        self._pool = noise.view(np.float16)

    def read(self, field: str) -> np.ndarray:
        return {"labels": self.labels, "ious": self.ious}[field]

    def take(self, field: str, rows: np.ndarray) -> np.ndarray:
        return self._pool[rows % POOL]

    def fc_layers(self, stage: int = 0) -> Layers:
        rng = np.random.default_rng(1)
        return [
            (rng.standard_normal((o, i), np.float32) / np.float32(i) ** 0.5, np.zeros(o, np.float32))
            for i, o in pairwise(WIDTHS[self.level])
        ]

    def write(self, url: Path) -> RoICache:
        """The same cache on disk; the columns that the trainer does not read are empty or small."""
        sizes = np.diff(self.offsets)
        header = Header("train", self.level, self.stages, {}, {})
        writer = create_cache(
            str(url), self._rois(0), header, self.classes, self.images, int(sizes.max()), [self.fc_layers()]
        )
        for block in writer.pending():
            images = range(block * IMAGES_PER_BLOCK, min((block + 1) * IMAGES_PER_BLOCK, len(sizes)))
            writer.write_block(block, [self._rois(image) for image in images])
        writer.finish()
        return open_cache(str(url))

    def _rois(self, image: int) -> RoIs:
        rows = np.arange(*self.offsets[image : image + 2])
        return RoIs(
            image_id=int(self.images["image_id"][image]),
            height=800,
            width=1216,
            proposals=np.zeros((len(rows), 1, 4), np.float32),
            boxes=np.zeros((len(rows), 4), np.float32),
            logits=np.zeros((len(rows), 1, self.num_classes + 1), np.float16),
            objectness=np.ones(len(rows), np.float32),
            features=self.take("features", rows),
            labels=self.labels[rows],
            ious=self.ious[rows],
            gt_ids=np.zeros((len(rows), 1), np.int64),
            is_gt=np.zeros(len(rows), bool),
        )
