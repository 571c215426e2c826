"""The output of a detectron2 detector: masks, and detections as detectron2's own inference returns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.modeling import ROIHeads, detector_postprocess
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from extract.detectors.base import ImageDetections
from extract.detectors.common import masks_in_batches
from extract.detectors.mask_classes import for_boxes, for_classes
from extract.rois import RoIs


@dataclass(frozen=True, eq=False)
class Detectron2Output:
    """See `extract.detectors.base.ForwardOutput`.

    Attributes:
        roi_heads: of the model; they predict masks and keypoints.
        feature_maps: (N, C, H, W) of each FPN level.
        scales: of each image, (4,) factors from resized to original xyxy.
        boxes: refined boxes of each image, in pixels of the resized image.
        sizes: (height, width) of each resized image.
    """

    rois: list[RoIs]
    roi_heads: ROIHeads
    feature_maps: dict[str, Tensor]
    scales: list[Tensor]
    boxes: list[Tensor]
    sizes: list[tuple[int, int]]

    @torch.no_grad()
    def masks(self) -> list[np.ndarray]:
        """See `extract.detectors.base.ForwardOutput.masks`."""
        return masks_in_batches(self.boxes, lambda image, boxes: self._predict(image, boxes).pred_masks[:, 0])

    @torch.no_grad()
    def to_framework(self, detections: Sequence[ImageDetections]) -> list[dict[str, Instances]]:
        """Returns `{"instances": Instances}` of each image, like `DefaultPredictor`."""
        results = []
        for image, (arrays, scale, rois) in enumerate(zip(detections, self.scales, self.rois, strict=True)):
            boxes, labels, scores = (torch.from_numpy(array).to(scale.device) for array in arrays)
            instances = self._predict(image, boxes / scale, scores=scores, pred_classes=labels)
            results.append({"instances": detector_postprocess(instances, rois.height, rois.width)})
        return results

    def _predict(self, image: int, boxes: Tensor, **fields: Tensor) -> Instances:
        """Predicts masks and keypoints of one image's boxes (D, 4), in pixels of the resized image."""
        labels = fields.get("pred_classes", boxes.new_zeros(len(boxes), dtype=torch.long))
        heads, channels = for_classes(self.roi_heads, _class_convolutions(self.roi_heads), labels)
        head: Any = getattr(heads, "mask_head", None)
        if type(head) is MaskRCNNConvUpsampleHead:
            heads = for_boxes(heads, {head: "layers"}, boxes)
        maps = {name: level[image : image + 1] for name, level in self.feature_maps.items()}
        instances = Instances(self.sizes[image], pred_boxes=Boxes(boxes), **{**fields, "pred_classes": channels})
        (instances,) = heads.forward_with_given_boxes(maps, [instances])
        instances.pred_classes = labels
        return instances


def _class_convolutions(heads: ROIHeads) -> list[nn.Conv2d]:
    """Returns the last convolution of detectron2's own mask head, one output channel per class."""
    head: Any = getattr(heads, "mask_head", None)
    specific = type(head) is MaskRCNNConvUpsampleHead and head.predictor.out_channels > 1
    return [head.predictor] if specific else []
