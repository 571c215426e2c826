"""Calibrated detectors as models of their own framework. Importing a framework's module registers them there.

Only these modules and `extract.detectors` import a framework. A calibrated model is the original one with an
additional part `calibration` and an inference that uses it. Its state_dict holds the original's tensors and the head's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from calib.heads import Head
from calib.posthoc import Posthoc
from calib.scoring import Activation, Average, Level, Original
from extract.detectors.base import ForwardOutput, ImageDetections
from fuse.config import FusionConfig
from fuse.export.module import CalibratedScores
from fuse.fusion import boxes_of
from fuse.ops.nms import class_nms
from fuse.scores import mask_empty_boxes

FILE_NAMES = {"cat_threshold": "threshold", "cat_scale": "scale"}
"""Fusion options → their names in exported configs, where these differ."""
FILE_MODES = {"calibrated": "new"}
"""Modes → their names in exported configs, where these differ."""
FUSION_OPTIONS = (
    "mode",
    "cat_threshold",
    "cat_scale",
    "score_threshold",
    "iou_threshold",
    "max_detections",
    "skip_empty",
)
"""Fusion options that exported configs hold; the tail classes are in the checkpoint."""


@dataclass(frozen=True)
class Calibration:
    """How a calibrated model detects, as exported configs describe it.

    Attributes:
        widths: sizes of the head's layers, from the flattened feature to K+1; (K+1,) for a method of `calib.posthoc`,
            which scales and shifts the original logits.
        stages: number of stages of the box head.
        level: feature level of the head's input; "logits" for a method.
        activation: of the original classifier, "softmax" or "sigmoid".
        original_average, calibrated_average: what is averaged over the stages, "scores" or "logits".
        fusion: the options in `FUSION_OPTIONS`, with `iou_threshold` and `skip_empty` resolved.
    """

    widths: tuple[int, ...]
    stages: int
    level: Level
    activation: Activation
    original_average: Average
    calibrated_average: Average
    fusion: FusionConfig

    @classmethod
    def from_scorer(cls, scorer: Head | Posthoc, detector: Mapping[str, object], fusion: FusionConfig) -> Calibration:
        """Of a head or a fitted method, the description of its detector, and fusion options.

        `fusion.stage_average` and `fusion.iou_threshold` override those of the head and the detector.
        """
        original = Original.from_description(detector, fusion.stage_average)
        if isinstance(scorer, Head):
            widths, stages, average = scorer.info.widths, len(scorer.stages), scorer.info.stage_average
        else:
            scale, _ = scorer.affine
            widths, stages, average = (scale.shape[1],), len(scale), original.average
        iou_threshold = detector["nms_iou"] if fusion.iou_threshold is None else fusion.iou_threshold
        skip_empty = bool(detector.get("skip_empty", False))
        return cls(
            widths=tuple(widths),
            stages=stages,
            level=scorer.level,
            activation=original.activation,
            original_average=original.average,
            calibrated_average=fusion.stage_average or average,
            fusion=fusion.fusion(iou_threshold=float(iou_threshold), skip_empty=skip_empty, stage_average=None),
        )

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Calibration:
        """Of the plain values that `to_config` returns. Raises TypeError or ValueError for unknown keys."""
        values = dict(config)
        options = {name: values.pop(FILE_NAMES.get(name, name)) for name in FUSION_OPTIONS}
        modes = {file: mode for mode, file in FILE_MODES.items()}
        options |= {"mode": modes.get(options["mode"], options["mode"]), "cat_scale": options["cat_scale"] or None}
        widths = tuple(values.pop("widths"))
        return cls(widths=widths, fusion=FusionConfig.from_options(**options), **values)

    def to_config(self) -> dict[str, object]:
        """Plain values for a framework's config; a `scale` of 0 stands for each image's own background ratio."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "fusion"}
        options = {FILE_NAMES.get(name, name): getattr(self.fusion, name) for name in FUSION_OPTIONS}
        mode = FILE_MODES.get(self.fusion.mode, self.fusion.mode)
        return own | options | {"mode": mode, "scale": self.fusion.cat_scale or 0.0}

    def module(self) -> CalibratedScores:
        """The module that computes the scores, without weights: these and the tail classes are in the checkpoint."""
        return CalibratedScores(
            self.widths,
            self.stages,
            mode=self.fusion.mode,
            activation=self.activation,
            original_average=self.original_average,
            calibrated_average=self.calibrated_average,
            cat_threshold=self.fusion.cat_threshold,
            cat_scale=self.fusion.cat_scale,
        )

    def detect(self, scores: CalibratedScores, output: ForwardOutput) -> list[ImageDetections]:
        """Detections of each image of one forward pass."""
        detections = []
        for rois in output.rois:
            values = scores.scores(rois)
            if self.fusion.skip_empty:
                values = mask_empty_boxes(values, rois.boxes)
            limits = self.fusion.iou_threshold, self.fusion.score_threshold, self.fusion.max_detections
            found = class_nms(rois.boxes, values, *limits)
            detections.append(ImageDetections(boxes_of(rois, found), found.class_index, found.score))
        return detections
