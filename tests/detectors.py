"""Builders of torchvision detectors of other kinds than Mini-LVIS's, small and random."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from benchmarks.minilvis.detector import ANCHOR_SIZES, ASPECT_RATIOS, Backbone

CLASSES = 7
OPTIONS = {
    "num_classes": CLASSES + 1,
    "rpn_post_nms_top_n_test": 80,
    "box_detections_per_img": 300,
    "box_score_thresh": 0.0,
    "min_size": 120,
    "max_size": 200,
}


def mask_rcnn(**options) -> MaskRCNN:
    """torchvision's own heads: class-specific boxes and masks, resized input, feature pyramid."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        anchors = AnchorGenerator(ANCHOR_SIZES, ASPECT_RATIOS)
        pool = [MultiScaleRoIAlign(["0", "1", "2"], size, 2) for size in (7, 14)]
        options = {"box_roi_pool": pool[0], "mask_roi_pool": pool[1], **OPTIONS, **options}
        return _spread(MaskRCNN(Backbone(), rpn_anchor_generator=anchors, **options))


def single_level(**options) -> FasterRCNN:
    """One feature map, no pyramid and no masks, as a C4 detector has it."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        body = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.ReLU())
        body.out_channels = 16
        anchors = AnchorGenerator(((16, 32, 64),), ((0.5, 1.0, 2.0),))
        pool = MultiScaleRoIAlign(["0"], 7, 2)
        return _spread(FasterRCNN(body, rpn_anchor_generator=anchors, box_roi_pool=pool, **OPTIONS, **options))


def not_a_detector() -> nn.Module:
    """What a builder must not return."""
    return nn.Linear(2, 2)


def _spread(model: FasterRCNN) -> FasterRCNN:
    """Larger predictor weights, so that random scores and boxes differ from one another as trained ones do."""
    predictor = model.roi_heads.box_predictor
    nn.init.normal_(predictor.cls_score.weight, std=0.2)
    nn.init.normal_(predictor.bbox_pred.weight, std=0.1)
    return model
