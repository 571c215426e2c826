"""The box heads of an mmdetection detector, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmdet.models.roi_heads.bbox_heads import BBoxHead, DoubleConvFCBBoxHead
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor, nn

from extract.cache.format import Layers
from extract.detectors.common import SelectedProposals, capture_inputs
from extract.detectors.fc_layers import layer_after_convolutions, read_layers, verified_layers
from extract.detectors.mmdet_config import logits_of
from extract.detectors.mmdet_roi_head import BatchFeatures


class StagesOutput(NamedTuple):
    """Inputs and outputs of all stages; boxes are in pixels of the resized images."""

    proposals: list[list[Tensor]]
    """Per stage and image (R, 4)."""

    boxes: list[Tensor]
    """Refined boxes of each image, (R, 4), or (R, K, 4) of a class-specific regressor."""

    logits: list[Tensor]
    """Per stage those of the batch, (N, K+1), background last."""


def run_stages(features: BatchFeatures, heads: Sequence[BBoxHead], selected: SelectedProposals) -> StagesOutput:
    """Runs every stage on the boxes that the previous one refined."""
    counts = [len(boxes) for boxes in selected.boxes]
    proposals, logits = [selected.boxes], []
    for stage, head in enumerate(heads):
        scores, deltas = features.box_head(stage, proposals[-1])
        logits.append(logits_of(head, scores))
        images = list(zip(proposals[-1], deltas.split(counts), features.data_samples, strict=True))
        if stage < len(heads) - 1:
            rest = zip(logits[-1].split(counts), selected.num_gt, strict=True)
            proposals.append([_next_proposals(head, *i, *more) for i, more in zip(images, rest, strict=True)])
    return StagesOutput(proposals, [_refine(head, *image) for image in images], logits)


def stage_fc_layers(head: BBoxHead, level: str, first: nn.Linear | None) -> Layers:
    """Returns one stage's layers from the features at a feature level to the logits, verified on a synthetic RoI.

    `first` is the stage's of `layers_after_convolutions`. Returns [] if the layers are not all fully connected.
    """
    probe = _probe(head)
    layers = read_layers([*_hidden_layers(head), head.fc_cls])
    if not verified_layers(layers[-1:], probe.embedding, probe.logits):
        return []
    if level == "embedding":
        return layers
    return verified_layers(layers, probe.pooled if first is None else probe.entering[0][0], probe.logits)


def layers_after_convolutions(heads: Sequence[BBoxHead]) -> list[nn.Linear | None]:
    """Returns each stage's `extract.detectors.fc_layers.layer_after_convolutions`, None for all if one has none."""
    found = []
    for head in heads:
        probe, hidden = _probe(head), _hidden_layers(head)
        classifier = verified_layers(read_layers([head.fc_cls]), probe.embedding, probe.logits)
        found.append(layer_after_convolutions(hidden, classifier, probe.pooled, probe.entering, probe.logits))
    return found if all(layer is not None for layer in found) else [None] * len(found)


class _Probe(NamedTuple):
    """A box head's input, what enters its first hidden layer and its classifier, and its logits, for one RoI."""

    pooled: Tensor
    entering: list[list[Tensor]]
    embedding: Tensor
    logits: Tensor


@torch.no_grad()
def _probe(head: BBoxHead) -> _Probe:
    """Runs a box head on a synthetic RoI."""
    shape = (1, head.in_channels, *head.roi_feat_size)
    pooled = torch.linspace(-1, 1, int(np.prod(shape)), device=next(head.parameters()).device).reshape(shape)
    inputs = 2 if isinstance(head, DoubleConvFCBBoxHead) else 1  # for classification and regression
    with capture_inputs([head.fc_cls, *_hidden_layers(head)[:1]]) as captured:
        logits = logits_of(head, head(*[pooled] * inputs)[0])
    return _Probe(pooled, captured[1:], captured[0][0], logits)


def _hidden_layers(head: BBoxHead) -> list[nn.Linear]:
    """Returns the fully connected layers before the classifier."""
    return [layer for name in ("shared_fcs", "cls_fcs", "fc_branch") for layer in getattr(head, name, [])]


def _next_proposals(
    head: BBoxHead, proposals: Tensor, deltas: Tensor, sample: DetDataSample, logits: Tensor, num_gt: int
) -> Tensor:
    """Returns the next stage's proposals (R, 4) of one image: refined ones, then the ground-truth boxes unchanged."""
    labels = logits[:, :-1].argmax(1)
    refined = get_box_tensor(head.regress_by_class(proposals, labels, deltas, sample.metainfo))
    num_proposals = len(proposals) - num_gt
    return torch.cat([refined[:num_proposals], proposals[num_proposals:]])


def _refine(head: BBoxHead, proposals: Tensor, deltas: Tensor, sample: DetDataSample) -> Tensor:
    """Returns refined, clipped boxes of one image: (R, 4), or (R, K, 4) of a class-specific regressor."""
    boxes_per_roi = 1 if head.reg_class_agnostic else head.num_classes
    repeated = proposals.repeat_interleave(boxes_per_roi, 0)
    boxes = get_box_tensor(head.bbox_coder.decode(repeated, deltas.reshape(-1, 4), sample.img_shape))
    return boxes if head.reg_class_agnostic else boxes.reshape(-1, boxes_per_roi, 4)
