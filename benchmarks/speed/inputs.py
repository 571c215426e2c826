"""Made-up inputs at the paper's scale: LVIS v0.5's own classes and images, and scores like a trained detector's.

Letters in shapes: `R` RoIs, `K` classes, `P` pairs of a class and an image that contains it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from extract.rois import RoIs

DATA = Path(__file__).parents[1] / "data"
SIZE = (800, 1216)
"""Height and width of an image in pixels."""
OBJECTS = 24
"""Objects in an image, around which two thirds of the proposals crowd."""


def lvis_classes() -> pd.DataFrame:
    """Reads the class table of LVIS v0.5, with the columns of `RoICache.classes`."""
    table = pd.DataFrame(json.loads((DATA / "lvis_v0.5_class_counts.json").read_text())["categories"])
    table = table.rename(columns={"id": "category_id"})
    return table[["category_id", "name", "frequency", "image_count", "instance_count"]]


def lvis_pairs(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads class (P,) and image position (P,) of every pair, sorted by class, and the image ids (N,), all int64."""
    ids = lvis_classes()["category_id"].to_numpy()
    with np.load(DATA / f"lvis_v0.5_{split}_class_images.npz") as pairs:
        classes = np.searchsorted(ids, pairs["category_id"])
        image_ids, images = np.unique(pairs["image_id"], return_inverse=True)
    order = np.lexsort((images, classes))
    return classes[order], images[order], image_ids.astype(np.int64)


def make_rois(image_id: int, boxes: np.ndarray, logits: np.ndarray, **columns: np.ndarray | None) -> RoIs:
    """Makes one image's RoIs of a detector with one stage, all of them background unless `columns` differ.

    Args:
        image_id: any integer.
        boxes: (R, 4) float32 xyxy in an image of `SIZE`; also the proposals.
        logits: (R, K+1) float16, background last.
        columns: further fields, or replacements.
    """
    count, background = len(boxes), logits.shape[1] - 1
    defaults: dict[str, Any] = {
        "proposals": boxes[:, None],
        "boxes": boxes,
        "logits": logits[:, None],
        "objectness": np.ones(count, np.float32),
        "labels": np.full((count, 1), background, np.int32),
        "ious": np.zeros((count, 1), np.float32),
        "gt_ids": np.full((count, 1), -1, np.int64),
        "is_gt": np.zeros(count, bool),
    }
    return RoIs(image_id=image_id, height=SIZE[0], width=SIZE[1], **(defaults | columns))


def proposals(rois: int = 1000, seed: int = 0, classes: int | None = None) -> np.ndarray:
    """Makes (R, 4) float32 xyxy, or (R, K, 4) with `classes`: two thirds around the objects, the others anywhere."""
    rng = np.random.default_rng(seed)
    boxes = _objects(rng)[_owners(rng, rois)]
    spread = np.exp(rng.uniform(np.log(0.02), np.log(0.6), (rois, 1)))
    alone = rng.random(rois) < 1 / 3
    boxes[alone] = _objects(rng, int(alone.sum()))
    boxes = _jitter(rng, boxes, np.where(alone[:, None], 0, spread))
    if classes is not None:
        boxes = _jitter(rng, np.repeat(boxes[:, None], classes, 1), 0.05)
    return boxes.astype(np.float32)


def logits(rois: int = 1000, classes: int = 1230, seed: int = 0) -> np.ndarray:
    """Makes (R, K+1) float16, background last, for the RoIs of `proposals` with the same seed.

    Peaked as a trained detector's: of 1,000 RoIs and 1,230 classes some 300 scores are above 0.05, 100,000 above
    1e-4, and background has most of the rest. Frequent classes have higher scores throughout.
    """
    rng = np.random.default_rng(seed)
    counts = np.resize(lvis_classes()["instance_count"].to_numpy(), classes)
    labels = rng.choice(classes, OBJECTS, p=counts / counts.sum())
    rng = np.random.default_rng(seed)
    _objects(rng)
    owners = _owners(rng, rois)
    rng = np.random.default_rng((seed, 1))
    z = 0.5 * np.log(counts) + rng.normal(0, 1.4, (rois, classes))
    z[np.arange(rois), labels[owners]] += rng.normal(6, 2.5, rois)
    background = rng.normal(14.5, 2, rois)
    return np.column_stack([z, background]).astype(np.float16)


def disc_masks(count: int, rng: np.random.Generator) -> np.ndarray:
    """Makes (N, 28, 28) uint8 class-agnostic mask probabilities, 0 to 254: discs of random radius."""
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    radius = rng.uniform(0.3, 1.2, (count, 1, 1))
    return (254 / (1 + np.exp(8 * (x**2 + y**2 - radius)))).astype(np.uint8)


def _objects(rng: np.random.Generator, count: int = OBJECTS) -> np.ndarray:
    height, width = SIZE
    centre = rng.random((count, 2)) * (width, height)
    size = np.exp(rng.uniform(np.log(16), np.log(400), (count, 2)))
    return _clip(np.concatenate([centre - size / 2, centre + size / 2], 1))


def _owners(rng: np.random.Generator, rois: int) -> np.ndarray:
    """Draws the object that each RoI belongs to, (R,)."""
    return rng.integers(0, OBJECTS, rois)


def _jitter(rng: np.random.Generator, boxes: np.ndarray, spread: np.ndarray | float) -> np.ndarray:
    size = np.tile(boxes[..., 2:] - boxes[..., :2], 2)
    moved = boxes + rng.normal(size=boxes.shape) * size * spread
    return _clip(
        np.concatenate([np.minimum(moved[..., :2], moved[..., 2:]), np.maximum(moved[..., :2], moved[..., 2:])], -1)
    )


def _clip(boxes: np.ndarray) -> np.ndarray:
    height, width = SIZE
    return np.clip(boxes, 0, (width, height, width, height))
