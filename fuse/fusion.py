"""From one image's RoIs to its detections: two scorers, their fusion and NMS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calib.scoring import Original, Scorer, for_detector, with_stage_average
from extract.cache.reader import RoICache
from extract.detectors.base import ImageDetections
from extract.rois import RoIs
from extract.utils.summarized import Summarized
from fuse.config import FusionConfig
from fuse.defaults import IOU_THRESHOLD
from fuse.ops.nms import NMSResult, class_nms
from fuse.scores import (
    COMBINATIONS,
    IMAGE_MODES,
    UNCALIBRATED_MODES,
    fuse_scores,
    mask_empty_boxes,
    oracle_scores,
    tail_classes,
)


@dataclass(frozen=True, eq=False, repr=False)
class Fusion(Summarized):
    """A `FusionConfig` with its scorers, its defaults resolved for one detector; made by `resolve` or `for_cache`.

    Attributes:
        config: the options.
        original: scores of the detector's own classifier.
        calibrated: scores of the calibrated classifier; None for modes that need none.
        tail_mask: (K,) bool.
        iou_threshold: of NMS.
        max_detections: per image; None keeps all.
        skip_empty: boxes without area are no candidates.
    """

    config: FusionConfig
    original: Scorer
    calibrated: Scorer | None
    tail_mask: np.ndarray
    iou_threshold: float
    max_detections: int | None
    skip_empty: bool

    @classmethod
    def resolve(
        cls,
        config: FusionConfig,
        detector: Mapping[str, Any],
        instance_counts: Sequence[int] | np.ndarray,
        calibrated: Scorer | None = None,
        original: Scorer | None = None,
    ) -> Fusion:
        """Resolves the config's defaults.

        Args:
            config: the options.
            detector: the detector's description.
            instance_counts: (K,) training instances, which `config.tail` is compared with.
            calibrated: the calibrated scorer.
            original: the original scorer; the detector's own classifier by default.

        Raises ValueError for an unknown mode, and for a mode that needs a calibrated scorer where there is none.
        """
        if config.mode not in (modes := (*COMBINATIONS, *IMAGE_MODES)):
            raise ValueError(f"mode is {config.mode!r}, expected one of {', '.join(modes)}")
        if calibrated is None and config.mode not in UNCALIBRATED_MODES:
            raise ValueError(f"mode is {config.mode!r}, which needs a calibrated scorer")
        if calibrated is not None:
            calibrated = for_detector(with_stage_average(calibrated, config.stage_average), detector)
        mask = tail_classes(np.asarray(instance_counts), config.tail)
        nms_iou, skip_empty = detector.get("nms_iou", IOU_THRESHOLD), bool(detector.get("skip_empty", False))
        return cls(
            config=config,
            original=original or Original.from_description(detector, config.stage_average),
            calibrated=calibrated,
            tail_mask=mask if config.tail_mask is None else np.array(config.tail_mask),
            iou_threshold=float(nms_iou) if config.iou_threshold is None else config.iou_threshold,
            max_detections=None if config.max_detections == -1 else config.max_detections,
            skip_empty=skip_empty if config.skip_empty is None else config.skip_empty,
        )

    @classmethod
    def for_cache(
        cls,
        cache: RoICache,
        config: FusionConfig,
        calibrated: Scorer | None = None,
        original: Scorer | None = None,
    ) -> Fusion:
        """Resolves the config's defaults for the detector and the classes of a cache; errors as of `resolve`."""
        counts = cache.classes["instance_count"].to_numpy()
        return cls.resolve(config, cache.detector, counts, calibrated, original)

    def summary(self) -> list[tuple[str, str]]:
        """Returns what `repr` shows: (name, text)."""
        calibrated = "none" if self.calibrated is None else f"{self.calibrated.name}, {self.calibrated.level} features"
        tail, limit = int(self.tail_mask.sum()), "all" if self.max_detections is None else f"{self.max_detections:,}"
        bound = (
            f", those of fewer than {self.config.tail:g} training instances" if self.config.tail_mask is None else ""
        )
        return [
            ("Fusion", f"mode {self.config.mode}"),
            ("original", self.original.name),
            ("calibrated", calibrated),
            ("tail", f"{tail:,} of {len(self.tail_mask):,} classes{bound}"),
            ("keeps", f"{limit} detections per image, scores above {self.config.score_threshold:g}"),
            ("NMS", f"at IoU {self.iou_threshold:g}"),
        ]

    @property
    def needs_features(self) -> bool:
        """Whether a scorer needs the RoIs' features."""
        return any(scorer is not None and scorer.level != "logits" for scorer in (self.original, self.calibrated))

    def detect(
        self, rois: RoIs, cached: ScoreCache | None = None, class_thresholds: np.ndarray | None = None
    ) -> NMSResult:
        """Returns the detections of one image, best first.

        Args:
            rois: of the image.
            cached: scores of the image's RoIs, shared by several fusions.
            class_thresholds: (K,) score thresholds of the classes; by default `config.score_threshold` for each.

        Raises ValueError for scores of a wrong shape, or with NaN.
        """
        scores = cached or ScoreCache(rois)
        thresholds = self.config.score_threshold if class_thresholds is None else class_thresholds

        def nms(values: np.ndarray) -> NMSResult:
            if self.skip_empty:
                values = mask_empty_boxes(values, rois.boxes)
            return class_nms(rois.boxes, values, self.iou_threshold, thresholds, self.max_detections)

        mode = self.config.mode
        if mode == "original":
            return nms(scores(self.original))
        if mode == "props-gt":
            return nms(oracle_scores(scores(self.original), rois.labels[:, -1]))
        if mode == "calibrated":
            return nms(scores(self.calibrated))
        original, calibrated = scores(self.original), scores(self.calibrated)
        if mode == "det":
            return join_by_class(nms(original), nms(calibrated), self.tail_mask, self.max_detections)
        threshold, scale = self.config.cat_threshold, self.config.cat_scale
        return nms(fuse_scores(original, calibrated, self.tail_mask, mode, cat_threshold=threshold, cat_scale=scale))

    def detections(self, rois: RoIs) -> ImageDetections:
        """Returns the detections of one image with their boxes, see `detect`."""
        found = self.detect(rois)
        return ImageDetections(boxes_of(rois, found), found.class_index, found.score)


