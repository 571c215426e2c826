"""The RoI head of an mmdetection detector on a batch of images: standard, cascade or Hybrid Task Cascade."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmdet.models.detectors import TwoStageDetector
from mmdet.models.roi_heads import CascadeRoIHead, HybridTaskCascadeRoIHead, MaskScoringRoIHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead, HTCMaskHead
from mmdet.models.test_time_augs import merge_aug_masks
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from extract.detectors.mask_classes import for_boxes, for_classes
from extract.detectors.mmdet_config import list_stages

MASK_HEADS = (FCNMaskHead, HTCMaskHead)
"""Mask heads whose layers are known, not those of subclasses."""


class BatchFeatures:
    """The feature maps of a batch of images, and the model's RoI head applied to them.

    Attributes:
        feature_maps: (N, C, H, W) of each FPN level.
        data_samples: of each image, with its sizes before and after resizing.
    """

    def __init__(self, model: TwoStageDetector, inputs: dict[str, Any]):
        self.model = model
        self.data_samples: list[DetDataSample] = inputs["data_samples"]
        self.feature_maps: tuple[Tensor, ...] = model.extract_feat(inputs["inputs"])
        self._cascade = isinstance(model.roi_head, CascadeRoIHead)
        self._hybrid = isinstance(model.roi_head, HybridTaskCascadeRoIHead)
        self._semantic: Tensor | None = None
        if self._hybrid and model.roi_head.with_semantic:
            _, self._semantic = model.roi_head.semantic_head(self.feature_maps)

    def image(self, i: int) -> BatchFeatures:
        """Returns the features of one image, as a batch."""
        one, part = copy.copy(self), slice(i, i + 1)
        one.feature_maps = tuple(level[part] for level in self.feature_maps)
        one.data_samples = self.data_samples[part]
        one._semantic = None if self._semantic is None else self._semantic[part]
        return one

    def box_head(self, stage: int, proposals: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Runs a stage's box head on each image's proposals (R, 4); returns scores and box deltas of the batch."""
        stage_argument, semantic = [stage] * self._cascade, [self._semantic] * self._hybrid
        output = self.model.roi_head._bbox_forward(*stage_argument, self.feature_maps, bbox2roi(proposals), *semantic)
        return output["cls_score"], output["bbox_pred"]

    def mask_probabilities(self, boxes: Tensor) -> Tensor:
        """Returns class-agnostic mask probabilities (R, 1, M, M) of one image's boxes (R, 4), averaged over stages."""
        head, rois = self.model.roi_head, bbox2roi([boxes])
        if self._hybrid:  # its forward pass for the last stage returns the masks of all stages
            logits = head._mask_forward(-1, self.feature_maps, rois, self._semantic, training=False)["mask_preds"]
        else:
            stages: list[list[int]] = [[stage] for stage in range(head.num_stages)] if self._cascade else [[]]
            logits = [head._mask_forward(*stage, self.feature_maps, rois)["mask_preds"] for stage in stages]
        return merge_aug_masks([stage.sigmoid() for stage in logits], {})

    def predict_masks(self, instances: InstanceData) -> InstanceData:
        """Adds masks to one image's instances, and scales their boxes from resized to original pixels."""
        metainfo, semantic = [sample.metainfo for sample in self.data_samples], [self._semantic] * self._hybrid
        roi_head, labels = self.model.roi_head, instances.get("labels")
        convolutions = _class_convolutions(roi_head)
        if convolutions:
            roi_head, instances.labels = for_classes(roi_head, convolutions, labels)
        if own := [head for head in list_stages(roi_head.mask_head) if type(head) in MASK_HEADS]:
            roi_head = for_boxes(roi_head, dict.fromkeys(own, "forward"), instances.bboxes)
        (found,) = roi_head.predict_mask(self.feature_maps, *semantic, metainfo, [instances], rescale=True)
        if convolutions:
            found.labels = labels
        return found


def _class_convolutions(roi_head: BaseModule) -> list[nn.Conv2d]:
    """Returns the last convolution of each stage's mask head, one output channel per class."""
    if isinstance(roi_head, MaskScoringRoIHead):  # its mask_iou_head needs the labels themselves
        return []
    heads = list_stages(roi_head.mask_head)
    specific = [h for h in heads if type(h) in MASK_HEADS and not h.class_agnostic]
    return [head.conv_logits for head in specific]
