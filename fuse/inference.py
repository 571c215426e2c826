"""From a RoI cache and class scorers to detections: any number of fusions from one pass over the cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing

import numpy as np
from tqdm import tqdm

from calib.scoring import Scorer
from extract.cache.reader import RoICache
from extract.rois import RoIs
from extract.utils.prefetch import parallel_map
from extract.utils.progress import progress_bar
from fuse.accumulator import DetectionAccumulator, DetectionColumns
from fuse.config import FusionConfig
from fuse.detections import Detections
from fuse.fusion import Fusion, ScoreCache, boxes_of
from fuse.ops.masks import encode_masks
from fuse.ops.nms import NMSResult


def detect(
    cache: RoICache, scorers: Scorer | tuple[Scorer, Scorer] | None = None, *, masks: bool = True, **options: object
) -> Detections:
    """Detects in every image of a cache.

    Args:
        cache: an open RoI cache.
        scorers: the calibrated scorer, or (original, calibrated); the original is the detector's own classifier by
            default. Threads call `scores` for several images at once.
        masks: encode masks, where the cache has them.
        options: fields of `fuse.FusionConfig`: mode, tail, score_threshold, …

    Raises:
        ValueError: an unknown mode or option, a scorer missing or of another number of classes, NaN scores.
    """
    original, calibrated = scorers if isinstance(scorers, tuple) else (None, scorers)
    fusion = Fusion.for_cache(cache, FusionConfig.from_options(**options), calibrated, original)
    return detect_many(cache, {fusion.config.mode: fusion}, masks=masks)[fusion.config.mode]


def detect_many(
    cache: RoICache,
    fusions: Mapping[str, Fusion],
    *,
    masks: bool = True,
    progress: bool = True,
    threads: int | None = None,
) -> dict[str, Detections]:
    """Returns the detections of several fusions, by their names, from one pass over the cache.

    A scorer that fusions share runs once per image. The result does not depend on the number of threads. Errors are as
    in `detect`.

    Args:
        cache: an open RoI cache.
        fusions: by name, resolved for this cache (`Fusion.for_cache`).
        masks: encode masks, where the cache has them.
        progress: show progress on stderr.
        threads: that work on images; by default one per CPU.
    """
    masks = masks and "masks" in cache.fields
    fields = _optional_fields(fusions.values(), masks)
    accumulators = {name: DetectionAccumulator(one, cache.num_classes, masks) for name, one in fusions.items()}

    def detect_at(position: int) -> dict[str, DetectionColumns]:
        rois = cache.image_at(position, fields)
        scores = ScoreCache(rois)
        encoder = _MaskEncoder(rois, rois.masks) if masks and rois.masks is not None else None
        columns = {}
        for name, fusion in fusions.items():
            try:
                found = fusion.detect(rois, scores, accumulators[name].class_thresholds)
            except ValueError as error:
                raise ValueError(f"{cache.url}: image {rois.image_id}, fusion {name!r}: {error}") from error
            columns[name] = _columns_of(rois, found, encoder)
        return columns

    with (
        closing(parallel_map(detect_at, len(cache), threads)) as images,
        progress_bar(total=len(cache), desc="detect", unit="image", shown=progress) as bar,
    ):
        for columns in images:
            for name, part in columns.items():
                accumulators[name].add(part)
            _advance(bar)
    category_ids = cache.classes["category_id"].to_numpy(np.int64)
    return {name: accumulator.detections(category_ids) for name, accumulator in accumulators.items()}


def _advance(bar: tqdm) -> None:
    """Counts an image. The first, during which kernels may be compiled, does not count for the time left."""
    if bar.n:
        bar.update()
    else:
        bar.n = bar.initial = bar.last_print_n = 1
        bar.unpause()
        bar.refresh()


class _MaskEncoder:
    """The masks of one image as RLE, each encoded at most once, however many fusions detect it."""

    def __init__(self, rois: RoIs, masks: np.ndarray):
        self._rois, self._masks = rois, masks
        self._shared = rois.boxes.ndim == 2
        boxes = len(rois) if self._shared else len(rois) * rois.num_classes
        self._known, self._rles = np.zeros(boxes, bool), np.empty(boxes, object)

    def __call__(self, found: NMSResult) -> np.ndarray:
        """Returns the masks (D,) of detections."""
        rois = self._rois
        keys = found.roi_index if self._shared else found.roi_index * rois.num_classes + found.class_index
        missing = np.flatnonzero(~self._known[keys])
        new = missing[np.unique(keys[missing], return_index=True)[1]]
        if len(new):
            boxes = boxes_of(rois, NMSResult(*(column[new] for column in found)))
            self._rles[keys[new]] = encode_masks(self._masks[found.roi_index[new]], boxes, rois.height, rois.width)
            self._known[keys[new]] = True
        return self._rles[keys]


def _columns_of(rois: RoIs, found: NMSResult, encoder: _MaskEncoder | None) -> DetectionColumns:
    rles = np.empty(len(found.score), object) if encoder is None else encoder(found)
    image_ids = np.full(len(found.score), rois.image_id, np.int64)
    return DetectionColumns(image_ids, found.class_index, found.score, boxes_of(rois, found), rles)


def _optional_fields(fusions: Iterable[Fusion], masks: bool) -> set[str]:
    """Returns the optional fields of `RoIs` that the fusions need."""
    features = any(fusion.needs_features for fusion in fusions)
    return {name for name, needed in (("features", features), ("masks", masks)) if needed}