class ScoreCache:
    """Scores of one image's RoIs, computed once per scorer. Scorers that compare equal share them."""

    def __init__(self, rois: RoIs):
        self._rois = rois
        self._scores: dict[Scorer, np.ndarray] = {}

    def __call__(self, scorer: Scorer | None) -> np.ndarray:
        """Returns (R, K+1) float32 scores. Raises ValueError for scores of another shape."""
        assert scorer is not None
        if scorer not in self._scores:
            scores = scorer.scores(self._rois)
            expected = (len(self._rois), self._rois.num_classes + 1)
            if scores.shape != expected:
                raise ValueError(f"scorer {scorer.name!r} gave scores of shape {scores.shape}, expected {expected}")
            self._scores[scorer] = scores
        return self._scores[scorer]


def join_by_class(
    original: NMSResult, calibrated: NMSResult, tail_mask: np.ndarray, max_detections: int | None
) -> NMSResult:
    """Joins the detections of two classifiers, each after its own NMS and cap: rhead-det of Table 6.

    Tail classes keep the calibrated classifier's detections, other classes the original's. The joined detections are
    ordered by score (equal scores by class, then RoI) and cut to `max_detections` again.

    Args:
        original, calibrated: detections of one image.
        tail_mask: (K,) bool.
        max_detections: of both together; None keeps all.
    """
    keep, take = ~tail_mask[original.class_index], tail_mask[calibrated.class_index]
    roi, label, score = (np.concatenate([a[keep], b[take]]) for a, b in zip(original, calibrated, strict=True))
    order = np.lexsort((roi, label, -score))[:max_detections]
    return NMSResult(roi[order], label[order], score[order])


def boxes_of(rois: RoIs, found: NMSResult) -> np.ndarray:
    """Returns the boxes (D, 4) of detections: those that the classes share, or those of the detected class."""
    if rois.boxes.ndim == 2:
        return rois.boxes[found.roi_index]
    return rois.boxes[found.roi_index, found.class_index]
