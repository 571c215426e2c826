"""detectron2's two-stage detectors: a `GeneralizedRCNN` with standard, cascade or C4 RoI heads.

The forward pass is detectron2's own, taken apart where proposals are chosen and where RoI features are pooled. Letters
in shapes: `r` RoIs of an image, `R` of the batch, `K` classes, `C` channels, `P` side of a pooled map.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import detectron2
import numpy as np
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import GeneralizedRCNN, detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from extract.cache.format import Layers
from extract.config import DetectorSpec
from extract.detectors.base import Choose, Image, ImageDetections
from extract.detectors.common import (
    choose_proposals,
    linear_layers,
    make_rois,
    mask_batches,
    to_uint8,
    verified,
    with_classifiers,
)
from extract.detectors.detectron2_config import activation, build, check, errors_of, is_c4, stages_of
from extract.detectors.detectron2_config import registered_dataset as registered_dataset
from extract.rois import RoIs


class _Stage(NamedTuple):
    """What one stage of the box head sees and says: boxes of each image in resized pixels, the rest of the batch."""

    proposals: list[Tensor]  # each (r, 4)
    boxes: list[Tensor]  # refined and clipped, each (r, 4) or (r, K, 4)
    logits: Tensor  # (R, K+1), background last
    scores: Tensor  # (R, K+1)
    pooled: Tensor | None  # (R, C, P, P)
    embedding: Tensor | None  # (R, C)


def load(target: str, spec: DetectorSpec) -> Detectron2Detector:
    """Builds the model of `spec.config_file`, a .yaml or a LazyConfig .py, and loads its weights.

    `target` is "" or names a function that is called with the config before a .yaml is read; for a LazyConfig only its
    module is imported.
    """
    built, sha256 = build(target, spec)
    with errors_of(spec.config_file):
        return Detectron2Detector(built.model, built.resize, built.image_format, name=spec.config_file.stem, **sha256)


class Detectron2Detector:
    """A frozen detectron2 detector; see `extract.detectors.base.Detector`.

    C4 heads have no fully connected layers: "pooled" is the map that res5 makes of a RoI, "embedding" its mean.
    """

    def __init__(
        self,
        model: GeneralizedRCNN,
        resize: ResizeShortestEdge,
        image_format: str = "BGR",
        name: str = "",
        **sha256: str,
    ):
        check(model)
        if image_format not in ("BGR", "RGB"):
            raise ValueError(f"input format is {image_format!r}, expected 'BGR' or 'RGB'")
        if len(set(resize.short_edge_length)) != 1:
            raise ValueError(f"shorter edge of test images is {[*resize.short_edge_length]}, expected one length")
        self.model = model.eval().requires_grad_(False)
        self.device, self._resize, self._image_format = model.device, resize, image_format
        self.size = (int(resize.short_edge_length[0]), int(resize.max_size))
        self._heads, matchers = stages_of(model.roi_heads)
        self.stages = tuple(float(m.thresholds[m.labels.index(1)]) for m in matchers)
        last = self._probe()[-1]
        self.num_classes = last.logits.shape[1] - 1
        self.class_agnostic_boxes = last.boxes[0].ndim == 2
        # Masks are of refined boxes, so a class-agnostic mask needs a class-agnostic box.
        mask_predictor = getattr(getattr(model.roi_heads, "mask_head", None), "predictor", None)
        self.has_masks = self.class_agnostic_boxes and getattr(mask_predictor, "out_channels", 0) == 1
        self.description = {
            "name": name or type(model).__name__,
            "framework": "detectron2",
            "framework_version": detectron2.__version__,
            "weights_sha256": "",
            **sha256,
            "activation": activation(last.logits, last.scores),
            "stage_average": "scores",
            "nms_iou": float(self._heads[-1][1].test_nms_thresh),
            "class_agnostic_boxes": self.class_agnostic_boxes,
            "class_agnostic_masks": self.has_masks,
        }

    def forward(self, images: Sequence[Image], level: str, choose: Choose | None = None) -> _ForwardOutput:
        """See `extract.detectors.base.Detector.forward`."""
        sizes = [dict(zip(("height", "width"), image.pixels.shape, strict=False)) for image in images]
        inputs = [{"image": self._tensor(image), **size} for image, size in zip(images, sizes, strict=True)]
        return self.forward_preprocessed(inputs, [image.image_id for image in images], level, choose)

    @torch.no_grad()
    def forward_preprocessed(
        self, inputs: list[dict], image_ids: Sequence[int], level: str, choose: Choose | None = None
    ) -> _ForwardOutput:
        """`forward` of what detectron2's models take: dicts of a resized `image` and its original height and width."""
        resized = self.model.preprocess_image(inputs)
        features = self.model.backbone(resized.tensor)
        found, _ = self.model.proposal_generator(resized, features, None)
        shapes = zip(inputs, resized.image_sizes, strict=True)
        sizes = [(one.get("height", height), one.get("width", width)) for one, (height, width) in shapes]
        scales = [self._scale(*pair) for pair in zip(sizes, resized.image_sizes, strict=True)]
        proposals, objectness, added = choose_proposals(
            [p.proposal_boxes.tensor for p in found], [p.objectness_logits.sigmoid() for p in found], scales, choose
        )
        stages = self._run(features, proposals, added, resized.image_sizes, level)
        counts = [len(p) for p in proposals]
        proposals = zip(*(stage.proposals for stage in stages), strict=True)
        logits = zip(*(stage.logits.split(counts) for stage in stages), strict=True)
        stored = [None] * len(inputs)
        if level != "logits":
            stored = zip(*(getattr(stage, level).split(counts) for stage in stages), strict=True)
        boxes = stages[-1].boxes
        parts = zip(image_ids, sizes, scales, proposals, boxes, logits, objectness, stored, added, strict=True)
        rois = [make_rois(*one) for one in parts]
        return _ForwardOutput(rois, self.model.roi_heads, features, scales, boxes, resized.image_sizes)

    def fc_layers(self, level: str) -> list[Layers]:
        """See `extract.detectors.base.Detector.fc_layers`."""
        if level == "logits":
            return []
        layers = [_layers(level, *parts, seen) for parts, seen in zip(self._heads, self._probe(), strict=True)]
        return layers if all(layers) else []

    def state_with(self, classifiers: Layers) -> dict[str, Tensor]:
        """See `extract.detectors.base.Detector.state_with`."""
        own = [_classifier(predictor, seen) for (_, predictor), seen in zip(self._heads, self._probe(), strict=True)]
        return with_classifiers(self.model, own, classifiers)

    def to_arrays(self, result: dict[str, Instances]) -> tuple[ImageDetections, np.ndarray | None]:
        """See `extract.detectors.base.Detector.to_arrays`."""
        found = result["instances"].to("cpu")
        masks = found.pred_masks.numpy() if found.has("pred_masks") else None
        return ImageDetections(found.pred_boxes.tensor.numpy(), found.pred_classes.numpy(), found.scores.numpy()), masks

    def resized(self, shorter: int, longer: int) -> Detectron2Detector:
        """See `extract.detectors.base.Detector.resized`."""
        other = copy.copy(self)
        other.size = (shorter, longer)
        other._resize = ResizeShortestEdge([shorter, shorter], longer, interp=self._resize.interp)
        return other

    def _run(
        self, features: dict[str, Tensor], proposals: list[Tensor], added: list[int], sizes: list[tuple], level: str
    ) -> list[_Stage]:
        """Every stage on the boxes that the one before refined; of the features only those of a level stay."""
        stages, dropped = [], {name: None for name in ("pooled", "embedding") if name != level}
        for index in range(len(self._heads)):
            if index:
                refined = zip(stages[-1].boxes, proposals, added, strict=True)
                proposals = [torch.cat([new[: len(new) - n], old[len(old) - n :]]) for new, old, n in refined]
            stage = self._stage(index, self._pool(features, proposals), proposals, sizes)
            stages.append(stage._replace(**dropped))
        return stages

    def _stage(self, index: int, pooled: Tensor, proposals: list[Tensor], sizes: list[tuple]) -> _Stage:
        head, predictor = self._heads[index]
        embedding = head(pooled)
        predictions = predictor(embedding)
        instances = [Instances(s, proposal_boxes=Boxes(p)) for p, s in zip(proposals, sizes, strict=True)]
        boxes = [_clipped(b, s) for b, s in zip(predictor.predict_boxes(predictions, instances), sizes, strict=True)]
        scores = torch.cat(predictor.predict_probs(predictions, instances))
        return _Stage(proposals, boxes, predictions[0], scores, pooled, embedding.flatten(1))

    def _pool(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """What the box head takes in, (R, C, P, P)."""
        heads, boxes = self.model.roi_heads, [Boxes(b) for b in boxes]
        maps = [features[name] for name in heads.in_features]
        return heads._shared_roi_transform(maps, boxes) if is_c4(heads) else heads.box_pooler(maps, boxes)

    @torch.no_grad()
    def _probe(self) -> list[_Stage]:
        """What each stage makes of four made-up RoIs: it shows what is not an attribute of every model."""
        heads = self.model.roi_heads
        channels = self.model.backbone.output_shape()[heads.in_features[0]].channels
        sides = (heads.pooler if is_c4(heads) else heads.box_pooler).output_size
        pooled = torch.randn(4, channels, *sides, generator=torch.Generator().manual_seed(0)).to(self.device)
        pooled = heads.res5(pooled) if is_c4(heads) else pooled
        boxes = pooled.new_tensor([0, 0, 16, 16]).expand(4, 4)
        return [self._stage(index, pooled, [boxes], [(32, 32)]) for index in range(len(self._heads))]

    def _tensor(self, image: Image) -> Tensor:
        """(3, h, w) float32, resized as uint8 like `DefaultPredictor` does it."""
        pixels = image.pixels[:, :, ::-1] if self._image_format == "BGR" else image.pixels
        pixels = self._resize.get_transform(pixels).apply_image(pixels)
        return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32, order="C"))

    def _scale(self, original: tuple[int, int], resized: tuple[int, int]) -> Tensor:
        """(4,) factors from resized to original xyxy."""
        height, width = (o / r for o, r in zip(original, resized, strict=True))
        return torch.tensor([width, height, width, height], device=self.device)


