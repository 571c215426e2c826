"""Masks of `Detections`: each pair of a box and a class is painted once, and read by every later call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import overload

import numpy as np

from extract.cache.mask_store import BoxClassPairs, MaskStore
from extract.cache.reader import RoICache
from extract.detectors.base import Detector
from extract.utils.distributed import Coordinator
from fuse.detections import Detections, positions_by_image
from fuse.painting import load_painter, paint_pairs


@overload
def paint_masks(
    detections: Detections,
    cache: RoICache,
    detector: Detector | None = None,
    annotations: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
) -> Detections: ...
@overload
def paint_masks(
    detections: Mapping[str, Detections],
    cache: RoICache,
    detector: Detector | None = None,
    annotations: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
) -> dict[str, Detections]: ...
def paint_masks(
    detections: Detections | Mapping[str, Detections],
    cache: RoICache,
    detector: Detector | None = None,
    annotations: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
) -> Detections | dict[str, Detections]:
    """Gives detections the masks that a detector predicts for their boxes and classes, the framework's own.

    Masks are kept in `MaskStore`, beside the cache; only those that it lacks are predicted. An interrupted call keeps
    what it has painted. Under torchrun, all processes call this with the same arguments and share the images.

    Args:
        detections: N detections in images of the cache, boxes (N, 4) float32 xyxy in pixels of the image; or rows of
            them by name, which share masks. Those that have masks keep them.
        cache: a val cache.
        detector: the one that made the cache, as `extract.load_detector` returns it; None reads the store alone.
        annotations: annotation file of the cache's images. Needed with a detector, as `images` is.
        images: folder that the file names in the annotations are relative to.

    Returns:
        The detections with `rles`, N masks of the image's size in compressed COCO RLE.

    Raises:
        ValueError: masks that the store lacks without a detector, a detector that is not the cache's or predicts no
            masks, an image that the cache or the annotations lack, or one that cannot be read.
        FileNotFoundError: naming the annotation file or the image.
    """
    rows = {"": detections} if isinstance(detections, Detections) else dict(detections)
    without = {name: one for name, one in rows.items() if one.rles is None}
    pairs = distinct_pairs(without.values())
    store, coordinator = MaskStore(cache), Coordinator()
    missing = store.missing(pairs)
    coordinator.barrier()  # no process paints before all have found what is missing
    if len(missing.image_ids):
        if detector is None:
            raise ValueError(f"{store.url}: {describe_missing(missing, pairs)}: give their detector")
        if annotations is None or images is None:
            raise ValueError("annotations and images: give both with a detector, which paints masks in the images")
        painter = load_painter(detector, cache, annotations, images)
        painter.check()
        paint_pairs(store, missing, painter, coordinator)
    painted = {**rows, **with_masks(store, without, pairs)}
    return painted[""] if isinstance(detections, Detections) else painted


def describe_missing(missing: BoxClassPairs, pairs: BoxClassPairs) -> str:
    """Returns a phrase that says how many masks of `pairs` are not painted."""
    return f"{len(missing.image_ids):,} of {len(pairs.image_ids):,} masks are not painted yet"


def distinct_pairs(detections: Iterable[Detections]) -> BoxClassPairs:
    """Returns the pairs of all detections, each once, images by ascending id."""
    none = BoxClassPairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4), np.float32))
    every = BoxClassPairs(*map(np.concatenate, zip(none, *map(_pairs, detections), strict=True)))
    first: list[int] = []
    for index in positions_by_image(every.image_ids):
        backwards = index[::-1]  # of equal keys a dict keeps the last
        first += sorted(dict(zip(every.take(backwards).keys(), backwards.tolist(), strict=True)).values())
    return every.take(np.array(first, np.int64))


def with_masks(store: MaskStore, detections: Mapping[str, Detections], pairs: BoxClassPairs) -> dict[str, Detections]:
    """Returns rows of detections with the masks in the store; rows share equal masks.

    Args:
        store: with a mask of every pair.
        detections: rows by name.
        pairs: `distinct_pairs` of the rows.
    """
    rles = {name: np.empty(len(one), object) for name, one in detections.items()}
    positions = {
        name: {int(one.image_ids[index[0]]): index for index in positions_by_image(one.image_ids)}
        for name, one in detections.items()
    }
    for block, part in store.by_block(pairs):
        masks = store.read(block)
        for image_id in np.unique(part.image_ids).tolist():
            for name, one in detections.items():
                index = positions[name].get(image_id, np.empty(0, np.int64))
                rles[name][index] = [masks[image_id][key] for key in _pairs(one).take(index).keys()]
    return {name: replace(one, rles=rles[name].tolist()) for name, one in detections.items()}


def _pairs(detections: Detections) -> BoxClassPairs:
    return BoxClassPairs(detections.image_ids, detections.category_ids, detections.boxes)
