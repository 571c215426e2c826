"""A user's detectron2 project: RoI heads, a config key and a dataset."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import ROI_HEADS_REGISTRY, FastRCNNOutputLayers, StandardROIHeads
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


def add_config(cfg: CfgNode) -> None:
    """Adds what a user's project may add: RoI heads, a key, and a dataset whose counts a federated loss reads."""
    MetadataCatalog.get(FEDERATED).class_image_count = [{"id": i + 1, "image_count": i + 1} for i in range(CLASSES)]
    cfg.MODEL.COSINE_SCALE = 20.0
    for heads in (CosineROIHeads, OddROIHeads):
        if heads.__name__ not in ROI_HEADS_REGISTRY:
            ROI_HEADS_REGISTRY.register(heads)
