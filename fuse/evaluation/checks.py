"""Checks that annotations, class table and detections fit together."""

from __future__ import annotations

from itertools import pairwise
from operator import itemgetter

import numpy as np
import pandas as pd

from fuse.detections import Detections
from fuse.evaluation.dataset import EvaluationDataset
from fuse.evaluation.ground_truth import contains


def with_categories(dataset: EvaluationDataset, classes: pd.DataFrame) -> EvaluationDataset:
    """Returns the dataset with every category of the class table; a file of a part of the data may list fewer.

    Raises ValueError if the annotations have a category that the class table lacks.
    """
    found = {c["id"] for c in dataset["categories"]}
    category_ids = classes["category_id"].tolist()
    if not found <= set(category_ids):
        differing = sorted(found.symmetric_difference(category_ids))
        where = "annotations" if differing[0] in found else "class table"
        raise ValueError(
            f"annotations have {len(found)} categories, the class table {len(category_ids)}; "
            f"{len(differing)} are in one only, the first is category {differing[0]} of the {where}"
        )
    if len(found) == len(category_ids):
        return dataset
    columns = zip(category_ids, classes["name"], classes["frequency"], strict=True)
    missing = [{"id": i, "name": name, "frequency": tag} for i, name, tag in columns if i not in found]
    return dataset.with_sections(categories=[*dataset["categories"], *missing])


def check_detections(dataset: EvaluationDataset, detections: Detections, iou_type: str) -> None:
    """Raises ValueError for images or categories that the dataset lacks, for missing or wrong masks, and for scores
    that are not finite."""
    columns = (("image_id", detections.image_ids, "images"), ("category_id", detections.category_ids, "categories"))
    for name, column, key in columns:
        known = np.unique([record["id"] for record in dataset[key]])
        unknown = column[~contains(known, column)]
        if len(unknown):
            raise ValueError(f"detections of {name} {unknown.min()}, which the annotations do not have")
    if iou_type == "segm":
        check_segmentations(dataset)
    if iou_type == "segm" and len(detections):
        if detections.rles is None:
            raise ValueError("detections have no masks; iou_type 'segm' needs them, 'bbox' does not")
        _check_mask_sizes(dataset, detections.image_ids, detections.rles)
    if not np.isfinite(detections.scores).all():
        raise ValueError("detections have scores that are not finite")


def check_segmentations(dataset: EvaluationDataset) -> None:
    """Raises ValueError for annotations without segmentation and images without size, which mask AP needs."""
    annotations, images = dataset["annotations"], dataset["images"]
    lacking = [a for a in annotations if not a["segmentation"]]
    unknown = [image["id"] for image in images if not image["height"]]
    if lacking:
        example = f"one of category {lacking[0]['category_id']} in image {dataset.shown_id(lacking[0]['image_id'])}"
        fault = f"{len(lacking):,} of {len(annotations):,} annotations have no segmentation, such as {example}"
    elif unknown:
        example = f"image {dataset.shown_id(unknown[0])}"
        fault = f"{len(unknown):,} of {len(images):,} images have no height and width, such as {example}"
    else:
        return
    raise ValueError(f"{dataset.source}: {fault}; iou_type 'segm' needs them, 'bbox' does not")


def _check_mask_sizes(dataset: EvaluationDataset, image_ids: np.ndarray, rles: list[dict]) -> None:
    """Raises ValueError for a mask of another size than its image, which would match nothing."""
    expected = {image["id"]: [image["height"], image["width"]] for image in dataset["images"]}
    sizes = list(map(itemgetter("size"), rles))
    starts = np.flatnonzero(np.diff(image_ids, prepend=image_ids[0] - 1)).tolist()
    for start, stop in pairwise([*starts, len(sizes)]):
        image_id = int(image_ids[start])
        if sizes[start:stop] != [expected[image_id]] * (stop - start):  # compared in C
            for size in sizes[start:stop]:
                if list(size) != expected[image_id]:
                    image = f"image {dataset.shown_id(image_id)}"
                    raise ValueError(f"detections of {image}: mask size {size}, expected {expected[image_id]}")
