"""The box heads of a detectron2 detector, stage by stage.

Letters in shapes: `r` RoIs of an image, `R` of the batch, `K` classes, `C` channels, `P` side of a pooled map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from extract.cache.format import Layers
from extract.detectors.base import OwnThresholds
from extract.detectors.common import SelectedProposals, capture_inputs
from extract.detectors.fc_layers import (
    layer_after_convolutions,
    linear_modules,
    read_layers,
    run_box_head,
    verified_layers,
)


class StageOutput(NamedTuple):
    """Inputs and outputs of one stage; boxes per image, in pixels of the resized image, the rest of the batch."""

    proposals: list[Tensor]
    """Each (r, 4)."""

    boxes: list[Tensor]
    """Refined and clipped, each (r, 4) or (r, K, 4)."""

    logits: Tensor
    """(R, K+1), background last."""

    scores: Tensor
    """(R, K+1)."""

    features: dict[str, Tensor]
    """Feature level → "pooled" (R, C, P, P), "embedding" (R, C)."""


class BoxHeads:
    """The box head and predictor of each stage of a model.

    Attributes:
        matching_ious, predictors: of each stage.
        nms_iou, own_thresholds: of the last stage's predictor.
        first: of each stage, its `extract.detectors.fc_layers.layer_after_convolutions`.
    """

    def __init__(self, model: GeneralizedRCNN):
        self._model, roi_heads = model, model.roi_heads
        self._is_c4 = isinstance(roi_heads, Res5ROIHeads)
        if isinstance(roi_heads, CascadeROIHeads):
            self._stages = list(zip(roi_heads.box_head, roi_heads.box_predictor, strict=True))
            matchers = roi_heads.proposal_matchers
        else:
            # C4 heads have no fully connected layers, only the mean of a RoI's map.
            head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()) if self._is_c4 else roi_heads.box_head
            self._stages, matchers = [(head, roi_heads.box_predictor)], [roi_heads.proposal_matcher]
        self.matching_ious = tuple(float(m.thresholds[m.labels.index(1)]) for m in matchers)
        self.predictors = [predictor for _, predictor in self._stages]
        predictor = self.predictors[-1]
        self.nms_iou, top = float(predictor.test_nms_thresh), int(predictor.test_topk_per_image)
        self.own_thresholds = OwnThresholds(float(predictor.test_score_thresh), top if top >= 0 else None)
        self.first: list[nn.Linear | None] = [None] * len(self._stages)
        self.first = self._layers_after_convolutions()

    def forward(
        self, feature_maps: dict[str, Tensor], selected: SelectedProposals, sizes: list[tuple[int, int]], level: str
    ) -> list[StageOutput]:
        """Runs every stage on the boxes that the previous one refined; keeps only the features of `level`."""
        proposals = selected.boxes
        outputs: list[StageOutput] = []
        for stage in range(len(self._stages)):
            if stage:
                boxes = zip(outputs[-1].boxes, proposals, selected.num_gt, strict=True)
                proposals = [torch.cat([new[: len(new) - n], old[len(old) - n :]]) for new, old, n in boxes]
            output = self._run_stage(stage, self._pool(feature_maps, proposals), proposals, sizes)
            kept = {name: features for name, features in output.features.items() if name == level}
            outputs.append(output._replace(features=kept))
        return outputs

    @torch.no_grad()
    def probe(self) -> list[StageOutput]:
        """Runs every stage on four synthetic RoIs, for properties that are not attributes of every model."""
        heads = self._model.roi_heads
        channels = self._model.backbone.output_shape()[heads.in_features[0]].channels
        sides = (heads.pooler if self._is_c4 else heads.box_pooler).output_size
        pooled = torch.randn(4, channels, *sides, generator=torch.Generator().manual_seed(0)).to(self._model.device)
        pooled = heads.res5(pooled) if self._is_c4 else pooled
        boxes = pooled.new_tensor([0, 0, 16, 16]).expand(4, 4)
        return [self._run_stage(stage, pooled, [boxes], [(32, 32)]) for stage in range(len(self._stages))]

    def fc_layers(self, level: str) -> list[Layers]:
        """See `extract.detectors.base.Detector.fc_layers`."""
        if level == "logits":
            return []
        layers = []
        for (head, _), classifier, probe in zip(self._stages, self.classifiers(), self.probe(), strict=True):
            hidden = linear_modules(head) if level == "pooled" else []
            found = read_layers([*hidden, classifier] if classifier else [])
            layers.append(verified_layers(found, probe.features[level], probe.logits))
        return layers if all(layers) else []

    def _layers_after_convolutions(self) -> list[nn.Linear | None]:
        """Returns each stage's `layer_after_convolutions`, None for all stages if one has none."""
        hidden = [linear_modules(head) for head, _ in self._stages]
        with capture_inputs([layer for layers in hidden for layer in layers[:1]]) as captured:
            probes = self.probe()
        entering, found = iter(captured), []
        for layers, classifier, probe in zip(hidden, self.classifiers(), probes, strict=True):
            last = read_layers([classifier] if classifier else [])
            entered = [next(entering)] if layers else []
            found.append(layer_after_convolutions(layers, last, probe.features["pooled"], entered, probe.logits))
        return found if all(layer is not None for layer in found) else [None] * len(found)

    def classifiers(self) -> list[nn.Linear | None]:
        """Returns each stage's linear layer from the embedding to the logits, None where there is none."""
        return [_classifier(*stage) for stage in zip(self.predictors, self.probe(), strict=True)]

    def _run_stage(
        self, stage: int, pooled: Tensor, proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> StageOutput:
        head, predictor = self._stages[stage]
        embedding, pooled = run_box_head(head, pooled, self.first[stage])
        predictions = predictor(embedding)
        instances = [Instances(s, proposal_boxes=Boxes(p)) for p, s in zip(proposals, sizes, strict=True)]
        boxes = [_clip(b, s) for b, s in zip(predictor.predict_boxes(predictions, instances), sizes, strict=True)]
        scores = torch.cat(predictor.predict_probs(predictions, instances))
        features = {"pooled": pooled, "embedding": embedding.flatten(1)}
        return StageOutput(proposals, boxes, predictions[0], scores, features)

    def _pool(self, feature_maps: dict[str, Tensor], proposals: list[Tensor]) -> Tensor:
        """Returns the input of the box head, (R, C, P, P)."""
        heads, boxes = self._model.roi_heads, [Boxes(p) for p in proposals]
        maps = [feature_maps[name] for name in heads.in_features]
        return heads._shared_roi_transform(maps, boxes) if self._is_c4 else heads.box_pooler(maps, boxes)


def activation(logits: Tensor, scores: Tensor) -> str:
    """Returns the function from logits to the predictor's scores, "softmax" or "sigmoid"; ignores background."""
    for name, activate in {"softmax": lambda z: z.softmax(1), "sigmoid": Tensor.sigmoid}.items():
        if torch.allclose(activate(logits)[:, :-1], scores[:, :-1], rtol=1e-3, atol=1e-12):
            return name
    raise ValueError("scores of the box predictor are neither softmax nor sigmoid of its logits")


def _classifier(predictor: nn.Module, probe: StageOutput) -> nn.Linear | None:
    """Returns the predictor's linear layer that maps the embedding to the logits."""
    for module in linear_modules(predictor):
        if verified_layers(read_layers([module]), probe.features["embedding"], probe.logits):
            return module
    return None


def _clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clips boxes (r, 4) or (r, 4K) to the image, and returns them as (r, 4) or (r, K, 4)."""
    clipped = Boxes(boxes.reshape(-1, 4))
    clipped.clip(size)
    return clipped.tensor if boxes.shape[1] == 4 else clipped.tensor.view(len(boxes), boxes.shape[1] // 4, 4)