@dataclass(frozen=True, eq=False)
class _ForwardOutput:
    """See `extract.detectors.base.ForwardOutput`; `boxes` and `sizes` of each image are in resized pixels."""

    rois: list[RoIs]
    heads: nn.Module
    features: dict[str, Tensor]
    scales: list[Tensor]
    boxes: list[Tensor]
    sizes: list[tuple[int, int]]

    @torch.no_grad()
    def masks(self) -> list[np.ndarray]:
        """See `extract.detectors.base.ForwardOutput.masks`."""
        painted = []
        for i, regions in enumerate(self.boxes):
            parts = [self._complete(i, part).pred_masks[:, 0] for part in mask_batches(regions)]
            painted.append(to_uint8(torch.cat(parts)))
        return painted

    @torch.no_grad()
    def to_framework(self, detected: Sequence[ImageDetections]) -> list[dict[str, Instances]]:
        """See `extract.detectors.base.ForwardOutput.to_framework`: `{"instances": Instances}`, as `DefaultPredictor` returns it."""
        found = []
        for i, (one, scale, rois) in enumerate(zip(detected, self.scales, self.rois, strict=True)):
            boxes, labels, scores = (torch.from_numpy(a).to(scale.device) for a in one)
            whole = self._complete(i, boxes / scale, scores=scores, pred_classes=labels)
            found.append({"instances": detector_postprocess(whole, rois.height, rois.width)})
        return found

    def _complete(self, image: int, boxes: Tensor, **fields: Tensor) -> Instances:
        """Boxes (D, 4) in resized pixels with what the other heads say of them: masks, key points."""
        fields = {"pred_classes": boxes.new_zeros(len(boxes), dtype=torch.long), **fields}
        maps = {name: level[image : image + 1] for name, level in self.features.items()}
        instances = Instances(self.sizes[image], pred_boxes=Boxes(boxes), **fields)
        return self.heads.forward_with_given_boxes(maps, [instances])[0]


def _layers(level: str, head: nn.Module, predictor: nn.Module, seen: _Stage) -> Layers:
    """The layers from a level's features to the logits of one stage, [] if they are not fully connected."""
    classifier = _classifier(predictor, seen)
    if classifier is None or level == "embedding":
        return linear_layers([classifier] if classifier else [])
    return verified(linear_layers([*_linears(head), classifier]), seen.pooled, seen.logits)


def _classifier(predictor: nn.Module, seen: _Stage) -> nn.Linear | None:
    """The one layer that leads from the embedding to the logits, if there is one."""
    return next((m for m in _linears(predictor) if verified(linear_layers([m]), seen.embedding, seen.logits)), None)


def _linears(part: nn.Module) -> list[nn.Linear]:
    return [m for m in part.modules() if isinstance(m, nn.Linear)]


def _clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(r, 4) or (r, 4K) → (r, 4) or (r, K, 4), inside the image."""
    inside = Boxes(boxes.reshape(-1, 4))
    inside.clip(size)
    return inside.tensor if boxes.shape[1] == 4 else inside.tensor.view(len(boxes), boxes.shape[1] // 4, 4)
