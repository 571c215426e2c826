"""The output of an mmdetection detector: masks, and detections as mmdetection's own inference returns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from extract.detectors.base import ImageDetections
from extract.detectors.common import masks_in_batches
from extract.detectors.mmdet_roi_head import BatchFeatures
from extract.rois import RoIs


@dataclass(frozen=True, eq=False)
class MmdetOutput:
    """See `extract.detectors.base.ForwardOutput`.

    Attributes:
        features: of the batch.
        scales: of each image, (4,) factors from resized to original xyxy.
        boxes: refined boxes of each image, in pixels of the resized image.
    """

    rois: list[RoIs]
    features: BatchFeatures
    scales: list[Tensor]
    boxes: list[Tensor]

    @torch.no_grad()
    def masks(self) -> list[np.ndarray]:
        """See `extract.detectors.base.ForwardOutput.masks`."""
        images = [self.features.image(i) for i in range(len(self.boxes))]
        return masks_in_batches(self.boxes, lambda image, boxes: images[image].mask_probabilities(boxes)[:, 0])

    @torch.no_grad()
    def to_framework(self, detections: Sequence[ImageDetections]) -> list[DetDataSample]:
        """Returns a `DetDataSample` of each image, like `inference_detector`."""
        model, results = self.features.model, []
        for i, (arrays, scale) in enumerate(zip(detections, self.scales, strict=True)):
            boxes, labels, scores = (torch.from_numpy(array).to(scale.device) for array in arrays)
            resized = boxes / scale if model.with_mask else boxes
            instances = InstanceData(bboxes=resized, labels=labels, scores=scores)
            results.append(self.features.image(i).predict_masks(instances) if model.with_mask else instances)
        return model.add_pred_to_datasample([sample.new() for sample in self.features.data_samples], results)
