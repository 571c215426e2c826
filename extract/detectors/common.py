"""The parts of a forward pass that all adapters share: proposal selection, RoIs and masks in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from extract.detectors.base import Image, SelectProposals
from extract.rois import RoIs

MASK_BATCH, MASK_BATCH_CPU = 1024, 32
"""RoIs per batch of the mask head. On a GPU the feature maps of thousands of masks would fill the memory; on a CPU more
than some tens exceed the cache, which doubles the time of a small mask head."""


class SelectedProposals(NamedTuple):
    """The input of the box head, per image."""

    boxes: list[Tensor]
    """(R, 4) xyxy in pixels of the resized image, appended ground-truth boxes last."""

    objectness: list[Tensor]
    """(R,) probabilities, 1 for ground-truth boxes."""

    num_gt: list[int]
    """Number of appended ground-truth boxes."""


def check_resizable(image: Image, size: tuple[int, int]) -> None:
    """Raises ValueError for an image so narrow that resizing leaves it no pixel; `size` is the detector's."""
    height, width = image.pixels.shape[:2]
    shorter, longer = size
    if min(height, width) == 0 or (shorter and longer * min(height, width) < max(height, width)):
        raise ValueError(
            f"image {image.image_id}: is {width}×{height}, too narrow to resize to {longer} along the longer edge"
        )


def no_proposals(images: int, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the boxes (0, 4) and probabilities (0,) of no proposals in each image, on the device of `like`."""
    return [like.new_zeros(0, 4) for _ in range(images)], [like.new_zeros(0) for _ in range(images)]


def apply_selection(
    proposals: Sequence[Tensor],
    objectness: Sequence[Tensor],
    scales: Sequence[Tensor],
    select_proposals: SelectProposals | None,
) -> SelectedProposals:
    """Selects proposals and appends ground-truth boxes, per image.

    Args:
        proposals: (P, 4) xyxy in pixels of the resized image, best first.
        objectness: (P,) probabilities.
        scales: (4,) factors from resized to original xyxy.
        select_proposals: see `extract.detectors.base.SelectProposals`; None keeps all proposals.
    """
    if select_proposals is None:
        return SelectedProposals(list(proposals), list(objectness), [0] * len(proposals))
    selected = SelectedProposals([], [], [])
    for i, (boxes, probabilities, scale) in enumerate(zip(proposals, objectness, scales, strict=True)):
        indices, gt = select_proposals(i, (boxes * scale).cpu().numpy())
        keep = torch.from_numpy(np.array(indices, np.int64)).to(boxes.device)
        gt_boxes = torch.from_numpy(np.array(gt, np.float32).reshape(-1, 4)).to(boxes.device)
        selected.boxes.append(torch.cat([boxes[keep], gt_boxes / scale]))
        selected.objectness.append(torch.cat([probabilities[keep], probabilities.new_ones(len(gt_boxes))]))
        selected.num_gt.append(len(gt_boxes))
    return selected


def make_rois(
    image_ids: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    scales: Sequence[Tensor],
    selected: SelectedProposals,
    *,
    proposals: Sequence[Sequence[Tensor]],
    boxes: Sequence[Tensor],
    logits: Sequence[Tensor],
    features: Sequence[Tensor],
) -> list[RoIs]:
    """Makes the unlabelled RoIs of each image of a batch from the tensors of a forward pass.

    Boxes are xyxy in pixels of the resized images. R is of one image, N of all images.

    Args:
        sizes: (height, width) of each original image.
        scales: of each image, (4,) factors from resized to original xyxy.
        selected: input of the box head.
        proposals: per stage and image (R, 4).
        boxes: refined boxes of each image, (R, 4), or (R, K, 4) of a class-specific regressor.
        logits: per stage (N, K+1), background last.
        features: per stage (N, *D), which stay on their device; empty for none.
    """
    counts = [len(b) for b in selected.boxes]
    logits_of_images = list(zip(*(stage.split(counts) for stage in logits), strict=True))
    features_of_images = list(zip(*(stage.split(counts) for stage in features), strict=True))
    rois = []
    for i, (image_id, (height, width), scale) in enumerate(zip(image_ids, sizes, scales, strict=True)):
        is_gt = np.zeros(counts[i], bool)
        is_gt[counts[i] - selected.num_gt[i] :] = True
        labels_shape = (counts[i], len(logits))
        rois.append(
            RoIs(
                image_id=image_id,
                height=height,
                width=width,
                proposals=(torch.stack([stage[i] for stage in proposals], 1) * scale).cpu().numpy(),
                boxes=(boxes[i] * scale).cpu().numpy(),
                logits=torch.stack(logits_of_images[i], 1).cpu().numpy(),
                objectness=selected.objectness[i].cpu().numpy(),
                features=_stack_stages(features_of_images[i]) if features else None,
                labels=np.full(labels_shape, -1, np.int32),
                ious=np.zeros(labels_shape, np.float32),
                gt_ids=np.full(labels_shape, -1, np.int64),
                is_gt=is_gt,
            )
        )
    return rois


def _stack_stages(features: tuple[Tensor, ...]) -> Tensor:
    """Stacks the features of S stages, (R, *D), to (R, S, *D); a single stage is not copied, pooled maps are large."""
    return features[0].unsqueeze(1) if len(features) == 1 else torch.stack(features, 1)


def scale_to_original(original: Sequence[int], resized: Sequence[int], device: torch.device) -> Tensor:
    """Returns the (4,) factors from resized to original xyxy, of two (height, width)."""
    height, width = (o / r for o, r in zip(original, resized, strict=True))
    return torch.tensor([width, height, width, height], device=device)


def masks_in_batches(boxes: Sequence[Tensor], predict: Callable[[int, Tensor], Tensor]) -> list[np.ndarray]:
    """Predicts one mask per box in batches; returns each image's masks as a cache stores them.

    Args:
        boxes: of each image, (R, 4).
        predict: (index of an image, some of its boxes (n, 4)) → mask probabilities (n, M, M).

    Returns:
        (R, M, M) uint8 of each image, probability times 255.
    """
    masks = []
    for image, image_boxes in enumerate(boxes):
        probabilities = torch.cat([predict(image, batch) for batch in mask_batches(image_boxes)])
        masks.append((probabilities * 255).round().byte().cpu().numpy())
    return masks


def mask_batches(boxes: Tensor) -> tuple[Tensor, ...]:
    """Splits boxes (R, 4) into batches for the mask head."""
    return boxes.split(MASK_BATCH_CPU if boxes.device.type == "cpu" else MASK_BATCH)


@contextmanager
def capture_inputs(modules: Sequence[nn.Module]) -> Iterator[list[list[Tensor]]]:
    """Records the first argument of every call of each module while the block runs."""

    def append_to(calls: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: calls.append(args[0])

    inputs: list[list[Tensor]] = [[] for _ in modules]
    handles = [m.register_forward_pre_hook(append_to(calls)) for m, calls in zip(modules, inputs, strict=True)]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def overridden(target: Any, **values: object) -> Iterator[None]:
    """Sets attributes of an object while the block runs."""
    before = {name: getattr(target, name) for name in values}
    for name, value in values.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)
