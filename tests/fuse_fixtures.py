"""A tiny dataset with its cache and head, for the tests of `fuse`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from calib.head_io import save_head
from calib.head_types import build_head
from extract.cache.creation import write_cache
from extract.cache.reader import RoICache
from extract.rois import RoIs

CLASSES = pd.DataFrame(
    {
        "category_id": [3, 4, 9, 12, 20],
        "name": ["ant", "bee", "cat", "dog", "eel"],
        "frequency": ["r", "r", "c", "f", "f"],
        "image_count": [2, 8, 60, 500, 900],
        "instance_count": [3, 9, 80, 700, 4000],
    }
)
K = len(CLASSES)
SIZE = (48, 64)  # height, width


def annotations(images: int = 6, seed: int = 0) -> dict:
    """LVIS content: three objects an image, rectangles; ids of images and annotations have gaps."""
    rng = np.random.default_rng(seed)
    content = {"images": [], "annotations": [], "categories": []}
    for c in CLASSES.itertuples():
        content["categories"].append({"id": c.category_id, "name": c.name, "frequency": c.frequency})
    for i in range(images):
        labels = rng.permutation(K - 1)[:3]  # class 4 has no ground truth
        for label in labels:
            w, h = rng.integers(12, 24, 2).tolist()
            x, y = int(rng.integers(0, SIZE[1] - w)), int(rng.integers(0, SIZE[0] - h))
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),  # from 0, which the official code mistakes for no match
                    "image_id": 10 * i + 7,
                    "category_id": int(CLASSES.category_id[label]),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        content["images"].append(
            {
                "id": 10 * i + 7,
                "height": SIZE[0],
                "width": SIZE[1],
                "neg_category_ids": [20],
                "not_exhaustive_category_ids": [12] if i % 2 else [],
            }
        )
    return content


def as_coco(content: dict) -> dict:
    """The same content in COCO's format: an exhaustive dataset, in which class 4 is in no image."""
    return {
        "images": [{name: image[name] for name in ("id", "height", "width")} for image in content["images"]],
        "annotations": [{**annotation, "iscrowd": 0} for annotation in content["annotations"]],
        "categories": [{"id": c["id"], "name": c["name"]} for c in content["categories"]],
    }


def rois(content: dict, stages: int = 1, specific: bool = False, per_object: int = 6, seed: int = 1) -> list[RoIs]:
    """Jittered proposals of every object; logits separate the frequent classes only, features all of them."""
    rng = np.random.default_rng(seed)
    made = []
    for image in content["images"]:
        objects = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        gt_boxes = np.array([a["bbox"] for a in objects], np.float32)
        gt_boxes[:, 2:] += gt_boxes[:, :2]
        owner = np.repeat(np.arange(len(objects)), per_object)
        boxes = (gt_boxes[owner] + rng.normal(0, 1.0, (len(owner), 4))).astype(np.float32)
        label = np.array([CLASSES.category_id.tolist().index(a["category_id"]) for a in objects], np.int32)[owner]
        r = len(boxes)
        logits = rng.normal(0, 1, (r, stages, K + 1))
        logits[np.arange(r), :, label] += np.where(label >= 2, 4, -3)[:, None]
        logits[:, :, K] += 2
        features = rng.normal(0, 0.1, (r, stages, 8))
        features[np.arange(r), :, label] += 3
        if specific:
            boxes = (boxes[:, None] + rng.normal(0, 0.5, (r, K, 4))).astype(np.float32)
        made.append(
            RoIs(
                image_id=image["id"],
                height=SIZE[0],
                width=SIZE[1],
                proposals=np.repeat((boxes[:, 0] if specific else boxes)[:, None], stages, 1),
                boxes=boxes,
                logits=logits.astype(np.float16),
                objectness=np.ones(r, np.float32),
                features=features.astype(np.float16),
                labels=np.repeat(label[:, None], stages, 1),
                ious=np.ones((r, stages), np.float32),
                gt_ids=np.zeros((r, stages), np.int64),
                is_gt=np.zeros(r, bool),
                masks=rng.integers(128, 255, (r, 28, 28), np.uint8),
            )
        )
    return made


def tiny_cache(
    path: Path,
    content: dict,
    *,
    stages: int = 1,
    specific: bool = False,
    detector: str = "toy",
    split: str = "val",
) -> RoICache:
    rng = np.random.default_rng(2)
    layers = [(rng.normal(0, 0.1, (K + 1, 8)).astype(np.float32), np.zeros(K + 1, np.float32))]
    return write_cache(
        str(path),
        rois(content, stages, specific),
        CLASSES,
        split=split,
        level="embedding",
        stages=(0.5, 0.6, 0.7)[:stages],
        fc_layers=[layers] * stages,
        detector={"name": detector, "framework": "none", "stage_average": "scores", "nms_iou": 0.5},
    )


def tiny_head(path: Path, cache: RoICache) -> Path:
    """A head that separates the classes by their features."""
    import torch

    head = build_head(cache, "linear", 8, 0, {})
    with torch.no_grad():
        for stage in head.stages:
            stage[-1].weight[:K, :K] = 2 * torch.eye(K)
            stage[-1].bias[K] = 1
    save_head(head, path)
    return path


def write_tiny(folder: Path, **options) -> tuple[Path, Path, Path]:
    """Annotation file, cache and head of the tiny dataset."""
    content = annotations()
    (folder / "val.json").write_text(json.dumps(content))
    cache = tiny_cache(folder / "val.zarr", content, **options)
    return folder / "val.json", folder / "val.zarr", tiny_head(folder / "head", cache)
