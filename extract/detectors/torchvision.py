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
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image

from extract.cache.format import Layers
from extract.config import DetectorSpec
from extract.data.decoding import decode_unturned
from extract.detectors.base import Image, ImageDetections, OwnClasses, SelectProposals
from extract.detectors.common import apply_selection, capture_inputs, make_rois, scale_to_original
from extract.detectors.fc_layers import linear_modules, read_layers, replace_classifiers, verified_layers
from extract.detectors.identity import describe_settings, with_settings
from extract.detectors.torchvision_build import build, check, own_classes
from extract.detectors.torchvision_output import TorchvisionOutput

MIN_SIZE = 1e-2
"""In pixels of the resized image, from `RoIHeads.postprocess_detections`."""


def load(target: str, spec: DetectorSpec) -> TorchvisionDetector:
    """Builds the model with the function at `target`, MODULE:FUNCTION, and loads `spec.weights`."""
    model, identity = build(target, spec)
    detector = TorchvisionDetector(model, name=target, **identity)
    detector.description = with_settings(detector.description, options=list(spec.detector_options))
    return detector


class TorchvisionDetector:
    """A frozen torchvision detector; see `extract.detectors.base.Detector`."""

    # torchvision's datasets and training scripts read images with PIL and leave them as they are stored.
    read_image = staticmethod(decode_unturned)

    def __init__(self, model: GeneralizedRCNN, name: str = "", **sha256: str):
        check(model)
        self.model = model.eval().requires_grad_(False)
        heads = model.roi_heads
        self.stages: tuple[float, ...] = (float(heads.proposal_matcher.high_threshold),)
        self.size = (int(model.transform.min_size[-1]), int(model.transform.max_size))
        logits, deltas, masks = self._probe()
        self.num_classes = logits.shape[1] - 1
        self.own_classes: OwnClasses | None = own_classes(model, self.num_classes)
        deltas_of_classes = deltas.reshape(-1, 4)
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
        proposals, objectness = self._propose(resized, feature_maps)
        selected = apply_selection(proposals, objectness, scales, select_proposals)
        heads = self.model.roi_heads
        pooled = heads.box_roi_pool(feature_maps, selected.boxes, resized.image_sizes)
        embedding = heads.box_head(pooled)
        logits, deltas = heads.box_predictor(embedding)
        boxes = self._refine(deltas, selected.boxes, resized.image_sizes)
        features = {"pooled": [pooled], "embedding": [embedding]}.get(level, [])
        rois = make_rois(
            image_ids,
            sizes,
            scales,
            selected,
            proposals=[selected.boxes],
            boxes=boxes,
            logits=[_background_last(logits)],
            features=features,
        )
        return TorchvisionOutput(rois, self.model, feature_maps, scales, boxes, resized.image_sizes, sizes)

    def fc_layers(self, level: str) -> list[Layers]:
        """See `extract.detectors.base.Detector.fc_layers`."""
        if level == "logits":
            return []
        heads, classifier = self.model.roi_heads, self._classifier()
        with capture_inputs([heads.box_head, heads.box_predictor]) as captured:
            logits = _background_last(self._probe()[0])
        (pooled,), (embedding,) = captured
        parameters = read_layers([classifier] if classifier else [])
        last = [(np.roll(weight, -1, 0), np.roll(bias, -1)) for weight, bias in parameters]
        if not verified_layers(last, embedding, logits):
            return []
        layers: Layers = [*read_layers(linear_modules(heads.box_head)), *last]
        if level == "pooled":
            layers = verified_layers(layers, pooled, logits)
        return [layers] if layers else []

    def state_dict_with_classifiers(self, classifiers: Layers) -> dict[str, Tensor]:
        """See `extract.detectors.base.Detector.state_dict_with_classifiers`."""
        background_first = [(np.roll(weight, 1, 0), np.roll(bias, 1)) for weight, bias in classifiers]
        return replace_classifiers(self.model, [self._classifier()], background_first)

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
        pixels = torch.from_numpy(image.pixels.copy()).to(self.device)
        return pixels.permute(2, 0, 1).float() / 255

    def _classifier(self) -> nn.Linear | None:
        """Returns the predictor's linear layer with K+1 outputs, None unless there is exactly one."""
        modules = linear_modules(self.model.roi_heads.box_predictor)
        found = [module for module in modules if module.out_features == self.num_classes + 1]
        return found[0] if len(found) == 1 else None

    @torch.no_grad()
    def _probe(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns logits, box deltas and mask logits of one synthetic RoI, for properties that are no attributes."""
        heads, channels = self.model.roi_heads, self.model.backbone.out_channels
        height, width = heads.box_roi_pool.output_size
        pooled = torch.linspace(-1, 1, channels * height * width, device=self.device)
        pooled = pooled.reshape(1, channels, height, width)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        if not heads.has_mask():
            return logits, deltas, None
        size = heads.mask_roi_pool.output_size
        masks = heads.mask_predictor(heads.mask_head(pooled.new_zeros(1, channels, *size)))
        return logits, deltas, masks

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


def _background_last(logits: Tensor) -> Tensor:
    """Moves background from the first to the last of K+1 columns."""
    return torch.cat([logits[:, 1:], logits[:, :1]], 1)


def _collapse_small(boxes: Tensor) -> Tensor:
    """Shrinks boxes (…, 4) xyxy with a side below `MIN_SIZE` to their first corner."""
    corner = boxes[..., :2]
    small = (boxes[..., 2:] - corner < MIN_SIZE).any(-1, keepdim=True)
    return torch.cat([corner, torch.where(small, corner, boxes[..., 2:])], -1)
