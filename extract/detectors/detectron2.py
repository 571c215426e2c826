"""Adapter of detectron2's two-stage detectors: a `GeneralizedRCNN` with standard, cascade or C4 RoI heads.

It runs the steps of detectron2's own inference, but selects proposals and keeps RoI features in between.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
from detectron2.data.detection_utils import convert_PIL_to_numpy, read_image
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from PIL import Image as PILImage
from torch import Tensor, nn

from extract.cache.format import Layers
from extract.config import DetectorSpec
from extract.data.decoding import naming_image
from extract.detectors.base import Image, ImageDetections, OwnClasses, SelectProposals, select_no_proposals
from extract.detectors.common import apply_selection, check_resizable, make_rois, no_proposals, scale_to_original
from extract.detectors.detectron2_classes import own_classes
from extract.detectors.detectron2_config import build, naming_errors
from extract.detectors.detectron2_config import registered_dataset as registered_dataset
from extract.detectors.detectron2_output import Detectron2Output
from extract.detectors.detectron2_scoring import boxes_only, find_scoring
from extract.detectors.detectron2_stages import BoxHeads, activation
from extract.detectors.fc_layers import describe_pooled, replace_classifiers
from extract.detectors.identity import describe_settings, with_settings
from extract.detectors.precision import HalfPrecisionParts
from extract.detectors.summary import DetectorSummary
from extract.rois import SCORES_WITH_OBJECTNESS

logger = logging.getLogger(__name__)
IMAGE_FORMATS = ("BGR", "RGB", "L", "YUV-BT.601")
"""Values of `INPUT.FORMAT`."""


def load(target: str, spec: DetectorSpec) -> Detectron2Detector:
    """Builds the model of `spec.config_file`, a .yaml or a LazyConfig .py, and loads its weights.

    `target` is "" or MODULE:FUNCTION. The function is called with the config before a .yaml is read; for a LazyConfig
    the module is imported and the function is not called.
    """
    if spec.config_file is None:
        raise ValueError("detector detectron2: give its --config-file, a .yaml or a LazyConfig .py")
    built, sha256 = build(target, spec, spec.config_file)
    with naming_errors(spec.config_file):
        name = spec.config_file.stem
        detector = Detectron2Detector(built.model, built.resize, built.image_format, name=name, **sha256)
        detector.own_classes = own_classes(built.datasets, detector.num_classes)
    detector.description = with_settings(detector.description, options=list(spec.detector_options))
    if difference := detector.inference_difference:
        logger.warning("%s: %s", spec.config_file, difference)
    return detector


class Detectron2Detector(DetectorSummary):
    """A frozen detectron2 detector; see `extract.detectors.base.Detector`.

    C4 heads have no fully connected layers: "pooled" is the output of res5 for a RoI, "embedding" its mean.
    """

    def __init__(
        self,
        model: GeneralizedRCNN,
        resize: ResizeShortestEdge,
        image_format: str = "BGR",
        name: str = "",
        **sha256: str,
    ):
        if image_format not in IMAGE_FORMATS:
            raise ValueError(f"input format is {image_format!r}, expected one of {', '.join(IMAGE_FORMATS)}")
        if len(set(resize.short_edge_length)) != 1:
            raise ValueError(f"shorter edge of test images is {[*resize.short_edge_length]}, expected one length")
        self.model = model.eval().requires_grad_(False)
        self._resize, self._image_format = resize, image_format
        self.size = (int(resize.short_edge_length[0]), int(resize.max_size))
        self._box_heads = BoxHeads(model)
        self.stages = self._box_heads.matching_ious
        last = self._box_heads.probe()[-1]
        self._scoring = find_scoring(model, self._box_heads)
        self.num_classes = last.logits.shape[1] - 1
        self.own_classes: OwnClasses | None = None
        self.own_thresholds = self._box_heads.own_thresholds
        self.class_agnostic_boxes = last.boxes[0].ndim == 2
        # A cache has one mask per refined box: class-agnostic masks need class-agnostic boxes.
        mask_predictor = getattr(getattr(model.roi_heads, "mask_head", None), "predictor", None)
        self.has_masks = self.class_agnostic_boxes and getattr(mask_predictor, "out_channels", 0) == 1
        self.description: dict[str, Any] = {
            "name": name or type(model).__name__,
            "framework": "detectron2",
            "framework_version": detectron2.__version__,
            "weights_sha256": "",
            **sha256,
            "activation": activation(last.logits, last.scores),
            "stage_average": "scores",
            "nms_iou": self._box_heads.nms_iou,
            "class_agnostic_boxes": self.class_agnostic_boxes,
            "class_agnostic_masks": self.has_masks,
            "settings": describe_settings(self.size, *self._normalisation(), image_format),
            **describe_pooled(self._box_heads.first),
            **({SCORES_WITH_OBJECTNESS: True} if self._scoring.with_objectness else {}),
        }

    @property
    def inference_difference(self) -> str:
        """How the framework's own inference differs from that of this library, in a line; "" if it does not."""
        predictor = self.model.roi_heads.box_predictor
        inference = getattr(type(predictor), "inference", None)
        if isinstance(predictor, nn.ModuleList) or inference is FastRCNNOutputLayers.inference:
            return ""  # a cascade does not call it
        replacing = f"NMS at IoU {self.description['nms_iou']:g} of its scores and boxes"
        return f"{replacing} replaces the own inference of {type(predictor).__name__}"

    @property
    def device(self) -> torch.device:
        """See `extract.detectors.base.Detector.device`."""
        return self.model.device

    def forward(
        self, images: Sequence[Image], level: str, select_proposals: SelectProposals | None = None
    ) -> Detectron2Output:
        """See `extract.detectors.base.Detector.forward`."""
        inputs = [self._input(image) for image in images]
        return self.forward_preprocessed(inputs, [image.image_id for image in images], level, select_proposals)

    @torch.no_grad()
    def own_inference(self, image: Image, score_threshold: float) -> ImageDetections:
        """See `extract.detectors.base.Detector`."""
        with boxes_only(self.model, self._box_heads, score_threshold):
            (result,) = self.model.inference([self._input(image)])
        return self.to_arrays(result)[0]

    @torch.no_grad()
    def forward_preprocessed(
        self,
        inputs: Sequence[dict[str, Any]],
        image_ids: Sequence[int],
        level: str,
        select_proposals: SelectProposals | None = None,
    ) -> Detectron2Output:
        """Runs `forward` on inputs of detectron2's models: dicts of the resized `image`, original height and width."""
        resized = self.model.preprocess_image(inputs)
        feature_maps = self.model.backbone(resized.tensor)
        if select_proposals is select_no_proposals:
            boxes, objectness = no_proposals(len(inputs), resized.tensor)
        else:
            proposals, _ = self.model.proposal_generator(resized, feature_maps, None)
            boxes = [p.proposal_boxes.tensor for p in proposals]
            objectness = [p.objectness_logits for p in proposals]
            if self._scoring.objectness_is_logit:
                objectness = [logits.sigmoid() for logits in objectness]
        sizes = [
            (image.get("height", height), image.get("width", width))
            for image, (height, width) in zip(inputs, resized.image_sizes, strict=True)
        ]
        scales = [scale_to_original(*pair, self.device) for pair in zip(sizes, resized.image_sizes, strict=True)]
        selected = apply_selection(boxes, objectness, scales, select_proposals)
        stages = self._box_heads.forward(feature_maps, selected, resized.image_sizes, level)
        rois = make_rois(
            image_ids,
            sizes,
            scales,
            selected,
            proposals=[stage.proposals for stage in stages],
            boxes=stages[-1].boxes,
            logits=[stage.logits for stage in stages],
            features=[] if level == "logits" else [stage.features[level] for stage in stages],
        )
        refined = stages[-1].boxes
        return Detectron2Output(rois, self.model.roi_heads, feature_maps, scales, refined, resized.image_sizes)

    def half_precision_parts(self) -> HalfPrecisionParts:
        """See `extract.detectors.precision.HalfPrecisionParts`."""
        heads = self.model.roi_heads
        chains = [[self.model.backbone], *([[heads.res5]] if hasattr(heads, "res5") else [])]
        named = ("box_head", "mask_head", "keypoint_head")
        towers = [getattr(heads, name) for name in named if isinstance(getattr(heads, name, None), nn.Module)]
        generator = self.model.proposal_generator
        return HalfPrecisionParts(chains, [getattr(generator, "rpn_head", generator), *towers])

    def fc_layers(self, level: str) -> list[Layers]:
        """See `extract.detectors.base.Detector.fc_layers`."""
        return self._box_heads.fc_layers(level)

    def state_dict_with_classifiers(self, classifiers: Layers) -> dict[str, Tensor]:
        """See `extract.detectors.base.Detector.state_dict_with_classifiers`."""
        return replace_classifiers(self.model, self._box_heads.classifiers(), classifiers)

    def to_arrays(self, result: dict[str, Instances]) -> tuple[ImageDetections, np.ndarray | None]:
        """See `extract.detectors.base.Detector.to_arrays`."""
        instances = result["instances"].to("cpu")
        masks = instances.pred_masks.numpy() if instances.has("pred_masks") else None
        boxes, labels = instances.pred_boxes.tensor.numpy(), instances.pred_classes.numpy()
        return ImageDetections(boxes, labels, instances.scores.numpy()), masks

    def resized(self, shorter: int, longer: int) -> Detectron2Detector:
        """See `extract.detectors.base.Detector.resized`."""
        other = copy.copy(self)
        other.size = (shorter, longer)
        other.description = with_settings(self.description, input_size=[shorter, longer])
        other._resize = ResizeShortestEdge([shorter, shorter], longer, interp=self._resize.interp)
        return other

    def _normalisation(self) -> tuple[list[float], list[float]]:
        """Returns the mean and the standard deviation of each channel."""
        return self.model.pixel_mean.flatten().tolist(), self.model.pixel_std.flatten().tolist()

    @staticmethod
    def read_image(path: Path) -> np.ndarray:
        """Reads a file as detectron2 does, as (H, W, 3) uint8 RGB; see `extract.data.decoding.ImageReader`."""
        with naming_image(path):
            return read_image(str(path), "RGB")

    def _input(self, image: Image) -> dict[str, Any]:
        """Returns an image as detectron2's models take it."""
        height, width = image.pixels.shape[:2]
        return {"image": self.to_tensor(image), "height": height, "width": width}

    def to_tensor(self, image: Image) -> Tensor:
        """Returns the image as (C, h, w) float32, resized as uint8 like `DefaultPredictor` does."""
        check_resizable(image, self.size)
        pixels = self._in_image_format(image.pixels)
        pixels = self._resize.get_transform(pixels).apply_image(pixels)
        return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32, order="C"))

    def _in_image_format(self, pixels: np.ndarray) -> np.ndarray:
        """Converts RGB to what detectron2's reader gives in the config's format, (H, W, C)."""
        if self._image_format in ("BGR", "RGB"):
            return pixels[:, :, ::-1] if self._image_format == "BGR" else pixels
        return convert_PIL_to_numpy(PILImage.fromarray(pixels), self._image_format)
