"""From a cache and class scorers to detections: any number of rows of a table from one read of the RoIs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace

import numpy as np
from tqdm import tqdm

from calib.scoring import Original, Scorer
from extract.cache.reader import RoICache
from extract.rois import RoIs
from extract.utils.prefetch import parallel_map
from fuse.accumulator import DetectionAccumulator, Part
from fuse.detections import Detections
from fuse.ops.masks import encode_masks
from fuse.ops.nms import class_nms
from fuse.scores import HEADLESS, ROW_MODES, RowMode, fuse_scores, oracle_scores, tail_classes, without_empty

Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""roi_index, class_index and score of one image's detections, best first, as `class_nms` returns them."""


@dataclass(frozen=True, eq=False)
class Row:
    """One way from RoIs to detections.

    Attributes:
        mode: a mode of `fuse_scores`; "det", where each head detects by itself and the detections are merged
            (`merge_detections`); or "props-gt", the oracle of `oracle_scores`.
        calibrated: the second scorer; not needed for "original" and "props-gt".
        original: the first scorer, None for the detector's own classifier.
        tail: (K,) bool, classes the calibrated head speaks for, or the bound T on their training instances.
        score_threshold: detections score above it.
        iou_threshold: of suppression; None takes the detector's own.
        max_detections: per image, None or -1 for all.
        per_class: best detections kept of each class over all images, for fixed AP; None for all.
        threshold, scale: of the modes "cat-thr" and "cat-scale".
        skip_empty: boxes without area are no candidates; None as the detector's framework has it.
    """

    mode: RowMode = "cat"
    calibrated: Scorer | None = None
    original: Scorer | None = None
    tail: np.ndarray | Sequence[bool] | float = 100
    score_threshold: float = 0.0
    iou_threshold: float | None = None
    max_detections: int | None = 300
    per_class: int | None = None
    threshold: float = 0.05
    scale: float | None = None
    skip_empty: bool | None = None

    @classmethod
    def of(cls, **options) -> Row:
        """A row with these fields. Raises ValueError naming an option that is none of them."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise ValueError(f"option {name!r}, expected one of {', '.join(known)}")
        return cls(**options)


def detect(
    cache: RoICache, scorers: Scorer | tuple[Scorer, Scorer] | None = None, *, masks: bool = True, **options
) -> Detections:
    """Detections of every image of a cache with one combination of scorers.

    Args:
        cache: an open RoI cache.
        scorers: the calibrated scorer, or (original, calibrated); the original is the detector's own by default. Asked
            for the scores of several images at once, from threads.
        masks: encode masks, where the cache has them.
        options: the other fields of `Row`: mode, tail, score_threshold, …

    Raises:
        ValueError: an unknown mode or option, a scorer missing or of another number of classes, NaN scores.
    """
    original, calibrated = scorers if isinstance(scorers, tuple) else (None, scorers)
    return detect_many(cache, {"": Row.of(original=original, calibrated=calibrated, **options)}, masks=masks)[""]


def detect_many(
    cache: RoICache, rows: Mapping[str, Row], *, masks: bool = True, progress: bool = False
) -> dict[str, Detections]:
    """Detections of several rows from one read of the cache; a scorer shared by rows runs once an image.

    Images are worked on side by side, one for each CPU of the process; the result is that of one after the other.
    Args and errors as of `detect`; `progress` shows a bar on stderr.
    """
    counts = cache.classes["instance_count"].to_numpy()
    prepared = {name: prepare(row, cache.detector, counts, name) for name, row in rows.items()}
    masks = masks and "masks" in cache.fields
    columns = _columns(prepared.values(), masks)
    collected = {name: DetectionAccumulator(row, cache.num_classes, masks) for name, row in prepared.items()}

    def detect_at(position: int) -> dict[str, Part]:
        rois = cache.image_at(position, columns)
        scores, encoded = ScoreCache(rois), _EncodedMasks(rois) if masks else None
        parts = {}
        for name, row in prepared.items():
            try:
                found = detect_image(row, rois, scores, collected[name].floors)
            except ValueError as error:
                raise ValueError(f"{cache.url}: image {rois.image_id}, row {name or row.mode!r}: {error}") from error
            parts[name] = _part(rois, found, encoded)
        return parts

    with closing(parallel_map(detect_at, len(cache))) as images:
        for parts in tqdm(images, total=len(cache), desc="detect", unit="image", disable=None if progress else True):
            for name, part in parts.items():
                collected[name].add(part)
    category_ids = cache.classes["category_id"].to_numpy(np.int64)
    return {name: part.detections(category_ids) for name, part in collected.items()}


def merge_detections(original: Found, calibrated: Found, tail: np.ndarray, max_detections: int | None) -> Found:
    """rhead-det of Table 6: two detectors' outputs joined.

    Each head has detected by itself, with its own suppression and cap. Of the calibrated head's detections
    those of tail classes stay, of the original's the others; together they are ordered by score (equal
    scores by class, then RoI) and cut to `max_detections` again.

    Args:
        original, calibrated: roi_index, class_index, score of one image each.
        tail: (K,) bool.
        max_detections: kept of both together, None for all.
    """
    keep, take = ~tail[original[1]], tail[calibrated[1]]
    roi, cls, score = (np.concatenate([a[keep], b[take]]) for a, b in zip(original, calibrated, strict=True))
    order = np.lexsort((roi, cls, -score))[:max_detections]
    return roi[order], cls[order], score[order]


def prepare(row: Row, detector: Mapping[str, object], instance_count: np.ndarray, name: str = "") -> Row:
    """The row with its defaults filled in from a detector's description and the classes' (K,) training instances.

    Raises ValueError for an unknown mode, and for one whose calibrated scorer is missing.
    """
    if row.mode not in ROW_MODES:
        raise ValueError(f"mode is {row.mode!r}, expected one of {', '.join(ROW_MODES)}")
    if row.calibrated is None and row.mode not in HEADLESS:
        raise ValueError(f"row {name or row.mode!r}: mode {row.mode!r} needs a calibrated scorer")
    return replace(
        row,
        original=row.original or Original.from_description(detector),
        tail=np.asarray(row.tail) if np.ndim(row.tail) else tail_classes(instance_count, row.tail),
        iou_threshold=detector.get("nms_iou", 0.5) if row.iou_threshold is None else row.iou_threshold,
        max_detections=None if row.max_detections == -1 else row.max_detections,
        skip_empty=bool(detector.get("skip_empty", False)) if row.skip_empty is None else row.skip_empty,
    )


def detect_image(row: Row, rois: RoIs, scores: ScoreCache, floors: np.ndarray | float) -> Found:
    """Detections of one image by a prepared row, above `floors`, the score thresholds of all classes or of each."""

    def nms(values: np.ndarray) -> Found:
        if row.skip_empty:
            values = without_empty(values, rois.boxes)
        return class_nms(rois.boxes, values, row.iou_threshold, floors, row.max_detections)

    if row.mode == "original":
        return nms(scores(row.original))
    if row.mode == "calibrated":
        return nms(scores(row.calibrated))
    if row.mode == "props-gt":
        return nms(oracle_scores(scores(row.original), rois.labels[:, -1]))
    if row.mode == "det":
        return merge_detections(nms(scores(row.original)), nms(scores(row.calibrated)), row.tail, row.max_detections)
    original, calibrated = scores(row.original), scores(row.calibrated)
    return nms(fuse_scores(original, calibrated, row.tail, row.mode, threshold=row.threshold, scale=row.scale))


class ScoreCache:
    """Each scorer's scores of one image, computed once; equal original scorers share them by their key."""

    def __init__(self, rois: RoIs):
        self._rois, self._scores = rois, {}

    def __call__(self, scorer: Scorer) -> np.ndarray:
        key = (scorer.average, scorer.activation) if type(scorer) is Original else id(scorer)
        if key not in self._scores:
            scores = scorer.scores(self._rois)
            expected = (len(self._rois), self._rois.num_classes + 1)
            if scores.shape != expected:
                raise ValueError(f"scorer {scorer.name!r} gave scores of shape {scores.shape}, expected {expected}")
            self._scores[key] = scores
        return self._scores[key]


