"""How the scores of a detectron2 detector follow from its class scores: found by running its RoI heads.

Subclasses of detectron2's RoI heads and predictors may score in a way of their own. CenterNet2's take the root of class
score times proposal score.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from extract.detectors.agreement import Tolerance, score_difference
from extract.detectors.base import ImageDetections
from extract.detectors.common import SelectedProposals, overridden
from extract.detectors.detectron2_stages import BoxHeads
from extract.utils.errors import one_line

SIDE = 128
"""Of the synthetic image, in pixels."""
PROPOSALS = [[4, 4, 52, 44], [70, 8, 120, 60], [10, 72, 50, 124], [68, 76, 124, 120]]
OBJECTNESS = [0.9, 0.6, 0.35, 0.15]
"""Of the synthetic proposals: valid as logits, which detectron2's RPN gives, and as probabilities, as CenterNet's."""
TOLERANCE = Tolerance(1e-8, 1e-3)
"""Of scores that are computed from the same tensors."""
NO_MASKS = ("mask_on", "keypoint_on")


class Scoring(NamedTuple):
    """How scores follow from class scores.

    Attributes:
        with_objectness: they are the root of class score times objectness, else the class scores.
        objectness_is_logit: whether the field `objectness_logits` of proposals holds logits or probabilities.
    """

    with_objectness: bool
    objectness_is_logit: bool


@torch.no_grad()
def find_scoring(model: GeneralizedRCNN, box_heads: BoxHeads) -> Scoring:
    """Finds the scoring that gives the scores of the RoI heads' own inference.

    Raises ValueError naming the RoI heads and the difference if none does.
    """
    proposals, objectness = (torch.tensor(values, device=model.device) for values in (PROPOSALS, OBJECTNESS))
    proposals, sizes, maps = proposals.float(), [(SIDE, SIDE)], _feature_maps(model)
    names = {type(part).__name__: None for part in (model.roi_heads, box_heads.predictors[-1])}
    try:
        own = _own_inference(model, box_heads, maps, Instances(sizes[0], proposal_boxes=Boxes(proposals)), objectness)
    except Exception as error:  # RoI heads are code of any kind
        raise ValueError(f"RoI heads are {', '.join(names)}: their inference failed: {one_line(error)}") from error
    stages = box_heads.forward(maps, SelectedProposals([proposals], [objectness], [0]), sizes, "logits")
    scores = torch.stack([stage.scores for stage in stages]).mean(0)
    boxes = stages[-1].boxes[0].cpu().numpy()
    difference = ""
    for scoring, probabilities in {
        Scoring(False, True): None,
        Scoring(True, True): objectness.sigmoid(),
        Scoring(True, False): objectness,
    }.items():
        expected = scores if probabilities is None else (scores * probabilities[:, None]).sqrt()
        found = score_difference(own, boxes, expected.cpu().numpy(), TOLERANCE)
        if not found:
            return scoring
        difference = difference or found
    raise ValueError(
        f"RoI heads are {', '.join(names)}: {difference}; expected class scores, or the root of class score times "
        "proposal score"
    )


def boxes_only(model: GeneralizedRCNN, box_heads: BoxHeads, score_threshold: float) -> ExitStack:
    """Lets the model's own inference return boxes above a score threshold, without masks, while the context is open."""
    heads, stack = model.roi_heads, ExitStack()
    stack.enter_context(overridden(heads, **{name: False for name in NO_MASKS if hasattr(heads, name)}))
    for predictor in box_heads.predictors:
        stack.enter_context(overridden(predictor, test_score_thresh=score_threshold))
    return stack


def _own_inference(
    model: GeneralizedRCNN, box_heads: BoxHeads, maps: dict[str, Tensor], proposals: Instances, objectness: Tensor
) -> ImageDetections:
    """Runs the RoI heads' own inference on an image's proposals and feature maps."""
    proposals.objectness_logits = objectness
    images = ImageList(objectness.new_zeros(1, 3, SIDE, SIDE), [(SIDE, SIDE)])
    with boxes_only(model, box_heads, 0.0):
        (found,), _ = model.roi_heads(images, maps, [proposals], None)
    columns = found.pred_boxes.tensor, found.pred_classes, found.scores
    return ImageDetections(*(column.cpu().numpy() for column in columns))


def _feature_maps(model: GeneralizedRCNN) -> dict[str, Tensor]:
    """Returns random maps (1, C, H, W) of the backbone's outputs for the synthetic image."""
    generator, maps = torch.Generator().manual_seed(0), {}
    for name, shape in model.backbone.output_shape().items():
        side = -(-SIDE // shape.stride)
        maps[name] = torch.randn(1, shape.channels, side, side, generator=generator).to(model.device)
    return maps
