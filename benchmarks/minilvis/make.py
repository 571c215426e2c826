"""Make Mini-LVIS.

    python -m benchmarks.minilvis.make                          # the full data set, in data/minilvis
    python -m benchmarks.minilvis.make --out tiny --classes 12 --train-images 30 --eval-images 12

Writes OUT/{train,val,test}.json (LVIS v1 layout) and OUT/{train,val,test}/*.png. The same config gives the
same data, however many processes draw it: each image has its own random generator, made of (seed, split,
index).
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from hotcoco import mask as rle
from PIL import Image
from tqdm import tqdm

from benchmarks.minilvis import classes as table
from benchmarks.minilvis import plan
from benchmarks.minilvis.render import render


@dataclass(frozen=True)
class Config:
    """What to make."""

    out: Path = Path("data/minilvis")
    """Folder to write; made where it does not exist."""
    seed: int = 0
    classes: int = 240
    train_images: int = 6400
    eval_images: int = 560
    """Images of val, and of test."""
    size: int = 144
    """Edge of the square images, px."""
    workers: int = os.cpu_count() or 1


def make(config: Config) -> Path:
    """Write the data set `config` describes; returns its folder."""
    emoji = table.select(config.classes)
    table.load_sprites(emoji[:1])  # a missing package is named here, once, not by every worker
    if config.size < 96:
        raise ValueError(f"size: {config.size} px is too small for {plan.OBJECTS[1]} objects; the least is 96")
    ids = plan.category_ids(config.classes, np.random.default_rng((config.seed, 99)))
    images = {split: plan_split(config, split) for split in plan.SPLITS}
    categories = _categories(emoji, ids, images["train"])
    for number, split in enumerate(plan.SPLITS):
        folder = Path(config.out) / split
        folder.mkdir(parents=True, exist_ok=True)
        tasks = [(config.seed, number, index, one) for index, one in enumerate(images[split])]
        draw = partial(_draw, emoji=emoji, size=config.size, folder=folder, category_ids=ids)
        drawn = _map(draw, tasks, config.workers)
        records = list(tqdm(drawn, total=len(tasks), desc=split, leave=False, disable=None))
        _write_json(folder.with_suffix(".json"), config, records, categories)
    return Path(config.out)


def plan_split(config: Config, split: str) -> list[plan.ImagePlan]:
    """The images of a split, planned but not drawn."""
    counts = plan.train_counts(config.classes, config.train_images, np.random.default_rng((config.seed, 98)))
    if split != "train":
        counts = plan.eval_counts(counts, config.eval_images)
    images = config.train_images if split == "train" else config.eval_images
    return plan.plan_images(counts, images, np.random.default_rng((config.seed, plan.SPLITS.index(split))))


def _map(draw, tasks, workers):
    if workers <= 1:
        yield from map(draw, tasks)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(draw, tasks, chunksize=16)


_sprites = cache(table.load_sprites)  # once per process


def _draw(task, *, emoji: str, size: int, folder: Path, category_ids: np.ndarray) -> tuple[dict, list[dict]]:
    """Draw and save one image; returns its `images` and its `annotations` records, still without ids."""
    seed, split, index, image = task
    drawn = render(image.objects, _sprites(emoji), size, np.random.default_rng((seed, split, index)))
    # Ids are no positions: they start elsewhere in every split, and leave gaps.
    image_id = 1_000_000 * (split + 1) + 3 * index + 1
    name = f"{image_id:07d}.png"
    Image.fromarray(drawn.pixels).save(folder / name, compress_level=1)
    record = {
        "id": image_id, "file_name": name, "height": size, "width": size,
        "neg_category_ids": category_ids[image.negatives].tolist(),
        "not_exhaustive_category_ids": category_ids[image.not_exhaustive].tolist(),
    }  # fmt: skip
    return record, _annotations(image_id, category_ids[image.objects].tolist(), drawn.masks)


def _annotations(image_id: int, category_ids: list[int], masks: np.ndarray) -> list[dict]:
    encoded = rle.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [
        {
            "image_id": image_id, "category_id": category,
            "bbox": rle.toBbox(one).tolist(), "area": int(rle.area(one)),
            "segmentation": {"size": one["size"], "counts": one["counts"].decode()},
        }
        for category, one in zip(category_ids, encoded, strict=True)
    ]  # fmt: skip


def _categories(emoji: str, ids: np.ndarray, train: list[plan.ImagePlan]) -> list[dict]:
    """The class table. `frequency` goes by training images as in LVIS: r 1-10, c 11-100, f more."""
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


def _write_json(path: Path, config: Config, records: list, categories: list[dict]) -> None:
    annotations = [one for _, per_image in records for one in per_image]
    annotations = [{"id": number, **one} for number, one in enumerate(annotations, start=1)]
    made_of = {name: value for name, value in asdict(config).items() if name not in ("out", "workers")}
    document = {
        "info": {"description": f"Mini-LVIS {path.stem}", "config": made_of}, "licenses": [],
        "images": [record for record, _ in records], "annotations": annotations, "categories": categories,
    }  # fmt: skip
    path.write_text(json.dumps(document))


if __name__ == "__main__":
    import tyro

    print(make(tyro.cli(Config, description=__doc__)))
