"""Makes Mini-LVIS.

    python -m benchmarks.minilvis.make                          # the full dataset, in data/minilvis
    python -m benchmarks.minilvis.make --out tiny --classes 12 --train-images 30 --eval-images 12

Writes OUT/{train,val,test}.json (LVIS v1 layout) and OUT/{train,val,test}/*.png. The same config gives the same data
with any number of processes: each image has its own random generator, seeded with (seed, split, index).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hotcoco import mask as rle
from PIL import Image
from tqdm import tqdm

from benchmarks.minilvis import classes as table
from benchmarks.minilvis import plan
from benchmarks.minilvis.render import render

MIN_SIZE = 96
"""Smallest edge of an image in pixels into which the objects fit."""


@dataclass(frozen=True)
class Config:
    """What to make."""

    out: Path = Path("data/minilvis")
    """Folder to write; created if it does not exist."""
    seed: int = 0
    classes: int = 240
    train_images: int = 6400
    eval_images: int = 560
    """Images of val, and of test."""
    size: int = 144
    """Edge of the square images in pixels."""
    workers: int = os.cpu_count() or 1
    """Processes that draw."""


class Task(NamedTuple):
    """One image to draw: its seed (dataset seed, number of the split, index in the split) and its plan."""

    seed: tuple[int, int, int]
    image: plan.ImagePlan


Record = tuple[dict[str, Any], list[dict[str, Any]]]
"""An image's record in `images`, and its records in `annotations`, still without ids."""


def make(config: Config) -> Path:
    """Writes the dataset that `config` describes and returns its folder.

    Raises ValueError for a size or a number of classes or images that does not fit.
    """
    emoji = table.select(config.classes)
    table.load_sprites(emoji[:1])  # a missing package fails here, not in every worker
    if config.size < MIN_SIZE:
        raise ValueError(f"size is {config.size}, expected at least {MIN_SIZE} px for {plan.OBJECTS[1]} objects")
    ids = plan.category_ids(config.classes, np.random.default_rng((config.seed, 99)))
    images = {split: plan_split(config, split) for split in plan.SPLITS}
    categories = _categories(emoji, ids, images["train"])
    for number, split in enumerate(plan.SPLITS):
        folder = Path(config.out) / split
        folder.mkdir(parents=True, exist_ok=True)
        tasks = [Task((config.seed, number, index), one) for index, one in enumerate(images[split])]
        draw = partial(_draw, emoji=emoji, size=config.size, folder=folder, category_ids=ids)
        drawn = _map_in_processes(draw, tasks, config.workers)
        records = list(tqdm(drawn, total=len(tasks), desc=split, leave=False, disable=None))
        _write_json(folder.with_suffix(".json"), config, records, categories)
    return Path(config.out)


def plan_split(config: Config, split: str) -> list[plan.ImagePlan]:
    """Plans the images of a split without drawing them."""
    counts = plan.train_counts(config.classes, config.train_images, np.random.default_rng((config.seed, 98)))
    if split != "train":
        counts = plan.eval_counts(counts, config.eval_images)
    images = config.train_images if split == "train" else config.eval_images
    return plan.plan_images(counts, images, np.random.default_rng((config.seed, plan.SPLITS.index(split))))


def _map_in_processes(draw: Callable[[Task], Record], tasks: Sequence[Task], workers: int) -> Iterator[Record]:
    if workers <= 1:
        yield from map(draw, tasks)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(draw, tasks, chunksize=16)


_sprites = cache(table.load_sprites)  # once per process


def _draw(task: Task, *, emoji: str, size: int, folder: Path, category_ids: np.ndarray) -> Record:
    """Draws and saves one image, and returns its records."""
    _, split, index = task.seed
    image = task.image
    drawn = render(image.objects, _sprites(emoji), size, np.random.default_rng(task.seed))
    # Ids differ from positions: they start at another number in each split and have gaps.
    image_id = 1_000_000 * (split + 1) + 3 * index + 1
    name = f"{image_id:07d}.png"
    Image.fromarray(drawn.pixels).save(folder / name, compress_level=1)
    record = {
        "id": image_id, "file_name": name, "height": size, "width": size,
        "neg_category_ids": category_ids[image.negatives].tolist(),
        "not_exhaustive_category_ids": category_ids[image.not_exhaustive].tolist(),
    }  # fmt: skip
    return record, _annotations(image_id, category_ids[image.objects].tolist(), drawn.masks)


def _annotations(image_id: int, category_ids: list[int], masks: np.ndarray) -> list[dict[str, Any]]:
    encoded: Any = rle.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [
        {
            "image_id": image_id, "category_id": category,
            "bbox": rle.toBbox(one).tolist(), "area": int(rle.area(one)),
            "segmentation": {"size": one["size"], "counts": one["counts"].decode()},
        }
        for category, one in zip(category_ids, encoded, strict=True)
    ]  # fmt: skip


def _categories(emoji: str, ids: np.ndarray, train: list[plan.ImagePlan]) -> list[dict[str, Any]]:
    """Returns the class table. `frequency` is by training images as in LVIS: r 1-10, c 11-100, f more."""
    instances = np.bincount(np.concatenate([one.objects for one in train]), minlength=len(ids))
    images = np.bincount(np.concatenate([np.unique(one.objects) for one in train]), minlength=len(ids))
    return [
        {
            "id": int(ids[i]), "name": table.class_name(one), "synset": table.class_code(one),
            "frequency": "rcf"[np.searchsorted([11, 101], images[i], "right")],
            "image_count": int(images[i]), "instance_count": int(instances[i]),
        }
        for i, one in enumerate(emoji)
    ]  # fmt: skip


def _write_json(path: Path, config: Config, records: list[Record], categories: list[dict[str, Any]]) -> None:
    annotations = [one for _, per_image in records for one in per_image]
    annotations = [{"id": number, **one} for number, one in enumerate(annotations, start=1)]
    made_from = {name: value for name, value in asdict(config).items() if name not in ("out", "workers")}
    document = {
        "info": {"description": f"Mini-LVIS {path.stem}", "config": made_from}, "licenses": [],
        "images": [record for record, _ in records], "annotations": annotations, "categories": categories,
    }  # fmt: skip
    path.write_text(json.dumps(document))


if __name__ == "__main__":
    import tyro

    print(make(tyro.cli(Config, description=__doc__)))
