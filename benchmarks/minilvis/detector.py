"""The plain detector of Mini-LVIS: a small torchvision Mask R-CNN with class-agnostic boxes and masks.

The library loads it as `torchvision:benchmarks.minilvis.detector:mask_rcnn`. At inference, images of other sizes than
144 px are resized.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

CHANNELS = 64  # of every FPN level
EMBEDDING = 256
MASK_CHANNELS = 32
# Two sizes per FPN level (strides 4, 8, 16) and two aspect ratios cover Mini-LVIS's objects of 14 to 70 px.
ANCHOR_SIZES = ((14, 20), (28, 40), (54, 72))
ASPECT_RATIOS = ((0.75, 1.33),) * 3
DEFAULTS: dict[str, Any] = dict(
    # size_divisible is the largest stride: torchvision's 32 would pad 144 px to 160.
    min_size=144, max_size=144, _skip_resize=True, size_divisible=16,
    image_mean=(0.45,) * 3, image_std=(0.25,) * 3,
    rpn_pre_nms_top_n_train=1000, rpn_post_nms_top_n_train=300,
    rpn_pre_nms_top_n_test=2000, rpn_post_nms_top_n_test=1000,
    rpn_batch_size_per_image=128, box_batch_size_per_image=64,
    box_score_thresh=0.0, box_nms_thresh=0.5, box_detections_per_img=300,
)  # fmt: skip


class Backbone(nn.Module):
    """ResNet-18 up to layer3 under a feature pyramid.

    (N, 3, H, W) -> {"0", "1", "2"} of (N, 64, H/s, W/s) with strides s = 4, 8, 16.
    """

    out_channels = CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(resnet18(weights=None), {"layer1": "0", "layer2": "1", "layer3": "2"})
        self.fpn = FeaturePyramidNetwork([64, 128, 256], CHANNELS)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn(self.body(images))


class BoxPredictor(nn.Module):
    """(R, 256) embeddings -> (R, K+1) logits, background first, and (R, (K+1)*4) box deltas.

    The class-agnostic deltas are repeated, because torchvision's RoI heads expect them per class.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(EMBEDDING, num_classes + 1)
        self.bbox_pred = nn.Linear(EMBEDDING, 4)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(embedding), self.bbox_pred(embedding).repeat(1, self.cls_score.out_features)


class MaskPredictor(nn.Module):
    """(R, 32, 14, 14) -> (R, K+1, 28, 28) mask logits: one class-agnostic mask per RoI, expanded without a copy."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_outputs = num_classes + 1
        self.upsample = nn.ConvTranspose2d(MASK_CHANNELS, MASK_CHANNELS, 2, 2)
        self.mask_logits = nn.Conv2d(MASK_CHANNELS, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.mask_logits(self.upsample(features).relu()).expand(-1, self.num_outputs, -1, -1)


def mask_rcnn(num_classes: int = 240, **kwargs: Any) -> MaskRCNN:
    """Builds an untrained detector of `num_classes` foreground classes; `kwargs` override `DEFAULTS`."""
    return MaskRCNN(
        Backbone(),
        rpn_anchor_generator=AnchorGenerator(ANCHOR_SIZES, ASPECT_RATIOS),
        box_roi_pool=_roi_align(7),
        box_head=TwoMLPHead(CHANNELS * 7 * 7, EMBEDDING),
        box_predictor=BoxPredictor(num_classes),
        mask_roi_pool=_roi_align(14, sampling_ratio=1),
        mask_head=MaskRCNNHeads(CHANNELS, (MASK_CHANNELS, MASK_CHANNELS), dilation=1),
        mask_predictor=MaskPredictor(num_classes),
        **{**DEFAULTS, **kwargs},
    )


def _roi_align(output_size: int, sampling_ratio: int = 2) -> MultiScaleRoIAlign:
    # Boxes under 48 px are pooled from the FPN level of stride 4, those up to 96 px from that of stride 8.
    return MultiScaleRoIAlign(
        ["0", "1", "2"], output_size, sampling_ratio=sampling_ratio, canonical_scale=48, canonical_level=3
    )
