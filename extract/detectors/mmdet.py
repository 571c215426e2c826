"""Adapter of mmdetection's two-stage detectors: a standard RoI head, a cascade, or a Hybrid Task Cascade.

It runs the steps of mmdetection's own inference, but selects proposals and keeps the inputs of the box heads in
between; backbone, neck and RPN may be any. Background is mmdetection's last class, as it is here. Where a config has
soft-NMS, NMS at the same IoU threshold replaces it, and `load` logs other differences.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import mmdet
import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.models.detectors import TwoStageDetector
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor

from extract.cache.format import Layers
from extract.config import DetectorSpec
from extract.data.decoding import ImageReader, decode_image
from extract.detectors.base import Image, ImageDetections, OwnClasses, SelectProposals, select_no_proposals
from extract.detectors.common import (
    apply_selection,
    capture_inputs,
    check_resizable,
    make_rois,
    no_proposals,
    overridden,
)
from extract.detectors.fc_layers import as_maps, describe_pooled, replace_classifiers
from extract.detectors.identity import describe_settings, with_settings
from extract.detectors.mmdet_classes import dataset_meta, own_classes
from extract.detectors.mmdet_config import (
    build,
    config_sha256,
    find_resize,
    inference_differences,
    list_stages,
    matching_ious,
    nms_iou,
    normalisation,
    one_line,
    own_thresholds,
    read_config,
)
from extract.detectors.mmdet_images import swap_colours
from extract.detectors.mmdet_output import MmdetOutput
from extract.detectors.mmdet_roi_head import BatchFeatures
from extract.detectors.mmdet_stages import layers_after_convolutions, run_stages, stage_fc_layers
from extract.detectors.mmdet_weights import convert_names
from extract.detectors.precision import HalfPrecisionParts
from extract.detectors.summary import DetectorSummary
from extract.detectors.weights import load_weights
from extract.utils.devices import resolve_device

logger = logging.getLogger(__name__)


def load(target: str, spec: DetectorSpec) -> MmdetDetector:
    """Builds the model of `spec.config_file` and loads `spec.weights` into it; `target` is ""."""
    if target:
        raise ValueError(f"detector mmdet:{target}: expected mmdet alone, its --config-file names the model")
    if spec.config_file is None:
        raise ValueError("detector mmdet: give its --config-file")
    if spec.weights is None:
        raise ValueError("detector mmdet: give its --weights")
    config = read_config(spec.config_file, spec.detector_options)
    try:
        detector = MmdetDetector(*build(config), name=spec.config_file.stem, config_sha256=config_sha256(config))
    except Exception as error:  # constructors may raise anything
        raise ValueError(f"{spec.config_file}: {one_line(error)}") from error
    loaded = load_weights(detector.model, spec.weights, convert_names)
    detector.description |= loaded.identity
    detector.dataset_meta = dataset_meta(loaded.meta)
    names = detector.dataset_meta, spec.weights, config, spec.config_file
    detector.own_classes = own_classes(*names, detector.num_classes)
    detector.description = with_settings(detector.description, options=list(spec.detector_options))
    detector.model.to(resolve_device(spec.device))
    roi_head, iou = detector.model.roi_head, detector.description["nms_iou"]
    for difference in inference_differences(roi_head, iou, detector.has_masks):
        logger.warning("%s: %s", spec.config_file, difference)
    return detector


class MmdetDetector(DetectorSummary):
    """A frozen mmdetection detector; see `extract.detectors.base.Detector`.

    Attributes:
        dataset_meta: classes and palette in the checkpoint, as far as it has them.
    """

    def __init__(
        self,
        model: TwoStageDetector,
        pipeline: Compose,
        read_image: ImageReader = decode_image,
        name: str = "",
        config_sha256: str = "",
    ):
        self.model, self._pipeline = model.eval().requires_grad_(False), pipeline
        self.read_image = read_image
        self._heads = list_stages(model.roi_head.bbox_head)
        self._first = layers_after_convolutions(self._heads)
        last = self._heads[-1]
        self.num_classes = int(last.num_classes)
        self.dataset_meta: dict[str, Any] = {}
        self.own_classes: OwnClasses | None = None
        self.own_thresholds = own_thresholds(model.roi_head.test_cfg)
        self.stages = matching_ious(model.roi_head.train_cfg, len(self._heads))
        shorter, longer = sorted(find_resize(pipeline).scale)
        self.size = (shorter, longer)
        mask_heads = list_stages(model.roi_head.mask_head) if model.with_mask else []
        one_mask = bool(mask_heads) and all(getattr(head, "class_agnostic", False) for head in mask_heads)
        # A cache has one mask per refined box: class-agnostic masks need class-agnostic boxes.
        self.has_masks = one_mask and bool(last.reg_class_agnostic)
        self.description: dict[str, Any] = {
            "name": name or type(model).__name__,
            "framework": "mmdet",
            "framework_version": mmdet.__version__,
            "weights_sha256": "",
            "config_sha256": config_sha256,
            "activation": "softmax",
            "stage_average": "logits",
            "nms_iou": nms_iou(model.roi_head.test_cfg.nms),
            "class_agnostic_boxes": bool(last.reg_class_agnostic),
            "class_agnostic_masks": self.has_masks,
            "settings": describe_settings(self.size, *normalisation(model.data_preprocessor)),
            **describe_pooled(self._first),
        }

    @property
    def device(self) -> torch.device:
        """See `extract.detectors.base.Detector.device`."""
        return next(self.model.parameters()).device

    def forward(
        self, images: Sequence[Image], level: str, select_proposals: SelectProposals | None = None
    ) -> MmdetOutput:
        """See `extract.detectors.base.Detector.forward`."""
        inputs = self._preprocess(images)
        return self.forward_preprocessed(inputs, [image.image_id for image in images], level, select_proposals)

    @torch.no_grad()
    def own_inference(self, image: Image, score_threshold: float) -> ImageDetections:
        """See `extract.detectors.base.Detector`; with NMS of the config's IoU in place of any other kind."""
        heads, inputs = self.model.roi_head, self._preprocess([image])
        no_masks = {"mask_head": None} if self.model.with_mask else {}
        nms = {"type": "nms", "iou_threshold": self.description["nms_iou"]}
        with overridden(heads.test_cfg, score_thr=score_threshold, nms=nms), overridden(heads, **no_masks):
            (result,) = self.model.predict(inputs["inputs"], inputs["data_samples"])
        return self.to_arrays(result)[0]

    @torch.no_grad()
    def forward_preprocessed(
        self,
        inputs: dict[str, Any],
        image_ids: Sequence[int],
        level: str,
        select_proposals: SelectProposals | None = None,
    ) -> MmdetOutput:
        """Runs `forward` on the output of mmdetection's `data_preprocessor`: `inputs` and `data_samples`."""
        features = BatchFeatures(self.model, inputs)
        samples = features.data_samples
        scales = [1 / inputs["inputs"].new_tensor(sample.scale_factor).repeat(2) for sample in samples]
        if select_proposals is select_no_proposals:
            boxes, objectness = no_proposals(len(samples), inputs["inputs"])
        else:
            proposals = self.model.rpn_head.predict(features.feature_maps, samples, rescale=False)
            boxes, objectness = [get_box_tensor(p.bboxes) for p in proposals], [p.scores for p in proposals]
        selected = apply_selection(boxes, objectness, scales, select_proposals)
        pooled = [first or head for first, head in zip(self._first, self._heads, strict=True)]
        levels = {"pooled": pooled, "embedding": [head.fc_cls for head in self._heads], "logits": []}
        with capture_inputs(levels[level]) as captured:
            stages = run_stages(features, self._heads, selected)
        kept = [calls[0] for calls in captured]
        if level == "pooled" and all(self._first):
            kept = [as_maps(entering, head.roi_feat_size) for entering, head in zip(kept, self._heads, strict=True)]
        rois = make_rois(
            image_ids,
            [sample.ori_shape[:2] for sample in samples],
            scales,
            selected,
            proposals=stages.proposals,
            boxes=stages.boxes,
            logits=stages.logits,
            features=kept,
        )
        return MmdetOutput(rois, features, scales, stages.boxes)

    def half_precision_parts(self) -> HalfPrecisionParts:
        """See `extract.detectors.precision.HalfPrecisionParts`."""
        model, heads = self.model, self.model.roi_head
        chains = [[model.backbone, *([model.neck] if model.with_neck else [])]]
        chains += [[heads.semantic_head]] if getattr(heads, "with_semantic", False) else []
        masks = list_stages(heads.mask_head) if model.with_mask else []
        return HalfPrecisionParts(chains, [model.rpn_head, *self._heads, *masks])

    @torch.no_grad()
    def fc_layers(self, level: str) -> list[Layers]:
        """See `extract.detectors.base.Detector.fc_layers`."""
        if level == "logits":
            return []
        layers = [stage_fc_layers(head, level, first) for head, first in zip(self._heads, self._first, strict=True)]
        return layers if all(layers) else []

    def state_dict_with_classifiers(self, classifiers: Layers) -> dict[str, Tensor]:
        """See `extract.detectors.base.Detector.state_dict_with_classifiers`."""
        return replace_classifiers(self.model, [head.fc_cls for head in self._heads], classifiers)

    def to_arrays(self, result: DetDataSample) -> tuple[ImageDetections, np.ndarray | None]:
        """See `extract.detectors.base.Detector.to_arrays`."""
        instances = result.pred_instances.cpu()
        masks = instances.masks.numpy() > 0 if "masks" in instances else None
        boxes, labels, scores = (getattr(instances, name).numpy() for name in ("bboxes", "labels", "scores"))
        return ImageDetections(boxes, labels, scores), masks

    def resized(self, shorter: int, longer: int) -> MmdetDetector:
        """See `extract.detectors.base.Detector.resized`."""
        other = copy.copy(self)
        other._pipeline, other.size = copy.deepcopy(self._pipeline), (shorter, longer)
        other.description = with_settings(self.description, input_size=[shorter, longer])
        find_resize(other._pipeline).scale = (longer, shorter)
        return other

    def _preprocess(self, images: Sequence[Image]) -> dict[str, Any]:
        """Applies the config's test pipeline, which takes BGR, and the model's `data_preprocessor`."""
        for image in images:
            check_resizable(image, self.size)
        arrays = [np.ascontiguousarray(swap_colours(image.pixels)) for image in images]
        packed = [self._pipeline({"img": a, "img_id": i.image_id}) for a, i in zip(arrays, images, strict=True)]
        return self.model.data_preprocessor({key: [image[key] for image in packed] for key in packed[0]}, False)
