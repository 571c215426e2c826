"""Tiny images with the file structure of LVIS v1: its class table, its numbers of images and objects, its fields.

Class ids, names, frequency tags and image counts are LVIS v1's own, from detectron2's class table. The first image ids
are those of LVIS v0.5, which are COCO's as in v1; the others are made up, since v1's are in no package. Which classes
are in an image is drawn so that every class has its number of images. More classes than LVIS v1's repeat its table, and
are in fewer images each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from PIL import Image as PILImage

from benchmarks.speed.inputs import lvis_pairs

IMAGES = {"train": 100_170, "val": 19_809}
NUM_CLASSES = 1203
INSTANCES = 1_270_141
"""Of train, in all classes."""
LAST_IMAGE_ID = 581_929
EDGE = 32
SIDES = (8, 17)
"""Edges of objects in pixels, half-open."""
NEGATIVES = 4
"""Classes that are verified to be absent, per image."""


class Split(NamedTuple):
    """Image ids (N,), ascending, and of each object its image's position, class and box (M, 4) xywh, by image."""

    image_ids: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray


def lvis_v1_classes(num_classes: int) -> list[dict[str, Any]]:
    """Returns LVIS v1's categories with their number of training images; more classes repeat them under other names."""
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
    from detectron2.data.datasets.lvis_v1_category_image_count import LVIS_CATEGORY_IMAGE_COUNT

    counts = {entry["id"]: entry["image_count"] for entry in LVIS_CATEGORY_IMAGE_COUNT}
    classes = sorted(({**c, "image_count": counts[c["id"]]} for c in LVIS_CATEGORIES), key=lambda c: c["id"])
    assert [c["id"] for c in classes] == list(range(1, NUM_CLASSES + 1))
    repeated = [{**classes[k % NUM_CLASSES], "id": k + 1} for k in range(num_classes)]
    for k in range(NUM_CLASSES, num_classes):
        repeated[k]["name"] += f"_{k // NUM_CLASSES + 1}"
    return repeated


def make_dataset(folder: Path, share: float, num_classes: int) -> None:
    """Writes `train.json`, `val.json` and their images; `share` of both splits, every class in train."""
    rng = np.random.default_rng(0)
    classes = lvis_v1_classes(num_classes)
    image_counts = np.array([c["image_count"] for c in classes])
    instances = INSTANCES / image_counts[:NUM_CLASSES].sum()
    taken = np.empty(0, np.int64)
    for split, images in IMAGES.items():
        number = round(share * images)
        image_ids = choose_image_ids(split, number, taken, rng)
        taken = np.union1d(taken, image_ids)
        wanted = image_counts * number / IMAGES["train"] * NUM_CLASSES / num_classes
        counts = np.maximum(np.floor(wanted + rng.random(len(wanted))), split == "train").astype(int)
        made = make_split(image_ids, counts, instances, rng)
        if split == "train":
            for k, one in enumerate(classes):
                one |= {"image_count": int(counts[k]), "instance_count": int((made.labels == k).sum())}
        (folder / f"{split}2017").mkdir(parents=True)
        write_images(folder / f"{split}2017", made, num_classes)
        content = {"images": [*image_entries(split, made, num_classes, rng)], "annotations": [*annotations(made)]}
        (folder / f"{split}.json").write_bytes(msgspec.json.encode({**content, "categories": classes}))


def choose_image_ids(split: str, number: int, taken: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns ids (number,), ascending: of LVIS v0.5 as far as they go, then others; none of `taken`."""
    _, _, known = lvis_pairs(split)
    other_split = lvis_pairs("train" if split == "val" else "val")[2]
    known = np.setdiff1d(known, taken)[:number]
    free = np.setdiff1d(np.arange(1, LAST_IMAGE_ID + 1), np.concatenate([known, taken, other_split]))
    return np.sort(np.concatenate([known, rng.choice(free, number - len(known), replace=False)]))


def make_split(image_ids: np.ndarray, counts: np.ndarray, instances: float, rng: np.random.Generator) -> Split:
    """Draws the objects: of each class in `counts` (K,) images, `instances` in each on average, anywhere."""
    images = np.concatenate([rng.choice(len(image_ids), min(n, len(image_ids)), replace=False) for n in counts])
    labels = np.repeat(np.arange(len(counts)), np.minimum(counts, len(image_ids)))
    repeats = rng.geometric(1 / instances, len(images))
    images, labels = np.repeat(images, repeats), np.repeat(labels, repeats)
    sides = rng.integers(*SIDES, (len(images), 2))
    boxes = np.concatenate([rng.integers(0, EDGE - sides + 1), sides], axis=1)
    order = np.argsort(images, kind="stable")
    return Split(image_ids, images[order], labels[order], boxes[order])


def write_images(folder: Path, split: Split, num_classes: int) -> None:
    """Writes one PNG for each image: objects are rectangles in the colour of their class on grey noise."""
    rng = np.random.default_rng(1)
    levels = next(n for n in range(2, 256) if n**3 >= num_classes)
    colours = rng.permutation(levels**3)[:num_classes, None] // [levels**2, levels, 1] % levels * (255 // (levels - 1))
    starts = np.searchsorted(split.images, np.arange(len(split.image_ids) + 1))
    for i, image_id in enumerate(split.image_ids.tolist()):
        pixels = np.repeat(rng.integers(100, 156, (EDGE, EDGE, 1), np.uint8), 3, axis=2)
        for n in range(starts[i], starts[i + 1]):
            x, y, w, h = split.boxes[n]
            pixels[y : y + h, x : x + w] = colours[split.labels[n]]
        PILImage.fromarray(pixels).save(folder / file_name(image_id), compress_level=1)


def file_name(image_id: int) -> str:
    """Returns an image's file name, as COCO's but for its format."""
    return f"{image_id:012}.png"


def image_entries(split: str, made: Split, num_classes: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yields the images' entries; as in LVIS v1, only `coco_url` has the file's name."""
    starts = np.searchsorted(made.images, np.arange(len(made.image_ids) + 1))
    for i, image_id in enumerate(made.image_ids.tolist()):
        present = set((made.labels[starts[i] : starts[i + 1]] + 1).tolist())
        absent = set(rng.integers(1, num_classes + 1, NEGATIVES).tolist()) - present
        yield {
            "id": image_id,
            "height": EDGE,
            "width": EDGE,
            "license": 1,
            "date_captured": "2013-11-14 17:02:52",
            "coco_url": f"http://images.cocodataset.org/{split}2017/{file_name(image_id)}",
            "flickr_url": "",
            "neg_category_ids": sorted(absent),
            "not_exhaustive_category_ids": sorted(present)[:1] if i % 10 == 0 else [],
        }


def annotations(made: Split) -> Iterator[dict[str, Any]]:
    """Yields the objects' entries, with ids from 1."""
    owners = made.image_ids[made.images].tolist()
    columns = zip(owners, made.labels.tolist(), made.boxes.tolist(), strict=True)
    for i, (image_id, label, (x, y, w, h)) in enumerate(columns, 1):
        yield {
            "id": i,
            "image_id": image_id,
            "category_id": label + 1,
            "area": float(w * h),
            "bbox": [float(x), float(y), float(w), float(h)],
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
