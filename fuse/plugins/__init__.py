"""Calibrated detectors as models of their own framework. Importing a framework's module registers them there.

Only these modules and `extract.detectors` import a framework. A calibrated model is the original one with an
additional part `calibration` and an inference that uses it. Its state_dict holds the original's tensors and the head's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import msgspec

from calib.classifiers import ClassifierKind
from calib.heads import Head
from calib.posthoc import Posthoc
from calib.scoring import Level, Original
from extract.class_scores import Activation, Average
from extract.data.class_map import ClassMap
from extract.detectors.base import Detector, ForwardOutput, ImageDetections
from extract.detectors.class_map import map_detector
from extract.rois import POOLED_AFTER_CONVOLUTIONS
from extract.utils.errors import one_line
from fuse.config import FusionConfig
from fuse.export.classes import NO_CLASSES, OutputClasses
from fuse.export.learned_module import HeadLayout, LearnedScores
from fuse.export.module import CalibratedScores
from fuse.fusion import boxes_of
from fuse.learned import LearnedFusion
from fuse.ops.nms import class_nms
from fuse.scores import mask_empty_boxes

WEIGHTS_FILE = "model.pth"
"""The checkpoint in the folder of an export."""
MAX_STAGES = 100
"""More than any box head has: a damaged config must not build layers for ever."""
FILE_MODES = {"calibrated": "new"}
"""Modes → their names in exported configs, where these differ."""


@dataclass(frozen=True)
class CalibrationConfig:
    """The plain values that exported configs hold. Exported models exist, so names and meanings are fixed.

    Attributes:
        mode: of the fusion; "new" is mode "calibrated".
        threshold: `cat_threshold` of the fusion.
        scale: `cat_scale` of the fusion; 0 is each image's own background ratio.

    The other attributes are as in `Calibration` and `fuse.FusionConfig`. The tail classes are in the checkpoint.
    """

    widths: tuple[int, ...]
    stages: int
    level: Level
    mode: str
    activation: Activation
    original_average: Average
    calibrated_average: Average
    threshold: float
    scale: float
    score_threshold: float
    iou_threshold: float
    max_detections: int
    skip_empty: bool
    class_outputs: tuple[int, ...] = ()
    num_outputs: int = 0
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    pooled_after_convolutions: bool = False
    classifier: ClassifierKind = "linear"
    groups: int = 0
    head_activation: Activation = "softmax"
    gated: bool = False
    learned: bool = False
    further_heads: tuple[HeadLayout, ...] = ()
    tensors_sha256: str = ""
    with_objectness: bool = False


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
        fusion: its options, with `iou_threshold` and `skip_empty` resolved; `tail` is in the checkpoint.
        class_outputs, num_outputs: as in `extract.data.class_map.ClassMap`; empty and 0 if output i is class i.
        class_names, category_ids: of each output of the detector, see `OutputClasses`; empty in older exports.
        pooled_after_convolutions: of a head on pooled features, as in `calib.heads.HeadInfo`.
        classifier, groups, head_activation: of a head, as in `calib.heads.HeadInfo`.
        gated: whether a method has a second factor, `calib.posthoc.Posthoc.gate`.
        learned: whether it is a learned fusion, whose first head the attributes describe.
        further_heads: the others of a learned fusion.
        tensors_sha256: of the checkpoint, see `fuse.export.checksums`; empty in older exports.
        with_objectness: whether scores are `extract.class_scores.scores_with_objectness` of the class scores.
    """

    widths: tuple[int, ...]
    stages: int
    level: Level
    activation: Activation
    original_average: Average
    calibrated_average: Average
    fusion: FusionConfig
    class_outputs: tuple[int, ...] = ()
    num_outputs: int = 0
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    pooled_after_convolutions: bool = False
    classifier: ClassifierKind = "linear"
    groups: int = 0
    head_activation: Activation = "softmax"
    gated: bool = False
    learned: bool = False
    further_heads: tuple[HeadLayout, ...] = ()
    tensors_sha256: str = ""
    with_objectness: bool = False

    @classmethod
    def from_scorer(
        cls,
        scorer: Head | Posthoc | LearnedFusion,
        detector: Mapping[str, Any],
        fusion: FusionConfig,
        classes: OutputClasses = NO_CLASSES,
    ) -> Calibration:
        """Builds it from a calibrated scorer, the description of its detector, fusion options and class names.

        `fusion.stage_average` and `fusion.iou_threshold` override those of the head and the detector.
        """
        original = Original.from_description(detector, fusion.stage_average)
        heads: list[Head] = []
        if isinstance(scorer, Posthoc):
            stages, outputs = scorer.affine.scale.shape
            layouts = [HeadLayout((outputs,), original.average)]
        else:
            heads = scorer.heads if isinstance(scorer, LearnedFusion) else [scorer]
            stages, layouts = len(heads[0].stages), list(map(HeadLayout.from_head, heads))
        layout = layouts[0]
        iou_threshold = detector["nms_iou"] if fusion.iou_threshold is None else fusion.iou_threshold
        skip_empty = bool(detector.get("skip_empty", False))
        return cls(
            widths=layout.widths,
            stages=stages,
            level=scorer.level,
            activation=original.activation,
            original_average=original.average,
            calibrated_average=fusion.stage_average or layout.average,
            fusion=fusion.fusion(iou_threshold=float(iou_threshold), skip_empty=skip_empty, stage_average=None),
            class_outputs=scorer.class_map.outputs if scorer.class_map else (),
            num_outputs=scorer.class_map.num_outputs if scorer.class_map else 0,
            class_names=classes.names,
            category_ids=classes.category_ids,
            pooled_after_convolutions=bool(heads) and heads[0].info.pooled_after_convolutions,
            classifier=layout.classifier,
            groups=layout.groups,
            head_activation=layout.activation,
            gated=isinstance(scorer, Posthoc) and scorer.gate is not None,
            learned=isinstance(scorer, LearnedFusion),
            further_heads=tuple(layouts[1:]),
            with_objectness=original.with_objectness,
        )

    @classmethod
    def from_config(cls, values: Mapping[str, object]) -> Calibration:
        """Builds it from the values in an exported config. Raises ValueError naming one that is missing or invalid."""
        if unknown := values.keys() - {field.name for field in fields(CalibrationConfig)}:
            raise ValueError(f"has {min(unknown)}, which this version does not know (written by a newer version)")
        try:
            config = msgspec.convert(dict(values), CalibrationConfig)
        except msgspec.ValidationError as error:
            raise ValueError(f"not the description of a calibration: {one_line(error)}") from None
        if not 0 < config.stages <= MAX_STAGES:
            raise ValueError(f"stages is {config.stages}, expected 1 to {MAX_STAGES}")
        modes = {file: mode for mode, file in FILE_MODES.items()}
        fusion = FusionConfig.from_options(
            mode=modes.get(config.mode, config.mode),
            cat_threshold=config.threshold,
            cat_scale=config.scale or None,
            score_threshold=config.score_threshold,
            iou_threshold=config.iou_threshold,
            max_detections=config.max_detections,
            skip_empty=config.skip_empty,
        )
        own = {field.name: getattr(config, field.name) for field in fields(cls) if field.name != "fusion"}
        return cls(**own, fusion=fusion)

    def to_config(self) -> CalibrationConfig:
        """Returns the values for an exported config."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "fusion"}
        fusion = self.fusion
        assert fusion.iou_threshold is not None and fusion.skip_empty is not None
        return CalibrationConfig(
            **own,
            mode=FILE_MODES.get(fusion.mode, fusion.mode),
            threshold=fusion.cat_threshold,
            scale=fusion.cat_scale or 0.0,
            score_threshold=fusion.score_threshold,
            iou_threshold=fusion.iou_threshold,
            max_detections=-1 if fusion.max_detections is None else fusion.max_detections,
            skip_empty=fusion.skip_empty,
        )

    def module(self) -> CalibratedScores:
        """Builds the module that computes the scores; weights and tail classes are in the checkpoint."""
        options: dict[str, Any] = {
            "mode": self.fusion.mode,
            "activation": self.activation,
            "original_average": self.original_average,
            "cat_threshold": self.fusion.cat_threshold,
            "cat_scale": self.fusion.cat_scale,
            "with_objectness": self.with_objectness,
        }
        layout = HeadLayout(self.widths, self.calibrated_average, self.head_activation, self.classifier, self.groups)
        if self.learned:
            return LearnedScores([layout, *self.further_heads], self.stages, **options)
        return CalibratedScores(self.widths, self.stages, gated=self.gated, **layout.options(), **options)

    def mapped(self, detector: Detector) -> Detector:
        """Returns the detector with outputs in the order of the classifier's classes.

        Raises ValueError if the head was trained on other pooled features than the detector's.
        """
        after = bool(detector.description.get(POOLED_AFTER_CONVOLUTIONS, False))
        if self.level == "pooled" and after != self.pooled_after_convolutions:
            raise ValueError(
                "the calibration's pooled features are the box head's input, this version's are the output of its "
                "convolutions: extract, train and export again"
            )
        return map_detector(detector, ClassMap(self.class_outputs, self.num_outputs) if self.class_outputs else None)

    def detect(self, scores: CalibratedScores, output: ForwardOutput) -> list[ImageDetections]:
        """Returns the detections of each image of one forward pass."""
        detections, fusion = [], self.fusion
        assert fusion.iou_threshold is not None
        for rois in output.rois:
            values = scores.scores(rois)
            if fusion.skip_empty:
                values = mask_empty_boxes(values, rois.boxes)
            found = class_nms(rois.boxes, values, fusion.iou_threshold, fusion.score_threshold, fusion.max_detections)
            detections.append(ImageDetections(boxes_of(rois, found), found.class_index, found.score))
        return detections


def plain_calibration(config: CalibrationConfig) -> dict[str, Any]:
    """Returns the values of a config as JSON has them."""
    return msgspec.json.decode(msgspec.json.encode(config), type=dict)
