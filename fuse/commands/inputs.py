"""What the commands work on, opened and checked to belong together: cache, head, annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from calib.head_io import load_head
from calib.heads import Head
from extract.cache.reader import RoICache, open_cache
from extract.data.annotations import read_annotations
from fuse.config import EvaluationOptions, FileOptions
from fuse.detections import Detections
from fuse.evaluation.lvis import Loaded, check_categories, load_annotations
from fuse.evaluation.metrics import check_detections

Options = TypeVar("Options", bound=EvaluationOptions)


def with_iou_types(config: Options, masks: bool) -> Options:
    """The options with their IoU types settled. Raises ValueError if mask AP is asked for without masks."""
    if "segm" in config.iou_types and not masks:
        raise ValueError("there are no masks to evaluate; use --iou-types bbox")
    return replace(config, iou_types=config.iou_types or (("segm",) if masks else ("bbox",)))


def open_val_cache(url: str) -> RoICache:
    """The cache. Raises ValueError for a train cache."""
    cache = open_cache(url)
    if cache.split != "val":
        raise ValueError(
            f"{cache.url}: is a {cache.split} cache, whose ground-truth boxes would compete as proposals; "
            "give one extracted with --split val"
        )
    return cache


def load_head_of(path: Path | None, cache: RoICache, average: str | None = None) -> Head | None:
    """The head, its stages averaged as asked. Raises ValueError if it is of another detector than the cache's."""
    if path is None:
        return None
    head = load_head(path)
    head.check_cache(cache)
    return head.averaged(average) if average else head


def annotations_of(path: Path, cache: RoICache) -> tuple[Loaded, str]:
    """The annotations of exactly the cache's images, and a line that says which those are.

    Raises ValueError naming what differs: categories, images, or an image's size.
    """
    every = load_annotations(path)
    check_categories(every, cache.classes["category_id"].to_numpy())
    sizes = {image["id"]: (image["height"], image["width"]) for image in every["images"]}
    cached = cache.images[["image_id", "height", "width"]].to_numpy(np.int64).tolist()
    missing = [image_id for image_id, *_ in cached if image_id not in sizes]
    if missing:
        raise ValueError(f"{path}: lacks {len(missing)} images of {cache.url}, image {min(missing)} first")
    for image_id, height, width in cached:
        if sizes[image_id] != (height, width):
            raise ValueError(
                f"{path}: image {image_id} is {sizes[image_id][0]} high and {sizes[image_id][1]} wide, "
                f"in {cache.url} {height} and {width}"
            )
    if len(cached) == len(sizes):
        return every, f"{len(sizes)} images"
    scope = f"{len(cached)} of the {len(sizes)} images of {path.name}: those of the cache"
    return load_annotations(every, [image_id for image_id, *_ in cached]), scope


def classes_of(config: FileOptions) -> pd.DataFrame:
    """The class table with training counts, from the cache or the training annotations."""
    return open_cache(config.cache).classes if config.cache else read_annotations(config.train_annotations).classes


def results_of(paths: Sequence[Path], annotations: Loaded) -> dict[str, Detections]:
    """Each file's detections by its name, or by its path where names are not unique.

    Raises ValueError naming the file whose detections are not of the images and categories of the annotations.
    """
    names = [path.name for path in paths]
    names = names if len(set(names)) == len(names) else [str(path) for path in paths]
    results = dict(zip(names, map(Detections.from_json, paths), strict=True))
    for path, detections in zip(paths, results.values(), strict=True):
        try:
            check_detections(annotations, detections, "bbox" if detections.rles is None else "segm")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return results