class _EncodedMasks:
    """The masks of one image as RLE, each encoded at most once however many rows show it."""

    def __init__(self, rois: RoIs):
        self._rois, self._records = rois, {}

    def __call__(self, roi: np.ndarray, cls: np.ndarray) -> list[dict]:
        rois = self._rois
        keys = (roi if rois.boxes.ndim == 2 else roi * rois.num_classes + cls).tolist()
        first = {key: i for i, key in enumerate(keys) if key not in self._records}
        new = np.fromiter(first.values(), np.int64, len(first))
        records = encode_masks(rois.masks[roi[new]], boxes_of(rois, roi[new], cls[new]), rois.height, rois.width)
        self._records.update(zip(first, records, strict=True))
        return [self._records[key] for key in keys]


def _part(rois: RoIs, found: Found, encoded: _EncodedMasks | None) -> Part:
    roi, cls, score = found
    records = np.full(len(roi), None, object)
    if encoded is not None:
        records[:] = encoded(roi, cls)
    return np.full(len(roi), rois.image_id, np.int64), cls, score, boxes_of(rois, roi, cls), records


def _columns(rows: Iterable[Row], masks: bool) -> set[str]:
    """The optional fields of `RoIs` that the rows need."""
    scorers = [scorer for row in rows for scorer in (row.original, row.calibrated) if scorer is not None]
    features = any(getattr(scorer, "level", None) != "logits" for scorer in scorers)
    return {name for name, needed in (("features", features), ("masks", masks)) if needed}


def boxes_of(rois: RoIs, roi: np.ndarray, cls: np.ndarray) -> np.ndarray:
    """(N, 4) boxes of the given pairs of RoI and class."""
    return rois.boxes[roi] if rois.boxes.ndim == 2 else rois.boxes[roi, cls]
