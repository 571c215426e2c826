"""mmdetection's two-stage detectors: a standard RoI head, a cascade, or a Hybrid Task Cascade.

The forward pass is mmdetection's own, taken apart where proposals are chosen and where RoI features reach the box
heads; backbone, neck and proposal network may be any. mmdetection counts background last, as it is done here. Where a
config asks for soft-NMS, plain suppression at the same IoU takes its place.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import mmdet
import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.test_time_augs import merge_aug_masks
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi, get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

from extract.cache.format import Layers
from extract.config import DetectorSpec
from extract.detectors.base import Choose, Image, ImageDetections
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
from extract.detectors.mmdet_config import (
    ROI_HEADS,
    build,
    digest,
    logits_of,
    matching_ious,
    read_config,
    reason,
    resize_of,
    stages_of,
)
from extract.detectors.weights import load_weights
from extract.rois import RoIs
from extract.utils.devices import resolve_device

logger = logging.getLogger(__name__)


def load(target: str, spec: DetectorSpec) -> MmdetDetector:
    """Builds the model of `spec.config_file` and loads `spec.weights` into it."""
    if target:
        raise ValueError(f"detector mmdet:{target}: expected mmdet alone, its --config-file says what to build")
    for option, value in (("--config-file", spec.config_file), ("--weights", spec.weights)):
        if value is None:
            raise ValueError(f"detector mmdet: give its {option}")
    config = read_config(spec.config_file, spec.detector_options)
    try:
        detector = MmdetDetector(*build(config), name=spec.config_file.stem, config_sha256=digest(config))
    except Exception as error:  # constructors raise what they like
        raise ValueError(f"{spec.config_file}: {reason(error)}") from error
    detector.description["weights_sha256"] = load_weights(detector.model, spec.weights)
    detector.model.to(resolve_device(spec.device))
    kind = (detector.model.roi_head.test_cfg.nms or {}).get("type", "nms")
    kind = getattr(kind, "__name__", kind)  # configs in pure Python hold the function itself
    if kind != "nms":
        iou = detector.description["nms_iou"]
        logger.warning("%s: suppression is plain NMS at IoU %g, the config's is %s", spec.config_file, iou, kind)
    return detector


class MmdetDetector:
    """A frozen mmdetection detector; see `extract.detectors.base.Detector`."""

    def __init__(self, model: TwoStageDetector, pipeline: Compose, name: str = "", config_sha256: str = ""):
        self.model, self._pipeline = model.eval().requires_grad_(False), pipeline
        self._heads = stages_of(model.roi_head.bbox_head)
        last = self._heads[-1]
        self.num_classes = int(last.num_classes)
        self.stages = matching_ious(model.roi_head.train_cfg, len(self._heads))
        self.size = tuple(sorted(resize_of(pipeline).scale))
        masks = stages_of(model.roi_head.mask_head) if model.with_mask else []
        one_mask = bool(masks) and all(getattr(head, "class_agnostic", False) for head in masks)
        # Masks are of refined boxes, so a class-agnostic mask needs a class-agnostic box.
        self.has_masks = one_mask and bool(last.reg_class_agnostic)
        nms = model.roi_head.test_cfg.nms or {"iou_threshold": 1.0}  # without nms nothing is suppressed
        self.description = {
            "name": name or type(model).__name__,
            "framework": "mmdet",
            "framework_version": mmdet.__version__,
            "weights_sha256": "",
            "config_sha256": config_sha256,
            "activation": "softmax",
            "stage_average": "logits",
            "nms_iou": float(nms.get("iou_threshold", nms.get("iou_thr", 0.5))),
            "class_agnostic_boxes": bool(last.reg_class_agnostic),
            "class_agnostic_masks": self.has_masks,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def forward(self, images: Sequence[Image], level: str, choose: Choose | None = None) -> _ForwardOutput:
        """See `extract.detectors.base.Detector.forward`."""
        return self.forward_preprocessed(self._preprocess(images), [image.image_id for image in images], level, choose)

    @torch.no_grad()
    def forward_preprocessed(
        self, batch: dict, image_ids: Sequence[int], level: str, choose: Choose | None = None
    ) -> _ForwardOutput:
        """`forward` of what mmdetection's models take after their preprocessing: `inputs` and `data_samples`."""
        scene = _Scene(self.model, batch)
        found = self.model.rpn_head.predict(scene.maps, scene.samples, rescale=False)
        scales = [1 / f.scores.new_tensor(s.scale_factor).repeat(2) for f, s in zip(found, scene.samples, strict=True)]
        proposals = [get_box_tensor(f.bboxes) for f in found]
        proposals, objectness, added = choose_proposals(proposals, [f.scores for f in found], scales, choose)
        kept = {"pooled": self._heads, "embedding": [head.fc_cls for head in self._heads]}.get(level, [])
        with capture_inputs(kept) as seen:
            regions, logits, boxes = self._stages(scene, proposals, added)
        features = [inputs.split([len(p) for p in proposals]) for (inputs,) in seen]
        rois = []
        for i, (image_id, sample) in enumerate(zip(image_ids, scene.samples, strict=True)):
            region, logit, feature = ([stage[i] for stage in stages] for stages in (regions, logits, features))
            rest = region, boxes[i], logit, objectness[i], feature or None, added[i]
            rois.append(make_rois(image_id, sample.ori_shape, scales[i], *rest))
        return _ForwardOutput(rois, scene, scales, boxes)

    @torch.no_grad()
    def fc_layers(self, level: str) -> list[Layers]:
        """See `extract.detectors.base.Detector.fc_layers`."""
        stages = [_layers(head, level) for head in self._heads] if level != "logits" else []
        return stages if all(stages) else []

    def state_with(self, classifiers: Layers) -> dict[str, Tensor]:
        """See `extract.detectors.base.Detector.state_with`."""
        return with_classifiers(self.model, [head.fc_cls for head in self._heads], classifiers)

    def to_arrays(self, result: DetDataSample) -> tuple[ImageDetections, np.ndarray | None]:
        """See `extract.detectors.base.Detector.to_arrays`."""
        found = result.pred_instances.cpu()
        masks = found.masks.numpy() > 0 if "masks" in found else None
        return ImageDetections(found.bboxes.numpy(), found.labels.numpy(), found.scores.numpy()), masks

    def resized(self, shorter: int, longer: int) -> MmdetDetector:
        """See `extract.detectors.base.Detector.resized`."""
        other = copy.copy(self)
        other._pipeline, other.size = copy.deepcopy(self._pipeline), (shorter, longer)
        resize_of(other._pipeline).scale = (longer, shorter)
        return other

    def _preprocess(self, images: Sequence[Image]) -> dict:
        """What the config's test pipeline, which takes BGR, and the model make of the images."""
        arrays = [np.ascontiguousarray(image.pixels[..., ::-1]) for image in images]
        packed = [self._pipeline({"img": a, "img_id": i.image_id}) for a, i in zip(arrays, images, strict=True)]
        return self.model.data_preprocessor({key: [one[key] for one in packed] for key in packed[0]}, False)

    def _stages(self, scene: _Scene, proposals: list[Tensor], added: list[int]) -> tuple[list, list, list[Tensor]]:
        """Per stage and image the regions (R, 4) and logits (R, K+1), and per image the last stage's boxes.

        All boxes are in resized pixels; the last are (R, 4), or (R, K, 4) of a class-specific regressor.
        """
        counts = [len(p) for p in proposals]
        regions, logits = [proposals], []
        for stage, head in enumerate(self._heads):
            scores, deltas = scene.box_head(stage, regions[-1])
            logits.append(logits_of(head, scores).split(counts))
            images = list(zip(regions[-1], deltas.split(counts), scene.samples, logits[-1], added, strict=True))
            if stage < len(self._heads) - 1:
                regions.append([_next_regions(head, *image) for image in images])
        return regions, logits, [_decode(head, *image[:3]) for image in images]


