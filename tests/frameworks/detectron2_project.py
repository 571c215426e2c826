"""A user's detectron2 project: RoI heads, proposals, a config key and a dataset."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import (
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    FastRCNNOutputLayers,
    StandardROIHeads,
)
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from torch import nn

CLASSES = 20
FEDERATED = "test_detectron2_federated"
"""Dataset whose image counts a federated loss reads."""


class CosinePredictor(FastRCNNOutputLayers):
    """Its scores are scaled cosines of the embedding and each class's weights."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = nn.functional.normalize(x) @ nn.functional.normalize(self.cls_score.weight).T
        return self.scale * scores, self.bbox_pred(x)


class CosineROIHeads(StandardROIHeads):
    """RoI heads with a `CosinePredictor`."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        parts = super()._init_box_head(cfg, input_shape)
        parts["box_predictor"] = CosinePredictor(cfg, parts["box_head"].output_shape)
        parts["box_predictor"].scale = cfg.MODEL.COSINE_SCALE
        return parts


class OddROIHeads(StandardROIHeads):
    """RoI heads with an inference of their own."""

    def _forward_box(self, features: Any, proposals: Any) -> Any:
        raise NotImplementedError


class ObjectnessPredictor(FastRCNNOutputLayers):
    """Its inference raises class score times objectness to a power; CenterNet2's is 0.5."""

    power = 0.5

    def inference(self, predictions: Any, proposals: Any) -> Any:
        scores = [
            (s * p.objectness_logits.sigmoid()[:, None]) ** self.power
            for s, p in zip(self.predict_probs(predictions, proposals), proposals, strict=True)
        ]
        limits = self.test_score_thresh, self.test_nms_thresh, self.test_topk_per_image
        sizes = [p.image_size for p in proposals]
        return fast_rcnn_inference(self.predict_boxes(predictions, proposals), scores, sizes, *limits)


class ObjectnessROIHeads(StandardROIHeads):
    """RoI heads with an `ObjectnessPredictor`."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        parts = super()._init_box_head(cfg, input_shape)
        return {**parts, "box_predictor": ObjectnessPredictor(cfg, parts["box_head"].output_shape)}


class CenterNet2Heads(CascadeROIHeads):
    """A cascade whose scores are those of CenterNet2's `CustomCascadeROIHeads`."""

    def _forward_box(self, features: Any, proposals: Any, targets: Any = None) -> Any:
        probabilities = [p.objectness_logits for p in proposals]
        maps = [features[name] for name in self.box_in_features]
        sizes, stages, boxes = [p.image_size for p in proposals], [], []
        for k in range(self.num_cascade_stages):
            proposals = self._create_proposals_from_boxes(boxes, sizes) if k else proposals
            predictions = self._run_stage(maps, proposals, k)
            boxes = self.box_predictor[k].predict_boxes(predictions, proposals)
            stages.append(self.box_predictor[k].predict_probs(predictions, proposals))
        scores = [sum(of_image) / len(stages) for of_image in zip(*stages, strict=True)]
        scores = [(s * p[:, None]) ** 0.5 for s, p in zip(scores, probabilities, strict=True)]
        last = self.box_predictor[-1]
        limits = last.test_score_thresh, last.test_nms_thresh, last.test_topk_per_image
        return fast_rcnn_inference(boxes, scores, sizes, *limits)[0]


class ProbabilityRPN(RPN):
    """Its proposals have probabilities in place of logits, as CenterNet's."""

    def forward(self, images: Any, features: Any, gt_instances: Any = None) -> Any:
        proposals, losses = super().forward(images, features, gt_instances)
        for one in proposals:
            one.objectness_logits = one.objectness_logits.sigmoid()
        return proposals, losses


def add_config(cfg: CfgNode) -> None:
    """Adds what a user's project may add: RoI heads, a key, and a dataset whose counts a federated loss reads."""
    MetadataCatalog.get(FEDERATED).class_image_count = [{"id": i + 1, "image_count": i + 1} for i in range(CLASSES)]
    cfg.MODEL.COSINE_SCALE = 20.0
    for heads in (CosineROIHeads, OddROIHeads, ObjectnessROIHeads, CenterNet2Heads):
        if heads.__name__ not in ROI_HEADS_REGISTRY:
            ROI_HEADS_REGISTRY.register(heads)
    if ProbabilityRPN.__name__ not in PROPOSAL_GENERATOR_REGISTRY:
        PROPOSAL_GENERATOR_REGISTRY.register(ProbabilityRPN)
