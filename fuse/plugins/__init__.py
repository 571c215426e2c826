"""Calibrated detectors as models of their own framework: importing one of these modules makes them known to it.

Only these modules and `extract.detectors` know a framework. A calibrated model is the original one with a
`calibration` beside its other parts and an inference that uses it; its state_dict is the original's and the head's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from calib.heads import Head
from calib.scoring import Original
from extract.detectors.base import ForwardOutput, ImageDetections
from fuse.export.module import CalibratedScores
from fuse.inference import boxes_of
from fuse.ops.nms import class_nms
from fuse.scores import Mode, without_empty


@dataclass(frozen=True)
class Calibration:
    """How a calibrated model detects: plain values, as configs hold them.

    Attributes:
        widths: of the head's layers, from the flattened feature to K+1.
        stages: of the box head.
        level: of the features that the head takes, "pooled" or "embedding".
        mode, threshold, scale: as of `fuse.fuse_scores`; a scale of 0 is each image's own background ratio.
        activation, original_average, calibrated_average: as of `fuse.export.module.CalibratedScores`.
        score_threshold, iou_threshold, max_detections: as of `fuse.class_nms`.
        skip_empty: as of `fuse.Row`.
    """

    widths: tuple[int, ...]
    stages: int
    level: str
    mode: Mode
    activation: str
    original_average: str
    calibrated_average: str
    threshold: float
    scale: float
    score_threshold: float
    iou_threshold: float
    max_detections: int
    skip_empty: bool

    @classmethod
    def from_head(
        cls,
        head: Head,
        detector: Mapping[str, object],
        *,
        average: str | None = None,
        iou_threshold: float | None = None,
        **options,
    ) -> Calibration:
        """Of a head and its detector's description; `options` are mode, threshold, scale and the other two limits.

        `average`, of the stages of both, and `iou_threshold` take the place of their own.
        """
        original = Original.from_description(detector, average)
        return cls(
            widths=head.info.widths,
            stages=len(head.stages),
            level=head.info.level,
            activation=original.activation,
            original_average=original.average,
            calibrated_average=average or head.info.stage_average,
            iou_threshold=float(detector["nms_iou"] if iou_threshold is None else iou_threshold),
            skip_empty=bool(detector.get("skip_empty", False)),
            **options,
        )

    def module(self) -> CalibratedScores:
        """Without weights: they and the tail classes are in the checkpoint."""
        return CalibratedScores(
            self.widths,
            self.stages,
            mode=self.mode,
            activation=self.activation,
            original_average=self.original_average,
            calibrated_average=self.calibrated_average,
            threshold=self.threshold,
            scale=self.scale or None,
        )

    def detect(self, scores: CalibratedScores, forward: ForwardOutput) -> list[ImageDetections]:
        """The detections in one pass of the detector."""
        found = []
        for rois in forward.rois:
            logits = torch.from_numpy(rois.logits).to(rois.features.device)
            values = scores(rois.features, logits).cpu().numpy()
            values = without_empty(values, rois.boxes) if self.skip_empty else values
            limits = self.iou_threshold, self.score_threshold, self.max_detections
            roi, label, score = class_nms(rois.boxes, values, *limits)
            found.append(ImageDetections(boxes_of(rois, roi, label), label, score))
        return found
