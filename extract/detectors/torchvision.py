"""torchvision's two-stage detectors (`FasterRCNN`, `MaskRCNN` and what is built of their parts).

The forward pass is torchvision's own, taken apart where proposals are chosen and where RoI features are pooled.
torchvision counts background as class 0; here it goes last. Boxes with a side of under 0.01 resized pixels are no
candidates to torchvision: here they lose their area, and `skip_empty` says that such boxes are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image

from extract.cache.format import Layers
from extract.config import DetectorSpec
from extract.detectors.base import Choose, Image, ImageDetections, import_function, parse_options
from extract.detectors.common import (
    capture_inputs,
    choose_proposals,
    linear_layers,
    make_rois,
    mask_batches,
    to_uint8,
    verified,
    with_classifiers,
)
from extract.detectors.weights import load_weights
from extract.rois import RoIs
from extract.utils.devices import resolve_device

INFERENCE = ("forward", "postprocess_detections")
"""What the adapter takes apart: derived RoI heads must not have changed it. How they train is their own affair."""

MIN_SIDE = 1e-2
"""In resized pixels; torchvision's own, of `postprocess_detections`."""


def load(target: str, spec: DetectorSpec) -> TorchvisionDetector:
    """Builds the model with the builder at `target` and loads `spec.weights` into it."""
    options = parse_options(spec.detector_options)
    builder = import_function(target, "detector builder")
    if spec.weights is None:
        raise ValueError(f"detector torchvision:{target}: give its --weights")
    if spec.config_file is not None:
        raise ValueError(f"config_file {spec.config_file}: torchvision's detectors are built by a function")
    try:
        model = builder(**options)
    except Exception as error:  # builders are code of any kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"detector builder {target!r} failed with options {options}: {reason}") from error
    if not isinstance(model, GeneralizedRCNN):
        raise ValueError(f"detector builder {target!r} returned a {type(model).__name__}, expected a GeneralizedRCNN")
    digest = load_weights(model, spec.weights)
    return TorchvisionDetector(model.to(resolve_device(spec.device)), name=target, weights_sha256=digest)


def check(model: GeneralizedRCNN) -> None:
    """Raises ValueError naming the RoI heads that detect in a way of their own, or more than boxes and masks."""
    heads = model.roi_heads
    kind = type(heads)
    if not isinstance(heads, RoIHeads) or any(getattr(kind, n) is not getattr(RoIHeads, n) for n in INFERENCE):
        raise ValueError(f"RoI heads are {kind.__name__}, expected RoIHeads with its own {' and '.join(INFERENCE)}")
    if heads.has_keypoint():
        raise ValueError(f"model is a {type(model).__name__}: it predicts key points, which are not handled")