class _Scene:
    """A batch of images as the RoI head sees it.

    Attributes:
        maps: feature maps, (N, C, H, W) of each level.
        samples: of each image, where its sizes before and after resizing stand.
    """

    def __init__(self, model: TwoStageDetector, batch: dict):
        self.model, self.samples = model, batch["data_samples"]
        self.maps = model.extract_feat(batch["inputs"])
        self._cascade, self._hybrid = (isinstance(model.roi_head, kind) for kind in ROI_HEADS[1:])
        self._semantic = None
        if self._hybrid and model.roi_head.with_semantic:
            _, self._semantic = model.roi_head.semantic_head(self.maps)

    def image(self, i: int) -> _Scene:
        """That of one image."""
        one, i = copy.copy(self), slice(i, i + 1)
        one.maps, one.samples = tuple(level[i] for level in self.maps), self.samples[i]
        one._semantic = None if self._semantic is None else self._semantic[i]
        return one

    def box_head(self, stage: int, regions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A stage's scores and box deltas of all images' regions (R, 4)."""
        stage, semantic = [stage] * self._cascade, [self._semantic] * self._hybrid
        found = self.model.roi_head._bbox_forward(*stage, self.maps, bbox2roi(regions), *semantic)
        return found["cls_score"], found["bbox_pred"]

    def masks(self, boxes: Tensor) -> Tensor:
        """Probabilities (R, 1, M, M) of class-agnostic masks of one image's boxes (R, 4), averaged over stages."""
        head, rois = self.model.roi_head, bbox2roi([boxes])
        if self._hybrid:  # whose last stage alone speaks for all
            logits = head._mask_forward(-1, self.maps, rois, self._semantic, training=False)["mask_preds"]
        else:
            stages = [[stage] for stage in range(head.num_stages)] if self._cascade else [[]]
            logits = [head._mask_forward(*stage, self.maps, rois)["mask_preds"] for stage in stages]
        return merge_aug_masks([one.sigmoid() for one in logits], {})

    def paint(self, found: InstanceData) -> InstanceData:
        """One image's instances, boxes in resized pixels → with masks, boxes in original pixels."""
        metas, semantic = [sample.metainfo for sample in self.samples], [self._semantic] * self._hybrid
        return self.model.roi_head.predict_mask(self.maps, *semantic, metas, [found], rescale=True)[0]


class _ForwardOutput:
    """See `extract.detectors.base.ForwardOutput`."""

    def __init__(self, rois: list[RoIs], scene: _Scene, scales: list[Tensor], boxes: list[Tensor]):
        self.rois, self._scene, self._scales, self._boxes = rois, scene, scales, boxes

    @torch.no_grad()
    def masks(self) -> list[np.ndarray]:
        """See `extract.detectors.base.ForwardOutput.masks`."""
        split = [(self._scene.image(i), mask_batches(boxes)) for i, boxes in enumerate(self._boxes)]
        return [to_uint8(torch.cat([scene.masks(part)[:, 0] for part in parts])) for scene, parts in split]

    @torch.no_grad()
    def to_framework(self, detected: Sequence[ImageDetections]) -> list[DetDataSample]:
        """See `extract.detectors.base.ForwardOutput.to_framework`: those of mmdetection's `inference_detector`."""
        model, found = self._scene.model, []
        for i, (one, scale) in enumerate(zip(detected, self._scales, strict=True)):
            boxes, labels, scores = (torch.from_numpy(a).to(scale.device) for a in one)
            instances = InstanceData(bboxes=boxes / scale if model.with_mask else boxes, labels=labels, scores=scores)
            found.append(self._scene.image(i).paint(instances) if model.with_mask else instances)
        return model.add_pred_to_datasample([sample.new() for sample in self._scene.samples], found)


def _next_regions(
    head: BBoxHead, regions: Tensor, deltas: Tensor, sample: DetDataSample, logits: Tensor, added: int
) -> Tensor:
    """What the next stage looks at, (R, 4): the refined regions, but those that were added stay."""
    refined = get_box_tensor(head.regress_by_class(regions, logits[:, :-1].argmax(1), deltas, sample.metainfo))
    own = len(regions) - added
    return torch.cat([refined[:own], regions[own:]])


def _decode(head: BBoxHead, regions: Tensor, deltas: Tensor, sample: DetDataSample) -> Tensor:
    """Refined boxes, clipped: (R, 4), or (R, K, 4) of a class-specific regressor."""
    each = 1 if head.reg_class_agnostic else head.num_classes
    boxes = head.bbox_coder.decode(regions.repeat_interleave(each, 0), deltas.reshape(-1, 4), sample.img_shape)
    boxes = get_box_tensor(boxes)
    return boxes if head.reg_class_agnostic else boxes.reshape(-1, each, 4)


def _layers(head: BBoxHead, level: str) -> Layers:
    """One stage's layers from features to logits if they are all fully connected, proven on a made-up RoI; else []."""
    shape = (1, head.in_channels, *head.roi_feat_size)
    pooled = torch.linspace(-1, 1, int(np.prod(shape)), device=next(head.parameters()).device).reshape(shape)
    with capture_inputs([head.fc_cls]) as seen:
        logits = logits_of(head, head(pooled)[0])
    ((embedding,),) = seen
    hidden = [*getattr(head, "shared_fcs", []), *getattr(head, "cls_fcs", [])]
    whole = linear_layers([*hidden, head.fc_cls])
    found = verified(whole[-1:], embedding, logits)
    return found and (whole if level == "embedding" else verified(whole, pooled, logits))
