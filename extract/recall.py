"""Proposal recall (Table 3 of the paper): the share of objects that the proposals cover, whatever their class."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from extract.cache.opening import open_cache
from extract.cache.reader import RoICache
from extract.command_configs import RecallConfig
from extract.data.annotations import Annotations, read_annotations
from extract.data.bins import BINS, bin_index, bin_names, edges
from extract.data.subset import with_classes
from extract.detectors import catalog_dataset
from extract.uses import command_for
from extract.utils.progress import FIRST_LINE, progress_bar

log = logging.getLogger(__name__)
LIMITS = (100, 300, 1000)
"""Numbers of proposals per image at which recall is computed."""


def report(config: RecallConfig) -> None:
    """Prints `proposal_recall`."""
    cache = open_cache(config.cache)
    dataset = catalog_dataset(config.annotations, str(cache.provenance.get("config", {}).get("detector", "")))
    annotations = read_annotations(dataset[0] if dataset else config.annotations, strict=config.strict)
    table = proposal_recall(cache, annotations, bins=edges(config.bins))
    print("Average recall (AR@N) of the first N proposals over IoU 0.50 to 0.95, in percent, by training instances.")
    empty = table.index[table["objects"] == 0].tolist()
    if empty:
        print(f"Bins without objects are left out: {', '.join(empty)}.")
    print(table.drop(index=empty).to_string(float_format=lambda value: f"{value:.1f}"))
    log.info("next: %s", command_for(cache, str(config.annotations)))


def proposal_recall(
    cache: RoICache,
    annotations: Annotations,
    *,
    bins: tuple[float, ...] = BINS,
    limits: Sequence[int] = LIMITS,
) -> pd.DataFrame:
    """Returns the average recall of the first stage's proposals over IoU 0.50, 0.55 … 0.95, in percent.

    Args:
        cache: a val cache.
        annotations: ground truth of its images.
        bins: edges of the bins of training instances.
        limits: numbers N of best proposals per image. Limits above the cache's number of proposals are left out: a
            cache of 300 proposals has no AR@1000.

    Returns:
        Rows: each bin, then all objects. Columns: `objects`, then AR@N. Classes and crowd regions are ignored.

    Raises ValueError naming the cache if it is no val cache or the annotations lack one of its images or classes.
    """
    if cache.split != "val":
        raise ValueError(f"{cache.url}: is a {cache.split} cache, which holds a sample of proposals; use a val cache")
    cap = cache.provenance.get("config", {}).get("proposals", max(limits))
    limits = [n for n in limits if n <= cap] or [cap]
    position = np.searchsorted(annotations.image_ids, ids := cache.images["image_id"].to_numpy())
    if not np.isin(ids, annotations.image_ids).all():
        missing = ids[~np.isin(ids, annotations.image_ids)][0]
        raise ValueError(f"{cache.url}: image {missing} is not in {annotations.path}")
    if not annotations.classes["category_id"].isin(cache.classes["category_id"]).all():
        raise ValueError(f"{cache.url}: has other categories than {annotations.path}")
    annotations = with_classes(annotations, cache.classes)  # a file of a part of the data may list fewer
    objects = np.concatenate([np.r_[annotations.image_slice(p)] for p in position])
    objects = objects[~annotations.crowd[objects]]
    proposals = _coco_results(cache, position, max(limits))
    index = bin_index(cache.classes["instance_count"], bins)[annotations.labels[objects]]
    groups = {name: objects[index == i] for i, name in enumerate(bin_names(bins))} | {"all": objects}
    shown = progress_bar(groups.items(), total=len(groups), desc="recall", unit="bin", delay=FIRST_LINE)
    rows = {name: _recall(annotations, position, group, proposals, limits) for name, group in shown}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["objects", *(f"AR@{n}" for n in limits)])


def _coco_results(cache: RoICache, position: np.ndarray, limit: int) -> np.ndarray:
    """Returns rows of image, x, y, w, h, score: each image's first proposals, without ground-truth boxes.

    An image is its position in the annotations, `position` (N,): ids may be higher than float64 can hold.
    """
    image = np.repeat(position, np.diff(cache.offsets))
    rank = np.arange(cache.offsets[-1]) - np.repeat(cache.offsets[:-1], np.diff(cache.offsets))
    use = (rank < limit) & ~cache.read("is_gt")
    boxes = cache.read("proposals")[use, 0].astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    # The cache is sorted by objectness; the rank as score keeps this order among equal values.
    return np.column_stack([image[use], boxes, -rank[use]])


def _recall(
    annotations: Annotations,
    position: np.ndarray,
    objects: np.ndarray,
    proposals: np.ndarray,
    limits: Sequence[int],
) -> list[float]:
    """Returns the number of objects, then AR@N in percent for each limit; NaN if there are no objects."""
    from hotcoco import COCO, COCOeval

    if not len(objects):
        return [0, *(float("nan") for _ in limits)]
    owner = np.searchsorted(annotations.offsets, objects, side="right") - 1
    xyxy = annotations.boxes[objects].astype(np.float64)
    xywh = np.column_stack([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]])
    gt = COCO(
        {
            "images": [{"id": int(i), "height": 0, "width": 0} for i in position],
            "categories": [{"id": 1, "name": "object"}],
            "annotations": [
                {"id": n, "image_id": i, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                for n, (i, box) in enumerate(zip(owner.tolist(), xywh.tolist(), strict=True), 1)
            ],
        }
    )
    evaluation = COCOeval(gt, gt.load_res(np.column_stack([proposals, np.ones(len(proposals))])), "bbox")
    evaluation.params.max_dets = list(limits)
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None
    recall = evaluation.eval["recall"][:, 0, 0, :]
    return [len(objects), *(100 * recall.mean(axis=0)).tolist()]