class TorchvisionDetector:
    """A frozen torchvision detector; see `extract.detectors.base.Detector`."""

    def __init__(self, model: GeneralizedRCNN, name: str = "", weights_sha256: str = ""):
        check(model)
        self.model = model.eval().requires_grad_(False)
        heads = model.roi_heads
        self.device = next(model.parameters()).device
        self.stages = (float(heads.proposal_matcher.high_threshold),)
        self.size = (int(model.transform.min_size[-1]), int(model.transform.max_size))
        logits, deltas, masks = self._probe()
        self.num_classes = logits.shape[1] - 1
        per_class = deltas.reshape(-1, 4)
        self.class_agnostic_boxes = bool((per_class == per_class[0]).all())
        # An expanded channel axis (stride 0) is one class-agnostic mask under torchvision's per-class interface.
        # Masks are of refined boxes, so a class-agnostic mask needs a class-agnostic box.
        one_mask = masks is not None and (masks.shape[1] == 1 or masks.stride(1) == 0)
        self.has_masks = one_mask and self.class_agnostic_boxes
        self.description = {
            "name": name or type(model).__name__,
            "framework": "torchvision",
            "framework_version": torchvision.__version__,
            "weights_sha256": weights_sha256,
            "activation": "softmax",
            "stage_average": "scores",
            "nms_iou": float(heads.nms_thresh),
            "skip_empty": True,
            "class_agnostic_boxes": self.class_agnostic_boxes,
            "class_agnostic_masks": self.has_masks,
        }

    def forward(self, images: Sequence[Image], level: str, choose: Choose | None = None) -> _ForwardOutput:
        """See `extract.detectors.base.Detector.forward`."""
        return self.forward_preprocessed(
            [self._tensor(image) for image in images], [i.image_id for i in images], level, choose
        )

    @torch.no_grad()
    def forward_preprocessed(
        self, tensors: list[Tensor], image_ids: Sequence[int], level: str, choose: Choose | None = None
    ) -> _ForwardOutput:
        """`forward` of what torchvision's models take: images (3, H, W) float from 0 to 1 on the detector's device."""
        resized, _ = self.model.transform(tensors)
        features = self.model.backbone(resized.tensors)
        if isinstance(features, Tensor):
            features = {"0": features}
        scales = [self._scale(t, size) for t, size in zip(tensors, resized.image_sizes, strict=True)]
        proposals, objectness, added = choose_proposals(*self._proposals(resized, features), scales, choose)
        heads = self.model.roi_heads
        pooled = heads.box_roi_pool(features, proposals, resized.image_sizes)
        embedding = heads.box_head(pooled)
        logits, deltas = heads.box_predictor(embedding)
        counts = [len(p) for p in proposals]
        boxes = self._refine(deltas, proposals, resized.image_sizes)
        stored = {"pooled": pooled, "embedding": embedding}.get(level)
        stored = [None] * len(tensors) if stored is None else [[f] for f in stored.split(counts)]
        logits = torch.cat([logits[:, 1:], logits[:, :1]], 1).split(counts)
        sizes = [tuple(t.shape[-2:]) for t in tensors]
        rois = [
            make_rois(image_id, size, scale, [p], b, [z], o, f, n)
            for image_id, size, scale, p, b, z, o, f, n in zip(
                image_ids, sizes, scales, proposals, boxes, logits, objectness, stored, added, strict=True
            )
        ]
        return _ForwardOutput(self.model, rois, features, scales, boxes, resized.image_sizes, sizes)

    def fc_layers(self, level: str) -> list[Layers]:
        """See `extract.detectors.base.Detector.fc_layers`."""
        if level == "logits":
            return []
        heads = self.model.roi_heads
        classifier = self._classifier()
        linears = [m for m in heads.box_head.modules() if isinstance(m, nn.Linear)]
        with capture_inputs([heads.box_head, heads.box_predictor]) as seen:
            logits, *_ = self._probe()
        (pooled,), (embedding,) = seen
        logits = torch.cat([logits[:, 1:], logits[:, :1]], 1)
        last = [tuple(_background_last(p) for p in pair) for pair in linear_layers([classifier] if classifier else [])]
        if not verified(last, embedding, logits):
            return []
        whole = [*linear_layers(linears), *last]
        if level == "pooled":
            whole = verified(whole, pooled, logits)
        return [whole] if whole else []

    def state_with(self, classifiers: Layers) -> dict[str, Tensor]:
        """See `extract.detectors.base.Detector.state_with`."""
        first = [tuple(np.concatenate([p[-1:], p[:-1]]) for p in pair) for pair in classifiers]
        return with_classifiers(self.model, [self._classifier()], first)

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
        return other

    def _classifier(self) -> nn.Linear | None:
        """The one linear layer of the predictor that has K+1 outputs."""
        found = [
            m
            for m in self.model.roi_heads.box_predictor.modules()
            if isinstance(m, nn.Linear) and m.out_features == self.num_classes + 1
        ]
        return found[0] if len(found) == 1 else None

    @torch.no_grad()
    def _probe(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits, box deltas and mask logits of one made-up RoI: what is not an attribute of every model."""
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

    def _tensor(self, image: Image) -> Tensor:
        pixels = torch.from_numpy(image.pixels.copy()).to(self.device)
        return pixels.permute(2, 0, 1).float() / 255

    def _scale(self, original: Tensor, size: tuple[int, int]) -> Tensor:
        """(4,) factors from resized to original xyxy."""
        height, width = (o / r for o, r in zip(original.shape[-2:], size, strict=True))
        return torch.tensor([width, height, width, height], device=self.device)

    def _proposals(self, images: ImageList, features: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Proposals in resized pixels and their objectness."""
        rpn = self.model.rpn
        maps = list(features.values())
        objectness, deltas = rpn.head(maps)
        anchors = rpn.anchor_generator(images, maps)
        per_level = [o[0].numel() for o in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        proposals = rpn.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
        return rpn.filter_proposals(proposals, objectness, images.image_sizes, per_level)

    def _refine(self, deltas: Tensor, proposals: list[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Refined boxes in resized pixels, clipped: (R, 4), or (R, K, 4) without background's."""
        if self.class_agnostic_boxes:
            deltas = deltas[:, :4]
        # A batch without any RoI leaves the coder nothing to infer the number of columns from.
        boxes = self.model.roi_heads.box_coder.decode(deltas, proposals).reshape(len(deltas), deltas.shape[1] // 4, 4)
        boxes = boxes[:, 0] if self.class_agnostic_boxes else boxes[:, 1:]
        split = boxes.split([len(p) for p in proposals])
        return [_without_slivers(clip_boxes_to_image(b, size)) for b, size in zip(split, sizes, strict=True)]


class _ForwardOutput:
    """See `extract.detectors.base.ForwardOutput`."""

    def __init__(
        self,
        model: GeneralizedRCNN,
        rois: list[RoIs],
        features: dict[str, Tensor],
        scales: list[Tensor],
        boxes: list[Tensor],
        resized_sizes: list[tuple[int, int]],
        original_sizes: list[tuple[int, int]],
    ):
        self.rois = rois
        self._model, self._features, self._scales, self._boxes = model, features, scales, boxes
        self._resized_sizes, self._original_sizes = resized_sizes, original_sizes

    @torch.no_grad()
    def masks(self) -> list[np.ndarray]:
        """See `extract.detectors.base.ForwardOutput.masks`."""
        painted = []
        for i, regions in enumerate(self._boxes):
            parts = [self._mask_logits(i, part)[:, 0].sigmoid() for part in mask_batches(regions)]
            painted.append(to_uint8(torch.cat(parts)))
        return painted

    @torch.no_grad()
    def to_framework(self, detected: Sequence[ImageDetections]) -> list[dict[str, Tensor]]:
        """See `extract.detectors.base.ForwardOutput.to_framework`: dicts of boxes, labels (from 1), scores and masks."""
        found = []
        for i, (one, scale) in enumerate(zip(detected, self._scales, strict=True)):
            boxes, labels, scores = (torch.from_numpy(a).to(scale.device) for a in one)
            result = {"boxes": boxes / scale, "labels": labels + 1, "scores": scores}
            if self._model.roi_heads.has_mask():
                logits = self._mask_logits(i, result["boxes"])
                (result["masks"],) = maskrcnn_inference(logits, [result["labels"]])
            found.append(result)
        return self._model.transform.postprocess(found, self._resized_sizes, self._original_sizes)

    def _mask_logits(self, image: int, boxes: Tensor) -> Tensor:
        heads = self._model.roi_heads
        maps = {name: level[image : image + 1] for name, level in self._features.items()}
        pooled = heads.mask_roi_pool(maps, [boxes], [self._resized_sizes[image]])
        return heads.mask_predictor(heads.mask_head(pooled))


def _background_last(parameter: np.ndarray) -> np.ndarray:
    """(K+1, …) with background first → last."""
    return np.concatenate([parameter[1:], parameter[:1]])


def _without_slivers(boxes: Tensor) -> Tensor:
    """(…, 4) xyxy, those with a side of under `MIN_SIDE` shrunk to their first corner."""
    corner = boxes[..., :2]
    sliver = (boxes[..., 2:] - corner < MIN_SIDE).any(-1, keepdim=True)
    return torch.cat([corner, torch.where(sliver, corner, boxes[..., 2:])], -1)
