"""Adapter of torchvision's two-stage detectors: `FasterRCNN`, `MaskRCNN` and others made of their parts.

It runs the steps of torchvision's own inference, but selects proposals and keeps RoI features in between. torchvision's
background is class 0; here it is the last class. torchvision removes boxes with a side below `MIN_SIZE`; here they
shrink to a point, and `skip_empty` in the description marks boxes without area to be left out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image

from extract.cache.format import Layers
from extract.config import DetectorSpec
from extract.data.decoding import decode_unturned
from extract.detectors.base import (
    Image,
    ImageDetections,
    OwnClasses,
    OwnThresholds,
    SelectProposals,
    select_no_proposals,
)
from extract.detectors.common import (
    apply_selection,
    check_resizable,
    make_rois,
    no_proposals,
    overridden,
    scale_to_original,
)
from extract.detectors.fc_layers import describe_pooled, replace_classifiers
from extract.detectors.identity import describe_settings, with_settings
from extract.detectors.precision import HalfPrecisionParts
from extract.detectors.summary import DetectorSummary
from extract.detectors.torchvision_build import build, check, own_classes
from extract.detectors.torchvision_layers import BoxHead
from extract.detectors.torchvision_output import TorchvisionOutput

MIN_SIZE = 1e-2
"""In pixels of the resized image, from `RoIHeads.postprocess_detections`."""


def load(target: str, spec: DetectorSpec) -> TorchvisionDetector:
    """Builds the model with the function at `target`, MODULE:FUNCTION, and loads `spec.weights`."""
    model, identity = build(target, spec)
    detector = TorchvisionDetector(model, name=target, **identity)
    detector.description = with_settings(detector.description, options=list(spec.detector_options))
    return detector


class TorchvisionDetector(DetectorSummary):
    """A frozen torchvision detector; see `extract.detectors.base.Detector`."""

    # torchvision's datasets and training scripts read images with PIL and leave them as they are stored.
    read_image = staticmethod(decode_unturned)

    def __init__(self, model: GeneralizedRCNN, name: str = "", **sha256: str):
        check(model)
        self.model = model.eval().requires_grad_(False)
        heads = model.roi_heads
        self.stages: tuple[float, ...] = (float(heads.proposal_matcher.high_threshold),)
        self.size = (int(model.transform.min_size[-1]), int(model.transform.max_size))
        self._box_head = BoxHead(heads, model.backbone.out_channels)
        probe, masks = self._box_head.probe(), self._probe_masks()
        self.num_classes = probe.logits.shape[1] - 1
        self.own_classes: OwnClasses | None = own_classes(model, self.num_classes)
        self.own_thresholds = OwnThresholds(float(heads.score_thresh), int(heads.detections_per_img))
        deltas_of_classes = probe.deltas.reshape(-1, 4)
        self.class_agnostic_boxes = bool((deltas_of_classes == deltas_of_classes[0]).all())
        # torchvision expects one mask per class; a class-agnostic one may be expanded to that (stride 0).
        one_mask = masks is not None and (masks.shape[1] == 1 or masks.stride(1) == 0)
        # A cache has one mask per refined box: class-agnostic masks need class-agnostic boxes.
        self.has_masks = one_mask and self.class_agnostic_boxes
        self.description: dict[str, Any] = {
            "name": name or type(model).__name__,
            "framework": "torchvision",
            "framework_version": torchvision.__version__,
            "weights_sha256": "",
            **sha256,
            "activation": "softmax",
            "stage_average": "scores",
            "nms_iou": float(heads.nms_thresh),
            "skip_empty": True,
            "class_agnostic_boxes": self.class_agnostic_boxes,
            "class_agnostic_masks": self.has_masks,
            "settings": describe_settings(self.size, model.transform.image_mean, model.transform.image_std, "RGB"),
            **describe_pooled([self._box_head.first]),
        }

    @property
    def device(self) -> torch.device:
        """See `extract.detectors.base.Detector.device`."""
        return next(self.model.parameters()).device

    def forward(
        self, images: Sequence[Image], level: str, select_proposals: SelectProposals | None = None
    ) -> TorchvisionOutput:
        """See `extract.detectors.base.Detector.forward`."""
        inputs = [self.to_tensor(image) for image in images]
        return self.forward_preprocessed(inputs, [image.image_id for image in images], level, select_proposals)

    @torch.no_grad()
    def own_inference(self, image: Image, score_threshold: float) -> ImageDetections:
        """See `extract.detectors.base.Detector`."""
        with overridden(self.model.roi_heads, score_thresh=score_threshold, mask_roi_pool=None):
            (result,) = self.model([self.to_tensor(image)])
        return self.to_arrays(result)[0]

    @torch.no_grad()
    def forward_preprocessed(
        self,
        inputs: Sequence[Tensor],
        image_ids: Sequence[int],
        level: str,
        select_proposals: SelectProposals | None = None,
    ) -> TorchvisionOutput:
        """Runs `forward` on inputs of torchvision's models: images (3, H, W) float, 0 to 1, on the model's device."""
        resized, _ = self.model.transform(list(inputs))
        feature_maps = self.model.backbone(resized.tensors)
        if isinstance(feature_maps, Tensor):
            feature_maps = {"0": feature_maps}
        sizes = [(image.shape[-2], image.shape[-1]) for image in inputs]
        scales = [scale_to_original(*pair, self.device) for pair in zip(sizes, resized.image_sizes, strict=True)]
        if select_proposals is select_no_proposals:
            proposals, objectness = no_proposals(len(inputs), resized.tensors)
        else:
            proposals, objectness = self._propose(resized, feature_maps)
        selected = apply_selection(proposals, objectness, scales, select_proposals)
        pooled = self.model.roi_heads.box_roi_pool(feature_maps, selected.boxes, resized.image_sizes)
        output = self._box_head.forward(pooled)
        boxes = self._refine(output.deltas, selected.boxes, resized.image_sizes)
        rois = make_rois(
            image_ids,
            sizes,
            scales,
            selected,
            proposals=[selected.boxes],
            boxes=boxes,
            logits=[output.logits],
            features=[] if level == "logits" else [output.features[level]],
        )
        return TorchvisionOutput(rois, self.model, feature_maps, scales, boxes, resized.image_sizes, sizes)

    def half_precision_parts(self) -> HalfPrecisionParts:
        """See `extract.detectors.precision.HalfPrecisionParts`."""
        heads = self.model.roi_heads
        mask_head = [heads.mask_head, heads.mask_predictor] if heads.has_mask() else []
        return HalfPrecisionParts([[self.model.backbone]], [self.model.rpn.head, heads.box_head, *mask_head])

    def fc_layers(self, level: str) -> list[Layers]:
        """See `extract.detectors.base.Detector.fc_layers`."""
        layers = self._box_head.fc_layers(level)
        return [layers] if layers else []

    def state_dict_with_classifiers(self, classifiers: Layers) -> dict[str, Tensor]:
        """See `extract.detectors.base.Detector.state_dict_with_classifiers`."""
        background_first = [(np.roll(weight, 1, 0), np.roll(bias, 1)) for weight, bias in classifiers]
        return replace_classifiers(self.model, [self._box_head.classifier()], background_first)

    def to_arrays(self, result: dict[str, Tensor]) -> tuple[ImageDetections, np.ndarray | None]:
        """See `extract.detectors.base.Detector.to_arrays`."""
        boxes, labels, scores = (result[name].cpu().numpy() for name in ("boxes", "labels", "scores"))
        masks = (result["masks"][:, 0] > 0.5).cpu().numpy() if "masks" in result else None
        return ImageDetections(boxes, labels - 1, scores), masks

    def resized(self, shorter: int, longer: int) -> TorchvisionDetector:
        """See `extract.detectors.base.Detector.resized`."""
        model = copy.copy(self.model)
        model._modules = {**self.model._modules, "transform": copy.copy(self.model.transform)}
        model.transform.min_size, model.transform.max_size = (shorter,), longer
        model.transform._skip_resize = False
        other = copy.copy(self)
        other.model, other.size = model, (shorter, longer)
        other.description = with_settings(self.description, input_size=[shorter, longer])
        return other

    def to_tensor(self, image: Image) -> Tensor:
        """Returns the image as (3, H, W) float, 0 to 1, on the model's device."""
        check_resizable(image, self.size)
        pixels = torch.from_numpy(image.pixels.copy()).to(self.device)
        return pixels.permute(2, 0, 1).float() / 255

    @torch.no_grad()
    def _probe_masks(self) -> Tensor | None:
        """Returns mask logits of one synthetic RoI, for properties that are no attributes; None without a mask head."""
        heads = self.model.roi_heads
        if not heads.has_mask():
            return None
        pooled = torch.zeros(1, self.model.backbone.out_channels, *heads.mask_roi_pool.output_size, device=self.device)
        return heads.mask_predictor(heads.mask_head(pooled))

    def _propose(self, images: ImageList, feature_maps: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the RPN's proposals of each image, in pixels of the resized image, and their objectness."""
        rpn = self.model.rpn
        maps = list(feature_maps.values())
        objectness, deltas = rpn.head(maps)
        anchors = rpn.anchor_generator(images, maps)
        anchors_per_level = [o[0].numel() for o in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        proposals = rpn.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
        return rpn.filter_proposals(proposals, objectness, images.image_sizes, anchors_per_level)

    def _refine(self, deltas: Tensor, proposals: list[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Returns each image's refined, clipped boxes, in resized pixels: (R, 4), or (R, K, 4) without background."""
        if self.class_agnostic_boxes:
            deltas = deltas[:, :4]
        # The coder cannot infer the number of classes from an empty batch.
        boxes = self.model.roi_heads.box_coder.decode(deltas, proposals).reshape(len(deltas), deltas.shape[1] // 4, 4)
        boxes = boxes[:, 0] if self.class_agnostic_boxes else boxes[:, 1:]
        split = boxes.split([len(p) for p in proposals])
        return [_collapse_small(clip_boxes_to_image(b, size)) for b, size in zip(split, sizes, strict=True)]


def _collapse_small(boxes: Tensor) -> Tensor:
    """Shrinks boxes (…, 4) xyxy with a side below `MIN_SIZE` to their first corner."""
    corner = boxes[..., :2]
    small = (boxes[..., 2:] - corner < MIN_SIZE).any(-1, keepdim=True)
    return torch.cat([corner, torch.where(small, corner, boxes[..., 2:])], -1)
