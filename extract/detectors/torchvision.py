"""torchvision's two-stage detectors (`FasterRCNN`, `MaskRCNN` and what is built of their parts).

The forward pass is torchvision's own, taken apart where proposals are chosen and where RoI features are pooled.
torchvision counts background as class 0; here it goes last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image

from extract.config import DetectorSpec
from extract.detectors import Choose, Image, import_builder, parse_options
from extract.devices import resolve_device
from extract.layout import Layers
from extract.rois import RoIs

MASK_BATCH = 1024
"""RoIs whose masks are computed at a time: bounds memory, which thousands of mask feature maps would fill."""


def load(target: str, spec: DetectorSpec) -> TorchvisionDetector:
    """Builds the model with the builder at `target` and loads `spec.weights` into it."""
    options = parse_options(spec.detector_options)
    builder = import_builder(target)
    try:
        model = builder(**options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"detector builder {target!r} failed with options {options}: {error}") from error
    if not isinstance(model, GeneralizedRCNN):
        raise ValueError(f"detector builder {target!r} returned a {type(model).__name__}, expected a GeneralizedRCNN")
    digest = load_weights(model, spec.weights)
    return TorchvisionDetector(model.to(resolve_device(spec.device)), name=target, weights_sha256=digest)


def load_weights(model: nn.Module, path: Path) -> str:
    """Loads .safetensors, or a .pth of tensors alone; returns the file's sha256.

    Raises FileNotFoundError, or ValueError naming the keys that are missing, unexpected or of another shape.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    state = _read_state(path)
    expected = model.state_dict()
    faults = [f"lacks {key}" for key in expected.keys() - state.keys()]
    faults += [f"has {key}, which the model has not" for key in state.keys() - expected.keys()]
    faults += [
        f"{key} has shape {tuple(state[key].shape)}, the model's {tuple(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    ]
    if faults:
        more = f" (and {len(faults) - 1} more differences)" if len(faults) > 1 else ""
        raise ValueError(f"{path}: weights of another model: {min(faults)}{more}")
    model.load_state_dict(state)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file: {error}") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever torch finds wrong, what helps is the same
        raise ValueError(
            f"{path}: not a file of tensors alone; save the model's state_dict() with torch.save"
        ) from None
    for wrapper in ("model", "state_dict"):
        state = state.get(wrapper, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: not a state_dict of tensors")
    # DistributedDataParallel puts its own name before every key.
    wrapped = all(key.startswith("module.") for key in state)
    return {key.removeprefix("module."): value for key, value in state.items()} if wrapped else state


class TorchvisionDetector:
    """A frozen torchvision detector; see `extract.detectors.Detector`."""

    def __init__(self, model: GeneralizedRCNN, name: str = "", weights_sha256: str = ""):
        self.model = model.eval().requires_grad_(False)
        heads = model.roi_heads
        self.device = next(model.parameters()).device
        self.stages = (float(heads.proposal_matcher.high_threshold),)
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
            "stage_average": "scores",
            "nms_iou": float(heads.nms_thresh),
            "class_agnostic_boxes": self.class_agnostic_boxes,
            "class_agnostic_masks": self.has_masks,
        }

    @torch.inference_mode()
    def rois(self, images: Sequence[Image], choose: Choose, level: str, masks: bool) -> list[RoIs]:
        """See `extract.detectors.Detector.rois`."""
        tensors = [self._tensor(image) for image in images]
        resized, _ = self.model.transform(tensors)
        features = self.model.backbone(resized.tensors)
        if isinstance(features, Tensor):
            features = {"0": features}
        scales = [self._scale(t, size) for t, size in zip(tensors, resized.image_sizes, strict=True)]
        proposals, objectness, added = self._choose(resized, features, scales, choose)
        heads = self.model.roi_heads
        pooled = heads.box_roi_pool(features, proposals, resized.image_sizes)
        embedding = heads.box_head(pooled)
        logits, deltas = heads.box_predictor(embedding)
        counts = [len(p) for p in proposals]
        boxes = self._refine(deltas, proposals, resized.image_sizes)
        stored = {"pooled": pooled, "embedding": embedding}.get(level)
        stored = [None] * len(images) if stored is None else stored.half().split(counts)
        logits = torch.cat([logits[:, 1:], logits[:, :1]], 1).split(counts)
        painted = self._masks(features, boxes, resized.image_sizes) if masks else [None] * len(images)
        return [
            self._rois(*columns)
            for columns in zip(
                images, scales, proposals, boxes, logits, objectness, stored, added, painted, strict=True
            )
        ]

    def head(self, level: str) -> list[Layers]:
        """See `extract.detectors.Detector.head`."""
        if level == "logits":
            return []
        linear = [m for m in self.model.roi_heads.box_head.modules() if isinstance(m, nn.Linear)]
        others = [m for m in self.model.roi_heads.box_head.modules() if isinstance(m, nn.Conv2d)]
        classifier = self._classifier()
        if classifier is None or (level == "pooled" and others):
            return []
        layers = [(m.weight, _bias(m)) for m in linear] if not others else []
        layers.append(tuple(torch.cat([p[1:], p[:1]]) for p in (classifier.weight, _bias(classifier))))
        return [[(w.float().cpu().numpy(), b.float().cpu().numpy()) for w, b in layers]]

    def _classifier(self) -> nn.Linear | None:
        """The one linear layer of the predictor that has K+1 outputs."""
        found = [
            m
            for m in self.model.roi_heads.box_predictor.modules()
            if isinstance(m, nn.Linear) and m.out_features == self.num_classes + 1
        ]
        return found[0] if len(found) == 1 else None

    @torch.inference_mode()
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
        pixels = torch.from_numpy(np.array(image.pixels)).to(self.device)
        return pixels.permute(2, 0, 1).float() / 255

    def _scale(self, original: Tensor, size: tuple[int, int]) -> Tensor:
        """(4,) factors from resized to original xyxy."""
        height, width = (o / r for o, r in zip(original.shape[-2:], size, strict=True))
        return torch.tensor([width, height, width, height], device=self.device)

    def _choose(
        self, images: ImageList, features: dict[str, Tensor], scales: list[Tensor], choose: Choose
    ) -> tuple[list[Tensor], list[Tensor], list[int]]:
        """Proposals in resized pixels, their objectness, and how many boxes were added behind them."""
        rpn = self.model.rpn
        maps = list(features.values())
        objectness, deltas = rpn.head(maps)
        anchors = rpn.anchor_generator(images, maps)
        per_level = [o[0].numel() for o in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        proposals = rpn.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
        found, scores = rpn.filter_proposals(proposals, objectness, images.image_sizes, per_level)
        chosen, chosen_scores, added = [], [], []
        for i, (boxes, score, scale) in enumerate(zip(found, scores, scales, strict=True)):
            keep, extra = choose(i, (boxes * scale).cpu().numpy())
            keep = torch.from_numpy(np.array(keep, np.int64)).to(self.device)
            extra = torch.from_numpy(np.array(extra, np.float32).reshape(-1, 4)).to(self.device)
            chosen.append(torch.cat([boxes[keep], extra / scale]))
            chosen_scores.append(torch.cat([score[keep], score.new_ones(len(extra))]))
            added.append(len(extra))
        return chosen, chosen_scores, added

    def _refine(self, deltas: Tensor, proposals: list[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Refined boxes in resized pixels, clipped: (R, 4), or (R, K, 4) without background's."""
        if self.class_agnostic_boxes:
            deltas = deltas[:, :4]
        # A batch without any RoI leaves the coder nothing to infer the number of columns from.
        boxes = self.model.roi_heads.box_coder.decode(deltas, proposals).reshape(len(deltas), deltas.shape[1] // 4, 4)
        boxes = boxes[:, 0] if self.class_agnostic_boxes else boxes[:, 1:]
        split = boxes.split([len(p) for p in proposals])
        return [clip_boxes_to_image(b, size) for b, size in zip(split, sizes, strict=True)]

    def _masks(self, features: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
        heads, painted = self.model.roi_heads, []
        for i, (regions, size) in enumerate(zip(boxes, sizes, strict=True)):
            maps = {name: level[i : i + 1] for name, level in features.items()}
            parts = [
                heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(maps, [part], [size])))[:, 0].sigmoid()
                for part in regions.split(MASK_BATCH)
            ]
            painted.append((torch.cat(parts) * 255).round().byte())
        return painted

    def _rois(
        self,
        image: Image,
        scale: Tensor,
        proposals: Tensor,
        boxes: Tensor,
        logits: Tensor,
        objectness: Tensor,
        features: Tensor | None,
        added: int,
        masks: Tensor | None,
    ) -> RoIs:
        count = len(proposals)
        is_gt = np.zeros(count, bool)
        is_gt[count - added :] = True
        return RoIs(
            image_id=image.image_id,
            height=image.pixels.shape[0],
            width=image.pixels.shape[1],
            proposals=(proposals * scale).cpu().numpy()[:, None],
            boxes=(boxes * scale).cpu().numpy(),
            logits=logits.cpu().numpy()[:, None],
            objectness=objectness.cpu().numpy(),
            features=None if features is None else features.cpu().numpy()[:, None],
            labels=np.full((count, 1), -1, np.int32),
            ious=np.zeros((count, 1), np.float32),
            gt_ids=np.full((count, 1), -1, np.int64),
            is_gt=is_gt,
            masks=None if masks is None else masks.cpu().numpy(),
        )


def _bias(layer: nn.Linear) -> Tensor:
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
