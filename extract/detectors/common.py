"""What the adapters of all frameworks have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from extract.cache.format import Layers
from extract.detectors.base import Choose
from extract.rois import RoIs

MASK_BATCH, MASK_BATCH_CPU = 1024, 32
"""RoIs whose masks are computed at a time: thousands of mask feature maps would fill the memory, and on a CPU more than
some tens of them its cache, which takes small mask heads twice the time."""
CHAIN_TOLERANCE = 1e-3


@contextmanager
def capture_inputs(modules: Sequence[nn.Module | None]) -> Iterator[list[list[Tensor]]]:
    """Records, while the block runs, the first input of every call of each module: what a head really sees."""
    seen: list[list[Tensor]] = [[] for _ in modules]
    handles = [
        module.register_forward_pre_hook(lambda _, args, into=into: into.append(args[0]))
        for module, into in zip(modules, seen, strict=True)
        if module is not None
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def choose_proposals(
    proposals: Sequence[Tensor], objectness: Sequence[Tensor], scales: Sequence[Tensor], choose: Choose | None
) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """What `choose` keeps and adds, per image.

    Args:
        proposals: (P, 4) xyxy in pixels of the resized image, best first.
        objectness: (P,) probability.
        scales: (4,) factors from resized to original xyxy.
        choose: see `extract.detectors.base.Choose`; None keeps all.

    Returns:
        Boxes (R, 4) in resized pixels, their objectness (R,), and how many added boxes stand at the end.
    """
    if choose is None:
        return list(proposals), list(objectness), [0] * len(proposals)
    chosen, scores, added = [], [], []
    for i, (boxes, score, scale) in enumerate(zip(proposals, objectness, scales, strict=True)):
        keep, extra = choose(i, (boxes * scale).cpu().numpy())
        keep = torch.from_numpy(np.array(keep, np.int64)).to(boxes.device)
        extra = torch.from_numpy(np.array(extra, np.float32).reshape(-1, 4)).to(boxes.device)
        chosen.append(torch.cat([boxes[keep], extra / scale]))
        scores.append(torch.cat([score[keep], score.new_ones(len(extra))]))
        added.append(len(extra))
    return chosen, scores, added


def make_rois(
    image_id: int,
    size: tuple[int, int],
    scale: Tensor,
    proposals: Sequence[Tensor],
    boxes: Tensor,
    logits: Sequence[Tensor],
    objectness: Tensor,
    features: Sequence[Tensor] | None,
    added: int,
) -> RoIs:
    """One image's RoIs, unlabelled, from tensors of a forward pass.

    Args:
        size: (height, width) of the original image.
        scale: (4,) factors from resized to original xyxy.
        proposals: per stage (R, 4) xyxy in pixels of the resized image, as are `boxes`.
        boxes: (R, 4), or (R, K, 4) of a class-specific regressor.
        logits: per stage (R, K+1), background last.
        objectness: (R,).
        features: per stage (R, *D), or None; they stay on their device, as they are.
        added: so many RoIs at the end are ground truth.
    """
    count, stages = len(objectness), len(logits)
    is_gt = np.zeros(count, bool)
    is_gt[count - added :] = True
    return RoIs(
        image_id=image_id,
        height=size[0],
        width=size[1],
        proposals=(torch.stack(list(proposals), 1) * scale).cpu().numpy(),
        boxes=(boxes * scale).cpu().numpy(),
        logits=torch.stack(list(logits), 1).cpu().numpy(),
        objectness=objectness.cpu().numpy(),
        features=None if features is None else _stacked(features),
        labels=np.full((count, stages), -1, np.int32),
        ious=np.zeros((count, stages), np.float32),
        gt_ids=np.full((count, stages), -1, np.int64),
        is_gt=is_gt,
    )


def _stacked(stages: Sequence[Tensor]) -> Tensor:
    """(R, S, *D) of S stages; pooled maps are large, those of a single stage are not copied."""
    return stages[0].unsqueeze(1) if len(stages) == 1 else torch.stack(list(stages), 1)


def mask_batches(boxes: Tensor) -> tuple[Tensor, ...]:
    """Boxes (R, 4) in parts whose masks are to be computed at a time."""
    return boxes.split(MASK_BATCH_CPU if boxes.device.type == "cpu" else MASK_BATCH)


def to_uint8(probabilities: Tensor) -> np.ndarray:
    """Mask probabilities (R, M, M) as a cache stores them, uint8."""
    return (probabilities * 255).round().byte().cpu().numpy()


def linear_layers(linears: Sequence[nn.Linear]) -> Layers:
    """Weights and biases of fully connected layers as float32 arrays."""
    return [(m.weight.detach().float().cpu().numpy(), _bias(m).detach().float().cpu().numpy()) for m in linears]


def verified(layers: Layers, features: Tensor, logits: Tensor) -> Layers:
    """`layers` if they, with ReLU between them, lead from features (R, …) to logits (R, K+1), else [].

    A head with other parts than fully connected layers (convolutions, normalisation, a cosine classifier, a
    temperature) is found out here, whatever it is made of.
    """
    x = features.flatten(1).float().cpu()
    if not layers or layers[0][0].shape[1] != x.shape[1]:
        return []
    for depth, (weight, bias) in enumerate(layers):
        x = torch.nn.functional.linear(x.relu() if depth else x, torch.from_numpy(weight), torch.from_numpy(bias))
    wanted = logits.float().cpu()
    fits = x.shape == wanted.shape and torch.allclose(x, wanted, atol=CHAIN_TOLERANCE * float(wanted.abs().max()))
    return layers if fits else []


def with_classifiers(model: nn.Module, own: Sequence[nn.Linear], classifiers: Layers) -> dict[str, Tensor]:
    """The model's state_dict with other weights (K+1, C) and biases (K+1,) in its classifiers `own`, one a stage.

    Raises ValueError for a classifier without bias that would need one.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = dict(model.state_dict())
    for layer, (weight, bias) in zip(own, classifiers, strict=True):
        state[names[id(layer.weight)]] = torch.from_numpy(weight).to(layer.weight)
        if layer.bias is not None:
            state[names[id(layer.bias)]] = torch.from_numpy(bias).to(layer.bias)
        elif bias.any():
            raise ValueError(f"{names[id(layer.weight)]} has no bias, which the method would change")
    return state


def _bias(layer: nn.Linear) -> Tensor:
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
