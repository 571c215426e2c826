"""Builders of small random torchvision detectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, fasterrcnn_resnet50_fpn_v2
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from benchmarks.minilvis import detector as minilvis
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


def mask_rcnn(**options: Any) -> MaskRCNN:
    """torchvision's own heads: class-specific boxes and masks, resized input, FPN."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        anchors = AnchorGenerator(ANCHOR_SIZES, ASPECT_RATIOS)
        pool = [MultiScaleRoIAlign(["0", "1", "2"], size, 2) for size in (7, 14)]
        options = {"box_roi_pool": pool[0], "mask_roi_pool": pool[1], **OPTIONS, **options}
        return _with_large_predictor(MaskRCNN(Backbone(), rpn_anchor_generator=anchors, **options))


def convolutions(num_classes: int = CLASSES) -> MaskRCNN:
    """A box head with convolutions before its fully connected layers, as in torchvision's second versions."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        head = FastRCNNConvFCHead((minilvis.CHANNELS, 7, 7), [32, 24], [48], norm_layer=nn.BatchNorm2d)
        predictor, masks = FastRCNNPredictor(48, num_classes + 1), MaskRCNNPredictor(256, 16, num_classes + 1)
    return mask_rcnn(num_classes=None, box_head=head, box_predictor=predictor, mask_predictor=masks)


def faster_rcnn_v2(num_classes: int = CLASSES) -> FasterRCNN:
    """torchvision's `fasterrcnn_resnet50_fpn_v2`, with fewer classes, proposals and pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        options = {**OPTIONS, "num_classes": num_classes + 1}
        return _with_large_predictor(fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **options))


def single_level(**options: Any) -> FasterRCNN:
    """One feature map without FPN and no masks, like a C4 detector."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        body = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.ReLU())
        body.out_channels = 16
        anchors = AnchorGenerator(((16, 32, 64),), ((0.5, 1.0, 2.0),))
        pool = MultiScaleRoIAlign(["0"], 7, 2)
        model = FasterRCNN(body, rpn_anchor_generator=anchors, box_roi_pool=pool, **OPTIONS, **options)
        return _with_large_predictor(model)


def class_agnostic() -> nn.Module:
    """Mini-LVIS's detector: class-agnostic boxes and masks."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = minilvis.mask_rcnn(CLASSES, rpn_post_nms_top_n_test=80)
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
        return model


def collapsing_boxes() -> MaskRCNN:
    """Large box deltas: many refined boxes lose their area at the edge of the image."""
    model = mask_rcnn()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.5)
    return model


def not_a_detector() -> nn.Module:
    """A builder's wrong result."""
    return nn.Linear(2, 2)


def failing() -> nn.Module:
    """A builder that raises, with a message of two lines."""
    raise KeyError("no such\narchitecture")


def _with_large_predictor(model: FasterRCNN) -> FasterRCNN:
    """Makes the predictor's weights so large that random scores and boxes differ from RoI to RoI like trained ones."""
    predictor = model.roi_heads.box_predictor
    nn.init.normal_(predictor.cls_score.weight, std=0.2)
    nn.init.normal_(predictor.bbox_pred.weight, std=0.1)
    return model
