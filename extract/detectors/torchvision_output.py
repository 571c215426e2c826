"""The output of a torchvision detector: masks, and detections as torchvision's own inference returns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference

from extract.detectors.base import ImageDetections
from extract.detectors.common import masks_in_batches
from extract.detectors.mask_classes import for_classes
from extract.rois import RoIs


@dataclass(frozen=True, eq=False)
class TorchvisionOutput:
    """See `extract.detectors.base.ForwardOutput`.

    Attributes:
        feature_maps: (N, C, H, W) of each FPN level.
        scales: of each image, (4,) factors from resized to original xyxy.
        boxes: refined boxes of each image, in pixels of the resized image.
        resized_sizes, original_sizes: (height, width) of each image.
    """

    rois: list[RoIs]
    model: GeneralizedRCNN
    feature_maps: dict[str, Tensor]
    scales: list[Tensor]
    boxes: list[Tensor]
    resized_sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]

    @torch.no_grad()
    def masks(self) -> list[np.ndarray]:
        """See `extract.detectors.base.ForwardOutput.masks`."""
        return masks_in_batches(self.boxes, lambda image, boxes: self._mask_logits(image, boxes)[:, 0].sigmoid())

    @torch.no_grad()
    def to_framework(self, detections: Sequence[ImageDetections]) -> list[dict[str, Tensor]]:
        """Returns dicts of boxes, labels (from 1), scores and masks, like torchvision's models."""
        results = []
        for image, (arrays, scale) in enumerate(zip(detections, self.scales, strict=True)):
            boxes, labels, scores = (torch.from_numpy(array).to(scale.device) for array in arrays)
            result = {"boxes": boxes / scale, "labels": labels + 1, "scores": scores}
            if self.model.roi_heads.has_mask():
                heads = self.model.roi_heads
                predictor, channels = for_classes(heads.mask_predictor, _class_convolutions(heads), labels, first=1)
                distinct, inverse = torch.unique(result["boxes"], dim=0, return_inverse=True)
                logits = predictor(self._mask_features(image, distinct))[inverse]
                (result["masks"],) = maskrcnn_inference(logits, [channels])
            results.append(result)
        return self.model.transform.postprocess(results, self.resized_sizes, self.original_sizes)

    def _mask_logits(self, image: int, boxes: Tensor) -> Tensor:
        """Returns the mask logits of one image's boxes (R, 4), in pixels of the resized image."""
        return self.model.roi_heads.mask_predictor(self._mask_features(image, boxes))

    def _mask_features(self, image: int, boxes: Tensor) -> Tensor:
        """Returns the input of the mask predictor for one image's boxes (R, 4), in pixels of the resized image."""
        heads = self.model.roi_heads
        maps = {name: level[image : image + 1] for name, level in self.feature_maps.items()}
        pooled = heads.mask_roi_pool(maps, [boxes], [self.resized_sizes[image]])
        return heads.mask_head(pooled)


def _class_convolutions(heads: RoIHeads) -> list[nn.Conv2d]:
    """Returns the last convolution of torchvision's own mask predictor, whose output channel 0 is background."""
    predictor = heads.mask_predictor
    return [predictor.mask_fcn_logits] if type(predictor) is MaskRCNNPredictor else []
